"""flyspeck's RoIAlign against torchvision's on the CPU, same maps and regions, in turn: `python benchmarks/roi_align.py`.

Each case has 1024 regions over four levels of the pyramid, most on the finest, with sides of at most `--side` cells there. A
pair is both kernels after one another, forward with gradient and backward apart; a ratio is the median over the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flyspeck.models.roi_align import pyramid_roi_align, torchvision_roi_align

CASES = [(64, 64, 80), (256, 64, 80), (256, 128, 160)]
"""Channels, height and width of the finest map: images of 256x320 and of 512x640 at stride 4."""


def by_torchvision(
    maps: list[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool
) -> Tensor:
    """Level by level, as torchvision's own pooler does."""
    pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], output, output)
    for i, cells in enumerate(maps):
        rows = torch.nonzero(level == i).squeeze(1)
        pooled[rows] = torchvision_roi_align(cells, regions[rows], output, sampling, aligned)
    return pooled


def seconds(pool: Callable[..., Tensor], maps: list[Tensor], regions: Tensor, level: Tensor) -> tuple[float, float]:
    """Of one forward and one backward."""
    own = [m.detach().requires_grad_() for m in maps]
    start = time.perf_counter()
    pooled = pool(own, regions, level, 7, 2, True).flatten(1)
    middle = time.perf_counter()
    torch.autograd.grad(pooled, own, torch.ones_like(pooled), allow_unused=True)
    return middle - start, time.perf_counter() - middle


def measure(channels: int, height: int, width: int, batch: int, side: float, runs: int) -> dict[str, float | str]:
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.rand(batch, channels, height >> k, width >> k, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for k in range(4)
    ]
    count = 1024
    middle = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    half = (torch.rand(count, 2, generator=generator) * side).clamp(min=0.5) / 2
    level = (torch.rand(count, generator=generator) ** 4 * 4).long()
    corners = torch.cat([middle - half, middle + half], 1) / (2**level)[:, None]
    regions = torch.cat([torch.randint(0, batch, (count, 1), generator=generator), corners], 1)
    ours, theirs = [], []
    for run in range(runs + 1):
        pair = (
            seconds(pyramid_roi_align, maps, regions, level),
            seconds(by_torchvision, maps, regions, level),
        )
        if run:
            ours.append(pair[0])
            theirs.append(pair[1])
    row: dict[str, float | str] = {"maps": f"{batch}x{channels}x{height}x{width}", "side": side}
    for i, name in enumerate(("forward", "backward")):
        row[f"{name}_ms"] = round(1000 * statistics.median(o[i] for o in ours), 1)
        row[f"{name}_torchvision_ms"] = round(1000 * statistics.median(t[i] for t in theirs), 1)
        row[f"{name}_times_faster"] = round(
            statistics.median(t[i] / o[i] for o, t in zip(ours, theirs, strict=True)), 2
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=float, nargs="+", default=[6.0, 40.0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for case in CASES:
        for side in options.side:
            rows.append(measure(*case, options.batch, side, options.runs))
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
