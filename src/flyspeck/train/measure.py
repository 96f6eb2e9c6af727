"""Detections of a whole set by a model in memory, and the figures of a protocol on them."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.loading import DetectionDataset, in_order, make_loader
from flyspeck.evaluate import evaluate
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.types import Detections


def detect_all(
    detector: nn.Module,
    annotations: Annotations,
    *,
    channels: int,
    batch_size: int,
    accelerator: Accelerator,
    precision: str = "fp32",
) -> list[Detections]:
    """Detections of every picture of the table in its order, whole pictures, shared over the processes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = make_loader(
        DetectionDataset(annotations, channels=channels),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=in_order(len(annotations), rank=rank, world_size=world),
        workers=0,
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
    return [by_id[_plain(image_id)] for image_id in annotations.image_ids]


def figures_of(result: EvaluationResult) -> dict[str, float]:
    """A result's rows as flat names: `ap50_tiny` (metric, IoU in percent, area), `ap_all` for the mean over IoUs.

    Rows of one class are left out; -1 stands where there was nothing to find.
    """
    figures = {}
    for row in result.rows:
        if "cls" in row or "category_id" in row or row["value"] is None:
            continue
        iou = row.get("iou")
        place = row.get("area") or row.get("setup") or row.get("setting") or "all"
        # COCO's own names hold the threshold or the area already: AP50, AP_tiny.
        metric = row["metric"].removesuffix(f"_{place}")
        percent = "" if not isinstance(iou, float | int) or metric[-1].isdigit() else f"{round(iou * 100):d}"
        figures[f"{metric}{percent}_{place}".lower()] = float(row["value"])
    return figures


def measure(
    detector: nn.Module,
    annotations: Annotations,
    *,
    protocol: str,
    channels: int,
    batch_size: int,
    accelerator: Accelerator,
    precision: str,
    folder: Path | None = None,
) -> dict[str, float]:
    """Figures of `detector` on a set; with `folder`, `detections.json` and `evaluation.json` are left there."""
    found = detect_all(
        detector, annotations, channels=channels, batch_size=batch_size, accelerator=accelerator, precision=precision
    )
    table = DetectionTable.from_list(found, annotations)
    result = evaluate(annotations, table, protocol)
    if folder is not None and accelerator.is_main_process:
        table.write_coco(folder / "detections.json", annotations)
        result.write(folder / "evaluation.json")
    return figures_of(result)


def _named(one: Detections, image_id: int | str) -> Detections:
    from dataclasses import replace

    return replace(one, image_id=_plain(image_id))


def _plain(image_id: object) -> int | str:
    return image_id if isinstance(image_id, str) else int(image_id)  # type: ignore[call-overload]
