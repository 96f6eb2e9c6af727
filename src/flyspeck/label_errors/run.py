"""`find_label_errors`: from models and a data set to a ranked list of suspects, and its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.files import local_output, write_json, write_text
from flyspeck.label_errors.folds import train_folds
from flyspeck.label_errors.opinions import assign_models, detect
from flyspeck.label_errors.page import build_page, describe
from flyspeck.label_errors.preannotations import Format, check_formats, write_preannotations
from flyspeck.label_errors.ranking import KINDS, chances
from flyspeck.label_errors.suspects import Suspect, csv_text, plain_values, rank
from flyspeck.train.config import Recipe
from flyspeck.train.run import train

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class LabelErrors:
    """What is likely wrong in a data set; `print` shows a summary and the first suspects."""

    suspects: tuple[Suspect, ...]
    """The likeliest first. Every annotation occurs once at most, under its likeliest error."""
    rates: dict[str, float]
    """Kind to the estimated share of annotations with that error (`missing`: of objects)."""
    annotations: Annotations
    """The table of the images that were judged; `Suspect.image` is a row of it."""
    detections: DetectionTable
    """What the models see in them."""
    files: tuple[Path, ...] = ()
    """What was written."""

    def facts(self) -> dict[str, Any]:
        """Plain values: `source`, `images`, `annotations`, `rates`, `suspects`."""
        return {
            "source": self.annotations.source,
            "images": len(self.annotations),
            "annotations": self.annotations.num_boxes,
            "rates": {kind: round(rate, 5) for kind, rate in self.rates.items()},
            "suspects": plain_values(self.suspects),
        }

    def text(self, most: int = 10) -> str:
        """A line for each kind, and the first `most` suspects."""
        images, boxes = len(self.annotations), self.annotations.num_boxes
        head = f"{self.annotations.source}: {counted(images, 'image')}, {counted(boxes, 'annotation')}"
        lines = [head, f"{'kind':12} {'estimated share':>16} {'suspects':>9} {'expected errors':>16}"]
        for kind in KINDS:
            mine = [one.chance for one in self.suspects if one.kind == kind]
            lines.append(f"{kind:12} {100 * self.rates[kind]:14.1f} % {len(mine):9} {sum(mine):16.0f}")
        lines += [f"{one.file_name}: {describe(one)}" for one in self.suspects[:most]]
        if len(self.suspects) > most:
            lines.append(f"and {len(self.suspects) - most} more")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def find_label_errors(
    run: AnyPath | Sequence[AnyPath],
    *,
    annotations: AnyPath | Annotations,
    out: AnyPath | None = None,
    formats: Sequence[str] = (),
    least_chance: float = 0.1,
    folds: int = 0,
    in_sample: bool = False,
    draw: int = 120,
    device: str = "auto",
    batch_size: int = 8,
    allow_references: bool = True,
    say: Callable[[str], None] = log.info,
    warn: Callable[[str], None] = log.warning,
    progress: Callable[[int, int], None] | None = None,
) -> LabelErrors:
    """Rank the annotations that are most likely missing, superfluous, of another class or badly placed.

    A detector that was not trained on the images says what it sees; how far that can be trusted, by score, size and class, and
    how many annotations are wrong, is estimated on the set itself. The formulas are in `docs/how-to/label_errors.md`.

    Args:
        run: A run folder, a weights file, a packaged model, or an exported `.onnx` or `.xml` file; or several, of which each
            image is judged by the first that was not trained on it.
        annotations: The set: a file or folder in any of the formats read, or a table.
        out: Folder for `errors.csv`, `errors.json`, the page `index.html` and the files of `formats`; None writes nothing.
        formats: Pre-annotations to write: some of `cvat`, `fiftyone`, `label-studio`, `labelme`, `voc`.
        least_chance: Suspects below this chance, from 0 to 1, are left out.
        folds: Train so many folds by the recipe of `run`, each on the other folds' images, into `out/folds`; each image is then
            judged by the fold that did not see it. 0: `run` judges itself.
        in_sample: Accept a model that was trained on the images.
        draw: Show the first so many suspects on the page.
        device: `auto` for the best there is, `cpu`, `cuda`, `cuda:1`, `mps`.
        batch_size: Tiles in one pass of the model.
        allow_references: The annotations may name images outside of their folder; False refuses them.
        say: Called with each line on what is done; the logger `flyspeck` where it is not given.
        warn: Called with each line on what is amiss.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The suspects, the estimated shares of errors, and the table and detections they are about.

    Raises:
        UserError: For a model or a set that cannot be read, for one that was trained on these images (without `folds` or
            `in_sample`), for a set without objects, or a model that knows none of its classes.
    """
    check_formats(formats)
    if not 0 <= least_chance <= 1:
        raise UserError(f"a chance of {least_chance:g}", where="least chance", fix="choose one from 0 to 1")
    if (folds or formats) and out is None:
        raise UserError("nowhere to write", where="folds" if folds else "formats", fix="give out")
    out = None if out is None else local_output(out)
    models = [Path(run)] if isinstance(run, str | os.PathLike) else [Path(one) for one in run]
    table = annotations
    if not isinstance(table, Annotations):
        table = read_annotations(Path(table), allow_references=allow_references)
    if not (~table.ignore & (table.labels >= 0)).any():
        raise UserError("no objects to judge", where=table.source, fix="annotate some first")
    if folds:
        if len(models) > 1:
            raise UserError(f"--folds with {len(models)} runs", fix="give one run, whose recipe is trained")
        assert out is not None
        parts = train_folds(models[0], table, folds, Path(out) / "folds", train=_train, say=say)
    else:
        parts = assign_models(models, table, in_sample=in_sample, warn=warn)
    judged, detections, known = detect(parts, table, device=device, batch_size=batch_size, warn=warn, progress=progress)
    found = chances(judged, detections, known=known)
    suspects = rank(judged, found, least=least_chance)
    result = LabelErrors(tuple(suspects), found.rates, judged, detections)
    if out is None:
        return result
    name = ", ".join(str(model) for model in models)
    return _written(result, Path(out), formats, name=name, draw=draw, warn=warn)


def _train(recipe: Recipe, folder: Path, resume: bool) -> None:
    train(recipe, folder, resume=resume)


def _written(
    result: LabelErrors, out: Path, formats: Sequence[str], *, name: str, draw: int, warn: Callable[[str], None]
) -> LabelErrors:
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "errors.csv", csv_text(result.suspects))
    write_json(out / "errors.json", result.facts())
    page, problems = build_page(result.annotations, result.suspects, result.rates, model=name, draw=draw)
    write_text(out / "index.html", page)
    if problems:
        warn(f"{counted(len(problems), 'image')} could not be drawn: {problems[0]}")
    files = [out / "errors.csv", out / "errors.json", out / "index.html"]
    for format in dict.fromkeys(formats):
        files.append(write_preannotations(result.annotations, result.suspects, out, cast("Format", format)))
    return LabelErrors(result.suspects, result.rates, result.annotations, result.detections, tuple(files))
