"""A run's recipe whose data section holds something else than texts: one line, no traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flyspeck.errors import UserError
from flyspeck.report.runs import _ground_truth


def ground_truth(folder: Path) -> Path:
    images = [{"id": n, "file_name": f"{n}.png", "width": 9, "height": 9} for n in (1, 2, 3)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


@pytest.mark.parametrize(
    "change",
    [
        *({"val": ["a"]}, {"val": None}, {"val": 3}, {"format": ["coco"]}, {"format": {}}, {"format": 1}),
        *({"classes": "car"}, {"classes": [["car"]]}, {"classes": 3}, {"val_limit": "x"}, {"val_limit": 0}),
    ],
)
def test_what_is_no_text_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    data = {"val": str(ground_truth(tmp_path))} | change
    with pytest.raises(UserError, match=rf"recipe.yaml: data.{next(iter(change))} is "):
        _ground_truth({"data": data}, None, tmp_path / "recipe.yaml", allow_references=True)


@pytest.mark.parametrize("data", [{}, {"format": "coco", "classes": ["car"]}, {"format": None, "classes": None}])
def test_a_sound_one_is_read(tmp_path: Path, data: dict[str, Any]) -> None:
    recipe = {"data": {"val": str(ground_truth(tmp_path)), "val_limit": 2, **data}}
    table = _ground_truth(recipe, None, tmp_path / "recipe.yaml", allow_references=True)
    assert (len(table), table.classes) == (2, ("car",))
