"""timm's models as backbones: `python benchmarks/timm_backbones.py [NAME …] [--epochs 8] [--out FILE]`.

For each model a small FCOS is trained for a few dozen steps on generated scenes, from random weights, so that its norms
have statistics of their own. Of this run: the pyramid before and after folding, how many of its batch norms folded, what the
trainer measured against what `load_predictor` (folded) and the unfolded weights give on the same images, and the check of
the ONNX and OpenVINO files against the detector.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from verdict import RESULTS, Claim, at_most, conclude

from flyspeck import load_predictor
from flyspeck.data.bands import PixelRule
from flyspeck.data.readers import read_annotations
from flyspeck.data.scenes.dataset import write_scenes
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.export.package import export_model
from flyspeck.export.proof import ExportOptions
from flyspeck.models.detector import Detector
from flyspeck.models.fold import fold_norms, probe_images, relative_difference
from flyspeck.train.build import load_detector
from flyspeck.train.config import parse_recipe
from flyspeck.train.measure import measure, metrics_of
from flyspeck.train.run import train
from flyspeck.train.viewing import Viewing

NAMES = (
    "mobilenetv3_small_100", "efficientnet_b0", "mobilenetv4_conv_small", "convnext_atto", "resnet26d", "pvt_v2_b0"
)  # fmt: skip
SIDE = 128


def recipe_of(name: str, scenes: Path, epochs: int) -> dict[str, Any]:
    """A small FCOS on a timm backbone; everything learns."""
    return {
        "data": {"train": str(scenes / "train"), "val": str(scenes / "val")},
        "model": {
            "name": f"fcos:timm/{name}",
            "channels": 32,
            "levels": "2-5",
            "norm": "bn",
            "head": {"depth": 1, "reach": 0.5, "quality": "iou"},
            "min_score": 0.02,
            "max_detections": 100,
            "freeze_norms": False,
        },
        "train": {
            "epochs": epochs,
            "batch_size": 4,
            "optimizer": "adamw",
            "lr": 0.003,
            "weight_decay": 1e-4,
            "warmup_steps": 10,
            "schedule": "step",
            "clip_grad": 35.0,
            "ema": None,
            "workers": 0,
            "eval_every": epochs,
        },
        "evaluate": {"batch_size": 4},
    }


def measured(name: str, scenes: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """All metrics of one model."""
    run, recipe = folder / name, parse_recipe(recipe_of(name, scenes, epochs))
    trainers = train(recipe, run)
    annotations = read_annotations(scenes / "val")
    protocol = recipe.evaluate.protocol
    detector = load_detector(run)
    unfolded = measure(
        detector,
        annotations,
        protocol=protocol,
        viewing=Viewing(rule=PixelRule(channels=3), batch_size=4),
        accelerator=Accelerator(cpu=True),
    ).metrics
    predictor = load_predictor(run, score_threshold=recipe.model.min_score)
    found = predictor.predict([annotations.path(i) for i in range(len(annotations))])
    named = [replace(one, image_id=i) for one, i in zip(found, annotations.image_ids.tolist(), strict=True)]
    folded = metrics_of(evaluate(annotations, DetectionTable.from_list(named, annotations), protocol))
    parity = {}
    for form, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
        exported = export_model(run, folder / f"{name}{suffix}", ExportOptions(format=form), say=lambda _: None)
        parity[form] = exported.difference.to_dict()
    return {
        "model": name,
        **folding_of(detector),
        "detections": sum(len(one) for one in found),
        "ap50_trainer": trainers["ap50_all"],
        "ap_trainer": trainers["ap_all"],
        "largest_difference_unfolded": largest(trainers, unfolded),
        "largest_difference_folded": largest(trainers, folded),
        "parity": parity,
    }


def folding_of(detector: Detector) -> dict[str, Any]:
    """The pyramid before and after folding, on an image of another size than the proof's, and how many norms folded."""
    proof, other = probe_images(3, 128), probe_images(3, SIDE)
    parts = (detector.backbone, detector.neck)  # what makes the pyramid
    norms = [module for part in parts for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        before = detector.pyramid(other)
        folding = fold_norms(detector, lambda: detector.pyramid(proof))
        after = detector.pyramid(other)
    return {
        "batch_norms": len(norms),
        "folded": len(folding.folded),
        "kept": folding.kept,
        "pyramid_difference": max(relative_difference(a, b) for a, b in zip(after, before, strict=True)),
    }


def largest(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference of any metric."""
    return max(abs(other[key] - value) for key, value in one.items())


def claims_of(row: dict[str, Any]) -> list[Claim]:
    """The verdicts on one model."""
    name = row["model"]
    ties = [p["ties"] + p["unmatched"] for p in row["parity"].values()]
    return [
        Claim(
            f"{name}: all batch norms fold",
            f"{row['folded']} of {row['batch_norms']}",
            row["folded"] == row["batch_norms"] and not row["kept"],
        ),
        at_most(f"{name}: pyramid after folding, relative difference", row["pyramid_difference"], 1e-4),
        Claim(f"{name}: something is found", f"AP50 {row['ap50_trainer']:.4f}", row["ap50_trainer"] > 0),
        at_most(f"{name}: unfolded, any metric against the trainer's", row["largest_difference_unfolded"], 1e-6),
        at_most(f"{name}: load_predictor, any metric against the trainer's", row["largest_difference_folded"], 1e-6),
        at_most(f"{name}: boxes of ONNX and OpenVINO that differ", sum(ties), 0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "timm_backbones.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scenes = Path(folder) / "scenes"
        for part, number, seed in (("train", 48, 1), ("val", 12, 2)):
            write_scenes(scenes / part, num_images=number, seed=seed, workers=1, height=SIDE, width=SIDE, density=3.0)
        for name in asked.names:
            rows.append(measured(name, scenes, Path(folder), asked.epochs))
            print(rows[-1], flush=True)
    metrics = {"torch": torch.__version__, "image": [SIDE, SIDE], "epochs": asked.epochs, "rows": rows}
    conclude(metrics, [claim for row in rows for claim in claims_of(row)], asked.out)


if __name__ == "__main__":
    main()
