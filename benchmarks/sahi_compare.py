"""flyspeck against SAHI and supervision's InferenceSlicer: one detector, the same large images, as many tiles, end to end.

    python benchmarks/sahi_compare.py MODEL MOSAICS.json [--exported FILE.xml] [--images 4] [--threads 2] [--out FILE]

Needs `pip install sahi==0.12.8` beside the extras `export` and `supervision`. MODEL is a run or a weights file, which PyTorch
runs, or another program's file (`--layout`, `--classes`); `--exported` its export, which flyspeck alone runs. MOSAICS are large
annotated images (`benchmarks/mosaics.py`); with `--times-only` nothing is said of AP.

All get the decoded image and the same callable, and return merged boxes of at least `--score`. SAHI runs with `batch_size=8`,
which its own wrappers pass on tile by tile ("sahi"), and through a wrapper that passes batches ("sahi batched");
InferenceSlicer with batches of 8 one after the other, and on as many threads as the processor has ("supervision threads"). Both
merge by NMS at 0.5, flyspeck by its default. Methods alternate, image by image, after a round that is not counted; a metric is
the median over images, a ratio the median of ratios of one image. The network's own time ("network") is that of the same callable
on the same tiles, cut beforehand, in batches of 8, one after the other; "network split" as many at a time as flyspeck chose.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
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
from flyspeck.evaluate import DetectionTable
from flyspeck.evaluate.scoring import evaluate
from flyspeck.infer.load import load_predictor
from flyspeck.infer.passes import Workers
from flyspeck.infer.predictor import Predictor
from flyspeck.types import Detections

BATCH, IOU, MOST = 8, 0.5, 3000
SLACK = 0.1  # points of AP50: the methods merge by rules of their own
Model = Callable[[list[np.ndarray]], list[Detections]]
Method = Callable[[np.ndarray], Any]


def flyspeck_method(model: Model, like: Predictor, score: float) -> Method:
    predictor = Predictor(
        model, tile=like.tile, overlap=like.overlap, enlarge=like.enlarge, batch_size=BATCH, score_threshold=score
    )
    return lambda image: replace(predictor.predict(image)[0], image_id=None)


def network_method(model: Model, like: Predictor, *, split: bool) -> Method:
    """The model alone on flyspeck's tiles; the cutting is done on the first call of each image."""
    batches: dict[int, list[list[np.ndarray]]] = {}
    workers = Workers(model)

    def run(image: np.ndarray) -> None:
        if id(image) not in batches:
            frames, _ = like.tiles_of(image.shape[:2])
            tiles = [np.ascontiguousarray(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in frames.tolist()]
            batches[id(image)] = [tiles[i : i + BATCH] for i in range(0, len(tiles), BATCH)]
        if split and workers.beside:
            for future in [workers.submit(batch, alone=None) for batch in batches[id(image)]]:
                future.result()
        else:
            for batch in batches[id(image)]:
                model(batch)

    return run


def sahi_method(model: Model, like: Predictor, score: float, classes: int, *, batched: bool) -> Method:
    from sahi.models.torchvision import TorchVisionDetectionModel
    from sahi.predict import get_sliced_prediction

    class OneByOne(TorchVisionDetectionModel):
        def perform_inference(self, image: np.ndarray, image_size: int | None = None) -> None:
            self._original_predictions = [as_dict(found) for found in model([image])]

    class Batched(TorchVisionDetectionModel):
        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            self._original_predictions = [as_dict(found) for found in by_size(images, model)]

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

    mapping = {str(i): str(i) for i in range(classes + 1)}
    kind = Batched if batched else OneByOne
    wrapped = kind(model=nn.Identity(), device="cpu", confidence_threshold=score, category_mapping=mapping)
    assert like.tile is not None
    (height, width), (high, wide) = like.tile, like.overlap

    def run(image: np.ndarray) -> Detections:
        result = get_sliced_prediction(
            image,
            wrapped,
            slice_height=height,
            slice_width=width,
            overlap_height_ratio=high / height,
            overlap_width_ratio=wide / width,
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


def as_dict(found: Detections) -> dict[str, torch.Tensor]:
    """As torchvision's detectors give it."""
    columns = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}


def supervision_method(model: Model, like: Predictor, score: float, *, threads: int) -> Method:
    import supervision as sv

    def callback(tiles: list[np.ndarray]) -> list[Any]:
        out = []
        # Tiles at the right and bottom border may be smaller: a batch holds one size.
        for found in by_size(tiles, model):
            keep = found.scores >= score
            out.append(
                sv.Detections(xyxy=found.boxes[keep], confidence=found.scores[keep], class_id=found.labels[keep])
            )
        return out

    assert like.tile is not None
    slicer = sv.InferenceSlicer(
        callback,
        slice_wh=(like.tile[1], like.tile[0]),
        overlap_wh=(like.overlap[1], like.overlap[0]),
        iou_threshold=IOU,
        thread_workers=threads,
        batch_size=BATCH,
    )

    def run(image: np.ndarray) -> Detections:
        found = slicer(image)
        return Detections(found.xyxy, found.confidence, found.class_id, image.shape[:2])

    return run


def by_size(tiles: list[np.ndarray], model: Model) -> list[Detections]:
    found: dict[int, Detections] = {}
    for size in {t.shape for t in tiles}:
        rows = [i for i, t in enumerate(tiles) if t.shape == size]
        found.update(zip(rows, model([tiles[i] for i in rows]), strict=True))
    return [found[i] for i in range(len(tiles))]


def methods_of(asked: argparse.Namespace, like: Predictor) -> dict[str, Method]:
    """Each with a model of its own, so that none finds what another one has prepared."""

    def load() -> Any:
        names = None if asked.classes is None else asked.classes.split(",")
        return load_predictor(asked.model, device="cpu", layout=asked.layout, classes=names).model

    count, score = len(like.model.classes), asked.score  # pyright: ignore[reportFunctionMemberAccess]
    methods = {
        "network": network_method(load(), like, split=False),
        "network split": network_method(load(), like, split=True),
        "flyspeck": flyspeck_method(load(), like, score),
        "sahi": sahi_method(load(), like, score, count, batched=False),
        "sahi batched": sahi_method(load(), like, score, count, batched=True),
        "supervision": supervision_method(load(), like, score, threads=1),
        "supervision threads": supervision_method(load(), like, score, threads=asked.threads),
    }
    for precision in asked.precisions.split(",") if asked.exported else ():
        made = [load_predictor(asked.exported, device="cpu", precision=precision).model for _ in range(3)]
        name = f"OpenVINO {precision}"
        methods[f"network, {name}"] = network_method(made[0], like, split=False)
        methods[f"network split, {name}"] = network_method(made[1], like, split=True)
        methods[f"flyspeck, {name}"] = flyspeck_method(made[2], like, score)
    return methods


def rounds(methods: dict[str, Method], images: list[np.ndarray]) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds of each method for each image, after a round over the first that is not counted, and what each found."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, list[Any]] = {name: [] for name in methods}
    for turn, image in enumerate([images[0], *images]):
        names = list(methods)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            one = methods[name](image)
            if turn:
                seconds[name].append(time.perf_counter() - start)
                found[name].append(one)
        print(f"image {turn} of {len(images)}", file=sys.stderr, flush=True)
    return seconds, found


def rows_of(seconds: dict[str, list[float]], found: dict[str, list[Any]], truth: Annotations | None) -> list[Any]:
    rows = []
    for name, times in seconds.items():
        engine = "," + name.split(",", 1)[1] if "," in name else ""
        row: dict[str, Any] = {"method": name, "seconds": statistics.median(times), "of_each_image": times}
        others = {"of_network": "network" + engine, "of_network_split": "network split" + engine}
        for key, other in others.items():
            row[key] = statistics.median(a / b for a, b in zip(times, seconds[other], strict=True))
        for other in ("sahi", "sahi batched", "supervision", "supervision threads"):
            pairs = zip(seconds[other], times, strict=True)
            row[f"{other} over this"] = statistics.median(a / b for a, b in pairs)
        if found[name][0] is not None:
            row["boxes"] = sum(map(len, found[name]))
            if truth is not None:
                result = evaluate(
                    ground_truth=truth, detections=DetectionTable.from_list(found[name], truth), max_dets=MOST
                )
                row["ap50"] = {a: result.value(metric="AP", iou=0.5, area=a) for a in ("all", "tiny")}
        rows.append(row)
    return rows


def claims_of(named: str, table: list[Any]) -> list[Claim]:
    """The verdicts; of several exported engines the fastest is judged."""
    rows = {row["method"]: row for row in table}
    eager = rows["flyspeck"]
    claims = [at_most(f"{named}: all of it takes at most 1.05 of the network's own time", eager["of_network"], 1.05)]
    for other in ("sahi", "sahi batched", "supervision", "supervision threads"):
        claims.append(at_least(f"{named}: no slower than {other}", eager[f"{other} over this"], 1.0, "x"))
    judged = [eager]
    exported = [row for name, row in rows.items() if name.startswith("flyspeck, ")]
    if exported:
        best = min(exported, key=lambda row: row["seconds"])
        judged.append(best)
        engine = f"{named}, {best['method'].removeprefix('flyspeck, ')}"
        what = f"{engine}: all of it takes at most 1.15 of the engine's own time"
        claims.append(at_most(what, best["of_network"], 1.15))
        for other in ("sahi", "supervision"):
            ratio = min(
                best[f"{other} over this"], best[f"{other}{' batched' if other == 'sahi' else ' threads'} over this"]
            )
            claims.append(at_least(f"{engine}: at least 4 times as fast as {other} at its fastest", ratio, 4, "x"))
    for row in judged:
        for other in ("sahi", "supervision") if "ap50" in row else ():
            for area in ("all", "tiny"):
                gap = 100 * (row["ap50"][area] - rows[other]["ap50"][area])
                what = f"{named}, {row['method']}: AP50 ({area}) not below {other}'s"
                claims.append(at_least(what, gap, -SLACK, " points"))
    return claims


def table_of(rows: list[Any]) -> str:
    """For the docs."""
    heads = [
        "",
        "s an image",
        "of the network's time",
        "of the network split",
        "SAHI takes",
        "SAHI batched",
        "InferenceSlicer",
    ]
    lines = ["| " + " | ".join([*heads, "on threads", "boxes", "AP50 all", "tiny"]) + " |", "|---" * 11 + "|"]
    keys = ["of_network", "of_network_split", "sahi over this", "sahi batched over this"]
    for row in rows:
        cells = [row["method"], f"{row['seconds']:.2f}"]
        cells += [f"{row[key]:.2f}" for key in (*keys, "supervision over this", "supervision threads over this")]
        cells.append(str(row.get("boxes", "")))
        cells += [f"{100 * row['ap50'][a]:.1f}" if "ap50" in row else "" for a in ("all", "tiny")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def processor() -> str:
    """Its name, and what of its instructions matters here."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
    except (OSError, ValueError):
        return "unknown"
    told = {key.strip(): value.strip() for key, value in told.items()}
    units = [
        f for f in told.get("flags", "").split() if f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni")
    ]
    return (
        f"{told.get('model name', '?')} (family {told.get('cpu family')}, model {told.get('model')}): {' '.join(units)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, weights, or another program's .onnx or .xml")
    parser.add_argument("mosaics", type=Path, help="annotations of large images")
    parser.add_argument("--exported", help="MODEL exported to OpenVINO (.xml)")
    parser.add_argument("--precisions", default="bf16", help="of the exported one, with commas between")
    parser.add_argument("--images", type=int, default=4, help="the first of them")
    parser.add_argument("--tile", type=int, nargs=2, help="height and width; default: as trained")
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--score", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout")
    parser.add_argument("--classes", help="of another program's, with commas between")
    parser.add_argument("--times-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "sahi_compare.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    names = None if asked.classes is None else asked.classes.split(",")
    tile = None if asked.tile is None else (asked.tile[0], asked.tile[1])
    like = load_predictor(
        asked.model, device="cpu", tile=tile, overlap=asked.overlap, layout=asked.layout, classes=names
    )
    classes = like.model.classes  # pyright: ignore[reportFunctionMemberAccess]
    truth = read_annotations(asked.mosaics, classes=None if asked.times_only else list(classes), for_evaluation=True)
    truth = truth.select_images(np.arange(min(asked.images, len(truth))))
    images = [np.asarray(read_image(truth.path(row))) for row in range(len(truth))]
    seconds, found = rounds(methods_of(asked, like), images)
    rows = rows_of(seconds, found, None if asked.times_only else truth)
    told = Path(asked.model)
    named = told.name if told.suffix in (".onnx", ".xml") or told.is_dir() else told.parent.name
    print(table_of(rows))
    metrics = {"processor": processor(), "detector": named, "images": len(images), "threads": asked.threads}
    metrics |= {
        "tile": like.tile,
        "overlap": like.overlap,
        "tiles": [len(like.tiles_of(i.shape[:2])[0]) for i in images],
    }
    metrics |= {
        "versions": {name: version(name) for name in ("sahi", "supervision", "torch", "onnxruntime", "openvino")}
    }
    metrics |= {"score": asked.score, "table": table_of(rows), "rows": rows}
    conclude(metrics, claims_of(named, rows), asked.out)


if __name__ == "__main__":
    main()
