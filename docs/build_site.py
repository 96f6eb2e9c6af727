"""Builds the site: `python docs/build_site.py [--out site]`. Needs the extra `docs`; reads no network, and nor do its pages.

Every page of the repository is copied into one folder that mirrors it, so that links lead where they lead in the repository. A
reference page is written for each package. zensical builds strictly: a link to a page or heading that is not there is an
error. It does not look at images and other files, and its theme holds addresses of scripts elsewhere, for features that no page
here uses: so the built pages are checked once more, and those addresses are taken out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "models/**/*.md", "recipes/**/*.md", "lab/*.md")
IMAGES = ("docs/**/*.png", "docs/**/*.jpg", "docs/**/*.svg", "docs/**/*.webp", "models/**/*.png")
PACKAGES = ("data", "models", "train", "evaluate", "infer", "export", "report", "explain", "publish", "label_errors")
# Elements that fetch what they name when the page is opened, as against links that a reader may follow.
FETCHES = {"script", "link", "img", "iframe", "source", "video", "audio", "embed", "object", "use"}
NAMESPACE = re.compile(r"https?://www\.w3\.org/[\w/]*")
ELSEWHERE = re.compile(r"https?://[^\s\"'`)<>\\]+")


def build(out: Path) -> list[str]:
    """Builds the site into `out`, which is replaced; returns what is wrong with it, a line each."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        write_stage(stage)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(command, cwd=stage, capture_output=True, text=True)
        if done.returncode:
            return [done.stdout + done.stderr[-2000:]]
        site = stage / "site"
        take_out_addresses(site)
        pages = read_pages(site)
        faults = [*broken_links(site, pages), *fetched_from_elsewhere(site, pages)]
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(site, out)
    return faults


def write_stage(stage: Path) -> None:
    """The pages, the reference and the configuration in `stage`, as zensical wants them."""
    pages = stage / "pages"
    for path in sorted({path for pattern in (*PAGES, *IMAGES) for path in ROOT.glob(pattern)}):
        target = pages / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for package in PACKAGES:
        (pages / "docs" / "reference" / f"{package}.md").write_text(package_page(package), encoding="utf-8")
    config = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    for folder in ("how-to", "explanation", "papers", "reference"):
        first = ("python", "recipe")  # of the reference; the packages follow
        found = sorted((pages / "docs" / folder).glob("*.md"), key=lambda path: (path.stem not in first, path.stem))
        names = [str(path.relative_to(pages)) for path in found]
        config = config.replace(f'"docs/{folder}/*"', ", ".join(json.dumps(name) for name in names))
    (stage / "zensical.toml").write_text(config.replace("../src", str(ROOT / "src")), encoding="utf-8")


def package_page(package: str) -> str:
    """A reference page: the public members of every module of a package."""
    folder = ROOT / "src" / "flyspeck" / package
    names = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in sorted(folder.rglob("*.py"))]
    modules = [name for name in names if not name.endswith("__init__")]
    return f"# flyspeck.{package}\n\n" + "".join(f"::: {name}\n" for name in modules)


class _Page(HTMLParser):
    """The links of a page, what it fetches, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        for name in ("href", "src", "data", "poster"):
            if name in given:
                (self.fetched if tag in FETCHES else self.links).append(given[name])


def read_pages(site: Path) -> dict[Path, _Page]:
    """Every page of a built site."""
    return {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def broken_links(site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    """A line for each link or image inside the site that leads nowhere, anchors included."""
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the root, wherever it is shown
            continue
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{path.relative_to(site)}: nothing at {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site)}: no such heading: {link}"


def take_out_addresses(site: Path) -> None:
    """Scripts and styles without addresses of other hosts: what the theme would load from there stays unloaded."""
    for path in (*site.rglob("*.js"), *site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        kept = ELSEWHERE.sub(lambda found: found[0] if NAMESPACE.fullmatch(found[0]) else "", text)
        path.write_text(kept, encoding="utf-8")


def fetched_from_elsewhere(site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    """A line for each script, style, font or image that is not the site's own."""
    for path, page in pages.items():
        for link in page.fetched:
            if urlsplit(link).netloc:
                yield f"{path.relative_to(site)}: fetches {link}"
    for path in (*site.rglob("*.js"), *site.rglob("*.css")):
        for address in ELSEWHERE.findall(path.read_text(encoding="utf-8")):
            if not NAMESPACE.fullmatch(address):
                yield f"{path.relative_to(site)}: names {address}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the site.")
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder to write; it is replaced")
    folder = parser.parse_args().out
    problems = build(folder)
    print("\n".join([*problems, f"{folder}: {len(list(folder.rglob('*.html')))} pages, {len(problems)} problems"]))
    sys.exit(bool(problems))
