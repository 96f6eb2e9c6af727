"""A data set of 16-bit TIFFs of many bands whose objects show in the last one only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_banded_set(folder: Path, name: str, num_images: int, *, bands: int, seed: int = 0) -> Path:
    """12-bit 64x48 images; squares of 6-10 px in the last band, decoys of the same look in the others; COCO json."""
    import tifffile

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, boxes = [], []
    for i in range(1, num_images + 1):
        pixels = rng.integers(400, 900, (48, 64, bands))
        for band in range(bands):
            for x in (4, 36)[: 1 + i % 2]:
                side, dx, y = int(rng.integers(6, 11)), int(rng.integers(0, 14)), int(rng.integers(0, 37))
                pixels[y : y + side, x + dx : x + dx + side, band] = 3900
                if band == bands - 1:
                    box = {
                        "image_id": i,
                        "bbox": [x + dx, y, side, side],
                        "area": side**2,
                        "category_id": 1,
                        "iscrowd": 0,
                    }
                    boxes.append(box | {"id": len(boxes) + 1})
        file = f"{name}{i}.tif"
        images.append({"id": i, "file_name": file, "width": 64, "height": 48})
        tifffile.imwrite(
            folder / file,
            pixels.astype(np.uint16),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=(0,) * (bands - 1),
        )
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"
