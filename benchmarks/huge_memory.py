"""Peak memory and time on giant rasters: `python benchmarks/huge_memory.py RUN`.

Tiled GeoTIFFs are generated from repeated scenes (`--folder` keeps them) and predicted to COCO and GeoPackage, each in a
process of its own: 12000x9000 and 24000x18000 by RUN's detector, its score threshold set so that a megapixel gives `--boxes`
boxes; then 20000x15000 and 40000x30000 by a detector of bright spots that needs no training, so that reading, merging and
writing are what counts. Reported: resident memory after import and model load, the peak beyond it while predicting (read every
20 ms), the process's own high-water mark, and seconds a megapixel. Last, a merge of a million boxes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from verdict import RESULTS, Claim, at_most, conclude

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


def network_spots(model: Any, path: Path, tile: tuple[int, int], boxes: float) -> float:
    """The score from which the tiles along the raster's first rows give `boxes` a megapixel."""
    import rasterio

    scores, pixels = [], 0
    with rasterio.open(path) as file:
        for x in range(0, min(file.width, 16 * tile[1]) - tile[1], 2 * tile[1]):
            window = np.moveaxis(file.read(window=((0, tile[0]), (x, x + tile[1]))), 0, 2)
            scores.append(model([window])[0].scores)
            pixels += tile[0] * tile[1]
    ranked = np.sort(np.concatenate(scores))[::-1]
    return float(ranked[min(len(ranked) - 1, round(boxes * pixels / 1e6))])


def predict_one(asked: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Metrics of one raster, in this process."""
    tile = tuple(int(v) for v in asked.tile.split("x"))
    model, classes, score = bright_spots, ("spot",), 0.0
    if not asked.spots:
        import torch

        from flyspeck.infer.torch_model import TorchModel
        from flyspeck.train.build import load_detector

        torch.set_num_threads(asked.threads)
        model = TorchModel(load_detector(asked.run), device="cpu")
        classes, score = model.classes, network_spots(model, path, tile, asked.boxes)
    import rasterio  # noqa: F401 - loaded before the base is taken, as the model is

    predictor = Predictor(
        model, tile=tile, overlap=asked.overlap, batch_size=asked.batch_size, score_threshold=score, readers=1
    )
    with tempfile.TemporaryDirectory() as folder:
        journal = TileJournal(Path(folder) / "tiles", {}, fresh=True)
        writers = open_writers(Path(folder), ("coco", "gpkg"), classes=classes)
        base, start = resident_mb(), time.perf_counter()
        cpu = time.process_time()
        with Watch() as watch:
            (result,) = predictor.stream([Item("huge.tif", path, 1)], journal=journal)
            for writer in writers:
                writer.add(result)
                writer.close()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        journal.close()
    pixels = result.detections.image_size[0] * result.detections.image_size[1] / 1e6
    return {
        "detector": "bright spots" if asked.spots else asked.run.name,
        "megapixels": pixels,
        "tiles": result.num_tiles,
        "boxes": len(result.detections),
        "base_mb": round(base),
        "peak_beyond_base_mb": round(watch.peak - base),
        "high_water_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_ms_per_megapixel": round(1000 * cpu / pixels, 3),
    }


def claims_of(rows: dict[str, dict[str, Any]], merged: dict[str, Any]) -> list[Claim]:
    """The verdicts on what was run."""
    claims = []
    for name in ("12000x9000", "24000x18000"):
        if name in rows:
            what = f"{name}, {rows[name]['boxes']} boxes: the peak beyond import and model load stays under 400 MB"
            claims.append(at_most(what, rows[name]["peak_beyond_base_mb"], 400, " MB"))
    if "40000x30000" in rows:
        what = f"40000x30000, {rows['40000x30000']['boxes']} boxes: the whole process stays under 2 GB"
        claims.append(at_most(what, rows["40000x30000"]["high_water_mb"], 2000, " MB"))
    for small, large in (("12000x9000", "24000x18000"), ("20000x15000", "40000x30000")):
        if small in rows and large in rows:
            ratio = rows[large]["cpu_ms_per_megapixel"] / rows[small]["cpu_ms_per_megapixel"]
            what = f"time is linear in the area: a megapixel of {large} costs no more than 1.1 of one of {small}"
            claims.append(at_most(what, ratio, 1.1, "x"))
    claims.append(at_most(f"a merge of {merged['boxes']} boxes takes under 10 s", merged["seconds"], 10, " s"))
    return claims


def merge_a_million(count: int) -> dict[str, Any]:
    """Seconds of the default merge of that many boxes, read as `benchmarks/merge.py` makes them."""
    from merge import reported

    from flyspeck.infer.merge import merge

    found, tiles, owner = reported(count)
    start = time.perf_counter()
    kept = merge(found, tiles=tiles, tile_index=owner)
    return {"boxes": len(found), "kept": len(kept), "seconds": round(time.perf_counter() - start, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--sizes", default="12000x9000,24000x18000", help="width x height, by RUN's detector")
    parser.add_argument("--spot-sizes", default="20000x15000,40000x30000", help="by the detector of bright spots")
    parser.add_argument("--boxes", type=float, default=180, help="a megapixel; 180 are 19,500 on 12000x9000")
    parser.add_argument("--merge-boxes", type=int, default=1_000_000)
    parser.add_argument("--tile", default="512x640")
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the rasters lie, or are to lie")
    parser.add_argument("--out", type=Path, default=RESULTS / "huge_memory.json")
    parser.add_argument("--spots", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(predict_one(asked, asked.one)))
        return
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        for sizes, extra in ((asked.sizes, []), (asked.spot_sizes, ["--spots"])):
            for size in filter(None, sizes.split(",")):
                path = folder / f"huge-{size}.tif"
                if not path.is_file():
                    width, height = (int(v) for v in size.split("x"))
                    write_raster(path, width, height)
                call = [sys.executable, __file__, *sys.argv[1:], *extra, "--one", str(path)]
                done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
                rows[size] = json.loads(done.stdout.splitlines()[-1])
                print(f"{size}:", "  ".join(f"{key} {value}" for key, value in rows[size].items()), flush=True)
    merged = merge_a_million(asked.merge_boxes)
    metrics = {"tile": asked.tile, "overlap": asked.overlap, "threads": asked.threads, "rasters": rows, "merge": merged}
    conclude(metrics, claims_of(rows, merged), asked.out)


if __name__ == "__main__":
    main()
