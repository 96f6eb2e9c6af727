"""A small sound set of every format, as the tools write it: what `test_fuzz_readers` cuts, turns and swaps."""

from __future__ import annotations

import io
import json
import zlib
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Content = str | bytes


@dataclass(frozen=True)
class Seed:
    """One layout of a format."""

    files: dict[str, Content]
    """Annotation files by path; these are mutated."""
    images: tuple[str, ...]
    """Paths of its images, 40 x 30 px."""
    source: str = "."
    """What is read, a file or a folder."""
    boxes: int = 2
    """In the sound set: a seed that reads to nothing would hold nothing."""


def write(seed: Seed, folder: Path) -> Path:
    """The set on disk; returns what is to be read."""
    for name, content in seed.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for name in seed.images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 30), 60).save(folder / name)
    return folder / seed.source


def _png() -> str:
    mask = np.zeros((6, 9), dtype=np.uint8)
    mask[1:5, 2:8] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return b64encode(zlib.compress(buffer.getvalue())).decode()


def _mat(content: dict[str, Any]) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, content)
    return buffer.getvalue()


def _cells(*items: object) -> np.ndarray:
    column = np.empty((len(items), 1), dtype=object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


def _coco() -> list[Seed]:
    images = [{"id": n, "file_name": f"{name}.png", "width": 40, "height": 30} for n, name in ((1, "a"), (2, "b"))]
    first = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [4, 5, 6.5, 7], "area": 45.5, "iscrowd": 0}
    runs = {"size": [30, 40], "counts": [35, 5, 25, 5, 1130]}
    boxes = [
        first,
        {"id": 2, "image_id": 2, "category_id": 4, "segmentation": [[1, 2, 9, 2, 5, 8]], "iscrowd": "0"},
        {"id": 3, "image_id": 2, "category_id": 4, "segmentation": runs, "iscrowd": 1},
        {
            "id": 4,
            "image_id": 2,
            "category_id": 4,
            "segmentation": {"size": [30, 40], "counts": "S15i00aR1"},
            "ignore": 1,
        },
    ]
    names = [{"id": 3, "name": "car"}, {"id": 4, "name": "boat"}]
    plain = {"info": {}, "licenses": [], "images": images, "annotations": boxes, "categories": names}
    tiles = [{**image, "corner": [0, 0, 40, 30]} for image in images]
    persons = {**first, "height": 7, "vis_ratio": 0.5, "vis_bbox": [4, 5, 3, 7], "uncertain": False, "size": 6}
    tiled = {**plain, "images": tiles, "annotations": [persons], "old_images": images}
    return [
        Seed({"set.json": json.dumps(plain, indent=1)}, ("a.png", "b.png"), "set.json", 4),
        Seed({"set.json": json.dumps(tiled)}, ("a.png", "b.png"), "set.json", 1),
    ]


def _yolo() -> list[Seed]:
    texts = {"labels/train/a.txt": "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.3 0.1 0.2 0.5\n", "labels/train/b.txt": ""}
    images = ("images/train/a.png", "images/train/b.png")
    yaml = "path: .\ntrain: images/train\nval: [images/train]\nnc: 2\nnames:\n  0: car\n  1: boat\n"
    pose = "train: images/train\nkpt_shape: [2, 3]\nnames: [car]\n"
    point = "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1\n0 0.4 0.4 0.1 0.1 0 0 0 0 0 0\n"
    darknet = {
        "obj.data": "classes = 2\nnames = data/obj.names\ntrain = data/train.txt\nbackup = backup/\n",
        "obj.names": "car\nboat\n",
        "train.txt": "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n",
        "obj_train_data/a.txt": "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.1 0.1\n",
    }
    return [
        Seed({"data.yaml": yaml, **texts}, images),
        Seed({"data.yaml": pose, "labels/train/a.txt": point}, images[:1], "data.yaml"),
        Seed(darknet, ("obj_train_data/a.png", "obj_train_data/b.png")),
        Seed({"a.txt": "0 0.5 0.5 0.2 0.4\n7 0.2 0.2 0.1 0.1\n"}, ("a.png",)),
        Seed(
            {"classes.txt": "car\nboat\n", "labels/a.txt": "0 0.5 0.5 0.2 0.4\n1 0.2 0.2 0.1 0.1 0.9\n"},
            ("images/a.png",),
        ),
    ]


VOC = """<annotation verified="yes"><folder>x</folder><filename>a.png</filename><path>C:\\x\\a.png</path>
<source><database>Unknown</database></source><size><width>40</width><height>30</height><depth>1</depth></size>
<object><name>car</name><difficult>0</difficult><truncated>0</truncated>
<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object>
<object><name>boat</name><difficult>Unspecified</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"""


def _voc() -> list[Seed]:
    declared = '<?xml version="1.0" encoding="gbk"?>\n' + VOC.replace("boat", "\u8239")
    second = VOC.replace("a.png", "b.png").replace("<database>Unknown", "<database>The VOC2007 Database")
    return [
        Seed(
            {"Annotations/a.xml": VOC, "Annotations/b.xml": second}, ("JPEGImages/a.png", "JPEGImages/b.png"), boxes=4
        ),
        Seed({"a.xml": declared.encode("gbk")}, ("a.png",)),
    ]


def _wider() -> list[Seed]:
    lines = "0--P/a.png\n2\n4 5 6 7 0 0 0 0 0 0\n1 2 8 6 1 0 0 1 0 0\n0--P/b.png\n0\n0 0 0 0 0 0 0 0 0 0\n"
    faces = np.array([[4, 5, 6, 7], [1, 2, 8, 6]], np.int32)
    mat = {
        "event_list": _cells("0--P"),
        "file_list": _cells(_cells("a", "b")),
        "face_bbx_list": _cells(_cells(faces, faces)),
    }
    return [
        Seed({"wider_face_val_bbx_gt.txt": lines}, ("images/0--P/a.png",), "wider_face_val_bbx_gt.txt"),
        Seed({"wider_face_val.mat": _mat(mat)}, (), "wider_face_val.mat", 4),
    ]


def _citypersons() -> list[Seed]:
    stem = "ulm_000001_000019"
    objects = [
        {"instanceId": 1, "bbox": [4, 5, 6, 7], "bboxVis": [4, 5, 3, 7], "label": "pedestrian"},
        {"instanceId": 0, "bbox": [1, 2, 8, 6], "bboxVis": [1, 2, 8, 6], "label": "ignore"},
    ]
    content = json.dumps({"imgHeight": 30, "imgWidth": 40, "objects": objects})
    kind = [("cityname", object), ("im_name", object), ("bbs", object)]
    value = np.zeros((1, 1), kind)
    rows = np.array([[1, 4, 5, 6, 7, 24000, 4, 5, 3, 7], [0, 1, 2, 8, 6, 0, 1, 2, 8, 6]], np.uint16)
    value[0, 0] = ("ulm", f"{stem}_leftImg8bit.png", rows)
    row = np.empty((1, 1), object)
    row[0, 0] = value
    return [
        Seed(
            {f"gt/val/ulm/{stem}_gtBboxCityPersons.json": content},
            (f"leftImg8bit/val/ulm/{stem}_leftImg8bit.png",),
            "gt",
        ),
        Seed({"anno_val.mat": _mat({"anno_val_aligned": row})}, (), "anno_val.mat"),
    ]


def _json_tools() -> dict[str, list[Seed]]:
    shapes = [
        {"label": "car", "points": [[4, 5], [10, 12]], "shape_type": "rectangle", "flags": {}},
        {"label": "boat", "points": [[1, 1], [9, 2], [5, 7]], "shape_type": "polygon"},
        {"label": "car", "points": [[20, 20], [23, 24]], "shape_type": "circle"},
    ]
    labelme = {"version": "5", "flags": {}, "shapes": shapes, "imagePath": "a.png", "imageHeight": 30, "imageWidth": 40}
    rect = {"name": "rect", "x": 4, "y": 5, "width": 6, "height": 7}
    ring = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 4, "ry": 2, "theta": 0.5}
    corners = {"name": "polygon", "all_points_x": [1, 5, 3], "all_points_y": [2, 2, 9]}
    named = [
        {"shape_attributes": s, "region_attributes": {"class": "car", "n": {"x": True}}} for s in (rect, ring, corners)
    ]
    via = {"a.png99": {"filename": "a.png", "size": 99, "regions": named, "file_attributes": {}}}
    project = {"_via_settings": {}, "_via_img_metadata": {"a": {**via["a.png99"], "regions": dict(enumerate(named))}}}
    box = {"x": 10, "y": 20, "width": 5, "height": 10, "rotation": 30, "rectanglelabels": ["car"]}
    sides = {"original_width": 40, "original_height": 30}
    polygon = {"points": [[1, 2], [5, 2], [3, 8]], "polygonlabels": ["boat"]}
    results = [{"type": "rectanglelabels", "value": box, **sides}, {"type": "polygonlabels", "value": polygon, **sides}]
    task = {"id": 3, "data": {"image": "/data/upload/1/1a2b3c4d-a.png"}, "annotations": [{"result": results}]}
    short = {"image": "s3://bucket/a.png", "id": 1, "label": [{**box, **sides}]}
    drawn = [
        {"classTitle": "car", "geometryType": "rectangle", "points": {"exterior": [[4, 5], [9, 11]], "interior": []}},
        {"classTitle": "boat", "geometryType": "bitmap", "bitmap": {"origin": [20, 10], "data": _png()}},
    ]
    supervisely = {"description": "", "tags": [], "size": {"height": 30, "width": 40}, "objects": drawn}
    meta = json.dumps({"classes": [{"title": "boat"}, {"title": "car"}]})
    fiftyone = {
        "classes": ["car", "boat"],
        "labels": {"a": [{"label": 0, "bounding_box": [0.1, 0.2, 0.3, 0.2]}], "b": None},
    }
    project_files = {"meta.json": meta, "ds/ann/a.png.json": json.dumps(supervisely)}
    return {
        "labelme": [Seed({"a.json": json.dumps(labelme)}, ("a.png",), boxes=3)],
        "via": [
            Seed({"via.json": json.dumps(via)}, ("a.png",), "via.json", 3),
            Seed({"via.json": json.dumps(project)}, ("a.png",), "via.json", 3),
        ],
        "label-studio": [
            Seed({"export.json": json.dumps([task])}, ("a.png",), "export.json"),
            Seed({"min.json": json.dumps([short])}, ("a.png",), "min.json", 1),
        ],
        "supervisely": [Seed(project_files, ("ds/img/a.png",))],
        "fiftyone": [Seed({"labels.json": json.dumps(fiftyone)}, ("data/a.png", "data/b.png"), "labels.json", 1)],
    }


CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<meta><task><size>2</size><labels><label><name>person</name></label><label><name>car</name></label></labels></task></meta>
<image id="7" name="a.png" width="40" height="30"><box label="car" xtl="4.5" ytl="5" xbr="10" ybr="12.25" rotation="30"></box>
<polygon label="person" points="1.0,2.0;5.0,2.0;3.0,9.0"></polygon><ellipse label="car" cx="9" cy="9" rx="4" ry="2"></ellipse>
<mask label="person" rle="1" left="20" top="10" width="5" height="6"></mask><points points="1,2"></points></image>
</annotations>"""
TRACKS = """<annotations>
<meta><task><size>2</size><original_size><width>40</width><height>30</height></original_size></task></meta>
<track id="0" label="car"><box frame="0" outside="0" xtl="1" ytl="2" xbr="5" ybr="6"></box>
<box frame="1" outside="0" xtl="2" ytl="2" xbr="6" ybr="6"></box><box frame="2" outside="1" xtl="1" ytl="2" xbr="5" ybr="6"></box>
</track></annotations>"""


def _lines() -> dict[str, list[Seed]]:
    head = "image_path,xmin,ymin,xmax,ymax,label,width,height"
    table = f"{head}\na.png,4,5,10,12,car,40,30\na.png,1,2,9,8,boat,40,30\nb.png,,,,,,,\n"
    semicolons = 'filename;xmin;ymin;xmax;ymax;class\n"a.png";0,1;0,2;0,3;0,5;car\na.png;0;0;1;1;"bo;at"\n'
    person = {"tag": "person", "fbox": [4, 5, 6, 7], "vbox": [4, 5, 3, 7], "hbox": [5, 5, 2, 2], "extra": {"ignore": 0}}
    record = {"ID": "a", "gtboxes": [person, {"tag": "mask", "box": [1, 2, 8, 6], "extra": {"ignore": 1}}]}
    dota = "imagesource:GoogleEarth\ngsd:0.1\n4 5 10 5 10 12 4 12 ship 0\n1.5 2 9 3 8 8 1 7 plane 1\n"
    tail = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"
    kitti = f"Car 0.25 1 -1.58 4.5 5.0 10.0 12.0 {tail}\nDontCare -1 -1 -10 1 2 9 8 -1 -1 -1 -1000 -1000 -1000 -10\n"
    video = "1,3,5,2,20,9,1,4,0,0\n2,0,0,0,9,9,0,0,0,0\n"
    uavdt = {
        "GT/M1_gt_whole.txt": "1,1,1,2,6,8,1,1,1\n2,1,2,3,6,8,1,1,3\n",
        "GT/M1_gt_ignore.txt": "1,1,0,0,20,5,-1,-1,-1\n",
    }
    return {
        "visdrone": [Seed({"annotations/a.txt": "4,5,6,7,1,4,0,0\n1,2,8,6,0,0,0,0\n"}, ("images/a.png",))],
        "dota": [Seed({"labelTxt/a.txt": dota}, ("images/a.png",))],
        "csv": [
            Seed({"set.csv": table}, ("a.png", "b.png"), "set.csv"),
            Seed({"set.csv": semicolons}, ("a.png",), "set.csv"),
        ],
        "odgt": [Seed({"set.odgt": f"{json.dumps(record)}\n{json.dumps(record)}\n"}, ("Images/a.png",), "set.odgt", 4)],
        "kitti": [Seed({"label_2/a.txt": kitti}, ("image_2/a.png",))],
        "visdrone-vid": [Seed({"annotations/v.txt": video}, ("sequences/v/0000001.jpg", "sequences/v/0000002.jpg"))],
        "uavdt": [Seed(uavdt, ("UAV-benchmark-M/M1/img000001.jpg",), boxes=3)],
        "cvat": [
            Seed({"a.xml": CVAT}, ("a.png",), "a.xml", 4),
            Seed({"a.xml": TRACKS}, ("frame_000000.png",), "a.xml"),
        ],
    }


_OF_ONE: dict[str, Callable[[], list[Seed]]] = {
    "coco": _coco,
    "yolo": _yolo,
    "voc": _voc,
    "wider": _wider,
    "citypersons": _citypersons,
}


def seeds() -> dict[str, list[Seed]]:
    """The seeds of every format, by its name in `READERS`."""
    return {name: made() for name, made in _OF_ONE.items()} | _json_tools() | _lines()
