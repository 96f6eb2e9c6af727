"""What `flyspeck eval` does before and after the numbers: run a model, compare, set baselines beside them, write a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from flyspeck.cli.terminal import Steps
from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, EvaluationResult


@contextmanager
def found_by(
    model: Path | None, gt: Path | None, dt: Path | None, *, device: str, steps: Steps
) -> Iterator[tuple[Path, Path]]:
    """Ground truth and detections to score: the files given, or those of `model` on the images of `gt`, while this is open."""
    if gt is None or (dt is None) == (model is None):
        what = "nothing to score" if model is None else "a model and detections, or no annotations"
        raise UserError(what, fix="give --gt and --dt, or --model RUN and --data ANNOTATIONS")
    if dt is not None:
        yield gt, dt
        return
    from flyspeck.infer.job import predict

    if not gt.exists():
        raise UserError("no such file or folder", where=f"--data {gt}", fix="check the path")
    assert model is not None
    with TemporaryDirectory(prefix="flyspeck-eval-") as folder:

        def say(line: str) -> None:
            if not line.startswith(f"{folder}: "):  # what lies in a folder that is gone at the end
                steps.warn(line)

        # The weakest detections count for AP too; the detector's own least score bounds them.
        predict(
            gt,
            model=model,
            out=folder,
            keep_score=0.0,
            draw=0,
            allow_references=True,  # the numbers are shown, and no image
            device=device,
            say=say,
            warn=lambda line: steps.warn(f"warning: {line}"),
            progress=steps,
        )
        yield gt, Path(folder) / "detections.json"


@dataclass(frozen=True)
class Reasons:
    """What was asked for beyond the numbers."""

    why: bool
    samples: int
    against: Path | None
    tiles: Path | None
    any_score: bool
    name: str = "these"
    """Of the detections, in a comparison."""

    def add(self, annotations: Annotations, detections: DetectionTable, result: EvaluationResult) -> str:
        """Put diagnosis, intervals and comparison into `result.extra`; returns them as text."""
        from flyspeck.evaluate.bootstrap import compare, interval_rows
        from flyspeck.evaluate.diagnosis import diagnose
        from flyspeck.evaluate.layouts import read_tiles
        from flyspeck.evaluate.printing import comparison_text, interval_text
        from flyspeck.evaluate.protocols import APProtocol

        protocol, text = result.protocol, ""
        if not (self.why or self.samples or self.against):
            return text
        if not isinstance(protocol, APProtocol):
            what = f"--why, --bootstrap and --against need an AP protocol of ours, not '{protocol.name}'"
            raise UserError(what, fix="use --protocol flyspeck or tinybenchmark_ap")
        if 0.5 not in protocol.ious:
            raise UserError(
                "they are reckoned at IoU 0.5, which the protocol does not have", where="--iou", fix="add 0.5"
            )
        if self.why:
            tiles = read_tiles(self.tiles, annotations) if self.tiles else None
            diagnosis = diagnose(annotations, detections, protocol, tiles=tiles)
            result.extra["why"] = diagnosis.to_dict()
            text += "\n" + diagnosis.text()
        at = replace(protocol, ious=(0.5,))
        if self.samples:
            rows = interval_rows(annotations, detections, at, samples=self.samples)
            result.extra["intervals"] = rows
            text += "\n" + interval_text(rows)
        if self.against is not None:
            other = DetectionTable.from_coco(self.against, annotations, any_score=self.any_score)
            rows = compare(annotations, detections, other, at, samples=self.samples or 1000)
            result.extra["comparison"] = rows
            text += "\n" + comparison_text(rows, names=(self.name, called(self.against)))
        return text


def called(path: Path) -> str:
    """What detections are called: their folder where the file has the usual name, else the file."""
    return path.resolve().parent.name if path.stem == "detections" else path.stem


@dataclass(frozen=True)
class Besides:
    """What stands beside the numbers: baselines, and a page."""

    baselines: bool
    train: Path | None
    html: Path | None
    run: Path | None
    """The folder whose recipe names the training set, and whose weights gave the detections."""
    name: str

    def add(self, annotations: Annotations, detections: DetectionTable, result: EvaluationResult) -> str:
        """Measure baselines into `result.extra`, write the page; returns what is to be printed."""
        text, measured = "", ()
        if self.baselines:
            from flyspeck.evaluate.baselines import baseline_text, measure_baselines
            from flyspeck.report.runs import training_set

            train = training_set(self.train, self.run, annotations.classes)
            measured = measure_baselines(train, annotations, result.protocol)
            result.extra["baselines"] = [base.to_dict() for base in measured]
            text += "\n" + baseline_text(measured)
        elif self.train is not None:
            raise UserError("a training set is for baselines", where="--train", fix="add --baselines")
        if self.html is not None:
            from flyspeck.report.html import build_report
            from flyspeck.report.runs import RunReport

            run = RunReport(self.name, annotations, detections, result, baselines=measured)
            build_report([run], self.html, title=f"flyspeck eval: {self.name}")
            text += f"{self.html}: {self.html.stat().st_size / 1e6:.1f} MB\n"
        return text
