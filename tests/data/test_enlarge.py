"""Enlarged images: what the network sees, and that results and annotations stay in the files' pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import Enlarge, described_enlargement, enlarged_table, native_sizes, resample
from flyspeck.data.loading import DetectionDataset
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError


@pytest.fixture
def table(tmp_path: Path) -> Annotations:
    """One image of 20x10 (w, h) with a box of 2x3 px at (4, 5)."""
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 20, "height": 10}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [4, 5, 2, 3], "area": 6, "iscrowd": 0}],
    }
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return read_annotations(tmp_path / "gt.json")


def test_sizes_by_hand() -> None:
    assert Enlarge(1.85).size((512, 640)) == (947, 1184)  # 947.2, 1184
    assert Enlarge(short_side=800).size((100, 141)) == (800, 1128)
    assert Enlarge(short_side=800).scale((100, 141)) == 8
    assert not Enlarge().changes
    with pytest.raises(UserError, match=r"enlargement by 0"):
        Enlarge(0)
    with pytest.raises(UserError, match="short side of 0"):
        Enlarge(short_side=0)


def test_table_in_enlarged_pixels(table: Annotations) -> None:
    """2.5 on 20x10: 50x25, both ratios exact. 1.33: 27x13, ratios 27/20 and 13/10: the true ones, not 1.33."""
    assert enlarged_table(table, Enlarge()) is table
    found = enlarged_table(table, Enlarge(2.5))
    assert_array_equal(found.sizes, [[25, 50]])
    assert_allclose(found.boxes, [[10, 12.5, 15, 20]])
    assert_allclose(found.area, [37.5])
    rounded = enlarged_table(table, Enlarge(1.33))
    assert_array_equal(rounded.sizes, [[13, 27]])
    assert_allclose(rounded.boxes, [[4 * 1.35, 5 * 1.3, 6 * 1.35, 8 * 1.3]])


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_data_set_enlarges_pixels_and_boxes(table: Annotations, cache: str) -> None:
    sample = DetectionDataset(table, cache=cache, enlarge=Enlarge(2)).raw(0)  # type: ignore[arg-type]
    assert sample.pixels.shape == (1, 20, 40)
    assert sample.targets.boxes.tolist() == [[8, 10, 12, 16]]
    expected = resample(np.arange(200, dtype=np.uint8).reshape(10, 20, 1), (20, 40))
    assert_array_equal(sample.pixels[0].numpy(), expected[:, :, 0])


def test_the_longer_side_has_a_limit() -> None:
    """TinaFace's (1100, 1650): by hand. 1024x768 grows by 1100/768 to 1467; 1024x500 by 1650/1024, not by 2.2."""
    rule = Enlarge(short_side=1100, long_side=1650)
    assert rule.size((768, 1024)) == (1100, 1467)
    assert rule.size((1024, 768)) == (1467, 1100)
    assert rule.size((500, 1024)) == (806, 1650)
    assert rule.words() == "shorter side 1100 px (longer at most 1650)"
    assert rule.scaled(0.5) == Enlarge(short_side=550, long_side=825)
    assert Enlarge(2.0).scaled(1.5) == Enlarge(3.0)
    assert described_enlargement({"enlarge": rule.described()}) == rule
    assert described_enlargement({"enlarge": {"factor": 1.0, "short_side": 800}}) == Enlarge(short_side=800)  # of 0.1
    for short, long in ((None, 1650), (1700, 1650)):
        with pytest.raises(UserError, match="a long side of 1650 beside a short side of"):
            Enlarge(short_side=short, long_side=long)


def test_sizes_that_the_table_does_not_say_are_read(table: Annotations) -> None:
    table.sizes[:] = -1
    assert_array_equal(native_sizes(table), [[10, 20]])
    assert_array_equal(enlarged_table(table, Enlarge(short_side=30)).sizes, [[30, 60]])


def test_a_image_of_another_size_than_stated_is_refused(table: Annotations) -> None:
    table.sizes[:] = [[11, 20]]
    with pytest.raises(UserError, match="20 x 10 where the annotations say 20 x 11"):
        DetectionDataset(table, enlarge=Enlarge(2)).raw(0)


def test_sixteen_bits_keep_their_range() -> None:
    pixels = np.array([[[0], [65535]]], np.uint16)
    assert resample(pixels, (1, 4)).max() == 65535
    assert resample(pixels, (1, 4)).dtype == np.uint16
