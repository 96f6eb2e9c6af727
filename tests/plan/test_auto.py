"""`flyspeck auto`: who goes on, what the time is for, going on after a stop; and, slowly, the whole of it."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from planned_sets import MACHINE, SPEEDS, a_table, base, like, squares, write_set

import flyspeck
from flyspeck.errors import UserError
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import APProtocol
from flyspeck.infer.shown import Showing
from flyspeck.plan import auto, halving, rivals, rules
from flyspeck.plan.budget import COMPARING, Budget, image_seconds, timing
from flyspeck.plan.choices import Speed
from flyspeck.plan.settings import Measured, Setting, best_of, difference, settings_for
from flyspeck.plan.state import FILE, State, open_state
from flyspeck.plan.tiers import TIERS, best_tier
from flyspeck.plan.tried import Candidate
from flyspeck.plan.voice import Voice
from flyspeck.train.config import parse_recipe
from flyspeck.types import Detections

QUIET = Voice(lambda line: None)


def candidates(tmp_path: Path, names: str) -> list[Candidate]:
    recipe = parse_recipe({"data": {"train": "t.json", "val": "v.json"}, "train": {"minutes": 10}})
    return [Candidate(name, recipe, tmp_path / name) for name in names]


def test_the_worst_of_a_round_leaves_and_the_winner_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, float]] = []
    values = {"a": [0.3, 0.5], "b": [0.4, 0.45], "c": [0.1]}

    def until(candidate: Candidate, seconds: float, voice: Voice) -> tuple[float, int]:
        calls.append((candidate.name, round(seconds, 6)))
        return seconds, int(seconds)

    monkeypatch.setattr(halving, "train_until", until)
    monkeypatch.setattr(halving, "value_of", lambda one, _: values[one.name][sum(n == one.name for n, _ in calls) - 1])
    winner, trials = halving.halve(candidates(tmp_path, "abc"), 100.0, a_table(tmp_path), QUIET)
    assert winner.name == "a"
    assert calls == [("a", 10), ("b", 10), ("c", 10), ("b", 18), ("a", 18)]
    assert [(t.name, t.round) for t in trials] == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("a", 1)]
    # Those that left have used 10 and 18 s: what the winner may have is the rest.
    assert halving.winner_share(3) == pytest.approx(1 - 0.10 - 0.18)
    assert halving.winner_share(2) == pytest.approx(1 - 0.15)
    assert halving.winner_share(1) == 1.0


def test_trials_of_before_an_interruption_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "train_until", lambda *_: (1.0, 1))
    monkeypatch.setattr(halving, "value_of", lambda one, _: {"a": 0.2, "b": 0.3}[one.name])
    kept: list[halving.Trial] = []
    every = candidates(tmp_path, "ab")
    halving.halve(every, 10.0, a_table(tmp_path), QUIET, note=kept.append)
    monkeypatch.setattr(halving, "train_until", lambda *_: pytest.fail("trained again"))
    winner, trials = halving.halve(every, 10.0, a_table(tmp_path), QUIET, done=kept)
    assert winner.name == "b"
    assert trials == kept


def test_a_pause_comes_after_what_was_trained_is_saved() -> None:
    teller = halving.Teller(QUIET, until=0.0)
    record = {"step": 1, "losses": {"a": 1.0}, "images_per_second": 3.0}
    teller.step(record)  # here the time is up; the loop saves after it
    with pytest.raises(halving._Pause):
        teller.step(record)
    whole = halving.Teller(QUIET)
    for _ in range(5):
        whole.step(record)


def test_a_winner_that_will_be_late_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halving, "train", lambda *_, **__: {})
    monkeypatch.setattr(halving, "saved_progress", lambda _: {"seconds": 120.0, "step": 10})
    (one,) = candidates(tmp_path, "a")  # 10 minutes, two of them used
    lines: list[str] = []
    for left in (480.0, 600.0, 475.0):
        halving.finish(one, left, Voice(lines.append))
    assert lines == []
    halving.finish(one, 900.0, Voice(lines.append))
    assert "takes 420 s more" in lines.pop()
    halving.finish(one, 240.0, Voice(lines.append))
    assert [line for line in lines if "ends 240 s sooner" in line] == lines
    halving.finish(one, -3.0, Voice(lines.append))
    assert "no time is left" in lines[1]


def budget(minutes: float, used: float = 0.0, tmp_path: Path = Path()) -> Budget:
    return Budget(minutes, State(tmp_path, {}, before=used, clock=lambda: 0.0))


def test_time_is_kept_back_for_what_follows_training() -> None:
    found = like(base(), decode_seconds=0.05)
    for minutes in (5, 20, 90):
        one = budget(minutes, used=20.0)
        seconds = one.for_training(100, 100, found, SPEEDS)
        tier, _ = best_tier(found, SPEEDS, 0.7 * minutes)
        assert seconds + 20 + one.kept_back(100, 100, found, SPEEDS[tier.name]) == pytest.approx(60 * minutes, abs=0.1)
        assert seconds > 0.4 * 60 * minutes
        each = image_seconds(SPEEDS[tier.name], found)
        assert one.images(one.REPORTING, SPEEDS[tier.name], found) * each * 1.5 <= 0.06 * 60 * minutes + 4 * each * 1.5


def test_too_few_minutes_are_one_line_that_says_how_many_would_do() -> None:
    slow = {name: Speed(speed.images_per_second / 10, 10**9, 20.0) for name, speed in SPEEDS.items()}
    with pytest.raises(UserError, match="1 minute is too short") as told:
        budget(1, used=15.0).for_training(20, 20, base(), slow)
    assert "\n" not in str(told.value)
    (asked,) = re.findall(r"give (\d+) or more", str(told.value))
    assert budget(float(asked), used=15.0).for_training(20, 20, base(), slow) > 0


@pytest.mark.parametrize("slower", [3, 10, 40])
@pytest.mark.parametrize("compared", [True, False])
def test_the_minutes_that_are_named_do_although_all_takes_longer_then(slower: int, compared: bool) -> None:
    """With more minutes detectors are timed for longer, images are compared by their pixels, more is measured and reported."""
    speeds = {
        name: Speed(s.images_per_second / slower, 10**9, s.detect_per_second / slower) for name, s in SPEEDS.items()
    }
    found = like(base(), compared=compared)
    with pytest.raises(UserError) as told:
        budget(1, used=15.0).for_training(200, 200, found, speeds)
    asked = int(re.findall(r"give (\d+) or more", str(told.value))[0])
    used = 15.0 + timing(60 * asked) - timing(60) + (0 if compared else COMPARING * 60 * asked)
    assert budget(asked, used=used).for_training(200, 200, found, speeds) > 0
    with pytest.raises(UserError):  # nor is it far too much
        budget(asked // 3, used=used).for_training(200, 200, found, speeds)


def test_minutes_that_are_named_by_the_quickest_do_where_others_take_too_long_for_the_rest() -> None:
    """Few minutes leave time to measure only that one; with those that it asks for, others are measured, and would be taken."""
    found, quick = base(), {"smallest": SPEEDS["smallest"]}
    with pytest.raises(UserError) as told:
        budget(1, used=15.0).for_training(20, 20, found, quick)
    asked = int(re.findall(r"give (\d+) or more", str(told.value))[0])
    speeds = {**quick, "medium": Speed(100.0, 10**9, 200.0, tracing=60.0 * asked)}
    one = budget(asked, used=15.0)
    assert best_tier(found, speeds, 0.7 * asked)[0].name == "medium"
    assert one.affordable(20, 20, found, speeds) == quick
    assert one.for_training(20, 20, found, one.affordable(20, 20, found, speeds)) > 0
    assert one.affordable(20, 20, found, {"medium": speeds["medium"]}).keys() == {
        "medium"
    }  # which it is then refused for


def test_a_run_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    folder = tmp_path / "auto"
    with pytest.raises(UserError, match="nothing to resume"):
        open_state(folder, {"minutes": 5.0}, resume=True)
    state = open_state(folder, {"minutes": 5.0}, resume=False)
    state.keep("speeds", {"a": 1})
    with pytest.raises(UserError, match="--resume"):
        open_state(folder, {"minutes": 5.0}, resume=False)
    with pytest.raises(UserError, match="another minutes"):
        open_state(folder, {"minutes": 6.0}, resume=True)
    again = open_state(folder, {"minutes": 5.0}, resume=True)
    assert again.done == {"speeds": {"a": 1}}
    assert again.seconds >= state.before
    again.keep("over", 4.9)  # its time is up: reported on anew, it would be on fewer images
    with pytest.raises(UserError, match=r"this run is finished \(.*report.html\): nothing to resume"):
        open_state(folder, {"minutes": 5.0}, resume=True)
    (folder / FILE).write_text(json.dumps({"format": 99, "asked": {}, "seconds": 0, "done": {}}))
    with pytest.raises(UserError, match="newer version"):
        open_state(folder, {}, resume=True)
    (folder / FILE).write_text("{")
    with pytest.raises(UserError, match="not the state of a run"):
        open_state(folder, {}, resume=True)


def test_a_run_that_is_killed_before_its_first_stage_is_no_dead_end(tmp_path: Path) -> None:
    folder = tmp_path / "auto"
    folder.mkdir()
    (folder / ".auto.4711.part.json").write_text('{"form')  # killed while the state was written: begun again
    assert open_state(folder, {"minutes": 5.0}, resume=False).done == {}
    assert open_state(folder, {"minutes": 5.0}, resume=True).done == {}  # killed after that: goes on
    for name in (".auto.part.json", "auto.4711.part.json", ".auto.4711.json"):
        other = tmp_path / name
        other.mkdir()
        (other / name).touch()
        with pytest.raises(UserError, match="is there already"):
            open_state(other, {}, resume=False)


def test_whole_and_tiles_where_there_are_tiles(tmp_path: Path) -> None:
    table = a_table(tmp_path)  # images of 64x96
    grid = list(settings_for(table, {"enlarge": {"factor": 1.0}, "training_size": [64, 96]}))
    assert grid[0] == Setting(True, Showing((64, 96), 32, 1.0))
    assert [(s.whole, s.scale) for s in grid] == [
        (True, 1.0), (True, 1.5), (True, 2.0), (True, 0.75), (True, 0.5), (False, 1.5), (False, 2.0),
    ]  # fmt: skip
    grid = list(settings_for(table, {"enlarge": {"factor": 2.0}, "training_size": [64, 96]}))
    assert [(s.whole, s.scale) for s in (grid[0], grid[5])] == [(True, 2.0), (False, 2.0)]


def test_a_setting_gives_way_to_one_that_is_better_by_more_than_chance(tmp_path: Path) -> None:
    def setting(whole: bool, scale: float) -> Setting:
        return Setting(whole, Showing((64, 96), 8, scale))

    first = Measured(setting(True, 1.0), {"ap50_tiny": 0.3}, 0.1)
    lucky = Measured(setting(False, 2.0), {"ap50_tiny": 0.5}, 0.1, (0.2, -0.01, 0.4))
    better = Measured(setting(True, 2.0), {"ap50_tiny": 0.4}, 0.1, (0.1, 0.02, 0.2))
    best = Measured(setting(True, 1.5), {"ap50_tiny": 0.42}, 0.1, (0.12, 0.01, 0.2))
    assert best_of([first, lucky]) is first
    assert best_of([first, lucky, better, best]) is best
    quicker = Measured(setting(True, 2.0), {"ap50_tiny": 0.41}, 0.09, (0.111, 0.01, 0.3))
    behind = Measured(setting(True, 0.75), {"ap50_tiny": 0.40}, 0.02, (0.10, 0.01, 0.3))
    chance = Measured(setting(True, 0.5), {"ap50_tiny": 0.45}, 0.05, (0.15, -0.01, 0.3))
    assert best_of([first, best, behind]) is best
    assert best_of([first, best, behind, quicker]) is quicker  # 0.9 points for a tenth of the time
    assert best_of([first, best, behind, chance]) is best
    hardly = Measured(setting(True, 2.0), {"ap50_tiny": 0.305}, 0.2, (0.005, 0.001, 0.01))
    assert best_of([first, hardly]) is first
    assert Measured.of(json.loads(json.dumps(best.to_dict()))) == best


def test_the_difference_of_two_settings_is_paired(tmp_path: Path) -> None:
    table = a_table(tmp_path, 12)

    def found(shift: float) -> DetectionTable:
        each = [
            Detections(
                boxes=table.boxes[rows] + shift * (np.arange(rows.stop - rows.start) % 2)[:, None],
                scores=np.full(rows.stop - rows.start, 0.9),
                labels=table.labels[rows],
                image_size=(64, 96),
                image_id=int(table.image_ids[row]),
            )
            for row, rows in enumerate(table)
        ]
        return DetectionTable.from_list(each, table)

    protocol = flyspeck.evaluate(ground_truth=table, detections=found(0)).protocol
    assert isinstance(protocol, APProtocol)
    better = difference(table, found(0), found(6), protocol, "ap50_tiny")  # every second box is 6 px off
    assert better is not None
    assert better[0] > 0.3
    assert better[1] > 0
    same = difference(table, found(0), found(0), protocol, "ap50_tiny")
    assert same == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"boxes": squares(2)}, "2 images, where 3 parts are needed"),
        ({"boxes": squares(5), "ignored": True}, "ignore regions only"),
    ],
)
def test_what_it_cannot_do_is_said_before_any_training(tmp_path: Path, options: dict, words: str) -> None:
    path = write_set(tmp_path / "set.json", **options)
    with pytest.raises(UserError, match=words):
        flyspeck.auto(path, minutes=5, out=tmp_path / "auto")
    assert not (tmp_path / "auto").exists()


def test_a_full_disk_is_said_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flyspeck.plan.speed.measure_speeds", lambda *_, **__: SPEEDS)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    path = write_set(tmp_path / "set.json", squares(20))
    with pytest.raises(UserError, match="are free on this disk"):
        flyspeck.auto(path, minutes=600, out=tmp_path / "auto")
    assert not (tmp_path / "auto").exists()  # so that the next call can take the same folder


def test_what_there_is_to_know_of_the_plan_is_in_the_report_too(tmp_path: Path) -> None:
    found, speed = like(base(), 7.0, long_side=600.0), SPEEDS["small"]
    plan = rules.make_plan(
        found, MACHINE, tier=TIERS[1], minutes=5, speed=speed, name="x", train="t.json", val="v.json"
    )
    notes, state = ["of the set"], State(tmp_path, {}, {"candidates": ["x"]})
    first = replace(plan, notes=("why it is tried", *plan.notes))
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "x.yaml").write_text("data: {train: t.json, val: v.json}")
    assert [one.name for one in auto._candidates([first], {"small": speed}, state, budget(5), notes, QUIET)] == ["x"]
    assert notes == ["of the set", *plan.notes]
    assert any("are learnt in part only" in note for note in notes)


def test_ctrl_c_says_how_it_goes_on_and_nothing_that_is_done_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stages = write_set(tmp_path / "set.json", squares(20)), {"sets", "fingerprint"}
    for stopped, out, known in (
        ("flyspeck.plan.begin.look", "run", set()),
        ("flyspeck.plan.auto.measured", "run", stages),
        ("flyspeck.plan.auto.measured", tmp_path / "moved", stages),
    ):
        lines: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(stopped, _stop)
            patch.chdir(
                tmp_path if out == "run" else "/"
            )  # and from another working folder, to which nothing is relative
            with pytest.raises(KeyboardInterrupt):
                flyspeck.auto(path, minutes=5, out=out, resume=(tmp_path / out).exists(), say=lines.append)
        assert re.fullmatch(r"stopped after 0\.\d of 5 minutes; --resume goes on \(.*\)", lines[-1])
        assert known <= set(json.loads((tmp_path / out / FILE).read_text())["done"])
        if known:
            (tmp_path / out).rename(tmp_path / "moved")


def test_a_full_disk_does_not_hide_what_stopped_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def look(*_: object, **__: object) -> None:
        monkeypatch.setattr("flyspeck.plan.state.write_json", full)
        raise UserError("the images are gone")

    path = write_set(tmp_path / "set.json", squares(4))
    monkeypatch.setattr("flyspeck.plan.begin.look", _stop)
    with pytest.raises(KeyboardInterrupt):
        flyspeck.auto(path, minutes=5, out=tmp_path / "run")
    monkeypatch.setattr("flyspeck.plan.begin.look", look)
    with pytest.raises(UserError, match="the images are gone"):
        flyspeck.auto(path, minutes=5, out=tmp_path / "run", resume=True)


def test_what_was_said_before_a_stop_is_in_the_report_of_the_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Measured(Setting(True, Showing((96, 128), 0, 1.0)), {"ap50_tiny": 0.5}, 0.1)
    state = State(tmp_path, {}, {"settings": [one.to_dict()], "measured_on": 3})
    monkeypatch.setattr(auto, "weights_file", lambda folder: folder)
    (winner,), notes = candidates(tmp_path, "a"), []
    assert auto._setting(winner, a_table(tmp_path, 4), "cpu", state, 10.0, notes, QUIET) == one
    assert notes == ["whole or in tiles: measured on 3 of 4 images, for lack of time"]


def test_a_run_whose_candidates_are_others_now_does_not_go_on(tmp_path: Path) -> None:
    plan = rules.make_plan(
        base(), MACHINE, tier=TIERS[1], minutes=5, speed=SPEEDS["small"], name="x", train="t.json", val="v.json"
    )
    state = State(tmp_path, {}, {"candidates": ["y"]})
    with pytest.raises(UserError, match="was begun with y, where x would be tried now; begin anew in another --out"):
        auto._candidates([plan], {"small": SPEEDS["small"]}, state, budget(5), [], QUIET)


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


class _Stop(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.mark.slow
def test_from_scenes_to_an_exported_detector_in_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(rivals, "ONE_ALONE", 1.0)  # so that two are tried
    data = flyspeck.write_scenes(tmp_path / "scenes", num_images=60, seed=4, height=96, width=128, density=4)
    lines: list[tuple[float, str]] = []
    minutes = 8.0

    def say(line: str) -> None:
        lines.append((time.monotonic(), line))
        if line.startswith("training ") and not any("going on" in text for _, text in lines[:3]):
            raise _Stop  # once: the second call begins with other lines

    begun = time.monotonic()
    with pytest.raises(_Stop):
        flyspeck.auto(data, minutes=minutes, out=tmp_path / "auto", say=say)
    seen = [text for _, text in lines]
    assert any(text.startswith("round 1: ") for text in seen)
    stopped, lines[:] = list(lines), []
    done = flyspeck.auto(data, minutes=minutes, out=tmp_path / "auto", resume=True, say=say)
    used = time.monotonic() - begun
    assert used < 60 * minutes * 1.1
    assert done.minutes == pytest.approx(used / 60, abs=0.2)
    times = [begun, *(moment for moment, _ in stopped)]
    assert max(np.diff(times)) < 10  # never silent for longer
    assert len(done.trials) == 2
    winner = done.run
    records = [json.loads(line) for line in (winner / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "step"]
    assert steps == sorted(set(steps))  # nothing was trained twice
    assert done.exported is not None
    parts = [flyspeck.read_annotations(tmp_path / "auto" / "data" / f"{p}.json") for p in ("train", "choose", "report")]
    names = [set(part.file_names) for part in parts]
    assert not names[0] & names[1]
    assert not (names[0] | names[1]) & names[2]
    assert sum(map(len, names)) == 60
    page = (tmp_path / "auto" / "report.html").read_text()
    assert "Whole or in tiles, and how large" in page
    assert "What was tried" in page
    again = flyspeck.evaluate(ground_truth=tmp_path / "auto" / "data" / "report.json", detections=tmp_path / "auto")
    assert again.rows == done.evaluation.rows
    # What was measured is what anybody gets who says nothing: of the folder, of the run, of the exported file, of the job.
    best, report = done.setting.setting.showing, tmp_path / "auto" / "data" / "report.json"
    for number, model in enumerate((tmp_path / "auto", winner, done.exported)):
        predictor = flyspeck.load_predictor(model)
        assert (predictor.tile, predictor.overlap[0], predictor.enlarge.factor) == (best.tile, best.overlap, best.scale)
        said: list[str] = []
        found = tmp_path / f"found{number}"
        flyspeck.predict(report, model=model, out=found, keep_score=0.0, draw=0, say=said.append)
        assert "measured to be the best" in said[0]
        same = flyspeck.evaluate(ground_truth=report, detections=found / "detections.json")
        # The exported file, and `predict` without --precision, compute in fp32.
        reached = done.evaluation.value(metric="AP", iou=0.5, area="all")
        assert same.value(metric="AP", iou=0.5, area="all") == pytest.approx(reached, abs=0.03)
