"""Peak memory and time on giant rasters: `python benchmarks/huge_memory.py RUN --size 12000x9000`, then with twice the sides.

A tiled GeoTIFF of that width and height is generated from repeated scenes (once; --keep names it), then predicted to the
result files by this process. What is reported: resident memory after import and model load, the peak beyond it while
predicting, read every 20 ms, the process's own high-water mark, seconds for each megapixel, and boxes. `--limit` ends with an
error when the peak beyond model load is over it. `--spots` takes a train-free detector of bright spots in place of RUN's.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.scenes import generate_scene
from flyspeck.infer.outputs import open_writers
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.source import Item
from flyspeck.types import Detections


def write_raster(path: Path, width: int, height: int, *, block: int = 512) -> None:
    """A tiled, deflated GeoTIFF of 1024 px scenes, written strip by strip; neighbours are turned copies of eight."""
    import rasterio

    scenes = [generate_scene(seed, height=1024, width=1024).pixels for seed in range(8)]
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "deflate",
        "zlevel": 1,
        "bigtiff": "if_safer",
        "crs": "EPSG:32617",
        "transform": rasterio.Affine(0.1, 0, 400_000, 0, -0.1, 3_280_000),
    }
    with rasterio.open(path, "w", **settings) as file:
        for y in range(0, height, 1024):
            rows = [np.rot90(scenes[int(rng.integers(8))], int(rng.integers(4))) for _ in range(0, width, 1024)]
            strip = np.concatenate(rows, axis=1)[: height - y, :width]
            file.write(np.moveaxis(strip, 2, 0), window=((y, y + len(strip)), (0, width)))


def bright_spots(windows: list[np.ndarray]) -> list[Detections]:
    """Pixels far above their tile's median, one box a cell of 8 px: no network, so that reading and merging are what is timed."""
    out = []
    for window in windows:
        grey = window.max(axis=2).astype(np.int16)
        y, x = np.nonzero(grey > np.median(grey) + 110)
        cell, first = np.unique(np.stack([y // 8, x // 8]), axis=1, return_index=True)
        corner = cell[::-1].T * 8.0
        boxes = np.concatenate([corner, corner + 8], axis=1)
        scores = grey[y[first], x[first]] / 255
        out.append(Detections(boxes, scores, np.zeros(len(boxes)), (window.shape[0], window.shape[1]), ("spot",)))
    return out


def resident_mb() -> float:
    """Resident memory of this process; Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Watch:
    """The highest resident memory seen while it runs."""

    def __init__(self) -> None:
        self.peak, self._stop = resident_mb(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, resident_mb())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="a run folder; left out with --spots")
    parser.add_argument("--size", default="12000x9000", help="width x height")
    parser.add_argument("--spots", action="store_true")
    parser.add_argument("--tile", default="512x640")
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="where the raster lies, or is to lie")
    parser.add_argument("--limit", type=float, default=0, help="MB beyond model load")
    parser.add_argument("--out", type=Path, default=None, help="json for the figures")
    asked = parser.parse_args()
    width, height = (int(v) for v in asked.size.split("x"))
    tile = tuple(int(v) for v in asked.tile.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        path = asked.keep or Path(folder) / "huge.tif"
        if not path.is_file():
            start = time.perf_counter()
            write_raster(path, width, height)
            print(
                f"{path.name}: {width}x{height}, {path.stat().st_size / 1e6:.0f} MB, {time.perf_counter() - start:.0f} s to make"
            )
        model: Any = bright_spots
        classes = ("spot",)
        if not asked.spots:
            import torch

            from flyspeck.infer.torch_model import TorchModel
            from flyspeck.train.build import load_detector

            if asked.threads:
                torch.set_num_threads(asked.threads)
            model = TorchModel(load_detector(asked.run))
            classes = model.classes
        import rasterio  # noqa: F401 - loaded before the base is taken, as the model is

        predictor = Predictor(
            model, tile=(tile[0], tile[1]), overlap=asked.overlap, batch_size=asked.batch_size, readers=asked.readers
        )
        journal = TileJournal(Path(folder) / "tiles", {}, fresh=True)
        writers = open_writers(Path(folder), ("coco", "gpkg"), classes=classes)
        base, start = resident_mb(), time.perf_counter()
        with Watch() as watch:
            (result,) = predictor.stream([Item("huge.tif", path, 1)], journal=journal)
            for writer in writers:
                writer.add(result)
                writer.close()
        seconds = time.perf_counter() - start
        journal.close()
    pixels = result.detections.image_size[0] * result.detections.image_size[1] / 1e6
    figures = {
        "megapixels": pixels,
        "tiles": result.num_tiles,
        "boxes": len(result.detections),
        "base_mb": round(base),
        "peak_beyond_base_mb": round(watch.peak - base),
        "high_water_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(seconds, 1),
        "seconds_per_megapixel": round(seconds / pixels, 4),
        "machine": platform.processor() or platform.machine(),
    }
    print("  ".join(f"{key} {value}" for key, value in figures.items()))
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=1))
    if asked.limit and watch.peak - base > asked.limit:
        raise SystemExit(f"the peak is over the limit of {asked.limit:.0f} MB")


if __name__ == "__main__":
    main()
