"""Which images a run is measured on whole and which in tiles, how many at a time; that it is measured once, and what is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flyspeck.data.bands import PixelRule
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.models.profile import activation_bytes_per_pixel, profile
from flyspeck.train import measure as measuring
from flyspeck.train.build import build_detector, load_described
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.progress import Advance, EvaluationLines
from flyspeck.train.run import train
from flyspeck.train.viewing import PASS_BYTES, Viewing, remarks_on, viewing_of
from small_training import base_recipe, write_squares

RULE = PixelRule(channels=1)


def recipe_with(folder: Path | None = None, **sections: Any) -> Recipe:
    content = base_recipe()
    where = Path("data") if folder is None else folder / "data/squares"
    content["data"] |= {"train": str(where / "train.json"), "val": str(where / "val.json")}
    return parse_recipe({name: {**content.get(name, {}), **sections.get(name, {})} for name in {**content, **sections}})


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector(recipe_with().model, classes=["square"], mean=[0.5], std=[0.2])


def viewing(detector: Detector, training: tuple[int, int], scale: float = 1.0, **evaluate: Any) -> Viewing:
    description = {"training_size": training, "object_side_99": 12.0}
    return viewing_of(recipe_with(evaluate=evaluate), description, detector, RULE, scale=scale)


def test_activations_are_those_of_the_profile(detector: Detector) -> None:
    """512x512 pixels and the weights are what `profile` calls peak memory; the detector keeps its weights where they are."""
    counted = profile(detector, (512, 512)).peak_memory_mb * 1e6
    weights = sum(t.numel() * t.element_size() for t in (*detector.parameters(), *detector.buffers()))
    assert activation_bytes_per_pixel(detector) == pytest.approx((counted - weights) / 512**2)
    assert {p.device.type for p in detector.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("size", "whole"),
    [
        ((512, 640), True),
        ((1024, 1280), True),
        ((1280, 1024), True),  # turned by a quarter
        ((1024, 1281), False),
        ((1025, 1025), False),
        ((64, 3000), False),
        ((10, 10), True),
    ],
)
def test_images_of_up_to_twice_the_training_go_whole(detector: Detector, size: tuple[int, int], whole: bool) -> None:
    seen = viewing(detector, (512, 640))
    assert (seen.tile, seen.overlap) == ((512, 640), 16)
    assert seen.goes_whole(size) is whole


def test_memory_bounds_what_goes_whole(detector: Detector) -> None:
    """A hundred times the activations, as of a heavy detector: what is larger than the training's goes in tiles."""
    light, heavy = viewing(detector, (512, 640)), viewing(detector, (512, 640), scale=10.0)
    assert light.pixels_at_once == int(PASS_BYTES / activation_bytes_per_pixel(detector))
    assert heavy.pixels_at_once == pytest.approx(light.pixels_at_once / 100, abs=1)
    assert heavy.goes_whole((512, 640))
    assert not heavy.goes_whole((600, 640))
    assert heavy.at_once((512, 640)) == 1
    assert light.at_once((512, 640)) == min(8, light.pixels_at_once // (512 * 640)) > 2
    assert light.at_once((64, 64)) == 8


def test_images_of_a_large_training_go_in_smaller_tiles(detector: Detector) -> None:
    seen = viewing(detector, (4000, 6000))
    assert seen.tile is not None
    height, width = seen.tile
    assert height * width <= 2_000_000
    assert height % detector.divisor == width % detector.divisor == 0
    assert height / width == pytest.approx(4000 / 6000, rel=0.05)
    assert not seen.goes_whole((4000, 6000))


def test_a_recipe_says_otherwise(detector: Detector) -> None:
    seen = viewing(detector, (512, 640), tile=[256, 320])
    assert (seen.tile, seen.overlap) == ((256, 320), 16)
    assert seen.goes_whole((256, 320))
    assert not seen.goes_whole((320, 256))
    assert viewing(detector, (512, 640), tile=[24 + 8, 32]).overlap == 16  # half a tile at most
    assert viewing(detector, (512, 640), tile="off").goes_whole((30_000, 40_000))
    description = {"training_size": (64, 64), "enlarge": {"factor": 1.0, "short_side": None, "squeeze": [64, 64]}}
    squeezed = viewing_of(recipe_with(), description, detector, RULE)
    assert squeezed.goes_whole((30_000, 40_000))
    in_parts = viewing_of(recipe_with(evaluate={"tile": [300, 400]}), description, detector, RULE)
    assert in_parts.goes_whole((300, 400))
    assert not in_parts.goes_whole((301, 400))


def test_a_tile_that_the_detector_cannot_take_is_refused(detector: Detector) -> None:
    assert detector.smallest_side == 32
    with pytest.raises(UserError, match=r"evaluate\.tile: a tile of 32x31 for a detector that needs 32 px"):
        viewing(detector, (512, 640), tile=[32, 31])


@pytest.mark.parametrize("tile", ["512", [512], [512.5, 512], [0, 512], "whole", True])
def test_a_tile_that_is_none_is_refused(tile: Any) -> None:
    with pytest.raises(UserError, match=r"evaluate\.tile"):
        recipe_with(evaluate={"tile": tile})


@pytest.mark.parametrize("word", ["off", False])
def test_off_is_off_however_yaml_reads_it(word: Any) -> None:
    assert recipe_with(evaluate={"tile": word}).evaluate.tile == "off"


def test_what_is_unusual_is_said(detector: Detector, tmp_path: Path) -> None:
    write_squares(tmp_path)
    table = read_annotations(tmp_path / "data/squares/val.json")  # five images of 64x48
    assert remarks_on(viewing(detector, (48, 64)), table, detector) == []
    (line,) = remarks_on(viewing(detector, (32, 32), tile=[32, 48]), table, detector)
    assert "5 of 5 images are large and go in tiles of 32x48 that share 16 px" in line
    (line,) = remarks_on(viewing(detector, (48, 64), scale=1000.0), table, detector)
    assert line.startswith("evaluation: 64x64 px at once take about")


def test_a_detector_that_keeps_more_of_whole_images_than_its_recipe_says_tells_so(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 64x48 are padded to 64x64, four times a crop of 32x32; of tiles of a crop's size, nothing grows."""
    write_squares(tmp_path)
    table = read_annotations(tmp_path / "data/squares/val.json")
    monkeypatch.setattr(detector, "counts_area", 32 * 32)
    (line,) = remarks_on(viewing(detector, (32, 32)), table, detector)
    assert "64x64 px have 4.0 times the area of what the detector learns from" in line
    assert "model.counts: fixed" in line
    (tiles,) = remarks_on(viewing(detector, (32, 32), tile=[32, 32]), table, detector)
    assert "model.counts" not in tiles
    monkeypatch.setattr(detector, "counts_area", 48 * 64)
    assert remarks_on(viewing(detector, (48, 64)), table, detector) == []


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that a set is looked at."""
    calls: list[int] = []
    plain = measuring.detect_all

    def counting(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return plain(*given, **named)

    monkeypatch.setattr(measuring, "detect_all", counting)
    return calls


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], ids=["best is last", "best is first"])
def test_a_run_measures_every_epoch_once(
    tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch, scores: list[float]
) -> None:
    given = iter([0.0, *scores])  # the first is asked whether there is such a metric
    monkeypatch.setattr(measuring, "metrics_of", lambda result: {"ap50_all": next(given)})
    recipe = recipe_with(write_squares(tmp_path), train={"epochs": 3, "eval_every": 1}, evaluate={"best": "ap50_all"})
    assert train(recipe, tmp_path / "run")["ap50_all"] == 0.3
    assert len(counted) == 3
    monkeypatch.undo()
    # What was written is what the best weights find.
    kept = json.loads((tmp_path / "run" / "detections.json").read_text())
    again = viewing_again(tmp_path / "run", recipe)
    assert len(kept) == len(again) > 0
    np.testing.assert_allclose([one["score"] for one in kept], [one["score"] for one in again], atol=1e-5)


def viewing_again(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """The detections of the best weights, by way of another measurement."""
    from accelerate import Accelerator

    best, description = load_described(run)
    annotations = read_annotations(recipe.data.val)
    view = viewing_of(recipe, description, best, RULE)
    found = measuring.measure(best, annotations, protocol="flyspeck", viewing=view, accelerator=Accelerator(cpu=True))
    (run / "again").mkdir()
    found.write(run / "again", annotations)
    return json.loads((run / "again" / "detections.json").read_text())


def test_a_resumed_run_measures_what_it_does_not_know(tmp_path: Path, counted: list[int]) -> None:
    recipe = recipe_with(write_squares(tmp_path), train={"epochs": 1, "eval_every": 1})
    first = train(recipe, tmp_path / "run")
    assert len(counted) == 1
    assert train(recipe, tmp_path / "run", resume=True) == pytest.approx(first)
    assert len(counted) == 2


def test_a_run_looks_at_a_large_image_in_tiles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One validation image of 200x300 beside those of 48x64, and boxes at its far end."""
    folder = write_squares(tmp_path) / "data/squares"
    content = json.loads((folder / "val.json").read_text())
    pixels = np.full((200, 300), 75, np.uint8)
    pixels[180:188, 280:288] = 250
    Image.fromarray(pixels).save(folder / "large.png")
    content["images"].append({"id": 99, "file_name": "large.png", "width": 300, "height": 200})
    box = {"id": 99, "image_id": 99, "bbox": [280, 180, 8, 8], "area": 64, "category_id": 1, "iscrowd": 0}
    content["annotations"].append(box)
    (folder / "val.json").write_text(json.dumps(content))
    with caplog.at_level(logging.INFO, "flyspeck"):
        train(recipe_with(tmp_path), tmp_path / "run")
    assert "evaluation: 1 of 6 images are large and go in tiles of 48x64" in caplog.text
    found = [one for one in json.loads((tmp_path / "run/detections.json").read_text()) if one["image_id"] == 99]
    assert max(one["bbox"][0] + one["bbox"][2] for one in found) > 250
    assert all(one["bbox"][0] >= 0 and one["bbox"][0] + one["bbox"][2] <= 300.01 for one in found)


# --- progress ---------------------------------------------------------------------------------------------------------


def lines_of(steps: list[tuple[float, Advance]], every: float = 10.0) -> list[str]:
    """What is said of an evaluation that has come so far at these seconds."""
    now, said = [0.0], []
    lines = EvaluationLines(lambda text, _: said.append(text), every=every, clock=lambda: now[0])
    for second, advance in steps:
        now[0] = second
        lines(advance)
    return said


def test_a_short_evaluation_is_silent() -> None:
    assert lines_of([(0, Advance(0, 2)), (1.0, Advance(1, 2, share=0.5)), (1.9, Advance(2, 2, share=1.0))]) == []


def test_a_long_one_says_how_far_it_is_and_how_long_it_takes() -> None:
    steps = [
        (100, Advance(0, 4)),
        (101, Advance(1, 4, share=0.05)),
        (102, Advance(2, 4, share=0.1)),
        (105, Advance(2, 4, 3, 40, share=0.2)),
        (120, Advance(2, 4, 30, 40, share=0.5)),
        (140, Advance(4, 4, share=1.0)),
        (200, Advance(0, 4)),  # the next evaluation begins anew
        (201, Advance(4, 4, share=1.0)),
    ]
    assert lines_of(steps) == [
        "evaluating: 2 of 4 images, 0:00:18 left",
        "evaluating: 2 of 4 images, 30 of 40 tiles of the next, 0:00:20 left",
        "evaluated 4 images in 0:00:40",
    ]


def test_lines_get_fewer() -> None:
    """A thousand seconds, a thousand images: fewer than forty lines, and the time left falls."""
    steps = [(float(i), Advance(i, 1000, share=i / 1000)) for i in range(1001)]
    said = lines_of(steps)
    assert 10 < len(said) < 40
    assert said[0] == "evaluating: 2 of 1000 images, 0:16:38 left"
    assert said[-1] == "evaluated 1000 images in 0:16:40"


def test_several_processes_say_whose_share_it_is() -> None:
    assert Advance(1, 5, share=0.2, processes=3).words == "1 of 5 images (of this process, one of 3)"
