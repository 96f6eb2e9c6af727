"""Every row of the five papers' tables: what was printed, under which protocol, and the recipe that gives it here.

`papers/NUMBER.yaml` holds a paper's rows, `papers/sets.yaml` the commands of each data set. A row differs from the base of its
table by some fields of a recipe; a row of a system that is not here says so. `paper_recipes` makes the recipe.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flyspeck.errors import UserError, nearest
from flyspeck.plain_yaml import read_yaml

FOLDER = Path(__file__).resolve().parent / "papers"
_SLUG = r"^[a-z0-9][a-z0-9_.-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PaperSet(_Strict):
    """A data set of the papers: where its annotations lie below the data folder, and its commands."""

    about: str
    train: str
    val: str
    prepare: list[str]
    predict: str
    """With `{model}` and `{found}`."""
    evaluate: str
    """With `{found}` and `{protocol}`."""


class Base(_Strict):
    """The recipe that rows share."""

    like: str | None = None
    """Another base of the paper, which `set` changes."""
    of: str | None = None
    """Key of its data set; None takes that of `like`."""
    about: str = ""
    """What a reader should know: schedule, source, what is ours."""
    recipe: dict[str, Any] = {}
    """Its sections, without name and paths of data."""
    set: dict[str, Any] = {}
    """Changes to `like`, `section.key: value`; null of a whole section leaves it out."""
    after: list[str] = []
    """Commands after training, with `{run}`."""
    use: str = ""
    """What is predicted with, below the run folder; empty: the run itself."""
    predict: str = ""
    """Further options of prediction."""
    file: str | None = None
    """The recipe in `recipes/papers` that is this one."""


class PaperRow(_Strict):
    """A line of a printed table, or a point of a figure."""

    label: str
    published: list[float | str | None] | None = None
    """As printed, one for each column of the table; None: the paper prints no number (of a figure, say)."""
    base: str | None = None
    """Of the paper; None takes the table's."""
    set: dict[str, Any] = {}
    """Fields of the recipe that differ from the base."""
    same: str | None = None
    """TABLE/ROW of this paper (or PAPER/TABLE/ROW) whose run it is, seen another way."""
    needs: list[str] = []
    """Of `commands`: PAPER/TABLE/ROW whose runs they take. Those of a recipe are the `${run:ROW}` and `${recipe:ROW}` in it."""
    factor: float | None = None
    """Of a detector that chooses its factor: measured at this one."""
    commands: list[str] = []
    """In place of a recipe: what gives the row."""
    missing: str = ""
    """Which system is not here; then there is no recipe."""
    here: str = ""
    """TABLE/ROW of `benchmarks/tables` that measures the same on the data at hand."""
    note: str = ""
    file: str | None = None
    """The recipe in `recipes/papers` that is this one."""


class PaperTable(_Strict):
    """A printed table or figure."""

    title: str
    columns: list[str]
    protocols: list[str] = Field(min_length=1)
    """By which its numbers are found; `none` of counts and milliseconds."""
    base: str | None = None
    rows: dict[str, PaperRow]

    @model_validator(mode="after")
    def _as_wide_as_its_head(self) -> PaperTable:
        for name, row in self.rows.items():
            if row.published is not None and len(row.published) != len(self.columns):
                raise ValueError(f"row {name} has {len(row.published)} numbers for {len(self.columns)} columns")
            if row.missing and (row.set or row.commands or row.same):
                raise ValueError(f"row {name} is of a system that is not here, and has a recipe")
        return self


class Paper(_Strict):
    """All rows of a paper."""

    paper: str
    title: str
    cite: str
    bases: dict[str, Base]
    tables: dict[str, PaperTable]


Kind = Literal["recipe", "commands", "missing"]


@dataclass(frozen=True)
class Found:
    """A row with all that it belongs to."""

    paper: Paper
    table_name: str
    name: str

    @property
    def id(self) -> str:
        """PAPER/TABLE/ROW."""
        return f"{self.paper.paper}/{self.table_name}/{self.name}"

    @property
    def table(self) -> PaperTable:
        """The table that it stands in."""
        return self.paper.tables[self.table_name]

    @property
    def row(self) -> PaperRow:
        """The row itself."""
        return self.table.rows[self.name]

    @property
    def kind(self) -> Kind:
        """What gives it."""
        return "missing" if self.row.missing else "commands" if self.row.commands else "recipe"

    @property
    def trained(self) -> Found:
        """The row whose training it is: itself, or that of `same`."""
        if self.row.same is None:
            return self
        return find(self.row.same if self.row.same.count("/") == 2 else f"{self.paper.paper}/{self.row.same}").trained

    @property
    def run_name(self) -> str:
        """Of the recipe and its run folder."""
        return self.trained.id.replace("/", "_")

    @property
    def base(self) -> tuple[str, Base]:
        """Name and base of the row that is trained; raises UserError where a row has none."""
        trained = self.trained
        name = trained.row.base or trained.table.base
        if name is None or name not in trained.paper.bases:
            raise UserError("the row has no base recipe", where=trained.id)
        return name, trained.paper.bases[name]

    def inherited(self, field: str) -> Any:
        """A field of the base, or of the nearest base before it that says something."""
        _, base = self.base
        while not getattr(base, field) and base.like is not None:
            base = self.trained.paper.bases[base.like]
        return getattr(base, field)

    def content(self) -> dict[str, Any]:
        """The recipe's sections, with `${data}`, `${runs}`, `${run:ROW}` and `${recipe:ROW}` still in them."""
        content = base_content(self.trained.paper, self.base[0])
        for key, value in self.trained.row.set.items():
            set_field(content, key, value)
        return content

    def needs(self, kind: Literal["run", "recipe"] = "run") -> list[Found]:
        """The rows that are trained before it, or (`recipe`) whose recipes it names."""
        if self.kind == "commands":
            return [find(name) for name in self.row.needs] if kind == "run" else []
        named = re.findall(rf"\$\{{{kind}:([^}}]+)\}}", json.dumps(self.content()))
        return [find(name) for name in dict.fromkeys(named)]


def base_content(paper: Paper, name: str) -> dict[str, Any]:
    """The sections of a base, those before it included."""
    base = paper.bases[name]
    content = base_content(paper, base.like) if base.like is not None else {}
    content |= deepcopy(base.recipe)
    for key, value in base.set.items():
        set_field(content, key, value)
    return content


def set_field(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets `section.key`; null of a whole section, or of a section of `model`, takes it away."""
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        if not isinstance(place.get(parent), dict):
            place[parent] = {}
        place = place[parent]
    if value is None and (not parents or isinstance(place.get(last), dict)):
        place.pop(last, None)
    else:
        place[last] = deepcopy(value)


@cache
def papers() -> dict[str, Paper]:
    """Every paper by its number."""
    found = {}
    for path in sorted(FOLDER.glob("[0-9]*.yaml")):
        content, _ = read_yaml(path)
        try:
            paper = Paper.model_validate(content)
        except pydantic.ValidationError as error:
            raise UserError(str(error.errors()[0]["msg"]), where=path) from None
        found[paper.paper] = paper
    return found


@cache
def paper_sets() -> dict[str, PaperSet]:
    """The data sets of the papers by name."""
    content, _ = read_yaml(FOLDER / "sets.yaml")
    return {name: PaperSet.model_validate(entry) for name, entry in content.items()}


@cache
def seen_to_run() -> dict[str, str]:
    """PAPER/TABLE/ROW to what became of it on a fake set: `runs`, or the step at which it ended."""
    path = FOLDER / "on_fakes.yaml"
    return dict(read_yaml(path)[0] or {}) if path.is_file() else {}


def all_rows(wanted: str = "") -> Iterator[Found]:
    """Every row of `003` or `003/table4`; of all papers where nothing is named. Raises UserError for what does not exist."""
    number, _, table = wanted.partition("/")
    known = papers()
    if number and number not in known:
        raise UserError(f"no paper '{number}'", fix=nearest(number, known))
    for paper in known.values() if not number else [known[number]]:
        if table and table not in paper.tables:
            raise UserError(f"no table '{table}' of paper {number}", fix=nearest(table, paper.tables))
        for name, entry in paper.tables.items():
            if not table or name == table:
                yield from (Found(paper, name, row) for row in entry.rows)


def find(wanted: str) -> Found:
    """The row PAPER/TABLE/ROW. Raises UserError with the nearest."""
    number, _, rest = wanted.partition("/")
    table, _, name = rest.partition("/")
    rows = {found.name: found for found in all_rows(f"{number}/{table}" if table else number)}
    if not table or name not in rows:
        raise UserError(
            f"no row '{wanted}'",
            fix=nearest(name, rows) if table and name else f"flyspeck-lab rows {wanted} lists them",
        )
    return rows[name]
