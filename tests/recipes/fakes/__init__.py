"""Small data sets in the layout in which each is downloaded, with what is wrong in the real one.

A module a set; its head names the layout and the blemishes. `MAKERS` has those that `flyspeck-lab prepare` knows, by its name;
`FOLDERS` has every folder that the heads of recipes name as the place of a download.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fakes import citypersons, coco, coco_style, dota, small_images, tinyperson, visdrone, voc, widerface

Maker = Callable[[Path], None]

MAKERS: dict[str, Maker] = {
    "tinyperson": tinyperson.write,
    "citypersons": citypersons.write,
    "tiny_citypersons": citypersons.write,
    "coco": coco.write,
    "coco100": coco.write,
    "voc": voc.write,
    "visdrone": visdrone.write,
    "dota": dota.write,
    "widerface": widerface.write,
    "cifar100": small_images.write_cifar100,
    "imagenet32": small_images.write_imagenet32,
    "imagenet": small_images.write_imagenet,
}
"""Name of a set to what writes its download below a root."""

FOLDERS: dict[str, Maker] = {
    **{f"data/{name}": MAKERS[name] for name in MAKERS if name not in ("tiny_citypersons", "coco100", "cifar100")},
    "data/cifar-100-python": MAKERS["cifar100"],
    "hituav": coco_style.write_hituav,
    "data/facemask": coco_style.write_facemask,
    "data/aerialcars": coco_style.write_aerialcars,
    "data/coco453_100": coco_style.write_coco453,
}
"""Folder of a download, as heads name it, to what writes it."""
