"""What any writer writes, its reader reads back: boxes, classes, images, ignore regions, over folder layouts and odd names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from PIL import Image

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.data.writers import WRITERS, write_yolo

FORMATS = ("coco", "yolo", "voc", "cvat", "label-studio", "labelme", "fiftyone")
FOLDERS = (
    "",
    "images/",
    "train/images/",
    "images/train/",
    "a b/ü/",
    "images/cam/images/",
    "train/images/sub/",
    "darknet/",
)
STEMS = ("a", "B", "img_1", "é ü", "x.y", "100%", "a&b")


@st.composite
def tables(draw: st.DrawFn) -> Annotations:
    """Up to four images with boxes of 1 to 20 px at any fraction, of three classes, some of them ignore regions."""
    folder = draw(st.sampled_from(FOLDERS))
    stems = draw(st.lists(st.sampled_from(STEMS), min_size=1, max_size=4, unique=True))
    counts = draw(st.lists(st.integers(0, 3), min_size=len(stems), max_size=len(stems)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    total = sum(counts)
    corner = rng.uniform(0, 20, (total, 2))
    boxes = np.round(np.concatenate([corner, corner + rng.uniform(1, 20, (total, 2))], 1), 3)
    ignore = rng.random(total) < draw(st.sampled_from([0.0, 0.4]))
    labels = rng.integers(0, 3, total)
    return Annotations(
        image_ids=np.arange(1, len(stems) + 1),
        file_names=tuple(f"{folder}{stem}.png" for stem in stems),
        sizes=np.tile(np.array([[48, 64]]), (len(stems), 1)),
        image_index=np.repeat(np.arange(len(stems)), counts),
        boxes=boxes,
        labels=np.where(ignore, -1, labels),
        area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        ignore=ignore,
        crowd=np.zeros(total, dtype=bool),
        box_ids=np.arange(1, total + 1),
        classes=("car", "person on foot", "bo&at"),
        category_ids=(1, 2, 3),
        extra={"category": labels},
    )


def by_file(table: Annotations) -> dict[str, list[tuple[str, list[float], bool]]]:
    """The boxes of every image that has some, by the image's name without folders."""
    found: dict[str, list[tuple[str, list[float], bool]]] = {}
    for index, here in enumerate(table):
        rows = zip(table.labels[here].tolist(), table.boxes[here].tolist(), table.ignore[here].tolist(), strict=True)
        entries = [(table.classes[label] if label >= 0 else "-", box, ignored) for label, box, ignored in rows]
        if entries:
            found[Path(table.file_names[index]).name] = sorted(entries, key=lambda e: e[1])
    return found


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(table=tables())
def test_a_reader_reads_what_its_writer_wrote(name: str, table: Annotations) -> None:
    with tempfile.TemporaryDirectory() as place:
        root, out = Path(place) / "src", Path(place) / "out"
        for file in table.file_names:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 48)).save(root / file)
        table = Annotations(**{**table.__dict__, "root": root})
        target = out if name in ("yolo", "voc", "labelme") else out / "set.xml" if name == "cvat" else out / "set.json"
        if name == "yolo":
            lost = write_yolo(table, target)
            assert lost == int(table.ignore.sum())  # it has no ignore regions, and says so
            expected = by_file(table.select_boxes(~table.ignore))
        else:
            WRITERS[name](table, target)
            expected = by_file(table)
        images = None if name in ("yolo", "coco") else root / Path(table.file_names[0]).parent
        if not expected:
            return  # nothing to find out a format by
        kind = {"yolo": "yolo", "coco": "coco"}.get(name, name)
        assert format_of(target) == kind
        again = by_file(read_annotations(target, images=images))
    assert again.keys() == expected.keys()
    for file, entries in expected.items():
        assert [(label, ignored) for label, _, ignored in again[file]] == [
            (label, ignored) for label, _, ignored in entries
        ]
        assert_allclose([box for _, box, _ in again[file]], [box for _, box, _ in entries], atol=1e-4)
