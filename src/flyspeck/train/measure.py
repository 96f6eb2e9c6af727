"""A model in memory, measured on a set: the metrics of a protocol, and what a run folder keeps of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import evaluate
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.evaluate.score_curve import KEY, score_curve
from flyspeck.train.checkpoint import add_to_description
from flyspeck.train.detecting import detect_all
from flyspeck.train.processes import Processes
from flyspeck.train.progress import Tell
from flyspeck.train.viewing import Viewing


@dataclass(frozen=True)
class Measurement:
    """The metrics of a model on a set, and what they were taken from."""

    metrics: dict[str, float]
    files: tuple[Files, ...]

    def write(self, folder: Path, annotations: Annotations) -> None:
        """Leaves `detections.json` and `evaluation.json` in `folder`; of a variant `detections-VARIANT.json` and so on.

        What its score thresholds are worth is noted in the weights there, if these are there.
        """
        for one in self.files:
            suffix = "" if one.variant is None else f"-{one.variant}"
            one.found.write_coco(folder / f"detections{suffix}.json", annotations)
            one.result.write(folder / f"evaluation{suffix}.json")
            if one.variant is None and (folder / "best.safetensors").is_file():
                curve = score_curve(annotations, one.found, one.result.protocol)
                add_to_description(folder / "best.safetensors", **{KEY: curve.to_dict()})


@dataclass(frozen=True)
class Files:
    """What two files of a run folder hold."""

    found: DetectionTable
    result: EvaluationResult
    variant: str | None = None


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
    viewing: Viewing,
    accelerator: Processes,
    tell: Tell | None = None,
) -> Measurement:
    """Metrics of `detector` on a set, the same on every process; `tell` is called as the images are looked at.

    Raises UserError for an image that cannot be read (a metric over fewer images would be another metric), and for a model that
    gives what is no number.
    """
    found = detect_all(detector, annotations, viewing=viewing, accelerator=accelerator, tell=tell)
    table = DetectionTable.from_list(found, annotations)
    result = evaluate(annotations, table, protocol)
    return Measurement(metrics_of(result), (Files(table, result),))
