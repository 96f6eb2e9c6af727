"""`flyspeck data`: each verb on a small set, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One image of 100x40 with four boxes, one of them an ignore region, one broken; and an image without boxes."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.arange(4000, dtype=np.uint8).reshape(40, 100)).save(folder / "images" / "a.png")
    Image.new("RGB", (60, 40)).save(folder / "images" / "b.png")
    boxes = [[5, 5, 4, 4], [34, 10, 8, 4], [80, 0, 20, 20], [1, 1, 0, 0]]
    entries = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes, 1)]
    entries[2]["ignore"] = 1
    images = [
        {"id": 1, "file_name": "images/a.png", "width": 100, "height": 40},
        {"id": 2, "file_name": "images/b.png", "width": 60, "height": 40},
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    (folder / "gt.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": categories}))
    return folder / "gt.json"


def run(*arguments: object) -> int:
    return main(["data", *map(str, arguments)])


def test_inspect_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", source, "--json", "--out", tmp_path / "out", "--draw", 1) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)  # one object and nothing else
    assert (facts["images"], facts["boxes"]) == (2, 3)
    assert facts["sizes"]["[2,8)"] == 2
    assert facts["broken_entries"]["count"] == 1
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) == facts
    assert [Path(path).is_file() for path in facts["samples"]] == [True]


def test_inspect_text(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", source) == 0
    text = capsys.readouterr().out
    for words in (
        "coco: gt.json",
        "2 images, 3 boxes",
        "[2,8)",
        "person 2, car 0",
        "finest stride 2 (model.levels: 1-5, on a backbone that has such a map",
        "broken entries: 1",
    ):
        assert words in text, words


def test_inspect_a_classification_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("train", 6), ("val", 4)):
        np.savez(tmp_path / name, labels=np.arange(count) % 2, classes=np.array(["x", "y"]))
    assert run("inspect", tmp_path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["boxes"], len(facts["files"])) == (10, 0, 2)
    assert run("inspect", tmp_path) == 0
    assert "10 images, 0 boxes" in capsys.readouterr().out


def test_convert_there_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", source, "--to", "yolo", "--out", tmp_path / "yolo") == 0
    printed = capsys.readouterr()
    assert "note: 1 ignore region left out: YOLO has no place for them" in printed.err
    assert "note: 1 broken entries left out:" in printed.err
    assert run("convert", tmp_path / "yolo", "--out", tmp_path / "back.json") == 0
    back = read_annotations(tmp_path / "back.json")
    np.testing.assert_allclose(back.boxes, [[5, 5, 9, 9], [34, 10, 42, 14]], atol=1e-5)
    assert back.path(0).is_file()


def test_shrink(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run("shrink", source, "--short-side", 20, "--out", tmp_path / "out", "--workers", 1, "--image-format", "webp")
        == 0
    )
    small = read_annotations(tmp_path / "out" / "gt.json")
    np.testing.assert_array_equal(small.sizes, [[20, 50], [20, 30]])
    np.testing.assert_allclose(small.boxes[0], [2.5, 2.5, 4.5, 4.5])
    assert read_image(small.path(0)).shape[:2] == (20, 50)
    assert "2 images of 30-50 x 20-20 px, 3 boxes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        "shrink GT --by 2 --out SET",
        "tile GT --tile 40x40 --overlap 10 --out SET",
        "tile GT --tile 40x40 --overlap 10 --corners-only --name corners.json --out SET --name gt.json",
        "scale-match GT --target GT --out SET",
        "convert GT --out GT",
        "convert YOLO --to yolo --out YOLO",
        "convert YOLO/data.yaml:train --to yolo --out YOLO",
    ],
)
def test_nothing_is_written_over_what_is_read(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    assert run("convert", source, "--to", "yolo", "--out", tmp_path / "yolo") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    places = {"GT": source, "SET": source.parent, "YOLO": tmp_path / "yolo"}
    for word, place in places.items():
        arguments = arguments.replace(word, str(place))
    assert run(*arguments.split()) == 2
    assert "is what is read, and nothing is written in place; give another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_tile(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ("--tile", "40x40", "--overlap", 10, "--out", out, "--workers", 1)
    assert run("tile", source, *options, "--keep", 0.8, "--ignore", 0.2) == 0
    assert "2 images -> 5 tiles" in capsys.readouterr().out
    tiles = read_annotations(out / "gt.json")
    # 100 px in tiles of 40: at 0, 30, 60; the second box shows 6 of its 8 px in the first: an ignore region at 0.8.
    assert tiles.file_names[:3] == ("images/a_0_0.png", "images/a_30_0.png", "images/a_60_0.png")
    assert tiles.ignore[tiles.of_image(0)].tolist() == [False, True]
    whole = read_image(source.parent / "images" / "a.png")
    np.testing.assert_array_equal(read_image(tiles.path(1)), whole[:, 30:70])
    corners = read_annotations(out / "corners.json")
    assert corners.path(1).resolve() == (source.parent / "images" / "a.png").resolve()
    np.testing.assert_array_equal(corners.image_extra["corner"], tiles.image_extra["corner"])
    np.testing.assert_array_equal(corners.image_extra["whole"], [1, 1, 1, 2, 2])
    old = json.loads((out / "corners.json").read_text())["old_images"]
    assert [image["id"] for image in old] == [1, 2]


def test_tile_by_the_benchmarks_rules(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = {"tinybenchmark_split_by_size": 5, "tinybenchmark_split_by_pieces": 4, "tov_cropped_tiles": 5}
    for rule, count in rules.items():
        options = ("--tile", "40x40", "--overlap", "0x10", "--pieces", "1x2", "--corners-only")
        assert run("tile", source, "--rule", rule, *options, "--out", tmp_path / rule) == 0
        assert f"-> {count} tiles" in capsys.readouterr().out
        assert [path.name for path in (tmp_path / rule).iterdir()] == ["corners.json"]
    options = ("--max-objects", 2, "--out", tmp_path / "few", "--workers", 1)
    assert run("tile", source, *options) == 0
    assert "1 image with more than 2 annotations left out" in capsys.readouterr().out


MISTAKES = {
    "no source": (("inspect", "absent.json"), "absent.json: no such file or folder"),
    "format": (("inspect", "SRC", "--format", "coc"), "unknown format 'coc'; did you mean 'coco'"),
    "class": (
        ("inspect", "SRC", "--classes", "persn"),
        "class 'persn' is not in the annotations; did you mean 'person'",
    ),
    "writer": (("convert", "SRC", "--to", "pascal", "--out", "o"), "--to: cannot write 'pascal'"),
    "folder": (("convert", "SRC", "--out", "OUT"), "is a folder; name the file to write"),
    "no factor": (("shrink", "SRC", "--out", "o"), "give one of factor, short side and size"),
    "grow": (("shrink", "SRC", "--out", "o", "--by", "0.5"), "a factor of 0.5 does not shrink"),
    "image_format": (
        ("shrink", "SRC", "--out", "o", "--by", "2", "--image-format", "jpg"),
        "'jpg' is not one of",
    ),
    "itself": (("shrink", "SRC", "--out", "OUT", "--by", "2"), "nothing is written in place"),
    "rule": (("tile", "SRC", "--out", "o", "--rule", "tov"), "--rule: 'tov' is unknown"),
    "size": (("tile", "SRC", "--out", "o", "--tile", "640"), "--tile: '640' is no size"),
    "overlap": (("tile", "SRC", "--out", "o", "--overlap", "600"), "cannot overlap by 600x600 px"),
    "policy": (("tile", "SRC", "--out", "o", "--keep", "0.1", "--ignore", "0.5"), "give 0 <= ignore <= keep <= 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    source: Path, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, words = MISTAKES[name]
    places = {"SRC": str(source), "OUT": str(source.parent)}
    assert run(*(places.get(argument, argument) for argument in arguments)) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert printed.err.splitlines()[-1] == errors[0]
    assert words in errors[0]
    assert printed.out == ""
    assert not (tmp_path / "o").exists()


def test_help_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from flyspeck.cli.main import main; main(['data', 'tile', '--help'])"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
