"""DOTA 1.0: `train/` and `val/`, each `images/` and `labelTxt/`.

Real in it: labels with both header lines, with one that says `null` and with none; rotated boxes; objects marked difficult; an
image without an object; and images larger than a tile. Either part has all 15 classes.
"""

from __future__ import annotations

from pathlib import Path

from fakes.drawing import write_image, write_text

CLASSES = (
    "plane baseball-diamond bridge ground-track-field small-vehicle large-vehicle ship tennis-court basketball-court "
    "storage-tank soccer-ball-field roundabout harbor swimming-pool helicopter"
)
ALL = [
    f"{x} {y} {x + 10} {y} {x + 10} {y + 8} {x} {y + 8} {name} 0"
    for name, x, y in ((name, 10 + 22 * (row % 5), 10 + 22 * (row // 5)) for row, name in enumerate(CLASSES.split()))
]
"""An object of each class, in an image of 120x80."""
HEADERS = ("imagesource:GoogleEarth", "gsd:0.146343590398")
TRAIN = {
    "P0000": ((1100, 100), HEADERS, ["8 8 16 8 16 20 8 20 plane 0", "1020.0 50.0 1030.0 44.0 1036.0 54.0 1026.0 60.0 ship 0"]),
    "P0001": ((128, 96), (), ["30 30 44 30 44 40 30 40 small-vehicle 0", "60.5 60.0 70.5 60.0 70.5 68.0 60.5 68.0 plane 1"]),
    "P0002": ((96, 128), ("imagesource:null", "gsd:null"), ["20 90 32 84 36 92 24 98 small-vehicle 0"]),
    "P0005": ((120, 120), HEADERS, []),
    "P0008": ((120, 80), (), ALL),
}  # fmt: skip
VAL = {
    "P0003": ((1060, 90), HEADERS, ["8 8 16 8 16 20 8 20 plane 0", "1000 50 1040 50 1040 66 1000 66 plane 0"]),
    "P0004": ((128, 96), (), ["30 30 44 30 44 40 30 40 small-vehicle 0", "60 60 70 60 70 68 60 68 ship 1"]),
    "P0007": ((120, 80), HEADERS, ALL),
}


def write(root: Path) -> None:
    """Writes the folders below `root`."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        for name, (size, headers, lines) in images.items():
            corners = [[float(word) for word in line.split()[:8]] for line in lines]
            boxes = [
                (min(c[::2]), min(c[1::2]), max(c[::2]) - min(c[::2]), max(c[1::2]) - min(c[1::2])) for c in corners
            ]
            write_image(root / split / f"images/{name}.png", *size, boxes)
            write_text(root / split / f"labelTxt/{name}.txt", "".join(f"{line}\n" for line in (*headers, *lines)))
