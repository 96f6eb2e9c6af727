"""CityPersons in the layout of Cityscapes: `gtBboxCityPersons/<split>/<city>/*_gtBboxCityPersons.json`.

CityPersons as COCO json (`height`, `vis_ratio`) is read by the COCO reader.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers.assemble import Draft, ReadOptions, assemble, find_root
from flyspeck.data.readers.coco import load_json
from flyspeck.errors import UserError

LABELS = ("ignore", "pedestrian", "rider", "sitting person", "person (other)", "person group")
ENDING = "_gtBboxCityPersons.json"


def read_citypersons(source: Path, options: ReadOptions) -> Annotations:
    """The table of a CityPersons folder, of one split of it, or of one of its files.

    The class is `pedestrian`; all else is an ignore region, as in its evaluation, unless `classes` asks for it.
    `extra` gets `height` (M,), `vis_bbox` (M, 4) xywh and `vis_ratio` (M,), the visible box's area over the whole's.
    """
    files = [source] if source.is_file() else sorted(source.rglob(f"*{ENDING}"))
    if not files:
        raise UserError(f"no file *{ENDING}", where=source, fix="give the folder gtBboxCityPersons, or one split of it")
    asked = set(options.classes or ("pedestrian",))
    options = replace(
        options, ignore_classes=(*options.ignore_classes, *(name for name in LABELS if name not in asked))
    )
    draft = Draft(where=source, root=source, names=list(LABELS), category_ids=list(range(len(LABELS))))
    visible: list[list[float]] = []
    for file in files:
        _read_file(draft, file, visible)
    draft.root = options.images or find_root(_usual_places(files[0]), draft.file_names)
    boxes = np.array(draft.boxes, dtype=np.float64).reshape(-1, 4)
    shown = np.array(visible, dtype=np.float64).reshape(-1, 4)
    full = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    draft.extra["height"] = boxes[:, 3] - boxes[:, 1]
    draft.extra["vis_bbox"] = shown
    draft.extra["vis_ratio"] = np.divide(shown[:, 2] * shown[:, 3], full, out=np.zeros(len(full)), where=full > 0)
    return assemble(draft, options, f"citypersons: {source.name}")


def _usual_places(file: Path) -> list[Path]:
    """`leftImg8bit/<split>` beside the folder of the annotations."""
    split = file.parent.parent
    return [above / "leftImg8bit" / split.name for above in (split.parent.parent, split.parent)] + [file.parent]


def _read_file(draft: Draft, file: Path, visible: list[list[float]]) -> None:
    content = load_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        draft.problems.append(f"{file.name}: no list 'objects'")
        return
    stem = file.name.removesuffix(ENDING)
    name = f"{file.parent.name}/{stem}_leftImg8bit.png"
    row = draft.add_image(stem, name, (int(content.get("imgHeight", -1)), int(content.get("imgWidth", -1))))
    for number, item in enumerate(content["objects"], 1):
        label = item.get("label") if isinstance(item, dict) else None
        box, shown = (_four(item.get(key)) if isinstance(item, dict) else _four(None) for key in ("bbox", "bboxVis"))
        category = LABELS.index(label) if label in LABELS else -2
        draft.add_box(
            row, (box[0], box[1], box[0] + box[2], box[1] + box[3]), category, f"{file.name}, object {number}"
        )
        visible.append(shown)


def _four(value: Any) -> list[float]:
    numeric = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)
    return [float(v) for v in value] if numeric else [float("nan")] * 4
