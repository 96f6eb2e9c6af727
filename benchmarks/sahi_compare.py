"""flyspeck against SAHI and supervision's InferenceSlicer: one detector, one large picture, as many tiles, end to end.

    python benchmarks/sahi_compare.py --run RUN [--exported MODEL.onnx|MODEL.xml ...] [--repeats 5] [--threads 2] [--out FILE]
    python benchmarks/sahi_compare.py --torchvision fasterrcnn_mobilenet_v3_large_320_fpn --score 0.02

Needs `pip install sahi==0.12.8` beside the extras `export` and `supervision`. All get the decoded picture (decoding is timed
apart) and return merged boxes of at least `--score`. SAHI runs with `batch_size=8` through its own wrapper of torchvision
detectors, which passes the tiles one by one, and once more through a wrapper that passes batches ("sahi batched").
Methods alternate; a figure is the median over rounds, a ratio the median of ratios within a round. The network's own time is
that of the same model on the same tiles, cut beforehand, in batches of 8. With `--torchvision` weights are random and the
detector is torchvision's own: times only, no AP.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.infer.load import load_model
from flyspeck.infer.merge import MergeRule
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.tiles import grid
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_detector
from flyspeck.types import Detections, ImageBatch

SIDE, OVERLAP, BATCH, IOU = 320, 64, 8, 0.5
Model = Callable[[list[np.ndarray]], list[Detections]]


class AsTorchvision(nn.Module):
    """A trained run behind the interface of torchvision's detectors: a list of (3, H, W) floats in, a list of dicts out."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.detector = TorchModel(load_detector(run)).detector

    @torch.inference_mode()
    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """One dict a picture: boxes (N, 4), scores and labels (N,)."""
        pixels = torch.stack(list(pictures))
        size = (pixels.shape[-2], pixels.shape[-1])
        found = self.detector.detect(ImageBatch(pixels, (size,) * len(pixels)))
        return [
            {
                "boxes": torch.from_numpy(f.boxes),
                "scores": torch.from_numpy(f.scores),
                "labels": torch.from_numpy(f.labels),
            }
            for f in found
        ]


def as_model(module: nn.Module) -> Model:
    """A torchvision detector as flyspeck's predictor calls it."""

    @torch.inference_mode()
    def model(windows: list[np.ndarray]) -> list[Detections]:
        pictures = [torch.from_numpy(w).permute(2, 0, 1).float() / 255 for w in windows]
        size = windows[0].shape[:2]
        return [
            Detections(o["boxes"].numpy(), o["scores"].numpy(), o["labels"].numpy(), size) for o in module(pictures)
        ]

    return model


def flyspeck_method(model: Model, score: float) -> Callable[[np.ndarray], Detections]:
    rule = MergeRule(method="nms", threshold=IOU)
    predictor = Predictor(
        model, tile=(SIDE, SIDE), overlap=OVERLAP, batch_size=BATCH, score_threshold=score, merge=rule
    )
    return lambda picture: predictor.predict(picture)[0]


def network_method(model: Model) -> Callable[[np.ndarray], None]:
    """The model alone on flyspeck's tiles; the cutting is done on the first call."""
    batches: list[list[np.ndarray]] = []

    def run(picture: np.ndarray) -> None:
        if not batches:
            frames = grid(picture.shape[:2], (SIDE, SIDE), OVERLAP)
            tiles = [np.ascontiguousarray(picture[y1:y2, x1:x2]) for x1, y1, x2, y2 in frames.tolist()]
            batches.extend(tiles[i : i + BATCH] for i in range(0, len(tiles), BATCH))
        for batch in batches:
            model(batch)

    return run


def sahi_method(module: nn.Module, score: float, classes: int, *, batched: bool) -> Callable[[np.ndarray], Detections]:
    from sahi.models.torchvision import TorchVisionDetectionModel
    from sahi.predict import get_sliced_prediction

    class Batched(TorchVisionDetectionModel):
        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            with torch.inference_mode():
                tensors = [torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in images]
                self._original_predictions = self.model(tensors)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            everything, lists = self._original_predictions, []
            for i, one in enumerate(everything):
                self._original_predictions = [one]
                super()._create_object_prediction_list_from_original_predictions(
                    [shift_amount_list[i]], [full_shape_list[i]]
                )
                lists.extend(self._object_prediction_list_per_image)
            self._object_prediction_list_per_image = lists

    kind = Batched if batched else TorchVisionDetectionModel
    mapping = {str(i): str(i) for i in range(classes + 1)}
    model = kind(model=module, device="cpu", confidence_threshold=score, category_mapping=mapping)

    def run(picture: np.ndarray) -> Detections:
        result = get_sliced_prediction(
            picture,
            model,
            slice_height=SIDE,
            slice_width=SIDE,
            overlap_height_ratio=OVERLAP / SIDE,
            overlap_width_ratio=OVERLAP / SIDE,
            perform_standard_pred=False,
            postprocess_type="NMS",
            postprocess_match_metric="IOU",
            postprocess_match_threshold=IOU,
            batch_size=BATCH,
            verbose=0,
        )
        objects = result.object_prediction_list
        boxes = np.array([o.bbox.to_xyxy() for o in objects], np.float32).reshape(-1, 4)
        return Detections(boxes, [o.score.value for o in objects], [o.category.id for o in objects], picture.shape[:2])

    return run


def supervision_method(model: Model, score: float) -> Callable[[np.ndarray], Detections]:
    import supervision as sv

    def callback(tiles: list[np.ndarray]) -> list[Any]:
        out = []
        # Tiles at the right and bottom border may be smaller: a batch holds one size.
        for found in _by_size(tiles, model):
            keep = found.scores >= score
            out.append(
                sv.Detections(xyxy=found.boxes[keep], confidence=found.scores[keep], class_id=found.labels[keep])
            )
        return out

    slicer = sv.InferenceSlicer(
        callback,
        slice_wh=(SIDE, SIDE),
        overlap_wh=(OVERLAP, OVERLAP),
        iou_threshold=IOU,
        thread_workers=1,
        batch_size=BATCH,
    )

    def run(picture: np.ndarray) -> Detections:
        found = slicer(picture)
        return Detections(found.xyxy, found.confidence, found.class_id, picture.shape[:2])

    return run


def _by_size(tiles: list[np.ndarray], model: Model) -> list[Detections]:
    found: dict[int, Detections] = {}
    for size in {t.shape for t in tiles}:
        rows = [i for i, t in enumerate(tiles) if t.shape == size]
        found.update(zip(rows, model([tiles[i] for i in rows]), strict=True))
    return [found[i] for i in range(len(tiles))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--torchvision")
    parser.add_argument("--exported", type=Path, nargs="*", default=[])
    parser.add_argument("--precision", default="fp32", help="of an OpenVINO file: fp32 or bf16")
    parser.add_argument("--size", default="3000x4000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.25)
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out, such as sahi")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.run is None) == (options.torchvision is None):
        sys.exit("give one of --run and --torchvision")
    torch.set_num_threads(options.threads)
    height, width = (int(v) for v in options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        truth = read_annotations(write_scenes(Path(folder), num_images=1, seed=2, height=height, width=width))
        path = truth.path(0)
        start = time.perf_counter()
        picture = np.asarray(read_image(path))
        decoding = time.perf_counter() - start
        methods = _methods(options)
        seconds, found = _rounds(methods, picture, options.repeats)
        report = _report(options, seconds, found, decoding, None if options.torchvision else truth)
        report["tiles"] = len(grid((height, width), (SIDE, SIDE), OVERLAP))
    print(_text(report))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def _methods(options: argparse.Namespace) -> dict[str, Callable[[np.ndarray], Any]]:
    if options.run is not None:
        module: nn.Module = AsTorchvision(options.run).eval()
        eager, _ = load_model(options.run)
        classes = len(eager.classes)
    else:
        import torchvision

        torch.manual_seed(0)
        module = torchvision.models.get_model(options.torchvision, weights=None, weights_backbone=None, num_classes=4)
        module = module.eval()
        eager, classes = as_model(module), 4
    methods: dict[str, Callable[[np.ndarray], Any]] = {
        "network": network_method(eager),
        "flyspeck": flyspeck_method(eager, options.score),
        "sahi": sahi_method(module, options.score, classes, batched=False),
        "sahi batched": sahi_method(module, options.score, classes, batched=True),
        "supervision": supervision_method(eager, options.score),
    }
    for path in options.exported:
        precision = options.precision if path.suffix == ".xml" else "fp32"
        model, told = load_model(path, precision=precision)
        name = f"{path.name} {told['precision'] if told['precision'] != 'fp32' else precision}"
        methods[f"network, {name}"] = network_method(model)
        methods[f"flyspeck, {name}"] = flyspeck_method(model, options.score)
    return {name: method for name, method in methods.items() if name not in options.skip}


def _rounds(
    methods: dict[str, Callable[[np.ndarray], Any]], picture: np.ndarray, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each method in each round, after a round that is not counted, and what each found."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, Any] = {}
    for turn in range(repeats + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            found[name] = method(picture)
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {turn} of {repeats}", file=sys.stderr, flush=True)
    return seconds, found


def _report(
    options: argparse.Namespace, seconds: dict[str, list[float]], found: dict[str, Any], decoding: float, truth: Any
) -> dict[str, Any]:
    rows = []
    for name, times in seconds.items():
        own = "network" if "," not in name else "network," + name.split(",", 1)[1]
        row: dict[str, Any] = {"method": name, "seconds": statistics.median(times), "rounds": times}
        if own in seconds:
            pairs = zip(times, seconds[own], strict=True)
            row["of_network"] = statistics.median(a / b for a, b in pairs)
        if "sahi" in seconds:
            row["sahi_over_this"] = statistics.median(a / b for a, b in zip(seconds["sahi"], times, strict=True))
        if found[name] is not None:
            row["boxes"] = len(found[name])
            if truth is not None:
                result = evaluate(truth, DetectionTable.from_list([found[name]], truth), "flyspeck")
                row["ap50"] = {a: result.value(metric="AP", iou=0.5, area=a) for a in ("all", "tiny")}
        rows.append(row)
    return {
        "detector": str(options.torchvision or options.run.name),
        "size": options.size,
        "threads": options.threads,
        "score": options.score,
        "decoding_seconds": decoding,
        "rows": rows,
    }


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['size']}, {report['tiles']} tiles of {SIDE}, decoding {report['decoding_seconds']:.2f} s"]
    lines.append(f"{'method':<34}{'s':>8}{'/network':>10}{'SAHI/this':>11}{'boxes':>8}{'AP50':>7}{'tiny':>7}")
    for row in report["rows"]:
        ap = row.get("ap50", {})
        cells = [f"{100 * ap[a]:.1f}" if a in ap else "–" for a in ("all", "tiny")]
        lines.append(
            f"{row['method']:<34}{row['seconds']:>8.2f}{row.get('of_network', 0):>10.3f}"
            f"{row.get('sahi_over_this', 0):>11.2f}{row.get('boxes', '–'):>8}{cells[0]:>7}{cells[1]:>7}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
