"""Passes beside everything else: the split that is fastest is chosen, and nobody sees which it is but on the clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from planted import SeesPlanted, plant

from flyspeck.errors import UserError
from flyspeck.infer.multiscale import MultiScale
from flyspeck.infer.passes import Splitting, Trial, Workers
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.skip import DetectorLook, SkipRule
from flyspeck.types import Detections

OBJECTS = np.array([[3, 3, 8, 8], [40, 20, 47, 26], [60, 70, 66, 75], [100, 90, 104, 96]])
SIZE = (110, 130)


class Splits(SeesPlanted):
    """A model that may run four passes at a time, and remembers how many it did; the first pass of three waits for a second."""

    threads = 4

    def __init__(self, objects: np.ndarray, *, slow: float = 0.0) -> None:
        super().__init__(objects)
        self.splits: list[int] = []
        self.entered: set[int] = set()
        self.callers: set[int] = set()
        self.most = self._now = 0
        self._slow, self._lock = slow, threading.Lock()

    def split(self, passes: int) -> None:
        self.splits.append(passes)

    def enter(self) -> None:
        self.entered.add(threading.get_ident())

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.callers.add(threading.get_ident())
        time.sleep(self._slow)
        try:
            return super().__call__(windows)
        finally:
            with self._lock:
                self._now -= 1


def seconds(trial: Trial, each: dict[int, float], *, first: float) -> list[int]:
    """How many at a time a trial asks for, pass by pass, until it has decided; `each` says how long a pass takes."""
    asked, prepared = [], set[int]()
    while not trial.decided:
        assert len(asked) < 1000
        now = trial.passes
        asked.append(now)
        for number in range(now):
            trial.record(each[now] if now in prepared else first, passes=now, busy=now)
            if number == now - 1:
                prepared.add(now)
    return asked


@pytest.mark.parametrize(
    ("each", "best"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.5}, 4),  # a batch: 1, .6, .5, .56
        ({1: 1.0, 2: 2.0, 4: 0.1}, 1),  # what did not gain twice is not tried four times
        ({1: 1.0, 2: 1.96}, 1),  # too little
        ({1: 1.0, 2: 1.5, 4: 3.0}, 2),
    ],
)
def test_the_fastest_split_is_chosen(each: dict[int, float], best: int) -> None:
    trial = Trial(8)
    assert seconds(trial, each, first=5.0)[0] == 1
    assert trial.passes == best


def test_no_more_is_spent_on_preparing_than_was_worked() -> None:
    trial = Trial(2)
    trial.record(10.0, passes=1, busy=1)  # it compiled
    for _ in range(9):
        trial.record(1.0, passes=1, busy=1)
        assert trial.passes == 1
    trial.record(1.0, passes=1, busy=1)
    assert trial.passes == 2


def test_passes_that_ran_alone_say_nothing_of_two() -> None:
    trial = Trial(2)
    for _ in range(4):
        trial.record(1.0, passes=1, busy=1)
    for _ in range(50):
        trial.record(0.5, passes=2, busy=1)
    assert not trial.decided
    for _ in range(50):
        trial.record(1.99, passes=2, busy=2)
    assert (trial.decided, trial.passes) == (True, 1)
    assert Trial(1).decided


@pytest.mark.parametrize("passes", [1, 2, 3, 4, None])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_split_does_not_show(passes: int | None, batch_size: int) -> None:
    images = [plant(SIZE, OBJECTS), plant((50, 60), OBJECTS[:2]), plant(SIZE, OBJECTS)]
    whole = Predictor(SeesPlanted(OBJECTS), tile=32, overlap=8, batch_size=batch_size).predict(images)
    model = Splits(OBJECTS)
    assert isinstance(model, Splitting)
    told = list[int]()
    predictor = Predictor(model, tile=32, overlap=8, batch_size=batch_size, passes=passes)
    for _ in range(2):
        found = [result.detections for result in predictor.stream(images, progress=told.append)]
        for one, other in zip(whole, found, strict=True):
            assert one.image_id == other.image_id
            assert_array_equal(one.boxes, other.boxes)
            assert_array_equal(one.scores, other.scores)
    assert sum(told) == 2 * sum(len(predictor.tiles_of(image.shape[:2])[0]) for image in images)
    assert threading.get_ident() not in model.callers
    assert model.callers <= model.entered
    assert model.most <= (passes or 4)
    assert set(model.splits) <= ({passes} if passes else {1, 2, 4})


def test_so_many_run_at_a_time_as_were_asked_for() -> None:
    model = Splits(OBJECTS, slow=0.01)
    Predictor(model, tile=32, overlap=8, batch_size=1, passes=3).predict(plant(SIZE, OBJECTS))
    assert model.most == 3


def test_a_look_never_runs_beside_the_model() -> None:
    model = Splits(OBJECTS, slow=0.002)
    predictor = Predictor(model, tile=32, overlap=8, batch_size=1, passes=4)
    predictor.skip = SkipRule(look=DetectorLook(model, shrink=1), threshold=0.5, audit=0.5)
    predictor.predict(plant(SIZE, OBJECTS))
    assert model.most == 1


def test_a_result_is_given_while_the_next_image_is_waited_for() -> None:
    seen = threading.Event()

    def frames() -> Iterator[np.ndarray]:
        yield plant(SIZE, OBJECTS)
        assert seen.wait(20), "the first result was held back until the second image came"
        yield plant(SIZE, OBJECTS)

    results = Predictor(Splits(OBJECTS, slow=0.01), batch_size=1, passes=2).stream(frames())
    next(results)
    seen.set()
    assert len(list(results)) == 1


def test_one_refused_window_costs_no_other_and_faults_are_raised() -> None:
    class Refuses(Splits):
        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            if any((window == 77).all() for window in windows):
                raise UserError("not this one")
            if any((window == 78).all() for window in windows):
                raise RuntimeError("out of memory")
            return super().__call__(windows)

    image = plant(SIZE, OBJECTS)
    odd = np.full_like(image, 77)
    predictor = Predictor(Refuses(OBJECTS), batch_size=3, passes=2)
    results = list(predictor.stream([image, odd, image]))
    assert [result.problem is None for result in results] == [True, False, True]
    assert [len(result.detections) for result in results] == [4, 0, 4]
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.predict([image, np.full_like(odd, 78), image])
    assert len(predictor.predict(image)[0]) == 4


def test_a_model_is_called_where_it_was_made_unless_it_splits() -> None:
    class Plain(SeesPlanted):
        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            assert threading.current_thread() is threading.main_thread()
            return super().__call__(windows)

    assert len(Predictor(Plain(OBJECTS), tile=32, overlap=8, passes=4).predict(plant(SIZE, OBJECTS))[0]) == 4
    assert not Workers(MultiScale(Plain(OBJECTS), [1.0])).beside
    assert Workers(MultiScale(Splits(OBJECTS), [1.0])).beside


def test_torch_gives_each_pass_its_share_and_finds_the_same() -> None:
    import torch

    from flyspeck.infer.torch_model import TorchModel
    from flyspeck.models.by_name import build
    from flyspeck.models.postprocess import Suppression

    before = torch.get_num_threads()
    torch.manual_seed(0)
    detector = build(
        "fcos:bh_resnet14",
        classes=("a", "b"),
        width=0.25,
        channels=16,
        suppression=Suppression(score=0.0, max_detections=20),
    )
    shares = list[int]()

    class Told(TorchModel):
        def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
            shares.append(torch.get_num_threads())
            return super().__call__(windows)

    image = np.random.default_rng(0).integers(0, 255, (64, 112, 3), np.uint8)
    try:
        torch.set_num_threads(2)
        found = []
        for passes, share in ((1, 2), (2, 1)):
            shares.clear()
            predictor = Predictor(Told(detector, device="cpu"), tile=64, overlap=16, batch_size=1, passes=passes)
            found.append(predictor.predict(image)[0])
            assert set(shares) == {share}
            assert torch.get_num_threads() == 2
            fresh = list[int]()
            thread = threading.Thread(target=lambda into=fresh: into.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert fresh == [2]
    finally:
        torch.set_num_threads(before)
    assert len(found[0]) > 0
    for other in found[1:]:
        assert_allclose(other.boxes, found[0].boxes, atol=1e-3)
        assert_allclose(other.scores, found[0].scores, atol=1e-5)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_engines_run_several_passes_at_a_time(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from foreign_graphs import FIXTURES, write_graph

    from flyspeck.infer import onnx_model, openvino_model
    from flyspeck.infer.load import load_predictor

    for module in (onnx_model, openvino_model):
        monkeypatch.setattr(module, "processors", lambda: 2)
    path = write_graph(tmp_path / "model.onnx", FIXTURES["yolov8"])
    if engine == "openvino":
        openvino = pytest.importorskip("openvino")
        model = openvino_model.the_core().read_model(str(path))
        openvino.save_model(model, str(path.with_suffix(".xml")), compress_to_fp16=False)
        path = path.with_suffix(".xml")
    image = np.random.default_rng(0).integers(0, 255, (150, 128, 3), np.uint8)
    found = []
    for passes in (1, 2):
        predictor = load_predictor(path, classes=("a", "b", "c"), score_threshold=0.01)
        predictor = Predictor(predictor.model, tile=(96, 128), overlap=16, batch_size=1, passes=passes)
        assert Workers(predictor.model).beside
        found.append(predictor.predict([image, image]))
    assert len(found[0][0]) > 0
    for one, other in zip(*found, strict=True):
        assert_allclose(other.boxes, one.boxes, atol=1e-4)
        assert_allclose(other.scores, one.scores, atol=1e-6)
