"""`auto`: annotated images and minutes to a detector that was chosen by measuring, exported, and measured on images kept apart.

The stages, each of which is noted when it is done (`state.State`): the parts and the fingerprint (`plan.begin`), speeds,
candidates, successive halving, the winner to the end, whole or in tiles and at which scale, export, and the report on images that
no choice was made on.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import native_sizes
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.baselines import Baseline, baseline_text, measure_baselines
from flyspeck.evaluate.protocols import Protocol
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.evaluate.score_curve import KEY as CURVE
from flyspeck.evaluate.score_curve import score_curve
from flyspeck.export.package import export_model
from flyspeck.export.proof import ExportOptions
from flyspeck.files import write_bytes
from flyspeck.infer.shown import KEY as SHOWN
from flyspeck.plan import rules
from flyspeck.plan.begin import Beginning, begin
from flyspeck.plan.budget import Budget, timing
from flyspeck.plan.choices import Plan, Speed
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.halving import finish, halve, progress_of, winner_share
from flyspeck.plan.init import check_disk, choice_lines, measured
from flyspeck.plan.rivals import candidates as candidates_for
from flyspeck.plan.sets import CHOOSE, REPORT, TRAIN, Source
from flyspeck.plan.settings import Measured, best_of, detect, measure_settings, result_of
from flyspeck.plan.speed import threads_kept
from flyspeck.plan.state import State
from flyspeck.plan.summary import write_summary
from flyspeck.plan.tried import Candidate, Trial
from flyspeck.plan.voice import Voice
from flyspeck.plan.write import write_recipe
from flyspeck.train.checkpoint import add_to_description, weights_file
from flyspeck.train.config import load_recipe
from flyspeck.train.inputs import spread
from flyspeck.train.start_names import WEIGHTS

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class AutoRun:
    """What `auto` made."""

    folder: Path
    """`model.safetensors` (so that the folder is a model), `report.html`, `recipes/`, `runs/`, `detections.json` and
    `evaluation.json` on the images kept apart.
    """
    run: Path
    """The winner's run folder."""
    exported: Path | None
    """None where exporting failed: a note says why."""
    setting: Measured
    """Whole or in tiles, and the scale, that were best on the images to choose on."""
    evaluation: EvaluationResult
    """On the images that no choice was made on."""
    trials: tuple[Trial, ...]
    minutes: float
    """That all of it took."""
    notes: tuple[str, ...]


def auto(
    data: AnyPath,
    *,
    minutes: float,
    out: AnyPath,
    val: AnyPath | None = None,
    format: str | None = None,
    images: AnyPath | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    device: str = "auto",
    resume: bool = False,
    say: Callable[[str], None] = log.info,
) -> AutoRun:
    """From annotated images to a detector, by the clock: looks, plans, tries, trains, chooses, exports and reports.

    Args:
        data: Annotations: a file or folder in any of the formats read. Parts called train, val and test are taken as they are
            called; what is missing is divided off by groups of images that belong together.
        minutes: All of it is done after so many.
        out: New folder to write to.
        val: Annotations to report on; no choice is made on them. None: those that `data` calls test or val, else a part of it.
        format: Name of the annotations' format, instead of having it found out.
        images: Folder of the images, where it is not the usual one.
        classes: Names of the classes to learn; None: all.
        pixels: What whole corners of VOC's boxes mean, as in `read_annotations`.
        device: `auto` for the best there is, `cpu`, `cuda`, `cuda:1`, `mps`.
        resume: Go on in `out` where an earlier call of the same was stopped.
        say: Called with each line on what is done; the logger `flyspeck` where it is not given.

    Returns:
        The folder, the run, the exported file, and the evaluation on images that no choice was made on.

    Raises:
        UserError: For annotations without an object, too few images that do not belong together, minutes in which nothing can
            be learnt, a disk that is too small, a folder that holds something (without `resume`).
    """
    with begin(
        data, minutes=minutes, out=out, val=val, format=format, images=images, classes=classes, pixels=pixels, device=device,
        resume=resume, say=say,
    ) as beginning:  # fmt: skip
        return go_on(beginning)


def go_on(beginning: Beginning) -> AutoRun:
    """The stages after the beginning, but for those that are done."""
    with threads_kept():
        return _run(beginning)


def _run(beginning: Beginning) -> AutoRun:
    sources, found, notes = beginning.sources, beginning.found, beginning.notes
    device, state, budget, voice = beginning.device, beginning.state, beginning.budget, beginning.voice
    budget.larger = {name: _pixels(sources[name].table) / _pixels(sources[TRAIN].table) for name in (CHOOSE, REPORT)}
    plans, speeds, machine_device = _plans(sources, found, device, state, budget, voice)
    candidates = _candidates(plans, speeds, state, budget, notes, voice)
    speed_of = {plan.value("name"): speeds[plan.tier.name] for plan in plans}
    choose, planned = _limited(sources, speeds[plans[0].tier.name], found, budget, notes)
    total = float(state.done["training"])

    def left(name: str = plans[0].value("name")) -> float:
        return budget.left - budget.kept_back(len(choose), planned, found, speed_of[name], candidates=1)

    winner, trials = halve(
        candidates, total, choose, voice, left=left,
        done=[Trial(**trial) for trial in state.done.get("trials", [])],
        note=lambda trial: state.keep("trials", [*state.done.get("trials", []), trial.to_dict()]),
    )  # fmt: skip
    if "finished" not in state.done:
        with voice.doing(f"training {winner.name} to the end"):
            state.keep("finished", finish(winner, left(winner.name), voice))
    speed = speed_of[winner.name]
    limit = budget.for_settings(planned, speed, found)
    best = _setting(winner, choose, machine_device, state, limit, notes, voice)
    model = _kept(winner, state)
    exported = _export(winner, sources[CHOOSE], state, budget.checked(speed, found), notes, voice)
    report = _still(sources[REPORT].table, planned, best, budget, notes)
    with voice.doing(f"measuring on {counted(len(report), 'image')} that no choice was made on"):
        precision = winner.recipe.train.precision
        detections, _ = detect(model, report, None, device=machine_device, precision=precision)  # as anybody has it
        evaluation = result_of(report, detections, winner.recipe.evaluate.protocol)
        detections.write_coco(state.folder / "detections.json", report)
        evaluation.write(state.folder / "evaluation.json")
    settings = [Measured.of(one) for one in state.done["settings"]]
    seconds = budget.for_baselines()
    baselines = _baselines(sources[TRAIN].table, report, evaluation.protocol, seconds, state.folder, notes, voice)
    with voice.doing("writing the report"):
        write_summary(
            state.folder,
            winner,
            report,
            detections,
            evaluation,
            trials,
            settings,
            best,
            notes,
            trained=progress_of(winner)[0] / 60,
            minutes=budget.minutes,
            baselines=baselines,
            images=budget.drawn(20),
        )
    voice("")
    voice(evaluation.table())
    if baselines:
        voice(baseline_text(baselines))
    for note in notes:
        voice(f"note: {note}")
    used = state.seconds / 60
    voice(f"done after {used:.1f} minutes: {state.folder / 'report.html'}")
    voice(f"next: flyspeck predict IMAGES --model {shlex.quote(str(exported or state.folder))} --out found")
    state.keep("over", round(used, 2))
    return AutoRun(state.folder, winner.folder, exported, best, evaluation, tuple(trials), used, tuple(notes))


def _plans(
    sources: Mapping[str, Source], found: Fingerprint, device: str, state: State, budget: Budget, voice: Voice
) -> tuple[list[Plan], dict[str, Speed], str]:
    """Candidate plans, the best guess first, the speeds they rest on, and the device."""
    machine, speeds = measured(
        {name: source.path for name, source in sources.items()}, sources[TRAIN].table, found, 0.7 * budget.minutes, device, voice,
        limit=timing(budget.seconds),
        known={name: Speed(**speed) for name, speed in state.done.get("speeds", {}).items()}, trains_here=True,
    )  # fmt: skip
    if "speeds" not in state.done:
        counts = len(sources[CHOOSE].table), len(sources[REPORT].table)
        speeds = dict(budget.affordable(*counts, found, speeds))
        state.done["training"] = budget.for_training(*counts, found, speeds)  # both, or none, is noted
        state.keep("speeds", {name: vars(speed) for name, speed in speeds.items()})
    total = float(state.done["training"]) / 60
    picked = candidates_for(found, speeds, total)
    minutes = total * winner_share(len(picked))
    most = budget.images(budget.CHOOSING, speeds[picked[0][1].name], found)
    looked_at = most if most < len(sources[CHOOSE].table) else None
    plans = []
    for name, tier, scale, why in picked:
        plan = rules.make_plan(
            found, machine, tier=tier, minutes=round(minutes, 3), speed=speeds[tier.name], name=name,
            train=sources[TRAIN].path, val=sources[CHOOSE].path, scale=scale, looked_at=looked_at,
        )  # fmt: skip
        plans.append(replace(plan, notes=(why, *plan.notes)))
    return plans, speeds, machine.device


def _candidates(
    plans: Sequence[Plan], speeds: Mapping[str, Speed], state: State, budget: Budget, notes: list[str], voice: Voice
) -> list[Candidate]:
    """The plans as recipes on disk; those of before an interruption as they are. What there is to know of the first, the best
    guess, is added to `notes`.
    """
    notes += plans[0].notes[1:]
    folder, names = state.folder / "recipes", [plan.value("name") for plan in plans]
    if state.done.get("candidates", names) != names:
        raise UserError(
            f"was begun with {', '.join(state.done['candidates'])}, where {', '.join(names)} would be tried now",
            where=state.folder,
            fix="begin anew in another --out",
        )
    if "candidates" not in state.done:
        check_disk(state.folder, *(speeds[plan.tier.name] for plan in plans))
        voice(
            f"{budget.seconds - state.seconds:.0f} s are left, {float(state.done['training']):.0f} of them for training"
        )
        for plan in plans:
            name = plan.value("name")
            voice(f"candidate {name}: {plan.tier.words}: {plan.notes[0]}")
            write_recipe(plan, folder / f"{name}.yaml", [f"Written by `flyspeck auto`: {plan.tier.words}."])
        for line in choice_lines(plans[0]):
            voice(line)
        for note in plans[0].notes[1:]:
            voice(f"note: {note}")
        state.keep("candidates", names)
    return [Candidate(name, load_recipe(folder / f"{name}.yaml"), state.folder / "runs" / name) for name in names]


def _pixels(table: Annotations) -> float:
    """Of an image, on average."""
    return float(native_sizes(table).prod(1).mean())


def _limited(
    sources: Mapping[str, Source], speed: Speed, found: Fingerprint, budget: Budget, notes: list[str]
) -> tuple[Annotations, int]:
    """The images to choose on, as many as there is time for, evenly spread; and the number of those to report on, for which time
    is kept back.
    """
    most = {
        name: min(len(sources[name].table), budget.images(share, speed, found))
        for name, share in ((CHOOSE, budget.CHOOSING), (REPORT, budget.REPORTING))
    }
    table = sources[CHOOSE].table
    if most[CHOOSE] < len(table):
        notes.append(f"{most[CHOOSE]} of {len(table)} images are looked at to choose on: there is no time for more")
    return spread(table, most[CHOOSE]), most[REPORT]


def _setting(
    winner: Candidate,
    choose: Annotations,
    device: str,
    state: State,
    limit: float,
    notes: list[str],
    voice: Voice,
) -> Measured:
    """Whole or in tiles, and the scale: the table, and its best row, which the weights say, with its score curve; in about
    `limit` seconds.
    """
    metric = winner.recipe.evaluate.best
    protocol, precision = winner.recipe.evaluate.protocol, winner.recipe.train.precision
    weights = weights_file(winner.folder)
    if "settings" not in state.done or "tile" not in state.done["settings"][0]:
        voice(f"whole or in tiles, and at which scale: {counted(len(choose), 'image')}")
        done, measured_on = measure_settings(
            winner.folder, choose, protocol=protocol, metric=metric, device=device, precision=precision,
            limit=limit, voice=voice,
        )  # fmt: skip
        best = best_of([one for one, _ in done])
        found = next(found for one, found in done if one is best)
        curve = score_curve(measured_on, found, result_of(measured_on, found, protocol).protocol)
        add_to_description(weights, **{SHOWN: best.setting.showing.to_dict(), CURVE: curve.to_dict()})
        state.done["measured_on"] = len(measured_on)
        state.keep("settings", [one.to_dict() for one, _ in done])
        for one, _ in done:
            value = one.metrics.get(metric, -1)
            voice(f"  {one.setting.words()}: {metric} {100 * value:.1f} %, {1000 * one.seconds:.0f} ms an image")
    reached = state.done.get("measured_on", len(choose))
    if reached < len(choose):
        notes.append(f"whole or in tiles: measured on {reached} of {len(choose)} images, for lack of time")
    best = best_of([Measured.of(one) for one in state.done["settings"]])
    voice(f"  best: {best.setting.words()}")
    return best


def _kept(winner: Candidate, state: State) -> Path:
    """The winner's weights beside the report, so that the folder itself is a model; its path."""
    write_bytes(state.folder / WEIGHTS, weights_file(winner.folder).read_bytes())
    return state.folder


def _still(table: Annotations, planned: int, best: Measured, budget: Budget, notes: list[str]) -> Annotations:
    """Of the images to report on, as many as there is still time for, evenly spread."""
    most = budget.still(best.seconds, planned)
    if most >= len(table):
        return table
    notes.append(f"{most} of {len(table)} images are reported on: there is no time for more")
    return spread(table, most)


def _export(
    winner: Candidate, source: Source, state: State, images: int, notes: list[str], voice: Voice
) -> Path | None:
    """The winner as ONNX, checked on so many images; None, and a note, where that fails or there is no time for it (0)."""
    path = state.folder / "detector.onnx"
    if path.is_file():
        return path
    again = shlex.join(["flyspeck", "export", str(winner.folder), "--out", str(path)])
    if not images:
        notes.append(f"not exported, for lack of time: {again}")
        return None
    options = ExportOptions(format="onnx", check=Path(source.path), check_limit=images)
    try:
        with voice.doing("exporting to ONNX"):
            return export_model(winner.folder, path, options, say=lambda line: voice(f"  {line}")).path
    except UserError as error:
        notes.append(f"not exported: {error}; {again} tries again")
        return None


def _baselines(
    train: Annotations,
    report: Annotations,
    protocol: Protocol,
    seconds: float,
    folder: Path,
    notes: list[str],
    voice: Voice,
) -> Sequence[Baseline]:
    """What needs no network, in about so many seconds; nothing, and a note, where there are none."""
    if not seconds:
        truth, found, train_set = (
            str(folder / name) for name in ("data/report.json", "detections.json", "data/train.json")
        )
        again = shlex.join(["flyspeck", "eval", "--gt", truth, "--dt", found, "--baselines", "--train", train_set])
        notes.append(f"nothing without a network beside the numbers, for lack of time: {again}")
        return ()
    with voice.doing("beside it, what needs no network: no box, the usual places, blobs"):
        return measure_baselines(train, report, protocol, seconds=seconds / 4)
