"""Readers at the edges of their rules: broken entries beside sound ones, ids of 63 bits, sizes that are stated and not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.data.readers.assemble import id_array
from flyspeck.data.readers.coco import read_listing
from flyspeck.data.readers.kitti import CLASSES
from flyspeck.data.readers.matlab import load_mat
from flyspeck.data.readers.places import find_root
from flyspeck.errors import UserError


def dump(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def coco(*boxes: list[float], **more: Any) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 30, **more}
    entries = [{"id": n, "image_id": 1, "category_id": 3, "bbox": box} for n, box in enumerate(boxes, 1)]
    return {"images": [image], "annotations": entries, "categories": [{"id": 3, "name": "car"}]}


def test_ids_of_64_bits_are_numbers() -> None:
    assert id_array([2**63 - 1, -(2**63), 1000]).dtype == np.int64
    for ids in ([2**63], [-(2**63) - 1], ["a"], [True]):
        assert id_array(ids).dtype == object
        assert id_array(ids).tolist() == ids


def test_a_listing_has_its_categories(tmp_path: Path) -> None:
    draft = read_listing(dump(tmp_path / "a.json", coco()))
    assert (draft.file_names, draft.names, draft.category_ids) == (["a.png"], ["car"], [3])


def test_tiles_all_have_corners(tmp_path: Path) -> None:
    content = coco(corner=[0, 0, 40, 30])
    content["images"].append({"id": 2, "file_name": "b.png", "width": 40, "height": 30})
    with pytest.raises(UserError, match="a tile without a 'corner'"):
        read_annotations(dump(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("box", "told"), [([2, 2, 39.5, 10], True), ([2, 2, 39, 10], False), ([2, 2, 41.5, 10], False)]
)
def test_boxes_that_look_like_corners(tmp_path: Path, box: list[float], told: bool) -> None:
    """A pixel beyond the image is allowed either way: 2 + 39.5 is more, 2 + 39 is not, and a corner at 41.5 is no corner."""
    table = read_annotations(dump(tmp_path / "a.json", coco(box)))
    assert any("as corners x1, y1, x2, y2" in note for note in table.notes) is told


def test_kitti_by_all_its_fields(tmp_path: Path) -> None:
    tail = "0 0 -10 1 2 9 8 -1 -1 -1 -1 -1 -1 -1"
    every = "".join(f"{name} {tail}\n" for name in (*reversed(CLASSES), "DontCare"))
    dump(tmp_path / "kitti" / "label_2" / "a.txt", every)
    assert read_annotations(tmp_path / "kitti").classes[: len(CLASSES)] == tuple(CLASSES)  # in its own order
    dump(tmp_path / "other" / "label_2" / "a.txt", f"Car large {tail.partition(' ')[2]}\n")
    with pytest.raises(UserError):
        read_annotations(tmp_path / "other")


def record(**more: Any) -> dict[str, Any]:
    person = {"tag": "person", "fbox": [4, 5, 6, 10], "vbox": [4, 5, 3, 8]}
    return {"ID": "a", "gtboxes": [person], **more}


def test_odgt_shares_and_sizes(tmp_path: Path) -> None:
    table = read_annotations(dump(tmp_path / "a.odgt", json.dumps(record())))
    assert table.extra["vis_ratio"].tolist() == [24 / 60]
    assert table.extra["height"].tolist() == [10]
    (tmp_path / "Images").mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "Images" / "a.jpg")
    for height in (2**31, 2**31 + 1, 0, -1, "x", None):  # the image's own where none is stated
        file = dump(tmp_path / "a.odgt", json.dumps(record(height=height, width=40)))
        assert read_annotations(file).sizes.tolist() == [[30, 40]]
    assert read_annotations(dump(tmp_path / "a.odgt", json.dumps(record(height=7, width=9)))).sizes.tolist() == [[7, 9]]


def test_odgt_tags_that_are_no_text(tmp_path: Path) -> None:
    content = record()
    content["gtboxes"].append({"tag": 7, "fbox": [1, 2, 3, 4]})
    table = read_annotations(dump(tmp_path / "a.odgt", json.dumps(content)))
    assert (table.num_boxes, len(table.problems)) == (1, 1)


def test_the_first_folder_that_holds_an_image(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("a", "b", "c")]
    for place in places:
        place.mkdir()
    assert find_root(places, ["x.png"]) == places[0]
    for place in places[1:]:
        (place / "x.png").touch()
    assert find_root(places, ["y.png", "x.png"]) == places[1]


def test_supervisely_goes_on_after_a_broken_file(tmp_path: Path) -> None:
    shape = {
        "classTitle": "car",
        "geometryType": "rectangle",
        "points": {"exterior": [[4, 5], [9, 11]], "interior": []},
    }
    sound = {"size": {"height": 1000, "width": 2000}, "objects": [shape]}
    dump(tmp_path / "meta.json", {"classes": [{"title": "car"}]})
    for name, content in (("a", {}), ("b", sound), ("c", {"objects": 3}), ("d", sound)):
        dump(tmp_path / "ds" / "ann" / f"{name}.png.json", content)
    table = read_annotations(tmp_path, format="supervisely")
    assert table.num_boxes == 2
    assert sum("no list 'objects'" in line for line in table.problems) == 2
    assert table.sizes.tolist() == [[1000, 2000]] * 2


def test_a_tool_s_xml_is_no_voc(tmp_path: Path) -> None:
    labels = "<labels><label><name>car</name></label></labels>"
    image = (
        '<image id="7" name="a.png" width="40" height="30"><box label="car" xtl="4" ytl="5" xbr="10" ybr="12"/></image>'
    )
    dump(
        tmp_path / "a.xml",
        f"<annotations><version>1.1</version><meta><task>{labels}</task></meta>{image}</annotations>",
    )
    with pytest.raises(UserError, match="a file of CVAT, not of VOC"):
        read_annotations(tmp_path / "a.xml", format="voc")


def test_wider_images_without_faces(tmp_path: Path) -> None:
    """With a line of zeros after the number, as published, and without one."""
    text = "a.png\n0\nb.png\n1\n1 2 3 4 0 0 0 0 0 0\nc.png\n0\n0 0 0 0 0 0 0 0 0 0\nd.png\n1\n5 6 7 8 0 0 0 0 0 0\n"
    table = read_annotations(dump(tmp_path / "wider_face_val_bbx_gt.txt", text))
    assert table.file_names == ("a.png", "b.png", "c.png", "d.png")
    assert table.image_index.tolist() == [1, 3]


@pytest.mark.parametrize("line", ["/", ".", "//"])
def test_lines_of_a_list_name_files(tmp_path: Path, line: str) -> None:
    (tmp_path / "obj_train_data").mkdir()
    dump(tmp_path / "obj.names", "car\n")
    dump(tmp_path / "obj.data", "classes = 1\ntrain = train.txt\nnames = obj.names\n")
    dump(tmp_path / "train.txt", f"obj_train_data/a.png\n{line}\n")
    with pytest.raises(UserError, match=r"train.txt, line 2: '.*' names no file"):
        read_annotations(tmp_path / "obj.data", format="yolo")


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "i8", "u8", "f8", "c16", "U"])
def test_numbers_of_every_width_are_read_from_a_mat_file(tmp_path: Path, kind: str) -> None:
    """None is taken for a file that holds less than it says; one that does is."""
    scipy_io = pytest.importorskip("scipy.io", reason="needs scipy (extra matlab)")
    values = (
        np.array(["abcdefghi"]) if kind == "U" else np.arange(63, dtype=kind).reshape(3, 21) + 300 * (kind[1] != "1")
    )
    values = values.astype(kind) if kind != "U" else values
    scipy_io.savemat(tmp_path / "a.mat", {"a": values}, do_compression=False)
    assert np.array_equal(load_mat(tmp_path / "a.mat")["a"], values)
    content = bytearray((tmp_path / "a.mat").read_bytes())
    sides = np.array(values.shape if kind != "U" else (1, 9), "<i4").tobytes()
    at = content.index(sides)
    content[at + 4 : at + 8] = np.array(1000, "<i4").tobytes()
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(UserError, match="fewer numbers than its size says"):
        load_mat(tmp_path / "a.mat")


@pytest.mark.parametrize("mark", ["\\ud800", "\\uD800"])
def test_half_a_character_is_told_however_it_is_spelt(tmp_path: Path, mark: str) -> None:
    path = dump(tmp_path / "a.json", coco())
    path.write_text(path.read_text().replace("a.png", f"{mark}.png"))
    with pytest.raises(UserError, match="half of a character"):
        read_annotations(path)


@pytest.mark.parametrize("wide", [0, 0.5, -1, None])
def test_what_label_studio_says_of_an_image_of_no_size(tmp_path: Path, wide: Any) -> None:
    box = {"x": 10, "y": 20, "width": 5, "height": 10, "rotation": 0, "rectanglelabels": ["car"]}
    result = {"type": "rectanglelabels", "value": box, "original_width": wide, "original_height": 30}
    path = dump(tmp_path / "a.json", [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": [result]}]}])
    table = read_annotations(path)
    assert table.num_boxes == 0
    assert "no box of four finite numbers" in table.problems[0]


def test_via_names_the_attributes_that_are_no_class(tmp_path: Path) -> None:
    shape = {"name": "rect", "x": 4, "y": 5, "width": 6, "height": 7}
    region = {"shape_attributes": shape, "region_attributes": {"class": "car", "size": "big", "age": "old"}}
    path = dump(tmp_path / "via.json", {"a": {"filename": "a.png", "size": 9, "regions": [region]}})
    assert (
        "the region attribute 'class' is taken as the class; there are also age, size" in read_annotations(path).notes
    )


def test_objects_of_citypersons_are_counted_from_one(tmp_path: Path) -> None:
    objects = [{"bbox": [4, 5, 6, 7], "bboxVis": [4, 5, 3, 7], "label": name} for name in ("pedestrian", "horse")]
    path = tmp_path / "gt" / "val" / "ulm" / "ulm_000001_000019_gtBboxCityPersons.json"
    path.parent.mkdir(parents=True)
    dump(path, {"imgHeight": 30, "imgWidth": 40, "objects": objects})
    (problem,) = read_annotations(tmp_path / "gt").problems
    assert problem.startswith("ulm_000001_000019_gtBboxCityPersons.json, object 2: the entry")
