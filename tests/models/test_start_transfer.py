"""What a detector takes of another one: by name, class, anchor and level, and every tensor accounted for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.start.report import StartReport
from flyspeck.models.start.rows import OutputRows, matched_anchors, matched_classes, taken_rows
from flyspeck.models.start.transfer import source_of, transfer

SMALL: dict[str, Any] = {"width": 0.25, "channels": 16}


def detector(name: str = "retinanet:mobilenet_v2", classes: str = "ab", seed: int = 0, **options: Any) -> Detector:
    torch.manual_seed(seed)
    built = build(name, classes=list(classes), **SMALL, **options)
    assert isinstance(built, Detector)
    return built


def started(mine: Detector, other: Detector, state: dict[str, Tensor] | None = None) -> StartReport:
    return transfer(mine, source_of("other", state or other.state_dict(), other), where="other.safetensors")


def rows(key: str, model: Detector, per_cell: int) -> Tensor:
    """The rows of a class layer as (anchor, class, …)."""
    value = model.state_dict()[key]
    return value.reshape(per_cell, -1, *value.shape[1:])


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        ({}, {}),
        ({"classes": "ba"}, {}),
        ({"classes": "abc"}, {"classes": "c"}),
        ({"levels": "1-5"}, {"levels": "3-6"}),
        ({"name": "faster_rcnn:mobilenet_v2"}, {}),
        ({"name": "fcos:mobilenet_v2"}, {"name": "fcos:mobilenet_v2", "levels": "3-7"}),
        ({"name": "cascade_rcnn:mobilenet_v2"}, {"name": "faster_rcnn:mobilenet_v2"}),
        ({"name": "tinaface:mobilenet_v2", "classes": "a"}, {"name": "tinaface:mobilenet_v2"}),
        ({"name": "reppoints:mobilenet_v2", "classes": "b"}, {"name": "reppoints:mobilenet_v2"}),
        (
            {"name": "speck:mobilenet_v2", "classes": "b", "levels": "2-5"},
            {"name": "speck:mobilenet_v2", "levels": "1-5"},
        ),
        ({"name": "ssd:mobilenet_v2", "classes": "b"}, {"name": "ssd:mobilenet_v2"}),
    ],
)
def test_every_tensor_of_both_is_accounted_for(mine: dict[str, Any], other: dict[str, Any]) -> None:
    to, source = detector(seed=1, **mine), detector(**other)
    before = {key: value.clone() for key, value in to.state_dict().items()}
    report = started(to, source)
    reported = [one.key for one in report.keys if one.fate != "skipped"]
    assert reported == list(before)
    touched = {one.source for one in report.keys if one.source}
    assert touched == set(source.state_dict())
    for one in report.of("new"):
        torch.testing.assert_close(to.state_dict()[one.key], before[one.key], rtol=0, atol=0)
    for one in report.of("loaded"):
        torch.testing.assert_close(to.state_dict()[one.key], source.state_dict()[one.source], rtol=0, atol=0)
    assert all(one.why for one in report.keys if one.fate != "loaded")
    assert not [one for one in report.of("new") if one.key.startswith("backbone.")]


def test_rows_of_classes_go_by_name_not_by_place() -> None:
    """As many classes in another order: by shape alone each would get the other's rows."""
    source, mine = detector(classes="ab"), detector(classes="ba", seed=1)
    report = started(mine, source)
    assert {one.key for one in report.of("resized")} == {"head.class_logits.weight", "head.class_logits.bias"}
    for key in ("head.class_logits.weight", "head.class_logits.bias"):
        torch.testing.assert_close(rows(key, mine, 9), rows(key, source, 9).flip(1), rtol=0, atol=0)


def test_classes_that_the_source_has_not_begin_at_random() -> None:
    source, mine = detector("faster_rcnn:mobilenet_v2", "abc"), detector("faster_rcnn:mobilenet_v2", "xc", seed=1)
    before = mine.state_dict()["head.box_head.class_logits.weight"].clone()
    report = started(mine, source)
    after, theirs = (m.state_dict()["head.box_head.class_logits.weight"] for m in (mine, source))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    torch.testing.assert_close(after[1:], theirs[2:], rtol=0, atol=0)  # c, and the background
    boxes, source_boxes = (m.state_dict()["head.box_head.box_deltas.bias"].view(-1, 4) for m in (mine, source))
    torch.testing.assert_close(boxes[1], source_boxes[2], rtol=0, atol=0)
    why = next(one.why for one in report.keys if one.key == "head.box_head.class_logits.weight")
    assert "1 of 2 classes by name: c" in why
    # None in common: not even the background, which would call everything background.
    report = started(detector("faster_rcnn:mobilenet_v2", "xy"), source)
    assert "head.box_head.class_logits.weight" in {one.key for one in report.of("new")}


def test_a_pyramid_that_begins_elsewhere_is_not_shifted() -> None:
    """By name, `neck.layer.0` of stride 8 would become that of stride 4."""
    source, mine = detector(levels="3-6"), detector(levels="2-5", seed=1)
    report = started(mine, source)
    for i in range(3):
        for part in ("inner", "layer"):
            if part == "inner" or i:
                ours, theirs = (
                    mine.state_dict()[f"neck.{part}.{i + 1}.0.weight"],
                    source.state_dict()[f"neck.{part}.{i}.0.weight"],
                )
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    fates = {one.key: one for one in report.keys}
    assert fates["neck.inner.0.0.weight"].fate == "new"  # a lateral has its own map's channels
    assert fates["neck.layer.0.0.weight"].fate == "resized"
    assert "stride 8's, the nearest level" in fates["neck.layer.0.0.weight"].why
    assert fates["head.class_tower.convs.0.weight"].fate == "loaded"  # shared by all levels
    assert "neck.extra_convs.0.0.weight" in {one.source for one in report.of("skipped")}


def test_anchors_of_another_number_and_size_keep_the_rows_of_the_shapes_most_like_them() -> None:
    few = {"anchors": lambda features: strided_anchors(features, base_scale=1.5, ratios=(1.0, 3.0))}
    source, mine = detector(), detector(seed=1, **few)
    started(mine, source)
    ours, theirs = (m.state_dict()["head.box_deltas.bias"].view(-1, 4) for m in (mine, source))
    # Theirs by ratio, then octave: 0.5, 1 and 2 with sizes 1, 1.26 and 1.59; the mean of each cell is subtracted.
    torch.testing.assert_close(ours, theirs[[4, 7]], rtol=0, atol=0)


def test_other_backbones_and_widths_are_refused_in_a_line() -> None:
    source = detector()
    with pytest.raises(
        UserError, match=r"another backbone or width: 'backbone.stages.stem.0.0.weight' has shape \(8, "
    ):
        started(build("retinanet:mobilenet_v2", classes=["a"], width=0.5, channels=16), source)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is not in it"):
        started(detector("retinanet:mobilenet_v1"), source)


def test_half_precision_is_widened_and_said() -> None:
    source, mine = detector(), detector(seed=1)
    half = {key: value.half() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    report = started(mine, source, half)
    assert "in half precision" in report.notes[0]
    assert all(value.dtype != torch.float16 for value in mine.state_dict().values())


def test_fixed_fusion_factors_stay_the_recipes() -> None:
    mine = detector(fusion=[0.5, 0.5, 0.5], seed=1)
    report = started(mine, detector())
    torch.testing.assert_close(mine.state_dict()["neck.fusion"], torch.full((3,), 0.5))
    assert "neck.fusion" in {one.key for one in report.of("new")} & {one.source for one in report.of("skipped")}


def test_the_summary_counts_and_gives_each_reason_once() -> None:
    report = started(detector(classes="bx", seed=1), detector())
    text = report.summary()
    assert text[0].startswith("started from other: ")
    assert f"{len(report.of('loaded'))} loaded" in text[0]
    assert len([line for line in text if "by name: b" in line]) == 1
    assert "licence of these weights: not said" in text[1]


NAMES = st.lists(
    st.sampled_from(["car", "Car", "traffic light", "traffic_light", "dog", "person"]), unique=True, max_size=5
)


@given(wanted=NAMES, there=NAMES)
def test_classes_match_by_plain_name(wanted: list[str], there: list[str]) -> None:
    for name, place in zip(wanted, matched_classes(wanted, there), strict=True):
        plain = [one.lower().replace("_", " ") for one in there]
        assert (place >= 0) == (name.lower().replace("_", " ") in plain)
        assert place < 0 or plain[place] == name.lower().replace("_", " ")


@given(
    shapes=st.lists(st.tuples(st.floats(1, 64), st.floats(1, 64)), min_size=1, max_size=6, unique=True),
    scale=st.floats(0.1, 10),
)
def test_scaled_anchors_keep_their_places(shapes: list[tuple[float, float]], scale: float) -> None:
    found = matched_anchors([(w * scale, h * scale) for w, h in shapes], shapes)
    for place, (w, h) in zip(found, shapes, strict=True):
        assert shapes[place] == pytest.approx((w, h), rel=0.02)  # of two that are all but the same, either


@given(anchors=st.integers(1, 3), order=st.permutations("abc"), background=st.booleans(), values=st.integers(1, 4))
def test_taken_rows_against_one_row_at_a_time(anchors: int, order: list[str], background: bool, values: int) -> None:
    shapes = [(1.0, float(2**i)) for i in range(anchors)]
    factors = ("anchors", "background" if background else "classes", "values")
    layer = OutputRows(factors, shapes)  # type: ignore[arg-type]
    own = torch.zeros(anchors * (2 + background) * values, 1)
    other = torch.arange(float(anchors * (3 + background) * values))[:, None] + 1
    found = taken_rows(own, other, layer, layer, classes=(order[:2], ("a", "b", "c")))
    assert found is not None
    wanted = [
        1 + (a * (3 + background) + (3 if c == 2 else "abc".index(order[c]))) * values + v
        for a in range(anchors)
        for c in range(2 + background)
        for v in range(values)
    ]
    assert found[0][:, 0].tolist() == wanted
