"""What an evaluation takes of memory, as the operating system counts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is counted in other units elsewhere"),
]

DETECT = """
import json, resource, sys
import torch
from accelerate import Accelerator
from flyspeck.data.bands import PixelRule
from flyspeck.data.readers import read_annotations
from flyspeck.train.build import build_detector
from flyspeck.train.config import parse_recipe
from flyspeck.train.detecting import detect_all
from flyspeck.train.viewing import viewing_of

torch.set_num_threads(1)
evaluate, sizes = json.loads(sys.argv[2]), []
recipe = parse_recipe({
    "data": {"train": "-", "val": "-"},
    "model": {"name": "retinanet:mobilenet_v2", "width": 0.25, "channels": 16, "norm": "bn", "head": {"depth": 1}},
    "evaluate": evaluate,
})
detector = build_detector(recipe.model, classes=["a"], mean=[0.5], std=[0.2]).to(memory_format=torch.channels_last)
description = {"training_size": [256, 320], "object_side_99": 12.0, "enlarge": {"factor": float(sys.argv[3])}}
viewing = viewing_of(recipe, description, detector, PixelRule(channels=1))
for name in ("small", "large"):
    table = read_annotations(f"{sys.argv[1]}/{name}.json")
    detect_all(detector, table, viewing=viewing, accelerator=Accelerator(cpu=True))
    sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(sizes))
"""


def beyond(folder: Path, sizes: list[tuple[int, int]], *, evaluate: dict[str, object], enlarge: float = 1.0) -> float:
    """MB that grey images of these sizes (H, W) add to the peak of a process that has looked at one of 64x64."""
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (500, 500), np.uint8)
    for name, those in (("small", [(64, 64)]), ("large", sizes)):
        images = []
        for number, (height, width) in enumerate(those, 1):
            file_name = f"{name}{number}.jpg"
            pixels = np.tile(patch, (-(-height // 500), -(-width // 500)))[:height, :width]
            Image.fromarray(pixels).save(folder / file_name)
            images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    call = [sys.executable, "-c", DETECT, str(folder), json.dumps(evaluate), str(enlarge)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = json.loads(done.stdout.splitlines()[-1])
    return after - before


def test_an_image_of_a_hundred_megapixels_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    assert beyond(tmp_path, [(10_000, 10_000)], evaluate={"tile": [512, 640]}) < 1000


def test_images_of_different_sizes_at_twice_their_size_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    """Seven small ones and one of 2160x3836: padded to one batch they were 265 megapixels."""
    assert beyond(tmp_path, [*[(512, 640)] * 7, (2160, 3836)], evaluate={}, enlarge=2.0) < 1000


def test_whole_images_take_what_they_take(tmp_path: Path) -> None:
    """The other tests could fail: without tiles, 16 megapixels take more than they do in tiles."""
    whole = beyond(tmp_path, [(4000, 4000)], evaluate={"tile": "off"})
    assert whole > 2 * beyond(tmp_path, [(4000, 4000)], evaluate={"tile": [512, 640]})
