"""What `flyspeck-lab gpu` does, in the order of value, and how long each part should take on the device that is there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flyspeck.plain_yaml import read_yaml
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck_lab.gpu_data import PARTS, REPOSITORY, base_weights

TEST_MINUTES, RUNTIME_MINUTES, BASE_MINUTES = 2.5, 1.0, 4.0
"""At most for the tests, about for the runtimes of a thousand images each, and by the clock for the base weights."""
SHARE = 0.3
"""Of the device's rate in one large convolution, what a whole training step comes to: a guess; the first real run corrects it."""
HOSTS: dict[str, dict[str, Any]] = {
    "resnet50": {"name": "faster_rcnn:resnet50"},
    "bh_resnet50": {"name": "faster_rcnn:bh_resnet50"},
    "resnet50-s-alpha": {"name": "faster_rcnn:resnet50", "fusion": "statistic"},
}
"""Changes of `model` from `benchmarks/recipes/full.yaml`: what papers 002 and 003 compare, from random weights."""
SETS: dict[str, dict[str, Any]] = {
    "hituav_half": {
        "data": {"classes": ["Person", "Car", "Bicycle"], "channels": 1},
        "augment": {"crop": [256, 320]},
        "train": {"epochs": 12},
    },
    "nuclei": {"data": {"classes": None, "channels": 3}, "augment": {"crop": [256, 256]}, "train": {"epochs": 24}},
}
"""Changes for each set; the epochs are those that some minutes of one GPU allow."""


@dataclass(frozen=True)
class Training:
    """A training that goes on from its checkpoint."""

    name: str
    content: Mapping[str, Any]
    """The recipe's mapping; its data below the folder of the unpacked sets."""
    images: int
    """Of the training set."""
    val_images: int
    small: bool = False
    """Whether its checkpoint is small enough to be taken along."""

    def recipe(self, data: Path) -> Recipe:
        """The recipe with the paths of this machine."""
        content = deepcopy(dict(self.content))
        for part in ("train", "val"):
            content["data"][part] = str((data / content["data"][part]).resolve())
        return parse_recipe(content, where=self.name)

    @property
    def minutes(self) -> float | None:
        """By the clock; None where epochs are counted."""
        return self.content["train"].get("minutes")

    @cached_property
    def macs(self) -> float:
        """Multiply-adds of one image of the training size."""
        from flyspeck.models.profile import profile
        from flyspeck.train.build import build_detector

        recipe = parse_recipe(
            {**self.content, "data": {**self.content["data"], "train": "t", "val": "v"}}, where=self.name
        )
        model = recipe.model.model_copy(update={"fusion": None})  # counted from the data, at no cost
        with torch.device("meta"):
            detector = build_detector(model, classes=["a"] * 3, mean=[0.5], std=[0.5], load=False)
        size = recipe.augment.crop or (256, 320)
        return 1e9 * profile(detector, size, convention="macs").gflops

    def expected(self, rate: float) -> tuple[float, float]:
        """Images a second and minutes at a device of `rate` multiply-adds a second; a backward pass counts as two forward."""
        speed = SHARE * rate / (3 * self.macs)
        if self.minutes is not None:
            return speed, self.minutes
        seen = self.images * self.content["train"]["epochs"]
        return speed, (seen / speed + self.val_images / (3 * speed) + 10) / 60


def trainings(data: Path, *, steps: int | None = None) -> list[Training]:
    """The base weights, then the hosts, on the unpacked (or packed) sets in `data`.

    With `steps`, a trial: about so many steps of two images of narrow networks.
    """
    counts = {part.stem: _images(data / "base" / part.name) for part in (Path("train.json"), Path("val.json"))}
    recipe = base_weights().recipe_of(Path("base"), "speck:specknet_s", BASE_MINUTES, 0, small=False)
    recipe["data"] |= {"cache": "ram"}
    recipe["train"] |= {"workers": None, "log_every": 20}
    found = [Training("base", recipe, counts["train"], min(counts["val"], recipe["data"]["val_limit"]), small=True)]
    full, _ = read_yaml(REPOSITORY / "benchmarks" / "recipes" / "full.yaml")
    for set_name, (train, val) in PARTS.items():
        number, val_number = _images(data / set_name / train), _images(data / set_name / val)
        for host, model in HOSTS.items():
            content = deepcopy(full)
            for section, changes in {**SETS[set_name], "model": model}.items():
                content[section] |= changes
            content["data"] |= {"train": f"{set_name}/{train}", "val": f"{set_name}/{val}"}
            content["train"] |= {"eval_every": content["train"]["epochs"], "log_every": 10, "warmup_steps": 150}
            content["name"] = f"{set_name}-{host}"
            found.append(Training(content["name"], content, number, val_number))
    return found if steps is None else [_trial(one, steps) for one in found]


def _trial(training: Training, steps: int) -> Training:
    """The same, of at least `steps` steps of two images."""
    content = deepcopy(dict(training.content))
    number = min(2 * steps, training.images)
    epochs = -(-2 * steps // number)
    content["train"].pop("minutes", None)
    content["train"] |= {"epochs": epochs, "eval_every": epochs, "batch_size": 2, "workers": 0, "log_every": 1}
    content["data"] |= {"train_limit": number, "val_limit": 4}
    content["model"] |= {"width": 0.25, "channels": 16}
    return Training(training.name, content, number, 4, training.small)


def _images(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8"))["images"])


def device_rate(device: torch.device, *, seconds: float = 1.0) -> float:
    """Multiply-adds a second of one large convolution in bfloat16 on `device`."""
    on_gpu = device.type == "cuda"
    images, height, width, channels = (32, 64, 80, 256) if on_gpu else (1, 64, 80, 128)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(images, channels, height, width, device=device).to(memory_format=torch.channels_last)
    count, begun = -3, 0.0
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        while count < 1 or time.perf_counter() - begun < seconds:
            if count == 0:
                begun = time.perf_counter()
            layer(x)
            if on_gpu:
                torch.cuda.synchronize(device)
            count += 1
    return count * images * height * width * channels * channels * 9 / (time.perf_counter() - begun)
