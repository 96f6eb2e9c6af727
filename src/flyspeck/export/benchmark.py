"""What each engine makes of one run on this machine: milliseconds from file to result file, and the recall that they buy.

Engines take turns, image set by image set, so that a machine that slows down slows all of them; metrics are medians over
the rounds. The parts (decode, tile, forward, merge, write) are timed one after the other; `total` is the real pipeline, where
reading overlaps with the network, and may be less than their sum.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.bands import rule_of
from flyspeck.errors import UserError, counted, nearest
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.export.check_images import ImageSet, Recorder, predictor_for, tiles_of
from flyspeck.export.frame import Frame
from flyspeck.export.onnx import describe
from flyspeck.export.package import traced, write_all
from flyspeck.export.proof import with_hard_nms
from flyspeck.export.quantize import quantise
from flyspeck.infer.engines import open_exported
from flyspeck.infer.outputs import open_writers
from flyspeck.infer.predictor import Model, Predictor
from flyspeck.infer.shown import shown_enlargement
from flyspeck.infer.source import open_source
from flyspeck.infer.torch_model import TorchModel
from flyspeck.models.detector import Detector
from flyspeck.types import Detections

ENGINES = (
    "eager",
    "eager bf16",
    "compiled",
    "onnx",
    "openvino",
    "openvino bf16",
    "onnx int8",
    "openvino int8",
)
PARTS = ("decode", "tile", "forward", "merge", "write")


@dataclass
class EngineResult:
    """One engine's row."""

    name: str
    problem: str = ""
    """Why it did not run, if so; then there are no metrics."""
    parts: dict[str, float] = field(default_factory=dict)
    """Milliseconds an image of each part."""
    total: float = 0.0
    """Milliseconds an image end to end."""
    tiles: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """`ap50_AREA` and `recall_AREA` by size bin; -1 where there was nothing to find."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """`scale`, `ms` an image and `recall_AREA`, one entry a scale of the image."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "engine": self.name,
            **({"problem": self.problem} if self.problem else {}),
            "ms": {name: round(v, 3) for name, v in self.parts.items()},
            "total_ms": round(self.total, 3),
            "tiles": self.tiles,
            "metrics": self.metrics,
            "curve": self.curve,
        }


def check_engines(names: Sequence[str]) -> None:
    """Raises UserError for an engine that is not known."""
    for name in names:
        if name not in ENGINES:
            raise UserError(f"no engine '{name}'", where="--engines", fix=nearest(name, ENGINES))


def build_engines(
    detector: Detector,
    description: Mapping[str, Any],
    names: Sequence[str],
    calibration: ImageSet,
    *,
    num_tiles: int,
    say: Callable[[str], None],
) -> dict[str, Model | str]:
    """Each engine as a model, or the reason why there is none."""
    detector = with_hard_nms(detector, detector.head.suppression.iou)
    built: dict[str, Model | str] = {}
    exported = [n for n in names if n.split()[0] in ("onnx", "openvino")]
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] | str = {}
        if exported:
            int8 = any("int8" in n for n in exported)
            files = _files(Path(folder), detector, description, calibration if int8 else None, num_tiles, say)
        for name in names:
            say(f"loading {name}")
            built[name] = _build(name, detector, files)
    return built


def _build(name: str, detector: Detector, files: dict[str, Path] | str) -> Model | str:
    if name.startswith("eager"):
        return TorchModel(detector, device="cpu", precision="bf16" if "bf16" in name else "fp32")
    if name == "compiled":
        return _compiled(detector)
    if isinstance(files, str):
        return files
    kind, _, variant = name.partition(" ")
    key = f"{kind} int8" if variant == "int8" else kind
    if key not in files:
        return "a detector that chooses its factor has no INT8 form"
    try:
        return open_exported(files[key], device="cpu", precision="bf16" if variant == "bf16" else "fp32")
    except UserError as error:
        return error.what


def _files(
    folder: Path,
    detector: Detector,
    description: Mapping[str, Any],
    calibration: ImageSet | None,
    num_tiles: int,
    say: Callable[[str], None],
) -> dict[str, Path] | str:
    """The exported files, or why there are none."""
    say("exporting")
    try:
        graph, by_factor = traced(detector, bits=rule_of(description).bits)
    except UserError as error:
        return error.what
    told = describe(detector, description, bits=rule_of(description).bits)
    files = {"onnx": folder / "m.onnx", "openvino": folder / "m.xml"}
    frame = Frame.of(detector, shown_enlargement(description))
    for file in files.values():
        write_all(graph, by_factor, file, told, frame)
    if calibration is not None and not by_factor:
        model = open_exported(files["onnx"], device="cpu")
        tiles = tiles_of(calibration, told, limit=num_tiles)
        say(f"calibrating INT8 on {counted(len(tiles), 'tile')} of {calibration.name}")
        graph = quantise(graph, [model.to_batch([tile]) for tile in tiles])
        files |= {"onnx int8": folder / "q.onnx", "openvino int8": folder / "q.xml"}
        for name in ("onnx int8", "openvino int8"):
            write_all(graph, {}, files[name], {**told, "precision": "int8"}, frame)
    return files


def _compiled(detector: Detector) -> Model | str:
    """Backbone, neck and head convolutions through `torch.compile`; the reason where this machine cannot."""
    import torch

    model = TorchModel(detector, device="cpu")
    if not isinstance(model.detector, Detector):
        return "a detector with factors is not compiled"
    for part in (model.detector.backbone, model.detector.neck):
        part.compile(dynamic=False)
    blank = np.zeros((64, 64, int(model.channels)), np.uint8)
    try:
        model([np.pad(blank, ((0, 64), (0, 64), (0, 0)))])
    except Exception as error:  # a missing compiler, an operation that inductor lacks: its own many kinds
        torch._dynamo.reset()
        return f"torch.compile does not work here ({' '.join(str(error).split())[:80]})"
    return model


def measure(
    models: Mapping[str, Model | str],
    images: ImageSet,
    description: Mapping[str, Any],
    *,
    score: float,
    rounds: int,
    batch_size: int,
    scales: Sequence[float],
    say: Callable[[str], None],
) -> list[EngineResult]:
    """All engines over the same images, in turn."""
    results = {name: EngineResult(name, problem=m if isinstance(m, str) else "") for name, m in models.items()}
    able = {name: m for name, m in models.items() if not isinstance(m, str)}
    predictors = {n: predictor_for(m, description, score=score, batch_size=batch_size) for n, m in able.items()}
    for name, predictor in predictors.items():
        say(f"warming up {name}")
        predictor.predict(images.paths[0])
    timed: dict[str, list[dict[str, float]]] = {name: [] for name in able}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for name, predictor in predictors.items():
            found, parts = _one_round(predictor, images, able[name])
            timed[name].append(parts)
            results[name].metrics = _metrics(images, found)
            results[name].tiles = int(parts["tiles"])
    for name, entries in timed.items():
        row = results[name]
        row.parts = {part: statistics.median(e[part] for e in entries) for part in PARTS}
        row.total = statistics.median(e["total"] for e in entries)
    if images.annotations is not None:
        _curves(results, predictors, images, scales, say)
    return list(results.values())


def _one_round(predictor: Predictor, images: ImageSet, model: Model) -> tuple[list[Detections], dict[str, float]]:
    """Detections of every image, and milliseconds an image of the parts and of the whole."""
    count = len(images.paths)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        writers = open_writers(Path(folder), ["coco"], classes=model.classes)  # type: ignore[attr-defined]
        with clock("total"):
            results = list(predictor.stream(images.paths))
            for result in results:
                for writer in writers:
                    writer.add(result)
            for writer in writers:
                writer.close()
        tiles = sum(result.num_tiles for result in results)
        writers = open_writers(Path(folder) / "again", ["coco"], classes=model.classes)  # type: ignore[attr-defined]
        with clock("write"):
            for result in results:
                for writer in writers:
                    writer.add(result)
            for writer in writers:
                writer.close()
    for path in images.paths:
        with clock("decode"), open_source(path, predictor.options) as source:
            height, width = source.size
            pixels = source.read(0, 0, width, height)
        recorder = _TimedRecorder(model)
        predictor.model = recorder
        predictor.predict(pixels)
        predictor.model = _Replay(recorder.found)
        with clock("around"):
            predictor.predict(pixels)
        predictor.model = _Replay([Detections.empty(f.image_size) for f in recorder.found])
        with clock("tile"):
            predictor.predict(pixels)
        predictor.model = model
        clock.seconds["forward"] = clock.seconds.get("forward", 0.0) + recorder.seconds
    clock.seconds["merge"] = max(0.0, clock.seconds.pop("around") - clock.seconds["tile"])
    parts = {name: 1000 * seconds / count for name, seconds in clock.seconds.items()}
    return [result.detections for result in results], {**parts, "tiles": tiles}


class _TimedRecorder(Recorder):
    """A recorder that adds up the seconds of its model."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.seconds = 0.0

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """As the model's."""
        start = time.perf_counter()
        found = super().__call__(windows)
        self.seconds += time.perf_counter() - start
        return found


class _Replay:
    """A model that costs nothing: what was found before, in the same order."""

    def __init__(self, found: Sequence[Detections]) -> None:
        self._found = iter(found)

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """The next of them."""
        return [next(self._found) for _ in windows]


class _Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    def __call__(self, name: str) -> _Clock:
        self._open.append((name, 0.0))
        return self

    def __enter__(self) -> None:
        self._open[-1] = (self._open[-1][0], time.perf_counter())

    def __exit__(self, *_: object) -> None:
        name, start = self._open.pop()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _metrics(images: ImageSet, found: Sequence[Detections]) -> dict[str, float]:
    """AP50 and recall at IoU 0.5 by size bin; empty without annotations."""
    if images.annotations is None:
        return {}
    ids = images.annotations.image_ids
    named = [replace(one, image_id=i if isinstance(i, str) else int(i)) for one, i in zip(found, ids, strict=True)]
    result = evaluate(images.annotations, DetectionTable.from_list(named, images.annotations), "flyspeck")
    metrics = {}
    for row in result.rows:
        if row["metric"] in ("AP", "AR") and row.get("iou") == 0.5 and "cls" not in row and "category_id" not in row:
            metrics[f"{'ap50' if row['metric'] == 'AP' else 'recall'}_{row['area']}"] = float(row["value"])
    return metrics


def _curves(
    results: Mapping[str, EngineResult],
    predictors: Mapping[str, Predictor],
    images: ImageSet,
    scales: Sequence[float],
    say: Callable[[str], None],
) -> None:
    """Latency and recall of every engine with the image looked at smaller and larger."""
    for scale in scales:
        say(f"scale {scale:g}")
        for name, predictor in predictors.items():
            before = predictor.enlarge
            predictor.enlarge = before.scaled(scale)
            predictor.predict(images.paths[0])  # a new size of window may be compiled first
            start = time.perf_counter()
            found = predictor.predict(list(images.paths))
            seconds = time.perf_counter() - start
            predictor.enlarge = before
            metrics = {k: v for k, v in _metrics(images, found).items() if k.startswith("recall")}
            results[name].curve.append({"scale": scale, "ms": 1000 * seconds / len(images.paths), **metrics})
