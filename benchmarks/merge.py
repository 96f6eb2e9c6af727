"""How long the merge takes as the number of boxes grows: run `python benchmarks/merge.py`.

The image's area grows with the number of boxes (1200 px² a box: 40,000 x 30,000 for a million), tiles are 640 px with an
overlap of 64, objects 4 to 32 px with a few large ones, every tile reports each object it sees, parts included, with jitter.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time

import numpy as np

from flyspeck.infer import tiles as tiling
from flyspeck.infer.merge import METHODS, MergeRule, merge
from flyspeck.types import Detections


def reported(count: int, seed: int = 0) -> tuple[Detections, np.ndarray, np.ndarray]:
    """About `count` boxes that the tiles of one image report."""
    rng = np.random.default_rng(seed)
    height = round((count * 1200 * 0.75) ** 0.5)
    width = height * 4 // 3
    tiles = tiling.grid((height, width), (640, 640), 64)
    n = int(count / 1.24)
    side = np.exp(rng.uniform(np.log(4), np.log(32), (n, 2)))
    side[rng.random(n) < 0.001] *= 10
    corner = rng.uniform(0, 1, (n, 2)) * (width, height)
    objects = np.concatenate([corner, np.minimum(corner + side, (width, height))], axis=1)
    kinds = rng.integers(0, 3, n)
    x, y = np.unique(tiles[:, 0]), np.unique(tiles[:, 1])
    parts = []
    for row in range(len(y)):
        for column in range(len(x)):
            frame = tiles[row * len(x) + column]
            parts.append((row * len(x) + column, frame))
    by_x = np.argsort(objects[:, 0])
    sorted_x = objects[by_x, 0]
    boxes, own, which = [], [], []
    for index, (x1, y1, x2, y2) in parts:
        near = by_x[np.searchsorted(sorted_x, x1 - 320) : np.searchsorted(sorted_x, x2)]
        seen = np.concatenate(
            [np.maximum(objects[near, :2], (x1, y1)), np.minimum(objects[near, 2:], (x2, y2))], axis=1
        )
        hit = ((seen[:, 2:] - seen[:, :2]) > 1).all(axis=1)
        boxes.append(seen[hit])
        which.append(near[hit])
        own.append(np.full(hit.sum(), index))
    array = np.concatenate(boxes)
    array = (array + rng.normal(0, 0.3, array.shape)).astype(np.float32)
    owner = np.concatenate(own)
    cut = tiling.is_cut(array, tiles[owner], (height, width))
    scores = rng.beta(2, 2, len(array)).astype(np.float32)
    found = Detections(array, scores, kinds[np.concatenate(which)], (height, width), extra={"cut": cut})
    return found, tiles, owner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    print(f"python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}")
    print(
        f"{'boxes':>9} {'method':>9} {'between tiles: s':>17} {'kept':>9} {'all pairs: s':>13} {'kept':>9} {'peak MiB':>9}"
    )
    for count in options.counts:
        found, tiles, owner = reported(count)
        for method in options.methods:
            rule, every = MergeRule(method=method), MergeRule(method=method, within_tile=True)
            start = time.perf_counter()
            kept = merge(found, tiles=tiles, tile_index=owner, rule=rule)
            middle = time.perf_counter()
            kept_all = merge(found, rule=every)
            end = time.perf_counter()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            print(
                f"{len(found):>9} {method:>9} {middle - start:>17.2f} {len(kept):>9} {end - middle:>13.2f} "
                f"{len(kept_all):>9} {peak:>9}"
            )


if __name__ == "__main__":
    main()
