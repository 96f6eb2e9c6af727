"""COCO 2017: `train2017/`, `val2017/` and `annotations/` side by side, as cocodataset.org's archives unpack.

Real in it: 80 categories with gaps in their ids (1-90), images listed in another order than their ids and files, boxes of
fractions of a pixel, areas that are those of the outlines, an image with nothing but a crowd (run lengths), one with nothing,
a grey JPEG, images of several sizes, and a box without height in the training set (image 200365 has one).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.drawing import coco_box, coco_image, write_coco, write_image, write_text

NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat,traffic light,fire hydrant,,stop sign,parking meter,bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe,,backpack umbrella,,,handbag tie suitcase frisbee skis "
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard surfboard,tennis racket,bottle,,wine glass,cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot,hot dog,pizza donut cake chair couch,potted plant,bed,,"
    "dining table,,,toilet,,tv laptop mouse remote keyboard,cell phone,microwave oven toaster sink refrigerator,,book clock "
    "vase scissors,teddy bear,hair drier,toothbrush"
)
TWO_WORDS = {
    "traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "potted plant", "dining table", "cell phone", "teddy bear", "hair drier",
}  # fmt: skip


def categories() -> list[dict[str, Any]]:
    """The 80 of COCO with their ids; ten of 1-90 do not occur."""
    words = [one for part in NAMES.split(",") for one in ([part] if part in TWO_WORDS else part.split() or [""])]
    return [{"id": number, "name": name, "supercategory": "x"} for number, name in enumerate(words, 1) if name]


def write(root: Path) -> None:
    """Writes the download below `root`."""
    train = [(581929, 320, 240), (9, 64, 80), (200365, 100, 60), (371552, 72, 72), (490491, 64, 80)]
    val = [(397133, 320, 240), (139, 64, 80), (37777, 80, 64)]
    for split, listed in (("train2017", train), ("val2017", val)):
        images = [coco_image(number, f"{number:012d}.jpg", (w, h), license=4) for number, w, h in listed]
        first, second, third, *rest = [image["id"] for image in images]
        boxes = [
            coco_box(1768, first, 1, (10.28, 8.5, 14.31, 20.07), area=151.2, segmentation=[[10.28, 8.5, 24, 9, 20, 28]]),
            coco_box(2206, first, 90, (40.0, 30.2, 6.4, 5.9), area=30.1, segmentation=[[40, 30.2, 46.4, 31, 43, 36]]),
            coco_box(35, second, 18, (20.5, 40.25, 30.0, 22.5), area=402.0, segmentation=[[20.5, 40, 50, 41, 33, 62]]),
            coco_box(900100000044, third, 1, (0.0, 12.0, 60.0, 31.0), area=1400.0, iscrowd=1,
                     segmentation={"counts": [12, 31, 29, 31, 6000], "size": [third % 100, 60]}),
        ]  # fmt: skip
        if split == "train2017":
            boxes[-1]["image_id"], boxes[-1]["bbox"] = rest[0], [0.0, 12.0, 60.0, 31.0]
            boxes.append(
                coco_box(918, third, 67, (29.65, 38.33, 1.03, 0.0), area=0.3, segmentation=[[29.65, 38.33] * 3])
            )
            boxes.append(
                coco_box(919, third, 64, (50.0, 20.0, 9.5, 8.5), area=61.0, segmentation=[[50, 20, 59, 20, 55, 28]])
            )
        licences = [{"id": 4, "name": "Attribution License"}]
        path = root / f"annotations/instances_{split}.json"
        write_coco(path, images, boxes, categories(), pixels=root / split, info={"year": 2017}, licenses=licences)
    grey = root / "train2017" / f"{train[-1][0]:012d}.jpg"
    write_image(grey, *train[-1][1:], grey=True)
    for split in ("train2017", "val2017"):  # the archive has two further tasks
        write_text(root / f"annotations/captions_{split}.json", '{"images": [], "annotations": []}')
