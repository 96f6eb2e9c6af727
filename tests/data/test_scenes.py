"""The generated data set: exact boxes, the published size distribution, the same bytes for the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from flyspeck import boxes as B
from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.data.scenes import CLASSES, KINDS, generate_scene, plan, scene_seed
from flyspeck.data.scenes.camera import Camera
from flyspeck.data.scenes.dataset import scenes_annotations, write_scenes
from flyspeck.data.scenes.ground import Light
from flyspeck.data.scenes.noise import fractal
from flyspeck.data.scenes.objects import BOAT, CAR, PERSON, Thing, draw_plan, hull, paint
from flyspeck.errors import UserError


@cache
def _many():
    return scenes_annotations(400, seed=2026)


def test_sizes_follow_tinyperson():
    # "Rethinking the Backbone Architecture for Tiny Object Detection", Table 1 gives TinyPerson as 18.0 ± 17.4 px; 73 % of its
    # boxes are at most 20 px. Boxes of one scene are alike, so the standard errors come from resampling whole scenes.
    table = _many()
    objects = ~table.ignore
    sizes, scene = B.size(table.boxes[objects]), table.image_index[objects]
    order = np.argsort(scene, kind="stable")
    per_scene = np.split(sizes[order], np.cumsum(np.bincount(scene, minlength=400))[:-1])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(300):
        resampled = np.concatenate([per_scene[i] for i in rng.integers(0, 400, 400)])
        draws.append((resampled.mean(), resampled.std(), (resampled <= 20).mean()))
    found = np.array([sizes.mean(), sizes.std(), (sizes <= 20).mean()])
    error = np.std(draws, axis=0)
    published = np.array([18.0, 17.4, 0.73])
    assert (np.abs(found - published) < 3 * error).all(), (found, error)
    # and the test has the power to notice: no error bar is wide
    assert (error < [1.1, 1.1, 0.04]).all(), error


def test_the_set_has_what_it_promises():
    table = _many()
    objects = ~table.ignore
    counts = np.bincount(table.image_index[objects], minlength=400)
    assert (counts == 1).any()  # alone
    assert (counts > 60).any()  # in crowds
    assert set(np.unique(table.labels[objects])) == {PERSON, BOAT, CAR}
    sizes = B.size(table.boxes)
    for low, high in ((2, 8), (8, 12), (12, 20), (20, 32)):
        assert ((sizes >= low) & (sizes < high) & objects).sum() > 400
    assert sizes[objects].min() >= 2
    assert (table.labels[~objects] == -1).all()
    assert 0.05 < len(np.unique(table.image_index[~objects])) / 400 < 0.4


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**9), size=st.sampled_from([(64, 64), (512, 640), (200, 900)]), kind=st.sampled_from(KINDS)
)
def test_boxes_lie_in_the_image(seed, size, kind):
    height, width = size
    scene, _ = plan(seed, height=height, width=width, kind=kind)
    boxes = scene.boxes
    assert len(boxes) == len(scene.labels) == len(scene.ignore)
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= width).all()
    assert (boxes[:, [1, 3]] <= height).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    # an object lies under an ignore region wholly or not at all
    objects, regions = boxes[~scene.ignore], boxes[scene.ignore]
    assert (B.intersection(objects, regions) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind):
    first, again = (generate_scene(scene_seed(5, 1), height=96, width=128, kind=kind) for _ in range(2))
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert_array_equal(first.boxes, again.boxes)
    other = generate_scene(scene_seed(5, 2), height=96, width=128, kind=kind)
    assert (other.pixels != first.pixels).mean() > 0.5
    assert first.pixels.shape == (96, 128, 3)
    assert first.pixels.dtype == np.uint8


def test_a_larger_image_has_more_objects_not_larger_ones():
    # The median over scenes of one size is compared with four times the area: counts grow, sizes stay.
    small = [plan((9, i), height=256, width=320)[0] for i in range(30)]
    large = [plan((9, i), height=1024, width=1280)[0] for i in range(30)]
    count = [np.mean([(~p.ignore).sum() for p in group]) for group in (small, large)]
    size = [np.median(np.concatenate([B.size(p.boxes[~p.ignore]) for p in group])) for group in (small, large)]
    assert count[1] > 5 * count[0]
    assert 0.6 < size[1] / size[0] < 1.6


def test_a_denser_scene_has_more_objects_of_the_same_size():
    sparse, dense = (scenes_annotations(60, seed=5, height=256, width=320, density=d) for d in (1.0, 3.0))
    counts = [(~table.ignore).sum() for table in (sparse, dense)]
    sizes = [np.median(B.size(table.boxes[~table.ignore])) for table in (sparse, dense)]
    assert 1.8 < counts[1] / counts[0] < 3.5
    assert 0.7 < sizes[1] / sizes[0] < 1.4
    assert_array_equal(scenes_annotations(4, seed=5).boxes, scenes_annotations(4, seed=5, density=1.0).boxes)


@pytest.mark.parametrize("label", [PERSON, BOAT, CAR])
@pytest.mark.parametrize("pixels_per_metre", [2.0, 9.0, 30.0])
@pytest.mark.parametrize("tilt", [0.05, 0.7])
def test_the_box_is_the_extent_of_what_is_painted(label, pixels_per_metre, tilt):
    camera = Camera(256, 256, pixels_per_metre, tilt, 400.0)
    thing = Thing(
        label, 0.3, -0.2, 0.7, {PERSON: "standing", BOAT: "motor", CAR: "car"}[label], colours=((255, 255, 255),) * 4
    )
    drawing = draw_plan(thing, camera, Light(1.0, 1.0, 0.0))
    canvas = Image.new("RGB", (256, 256))
    paint(canvas, drawing)
    ys, xs = np.nonzero(np.asarray(canvas).max(2) > 0)
    painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    # every pixel that the box touches may be tinted, and no other: the painted extent is the box, rounded outwards;
    # a sliver below 1/8 px may leave no trace, and the pen's outline may add as much
    assert_allclose(painted, np.concatenate([np.floor(drawing.box[:2]), np.ceil(drawing.box[2:])]), atol=1)


def test_projection_by_hand():
    # Straight down from 100 m with a focal length of 200 px: 2 px a metre. A point 10 m right and 5 m away lies 20 px right
    # of and 10 px above the middle (50, 40). One 50 m up is twice as near: 4 px a metre.
    camera = Camera(80, 100, 2.0, 0.0, 200.0)
    assert_allclose(camera.project(np.array([[10.0, 5.0, 0.0], [10.0, 5.0, 50.0]])), [[70, 30], [90, 20]])


@given(tilt=st.floats(0, 0.9), x=st.floats(0, 640), y=st.floats(0, 512))
def test_unproject_is_the_inverse(tilt, x, y):
    camera = Camera(512, 640, 7.0, tilt, 900.0)
    ground = camera.unproject(np.array([[x, y]]))
    assert_allclose(camera.project(np.append(ground[0], 0.0)[None]), [[x, y]], atol=1e-6)


def test_the_ground_is_seen_where_things_are_projected():
    # A white square metre on a black map must appear where its corners are projected.
    camera = Camera(200, 240, 12.0, 0.6, 300.0)
    x1, _, _, y2 = camera.footprint()
    flat = np.zeros((700, 700, 3), np.uint8)
    column, row = round((2.0 - x1) * 12), round((y2 - 1.0) * 12)
    flat[row : row + 36, column : column + 36] = 255
    left, top = x1 + column / 12, y2 - row / 12
    corners = np.array([[left, top, 0], [left + 3, top, 0], [left + 3, top - 3, 0], [left, top - 3, 0]])
    expected = camera.project(corners)
    seen = np.asarray(camera.warp(Image.fromarray(flat), (x1, y2)))[..., 0] > 127
    ys, xs = np.nonzero(seen)
    assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], [*expected.min(0), *expected.max(0)], atol=1)


def test_hull_of_a_square_with_a_point_inside():
    points = np.array([[0, 0], [2, 0], [2, 2], [0, 2], [1, 1], [1, 0]], float)
    assert {tuple(p) for p in hull(points)} == {(0, 0), (2, 0), (2, 2), (0, 2)}


def test_noise_is_centred_and_smooth():
    field = fractal(np.random.default_rng(0), 300, 400, coarsest=32, finest=8)
    assert field.shape == (300, 400)
    assert abs(float(field.mean())) < 0.25
    assert 0.5 < float(field.std()) < 1.5
    assert np.abs(np.diff(field, axis=1)).max() < 1.0  # nothing jumps: the finest cell is 8 px


def test_written_as_coco_and_read_back(tmp_path):
    target = write_scenes(tmp_path / "a", num_images=3, seed=4, height=96, width=120)
    table, expected = read_annotations(target), scenes_annotations(3, seed=4, height=96, width=120)
    assert table.classes == CLASSES
    assert_array_equal(table.labels, expected.labels)
    assert_array_equal(table.ignore, expected.ignore)
    assert_allclose(table.boxes, expected.boxes, atol=1e-5)
    for index in range(3):
        stored = np.asarray(Image.open(table.path(index)))
        assert_array_equal(stored, generate_scene(scene_seed(4, index), height=96, width=120).pixels)
    assert not list((tmp_path / "a").rglob("*.tmp"))
    with pytest.raises(UserError, match="there already"):
        write_scenes(tmp_path / "a", num_images=1, seed=4)


def test_a_longer_set_starts_with_the_shorter_one():
    short, long = (scenes_annotations(n, seed=8, height=128, width=128) for n in (2, 4))
    assert_array_equal(long.boxes[: short.num_boxes], short.boxes)


def test_command(tmp_path, capsys):
    out = tmp_path / "scenes"
    command = [
        "data",
        "scenes",
        "--out",
        str(out),
        "--num-images",
        "2",
        "--seed",
        "3",
        "--size",
        "64x80",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    assert "2 images of 64 x 80" in capsys.readouterr().out
    content = json.loads((out / "annotations.json").read_text())
    assert [(i["height"], i["width"]) for i in content["images"]] == [(64, 80)] * 2
    assert main([*command[:-4], "--size", "64", "--out", str(tmp_path / "b")]) == 2
    assert "write HxW in pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "see"}, "did you mean 'sea'"),
        ({"height": 8}, "height 8 is out of range"),
        ({"width": 10**6}, "width 1000000 is out of range"),
        ({"density": 0}, "density 0 is out of range"),
        ({"density": float("nan")}, "density nan is out of range"),
    ],
)
def test_wrong_arguments_say_so(arguments, words):
    with pytest.raises(UserError, match=words):
        generate_scene(0, **arguments)


def test_a_negative_seed_is_refused():
    with pytest.raises(UserError, match="whole number from 0"):
        generate_scene(-1)


def test_a_script_without_a_main_guard_is_told_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "paint.py"
    script.write_text(
        "from flyspeck.data.scenes.dataset import write_scenes\n"
        f"write_scenes({str(tmp_path / 'out')!r}, num_images=4, seed=0, height=32, width=32, workers=2)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "call this below `if __name__" in done.stderr.splitlines()[-1]


def test_processes_paint_the_same_scenes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_scenes(tmp_path / str(workers), num_images=3, seed=5, height=32, width=40, workers=workers)
    names = sorted(p.relative_to(tmp_path / "1") for p in (tmp_path / "1").rglob("*") if p.is_file())
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
