"""What is crashed: every verb as it is begun, as it goes on, and what must be the same whatever happened between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from small_training import base_recipe


@dataclass(frozen=True)
class Job:
    """A verb, as it is begun and as it goes on."""

    begin: Callable[[Path], object]
    go_on: Callable[[Path], object]
    """In a folder in which it was broken off; ends it."""
    results: Callable[[Path], dict[str, object]]
    """What must be the same, whatever happened."""
    whole: Callable[[Path], object] = lambda folder: None
    """Checks that no result is half there, right after the crash."""
    prepare: Callable[[Path], object] = lambda folder: None
    """Makes what it begins with."""


QUICK: dict[str, Any] = {"name": "fcos:few_layers", "channels": 8, "norm": "bn", "head": {"depth": 1}, "levels": "3-4"}
"""The network of long work: of a crash at every operation, most of the time is the work itself, begun and ended again."""


def few_layers(*, width: float = 1.0, weights: object = None) -> Any:
    """A backbone of three convolutions: however large a network, its files are the same and written in the same way."""
    from torch import nn

    from flyspeck.models.backbones.staged import StagedBackbone
    from flyspeck.types import FeatureSpec

    def block(inputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, 8, 3, stride, 1), nn.BatchNorm2d(8), nn.ReLU())

    stages = {"stem": block(3, 4), "stage1": block(8, 2), "stage2": block(8, 2)}
    specs = {"stage1": FeatureSpec(8, 8), "stage2": FeatureSpec(8, 16)}
    return StagedBackbone(stages, specs, outputs=("stage1", "stage2"))


def plain_recipe(squares: Path, model: Mapping[str, Any] | None = None, **train: Any) -> Any:
    """Four steps, one checkpoint in the middle of an epoch, of a network that is quickly saved."""
    from flyspeck.train.config import parse_recipe

    recipe = base_recipe()
    recipe["data"] |= {"train": str(squares / "train.json"), "val": str(squares / "val.json")}
    recipe["train"] |= {"epochs": 2, "eval_every": 1, "log_every": 1, "checkpoint_every": 3, "ema": 0.9, **train}
    small = {"name": "fcos:bh_resnet14", "width": 0.125, "channels": 8, "norm": "bn", "head": {"depth": 1}}
    recipe["model"] = small if model is None else model
    recipe["name"] = "crash"
    return parse_recipe(recipe)


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """`QUICK` can be built, and what a network costs is not counted anew after every crash: no file has a part in that."""
    from flyspeck.models.profile import Latency, Profile
    from flyspeck.models.zoo import BACKBONES, BackboneEntry

    costs = Profile("", (48, 64), "macs", params=1, params_trainable=1, params_conv=1, gflops=1)
    monkeypatch.setitem(BACKBONES, "few_layers", BackboneEntry(few_layers, (8, 16)))
    monkeypatch.setattr("flyspeck.train.viewing.activation_bytes_per_pixel", lambda detector: 1000.0)
    monkeypatch.setattr("flyspeck.train.distill.table.profile", lambda *words, **more: costs)
    timed = Latency(1.0, 1.0, 1.0, runs=1, threads=1, device="cpu")
    monkeypatch.setattr("flyspeck.train.distill.table.measure_latency", lambda *words, **more: timed)


def parsed(folder: Path) -> None:
    """Every file that is not a log is whole: those of JSON are read, those of weights opened."""
    from flyspeck.train.checkpoint import load_state, load_weights

    for path in folder.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue  # temporary files of the process that was killed
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_weights(path)
        elif path.name == "state.pt":
            load_state(path)


def training(squares: Path, **settings: Any) -> Job:
    from flyspeck.train.run import begun, train

    recipe = plain_recipe(squares, QUICK, **settings)

    def results(folder: Path) -> dict[str, object]:
        from flyspeck.train.checkpoint import load_weights

        found: dict[str, object] = {
            name: (folder / name).read_bytes() for name in ("detections.json", "evaluation.json", "recipe.yaml")
        }
        for name in ("best.safetensors", "last.safetensors"):
            found |= {f"{name} {key}": tensor for key, tensor in load_weights(folder / name)[0].items()}
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found["log"] = [(one["kind"], one["epoch"], one.get("step"), one["losses"], one.get("metrics")) for one in log]
        return found

    return Job(
        lambda folder: bool(train(recipe, folder)),
        lambda folder: bool(train(recipe, folder, resume=begun(folder))),
        results,
        parsed,
    )


def converting(squares: Path, kind: str) -> Job:
    from flyspeck.cli.main import main

    def convert(folder: Path) -> int:
        endings = {"coco": ".json", "cvat": ".xml", "label-studio": ".json", "fiftyone": ".json"}
        out = folder / f"set{endings[kind]}" if kind in endings else folder
        return main(["data", "convert", str(squares / "train.json"), "--to", kind, "--out", str(out)])

    def results(folder: Path) -> dict[str, object]:
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(paths)}

    return Job(convert, convert, results, parsed)


def silent(_: object) -> None:
    """Nobody listens."""


def predicting(squares: Path, resume: bool) -> Job:
    from spots import Spots

    from flyspeck.infer.job_images import DrawRule, ImageJob
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.processes import Processes
    from flyspeck.infer.source import find_items

    def job(folder: Path, *, again: bool) -> int:
        items, _ = find_items([squares])
        predictor = Predictor(Spots(), tile=(32, 32), overlap=8, batch_size=2)
        done = {"resume": again and resume, "overwrite": again and not resume}
        ImageJob(
            items=items[:4], categories=None, truth=None, made_with={"a": 1}, drawing=DrawRule(images=1, score=0.5, heat=False),
            out=folder, formats=["coco", "csv", "yolo", "cvat"], classes=("spot",), say=silent, warn=silent, **done,
        ).run(predictor, Processes())  # fmt: skip
        return 0

    def results(folder: Path) -> dict[str, object]:
        names = ("detections.json", "images.json", "detections.csv", "cvat.xml")
        paths = [*(folder / name for name in names), *sorted((folder / "labels").rglob("*.txt"))]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    return Job(lambda folder: job(folder, again=False), lambda folder: job(folder, again=True), results)


def table(squares: Path) -> Job:
    from flyspeck.plan.state import FILE, open_state

    def begin(folder: Path, *, again: bool = False) -> int:
        state = open_state(folder, {"a": 1}, resume=again and (folder / FILE).is_file())
        for stage in ("one", "two", "three"):
            if stage not in state.done:
                state.keep(stage, {"value": stage})
        return 0

    def results(folder: Path) -> dict[str, object]:
        return {"done": json.loads((folder / FILE).read_text())["done"]}

    return Job(begin, lambda folder: begin(folder, again=True), results, parsed)
