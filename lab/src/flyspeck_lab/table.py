"""A table of measurements as one YAML file: rows that differ from a base recipe, seeds, and the claims to check.

Nothing in it depends on a machine: data sets are named by keys and found under a root folder, and another row's run by
`${run:ROW}`. A row is known by its definition (recipe without paths, seed, and the rows that it builds on), so that a
finished one is never run again and a changed one is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flyspeck.errors import UserError, nearest
from flyspeck.plain_yaml import read_yaml
from flyspeck.train.config import Recipe, parse_recipe

_REFERENCE = re.compile(r"\$\{run:([^}]+)\}")
_SLUG = r"^[a-z0-9][a-z0-9_.-]*$"
_ALWAYS_SO: dict[str, tuple[tuple[str, Any], ...]] = {
    "model": (("pixel_norm", "data"), ("suppression", "nms")),
    "train": (("ema", None),),
}
"""Keys of sections at values that every run had before it had to say so: a result that was measured then is theirs."""

Kind = Literal["train", "pretrain", "distill", "evaluate", "external"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSet(_Strict):
    """A data set below the data root."""

    train: str | None = None
    """Annotations to learn from, relative to the root."""
    val: str | None = None
    """Annotations to measure on."""
    folder: str | None = None
    """Instead of both: a folder of labelled images, for pre-training."""
    make: str
    """How to get or make it, in a line: a command or a place."""


class Grade(_Strict):
    """One size of the same table: what a laptop does in an evening, or the real thing."""

    base: str
    """The recipe that all rows share: a YAML file, relative to the table's."""
    data: str
    """Key of the data set."""
    set: dict[str, Any] = {}
    """Changes to the base, `section.key: value`."""
    pretrain: dict[str, Any] = {}
    """What all pre-training rows share; see `PretrainConfig`."""
    rows: list[str] = []
    """The rows that it has; none named: all that name this grade or none."""


class PretrainConfig(_Strict):
    """A backbone as a classifier of small images (`flyspeck pretrain`)."""

    backbone: str
    data: str
    """Key of the data set, one with a folder."""
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=128, ge=2)
    lr: float = Field(default=0.05, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_steps: int = Field(default=200, ge=0)
    width: float = Field(default=1.0, gt=0)
    weights: str | None = None
    per_class: int | None = Field(default=None, ge=1)
    """Training images of each class; None takes all."""
    val_per_class: int | None = Field(default=None, ge=1)
    size: int = Field(default=32, ge=8)
    smallest_crop: float = Field(default=0.5, gt=0, le=1)
    precision: Literal["fp32", "bf16"] = "fp32"


class Row(_Strict):
    """One line of the table."""

    name: str = Field(pattern=_SLUG)
    label: str = ""
    """How the table calls it; default: the name."""
    kind: Kind = "train"
    """`train` and `distill` follow a recipe; `pretrain` a classifier; `evaluate` measures another row's weights under
    changed `model` and `evaluate` settings; `external` scores detections that another tool left."""
    set: dict[str, Any] = {}
    """Changes to the grade's recipe, `section.key: value` (of a pre-training: `key: value`)."""
    in_grade: dict[str, dict[str, Any]] = {}
    """Further changes in one grade only."""
    weights_of: str | None = None
    """Of an `evaluate` row: the row whose best weights are measured."""
    seeds: list[int] = Field(default=[0], min_length=1)
    grades: list[str] = []
    """The grades that have this row; none named: all."""
    data: str | None = None
    """Key of another data set than the grade's."""
    extra: bool = False
    """Beyond what the table must show: run after all other rows and all their seeds."""
    bin_scale: float = Field(default=1.0, gt=0)
    """Pixels of that set per pixel of the grade's: the bounds of the size bins are multiplied, so that a bin holds the same
    objects."""


class Claim(_Strict):
    """A sentence, and the comparison that decides it.

    Either `row` against `than`: `row` is `better` by more than `margin`, or `near`: closer than `margin`. With `more_at`, the
    difference at `metric` is compared with that at `more_at`. Or `best_of` with `among`: the best of all `among` is one of
    `best_of`. A row's variants are written `row@variant`.
    """

    text: str
    metric: str = "ap50_tiny"
    row: str | None = None
    than: str | None = None
    relation: Literal["better", "near"] = "better"
    margin: float = Field(default=0.0, ge=0)
    """In units of the metric: 0.01 is a point."""
    more_at: str | None = None
    best_of: list[str] = []
    among: list[str] = []
    grades: list[str] = []

    @model_validator(mode="after")
    def _one_kind(self) -> Claim:
        pair, choice = self.row is not None and self.than is not None, bool(self.best_of and self.among)
        if pair == choice:
            raise ValueError("a claim has either row and than, or best_of and among")
        if not set(self.best_of) <= set(self.among):
            raise ValueError("best_of names a row that is not in among")
        return self

    @property
    def rows(self) -> list[str]:
        """The rows that it needs, variants included."""
        return [self.row, self.than] if self.row and self.than else self.among  # type: ignore[list-item]


class Table(_Strict):
    """A whole table."""

    name: str = Field(pattern=_SLUG)
    title: str
    source: str
    """The paper and its tables."""
    about: str = ""
    """A paragraph for the page: what is compared, and how it differs from the paper."""
    revision: int = Field(default=1, ge=1)
    """Counted up when rows mean something else though no word of theirs has changed, as after a fault in the code: rows of
    an earlier revision are withdrawn, and run again into new folders."""
    withdrawn: str = ""
    """Why the rows of the revision before stand no longer; the page says it first, until all of them are run again."""
    sets: dict[str, DataSet]
    grades: dict[str, Grade]
    rows: list[Row]
    claims: list[Claim] = []
    metrics: list[str] = ["ap50_tiny1", "ap50_tiny2", "ap50_tiny3", "ap50_tiny", "ap50_small", "ap50_all", "ap_all"]
    """What the page shows; all others are in the result file."""
    bins: list[float] | None = None
    """Sizes in px that bound the bins, instead of the protocol's own; bins are then called `8-12` and the like."""
    latency_runs: int = Field(default=0, ge=0)
    """Time each row's model so often on one image; 0 does not."""
    where: Path = Field(exclude=True)
    """The file it was read from."""

    @model_validator(mode="after")
    def _names(self) -> Table:
        if self.withdrawn.strip() and self.revision == 1:
            raise ValueError("withdrawn rows belong to an earlier revision: set revision to 2 or more")
        names = [row.name for row in self.rows]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rows are called '{name}'")
        for row in self.rows:
            for grade in (*row.grades, *row.in_grade):
                _known(grade, self.grades, f"grade of row '{row.name}'")
            for other in (*references(row), *([row.weights_of] if row.weights_of else [])):
                _known(other, names[: names.index(row.name)], f"row that '{row.name}' needs, above it")
                if self.rows[names.index(other)].extra and not row.extra:
                    raise ValueError(f"row '{row.name}' needs '{other}', which is extra: it must be extra too")
            if row.data is not None:
                _known(row.data, self.sets, f"data of row '{row.name}'")
        for grade in self.grades.values():
            _known(grade.data, self.sets, "data set")
            for name in grade.rows:
                _known(name, names, "row in a grade")
        for claim in self.claims:
            for name in claim.rows:
                _known(name.partition("@")[0], names, "row in a claim")
        return self

    def row(self, name: str) -> Row:
        """The row of that name; raises UserError with the nearest."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UserError(f"no row '{name}'", where=self.where, fix=nearest(name, [row.name for row in self.rows]))

    def rows_of(self, grade: str) -> list[Row]:
        """The rows that `grade` has, in order."""
        if grade not in self.grades:
            raise UserError(f"no grade '{grade}'", where=self.where, fix=nearest(grade, self.grades))
        only = self.grades[grade].rows
        return [row for row in self.rows if (not row.grades or grade in row.grades) and (not only or row.name in only)]


def _known(name: str, names: Any, what: str) -> None:
    if name not in names:
        raise ValueError(f"no {what} called '{name}' (known: {', '.join(names)})")


def references(value: Any) -> list[str]:
    """The rows that a row's values point at."""
    text = value.model_dump_json() if isinstance(value, BaseModel) else json.dumps(value)
    return list(dict.fromkeys(_REFERENCE.findall(text)))


@dataclass(frozen=True)
class Job:
    """One row with one seed in one grade."""

    table: Table
    grade: str
    row: Row
    seed: int

    @property
    def key(self) -> str:
        """`grade/row/seed`."""
        return f"{self.grade}/{self.row.name}/{self.seed}"

    @property
    def data(self) -> DataSet:
        """Its data set."""
        return self.table.sets[self.row.data or self.table.grades[self.grade].data]

    @cached_property
    def content(self) -> dict[str, Any]:
        """What it does, references unresolved and without paths of data: a recipe's mapping, or a pre-training's."""
        grade = self.table.grades[self.grade]
        if self.row.kind == "external":
            return {}
        if self.row.kind == "pretrain":
            return {**grade.pretrain, **self.row.set, **self.row.in_grade.get(self.grade, {})}
        content = _read_mapping(self.table.where.parent / grade.base)
        for name in ("train", "val"):
            content.get("data", {}).pop(name, None)
        for changes in (grade.set, self.row.set, self.row.in_grade.get(self.grade, {})):
            for key, value in changes.items():
                _set(content, key, value)
        _set(content, "train.seed", self.seed)
        content["name"] = f"{self.table.name}-{self.row.name}"
        return content

    def needs(self) -> list[Job]:
        """The jobs whose runs it builds on: with its own seed where they have it, else with their first."""
        names = references(self.content) + ([self.row.weights_of] if self.row.weights_of else [])
        jobs = []
        for row in map(self.table.row, names):
            jobs.append(Job(self.table, self.grade, row, self.seed if self.seed in row.seeds else row.seeds[0]))
        return jobs

    @cached_property
    def definition(self) -> str:
        """Eight hex digits of all that decides its result, those of the rows it needs included."""
        return self.definition_at(self.table.revision)

    def definition_at(self, revision: int) -> str:
        """`definition` as it was in an earlier revision of the table."""
        grade = self.table.grades[self.grade]
        content = dict(self.content)
        for section, so in _ALWAYS_SO.items():
            if said := content.pop(section, None):
                said = {key: value for key, value in said.items() if (key, value) not in so}
                content |= {section: said} if said else {}
        parts = [self.row.kind, content, self.seed, self.row.data or grade.data, self.table.bins]
        parts += [self.row.bin_scale] if self.row.bin_scale != 1 else []
        parts += [f"revision {revision}"] if revision != 1 else []
        parts += [job.definition_at(revision) for job in self.needs()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]

    def folder(self, runs: Path) -> Path:
        """Its run folder below `runs`; another definition has another folder. Tables share their pre-trainings."""
        if self.row.kind == "pretrain":
            return runs / "pretrained" / f"{self.content.get('backbone', 'backbone')}-seed{self.seed}-{self.definition}"
        return runs / self.table.name / self.grade / self.row.name / f"seed{self.seed}-{self.definition}"

    def recipe(self, *, data: Path, runs: Path) -> Recipe:
        """The recipe with the paths of this machine."""
        content = self._placed(data, runs)
        for name, path in (("train", self.data.train), ("val", self.data.val)):
            if path is None:
                raise UserError(f"the data set of '{self.row.name}' has no {name} annotations", where=self.table.where)
            content.setdefault("data", {})[name] = str((data / path).resolve())
        return parse_recipe(content, where=f"{self.table.where}: {self.row.name}")

    def pretraining(self, *, data: Path, runs: Path) -> PretrainConfig:
        """A pre-training's settings, paths resolved."""
        try:
            return PretrainConfig.model_validate(self._placed(data, runs))
        except pydantic.ValidationError as error:
            raise UserError(_first(error), where=f"{self.table.where}: {self.row.name}") from None

    def _placed(self, data: Path, runs: Path) -> dict[str, Any]:
        """`content` with `${data}`, `${run:ROW}` and `${cache}` (a folder that the row's seeds share) replaced."""
        cache = runs / self.table.name / self.grade / "cache" / self.row.name
        folders = {job.row.name: str(job.folder(runs).resolve()) for job in self.needs()}

        def place(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: place(entry) for key, entry in value.items()}
            if isinstance(value, list):
                return [place(entry) for entry in value]
            if isinstance(value, str):
                value = _REFERENCE.sub(lambda m: folders[m[1]], value)
                return value.replace("${data}", str(data.resolve())).replace("${cache}", str(cache.resolve()))
            return value

        return place(self.content)


def jobs(table: Table, grade: str, *, rows: list[str] | None = None, seeds: int | None = None) -> Iterator[Job]:
    """The jobs of a grade in the order of running: every row's first seed, then every row's second, and so on; then the
    extra rows likewise.

    `rows` picks rows (those that they need come along), `seeds` bounds how many seeds of each.
    """
    wanted = table.rows_of(grade)
    if rows is not None:
        names = {table.row(name).name for name in rows}
        for row in reversed(table.rows):
            if row.name in names:
                names |= {*references(row), *([row.weights_of] if row.weights_of else [])}
        wanted = [row for row in wanted if row.name in names]
    for part in ([row for row in wanted if not row.extra], [row for row in wanted if row.extra]):
        for turn in range(max((len(row.seeds) for row in part), default=0)):
            for row in part:
                if turn < len(row.seeds) and (seeds is None or turn < seeds):
                    yield Job(table, grade, row, row.seeds[turn])


def find_tables(names: Sequence[str], folder: Path) -> list[Path]:
    """Each name as a file or as `folder/NAME.yaml`; `all` is every table of the folder."""
    known = sorted(folder.glob("*.yaml"))
    found: list[Path] = []
    for name in names:
        places = (
            known if name == "all" else [path for path in (Path(name), folder / f"{name}.yaml") if path.is_file()][:1]
        )
        if not places:
            fix = nearest(name, [path.stem for path in known]) if known else "give a YAML file"
            raise UserError(f"no table '{name}' in {folder}", fix=fix)
        found += [path for path in places if path not in found]
    return found


def load_table(path: Path) -> Table:
    """Reads and checks a table file."""
    try:
        return Table.model_validate({**_read_mapping(path), "where": path})
    except pydantic.ValidationError as error:
        raise UserError(_first(error), where=path) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError("no such file", where=path)
    content, _ = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError("is no mapping", where=path)
    return content


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.key`; sections that are not there are made.

    To a copy, which a later key may change: rows share mappings by YAML's anchors.
    """
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    place[last] = deepcopy(value)


def _first(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
