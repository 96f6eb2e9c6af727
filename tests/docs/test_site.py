"""The site: built strictly, complete, and read without a network."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import flyspeck

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_is_whole_and_fetches_nothing(builder: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs")
    site = tmp_path / "site"
    assert builder.build(site) == []
    for path in (*site.rglob("*.html"), *site.rglob("*.js"), *site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(
            r"""<(?:script|link|img|iframe|source)[^>]+(?:src|href)=["']?(?:https?:)?//[^\s>]+""", text
        )
        assert not fetched, f"{path.relative_to(site)}: {fetched}"
        if path.suffix != ".html":
            assert not re.findall(r"https?://(?!www\.w3\.org/)[\w.-]+", text), path
            assert not re.findall(r"@import|url\((?![\"']?(?:data:|\.|#|[\w/.-]+\)))", text), path
    reference = (site / "docs" / "reference" / "python.html").read_text(encoding="utf-8")
    for name in (
        "skip_audit",
        "Share of the empty tiles that is run all the same",
        "What the best weights find in the validation set",
    ):
        assert name in reference
    assert (site / "docs" / "reference" / "models.html").stat().st_size > 100_000


def test_a_broken_link_stops_the_build(builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zensical", reason="needs the extra docs")

    def write_stage(stage: Path) -> None:
        (stage / "pages").mkdir()
        (stage / "pages" / "README.md").write_text("# A\n\n[there](nowhere.md)\n")
        (stage / "zensical.toml").write_text('[project]\nsite_name = "a"\ndocs_dir = "pages"\nsite_dir = "site"\n')

    monkeypatch.setattr(builder, "write_stage", write_stage)
    (fault,) = builder.build(tmp_path / "site")
    assert "page does not exist" in fault
    assert not (tmp_path / "site").exists()


def test_the_checks_find_what_is_wrong(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text("<h1 id=top>B</h1><a href='../a.html#here'>a</a>")
    (tmp_path / "a.html").write_text(
        "<h1 id=here>A</h1><a href=sub/b.html#top>b</a><a href=https://example.org>out</a><a href='#here'>h</a>"
        "<a href=sub/b.html#none>1</a><a href=c.html>2</a><img src=no.png><script src=https://cdn.example.org/x.js></script>"
    )
    (tmp_path / "x.js").write_text('n="http://www.w3.org/2000/svg";s="https://cdn.example.org/y.js"')
    pages = builder.read_pages(tmp_path)
    assert list(builder.broken_links(tmp_path, pages)) == [
        "a.html: no such heading: sub/b.html#none",
        "a.html: nothing at c.html",
        "a.html: nothing at no.png",
    ]
    assert list(builder.fetched_from_elsewhere(tmp_path, pages)) == [
        "a.html: fetches https://cdn.example.org/x.js",
        "x.js: names https://cdn.example.org/y.js",
    ]
    builder.take_out_addresses(tmp_path)
    assert (tmp_path / "x.js").read_text() == 'n="http://www.w3.org/2000/svg";s=""'


def test_the_reference_names_everything_at_the_front_door() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: flyspeck\.([\w.]+)$", page, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    names = {path.rpartition(".")[2] for path in listed}
    assert names == set(flyspeck.__all__) - {"__version__"}
    for path in listed:
        home, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(f"flyspeck.{home}"), name) is not None


def test_every_page_is_in_the_navigation() -> None:
    navigation = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    listed = {page for part in navigation for pages in part.values() for page in pages}
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT).as_posix()
        assert name in listed or f"{Path(name).parent.as_posix()}/*" in listed, name
