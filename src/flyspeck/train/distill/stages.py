"""The stages of a distillation, one after the other: teacher, student, fine-tuning on the ground truth, table.

The folder becomes the run folder of the final student; `teacher/` inside it is that of a teacher that was trained too,
`distilled/` that of the student before a fine-tuning. A finished stage says so in `stage.json`, one that was broken off goes
on from its last checkpoint. The student's checkpoints hold the detector alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flyspeck.data.bands import PixelRule, rule_of
from flyspeck.data.enlarge import described_enlargement, enlarged_table
from flyspeck.data.loading import DetectionDataset
from flyspeck.errors import UserError
from flyspeck.evaluate.results import goodness
from flyspeck.files import read_json, renamed_keys, write_json
from flyspeck.models.detector import Detector
from flyspeck.train.build import build_detector, load_described
from flyspeck.train.config import Recipe, load_recipe
from flyspeck.train.described_sizes import sizes_of
from flyspeck.train.distill.cache import open_cache, versions
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import OutputSource, build_objective, terms_of
from flyspeck.train.distill.table import StudentRow, StudentTable, cost_row, level_similarities, write_table
from flyspeck.train.distill.teacher import AsStudent, Observe, Teacher, TeacherSource, shared_classes, weights_hash
from flyspeck.train.inputs import enlargement, read_sets
from flyspeck.train.interrupt import said_how_to_go_on
from flyspeck.train.measure import measure
from flyspeck.train.processes import in_step, join_processes
from flyspeck.train.progress import EvaluationLines
from flyspeck.train.run import Method, RunContext, train
from flyspeck.train.state import agree
from flyspeck.train.viewing import images_at_once, viewing_of

log = logging.getLogger("flyspeck")


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher with the file it came from."""

    detector: Detector
    description: dict[str, Any]
    scale: float
    hash: str


def distill(recipe: Recipe, folder: Path, *, resume: bool = False, against: Sequence[Path] = ()) -> StudentTable:
    """Runs all stages of `recipe.distill` and returns the table, which is left in `folder` too (`table.md`, `table.json`).

    `folder` becomes the run folder of the final student. `against` are other run folders for the table. With `resume`,
    finished stages are kept and a broken one goes on.
    """
    config = _section(recipe)
    teacher = find_teacher(recipe, folder, resume=resume)
    teacher_metrics = _measure_teacher(recipe, folder / "teacher.json", teacher)
    metrics = train_student(recipe, folder, teacher=teacher, resume=resume)
    _say_worse(recipe.evaluate.best, teacher_metrics, metrics)
    runs = [folder / "distilled", folder] if config.finetune.epochs else [folder]
    return _table(recipe, folder, teacher, teacher_metrics, [*runs, *against])


def train_student(
    recipe: Recipe, folder: Path, *, teacher: TrainedTeacher | None = None, resume: bool = False
) -> dict[str, float]:
    """The stages of the student alone: its run folder is `folder`, that before a fine-tuning `folder/distilled`.

    `teacher` None finds it as the recipe says. Returns the metrics of the best weights.
    """
    config = _section(recipe)
    if config.cache is not None:
        versions(recipe.augment)  # what cannot be cached is said before a teacher trains for hours
    if (folder / "recipe.yaml").is_file() and not resume:
        raise UserError("holds a run already", where=folder, fix="choose another --out, or go on with --resume")
    teacher = teacher or find_teacher(recipe, folder, resume=resume)
    method = _student_method(config, teacher)
    if config.finetune.epochs == 0:
        return _stage(recipe, folder, resume, method)
    before = folder / "distilled"
    _stage(_distilling(recipe, config), before, resume, method)
    own = {**method.note["distill"], "stage": "fine-tuned"}
    return _stage(_finetuning(recipe, config), folder, resume, Method(start=before, note={"distill": own}))


def _section(recipe: Recipe) -> DistillConfig:
    if recipe.distill is None:
        raise UserError("the recipe has no section 'distill'", where=recipe.name, fix="train it with `flyspeck train`")
    if recipe.dynamic is not None:
        raise UserError(
            "a student of several resolutions cannot be distilled", where="dynamic", fix="leave one of the sections out"
        )
    return recipe.distill


# --- the teacher ------------------------------------------------------------------------------------------------------


def find_teacher(recipe: Recipe, folder: Path, *, resume: bool = False) -> TrainedTeacher:
    """The teacher that the recipe names; a recipe is trained first, into `folder/teacher`."""
    config = _section(recipe)
    path = Path(config.teacher)
    if path.suffix in (".yaml", ".yml"):
        own = load_recipe(path)
        if own.distill is not None:
            raise UserError("the teacher's recipe distils itself", where=path, fix="name the run folder of its student")
        if not (folder / "teacher" / "stage.json").is_file():
            _check_plans(recipe, own)
        _stage(own, folder / "teacher", resume, Method())
        path = folder / "teacher"
    detector, description = load_described(path)
    return TrainedTeacher(detector, description, _scale(recipe, description), weights_hash(detector))


def _check_plans(recipe: Recipe, own: Recipe) -> None:
    """Raises UserError for a student and a teacher `own` that do not fit: better now than after the teacher's training.

    What is taken from the training set later (anchors, fusion factors) is left out, and with it the comparison of responses.
    """
    config, models = _section(recipe), (recipe.model, own.model)
    fitted = any(model.anchors is not None and model.anchors.fit for model in models)
    if config.method == "none" or (config.method == "response" and fitted):
        return
    later: dict[str, Any] = {"fusion": None, "assigner": None} | ({"anchors": None} if fitted else {})
    student, teacher = (
        build_detector(
            plan.model.model_copy(update=later), classes=read_sets(plan.data)[0].classes, mean=[0], std=[1], load=False
        )
        for plan in (recipe, own)
    )
    scale = _scale(recipe, {"enlarge": enlargement(own.data).described()})
    terms_of(config, student, Teacher(teacher, scale=scale, fold=False))


def _scale(recipe: Recipe, description: dict[str, Any]) -> float:
    """How much the teacher's images are enlarged over the student's."""
    config = _section(recipe)
    if config.teacher_scale is not None:
        return config.teacher_scale
    # What the teacher has learnt from, where it is used at another size.
    learnt = {"enlarge": description.get("enlarge_in_training", description.get("enlarge", {}))}
    own, theirs = enlargement(recipe.data), described_enlargement(learnt)
    if own.squeeze is not None and theirs.squeeze is not None:
        ratios = [theirs.squeeze[0] / own.squeeze[0], theirs.squeeze[1] / own.squeeze[1]]
        if ratios[0] == ratios[1]:
            return ratios[0]
    elif own.squeeze is None and theirs.squeeze is None and own.short_side == theirs.short_side:
        return 1.0 if own.short_side is not None else theirs.factor / own.factor
    raise UserError(
        f"teacher and student see their images by different rules ({theirs.words()} and {own.words()})",
        where="distill.teacher_scale",
        fix="say how much larger the teacher sees what the student sees",
    )


def _measure_teacher(recipe: Recipe, file: Path, teacher: TrainedTeacher) -> dict[str, float]:
    """The teacher's metrics on the student's validation set; measured once."""
    made_of = {"teacher": teacher.hash, "scale": teacher.scale, "protocol": recipe.evaluate.protocol}
    if file.is_file():
        content = read_json(file, fix="delete it: the teacher is measured again")
        if content.get("of") == made_of:
            return _metrics(content, file)
    accelerator = join_processes()
    train_set, val_set = read_sets(recipe.data)
    _, _, remarks = shared_classes(train_set.classes, teacher.detector.classes)
    for remark in remarks:
        log.warning("classes: %s", remark)
    seen = enlarged_table(train_set, enlargement(recipe.data))
    viewing = viewing_of(
        recipe,
        {**sizes_of(recipe, train_set, seen), "enlarge": enlargement(recipe.data).described()},
        teacher.detector,
        rule_of(teacher.description),
        scale=teacher.scale,
    )
    view = AsStudent(teacher.detector, scale=teacher.scale, classes=train_set.classes).to(accelerator.device)
    metrics = measure(
        view,
        val_set,
        protocol=recipe.evaluate.protocol,
        viewing=viewing,
        accelerator=accelerator,
        tell=EvaluationLines(),
    ).metrics
    if accelerator.is_main_process:
        _write(file, {"of": made_of, "metrics": metrics})
    best = recipe.evaluate.best
    log.info("teacher on the student's validation set: %s %.1f", best, 100 * metrics.get(best, float("nan")))
    return metrics


def _say_worse(best: str, teacher: dict[str, float], student: dict[str, float]) -> None:
    own, theirs = teacher.get(best, -1.0), student.get(best, -1.0)
    if goodness(best, own) < goodness(best, theirs):
        what = "the teacher is worse than the student on the validation set"
        log.warning("%s: %s %.1f against %.1f", what, best, 100 * own, 100 * theirs)


# --- the student ------------------------------------------------------------------------------------------------------


def _student_method(config: DistillConfig, teacher: TrainedTeacher) -> Method:
    if config.method == "none":
        return Method(note={"distill": {"method": "none"}})
    own = config.model_dump(mode="json", exclude={"teacher", "teacher_scale", "cache", "cache_limit_gb", "finetune"})
    note = {"distill": {**own, "teacher": teacher.hash, "scale": teacher.scale}}

    def objective(detector: Detector, context: RunContext) -> nn.Module:
        whole = Teacher(teacher.detector, scale=teacher.scale)
        _check_reading(context.rule, teacher.description)
        return build_objective(
            config, detector, whole, lambda observe: _source(config, detector, whole, observe, context)
        )

    return Method(objective=objective, divisor=teacher.detector.divisor, note=note)


def _source(
    config: DistillConfig, student: Detector, teacher: Teacher, observe: Observe, context: RunContext
) -> OutputSource:
    folder = config.cache
    if folder is None:
        return TeacherSource(teacher, observe)
    recipe, accelerator = context.recipe, context.accelerator
    dataset = DetectionDataset(context.train_set, rule=context.rule, enlarge=enlargement(recipe.data))

    def opened() -> OutputSource:
        return open_cache(
            Path(folder),
            dataset,
            teacher,
            observe,
            augment=recipe.augment,
            limit_bytes=config.cache_limit_gb * 1e9,
            divisor=math.lcm(student.divisor, teacher.detector.divisor),
            smallest=student.smallest_side,
            batch_size=images_at_once(
                teacher.detector,
                context.train_set,
                enlargement(recipe.data),
                batch_size=recipe.evaluate.batch_size,
                scale=teacher.scale,
            ),
            device=accelerator.device,
            precision=recipe.train.precision,
        )

    cache = None
    with in_step(accelerator):  # the main process writes it
        if accelerator.is_main_process:
            cache = opened()
    with in_step(accelerator):
        return cache or opened()


def _check_reading(rule: PixelRule, description: dict[str, Any]) -> None:
    """The teacher sees the student's pixels: they must be the same bands in the same range."""
    taught = rule_of(description)
    if taught.channels != rule.channels:
        raise UserError(
            f"the teacher reads images of {taught.channels} channel(s), the student of {rule.channels}",
            where="distill.teacher",
            fix="set data.channels alike",
        )
    if (taught.bands, taught.value_range) != (rule.bands, rule.value_range):
        raise UserError(
            f"the teacher reads {taught.text}, the student {rule.text}",
            where="distill.teacher",
            fix="set data.bands and data.value_range alike",
        )


def _finetuning(recipe: Recipe, config: DistillConfig) -> Recipe:
    plan = recipe.train.model_copy(
        update={
            "epochs": config.finetune.epochs,
            "lr": recipe.train.lr * config.finetune.lr,
            "eval_every": 1,
            "minutes": _minutes(recipe, config, config.finetune.epochs),
            "schedule": recipe.train.whole_schedule,
        }
    )
    return recipe.model_copy(update={"train": plan, "name": f"{recipe.name}-finetuned"})


def _distilling(recipe: Recipe, config: DistillConfig) -> Recipe:
    plan = recipe.train.model_copy(update={"minutes": _minutes(recipe, config, recipe.train.epochs)})
    return recipe.model_copy(update={"train": plan})


def _minutes(recipe: Recipe, config: DistillConfig, epochs: int) -> float | None:
    """Of a stage of so many `epochs`: its share of the student's minutes."""
    minutes = recipe.train.minutes
    return None if minutes is None else minutes * epochs / (recipe.train.epochs + config.finetune.epochs)


def _stage(recipe: Recipe, folder: Path, resume: bool, method: Method) -> dict[str, float]:
    """One stage: the metrics of a finished one, or those of the run, which goes on where it was broken off."""
    done = folder / "stage.json"
    if done.is_file():
        if not resume:
            raise UserError("holds a run already", where=folder, fix="choose another --out, or go on with --resume")
        _check_same(done, recipe, method)
        return _metrics(read_json(done), done)
    begun = (folder / "state.pt").is_file()
    if resume and not begun:  # broken off before its first checkpoint: there is nothing to go on from
        (folder / "recipe.yaml").unlink(missing_ok=True)
    with said_how_to_go_on(folder):
        metrics = train(recipe, folder, resume=resume and begun, method=method)
    if join_processes().is_main_process:
        _write(done, {"metrics": metrics, "of": _identity(recipe, method)})
    return metrics


def _metrics(content: dict[str, Any], file: Path) -> dict[str, float]:
    metrics = renamed_keys(content).get("metrics")
    if not isinstance(metrics, dict):
        raise UserError("holds no metrics", where=file, fix="restore the file, or delete it")
    return metrics


def _identity(recipe: Recipe, method: Method) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude={"distill": True, "name": True, "data": {"train", "val", "cache"}})
    return {"recipe": content, "note": dict(method.note)}


def _check_same(done: Path, recipe: Recipe, method: Method) -> None:
    before = read_json(done).get("of")
    if not isinstance(before, dict) or not isinstance(before.get("recipe"), dict):
        raise UserError("does not say what was finished", where=done, fix="restore the file, or choose another --out")
    now = json.loads(json.dumps(_identity(recipe, method)))
    if not agree(before, now):
        parts = [key for key, value in now["recipe"].items() if not agree(before["recipe"].get(key, value), value)]
        parts += [] if agree(before.get("note", {}), now["note"]) else ["distill"]
        raise UserError(
            f"this stage was finished with another {', '.join(parts)}",
            where=done.parent,
            fix="use the recipe it was made with, or choose another --out",
        )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


# --- the table --------------------------------------------------------------------------------------------------------


def _table(
    recipe: Recipe,
    folder: Path,
    teacher: TrainedTeacher,
    teacher_metrics: dict[str, float],
    runs: Sequence[Path],
) -> StudentTable:
    """Metrics, costs and similarity to the teacher of every model; measured on the main process only."""
    loaded = [(path, *load_described(path)) for path in runs]
    height, width = loaded[0][2]["training_size"]
    seen = (round(height * teacher.scale), round(width * teacher.scale))
    rows: list[StudentRow] = [cost_row("teacher", teacher.detector.to("cpu"), seen, teacher_metrics)]
    _, val_set = read_sets(recipe.data)
    whole = Teacher(teacher.detector, scale=teacher.scale)
    dataset = DetectionDataset(val_set, rule=rule_of(teacher.description), enlarge=enlargement(recipe.data))
    for path, detector, description in loaded:
        about = description.get("distill", {})
        words = " ".join(part for part in (about.get("method"), about.get("stage")) if part)
        rows.append(
            cost_row(
                f"{path.name} ({words})" if words else path.name,
                detector,
                tuple(description["training_size"]),
                description["metrics"],
                similarity=level_similarities(detector, whole, dataset),
            )
        )
    table = StudentTable(size=(int(height), int(width)), threads=torch.get_num_threads(), rows=rows)
    if join_processes().is_main_process:
        write_table(table, folder)
    return table
