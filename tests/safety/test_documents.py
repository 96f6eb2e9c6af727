"""YAML that grows or builds objects, XML that grows or reads other files, zips that grow: a line, at once, wherever it is."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.evaluate.voc_files import _xml_objects
from flyspeck.evaluate.widerface import _texts
from flyspeck.infer.references import check_references
from flyspeck.plain_yaml import parse_value, read_yaml
from flyspeck.report import read_run
from flyspeck.train.config import load_recipe
from watched_effects import effects

GROWS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{k{n}: *a{n - 1}, l{n}: *a{n - 1}, <<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)
)
DOCUMENTS = {
    "aliases that grow": GROWS + "data: *a59\nname: *a59\n",
    "mappings that grow": MERGES + "data: *a39\n",
    "a list in itself": "data: &a [*a]\n",
    "a mapping in itself": "data: &a {train: *a, val: *a}\nmodel: *a\n",
    "an object": "data: !!python/object/apply:os.system ['touch CANARY']\n",
    "a new object": "data: !!python/object/new:pathlib.Path [CANARY]\n",
    "a name": "data: !!python/name:os.system\n",
    "a module": "data: !!python/module:os\n",
    "a tuple": "data: !!python/tuple [1, 2]\n",
    "a tag of nobody": "data: !Nobody {a: 1}\n",
    "bytes": "data: !!binary aGVsbG8=\nname: !!binary '*'\n",
    "a set": "data: !!set {a, b}\nname: !!omap [a: 1]\n",
    "numbers": f"name: {'9' * 5000}\ndata: 1{'0' * 400}\ntrain: {{epochs: 0x{'f' * 300}, lr: 1e999, seed: -.inf}}\n",
    "sixties": f"train: {{epochs: {':'.join(['1'] * 2000)}}}\ndata: 1\n",
    "deep": "data: " + "[" * 5000 + "]" * 5000,
    "deep by lines": "".join(f"{' ' * n}a:\n" for n in range(3000)),
    "a key of a list": "? [a, b]\n: 1\ndata: 2\n",
    "many documents": "--- 1\n" * 100,
    "half a character": 'data: "\\ud800"\nname: "\\ud800"\n',
    "a zero": 'data: "a\\0b"\n',
}


@contextmanager
def at_once(folder: Path) -> Iterator[None]:
    """Within ten seconds, without an effect beside `folder`."""
    begun = time.perf_counter()
    with effects(folder) as seen:
        yield
    assert time.perf_counter() - begun < 10
    assert not seen.found


def in_run(path: Path) -> object:
    """As the recipe in a run folder."""
    (path.parent / "detections.json").write_text("[]")
    return read_run(path.parent)


YAML_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a recipe": ("recipe.yaml", load_recipe),
    "plain yaml": ("a.yaml", lambda path: load_recipe(path) if read_yaml(path)[0] else None),
    "a run's recipe": ("recipe.yaml", in_run),
    "data.yaml": ("data.yaml", read_annotations),
}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("reader", YAML_READERS)
def test_hostile_yaml(reader: str, document: str, tmp_path: Path) -> None:
    name, read = YAML_READERS[reader]
    canary = tmp_path / "canary"
    (tmp_path / name).write_text(DOCUMENTS[document].replace("CANARY", str(canary)))
    with at_once(tmp_path), pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert not canary.exists()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize("value", ["[", "!!python/name:os.system", "&a [*a]", "*a", "{", "'", "\t", "!!binary x"])
def test_hostile_values_of_set(value: str) -> None:
    with pytest.raises(UserError, match=r"--set"):
        parse_value(value, where="--set x")


ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
BOMB = f'<!DOCTYPE a [<!ENTITY e0 "ha">{ENTITIES}]>'
LONG = f'<!DOCTYPE a [<!ENTITY e11 "{"x" * 100_000}">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY e11 SYSTEM "file://SECRET">]>'
PARAMETER = '<!DOCTYPE a [<!ENTITY % p SYSTEM "file://SECRET"> %p; <!ENTITY e11 "x">]>'
SCHEME = '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd" [<!ENTITY e11 SYSTEM "http://127.0.0.1:9/x">]>'
DOCTYPES = {"grows": BOMB, "is long": LONG, "reads a file": OUTSIDE, "by a parameter": PARAMETER, "calls": SCHEME}
VOC = """<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size><object><name>NAME</name>
<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object></annotation>"""
CVAT = """<annotations><image id="7" name="a.png" width="40" height="30"><box label="NAME" xtl="4" ytl="5" xbr="10" ybr="12"/>
</image></annotations>"""
VRT = """<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="1">NAME</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""

XML_READERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "voc": ("a.xml", VOC, lambda path: read_annotations(path, format="voc")),
    "cvat": ("a.xml", CVAT, lambda path: read_annotations(path, format="cvat")),
    "told by itself": ("a.xml", CVAT, read_annotations),
    "voc's own evaluation": ("a.xml", VOC, lambda path: list(_xml_objects(path))),
    "a VRT": ("a.vrt", VRT, lambda path: check_references(path, "VRT")),
}


@pytest.mark.parametrize("doctype", DOCTYPES)
@pytest.mark.parametrize("reader", XML_READERS)
def test_hostile_xml(reader: str, doctype: str, tmp_path: Path) -> None:
    name, text, read = XML_READERS[reader]
    (tmp_path / "secret.txt").write_text("secret")
    many = "&e11;" * (400 if doctype == "is long" else 1)
    content = DOCTYPES[doctype].replace("SECRET", str(tmp_path / "secret.txt")) + text.replace("NAME", many)
    (tmp_path / name).write_text(content)
    with at_once(tmp_path):
        try:
            found = read(tmp_path / name)
        except UserError as error:
            found = str(error)
            assert "\n" not in found
    names = found.classes if isinstance(found, Annotations) else str(found)
    assert "secret" not in str(names).replace("secret.txt", "")
    assert len(str(names)) < 20_000_000


def test_zips_that_grow(tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("a/b.txt", "w", force_zip64=True) as entry,
    ):
        for _ in range(150):
            entry.write(bytes(1_000_000))
    assert path.stat().st_size < 200_000
    with at_once(tmp_path), pytest.raises(UserError, match="would be 150 MB"):
        list(_texts(path))


@pytest.mark.parametrize("name", ["../../out.txt", "/tmp/out.txt", "a/../../../out.txt", "C:\\out.txt"])
def test_names_within_a_zip_are_no_places(name: str, tmp_path: Path) -> None:
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "a.jpg\n1\n1 2 3 4 0.5\n")
    with at_once(tmp_path):
        assert [place for place, _ in _texts(path)] == [name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["submission.zip"]


def test_an_alias_that_grows_is_told_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(DOCUMENTS["aliases that grow"])
    with at_once(tmp_path):
        assert main(["train", str(path), "--print-config"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "aliases repeat its values" in said


def test_reports_of_a_growing_data_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "data.yaml").write_text(GROWS + "train: .\nnames: *a59\n")
    (tmp_path / "dt.json").write_text(json.dumps([]))
    with at_once(tmp_path):
        assert main(["report", str(tmp_path / "dt.json"), "--gt", str(tmp_path / "data.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
