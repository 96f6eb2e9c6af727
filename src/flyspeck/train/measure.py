"""Detections of a whole set by a model in memory, and the metrics of a protocol on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge, native_sizes
from flyspeck.data.loading import DetectionDataset, in_order, make_loader
from flyspeck.errors import UserError
from flyspeck.evaluate import evaluate
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.types import Detections


def detect_all(
    detector: nn.Module,
    annotations: Annotations,
    *,
    rule: PixelRule,
    batch_size: int,
    accelerator: Accelerator,
    precision: str = "fp32",
    enlarge: Enlarge | None = None,
) -> list[Detections]:
    """Detections of every image of the table in its order, whole images, shared over the processes.

    With `enlarge`, the detector sees enlarged images; boxes come back in the pixels of the files.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = make_loader(
        DetectionDataset(annotations, rule=rule, enlarge=enlarge),
        batch_size=batch_size,
        sampler=in_order(len(annotations), rank=rank, world_size=world),
        workers=0,
        divisor=detector.divisor,  # type: ignore[arg-type]
        smallest=detector.smallest_side,  # type: ignore[arg-type]
        drop_last=False,
    )
    found: list[Detections] = []
    was_training = detector.training
    detector.eval()
    for images, _, ids in loader.epoch(0):
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=precision == "bf16"):
            batch = detector.detect(images.to(accelerator.device))  # type: ignore[operator]
        found.extend(_named(one, image_id) for one, image_id in zip(batch, ids, strict=True))
    detector.train(was_training)
    if world > 1:
        found = gather_object(found)
    by_id = {one.image_id: one for one in found}
    ordered = [by_id[_plain(image_id)] for image_id in annotations.image_ids]
    if enlarge is None or not enlarge.changes:
        return ordered
    return [shrunk_back(one, (int(h), int(w))) for one, (h, w) in zip(ordered, native_sizes(annotations), strict=True)]


def shrunk_back(found: Detections, size: tuple[int, int]) -> Detections:
    """Detections in an enlarged image, in the frame of the file's image of `size` (H, W)."""
    height, width = found.image_size
    ratio = np.array([size[1] / width, size[0] / height] * 2)
    return replace(found, boxes=found.boxes * ratio, image_size=size)


def metrics_of(result: EvaluationResult) -> dict[str, float]:
    """A result's rows as flat names: `ap50_tiny` (metric, IoU in percent, area), `ap_all` for the mean over IoUs.

    Rows of one class are left out; -1 stands where there was nothing to find.
    """
    metrics = {}
    for row in result.rows:
        if "cls" in row or "category_id" in row or row["value"] is None:
            continue
        iou = row.get("iou")
        place = row.get("area") or row.get("setup") or row.get("setting") or "all"
        # COCO's own names hold the threshold or the area already: AP50, AP_tiny.
        metric = row["metric"].removesuffix(f"_{place}")
        percent = "" if not isinstance(iou, float | int) or metric[-1].isdigit() else f"{round(iou * 100):d}"
        metrics[f"{metric}{percent}_{place}".lower()] = float(row["value"])
    return metrics


def check_metric(name: str, annotations: Annotations, protocol: str) -> None:
    """Raises UserError where `protocol` has no metric `name` (what follows an `@` aside): asked before a step is taken."""
    result = evaluate(annotations, DetectionTable.empty(), protocol)
    known = metrics_of(replace(result, rows=[{**row, "value": 0.0} for row in result.rows]))
    if name and name.partition("@")[0] not in known:
        raise UserError(
            f"no metric '{name}' to pick the best checkpoint by: protocol {protocol} has others",
            where="evaluate.best",
            fix=f"known: {', '.join(known)}",
        )


def measure(
    detector: nn.Module,
    annotations: Annotations,
    *,
    protocol: str,
    rule: PixelRule,
    batch_size: int,
    accelerator: Accelerator,
    precision: str,
    enlarge: Enlarge | None = None,
    folder: Path | None = None,
    variant: str | None = None,
) -> dict[str, float]:
    """Metrics of `detector` on a set; with `folder`, `detections.json` and `evaluation.json` are left there.

    A `variant` is a part of the files' names: `detections-VARIANT.json`.
    """
    found = detect_all(
        detector,
        annotations,
        rule=rule,
        batch_size=batch_size,
        accelerator=accelerator,
        precision=precision,
        enlarge=enlarge,
    )
    table = DetectionTable.from_list(found, annotations)
    result = evaluate(annotations, table, protocol)
    if folder is not None and accelerator.is_main_process:
        suffix = "" if variant is None else f"-{variant}"
        table.write_coco(folder / f"detections{suffix}.json", annotations)
        result.write(folder / f"evaluation{suffix}.json")
    return metrics_of(result)


def _named(one: Detections, image_id: int | str) -> Detections:
    return replace(one, image_id=_plain(image_id))


def _plain(image_id: object) -> int | str:
    return image_id if isinstance(image_id, str) else int(image_id)  # type: ignore[call-overload]
