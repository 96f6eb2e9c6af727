"""`flyspeck init`: every recipe that it writes is trained for a step, and what it cannot do is one line."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planned_sets import SPEEDS, squares, write_set

import flyspeck
from flyspeck.cli.main import main
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.plan import rules, tiers
from flyspeck.plan.choices import Choice, Machine, Plan, Speed
from flyspeck.plan.fingerprint import fingerprint
from flyspeck.plan.init import Forecast, check_disk, with_own_speed
from flyspeck.plan.speed import batch_seconds, forget_peak, measure_speeds, peak_memory
from flyspeck.plan.voice import Voice
from flyspeck.train.config import load_recipe
from flyspeck.train.run import train


class _Enough(Exception):
    """A step was taken."""


class _OneStep:
    """A reporter that ends a training after its first step."""

    def start(self, *, total_steps: int, done_steps: int) -> None:
        """Nothing."""

    def step(self, record: dict) -> None:
        """The first one is enough; its losses are numbers, or the loop had refused them."""
        raise _Enough

    def epoch(self, record: dict) -> None:
        """Never reached."""
        raise AssertionError("the epoch ended before a step was logged")

    def close(self) -> None:
        """Nothing."""


def one_step(recipe_file: Path, folder: Path) -> None:
    """Loads the recipe, as `flyspeck train` does, and trains one step of it, narrow, so that it is quick."""
    recipe = load_recipe(recipe_file)
    assert recipe.train.minutes is not None
    narrow = recipe.model.model_copy(update={"width": 0.25, "channels": 16, "weights": None, "start": None})
    quick = recipe.train.model_copy(update={"log_every": 1, "workers": 0})
    with pytest.raises(_Enough):
        train(recipe.model_copy(update={"model": narrow, "train": quick}), folder, reporter=_OneStep())


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Speed]:
    """No detector is timed: each has the speed that it is given."""
    monkeypatch.setattr("flyspeck.plan.speed.measure_speeds", lambda *_, **__: SPEEDS)
    return SPEEDS


def said_by(call: Callable[..., object], *args: object, **options: object) -> list[str]:
    lines: list[str] = []
    call(*args, **options, say=lines.append)
    return lines


SETS = {
    "tiny squares": {"boxes": squares(8, side=4)},
    "in colour": {"boxes": squares(8), "colour": True},
    "objects of one image's size": {"boxes": [[[0, 0, 96, 64]]] * 8},
    "one object in each": {"boxes": [[[10 + n, 10, 6, 9]] for n in range(8)]},
    "most images are empty": {
        "boxes": [[[10, 10, 6, 9]], [], [], [[30, 10, 6, 9]], [], [], [[50, 9, 4, 4]], [[5, 5, 4, 4]]]
    },
    "one image": {"boxes": [[[5, 5, 4, 4]]]},
    "objects larger than any tile": {
        "boxes": [[[5 + n, 9, 900, 8], *squares(1, seed=n)[0]] for n in range(4)],
        "size": (64, 1000),
    },
    "thousands of classes": {
        "boxes": squares(8),
        "labels": [[n, 2999] for n in range(8)],
        "classes": [f"class {k} " + "with a name of more than forty letters" for k in range(3_000)],
    },
    "two classes": {"boxes": squares(12), "labels": [[0, 1]] * 12, "classes": ("a", "b")},
}


@pytest.mark.parametrize(("name", "minutes"), list(zip(SETS, [2, 50] * 5, strict=False)))
def test_a_recipe_is_trained_for_a_step_as_it_is(
    tmp_path: Path, timed: dict[str, Speed], name: str, minutes: float
) -> None:
    train_file = write_set(tmp_path / "train.json", seed=1, **SETS[name])
    val = write_set(tmp_path / "val.json", squares(3, seed=9), seed=2)
    if "classes" in SETS[name]:
        val = write_set(tmp_path / "val.json", squares(3), labels=[[0, 1]] * 3, classes=SETS[name]["classes"], seed=2)
    lines = said_by(flyspeck.init, train_file, val=val, minutes=minutes, out=tmp_path / "deep" / "recipe.yaml")
    one_step(tmp_path / "deep" / "recipe.yaml", tmp_path / "run")
    text = (tmp_path / "deep" / "recipe.yaml").read_text()
    assert "train: ../train.json" in text  # it can be moved together with the data
    assert re.search(r"# .*\[judged\]\n  crop: ", text)
    assert re.search(r'# .*\[docs/results.md, "[^"]+"\]', text)
    assert lines[0].startswith("reading ")
    assert max(map(len, lines)) < 700
    assert any(line.startswith("to be expected on this machine") for line in lines)


def test_without_val_it_divides_by_groups(tmp_path: Path, timed: dict[str, Speed]) -> None:
    # Ten scenes, each there twice: the copies must not be on two sides.
    first = squares(10, seed=3)
    path = write_set(tmp_path / "all.json", first, seed=5)
    content = flyspeck.read_annotations(path)
    twin = tmp_path / "twins"
    twin.mkdir()
    import json

    told = json.loads(path.read_text())
    for image in list(told["images"]):
        name = twin / f"copy of {Path(image['file_name']).name}"
        shutil.copy(tmp_path / image["file_name"], name)
        number = image["id"] + 100
        told["images"].append({**image, "id": number, "file_name": f"twins/{name.name}"})
        own = [e for e in told["annotations"] if e["image_id"] == image["id"]]
        told["annotations"] += [{**e, "id": e["id"] + 1000, "image_id": number} for e in own]
    path.write_text(json.dumps(told))
    done = flyspeck.init(path, minutes=5, out=tmp_path / "recipe.yaml")
    recipe = load_recipe(done.recipe)
    sides = [{Path(n).name.removeprefix("copy of ") for n in flyspeck.read_annotations(p).file_names}
             for p in (recipe.data.train, recipe.data.val)]  # fmt: skip
    assert len(sides[0]) + len(sides[1]) == len(content) == 10
    assert not sides[0] & sides[1]
    assert done.fingerprint.duplicates == 20
    one_step(done.recipe, tmp_path / "run")


def test_splits_of_a_folder_are_taken_as_they_are_called(tmp_path: Path, timed: dict[str, Speed]) -> None:
    for name, seed in (("train", 1), ("val", 2), ("test", 3)):
        write_set(tmp_path / f"{name}.json", squares(4, seed=seed), seed=seed)
    recipe = load_recipe(flyspeck.init(tmp_path, minutes=5, out=tmp_path / "r" / "recipe.yaml").recipe)
    assert (Path(recipe.data.train).name, Path(recipe.data.val).name) == ("train.json", "val.json")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("one image", {"boxes": squares(1)}, "1 image, where 2 parts are needed"),
        ("only ignore regions", {"boxes": squares(4), "ignored": True}, "no object to learn: 8 ignore regions only"),
        ("no boxes", {"boxes": [[], []]}, "no object to learn"),
        ("one box", {"boxes": [[[5, 5, 8, 8]], [], [], [], []]}, "1 of 5 images has objects, where 2 are needed"),
        ("one image eight times", {"boxes": [squares(1)[0]] * 8, "plain": True}, "all 8 images belong together"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    tmp_path: Path, timed: dict[str, Speed], name: str, options: dict, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_set(tmp_path / "set.json", **options)
    assert main(["init", str(path), "--out", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_class_that_is_not_to_be_measured_is_said(tmp_path: Path, timed: dict[str, Speed]) -> None:
    # The only image with class b stays on the side to learn from, or is missed there: either is said.
    labels = [[0, 0]] * 9 + [[1, 1]]
    path = write_set(tmp_path / "set.json", squares(10), labels=labels, classes=("a", "b"))
    done = flyspeck.init(path, minutes=5, out=tmp_path / "recipe.yaml")
    words = ("no object of 1 class among the images to choose on (b)", "no object to learn from: 1 class: b")
    assert any(note.startswith(words) for note in done.notes)


def test_what_does_not_fit_in_the_time_says_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: dict[str, Speed]
) -> None:
    slow = {name: Speed(speed.images_per_second / 80, 10**9, 1.0) for name, speed in SPEEDS.items()}
    monkeypatch.setattr("flyspeck.plan.speed.measure_speeds", lambda *_, **__: slow)
    path = write_set(tmp_path / "set.json", squares(30))
    done = flyspeck.init(path, minutes=0.5, out=tmp_path / "recipe.yaml")
    # 24 images to learn from at 0.5 a second: 15 in half a minute (less what decoding takes), all in one.
    words = (
        "the set does not fit in the time: in 0.5 minutes of training 1[45] of 24 images are seen once; in 1 minute all, in 5"
        " minutes all"
    )
    assert any(re.match(words, note) for note in done.notes)


def test_many_classes_are_not_listed(tmp_path: Path, timed: dict[str, Speed]) -> None:
    names = tuple(f"class {k}" for k in range(10_000))
    path = write_set(tmp_path / "set.json", squares(10), labels=[[k % 5, 9000] for k in range(10)], classes=names)
    lines = said_by(flyspeck.init, path, minutes=5, out=tmp_path / "recipe.yaml")
    assert max(map(len, lines)) < 1000
    assert len((tmp_path / "recipe.yaml").read_text()) < 20_000
    assert any("10000 classes" in line for line in lines)


def test_a_disk_that_is_full_is_said_before_anything_is_written(
    tmp_path: Path, timed: dict[str, Speed], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_set(tmp_path / "set.json", squares(10))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match="1 MB are free on this disk"):
        flyspeck.init(path, minutes=5, out=tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()
    assert not (tmp_path / "recipe_data").exists()


def test_the_disk_must_hold_the_weights_with_their_classes_and_the_state_while_it_is_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 10 MB: the last, the best, a state of four times as many, and that again while it is replaced; logs."""
    small, many = (Speed(1.0, 10**9, 1.0, weights=size) for size in (10**7, 4 * 10**7))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=110 * 10**6))
    check_disk(tmp_path, small)
    for speeds, needed in (((many,), 422), ((small, small), 170)):
        with pytest.raises(UserError, match=f"110 MB are free on this disk, and a training takes {needed} MB"):
            check_disk(tmp_path, *speeds)


def test_a_speed_knows_the_bytes_of_the_weights(tmp_path: Path) -> None:
    machine, sizes = Machine(1, 10**10), []
    for count in (1, 400):
        names = tuple(f"class {k}" for k in range(count))
        table = read_annotations(write_set(tmp_path / f"{count}.json", squares(2), classes=names))
        tier = next(tier for tier in tiers.TIERS if tier.name == "smallest")
        plan = rules.make_plan(
            fingerprint(table), machine, tier=tier, minutes=1, speed=None, name="x", train="t.json", val="v.json"
        )
        sizes.append(measure_speeds([plan], table, machine, limit=0.1)["smallest"].weights)
    # 16 channels at 3x3 for each further class, and its bias, in four bytes.
    assert sizes[1] - sizes[0] == 399 * (16 * 9 + 1) * 4
    assert sizes[0] > 10**6


@pytest.mark.parametrize("make", ["init", "auto"])
def test_where_nothing_can_be_written_is_said_before_anything_is_read(
    tmp_path: Path, make: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, where a folder is to be; name another --out"):
        getattr(flyspeck, make)(tmp_path / "nowhere", minutes=3, out=tmp_path / "file" / "deep" / "er.yaml")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="this folder may not be written to; name another --out"):
        getattr(flyspeck, make)(tmp_path / "nowhere", minutes=3, out=tmp_path / "new" / "er.yaml")


def test_what_can_be_said_at_once_does_not_wait_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flyspeck.plan.auto", None)  # type: ignore[arg-type]
    path, held = write_set(tmp_path / "set.json", squares(4)), tmp_path / "held"
    held.mkdir()
    (held / "note.txt").touch()
    for source, more, words in (
        (tmp_path / "nowhere", ["--out", "new"], "nowhere: no such file or folder; check the path"),
        (path, ["--val", str(tmp_path / "nothing"), "--out", "new"], "nothing: no such file or folder"),
        (path, ["--out", str(held)], "held: is there already"),
        (path, ["--out", str(tmp_path / "new"), "--resume"], "new: nothing to resume"),
        (path, ["--out", str(path / "new")], "set.json: is a file, where a folder is to be"),
    ):
        assert main(["auto", str(source), "--minutes", "3", *more]) == 2
        assert words in capsys.readouterr().err


def test_looking_for_a_device_is_said(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(UserError, match="--device"):
        flyspeck.init(tmp_path, device="cuda:99", out=tmp_path / "recipe.yaml", say=lines.append)
    assert lines == ["looking for the device cuda:99 ..."]


def test_corners_of_boxes_mean_what_the_user_says(tmp_path: Path, timed: dict[str, Speed]) -> None:
    table = read_annotations(write_set(tmp_path / "set.json", squares(6)))
    folder = tmp_path / "voc" / "Annotations"
    folder.mkdir(parents=True)
    (tmp_path / "set_images").rename(tmp_path / "voc" / "JPEGImages")
    for row, name in enumerate(table.file_names):
        corners = [
            dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for box in table.boxes[table.of_image(row)]
        ]
        boxes = "".join(
            f"<object><name>a</name><bndbox>{''.join(f'<{k}>{v:.0f}</{k}>' for k, v in box.items())}</bndbox></object>"
            for box in corners
        )
        (folder / f"{Path(name).stem}.xml").write_text(
            f"<annotation><filename>{Path(name).name}</filename><size><width>96</width><height>64</height><depth>3</depth></size>"
            f"{boxes}</annotation>"
        )
    done = flyspeck.init(tmp_path / "voc", pixels="half-open", minutes=5, out=tmp_path / "recipe.yaml")
    assert done.fingerprint.quantile(50) == 8
    assert load_recipe(done.recipe).data.pixels is None  # what is written beside it says it otherwise
    written = read_annotations(tmp_path / "recipe_data" / "train.json")
    assert np.unique(written.boxes[:, 2:] - written.boxes[:, :2]).tolist() == [8]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        flyspeck.init(tmp_path, out=tmp_path / "recipe.yaml")
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="minutes"):
            flyspeck.init(tmp_path, minutes=minutes, out=tmp_path / "other.yaml")


def test_speeds_are_measured_on_the_sets_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real probe, of the cheapest detector alone and as short as it gets.
    monkeypatch.setattr(tiers, "TIERS", tiers.TIERS[:1])
    monkeypatch.setattr("flyspeck.plan.speed.LIMIT", 0.5)
    path = write_set(tmp_path / "set.json", squares(10))
    threads = torch.get_num_threads()
    done = flyspeck.init(path, minutes=5, out=tmp_path / "recipe.yaml")
    assert torch.get_num_threads() == threads
    (speed,) = done.speeds.values()
    assert speed.images_per_second > 0
    assert speed.memory > 10**7
    assert isinstance(done.forecast, Forecast)
    assert done.forecast.images == pytest.approx(speed.images_per_second * 300, rel=0.05)


@pytest.mark.parametrize(
    ("workers", "threads", "cpus", "seconds"),
    [
        (0, 2, 2, 5.0),  # 3 and then 2
        (1, 2, 2, 4.0),  # 8 seconds of work by two processors
        (1, 1, 2, 3.0),  # loading goes on beside the step
        (4, 4, 16, 3.0),
        (1, 8, 4, 3.5),  # threads beyond the processors are none: 14 by four
    ],
)
def test_loading_that_goes_on_beside_steps_counts_once(workers: int, threads: int, cpus: int, seconds: float) -> None:
    assert batch_seconds(3.0, 2.0, workers=workers, threads=threads, cpus=cpus) == seconds
    assert batch_seconds(1.0, 12.0, workers=1, threads=1, cpus=4) == 12.0
    assert batch_seconds(1.0, 12.0, workers=3, threads=1, cpus=64) == 4.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a process's peak")
def test_each_detectors_memory_is_its_own() -> None:
    """A block of 400 MB that is gone before counts for nothing."""
    block = np.ones(400_000_000, np.uint8)
    assert peak_memory("cpu") > block.nbytes
    before = peak_memory("cpu")
    del block
    forget_peak("cpu")
    assert peak_memory("cpu") < before - 300_000_000


def test_the_forecast_is_of_the_batch_that_the_recipe_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(plans: list, *words: object, **more: object) -> dict[str, Speed]:
        asked.append([plan.value("train.batch_size") for plan in plans])
        return {"smallest": Speed(50.0, 2 * 10**9, 100.0, batch=8)}

    monkeypatch.setattr("flyspeck.plan.speed.measure_speeds", measured)
    for compared_in, rate in ((4, 50.0), (8, 10.0), (0, 10.0)):
        speed = Speed(10.0, 10**9, 20.0, batch=compared_in)
        plan = Plan(tiers.TIERS[0], (Choice("train.batch_size", 8, "a test"),), speed)
        found = with_own_speed(plan, SimpleNamespace(), SimpleNamespace(), Voice(lambda line: None))
        assert found.speed is not None
        assert found.speed.images_per_second == rate
    assert asked == [[8]]


def test_a_voice_is_never_silent_for_long() -> None:
    lines: list[str] = []
    voice = Voice(lines.append, silence=0.05)
    with voice.doing("waiting"):
        time.sleep(0.4)
    assert lines[0] == "waiting ..."
    assert 3 <= len(lines) <= 9
    assert all(re.fullmatch(r"  waiting: \d+ s so far", line) for line in lines[1:])
    before = len(lines)
    time.sleep(0.1)
    assert len(lines) == before


def test_progress_is_told_now_and_then() -> None:
    now = [0.0]
    lines: list[str] = []
    told = Voice(lines.append, clock=lambda: now[0]).progress("compared")
    for done in range(1, 101):
        now[0] += 0.2
        told(done, 100)
    counts = [int(re.fullmatch(r"  compared: (\d+) of 100", line)[1]) for line in lines]  # type: ignore[index]
    assert 14 <= counts[0] <= 16  # after three seconds
    assert all(24 <= gap <= 27 for gap in np.diff(counts))  # then every five
    assert len(counts) == 4


def test_minutes_without_a_step_are_refused(tmp_path: Path, timed: dict[str, Speed]) -> None:
    path = write_set(tmp_path / "set.json", squares(10))
    # The quickest sees 40 images a second: 2 in 0.001 minutes; 60 steps of four take 6 s.
    with pytest.raises(
        UserError, match=r"^--minutes: 0.001 minutes are too short: training would see 2 images; give 1 or more"
    ):
        flyspeck.init(path, minutes=0.001, out=tmp_path / "recipe.yaml")
    assert not (tmp_path / "recipe.yaml").exists()
