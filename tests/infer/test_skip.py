from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from planted import SeesPlanted, plant

from flyspeck.errors import UserError
from flyspeck.infer.predictor import Predictor, Result, Share
from flyspeck.infer.resume import TileJournal
from flyspeck.infer.skip import DetectorLook, FirstLook, SkipReport, SkipRule, takes_back, upper_bound
from flyspeck.infer.tiles import grid
from flyspeck.infer.windows import ArraySource
from flyspeck.types import Detections

SIZE = (640, 640)
OBJECTS = np.array([[4, 4, 9, 9], [100, 100, 106, 104], [108, 108, 112, 112]])


class _SeesSomething(FirstLook):
    """Sure of every coarse window that is not black, and remembers what it was shown."""

    def __init__(self, shrink: int = 2, *, blind: bool = False) -> None:
        self.shrink, self.blind, self.shapes = shrink, blind, []

    def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
        self.shapes += [w.shape for w in windows]
        return np.array([float(w.any() and not self.blind) for w in windows], np.float32)


def run(objects: np.ndarray, rule: SkipRule, **options: object) -> tuple[Result, SeesPlanted]:
    model = SeesPlanted(objects, proud=False)
    predictor = Predictor(model, tile=64, overlap=16, skip=rule, **options)  # pyright: ignore[reportArgumentType]
    (result,) = predictor.stream([plant(SIZE, objects)])
    return result, model


def test_empty_tiles_are_neither_read_in_full_nor_run(monkeypatch: pytest.MonkeyPatch) -> None:
    full = []
    real = ArraySource.window

    def counted(self: ArraySource, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None):
        if out == (64, 64):
            full.append((x1, y1, x2, y2))
        return real(self, x1, y1, x2, y2, out)

    monkeypatch.setattr(ArraySource, "window", counted)
    look = _SeesSomething()
    result, model = run(OBJECTS, SkipRule(look=look, threshold=0.5, audit=0))
    assert set(look.shapes) == {(32, 32, 1)}
    assert len(look.shapes) == result.num_tiles  # each looked at once, the trial included
    assert sum(model.batches) == len(full) == result.num_tiles - result.num_skipped < result.num_tiles / 4
    got = result.detections.boxes[np.lexsort(result.detections.boxes.T)]
    assert_array_equal(got, OBJECTS.astype(np.float32)[np.lexsort(OBJECTS.T)])


def test_the_first_look_holds_few_windows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a raster of a million tiles, those that are looked at first are some sixty thousand."""
    held, most = 0, 0
    real = ArraySource.read

    def counted(self: ArraySource, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None):
        nonlocal held, most
        held += 1
        most = max(most, held)
        return real(self, x1, y1, x2, y2, out)

    class Counts(_SeesSomething):
        def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
            nonlocal held
            held = 0
            return super().__call__(windows)

    monkeypatch.setattr(ArraySource, "read", counted)
    rule = SkipRule(look=Counts(), threshold=0.5)
    image = ArraySource(np.zeros((900, 900, 1), np.uint8))
    tiles = grid((900, 900), (32, 32), 0)
    verdicts = list(rule.verdicts(image, "image", tiles, range(len(tiles)), (32, 32)))
    assert [row for row, _ in verdicts] == list(range(len(tiles)))
    assert len(tiles) > 16 * most


def test_a_dense_image_is_run_after_a_short_trial() -> None:
    yy, xx = np.mgrid[2:620:12, 2:620:12]
    objects = np.stack([xx.ravel(), yy.ravel(), xx.ravel() + 4, yy.ravel() + 4], axis=1)
    look = _SeesSomething()
    result, _ = run(objects, SkipRule(look=look, threshold=0.5))
    assert result.num_skipped == 0
    assert len(look.shapes) <= result.num_tiles / 16 + 1
    assert len(result.detections) == len(objects)


def test_the_audit_finds_out_a_blind_look_and_everything_is_run() -> None:
    look = _SeesSomething(blind=True)
    rule = SkipRule(look=look, threshold=0.5, audit=0.5)
    yy, xx = np.mgrid[2:620:20, 2:620:20]
    objects = np.stack([xx.ravel(), yy.ravel(), xx.ravel() + 4, yy.ravel() + 4], axis=1)
    result, model = run(objects, rule)
    assert result.num_skipped == 0
    assert result.skip is not None
    assert result.skip.fell_back > 0
    assert result.skip.fell_back + result.skip.audited == result.num_tiles == sum(model.batches)
    assert len(result.detections) == len(objects)


def test_tiles_to_be_run_after_all_of_a_file_that_is_gone_are_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image costs no other: the stream goes on, and says which tiles are not known."""

    def gone(*_: object, **__: object) -> ArraySource:
        raise UserError("no such image file")

    monkeypatch.setattr("flyspeck.infer.predictor.open_source", gone)
    yy, xx = np.mgrid[2:620:20, 2:620:20]
    objects = np.stack([xx.ravel(), yy.ravel(), xx.ravel() + 4, yy.ravel() + 4], axis=1)
    result, model = run(objects, SkipRule(look=_SeesSomething(blind=True), threshold=0.5, audit=0.5))
    assert result.problem is None
    assert {reason for _, reason in result.holes} == {"no such image file"}
    assert len(result.holes) + sum(model.batches) == result.num_tiles
    assert 0 < len(result.detections) < len(objects)


def test_without_audit_nothing_is_known_and_said_so() -> None:
    result, _ = run(OBJECTS, SkipRule(look=_SeesSomething(blind=True), threshold=0.5, audit=0))
    assert len(result.detections) == 0
    assert result.skip is not None
    assert "95 %: at most 100.0 %" in result.skip.line()


def test_an_audit_of_everything_gives_both_results() -> None:
    far = np.array([[4, 4, 9, 9], [400, 400, 405, 405]])

    class HalfBlind(_SeesSomething):
        def __call__(self, windows: list[np.ndarray]) -> np.ndarray:
            return np.array([float((w == 1).any()) for w in windows], np.float32)

    result, _ = run(far, SkipRule(look=HalfBlind(shrink=1), threshold=0.5, audit=1))
    assert len(result.detections) == 2
    assert result.unaudited is not None
    assert_array_equal(result.unaudited.boxes, [[4, 4, 9, 9]])
    assert result.skip is not None
    assert result.skip.audited == result.num_tiles - 1


def test_the_estimate() -> None:
    # 90 skipped, 10 audited of which 2 held 3 boxes: 0.3 a tile, 27 lost; 3 + 60 were found: 27 / 90.
    report = SkipReport(tiles=200, skipped=90, audited=10, audited_hits=2, audited_boxes=3, kept_boxes=60)
    assert report.loss == pytest.approx(0.3)
    assert report.loss < report.loss_at_most < 1
    rule = SkipRule(look=_SeesSomething(), threshold=0.5, max_loss=0.25)
    assert takes_back(report, rule)
    assert not takes_back(SkipReport(skipped=90, audited=10, audited_hits=1, audited_boxes=30), rule)
    assert (report + report).skipped == 180
    assert SkipReport().loss_at_most == 0


def test_the_upper_bound_is_clopper_and_pearsons() -> None:
    assert upper_bound(0, 10) == pytest.approx(1 - 0.05**0.1)  # (1 - p)^10 = 0.05
    assert upper_bound(1, 2) == pytest.approx(0.95**0.5)  # 1 - p^2 = 0.05
    assert upper_bound(3, 3) == upper_bound(0, 0) == 1
    assert 0.02 < upper_bound(100, 5000) < 0.025  # no overflow


def test_a_detectors_best_score_is_its_look() -> None:
    window = np.zeros((40, 40, 1), np.uint8)
    found = [Detections([[0, 0, 1, 1]] * 2, [0.2, 0.7], [0, 0], (4, 4)), Detections.empty((4, 4))]
    assert DetectorLook(lambda windows: found)([window, window]).tolist() == pytest.approx([0.7, 0])


def test_a_resumed_job_keeps_what_was_skipped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", plant(SIZE, OBJECTS))
    rule = SkipRule(look=_SeesSomething(), threshold=0.5, audit=0.2)
    results = []
    for expected_runs in (True, False):
        model = SeesPlanted(OBJECTS)
        journal = TileJournal(tmp_path / "j", {})
        (result,) = Predictor(model, tile=64, overlap=16, skip=rule).stream([tmp_path / "a.npy"], journal=journal)
        journal.close()
        assert bool(model.batches) == expected_runs
        results.append(result)
    assert results[0].skip == results[1].skip
    assert results[0].num_skipped == results[1].num_skipped > 0
    assert_array_equal(results[0].detections.boxes, results[1].detections.boxes)


@pytest.mark.parametrize("by", ["tiles", "images"])
def test_shares_make_up_the_whole(by: str) -> None:
    seen: list[tuple[str, int]] = []
    for rank in range(3):
        model = SeesPlanted(OBJECTS)
        predictor = Predictor(model, tile=32, overlap=8, share=Share(rank, 3, by))
        results = list(predictor.stream([plant(SIZE, OBJECTS), plant((32, 32), OBJECTS[:1])]))
        seen += [(r.item.name, sum(model.batches)) for r in results]
    alone = SeesPlanted(OBJECTS)
    Predictor(alone, tile=32, overlap=8).predict([plant(SIZE, OBJECTS), plant((32, 32), OBJECTS[:1])])
    if by == "images":
        assert {name for name, _ in seen} == {"array 1", "array 2"}
        assert sum(count for _, count in seen) == sum(alone.batches)
    else:
        assert sum({name: count for name, count in seen[::2]}.values()) > 0
        assert sum(count for _, count in seen[::2]) == sum(alone.batches)


def test_impossible_settings() -> None:
    with pytest.raises(UserError, match="skip: audit"):
        SkipRule(look=_SeesSomething(), threshold=0.5, audit=2)
    with pytest.raises(UserError, match="process 2 of 2"):
        Share(2, 2)
