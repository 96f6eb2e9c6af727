"""Which files a protocol reads: its benchmark's own layout, or COCO json for every protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.readers.values import as_id
from flyspeck.errors import UserError
from flyspeck.evaluate.borders import tiles_of_corner_file
from flyspeck.evaluate.checks import suspicions
from flyspeck.evaluate.coco_results import load_results
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.identity import ids_by_name
from flyspeck.evaluate.protocols import Protocol, VOCProtocol, WiderProtocol


def read_pair(
    gt: Path,
    dt: Path,
    protocol: Protocol,
    *,
    any_score: bool = False,
    merge_from: Path | None = None,
    merge_kernel: str = "cpu",
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    max_broken_share: float = 0.0,
) -> tuple[Annotations, DetectionTable]:
    """Ground truth and detections as `protocol` wants them; what looks wrong is in the detection table's `notes`.

    `classes` names those to score, where a COCO json has more; detections of the others count for nothing. `pixels` is what
    VOC's whole corners mean. Broken entries of the ground truth would change the numbers: more than `max_broken_share` of
    them are a UserError.
    """
    for path, option in ((gt, "--gt"), (dt, "--dt"), (merge_from, "--merge-from")):
        if path is not None and not path.exists():
            raise UserError("no such file or folder", where=f"{option} {path}", fix="check the path")
    if isinstance(protocol, WiderProtocol) and gt.is_dir():
        from flyspeck.evaluate.widerface import read_wider

        return read_wider(gt, dt)
    if isinstance(protocol, VOCProtocol) and gt.is_dir():
        from flyspeck.evaluate.voc_files import read_dota_pair, read_voc_pair

        return read_dota_pair(gt, dt, protocol) if protocol.truncate_truth else read_voc_pair(gt, dt)
    annotations = read_annotations(gt, classes=classes, for_evaluation=True, pixels=pixels)
    _judge_truth(annotations, max_broken_share)
    if dt.is_dir():
        raise UserError(
            f"'{protocol.name}' reads detections from a COCO results json, this is a folder",
            where=dt,
            fix="give the json file",
        )
    notes: tuple[str, ...] = tuple(f"ground truth: {note}" for note in annotations.notes)
    notes += tuple(f"ground truth: {problem}" for problem in annotations.problems[:5])
    if len(annotations.problems) > 5:
        notes += (f"ground truth: {len(annotations.problems) - 5} more broken entries left out",)
    if merge_from is not None:
        from flyspeck.evaluate.merging import merge_tile_results

        detections = merge_tile_results(dt, merge_from, annotations, kernel=merge_kernel, any_score=any_score)
    else:
        renamed, note = ids_by_name(dt, annotations)
        source = dt if not renamed else _with_ids(load_results(dt), renamed)
        detections = DetectionTable.from_coco(source, annotations, any_score=any_score)
        notes += (note,) if note else ()
    found = (*notes, *detections.notes, *suspicions(annotations, detections, protocol))
    return annotations, replace(detections, notes=found)


def _judge_truth(annotations: Annotations, allowed_share: float) -> None:
    broken = len(annotations.problems)
    if broken and broken / (broken + annotations.num_boxes) > allowed_share:
        raise UserError(
            f"{broken} broken entries in the ground truth; the first: {annotations.problems[0]}",
            where=annotations.source,
            fix="mend them, or allow a share of them with --max-broken-share",
        )


def _with_ids(entries: list[Any], renamed: dict[Any, Any]) -> list[Any]:
    """The detections of the images that have a new id, under it; those of other images go, as the ground truth lacks them."""
    kept = []
    for entry in entries:
        key = as_id(entry.get("image_id")) if isinstance(entry, dict) else None
        if key in renamed:
            kept.append({**entry, "image_id": renamed[key]})
    return kept


def read_tiles(path: Path, annotations: Annotations) -> dict[Any, np.ndarray]:
    """Tiles (T, 4) xyxy of each image id from a COCO json of tiles with `corner`s."""
    try:
        return tiles_of_corner_file(json.loads(path.read_bytes()), annotations, path.parent)
    except FileNotFoundError:
        raise UserError("no such file", where=path, fix="check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"not a tile file ({error})", where=path, fix="its images need file_name and corner") from None
