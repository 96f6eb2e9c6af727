"""VisDrone-DET: the folders `VisDrone2019-DET-train` and `-val` (and `-test-dev`), each `images/` and `annotations/`.

Real in it: ignored regions (class 0, score 0), `others` (class 11), a class that the validation set lacks, a box without height
(the training set has them), a line that ends in a comma, and images of several sizes.
"""

from __future__ import annotations

from pathlib import Path

from fakes.drawing import write_image, write_text

TRAIN = {
    "0000002_00005_d_0000014": ((136, 96), ["8,8,8,12,1,4,0,0", "60,40,9,7,1,1,0,1", "90,60,30,20,0,0,0,0"]),
    "0000002_00448_d_0000015": ((120, 90), ["20,30,6,10,1,2,0,0", "70,20,14,9,1,11,0,0", "50,50,12,0,1,4,0,0"]),
    "9999999_00590_d_0000276": ((96, 72), ["30,30,10,10,1,10,0,2,"]),
    "0000007_04999_d_0000036": ((96, 72), ["10,12,14,10,1,9,1,0", "40,44,12,12,1,4,0,0", "60,10,5,5,1,1,0,0"]),
}
VAL = {
    "0000001_02999_d_0000005": ((136, 96), ["8,8,8,12,1,4,0,0", "60,40,9,7,1,1,0,1", "90,60,30,20,0,0,0,0"]),
    "0000026_01000_d_0000026": ((120, 90), ["20,30,6,10,1,10,0,0", "70,20,14,9,1,11,0,0"]),
}


def write(root: Path) -> None:
    """Writes the folders below `root`."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        folder = root / f"VisDrone2019-DET-{split}"
        for name, (size, lines) in images.items():
            boxes = [[float(word) for word in line.split(",")[:4]] for line in lines]
            write_image(folder / f"images/{name}.jpg", *size, boxes)
            write_text(folder / f"annotations/{name}.txt", "\n".join(lines) + "\n")
