from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from planted import SeesPlanted, plant

from flyspeck.errors import UserError
from flyspeck.infer.merge import MergeRule
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.several import ImagesFailed
from flyspeck.infer.windows import ArraySource
from flyspeck.types import Detections

SIZE, TILE, OVERLAP = (100, 136), (48, 56), 16


def found_once(found: Detections, objects: np.ndarray) -> None:
    assert len(found) == len(objects)
    got = found.boxes[np.lexsort(found.boxes.T)]
    want = np.asarray(objects, np.float32)
    assert_array_equal(got, want[np.lexsort(want.T)])


def borders() -> tuple[list[int], list[int]]:
    frames, _ = Predictor(SeesPlanted(np.zeros((0, 4))), tile=TILE, overlap=OVERLAP).tiles_of(SIZE)
    x = sorted({int(v) for v in frames[:, [0, 2]].ravel()})
    y = sorted({int(v) for v in frames[:, [1, 3]].ravel()})
    assert len(x) == 6  # three columns: their three left and three right borders
    assert len(y) == 6
    return x, y


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
@pytest.mark.parametrize("proud", [True, False])
def test_objects_on_every_border_and_corner_are_found_once(side: int, proud: bool) -> None:
    """On, just before, across and just behind every border of every tile, the image's own included, along both axes."""
    xs, ys = borders()
    places = [
        (x + dx, y + dy)
        for x in xs
        for y in ys
        for dx in {-side - 1, -side, -side // 2, -1, 0, 1}
        for dy in {-side, -side // 2, 0}
    ]
    boxes = np.array(places)[:, [0, 1, 0, 1]] + [0, 0, side, side]
    boxes = boxes[(boxes >= 0).all(1) & (boxes[:, 2] <= SIZE[1]) & (boxes[:, 3] <= SIZE[0])]
    for rest in _disjoint(np.unique(boxes, axis=0)):
        predictor = Predictor(SeesPlanted(rest, proud=proud), tile=TILE, overlap=OVERLAP, batch_size=4)
        found = predictor.predict(plant(SIZE, rest))
        found_once(found[0], rest)
        assert not found[0].extra["cut"].any() or side == OVERLAP  # flush with the overlap's both ends counts as cut


def _disjoint(boxes: np.ndarray) -> list[np.ndarray]:
    """Groups of boxes that keep 1 px apart, so that one image can hold each group."""
    groups: list[list[np.ndarray]] = []
    for box in boxes:
        for group in groups:
            other = np.array(group)
            if ((box[:2] > other[:, 2:]) | (box[2:] < other[:, :2])).any(axis=1).all():
                group.append(box)
                break
        else:
            groups.append([box])
    return [np.array(group) for group in groups]


@pytest.mark.parametrize("gap", [1, 2, 3])
@pytest.mark.parametrize("side", [2, 3, 4, 6, 8])
def test_neighbours_across_a_seam_stay_two(side: int, gap: int) -> None:
    xs, ys = borders()
    for x in xs[1:-1]:
        for shift in range(gap + 1):
            left = np.array([x - side - shift, ys[2] - 1, x - shift, ys[2] - 1 + side])
            pair = np.stack([left, left + np.array([side + gap, 0, side + gap, 0])])
            found_once(Predictor(SeesPlanted(pair), tile=TILE, overlap=OVERLAP).predict(plant(SIZE, pair))[0], pair)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["nms", "nmm", "wbf"]))
def test_a_crowd_of_touching_and_overlapping_objects_survives_any_seam(seed: int, method: str) -> None:
    """Two layers of tiny objects in a crowd: overlapping pairs (below the threshold) and no lost neighbour anywhere."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation([(x, y) for x in range(0, SIZE[1] - 12, 6) for y in range(0, SIZE[0] - 12, 6)])[:150]
    sides = rng.integers(3, 7, (len(cells), 2))
    first = np.concatenate([cells, cells + sides], axis=1)
    # A partner of the same size, shifted by two thirds of a side: IoU at most 1/5.
    second = first + (np.ceil(sides * 2 / 3).astype(int) * [1, 0])[:, [0, 1, 0, 1]]
    keep = [group for group in _disjoint(np.concatenate([first, second], axis=1)[:, [0, 1, 6, 7]])][:1][0]
    first = np.array([f for f, s in zip(first, second, strict=True) if [*f[:2], *s[2:]] in keep.tolist()])
    second = np.array([s for s in second if any((s[2:] == k[2:]).all() for k in keep)])
    objects = np.stack([first, second], axis=1).reshape(-1, 4)  # alternating, so that partners lie on different layers
    predictor = Predictor(SeesPlanted(objects), tile=TILE, overlap=OVERLAP, merge=MergeRule(method=method))
    found_once(predictor.predict(plant(SIZE, objects, layers=2))[0], objects)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 3))
def test_batches_threads_and_company_do_not_show(seed: int, batch_size: int, readers: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(100, 148), (40, 30), (60, 148), (1, 1), (100, 148)]
    corner = rng.integers(0, 100, (40, 2))
    objects = _disjoint(np.concatenate([corner, corner + rng.integers(1, 15, (40, 2))], axis=1))[0]
    images = [plant((130, 148), objects)[:h, :w] for h, w in sizes]
    alone = [Predictor(SeesPlanted(objects), tile=TILE, overlap=OVERLAP).predict(p)[0] for p in images]
    model = SeesPlanted(objects)
    together = Predictor(model, tile=TILE, overlap=OVERLAP, batch_size=batch_size, readers=readers).predict(images)
    assert max(model.batches) <= batch_size
    assert [d.image_id for d in together] == [None] * 5  # arrays: they are known by their places
    for one, other in zip(alone, together, strict=True):
        assert one.image_size == other.image_size
        assert_array_equal(one.boxes, other.boxes)
        assert_array_equal(one.scores, other.scores)


def test_batches_cross_images() -> None:
    objects = np.array([[2, 2, 6, 6]])
    model = SeesPlanted(objects)
    Predictor(model, tile=32, overlap=8, batch_size=4).predict([plant((32, 32), objects)] * 8)
    assert model.batches == [4, 4]


def test_whole_images_without_tiles() -> None:
    objects = np.array([[2, 2, 6, 6], [90, 50, 97, 60]])
    model = SeesPlanted(objects)
    found = Predictor(model).predict(plant(SIZE, objects))[0]
    assert model.shapes == [(*SIZE, 1)]
    found_once(found, objects)


@pytest.mark.parametrize(
    "box", [[24, 30, 40, 46], [60, 62, 64, 70], [91, 10, 100, 19], [0, 0, 4, 4], [112, 112, 128, 128]]
)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_scale_maps_boxes_back(box: list[int], scale: float) -> None:
    # At half size, tiles of 24 cover 48 px and an overlap of 8 holds 16 px objects; edges come back within one seen pixel.
    shapes = set()

    def model(windows: list[np.ndarray]) -> list[Detections]:
        shapes.update(w.shape for w in windows)
        one = np.array([box])
        return [SeesPlanted(one)._see((w > 30000).astype(np.uint16)) for w in windows]

    pixels = np.zeros((128, 128), np.uint16)
    pixels[box[1] : box[3], box[0] : box[2]] = 60000
    found = Predictor(model, tile=24, overlap=round(16 * scale) if scale < 1 else 18, scale=scale).predict(pixels)[0]
    assert shapes == {(24, 24, 1)}
    if scale > 1:  # a tile of 12 px cannot hold the larger ones: their parts are reported
        assert (found.boxes[:, :2] >= np.array(box[:2]) - 1).all()
        assert (found.boxes[:, 2:] <= np.array(box[2:]) + 1).all()
    if scale < 1 or max(box[2] - box[0], box[3] - box[1]) < 9:
        assert_allclose(found.boxes, [box], atol=1.01 / min(scale, 1))


def test_weak_ones_are_left_out_and_extra_columns_kept() -> None:
    def model(windows: list[np.ndarray]) -> list[Detections]:
        boxes = [[1, 1, 3, 3], [5, 5, 8, 8]]
        return [
            Detections(boxes, [0.2, 0.04], [0, 0], (9, 9), ("x",), extra={"angle": np.array([7, 8])}) for _ in windows
        ]

    found = Predictor(model, score_threshold=0.1).predict(np.zeros((9, 9), np.uint8))[0]
    assert_allclose(found.scores, [0.2], rtol=1e-6)
    assert_array_equal(found.extra["angle"], [7])
    assert found.classes == ("x",)


def test_a_gate_skips_tiles() -> None:
    objects = np.array([[2, 2, 6, 6], [100, 80, 104, 84]])
    model = SeesPlanted(objects)
    predictor = Predictor(model, tile=32, overlap=8, gate=lambda windows: [bool(w.any()) for w in windows])
    (result,) = predictor.stream([plant(SIZE, objects)])
    found_once(result.detections, objects)
    assert result.num_skipped == result.num_tiles - sum(model.batches) > 0


def test_broken_images_stop_nothing(tmp_path: Path) -> None:
    good, broken = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(plant((32, 32), np.array([[2, 2, 6, 6]]))[:, :, 0].astype(np.uint8)).save(good)
    broken.write_bytes(good.read_bytes()[:60])
    predictor = Predictor(SeesPlanted(np.array([[2, 2, 6, 6]])), tile=32, overlap=8)
    results = list(predictor.stream([broken, good, tmp_path / "none.png"]))
    assert [r.problem is None for r in results] == [False, True, False]
    assert len(results[1].detections) == 1
    with pytest.raises(ImagesFailed, match=r"b\.png: .*\(2 of 4 images failed; \.detections") as caught:
        predictor.predict([good, broken, tmp_path / "none.png", good])
    first, *none, last = caught.value.detections
    assert none == [None, None]
    assert first is not None
    assert last is not None
    assert len(first) == len(last) == 1
    assert [caught.value.problems[place].what for place in (1, 2)] == [
        caught.value.what.partition(" (2 of")[0],
        "no such image file",
    ]
    with pytest.raises(ImagesFailed, match=r"none\.png: no such image file; check the path$"):
        predictor.predict(tmp_path / "none.png")
    with pytest.raises(ImagesFailed, match="none"):
        predictor([good, tmp_path / "none.png"])


class _Holed(ArraySource):
    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if x1 > 0 and y1 == 0:
            raise UserError("segment 3 cannot be read", where=self.name)
        return super().window(x1, y1, x2, y2, out)


def test_a_hole_is_listed_and_the_rest_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flyspeck.infer.whole.ArraySource", _Holed)
    objects = np.array([[2, 70, 6, 74]])
    predictor = Predictor(SeesPlanted(objects), tile=TILE, overlap=OVERLAP)
    (result,) = predictor.stream([plant(SIZE, objects)])
    assert [hole[0] for hole in result.holes] == [(40, 0, 96, 48), (80, 0, 136, 48)]
    found_once(result.detections, objects)
    with pytest.raises(UserError, match="window 40,0"):
        predictor.predict(plant(SIZE, objects))


def test_readers_stop_when_the_consumer_does_or_the_model_fails() -> None:
    before = threading.active_count()
    objects = np.array([[2, 2, 6, 6]])
    stream = Predictor(SeesPlanted(objects), tile=8, overlap=2, readers=3).stream([plant(SIZE, objects)] * 50)
    next(stream)
    stream.close()
    assert threading.active_count() == before

    def fails(windows: list[np.ndarray]) -> list[Detections]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Predictor(fails, tile=8, overlap=2).predict([plant(SIZE, objects)] * 50)
    assert threading.active_count() == before


def test_few_windows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, peak = [0], [0]
    real = ArraySource.window

    def counted(self: ArraySource, *window: object) -> tuple[np.ndarray, np.ndarray | None]:
        alive[0] += 1
        peak[0] = max(peak[0], alive[0])
        return real(self, *window)  # pyright: ignore[reportArgumentType]

    def model(windows: list[np.ndarray]) -> list[Detections]:
        alive[0] -= len(windows)
        return [Detections.empty(w.shape[:2]) for w in windows]

    monkeypatch.setattr(ArraySource, "window", counted)
    Predictor(model, tile=8, overlap=2, batch_size=4).predict(np.zeros((256, 256), np.uint8))
    # 8 in the queue, up to 4 in the batch, one in the reader's hand, one on its way out of the queue.
    assert 4 <= peak[0] <= 14


def test_models_that_lie_are_found_out() -> None:
    with pytest.raises(ValueError, match="0 results for 1 windows"):
        Predictor(lambda windows: []).predict(np.zeros((4, 4), np.uint8))
    broken = Detections([[0, 0, np.nan, 1]], [0.5], [0], (4, 4))
    with pytest.raises(UserError, match="not finite"):
        Predictor(lambda windows: [broken] * len(windows)).predict(np.zeros((4, 4), np.uint8))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(2, 64),
    st.integers(1, 60),
    st.sampled_from([0.25, 0.5, 0.7, 1.0, 3.0]),
)
def test_tiles_cover_the_image_at_any_scale(size: tuple[int, int], tile: int, overlap: int, scale: float) -> None:
    predictor = Predictor(SeesPlanted(np.zeros((0, 4))), tile=tile, overlap=min(overlap, tile - 1), scale=scale)
    frames, seen = predictor.tiles_of(size)
    covered = np.zeros(size, bool)
    for x1, y1, x2, y2 in frames.tolist():
        assert 0 <= x1 < x2 <= size[1]
        assert 0 <= y1 < y2 <= size[0]
        covered[y1:y2, x1:x2] = True
    assert covered.all()
    assert min(seen) >= 1
    assert max(seen) <= max(tile, scale)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"readers": 0}, {"scale": 0.0}, {"tile": 8, "overlap": 8}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        Predictor(SeesPlanted(np.zeros((0, 4))), **wrong)


def test_no_images_and_broken_arrays() -> None:
    predictor = Predictor(SeesPlanted(np.zeros((0, 4))))
    assert predictor.predict([]) == []
    for wrong in (np.full((4, 4), 7, np.float32), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(UserError, match=r"0 is black|is no image"):
            predictor.predict(wrong)


def test_a_image_that_changes_while_it_is_read_has_no_result(tmp_path: Path) -> None:
    objects = np.array([[2, 2, 6, 6], [100, 80, 104, 84]])
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    for path in (first, second):
        np.save(path, plant(SIZE, objects))

    class Disturbs(SeesPlanted):
        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            if not self.batches:
                # In place: np.save would truncate the file, and reading a mapping of it would end the process.
                np.load(first, mmap_mode="r+")[:] = plant((SIZE[0], SIZE[1]), objects[:1])
                os.utime(first, ns=(1, 1))
            return super().__call__(windows)

    # A batch of one and many tiles: the reader is still at the first image when the model sees its first tile.
    predictor = Predictor(Disturbs(objects), tile=16, overlap=8, batch_size=1)
    changed, still = predictor.stream([first, second])
    assert changed.problem is not None
    assert "changed while it was read" in str(changed.problem)
    assert len(changed.detections) == 0
    assert still.problem is None
    found_once(still.detections, objects)
