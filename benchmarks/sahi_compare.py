"""flyspeck against SAHI and supervision's InferenceSlicer: one detector, one large image, as many tiles, end to end.

    python benchmarks/sahi_compare.py RUN [--engines onnx,openvino] [--size 3000x4000] [--repeats 5] [--threads 2] [--out FILE]

Needs `pip install sahi==0.12.8` beside the extras `export` and `supervision`. All get the decoded image (decoding is timed
apart) and return merged boxes of at least `--score`. SAHI runs with `batch_size=8` through its own wrapper of torchvision
detectors, which passes the tiles one by one, and once more through a wrapper that passes batches ("sahi batched").
Methods alternate; a metric is the median over rounds, a ratio the median of ratios within a round. The network's own time is
that of the same model on the same tiles, cut beforehand, in batches of 8.

Two detectors. torchvision's own Faster R-CNN (`--torchvision`) with random weights, its score threshold set so that a tile
gives `--boxes` boxes: times only. And RUN, trained on generated scenes, behind torchvision's interface: eager and as
exported engines (`--engines`), with AP on the image, which is such a scene.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from verdict import RESULTS, Claim, at_least, at_most, conclude

from flyspeck.data.annotations import Annotations
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.data.scenes import KINDS
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.export.benchmark import build_engines, check_engines
from flyspeck.export.check_images import ImageSet
from flyspeck.infer.merge import MergeRule
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.tiles import grid
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import load_described, load_detector
from flyspeck.types import Detections, ImageBatch

SIDE, OVERLAP, BATCH, IOU = 320, 64, 8, 0.5
SLACK = 0.1  # points of AP50: the methods merge by rules of their own
Model = Callable[[list[np.ndarray]], list[Detections]]


class AsTorchvision(nn.Module):
    """A trained run behind the interface of torchvision's detectors: a list of (3, H, W) floats in, a list of dicts out."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.detector = TorchModel(load_detector(run), device="cpu").detector

    @torch.inference_mode()
    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """One dict an image: boxes (N, 4), scores and labels (N,)."""
        pixels = torch.stack(list(images))
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
        images = [torch.from_numpy(w).permute(2, 0, 1).float() / 255 for w in windows]
        size = windows[0].shape[:2]
        return [Detections(o["boxes"].numpy(), o["scores"].numpy(), o["labels"].numpy(), size) for o in module(images)]

    return model


def flyspeck_method(model: Model, score: float) -> Callable[[np.ndarray], Detections]:
    rule = MergeRule(method="nms", threshold=IOU)
    predictor = Predictor(
        model, tile=(SIDE, SIDE), overlap=OVERLAP, batch_size=BATCH, score_threshold=score, merge=rule
    )
    return lambda image: predictor.predict(image)[0]


def network_method(model: Model) -> Callable[[np.ndarray], None]:
    """The model alone on flyspeck's tiles; the cutting is done on the first call."""
    batches: list[list[np.ndarray]] = []

    def run(image: np.ndarray) -> None:
        if not batches:
            frames = grid(image.shape[:2], (SIDE, SIDE), OVERLAP)
            tiles = [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in frames.tolist()]
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

    def run(image: np.ndarray) -> Detections:
        result = get_sliced_prediction(
            image,
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
        return Detections(boxes, [o.score.value for o in objects], [o.category.id for o in objects], image.shape[:2])

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

    def run(image: np.ndarray) -> Detections:
        found = slicer(image)
        return Detections(found.xyxy, found.confidence, found.class_id, image.shape[:2])

    return run


def _by_size(tiles: list[np.ndarray], model: Model) -> list[Detections]:
    found: dict[int, Detections] = {}
    for size in {t.shape for t in tiles}:
        rows = [i for i, t in enumerate(tiles) if t.shape == size]
        found.update(zip(rows, model([tiles[i] for i in rows]), strict=True))
    return [found[i] for i in range(len(tiles))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder; its detector knows the classes of generated scenes")
    parser.add_argument("--torchvision", default="fasterrcnn_mobilenet_v3_large_320_fpn", help="'' leaves it out")
    parser.add_argument("--boxes", type=int, default=11, help="boxes a tile of torchvision's detector")
    parser.add_argument("--engines", default="onnx,openvino,openvino bf16", help="exported forms of RUN; '' for none")
    parser.add_argument("--kind", default="sea", choices=KINDS, help="of the generated scene")
    parser.add_argument("--size", default="3000x4000", help="height x width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--score", type=float, default=0.25)
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out, such as 'sahi batched'")
    parser.add_argument("--out", type=Path, default=RESULTS / "sahi_compare.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    height, width = (int(v) for v in options.size.split("x"))
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        scenes = write_scenes(Path(folder), num_images=1, seed=2, height=height, width=width, kind=options.kind)
        truth = read_annotations(scenes)
        start = time.perf_counter()
        image = np.asarray(read_image(truth.path(0)))
        decoding = time.perf_counter() - start
        if options.torchvision:
            methods, score = _torchvision_methods(options, image)
            found = _rounds(_without(methods, options.skip), image, options.repeats)
            reports.append(_report(options.torchvision, score, *found, None))
        found = _rounds(_without(_run_methods(options), options.skip), image, options.repeats)
        reports.append(_report(str(load_described(options.run)[1]["model"]["name"]), options.score, *found, truth))
    tiles = len(grid((height, width), (SIDE, SIDE), OVERLAP))
    print(f"{options.size}, {tiles} tiles of {SIDE}, {options.threads} threads, decoding {decoding:.2f} s")
    claims = []
    for report in reports:
        print(_text(report))
        claims += _claims(report)
    metrics = {"size": options.size, "tiles": tiles, "objects": len(truth.boxes), "threads": options.threads}
    metrics |= {"versions": _versions(), "decoding_seconds": decoding, "detectors": reports}
    conclude(metrics, claims, options.out)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sahi", "supervision", "torch", "torchvision", "onnxruntime", "openvino")}


def _without(
    methods: dict[str, Callable[[np.ndarray], Any]], names: list[str]
) -> dict[str, Callable[[np.ndarray], Any]]:
    return {name: method for name, method in methods.items() if name not in names}


def _torchvision_methods(
    options: argparse.Namespace, image: np.ndarray
) -> tuple[dict[str, Callable[[np.ndarray], Any]], float]:
    """The methods, and the score from which a tile has as many boxes as asked for."""
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.get_model(options.torchvision, weights=None, weights_backbone=None, num_classes=4)
    tiles = [np.ascontiguousarray(image[:SIDE, x : x + SIDE]) for x in range(0, image.shape[1] - SIDE, 2 * SIDE)]
    _spread_scores(module.eval(), tiles)
    model = as_model(module)
    scores = np.sort(np.concatenate([found.scores for found in model(tiles)]))[::-1]
    score = float(scores[min(len(scores) - 1, options.boxes * len(tiles))])
    return {
        "network": network_method(model),
        "flyspeck": flyspeck_method(model, score),
        "sahi": sahi_method(module, score, 4, batched=False),
        "sahi batched": sahi_method(module, score, 4, batched=True),
        "supervision": supervision_method(model, score),
    }, score


@torch.no_grad()
def _spread_scores(module: nn.Module, tiles: list[np.ndarray]) -> None:
    """Random weights give every box the same score; statistics of the norms from `tiles` and a wider last layer do not."""
    images = [torch.from_numpy(tile).permute(2, 0, 1).float() / 255 for tile in tiles]
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    module(images)
    module.eval()
    last, logits = module.roi_heads.box_predictor.cls_score, []  # type: ignore[union-attr]
    hook = last.register_forward_hook(lambda _, __, out: logits.append(out))  # type: ignore[union-attr]
    module(images)
    hook.remove()
    last.weight.mul_(2 / torch.cat(logits).std(dim=0, keepdim=True).T)  # type: ignore[union-attr]


def _run_methods(options: argparse.Namespace) -> dict[str, Callable[[np.ndarray], Any]]:
    module = AsTorchvision(options.run).eval()
    detector, description = load_described(options.run)
    eager = TorchModel(detector, device="cpu")
    methods: dict[str, Callable[[np.ndarray], Any]] = {
        "network": network_method(eager),
        "flyspeck": flyspeck_method(eager, options.score),
        "sahi": sahi_method(module, options.score, len(eager.classes), batched=False),
        "sahi batched": sahi_method(module, options.score, len(eager.classes), batched=True),
        "supervision": supervision_method(eager, options.score),
    }
    names = [name.strip() for name in options.engines.split(",") if name.strip()]
    check_engines(names)
    nothing = ImageSet((), None, "nothing")  # no engine that is calibrated on images
    built = build_engines(detector, description, names, nothing, num_tiles=0, say=lambda line: None)
    for name, model in built.items():
        if isinstance(model, str):
            sys.exit(f"{name}: {model}")
        methods[f"network, {name}"] = network_method(model)
        methods[f"flyspeck, {name}"] = flyspeck_method(model, options.score)
    return methods


def _rounds(
    methods: dict[str, Callable[[np.ndarray], Any]], image: np.ndarray, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each method in each round, after a round that is not counted, and what each found."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, Any] = {}
    for turn in range(repeats + 1):
        for name, method in methods.items():
            start = time.perf_counter()
            found[name] = method(image)
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {turn} of {repeats}", file=sys.stderr, flush=True)
    return seconds, found


def _report(
    detector: str, score: float, seconds: dict[str, list[float]], found: dict[str, Any], truth: Annotations | None
) -> dict[str, Any]:
    rows = []
    for name, times in seconds.items():
        own = "network" if "," not in name else "network," + name.split(",", 1)[1]
        row: dict[str, Any] = {"method": name, "seconds": statistics.median(times), "rounds": times}
        if own in seconds:
            row["of_network"] = statistics.median(a / b for a, b in zip(times, seconds[own], strict=True))
        for other in ("sahi", "supervision"):
            if other in seconds:
                pairs = zip(seconds[other], times, strict=True)
                row[f"{other}_over_this"] = statistics.median(a / b for a, b in pairs)
        if found[name] is not None:
            row["boxes"] = len(found[name])
            if truth is not None:
                result = evaluate(truth, DetectionTable.from_list([found[name]], truth), "flyspeck")
                row["ap50"] = {a: result.value(metric="AP", iou=0.5, area=a) for a in ("all", "tiny")}
        rows.append(row)
    return {"detector": detector, "score": score, "rows": rows}


def _claims(report: dict[str, Any]) -> list[Claim]:
    """The verdicts; of several exported engines the fastest is judged."""
    rows = {row["method"]: row for row in report["rows"]}
    eager, named = rows["flyspeck"], report["detector"]
    claims = [
        at_most(f"{named}: eager, all of it takes at most 1.08 of the network's own time", eager["of_network"], 1.08)
    ]
    for other, factor in (("sahi", 1.35), ("supervision", 1.0)):
        if other in rows:
            what = f"{named}: eager at least {factor:g} times as fast as {other}"
            claims.append(at_least(what, eager[f"{other}_over_this"], factor, "x"))
    exported = [row for name, row in rows.items() if name.startswith("flyspeck, ")]
    if exported:
        best = min(exported, key=lambda row: row["seconds"])
        engine = best["method"].removeprefix("flyspeck, ")
        what = f"{named}, {engine}: all of it takes at most 1.25 of the engine's own time"
        claims.append(at_most(what, best["of_network"], 1.25))
        if "sahi" in rows:
            claims.append(
                at_least(f"{named}, {engine}: at least 4 times as fast as sahi", best["sahi_over_this"], 4, "x")
            )
            for area in ("all", "tiny"):
                gap = 100 * (best["ap50"][area] - rows["sahi"]["ap50"][area])
                claims.append(at_least(f"{named}, {engine}: AP50 ({area}) not below sahi's", gap, -SLACK, " points"))
    return claims


def _text(report: dict[str, Any]) -> str:
    lines = [f"{report['detector']}, score from {report['score']:.3f}"]
    heads = ("s", "/network", "SAHI/this", "sv/this", "boxes", "AP50", "tiny")
    lines.append(f"{'method':<26}" + "".join(f"{head:>11}" for head in heads))
    for row in report["rows"]:
        ap = row.get("ap50", {})
        cells = [f"{row['seconds']:.2f}"]
        cells += [
            f"{row[key]:.3f}" if key in row else "–"
            for key in ("of_network", "sahi_over_this", "supervision_over_this")
        ]
        cells += [str(row.get("boxes", "–")), *(f"{100 * ap[a]:.2f}" if a in ap else "–" for a in ("all", "tiny"))]
        lines.append(f"{row['method']:<26}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
