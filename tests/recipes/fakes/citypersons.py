"""CityPersons: `leftImg8bit/` and `gtBboxCityPersons/` side by side, a folder a city, as Cityscapes' archives unpack.

Real in it: riders, sitting people, groups and `ignore` beside pedestrians, a person that is mostly hidden (`bboxVis`), an
image without anyone, and boxes that reach beyond the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.drawing import write_image, write_text

SIZE = (256, 128)
Listed = list[tuple[str, list[int], list[int] | None]]
TRAIN: dict[str, Listed] = {
    "aachen_000000_000019": [("pedestrian", [40, 20, 24, 60], None), ("ignore", [100, 10, 60, 30], None)],
    "aachen_000001_000019": [("pedestrian", [200, 20, 28, 70], [200, 20, 10, 40]), ("rider", [80, 30, 20, 50], None)],
    "bochum_000000_000313": [],
    "zurich_000121_000019": [("pedestrian", [-4, 60, 20, 52], None), ("person group", [120, 40, 60, 50], None)],
}
VAL: dict[str, Listed] = {
    "lindau_000000_000019": [("pedestrian", [60, 20, 26, 64], None), ("sitting person", [120, 40, 24, 30], None)],
    "munster_000173_000019": [("pedestrian", [20, 30, 24, 60], [20, 30, 20, 55]), ("ignore", [150, 10, 60, 30], None)],
}


def write(root: Path) -> None:
    """Writes both folders below `root`."""
    for split, images in (("train", TRAIN), ("val", VAL)):
        for stem, listed in images.items():
            place = f"{split}/{stem.split('_')[0]}/{stem}"
            write_image(root / f"leftImg8bit/{place}_leftImg8bit.png", *SIZE, [box for _, box, _ in listed])
            objects: list[dict[str, Any]] = [
                {"label": label, "bbox": box, "bboxVis": seen or box, "instanceId": 24000 + number}
                for number, (label, box, seen) in enumerate(listed)
            ]
            content = {"imgWidth": SIZE[0], "imgHeight": SIZE[1], "objects": objects}
            write_text(root / f"gtBboxCityPersons/{place}_gtBboxCityPersons.json", json.dumps(content))
