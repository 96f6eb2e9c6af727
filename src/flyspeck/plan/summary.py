"""The page of an `auto` run: the usual report on images that no choice was made on, and what was tried before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.baselines.values import Baseline
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.results import EvaluationResult
from flyspeck.files import read_records
from flyspeck.plan.settings import Measured
from flyspeck.plan.tried import Candidate, Trial
from flyspeck.report import tables
from flyspeck.report.html import Section, build_report
from flyspeck.report.runs import RunReport

PAGE = "report.html"


def write_summary(
    folder: Path,
    winner: Candidate,
    table: Annotations,
    found: DetectionTable,
    evaluation: EvaluationResult,
    trials: Sequence[Trial],
    settings: Sequence[Measured],
    best: Measured,
    notes: Sequence[str],
    *,
    baselines: Sequence[Baseline] = (),
    trained: float,
    minutes: float,
    images: int = 20,
) -> Path:
    """`report.html` in `folder`: `found` in the images of `table`, then the trials and the settings that were tried.

    The winner was `trained` for so many minutes, of `minutes` for all.
    """
    model, train = winner.recipe.model, winner.recipe.train
    facts = {
        "plan": winner.name,
        "model": f"{model.name}, width {model.width:g}, {model.channels} channels",
        "training": f"{trained:.1f} minutes of {minutes:g}, batch {train.batch_size}, learning rate {train.lr:g}",
        "images": best.setting.words(),
    }
    history = tuple(r for r in read_records(winner.folder / "metrics.jsonl") if r.get("kind") == "epoch")
    run = RunReport(winner.name, table, found, evaluation, history, facts, baselines=tuple(baselines))
    appendices = [_settings(settings, best, winner.recipe.evaluate.best)]
    if trials:
        appendices.append(_trials(trials, winner))
    if notes:
        rows = [[str(number), note] for number, note in enumerate(notes, 1)]
        body = tables.table(["", "note"], rows, caption="What to know", words=True)
        appendices.append(Section("Notes", "What was seen on the way.", table=body))
    return build_report([run], folder / PAGE, images=images, title="flyspeck auto", appendices=appendices)


def _settings(settings: Sequence[Measured], best: Measured, metric: str) -> Section:
    names = list(dict.fromkeys((metric, "ap50_tiny", "ap50_small", "ap50_all")))
    rows = [
        [
            one.setting.words() + (" ★" if one.setting == best.setting else ""),
            *(tables.percent(one.metrics.get(name)) for name in names),
            "" if one.difference is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * d for d in one.difference)),
            tables.number(1000 * one.seconds),
        ]
        for one in settings
    ]
    head = ["images are shown", *(f"{name}, %" for name in names), "difference", "ms an image"]
    text = (
        "Measured on the images that choices are made on, with the trained detector. The first row is how it was trained, and"
        f" gives way only to one whose {metric} is ahead by more than chance (paired, 90 % intervals over images); ★ is the"
        " choice."
    )
    return Section("Whole or in tiles, and how large", text, table=tables.table(head, rows, caption="Settings"))


def _trials(trials: Sequence[Trial], winner: Candidate) -> Section:
    rows = [
        [
            trial.name + (" ★" if trial.name == winner.name else ""),
            str(trial.round + 1),
            tables.number(trial.seconds),
            str(trial.images),
            tables.percent(trial.value),
        ]
        for trial in trials
    ]
    head = ["plan", "round", "seconds of training", "images seen", f"{winner.recipe.evaluate.best}, %"]
    text = (
        "Each plan trained on the same clock, on the same images, and measured with its averaged weights in the middle of"
        " its training; the worst of a round left, and the best (★) went on."
    )
    return Section("What was tried", text, table=tables.table(head, rows, caption="Trials"))
