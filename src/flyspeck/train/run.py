"""A recipe from beginning to end: read, build, fit, and leave a run folder that explains itself.

A run folder holds `recipe.yaml` (complete), `environment.json` (versions, hardware, data hash), `start.json` (what became of
every tensor of the weights that it started from), `metrics.jsonl` and
`metrics.csv`, `curves.html`, `best.safetensors`, `last.safetensors`, `state.pt`, and of the best weights `detections.json` and
`evaluation.json`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey
from flyspeck.data.bands import KEY, PixelRule
from flyspeck.data.enlarge import enlarged_table
from flyspeck.data.statistics import pixel_statistics
from flyspeck.devices import free_memory
from flyspeck.errors import UserError
from flyspeck.evaluate.learning_curve import remarks
from flyspeck.files import read_records, write_json, write_text
from flyspeck.models.detector import Detector
from flyspeck.train.assigners import settled_assigner
from flyspeck.train.build import (
    build_detector,
    describe_model,
    finest_stride,
    fitted_anchors,
    load_detector,
    load_into,
    set_counts_area,
)
from flyspeck.train.checks import few_steps, judge_problems, usable_images
from flyspeck.train.config import DataConfig, PredictorConfig, Recipe, dump_recipe
from flyspeck.train.crowds import fitted_head, training_window
from flyspeck.train.curves import Curves
from flyspeck.train.described_sizes import ground_of, sizes_of
from flyspeck.train.dynamic import best_metric, make_dynamic, objective_of, optimisation
from flyspeck.train.dynamic_fit import FOLDER, fit_predictor, measure_routed, open_run
from flyspeck.train.evaluations import Evaluations, evaluations_of
from flyspeck.train.fusion import STATISTIC, recipe_fusion
from flyspeck.train.inputs import (
    data_hash,
    enlargement,
    read_sets,
    reading_rule,
    training_loader,
)
from flyspeck.train.loop import Progress, fit
from flyspeck.train.measure import check_metric
from flyspeck.train.pixels import Pixels, pixels_of_older_run, settled_pixels
from flyspeck.train.plan import Watch
from flyspeck.train.plugin_notes import with_plugins
from flyspeck.train.processes import in_step, join_processes
from flyspeck.train.progress import Console, Fanout, Reporter, RunFiles, TensorBoard, headline
from flyspeck.train.start_notes import check_at_hand, starts_of, unused_weights, write_starts
from flyspeck.train.state import ENDING
from flyspeck.version import VERSION

log = logging.getLogger("flyspeck")


@dataclass(frozen=True)
class RunContext:
    """What a method may build its objective from."""

    recipe: Recipe
    """With everything filled in that is taken from the training set."""
    train_set: Annotations
    rule: PixelRule
    """How the images are read."""
    accelerator: Accelerator


def plain_objective(detector: Detector, context: RunContext) -> nn.Module:
    """The detector's own losses; of a dynamic detector at its factors."""
    return objective_of(detector, context.recipe.dynamic)


@dataclass(frozen=True)
class Method:
    """What a training method changes of a run; the defaults are plain training."""

    objective: Callable[[Detector, RunContext], nn.Module] = plain_objective
    start: Path | None = None
    """A run folder or checkpoint of the same model, whose weights the run starts from."""
    leave_out: Sequence[int | str] = ()
    """Ids of training images that are held out."""
    divisor: int = 1
    """What the sides of batches must divide by besides the detector's own divisor: a teacher's."""
    note: Mapping[str, Any] = field(default_factory=dict)
    """Plain values for the checkpoint's description; a resumed run must have the same."""


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    finish: bool = False,
    reporter: Reporter | None = None,
    method: Method | None = None,
) -> dict[str, float]:
    """Runs a recipe into `folder` and returns the metrics of its best weights.

    With `finish`, a run that is resumed only brings its learning rate down and ends (`train.anneal`). `method` (None: plain
    training) is how distillation enters. Raises UserError if `folder` holds another run already and
    `resume` is False, or if the recipe asks for a method that is not given.
    """
    if recipe.distill is not None and method is None:
        raise UserError("the recipe has a section 'distill'", where=recipe.name, fix="run it with `flyspeck distill`")
    method, watch = method or Method(), Watch()
    accelerator = join_processes()
    predictor = recipe.dynamic.predictor if recipe.dynamic is not None else None
    if predictor is not None and predictor.folds > 1 and accelerator.num_processes > 1:
        raise UserError(
            "labels of held-out images are made by one process",
            where="dynamic.predictor.folds",
            fix="train with --set dynamic.predictor=null, then run `flyspeck dpnet fit RUN` alone",
        )
    if finish and not (folder / STATE).exists():
        raise UserError("no checkpoint to finish from", where=folder, fix="train with --resume, or leave out --finish")
    with in_step(accelerator):
        resume = _claim(folder, resume, accelerator)
    with _released_on_failure(folder, accelerator):
        return _train(recipe, folder, resume, finish, reporter, method, accelerator, watch)


def _train(
    recipe: Recipe,
    folder: Path,
    resume: bool,
    finish: bool,
    reporter: Reporter | None,
    method: Method,
    accelerator: Accelerator,
    watch: Watch,
) -> dict[str, float]:
    with in_step(accelerator):
        begins = starting_point(recipe, resumed=folder if resume else None, leave_out=method.leave_out)
    recipe, detector, rule, mean, std = begins.recipe, begins.detector, begins.rule, begins.mean, begins.std
    train_set, val_set, seen = begins.train_set, begins.val_set, begins.seen
    description = {
        **describe_model(recipe.model, classes=train_set.classes, mean=mean, std=std, dynamic=recipe.dynamic),
        "recipe": _comparable(recipe),
        KEY: replace(rule, channels=len(mean)).to_dict(),
        "data": data_hash(train_set, val_set),
        **sizes_of(recipe, train_set, seen),
        **ground_of(recipe, train_set),
        "protocol": recipe.evaluate.protocol,
        **starts_of(recipe.model, detector),
        **method.note,
    }
    set_counts_area(detector, recipe.model, description["training_size"])
    detector.head.check_training(
        images=max(1, recipe.train.batch_size // (recipe.train.accumulate * accelerator.num_processes)),
        size=tuple(description["training_size"]),
        free=free_memory(str(accelerator.device)),
    )
    if method.start is not None:
        load_into(detector, method.start)
    with in_step(accelerator):
        if accelerator.is_main_process:
            _describe_run(folder, recipe, description, train_set, val_set, accelerator=accelerator)
            write_starts(folder, detector)
    best = best_metric(recipe.evaluate.best, recipe.dynamic)
    console = Console(best=best)
    curves = Curves(folder, name=recipe.name, epochs=recipe.train.epochs, best=best) if reporter is None else None
    evaluations = evaluations_of(recipe, description, detector, val_set, rule, accelerator, console)
    with contextlib.closing(
        training_loader(
            recipe,
            train_set,
            rule=rule,
            divisor=math.lcm(detector.divisor, method.divisor),
            smallest=detector.smallest_side,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            pin_memory=accelerator.device.type == "cuda",
        )
    ) as loader:
        steps = len(loader) // recipe.train.accumulate
        _say_notes(recipe, steps, wanted=not resume and reporter is None and accelerator.is_main_process)
        progress = fit(
            method.objective(detector, RunContext(recipe, train_set, rule, accelerator)),
            detector=detector,
            batches=lambda epoch, skip: loader.epoch(epoch, start=skip),
            steps_per_epoch=steps,
            config=optimisation(recipe.train, recipe.dynamic),
            folder=folder,
            description=description,
            reporter=reporter or _reporters(folder, recipe, console, curves),
            accelerator=accelerator,
            measure=evaluations,
            expect=partial(evaluations.expected_seconds, processes=accelerator.num_processes),
            best=best,
            is_best=evaluations.keep,
            resume=resume,
            finish=finish,
            watch=watch,
        )
    metrics = _finish(recipe, folder, evaluations, accelerator, progress)
    if accelerator.is_main_process:
        if curves is not None:
            curves.finish()
        for remark in remarks([r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "epoch"], best):
            log.warning(remark)
    return metrics


def _say_notes(recipe: Recipe, steps: int, *, wanted: bool) -> None:
    """What somebody should know of a recipe before its first step, with so many `steps` an epoch."""
    if not wanted:
        return
    few = None if recipe.train.minutes else few_steps(recipe.train.epochs, steps)
    for line in (few, unused_weights(recipe.model)):
        if line is not None:
            log.info("note: %s", line)


@dataclass(frozen=True)
class StartingPoint:
    """What a recipe comes to before the first step."""

    recipe: Recipe
    """With everything filled in that is taken from the training set."""
    detector: Detector
    train_set: Annotations
    val_set: Annotations
    seen: Annotations
    """The training set as the network sees it: enlarged."""
    rule: PixelRule
    mean: Sequence[float]
    std: Sequence[float]


def starting_point(
    recipe: Recipe, *, resumed: Path | None = None, leave_out: Sequence[int | str] = ()
) -> StartingPoint:
    """Reads the data, settles what they decide, and builds the detector; `resumed` is the folder of a run that goes on.

    Raises UserError for data that cannot be used, and for a recipe that does not fit them.
    """
    check_at_hand(recipe.model)
    (train_set, of_train), (val_set, of_val) = _usable_sets(recipe.data)
    check_metric(recipe.evaluate.best, val_set, recipe.evaluate.protocol)
    rule = reading_rule(recipe.data, of_train, of_val, resumed=resumed)
    train_set = _without(train_set, leave_out)
    recipe, (mean, std) = _with_pixels(recipe, train_set, rule, None if resumed is None else resumed / STATE)
    seen = enlarged_table(train_set, enlargement(recipe.data))  # the network's pixels: anchors and tiles are in them
    recipe = _resolved(recipe, seen)
    torch.manual_seed(recipe.train.seed)
    detector = build_detector(recipe.model, classes=train_set.classes, mean=mean, std=std)
    make_dynamic(detector, recipe.dynamic)
    return StartingPoint(recipe, detector, train_set, val_set, seen, rule, mean, std)


def _usable_sets(data: DataConfig) -> tuple[tuple[Annotations, Survey], tuple[Annotations, Survey]]:
    """The training and the validation table without what cannot be used, each with what its headers say."""
    tables, most = read_sets(data), data.max_broken_share
    judge_problems(most, tables)
    train_set, val_set = (usable_images(table, how=data.check_files, allowed_share=most) for table in tables)
    return train_set, val_set


def _without(table: Annotations, image_ids: Sequence[int | str]) -> Annotations:
    """The table without some of its images."""
    held = set(image_ids)
    return table.select_images(np.array([i not in held for i in table.image_ids.tolist()])) if held else table


def _finish(
    recipe: Recipe, folder: Path, evaluations: Evaluations, accelerator: Accelerator, progress: Progress
) -> dict[str, float]:
    """Metrics, detections and evaluation of the best weights: as they were found when these were saved."""
    accelerator.wait_for_everyone()
    if evaluations.best is None:
        with in_step(accelerator):
            best = load_detector(folder / "best.safetensors").to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        evaluations(best)
        evaluations.keep()
    assert evaluations.best is not None
    metrics = dict(evaluations.best.metrics)
    if accelerator.is_main_process:
        evaluations.best.write(folder, evaluations.annotations)
        if recipe.dynamic is not None and recipe.dynamic.predictor is not None:
            metrics |= _with_predictor(folder, recipe.dynamic.predictor, str(accelerator.device))
    line = headline(metrics, first=best_metric(recipe.evaluate.best, recipe.dynamic))
    log.info("best epoch %d: %s; all of it in %s", progress.best_epoch, line, folder / "evaluation.json")
    return metrics


def _with_predictor(folder: Path, config: PredictorConfig, device: str) -> dict[str, float]:
    """Trains the predictor of a dynamic detector into a folder of its own; its metrics are named `ap50_tiny@dpnet`.

    On the main process alone: the others are done, and nothing here may wait for them.
    """
    opened = open_run(folder)
    where, _ = fit_predictor(opened, config, device=device, train_without=train_without)
    return {f"{name}@{FOLDER}": value for name, value in measure_routed(opened, where, alone=True).items()}


def train_without(recipe: Recipe, folder: Path, image_ids: Sequence[int | str]) -> dict[str, float]:
    """As `train`, without some of the training images; goes on in `folder` where it was broken off."""
    return train(recipe, folder, resume=begun(folder), method=Method(leave_out=tuple(image_ids)))


STATE = "state.pt"
CLAIMS = ("recipe.yaml", "environment.json")
"""What says that a folder holds a run, before there is a state."""


def begun(folder: Path) -> bool:
    """Whether there is a run to resume, be it one that was killed before its first checkpoint, which begins anew then."""
    return (folder / STATE).exists() or (folder / "recipe.yaml").exists()


def _claim(folder: Path, resume: bool, accelerator: Accelerator) -> bool:
    """Makes the folder this run's; returns whether there is a state to go on from."""
    saved = (folder / STATE).exists()
    if not resume and (saved or (folder / "recipe.yaml").exists()):
        what = "holds a run already" if saved else "holds a run that stopped before its first checkpoint"
        how = "go on with --resume" if saved else "begin it again with --resume"
        raise UserError(what, where=folder, fix=f"choose another --out, or {how}")
    if resume and not saved and not folder.exists():
        raise UserError("nothing to resume", where=folder, fix="leave out --resume to start the run")
    if resume and not saved:
        log.warning("%s: stopped before its first checkpoint, so it begins anew", folder)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
    return resume and saved


@contextlib.contextmanager
def _released_on_failure(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """A start that fails before anything is saved leaves a folder that the next one can take."""
    try:
        yield
    except BaseException:
        if accelerator.is_main_process and not (folder / STATE).exists():
            for name in CLAIMS:
                (folder / name).unlink(missing_ok=True)
        raise


def _with_pixels(recipe: Recipe, train_set: Annotations, rule: PixelRule, state: Path | None) -> tuple[Recipe, Pixels]:
    """The recipe with its `pixel_norm` and channels settled, and the mean and deviation of each band; `state` is that to be
    resumed.
    """
    statistics = pixel_statistics(train_set, rule=rule)
    own = list(statistics.mean), [max(deviation, 1e-3) for deviation in statistics.std]  # never divide by 0
    model = recipe.model if state is None else pixels_of_older_run(recipe.model, state)
    model, pixels = settled_pixels(model, own, bits=statistics.bits)
    data = recipe.data.model_copy(update={"channels": statistics.channels})
    return recipe.model_copy(update={"model": model, "data": data}), pixels


def _resolved(recipe: Recipe, train_set: Annotations) -> Recipe:
    """The recipe with everything that is taken from the training set filled in."""
    model = recipe.model
    if model.anchors is not None and model.anchors.fit:
        anchors = fitted_anchors(train_set, finest_stride(model))
        log.info("anchors fitted to the training set: %s", anchors.model_dump(exclude={"fit"}))
        model = model.model_copy(update={"anchors": anchors})
    model = fitted_head(model, train_set, training_window(recipe.augment, train_set))
    if model.fusion == STATISTIC:
        found = recipe_fusion(train_set, model, size=None)
        counts = ", ".join(f"{level} {count}" for level, count in zip(found.levels, found.counts, strict=True))
        log.info("fusion factors of the training set, finest edge first: %s (%s)", list(found.factors), counts)
        model = model.model_copy(update={"fusion": list(found.factors)})
    if model.assigner is not None:
        bare = build_detector(
            model.model_copy(update={"assigner": None}), classes=train_set.classes, mean=[0.5], std=[0.5], load=False
        )
        model = model.model_copy(update={"assigner": settled_assigner(model.assigner, bare, train_set)})
    return with_plugins(recipe.model_copy(update={"model": model}))


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that a resumed run must share; how it logs, loads or saves may change."""
    content = recipe.model_dump(mode="json")
    for key in ("workers", "log_every", "checkpoint_every", "checkpoint_minutes", "tensorboard", *ENDING):
        content["train"].pop(key)
    content["data"].pop("cache")
    content["data"].pop("metres_per_pixel")  # it changes nothing of a training
    for key in ("channels", "bands", "value_range"):  # the rule that they lead to is compared
        content["data"].pop(key)
    for key in ("train", "val"):  # a moved data set is the same data set: the hash tells
        content["data"].pop(key)
    content.pop("plugins")  # they may change, and whoever reads the recipe is told
    content.pop("distill")  # what matters of it is noted apart, with the teacher's hash in place of its path
    return content


def _reporters(folder: Path, recipe: Recipe, console: Console, curves: Curves | None) -> Reporter:
    reporters: list[Reporter] = [RunFiles(folder), *([curves] if curves is not None else []), console]
    if recipe.train.tensorboard:
        reporters.append(TensorBoard(folder))
    return Fanout(reporters)


def _describe_run(
    folder: Path,
    recipe: Recipe,
    description: dict[str, Any],
    train_set: Annotations,
    val_set: Annotations,
    *,
    accelerator: Accelerator,
) -> None:
    write_text(folder / "recipe.yaml", dump_recipe(recipe))
    device = accelerator.device
    about = platform.uname()  # platform.platform() would start `uname -p`
    environment = {
        "flyspeck": VERSION,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": "-".join(filter(None, (about.system, about.release, about.machine, *platform.libc_ver()))),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "plugins": recipe.plugins,
        "seed": recipe.train.seed,
        "data_sha256": description["data"],
        "reading": description[KEY],
        "train": {"source": train_set.source, "images": len(train_set), "boxes": train_set.num_boxes},
        "val": {"source": val_set.source, "images": len(val_set), "boxes": val_set.num_boxes},
    }
    write_json(folder / "environment.json", environment)
