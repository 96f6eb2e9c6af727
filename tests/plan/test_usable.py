"""Images that are missing, cut off or of another size are one line with their number, before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planned_sets import squares, write_set

import flyspeck
from flyspeck.errors import UserError


def delete(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])  # its header is whole: only decoding finds it


@pytest.mark.parametrize("spoil", [delete, cut_off])
@pytest.mark.parametrize("make", ["init", "auto"])
def test_images_that_cannot_be_used_are_counted_and_one_is_named(tmp_path: Path, make: str, spoil) -> None:
    data = write_set(tmp_path / "my set.json", squares(20))
    for path in sorted((tmp_path / "my set_images").iterdir())[3:6]:
        spoil(path)
    with pytest.raises(UserError, match="3 of 20 images cannot be used; the first: ") as told:
        getattr(flyspeck, make)(data, minutes=3, out=tmp_path / "out")
    line = str(told.value)
    assert "\n" not in line
    assert ".png" in line
    assert f"flyspeck data inspect '{data}' --fix FOLDER" in line
    assert not (tmp_path / "out").exists()


def test_the_set_to_measure_on_is_looked_at_too(tmp_path: Path) -> None:
    data, val = (write_set(tmp_path / f"{name}.json", squares(9, seed=s), seed=s) for s, name in enumerate("ab"))
    content = json.loads(val.read_text())
    content["images"][2]["width"] += 8
    val.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1 of 9 images cannot be used; the first: .*96 x 64 px where") as told:
        flyspeck.init(data, val=val, out=tmp_path / "out.yaml")
    assert "b.json" in str(told.value)


def test_where_no_image_is_there_their_folder_is_asked_for(tmp_path: Path) -> None:
    data = write_set(tmp_path / "set.json", squares(9))
    (tmp_path / "set_images").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"9 of 9 images cannot be used.*name the folder of the images with --images"):
        flyspeck.init(data, out=tmp_path / "out.yaml")
