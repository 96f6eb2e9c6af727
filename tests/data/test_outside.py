"""Annotations from elsewhere show and copy no file that lies outside of their folder, unless that is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flyspeck
from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.data.readers.outside import refuse_outside
from flyspeck.errors import UserError
from flyspeck.infer.source import find_items


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a home folder, beside the folder that a stranger's set was unpacked into, where the work is done too."""
    (tmp_path / "home" / "work" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "work")
    path = tmp_path / "home" / "secret.png"
    Image.fromarray(np.full((16, 16), 7, np.uint8)).save(path)
    return path


def write(folder: Path, name: str) -> Path:
    """A COCO json of one image that is called so, and one object."""
    path = folder / "annotations.json"
    images = [{"id": 1, "file_name": name, "height": 16, "width": 16}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "area": 16, "iscrowd": 0}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}))
    return path


VERBS = [
    "data convert SET --to yolo --out out",
    "data convert SET --to coco --out out.json",
    "data shrink SET --by 2 --out out",
    "data tile SET --tile 8x8 --overlap 2 --out out",
    "data inspect SET --out out",
    "data split SET --out out",
    "data errors nowhere SET --out out",
    "predict SET --model nowhere --out out",
]


@pytest.mark.parametrize("how", ["absolute", "upwards"])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb.split()[:2]))
def test_what_lies_outside_is_refused(secret: Path, capsys: pytest.CaptureFixture[str], verb: str, how: str) -> None:
    name = str(secret) if how == "absolute" else "../../secret.png"
    path = write(Path("set"), name)
    command = verb.replace("SET", str(path)).split()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"it names 1 image outside of its folder ({name}); --allow-references" in said
    assert not list(Path().glob("out/**/*.*"))
    code = main([*command, "--allow-references"])
    assert "--allow-references" not in capsys.readouterr().err
    assert code == 0 or "nowhere" in verb or "split" in verb


def test_report_refuses_it_too(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(Path("set"), str(secret))
    Path("found.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "score": 0.9}]')
    assert main(["report", "found.json", "--gt", str(path), "--out", "r.html"]) == 2
    assert "outside of its folder" in capsys.readouterr().err
    assert not Path("r.html").exists()
    assert main(["report", "found.json", "--gt", str(path), "--out", "r.html", "--allow-references"]) == 0
    with pytest.raises(UserError, match="outside of its folder"):
        flyspeck.inspect(path, allow_references=False)
    assert len(read_annotations(path)) == 1  # a program reads what it is given
    with pytest.raises(UserError, match="outside of its folder"):
        find_items([path], allow_references=False)


def test_what_may_be_named(secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, hidden = Path("photos/a.png").absolute(), Path(".keys/a.png").absolute()
    for file in (image, hidden, Path("set/b.png").absolute()):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(secret.read_bytes())

    def refused(name: str, images: Path | None = None) -> bool:
        try:
            refuse_outside(Path("set"), [name], source=Path("set/annotations.json"), images=images)
        except UserError:
            return True
        return False

    assert not refused("b.png")
    assert not refused(str(Path("set/b.png").absolute()))
    assert not refused("../set/b.png")
    assert not refused("../photos/a.png")  # below the working folder, as flyspeck itself writes it
    assert refused("../.keys/a.png")
    assert refused("../../secret.png")
    assert not refused("../../secret.png", images=secret.parent)
    assert not refused("../../nothing.png")  # a missing image, which is said elsewhere
    monkeypatch.setenv("HOME", str(secret.parent))
    monkeypatch.chdir(secret.parent)
    assert refuse_nothing_from_home(Path("work/set"), "../photos/a.png")


def refuse_nothing_from_home(root: Path, name: str) -> bool:
    """The home folder is no working folder."""
    with pytest.raises(UserError):
        refuse_outside(root, [name], source=root / "annotations.json")
    return True
