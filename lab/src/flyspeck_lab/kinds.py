"""How each kind of row runs: from a job to a run folder, and from the folder to entries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.files import read_jsonl, write_json
from flyspeck.publish.score import Score, cost, environment, score
from flyspeck.train.config import ModelConfig, Recipe
from flyspeck_lab.results import Entry
from flyspeck_lab.scoring import factor_cost, rule_of, share_score
from flyspeck_lab.table import Job


@dataclass(frozen=True)
class Folders:
    """The folders of this machine."""

    data: Path
    """Root of the data sets."""
    runs: Path
    """Root of the run folders."""


@dataclass(frozen=True)
class JobOutcome:
    """What a job gave."""

    entries: list[Entry]
    draws: dict[str, dict[str, np.ndarray]]


def run(job: Job, places: Folders) -> JobOutcome:
    """Does a job, from where an earlier attempt was broken off; every row that it needs must be finished."""
    kinds: dict[str, Callable[[Job, Folders], JobOutcome]] = {
        "train": _train,
        "distill": _distill,
        "pretrain": _pretrain,
        "evaluate": _evaluate,
        "external": _external,
    }
    return kinds[job.row.kind](job, places)


def _train(job: Job, places: Folders) -> JobOutcome:
    from flyspeck.train.run import train

    recipe, folder = job.recipe(data=places.data, runs=places.runs), job.folder(places.runs)
    _check_data(job, recipe)
    train(recipe, folder, resume=_begun(folder))
    return _of_run(job, recipe, folder)


def _distill(job: Job, places: Folders) -> JobOutcome:
    from flyspeck.train.distill.stages import train_student

    recipe, folder = job.recipe(data=places.data, runs=places.runs), job.folder(places.runs)
    _check_data(job, recipe)
    train_student(recipe, folder, resume=_begun(folder) or (folder / "distilled").is_dir())
    return _of_run(job, recipe, folder)


def _begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from. A run that was killed before its first one begins again."""
    if (folder / "state.pt").is_file():
        return True
    (folder / "recipe.yaml").unlink(missing_ok=True)
    return False


def _check_data(job: Job, recipe: Recipe) -> None:
    for path in (recipe.data.train, recipe.data.val):
        if not Path(path).exists():
            raise UserError("no such file", where=path, fix=f"make it, or give another --data: {job.data.make}")


def rescore(job: Job, places: Folders, before: list[Entry]) -> JobOutcome:
    """Scores a finished training's run folder again; what is known of its hardware and versions stays.

    So do its milliseconds, unless the table asks for another number of runs and this is hardware of the same name with as many
    threads. Another tool's detections are read again with their facts.
    """
    if job.row.kind == "external":
        return _external(job, places)
    known = {entry.variant: entry.facts for entry in before}
    here = {name: fact for name, fact in environment().items() if name in ("hardware", "threads")}
    elsewhere = any(facts.get(name) != fact for facts in known.values() for name, fact in here.items())
    timed = elsewhere or all(facts.get("ms_runs", 0) == job.table.latency_runs for facts in known.values())
    runs = 0 if timed else job.table.latency_runs
    outcome = _of_run(job, job.recipe(data=places.data, runs=places.runs), job.folder(places.runs), latency_runs=runs)
    names = (*environment(), *(("ms", "ms_p90", "ms_runs") if timed else ()))
    entries = []
    for entry in outcome.entries:
        facts = known.get(entry.variant, before[0].facts)
        entries.append(replace(entry, facts=entry.facts | {name: facts[name] for name in names if name in facts}))
    return JobOutcome(entries, outcome.draws)


def _of_run(job: Job, recipe: Recipe, folder: Path, *, latency_runs: int | None = None) -> JobOutcome:
    """The entries of a run folder: the run's own, and one for each `detections-VARIANT.json`.

    `latency_runs` None times as often as the table asks for.
    """
    from flyspeck.train.build import load_described
    from flyspeck.train.inputs import read_sets

    train_set, val_set = read_sets(recipe.data)
    detector, description = load_described(folder)
    height, width = description["training_size"]
    size, proposals = (int(height), int(width)), getattr(recipe.model.head, "proposals", None)
    timings = job.table.latency_runs if latency_runs is None else latency_runs
    facts = cost(detector, size, proposals=proposals, latency_runs=timings)
    facts |= {
        **_length(recipe, folder / "metrics.jsonl"),
        "best_epoch": description["epoch"],
        "training_images": len(train_set),
        "validation_images": len(val_set),
        "data_sha256": description["data"],
        "protocol": recipe.evaluate.protocol,
        "seconds": _seconds(folder / "metrics.jsonl"),
        **environment(),
    }
    scores = {
        path.stem.removeprefix("detections").removeprefix("-"): path for path in sorted(folder.glob("detections*.json"))
    }
    found: list[tuple[str, Score, dict[str, Any]]] = []
    for variant, path in scores.items():
        own = factor_cost(detector, variant, size, proposals=proposals, latency_runs=timings)
        found.append((variant, _scored(job, val_set, path, recipe), facts | own))
    return _outcome(job, found)


def _scored(job: Job, val_set: Annotations, detections: Path, recipe: Recipe) -> Score:
    rule = rule_of(recipe.evaluate.protocol, bins=job.table.bins, bin_scale=job.row.bin_scale)
    return score(val_set, detections, rule)


def _length(recipe: Recipe, metrics: Path) -> dict[str, Any]:
    """Epochs of a run; of one by the clock its minutes, and the epochs that it came to, the last of which may be a part."""
    if recipe.train.minutes is None:
        return {"epochs": recipe.train.epochs}
    begun = [record["epoch"] for record in read_jsonl(metrics) if record.get("kind") == "epoch"]
    return {"epochs": max(begun, default=0), "minutes": recipe.train.minutes}


def _seconds(metrics: Path) -> float:
    """Seconds of training, evaluation left out: those of the epochs that count, however often the run was broken off."""
    by_epoch: dict[int, float] = {}
    for record in read_jsonl(metrics):
        if record.get("kind") == "epoch":
            by_epoch[record["epoch"]] = record["seconds"]
    return round(sum(by_epoch.values()), 1)


def _outcome(job: Job, found: list[tuple[str, Score, dict[str, Any]]]) -> JobOutcome:
    entries, draws = [], {}
    for variant, scored, facts in found:
        entry = Entry(
            grade=job.grade,
            row=job.row.name,
            seed=job.seed,
            definition=job.definition,
            variant=variant,
            metrics=scored.metrics,
            intervals=scored.intervals,
            facts=facts,
        )
        entries.append(entry)
        draws[entry.key] = scored.draws
    return JobOutcome(entries, draws)


def _pretrain(job: Job, places: Folders) -> JobOutcome:
    """A pre-training that was broken off goes on."""
    from flyspeck.data.classification import read_labelled_images
    from flyspeck.models.build import build_backbone
    from flyspeck.train.config import TrainConfig
    from flyspeck.train.pretrain import STATE, pretrain

    done = job.folder(places.runs) / "entry.json"
    if done.is_file():  # for another table
        known = json.loads(done.read_text(encoding="utf-8"))
        return _outcome(job, [("", share_score(known["top1"], known["facts"]["validation_images"]), known["facts"])])
    wanted = job.pretraining(data=places.data, runs=places.runs)
    data = job.table.sets.get(wanted.data)
    if data is None or data.folder is None:
        raise UserError(f"'{wanted.data}' is no folder of labelled images", where=job.table.where)
    folder = places.data / data.folder
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, fix=f"make it, or give another --data: {data.make}")
    torch.manual_seed(job.seed)
    network = build_backbone(wanted.backbone, width=wanted.width, weights=wanted.weights)
    train_set = read_labelled_images(folder, "train", size=wanted.size)
    val_set = read_labelled_images(folder, "val", size=wanted.size)
    train_set = train_set if wanted.per_class is None else train_set.limit(wanted.per_class)
    val_set = val_set if wanted.val_per_class is None else val_set.limit(wanted.val_per_class)
    own = {"epochs", "batch_size", "lr", "weight_decay", "warmup_steps", "precision"}
    config = TrainConfig(optimizer="sgd", schedule="cosine", seed=job.seed, **wanted.model_dump(include=own))
    started = time.monotonic()
    best = pretrain(
        network,
        train_set,
        val_set,
        config,
        job.folder(places.runs),
        name=wanted.backbone,
        smallest_crop=wanted.smallest_crop,
        resume=(job.folder(places.runs) / STATE).is_file(),
    )
    facts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": config.epochs,
        "best_epoch": best.epoch,
        "training_images": len(train_set),
        "validation_images": len(val_set),
        "seconds": round(time.monotonic() - started, 1),
        **environment(),
    }
    write_json(done, {"top1": best.top1, "facts": facts})
    return _outcome(job, [("", share_score(best.top1, len(val_set)), facts)])


def _evaluate(job: Job, places: Folders) -> JobOutcome:
    """Another row's best weights under this row's `model` and `evaluate` settings, on this row's data."""
    from flyspeck.data.bands import rule_of
    from flyspeck.train.build import build_detector, load_described
    from flyspeck.train.inputs import enlargement_in_use, read_sets
    from flyspeck.train.measure import measure
    from flyspeck.train.processes import join_processes
    from flyspeck.train.progress import EvaluationLines
    from flyspeck.train.viewing import viewing_of

    recipe, folder = job.recipe(data=places.data, runs=places.runs), job.folder(places.runs)
    _check_data(job, recipe)
    source = next(need for need in job.needs() if need.row.name == job.row.weights_of)
    trained, description = load_described(source.folder(places.runs))
    _, val_set = read_sets(recipe.data)
    # What training took from its images is the trained model's.
    taken = ModelConfig.model_validate(description["model"])
    model = recipe.model.model_copy(update={"fusion": taken.fusion} if recipe.model.fusion == "statistic" else {})
    detector = build_detector(
        model, classes=description["classes"], mean=description["mean"], std=description["std"], load=False
    )
    try:
        detector.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"the weights of '{source.row.name}' do not fit: {str(error).splitlines()[-1].strip()}", where=job.row.name
        ) from None
    accelerator = join_processes()
    detector.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    started = time.monotonic()
    seen = {"enlarge": enlargement_in_use(recipe.data, recipe.evaluate).described()}
    measured = measure(
        detector,
        val_set,
        protocol=recipe.evaluate.protocol,
        viewing=viewing_of(recipe, {**description, **seen}, detector, rule_of(description)),
        accelerator=accelerator,
        tell=EvaluationLines(),
    )
    if accelerator.is_main_process:
        measured.write(folder, val_set)
    height, width = description["training_size"]
    facts = cost(
        detector.cpu(),
        (int(height), int(width)),
        proposals=getattr(recipe.model.head, "proposals", None),
        latency_runs=job.table.latency_runs,
    )
    facts |= {
        "validation_images": len(val_set),
        "protocol": recipe.evaluate.protocol,
        "seconds": round(time.monotonic() - started, 1),
        **environment(),
    }
    return _outcome(job, [("", _scored(job, val_set, folder / "detections.json", recipe), facts)])


def _external(job: Job, places: Folders) -> JobOutcome:
    """Scores what another tool left in the job's folder: `detections.json` (COCO results) and `about.json` (facts)."""
    from flyspeck.data.readers import read_annotations

    folder = job.folder(places.runs)
    detections, about = folder / "detections.json", folder / "about.json"
    if not detections.is_file() or not about.is_file():
        raise UserError(
            "no detections of another tool",
            where=folder,
            fix="put detections.json (COCO results on the table's validation set) and about.json "
            "(tool, version, parameters, gflops, seconds, hardware, threads) there, or leave the row out with --rows",
        )
    facts = json.loads(about.read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not all(isinstance(value, int | float | str) for value in facts.values()):
        raise UserError("is no flat mapping of numbers and words", where=about)
    if job.data.val is None:
        raise UserError(f"'{job.row.name}' has no validation set", where=job.table.where)
    val_set = read_annotations(places.data / job.data.val, classes=job.row.set.get("classes"))
    protocol, limit = job.row.set.get("protocol", "flyspeck"), job.row.set.get("val_limit")
    if limit is not None:
        from flyspeck.train.inputs import spread

        val_set = spread(val_set, limit)
    scored = score(val_set, detections, rule_of(protocol, bins=job.table.bins, bin_scale=job.row.bin_scale))
    return _outcome(job, [("", scored, {"validation_images": len(val_set), "protocol": protocol, **facts})])
