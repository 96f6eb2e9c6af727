"""What a report is made of: one `RunReport` a run, from memory or from a run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError, brief
from flyspeck.evaluate import DetectionTable, EvaluationResult, evaluate, protocol_named
from flyspeck.evaluate.baselines.values import Baseline
from flyspeck.files import read_json, read_records, without_ending
from flyspeck.plain_yaml import read_yaml
from flyspeck.plugins import load_needed

CHOSEN = "factor-probabilities-val.json"
"""Where a run with a factor predictor says what it chose."""


@dataclass(frozen=True)
class ChosenFactors:
    """The factor of every image of a table."""

    factors: tuple[float, ...]
    """Largest first."""
    places: np.ndarray
    """(I,) places among them."""


@dataclass(frozen=True)
class RunReport:
    """One run as the report shows it."""

    name: str
    annotations: Annotations
    """Ground truth that the detections are scored against."""
    detections: DetectionTable
    evaluation: EvaluationResult
    history: tuple[Mapping[str, Any], ...] = ()
    """Epoch records of the training: `epoch`, `seconds`, `losses` (name to mean), `metrics` (name to value)."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What to know of the run, such as model, data and time; shown as it is."""
    chosen: ChosenFactors | None = None
    """The factors of a detector that chooses them."""
    baselines: tuple[Baseline, ...] = ()
    """What needs no network, on the same images."""
    best: str = "ap50_tiny"
    """The metric that picked the weights."""


def read_runs(
    folders: Sequence[Path | str],
    *,
    gt: Path | str | None = None,
    protocol: str | None = None,
    allow_references: bool = True,
) -> list[RunReport]:
    """`read_run` of several folders or files; each is called by its path below the folder that they share."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    runs = [read_run(folder, gt=gt, protocol=protocol, allow_references=allow_references) for folder in folders]
    if len(runs) > 1:
        shared = os.path.commonpath([path.parent for path in paths])
        runs = [
            replace(r, name=without_ending(p.relative_to(shared)).as_posix()) for r, p in zip(runs, paths, strict=True)
        ]
    return runs


def training_set(train: Path | str | None, run: Path | None, classes: tuple[str, ...]) -> Annotations:
    """The annotations that baselines are fitted to: those named, else those of the recipe in the folder `run`.

    Raises UserError where neither is known.
    """
    from flyspeck.data.readers import read_annotations

    if train is not None:
        return read_annotations(train, classes=classes)
    if run is None or not (run / "recipe.yaml").is_file():
        raise UserError(
            "baselines are fitted to a training set, and none is known", where="--baselines", fix="name it with --train"
        )
    data = _mapping(run / "recipe.yaml").get("data")
    if not isinstance(data, dict) or "train" not in data:
        raise UserError("has no data.train", where=run / "recipe.yaml", fix="name the training set with --train")
    _check_texts(data, "train", run / "recipe.yaml")
    return read_annotations(data["train"], format=data.get("format"), classes=classes)


def read_run(
    folder: Path | str, *, gt: Path | str | None = None, protocol: str | None = None, allow_references: bool = True
) -> RunReport:
    """The run in `folder`: `recipe.yaml`, `detections.json`, `evaluation.json`, `metrics.jsonl`; or a file of detections alone.

    The detections are scored anew against the recipe's validation set, or `gt`, under the protocol of `evaluation.json` or
    the one named. Of a COCO results file, or a folder that holds one and no recipe, as `predict` writes it, `gt` is needed.
    Nothing but json and YAML is read. Raises UserError for a folder that is neither, and without `allow_references` for ground
    truth that names images outside of its folder.
    """
    folder = Path(folder)
    recipe_file, found_file = folder / "recipe.yaml", folder / "detections.json"
    if not folder.exists():
        raise UserError("no such file or folder", where=folder, fix="check the path")
    if folder.is_file() or (gt is not None and found_file.is_file() and not recipe_file.is_file()):
        found = folder if folder.is_file() else found_file
        return _foreign(found, gt, protocol, allow_references=allow_references)
    if not recipe_file.is_file():
        fix = "name a folder that `flyspeck train` made"
        if (folder / "auto.json").is_file():
            fix = f"what `flyspeck auto` made has its page, {folder / 'report.html'}, and its runs in {folder / 'runs'}"
        raise UserError("no recipe.yaml: not a run folder", where=folder, fix=fix)
    if not found_file.is_file():
        raise UserError(
            "no detections.json: the run is not finished", where=folder, fix="let it finish, or go on with --resume"
        )
    recipe = _mapping(recipe_file)
    load_needed(recipe.get("plugins"), where=recipe_file)
    annotations = _ground_truth(recipe, gt, recipe_file, allow_references=allow_references)
    detections = DetectionTable.from_coco(found_file, annotations)
    name = protocol or _stored_protocol(folder / "evaluation.json")
    evaluation = evaluate(annotations, detections, protocol_named(name))
    history = tuple(record for record in read_records(folder / "metrics.jsonl") if record.get("kind") == "epoch")
    return RunReport(
        folder.name,
        annotations,
        detections,
        evaluation,
        history,
        _facts(recipe, folder),
        read_chosen(folder, annotations),
        best=str(_section(recipe, "evaluate").get("best", "ap50_tiny")),
    )


def _foreign(file: Path, gt: Path | str | None, protocol: str | None, *, allow_references: bool) -> RunReport:
    """Detections of any program: a COCO results file, scored against `gt`."""
    from flyspeck.data.readers.outside import refuse_outside
    from flyspeck.evaluate.layouts import read_pair

    if gt is None:
        raise UserError("detections alone do not say what they are measured on", where=file, fix="give --gt")
    chosen = protocol_named(protocol or "flyspeck")
    annotations, detections = read_pair(Path(gt), file, chosen)
    if not allow_references:
        refuse_outside(annotations.root, annotations.file_names, source=Path(gt))
    name = file.resolve().parent.name if file.stem == "detections" else file.stem
    return RunReport(
        name, annotations, detections, evaluate(annotations, detections, chosen), facts={"file": file.name}
    )


def read_chosen(folder: Path, annotations: Annotations) -> ChosenFactors | None:
    """What a run folder says of its choices; None where it chooses none, or said nothing of these images."""
    path = folder / CHOSEN
    fix = "fit the predictor again: flyspeck dpnet fit RUN"
    if not path.is_file():
        return None
    try:
        content = read_json(path, fix=fix)
        factors = tuple(float(f) for f in content["factors"])
        chosen = content.get("chosen")
        place = dict(zip(content["image_ids"], map(factors.index, chosen or ()), strict=bool(chosen)))
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"not a list of chosen factors ({error})", where=path, fix=fix) from None
    ids = [i if isinstance(i, str) else int(i) for i in annotations.image_ids]
    if any(i not in place for i in ids):
        return None
    return ChosenFactors(factors, np.array([place[i] for i in ids], np.int64))


def _check_texts(data: Mapping[str, Any], name: str, where: Path) -> None:
    """Raises UserError where a recipe's `data` does not say as text where the annotations `name` lie and how they are read."""
    listed, form = data.get("classes"), data.get("format")
    sound = {
        name: isinstance(data[name], str),
        "format": form is None or isinstance(form, str),
        "classes": listed is None or (isinstance(listed, list) and all(isinstance(one, str) for one in listed)),
    }
    for key, fits in sound.items():
        if not fits:
            fix = "restore the run's recipe.yaml, or write it as the schema says"
            raise UserError(f"data.{key} is {brief(data[key])}, no text", where=where, fix=fix)


def _ground_truth(
    recipe: Mapping[str, Any], gt: Path | str | None, where: Path, *, allow_references: bool
) -> Annotations:
    """The recipe's validation set, read as training read it."""
    from flyspeck.data.readers import read_annotations

    data = recipe.get("data")
    if not isinstance(data, dict) or "val" not in data:
        raise UserError("has no data.val", where=where, fix="give the ground truth with --gt")
    _check_texts(data, "val", where)
    table = read_annotations(
        gt or data["val"], format=data.get("format"), classes=data.get("classes"), allow_references=allow_references
    )
    limit = data.get("val_limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise UserError(
            f"data.val_limit is {brief(limit)}, no count", where=where, fix="give the ground truth with --gt"
        )
    if gt is None and limit is not None and limit < len(table):
        # the same even spread over the file that training measured on
        table = table.select_images(np.linspace(0, len(table) - 1, limit).round().astype(np.int64))
    return table


def _mapping(path: Path) -> dict[str, Any]:
    content, _ = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError("is not a recipe", where=path)
    return content


def _stored_protocol(path: Path) -> str:
    """The protocol that the run was measured with; ours where it says none."""
    if not path.is_file():
        return "flyspeck"
    fix = "measure again: flyspeck eval, or delete the file"
    name = read_json(path, fix=fix).get("protocol")
    if not isinstance(name, str):
        raise UserError("is not an evaluation", where=path, fix=fix)
    return name


def _section(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a recipe as it stands in a run folder; empty where it is not there."""
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _facts(recipe: Mapping[str, Any], folder: Path) -> dict[str, str]:
    model, train = (_section(recipe, name) for name in ("model", "train"))
    minutes = train.get("minutes")
    length = f"{train.get('epochs', '?')} epochs" if minutes is None else f"{minutes} minutes"
    facts = {
        "model": f"{model.get('name', '?')}, width {model.get('width', 1.0)}, {model.get('channels', '?')} channels",
        "training": f"{length}, batch {train.get('batch_size', '?')}, {train.get('optimizer', '?')}, "
        f"learning rate {train.get('lr', '?')}, seed {train.get('seed', '?')}",
    }
    environment = folder / "environment.json"
    if environment.is_file():
        content = read_json(environment, fix="delete it: it says where the run was made")
        facts["environment"] = (
            f"flyspeck {content.get('flyspeck')}, torch {content.get('torch')}, {content.get('device')}"
        )
        facts["data sha256"] = str(content.get("data_sha256", ""))[:16]
    return facts
