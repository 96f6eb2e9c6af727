"""The rules of a plan as a table of what follows from what, what they rest on, and that their recipes are recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_sets import MACHINE, SPEEDS, base, like

from flyspeck.plan import rules
from flyspeck.plan.choices import JUDGED, MEASURED, Machine, Plan, Speed
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.init import EVALUATING, forecast_of
from flyspeck.plan.rivals import candidates
from flyspeck.plan.tiers import TIERS, allowed_tiers, best_tier
from flyspeck.train.build import build_detector
from flyspeck.train.config import parse_recipe

ROOT = Path(__file__).parents[2]
BASE = base()


def plan(
    found: Fingerprint = BASE,
    tier: str = "large",
    *,
    machine: Machine = MACHINE,
    minutes: float = 30,
    rate: float = 5.0,
) -> Plan:
    chosen = next(one for one in TIERS if one.name == tier)
    speed = Speed(rate, 10**9, 25.0)
    return rules.make_plan(
        found, machine, tier=chosen, minutes=minutes, speed=speed, name="x", train="t.json", val="v.json"
    )


SMALL_START = Machine(2, 16 * 10**9, start="IMAGENET1K_V1")
BOTH_STARTS = replace(SMALL_START, start_model="hituav_half", start_whole=("large",), start_fits=("medium", "large"))
ALONE = replace(BOTH_STARTS, start=None)
TABLE: list[tuple[str, dict[str, Any], str, Any]] = [
    # what is different from 600 images of 320x256 with objects of 10 px, key, value
    ("objects of 10 px", {}, "data.enlarge", 1.0),
    ("objects of 4 px span one cell", {"found": like(BASE, 4.0)}, "data.enlarge", 2.0),
    ("objects of 6 px span one and a half", {"found": like(BASE, 6.0)}, "data.enlarge", 1.0),
    ("... enlarged, large ones would not fit", {"found": like(BASE, 4.0, long_side=180.0)}, "data.enlarge", 1.0),
    ("objects of 24 px in half the size", {"found": like(BASE, 24.0)}, "data.enlarge", 0.5),
    ("objects of 100 px in an eighth", {"found": like(BASE, 100.0, image_size=(3000, 4000))}, "data.enlarge", 0.125),
    ("... but no image smaller than 128x160", {"found": like(BASE, 100.0)}, "data.enlarge", 0.5),
    ("objects larger than any tile", {"found": like(BASE, 20.0, long_side=900.0)}, "data.enlarge", 0.45),
    ("... do not shrink small ones away", {"found": like(BASE, 10.0, long_side=4096.0)}, "data.enlarge", 1.0),
    ("all objects larger than any tile",
     {"found": like(BASE, 777.0, long_side=1477.0, image_size=(1200, 1600))}, "data.enlarge", 0.125),
    ("small images go whole", {}, "augment.crop", [256, 320]),
    ("those of a phone too", {"found": like(BASE, image_size=(320, 256))}, "augment.crop", [320, 256]),
    ("large ones in crops", {"found": like(BASE, image_size=(3000, 4000))}, "augment.crop", [256, 320]),
    ("upright crops", {"found": like(BASE, image_size=(4000, 3000))}, "augment.crop", [320, 256]),
    ("long objects in larger ones", {"found": like(BASE, 10.0, image_size=(3000, 4000), long_side=300.0)},
     "augment.crop", [512, 640]),
    ("a panorama is no small image", {"found": like(BASE, image_size=(100, 1000))}, "augment.crop", [256, 320]),
    ("empty crops are avoided", {"found": like(BASE, image_size=(3000, 4000))}, "augment.toward_objects", 0.8),
    ("... of large images among small ones too",
     {"found": like(BASE, image_size=(20, 20), largest_image=(6000, 8000))}, "augment.toward_objects", 0.8),
    ("... images of one size go whole", {}, "augment.toward_objects", 0.0),
    ("whole images need that not", {}, "augment.toward_objects", 0.0),
    ("grey as colour", {"found": like(BASE, grey_as_colour=True)}, "data.channels", 1),
    ("four bands", {"found": like(BASE, bands=4)}, "data.channels", 4),
    ("images that fit", {}, "data.cache", "ram"),
    ("images that do not", {"found": like(BASE, megapixels=3000.0)}, "data.cache", "none"),
    ("images that do not once they are enlarged", {"found": like(BASE, 4.0, megapixels=600.0)}, "data.cache", "none"),
    ("images that fit once they are shrunk",
     {"found": like(BASE, 24.0, megapixels=3000.0, image_size=(600, 800))}, "data.cache", "ram"),
    ("broken entries", {"found": like(BASE, problems=90)}, "data.max_broken_share", 0.06),
    ("one class", {}, "augment.oversample", 0.0),
    ("a rare class", {"found": like(BASE, classes={"a": 900, "b": 9}, imbalance=100.0)}, "augment.oversample", 0.5),
    ("sizes that differ by image", {"found": like(BASE, image_medians=(5.0, 40.0))}, "augment.scale", [0.6, 1.6]),
    ("tiny objects", {}, "model.assigner.name", "nwd"),
    ("small anchors", {}, "model.anchors.base_scale", 2.5),
    ("no smaller than a cell", {"found": like(BASE, 4.0, long_side=200.0)}, "model.anchors.base_scale", 1.0),
    ("no larger than three", {"found": like(BASE, 23.0)}, "model.anchors.base_scale", 3.0),
    ("objects apart", {}, "model.suppression", "tiny"),
    ("a crowd", {"found": like(BASE, crowded_share=0.2)}, "model.suppression", "nms"),
    ("few boxes", {}, "model.max_detections", 100),
    ("many boxes", {"found": like(BASE, most_objects=375)}, "model.max_detections", 600),
    ("no weights here", {}, "model.weights", None),
    ("weights here", {"machine": SMALL_START}, "model.weights", "IMAGENET1K_V1"),
    ("... which points have no use for", {"machine": SMALL_START, "tier": "small"}, "model.weights", None),
    ("few images that are seen shortly, and a trained detector here",
     {"machine": BOTH_STARTS, "tier": "large", "found": like(BASE, images=50), "minutes": 10.0}, "model.start", "hituav_half"),
    ("... that are seen for long", {"machine": BOTH_STARTS, "tier": "large", "found": like(BASE, images=50)},
     "model.weights", "IMAGENET1K_V1"),
    ("... of which another detector has the backbone alone",
     {"machine": BOTH_STARTS, "tier": "medium", "found": like(BASE, images=50), "minutes": 10.0},
     "model.weights", "IMAGENET1K_V1"),
    ("... which it takes without ImageNet's", {"machine": ALONE, "tier": "medium"}, "model.start", "hituav_half"),
    ("many images, and a trained detector here", {"machine": BOTH_STARTS, "tier": "large", "minutes": 10.0},
     "model.weights", "IMAGENET1K_V1"),
    ("a long training", {"minutes": 60.0}, "train.batch_size", 16),
    ("a short one", {"minutes": 10.0}, "train.batch_size", 4),
    ("one image", {"found": like(BASE, images=1)}, "train.batch_size", 1),
    ("tiny objects decide", {}, "evaluate.best", "ap50_tiny"),
    ("others do", {"found": like(BASE, tiny_share=0.1)}, "evaluate.best", "ap50_all"),
    ("two processors, images in memory", {}, "train.workers", 0),
    ("more of them", {"machine": Machine(16, 16 * 10**9)}, "train.workers", None),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given_", "key", "value"), TABLE, ids=[f"{row[0]}: {row[2]}" for row in TABLE])
def test_what_follows_from_what(what: str, given_: dict[str, Any], key: str, value: Any) -> None:
    assert plan(**given_).value(key) == value


@pytest.mark.parametrize(("size", "factor"), [(4.0, 2.0), (10.0, 1.0), (24.0, 0.5)])
def test_images_are_kept_in_memory_as_the_network_sees_them(size: float, factor: float) -> None:
    """Enlarged before they are kept: four times the memory at twice the size."""
    found = like(BASE, size, megapixels=100.0, image_size=(600, 800))
    chosen = plan(found)
    assert (chosen.value("data.enlarge"), chosen.value("data.cache")) == (factor, "ram")
    kept = forecast_of(chosen, found).memory - 10**9 - EVALUATING
    assert kept == 100e6 * 3 * factor**2


def test_large_objects_need_no_assigner_of_their_own() -> None:
    keys = [choice.key for choice in plan(like(BASE, 20.0)).choices]
    assert "model.assigner.name" not in keys


def test_every_reason_rests_on_a_page_that_is_there_or_says_that_it_is_a_judgement() -> None:
    for tier in (one.name for one in TIERS):
        for choice in plan(tier=tier).choices:
            assert choice.rests_on == JUDGED or choice.rests_on in MEASURED, choice
            assert choice.reason
    for page, heading in MEASURED.values():
        assert f"# {heading}\n" in (ROOT / page).read_text(encoding="utf-8"), heading


@pytest.mark.parametrize("tier", [one.name for one in TIERS])
def test_the_detector_of_every_plan_can_be_built(tier: str) -> None:
    model = parse_recipe(plan(tier=tier).recipe()).model
    # The only values that come from the training set's images.
    filled = model.model_copy(update={"fusion": 0.5 if model.fusion == "statistic" else model.fusion})
    with torch.device("meta"):
        detector = build_detector(filled, classes=tuple(BASE.classes), mean=(0.5,) * 3, std=(0.2,) * 3)
    assert sum(p.numel() for p in detector.parameters()) > 10_000


@pytest.mark.parametrize(
    ("minutes", "images", "name"),
    [(1, 600, "smallest"), (4, 600, "small"), (10, 600, "medium"), (50, 600, "large"), (120, 600, "largest"),
     (60, 3000, "large"), (30, 3000, "medium"), (1, 10**6, "smallest")],
)  # fmt: skip
def test_the_largest_detector_that_sees_enough(minutes: float, images: int, name: str) -> None:
    # At least 3600 images and six passes: 40, 20, 10, 5 and 1 images a second.
    tier, why = best_tier(like(BASE, images=images), SPEEDS, minutes)
    assert tier.name == name
    assert "sees" in why


def test_many_classes_leave_out_scores_of_every_class_at_every_point() -> None:
    many = like(BASE, classes={f"class {k}": 1 for k in range(10_000)})
    assert [tier.name for tier in allowed_tiers(many)] == ["medium", "large", "largest"]
    notes = list(rules.remarks(many, 30, 5.0))
    assert any(
        "fewer than 20 objects, too few to learn or to measure: 10000 classes" in note and len(note) < 300
        for note in notes
    )


def test_what_does_not_fit_in_the_time_says_what_would() -> None:
    notes = list(rules.remarks(like(BASE, images=100_000), 10, 5.0))  # 3000 of 100000 images
    assert any(
        "does not fit in the time" in note and "in 334 minutes all, in 2000 minutes all 6 times" in note
        for note in notes
    )
    assert not any("does not fit" in note for note in rules.remarks(BASE, 60, 5.0))


def test_objects_of_one_size_and_crowded_images_are_said() -> None:
    assert any("all objects have one size (10.0 px)" in note for note in rules.remarks(BASE, 60, 5.0))
    assert "images in 0.768 minutes" in best_tier(BASE, SPEEDS, 46.1 / 60)[1]
    rounded = like(BASE, 10.0, size_quantiles={"5": 9.99, "25": 10.0, "50": 10.0, "75": 10.0, "95": 10.01})
    assert any("all objects have one size (10.0 px)" in note for note in rules.remarks(rounded, 60, 5.0))
    assert any("375 boxes" in note for note in rules.remarks(like(BASE, most_objects=375), 60, 5.0))


@pytest.mark.parametrize(("minutes", "count"), [(3, 1), (10, 2), (40, 3)])
def test_candidates_by_the_minutes(minutes: float, count: int) -> None:
    picked = candidates(BASE, SPEEDS, minutes)
    assert len(picked) == count
    assert len({name for name, *_ in picked}) == count
    assert picked[0][1] == best_tier(BASE, SPEEDS, minutes)[0]


FAST = SPEEDS | {
    "speck_n": Speed(30.0, 10**9, 300.0), "speck_s": Speed(15.0, 10**9, 150.0), "speck_m": Speed(6.0, 10**9, 60.0),
}  # fmt: skip
SLOW = {name: Speed(speed.images_per_second / 3, 0, speed.detect_per_second) for name, speed in FAST.items()}


@pytest.mark.parametrize(
    ("speeds", "minutes", "names"),
    [
        (FAST, 3, ["small"]),  # alone
        (FAST, 5.9, ["small"]),
        (SLOW, 7, ["smallest", "speck_n"]),  # begins at random: the fast one beside it
        (SLOW, 16, ["small", "speck_s", "medium"]),
        (FAST, 10, ["medium", "large"]),
        (FAST, 40, ["large", "largest", "large-x2"]),  # all places are taken
        (FAST, 100, ["largest", "large", "largest-x2"]),
    ],
)
def test_a_fast_detector_is_tried_where_the_guess_begins_at_random(
    speeds: dict[str, Speed], minutes: float, names: list[str]
) -> None:
    picked = candidates(BASE, speeds, minutes)
    assert [name for name, *_ in picked] == names
    for _, tier, _, why in picked[1:]:
        assert not tier.fast or "times as many images a second" in why


def test_a_fast_detector_takes_the_place_of_another_size_where_none_is_worth_trying() -> None:
    # Objects of 16 px: neither larger nor smaller images are tried.
    names = [name for name, *_ in candidates(like(BASE, 16.0), FAST, 40)]
    assert names == ["large", "largest", "speck_m"]


def test_no_plan_begins_with_a_fast_detector_where_another_sees_enough() -> None:
    assert not best_tier(BASE, FAST, 3)[0].fast
    quick = FAST | {"speck_n": Speed(100.0, 0, 1.0)}
    tier, why = best_tier(BASE, quick, 0.5)
    assert (tier.name, "the most of all" in why) == ("speck_n", True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_fingerprint_gives_a_recipe_that_is_accepted(data: st.DataObject) -> None:
    size = data.draw(st.floats(1, 3000))
    found = like(
        BASE,
        size,
        long_side=size * data.draw(st.floats(1, 20)),
        image_size=(data.draw(st.integers(8, 20_000)), data.draw(st.integers(8, 20_000))),
        images=data.draw(st.integers(1, 10**6)),
        most_objects=data.draw(st.integers(1, 5000)),
        crowded_share=data.draw(st.floats(0, 1)),
        tiny_share=data.draw(st.floats(0, 1)),
        megapixels=data.draw(st.floats(0.001, 10**6)),
        bands=data.draw(st.sampled_from([1, 3, 8])),
        problems=data.draw(st.integers(0, 10**6)),
        ratios=tuple(data.draw(st.lists(st.floats(0.05, 20), min_size=1, max_size=3))),
    )
    tier = data.draw(st.sampled_from(TIERS)).name
    minutes, rate = data.draw(st.floats(0.5, 10_000)), data.draw(st.floats(0.01, 5000))
    recipe = parse_recipe(plan(found, tier, minutes=minutes, rate=rate).recipe())
    assert recipe.train.minutes == minutes
    factor = recipe.data.enlarge
    assert factor >= 1 or size * factor >= rules.SMALL * 0.99  # none is shrunk away
    assert recipe.augment.crop is not None
    assert max(recipe.augment.crop) <= 1024


@pytest.mark.parametrize(("fullest", "proposals"), [(3, 300), (200, 300), (201, 400), (375, 600), (2000, 3000)])
def test_a_crowd_has_as_many_proposals_as_boxes_are_kept(fullest: int, proposals: int) -> None:
    found = replace(BASE, most_objects=fullest)
    for tier in TIERS:
        values = {choice.key: choice.value for choice in rules.detector(found, tier, MACHINE, 1.0, 5000)}
        if "proposals" not in tier.model.get("head", {}):
            assert "model.head.proposals" not in values
            continue
        assert values["model.head.proposals"] == proposals >= values["model.max_detections"]
        assert values["model.head.train_proposals"] == round(proposals * 5 / 3)
