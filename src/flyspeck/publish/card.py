"""A model card and a small weights file of a run, to publish: what it is, what it was measured on, and how to use it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import rule_of
from flyspeck.data.ground import GroundResolution
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError, counted
from flyspeck.evaluate import protocol_named
from flyspeck.evaluate.baselines import baseline_cells, measure_baselines
from flyspeck.evaluate.counts import Counts
from flyspeck.evaluate.score_curve import KEY as KEY_OF_SCORES
from flyspeck.files import read_json, read_records, write_text
from flyspeck.models.detector import Detector
from flyspeck.publish.licences import check_licence
from flyspeck.publish.score import CONVENTION, LEVEL, SAMPLES, Score, cost, environment, score
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import load_weights, save_weights, weights_file
from flyspeck.train.config import Recipe, load_recipe
from flyspeck.train.inputs import spread
from flyspeck.train.measure import measure
from flyspeck.train.viewing import viewing_of

TOLERANCE = 0.002
"""How much AP50 may move by rounding the weights, in [0, 1]; more, and they stay in single precision."""
MOST_CLASSES = 12
"""A card lists no more classes one by one."""
WEIGHTS, CARD = "model.safetensors", "README.md"


@dataclass(frozen=True)
class Words:
    """What only its maker can say of a model."""

    title: str
    data: str
    """The data set, its source and licence."""
    licence: str
    """Of the weights."""
    notes: str = ""
    """What to know before using it: where it fails, how the checkpoint was picked."""


@dataclass(frozen=True)
class Parity:
    """What rounding the weights to half precision changes, on some validation images."""

    metric: str
    images: int
    single: float
    half: float

    @property
    def holds(self) -> bool:
        """Whether the rounded weights may take the place of the others."""
        return abs(self.single - self.half) <= TOLERANCE


def write_card(
    run: Path,
    out: Path,
    words: Words,
    *,
    gt: Path | None = None,
    parity_images: int = 200,
    speed: bool = False,
    baselines: bool = False,
) -> Parity:
    """Writes `model.safetensors` and `README.md` of a finished run into `out`.

    The weights are in half precision where AP50 on `parity_images` validation images stays within `TOLERANCE`; the
    model computes as before. Paths of this machine are taken out of the weights' description. `gt` replaces the recipe's
    validation set where the data have moved. `speed` times the model here and now, which wants a quiet machine. `baselines` sets
    beside it what needs no network, fitted to the recipe's training set.
    """
    check_licence(words.licence, load_weights(weights_file(run))[1])
    recipe = load_recipe(run / "recipe.yaml", [] if gt is None else [f"data.val={gt.resolve()}"])
    if not (run / "detections.json").is_file():
        raise UserError("no detections.json: the run is not finished", where=run, fix="go on with --resume")
    val_set = spread(
        read_annotations(recipe.data.val, format=recipe.data.format, classes=_classes(run)), recipe.data.val_limit
    )
    metrics = score(val_set, run / "detections.json", protocol_named(recipe.evaluate.protocol))
    detector, description = load_described(run)
    state, _ = load_weights(weights_file(run))
    out.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    parity = _parity(detector, half, spread(val_set, parity_images), recipe, description)
    assert metrics.scores is not None
    told = {
        **description,
        KEY_OF_SCORES: metrics.scores.to_dict(),
        "licence": words.licence,
    }  # runs of before 0.2 have none
    save_weights(out / WEIGHTS, half if parity.holds else state, published(told))
    text = card(
        recipe,
        description,
        metrics,
        words,
        parity,
        detector=detector,
        val_set=val_set,
        run=run,
        speed=speed,
        baselines=_baselines(recipe, val_set) if baselines else [],
    )
    written = (out / WEIGHTS).read_bytes()
    text = text.replace("@SIZE@", f"{len(written) / 1e6:.1f} MB").replace("@HASH@", hashlib.sha256(written).hexdigest())
    write_text(out / CARD, text)
    return parity


def _classes(run: Path) -> list[str]:
    return list(load_weights(weights_file(run))[1]["classes"])


def published(description: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's description without paths: a file of weights keeps its name only."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return clean(description)


@torch.no_grad()
def _parity(
    detector: Detector,
    half: dict[str, torch.Tensor],
    images: Annotations,
    recipe: Recipe,
    description: Mapping[str, Any],
) -> Parity:
    """AP50 on all sizes with both weights, both computed in single precision."""
    from flyspeck.train.processes import join_processes

    accelerator = join_processes()
    viewing = replace(viewing_of(recipe, description, detector, rule_of(description)), precision="fp32")
    single = {name: value.clone() for name, value in detector.state_dict().items()}
    metric = "ap50_all" if recipe.evaluate.protocol.startswith("flyspeck") else recipe.evaluate.best
    found = []
    for state in (single, half):
        detector.load_state_dict(state)
        metrics = measure(
            detector.to(accelerator.device),
            images,
            protocol=recipe.evaluate.protocol,
            viewing=viewing,
            accelerator=accelerator,
        ).metrics
        found.append(metrics[metric])
    finite = all(bool(torch.isfinite(value).all()) for value in half.values() if value.is_floating_point())
    detector.load_state_dict(single)
    return Parity(metric, len(images), found[0], found[1] if finite else float("inf"))


def card(
    recipe: Recipe,
    description: dict[str, Any],
    metrics: Score,
    words: Words,
    parity: Parity,
    *,
    detector: Detector,
    val_set: Annotations,
    run: Path,
    speed: bool = False,
    baselines: Sequence[str] = (),
) -> str:
    """The card as Markdown; `@SIZE@` and `@HASH@` stand for the size and SHA-256 of the weights file."""
    height, width = (int(side) for side in description["training_size"])
    costs = cost(
        detector.cpu(),
        (height, width),
        proposals=getattr(recipe.model.head, "proposals", None),
        latency_runs=20 * speed,
    )
    known = read_json(run / "environment.json")
    dtype = "half" if parity.holds else "single"
    here = environment()
    lines = [
        f"# {words.title}",
        "",
        f"`{WEIGHTS}` (@SIZE@, {dtype} precision): {recipe.model.name}, {recipe.model.channels} channels, "
        f"{costs['parameters'] / 1e6:.2f} M parameters, {costs['gflops']:.2f} GFLOPs ({CONVENTION}) at {height}x{width}.",
        f"Classes: {', '.join(description['classes'])}. Trained with flyspeck {known['flyspeck']}.",
        "",
        "```console",
        f"flyspeck predict images/ --model {WEIGHTS} --out found",
        "```",
        "",
        f"* **Weights' licence**: {words.licence}",
        *_started(description),
        f"* **Data**: {words.data}; {known['train']['images']} images to learn from, {known['val']['images']} to measure on; "
        f"sha256 of the tables {description['data'][:16]}.",
        *_ground(description),
        f"* **Protocol**: {protocol_named(recipe.evaluate.protocol).text}.",  # type: ignore[union-attr]
        f"* **Checkpoint**: {_epoch(description['epoch'], recipe)}, picked by `{recipe.evaluate.best}` on the "
        "images that the metrics below are of.",
        f"* **Training**: seed {recipe.train.seed}, {known['threads']} thread(s) on {known['device']}, "
        f"{_minutes(run):.0f} minutes.",
        "* **sha256** of the weights file: `@HASH@`.",
        f"* **Half precision**: {parity.metric} on {counted(parity.images, 'image')} {100 * parity.single:.2f} before rounding, "
        f"{100 * parity.half:.2f} after.",
        "",
        *_table(metrics, val_set),
        "",
        *_counted(metrics.counts),
        *baselines,
        *by_class(run, dict(zip(val_set.category_ids, val_set.classes, strict=True))),
        f"In brackets: {LEVEL:.0%} intervals, {SAMPLES} resamples of the images, which are taken as independent; frames of "
        "one flight or film are not, so that they are too narrow.",
    ]
    if speed:
        threads = f"{here['threads']} thread(s) of {here['hardware']}"
        lines += ["", f"Speed: {costs['ms']:.1f} ms an image, one by one (median of 20, {threads}, single precision)."]
    if words.notes:
        lines += ["", words.notes.strip()]
    lines += ["", "## Recipe", "", "```yaml", _recipe_text(recipe).strip(), "```", ""]
    return "\n".join(lines)


def _started(description: Mapping[str, Any]) -> list[str]:
    """What the weights started from, with its licence."""
    said = [
        f"{published(dict(one))['source']} ({one.get('licence') or 'licence not said'})"
        for one in description.get("starts", ())
    ]
    return [f"* **Started from**: {'; '.join(said)}."] if said else []


def _ground(description: Mapping[str, Any]) -> list[str]:
    """The ground resolution of the training, where it is known."""
    known = GroundResolution.of(description)
    return [] if known is None else [f"* **Ground resolution** of the training's images: {known.words()}."]


def _table(metrics: Score, val_set: Annotations) -> list[str]:
    """AP and recall by size."""
    areas = [name.removeprefix("ap50_") for name in metrics.metrics if name.startswith("ap50_")]
    lines = ["| objects | AP50, % | AP, % | recall at IoU 0.5, % |", "|---|---|---|---|"]
    for area in areas:
        low, high = metrics.intervals.get(f"ap50_{area}", [float("nan")] * 2)
        ap, ar = metrics.metrics.get(f"ap_{area}"), metrics.metrics.get(f"ar50_{area}")
        cells = [f"{100 * metrics.metrics[f'ap50_{area}']:.1f} ({100 * low:.1f}-{100 * high:.1f})"]
        cells += ["-" if value is None else f"{100 * value:.1f}" for value in (ap, ar)]
        lines.append(f"| {area} | {' | '.join(cells)} |")
    return [*lines, "", f"{counted(val_set.num_boxes, 'box')} in {counted(len(val_set), 'image')}."]


def _counted(counts: Counts | None) -> list[str]:
    """What is seen of the boxes from the score of best F1 on, by size; nothing where the protocol counts nothing."""
    if counts is None:
        return []
    lines = ["| objects | doubles, % of those found | count error (bias), boxes an image |", "|---|---|---|"]
    for row in counts.rows:
        if row.objects:
            doubles = "-" if row.doubles < 0 else f"{100 * row.doubles:.1f}"
            lines.append(f"| {row.area} | {doubles} | {row.count_error:.2f} ({row.count_bias:+.2f}) |")
    head = (
        f"From a score of {counts.at.score:.2f} on (best F1 on these images: {100 * counts.at.f1:.1f} %); doubles are objects "
        "with two boxes or more:"
    )
    return [head, "", *lines, ""] if len(lines) > 2 else []


def _baselines(recipe: Recipe, val_set: Annotations) -> list[str]:
    """What needs no network, as a table and a list of what each is."""
    train = read_annotations(recipe.data.train, format=recipe.data.format, classes=val_set.classes)
    measured = measure_baselines(train, val_set, recipe.evaluate.protocol)
    head, *rows = baseline_cells(measured)
    lines = [f"| {' | '.join(cells)} |" for cells in (["without a network", *head[1:]], ["---"] * len(head), *rows)]
    return [*lines, "", *(f"* {base.name}: {base.words}" for base in measured), ""]


def by_class(run: Path, names: Mapping[int, str]) -> list[str]:
    """AP50 of each class (`names` by category id), from the run's own evaluation.

    Nothing where there is one class, or too many to read, or the protocol has no AP by class.
    """
    if not 1 < len(names) <= MOST_CLASSES:
        return []
    rows = read_json(run / "evaluation.json").get("rows", [])
    words = [
        f"{names[row['category_id']]} {100 * row['value']:.1f} ({row['n_gt']} objects)"
        for row in rows
        if (row["metric"], row.get("iou"), row.get("area")) == ("AP_per_class", 0.5, "all") and row["n_gt"]
    ]
    return [f"AP50 by class, all sizes, %: {', '.join(words)}.", ""] if words else []


def _epoch(epoch: int, recipe: Recipe) -> str:
    if recipe.train.minutes is not None:
        return f"epoch {epoch} of a run of {recipe.train.minutes:g} minutes"
    return f"epoch {epoch} of {recipe.train.epochs}"


def _minutes(run: Path) -> float:
    records = read_records(run / "metrics.jsonl")
    return sum(record["seconds"] for record in records if record["kind"] == "epoch") / 60


def _recipe_text(recipe: Recipe) -> str:
    """The recipe with file names in the place of paths."""
    return yaml.safe_dump(published(recipe.model_dump(mode="json")), sort_keys=False)
