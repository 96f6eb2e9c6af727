"""What a user may set: typed keywords with bounds, a sentence each, and errors of one line that name the nearest key.

A part (a head, a backbone, an assigner) has its `Options` beside it; a recipe is made of them. A part of somebody else's
brings its own class, and gets the same errors, the same schema and the same reference page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from flyspeck.errors import UserError, nearest

Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""How many, at least one."""
Depth = Annotated[int, Field(ge=0, le=64)]
"""Layers in a row."""
Positive = Annotated[float, Field(gt=0)]
"""Above zero."""
Weight = Annotated[float, Field(ge=0)]
"""Of a part of the loss; 0 leaves it out."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A part of the whole."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of NumPy's generators, which take 32 bits."""
Locate = Callable[[tuple[str | int, ...]], object]
"""A key's path to where it is written: `recipe.yaml, line 7`, or the option of the command line that set it."""
Model = TypeVar("Model", bound=BaseModel)
_UNKNOWN, _NO_NUMBER = "unknown_key", "no_number"


@dataclass(frozen=True)
class TrainingObjects:
    """What the objects of a training set are like, in pixels that the network sees."""

    most: int
    """Objects of the fullest window of the training's size."""
    quarter: float
    """The size in px below which a quarter of them are."""
    finest_stride: float
    """Of the detector's pyramid."""


class Options(BaseModel):
    """Keywords that a user may set, and nothing else. The docstring below a field is its sentence.

    Numbers are finite, and a yes or no is no number. A subclass may state in `renamed` what old keys are called now, and
    in `retired` those that are accepted at the value given there and dropped.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )
    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key to the dotted path of the new one."""
    retired: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Key that has gone to the values at which it changes nothing."""

    def fitted(self, objects: TrainingObjects) -> Self:
        """The options with all filled in that is null and follows the training set; by default nothing does.

        A part that has such options says so here, and builds without them too.
        """
        return self

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        content = {key: value for key, value in content.items() if value not in cls.retired.get(key, ())}
        for key, value in content.items():
            if key in cls.model_fields:
                if isinstance(value, bool) and _wants_a_number(cls.model_fields[key].annotation):
                    raise PydanticCustomError(_NO_NUMBER, "Input should be a number", {"key": key, "value": value})
                continue
            if key in cls.renamed:
                raise unknown_key(key, f"it is called {cls.renamed[key]} now")
            raise unknown_key(key, cls._hint(str(key)))
        return content

    @classmethod
    def _hint(cls, key: str) -> str:
        """What may be meant by an unknown key: a near one, or one of that name in a section of these options."""
        if not cls.model_fields:
            return "it takes no options"
        hint = nearest(key, cls.model_fields)
        inside = [name for name, field in cls.model_fields.items() if key in _keys_of(field.annotation)]
        if inside and hint.startswith("known"):
            return f"did you mean {' or '.join(repr(f'{name}.{key}') for name in inside)}?"
        return hint


class Thresholds(Options):
    """Two overlaps: from `foreground` a prior learns an object, below `background` it is background, between neither."""

    foreground: Share
    """Overlap (IoU) with an object from which a prior learns it."""
    background: Share
    """Overlap (IoU) below which a prior learns that nothing is there; between the two it learns nothing."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.background > self.foreground:
            raise ValueError(f"background {self.background:g} is above foreground {self.foreground:g}")
        return self


def _keys_of(annotation: Any) -> set[str]:
    """The keys of the options that a field holds, be it besides null."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {key for kind in kinds if isinstance(kind, type) and issubclass(kind, Options) for key in kind.model_fields}


def unknown_key(key: object, fix: str) -> PydanticCustomError:
    """The error of a validator for a key that is not known; `fix` says what to write in its place."""
    return PydanticCustomError(_UNKNOWN, "unknown key", {"key": str(key), "fix": fix})


def validated(model: type[Model], content: Any, *, where: object = "", locate: Locate | None = None) -> Model:
    """`content` as a checked `model`.

    Raises UserError, one line, for the first fault: the key's path, what is wrong, the nearest known key. `where` is the
    file or the like; `locate` finds a better place (the line) from the key's path.
    """
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise explained(error, content, where=where, locate=locate) from None


def explained(
    error: pydantic.ValidationError, content: Any, *, where: object = "", locate: Locate | None = None
) -> UserError:
    """The first fault of `error` as the user reads it, for the `content` that was validated."""
    try:
        listed = error.errors(include_url=False)
    except UnicodeEncodeError:  # a key or a text that no file of UTF-8 can hold
        return UserError("holds half of a character (\\ud800 to \\udfff without its partner)", where=where)
    faults: list[tuple[tuple[str | int, ...], dict[str, Any]]] = [
        (_path(fault, content), {"ctx": {}, **fault}) for fault in listed
    ]
    path = faults[0][0]
    # Of a union's members the one that fits best is the one whose fault lies deepest.
    path = next((other for other, _ in faults if len(other) > len(path) and other[: len(path)] == path), path)
    first = next(fault for other, fault in faults if other == path)
    alike = [fault for other, fault in faults if other == path]
    places = {other for other, _ in faults if other != path[: len(other)]} | {path}
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    where = locate(path) if locate is not None else where
    key = ".".join(map(str, path))
    if first["type"] == _UNKNOWN:
        return UserError(f"unknown key '{key}'{more}", where=where, fix=first["ctx"]["fix"])
    cause = first["ctx"].get("error")
    if isinstance(cause, UserError):
        what, fix = cause.what, cause.fix
    else:
        what = " or ".join(dict.fromkeys(_message(fault, i > 0) for i, fault in enumerate(alike)))
        fix = "write it in quotes" if first["type"] == "string_type" and _is_number(first["input"]) else ""
        given = first["ctx"]["value"] if first["type"] == _NO_NUMBER else first["input"]
        if first["type"] != "missing" and not isinstance(given, Mapping | BaseModel):
            what = f"{what}, got {_shown(given)}"
    return UserError(" ".join(f"{key + ': ' if key else ''}{what}{more}".split()), where=where, fix=fix)


def _path(fault: Any, content: Any) -> tuple[str | int, ...]:
    """The fault's place as keys of `content`: without the names of a union's members, which pydantic puts between."""
    path: list[str | int] = []
    place = content
    for part in fault["loc"]:
        if (isinstance(place, Mapping) and part in place) or (
            isinstance(place, list | tuple) and isinstance(part, int) and part < len(place)
        ):
            path.append(part)
            place = place[part]
    if fault["type"] == "missing":
        path.append(fault["loc"][-1])
    if fault["type"] in (_UNKNOWN, _NO_NUMBER):
        path.append(fault["ctx"]["key"])
    return tuple(path)


_PLAIN_WORDS = {
    "model_type": "Input should be a section: keys with values",
    "dict_type": "Input should be a section: keys with values",
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
}
"""What a reader of YAML calls these, in place of pydantic's names of Python's classes."""


def _message(fault: Any, further: bool) -> str:
    if fault["type"] == "union_tag_invalid":
        key, names = fault["ctx"]["discriminator"].strip("'"), fault["ctx"]["expected_tags"]
        return f"Input should have one of these as its {key}: {names}"
    message = _PLAIN_WORDS.get(fault["type"]) or str(fault["msg"]).removeprefix("Value error, ")
    return message.removeprefix("Input should be ") if further else message


def _wants_a_number(annotation: object) -> bool:
    text = str(annotation)
    return "bool" not in text and ("int" in text or "float" in text)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object, most: int = 60) -> str:
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer with more digits than Python writes out
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def owners(key: str, tables: Mapping[str, type[BaseModel]]) -> list[str]:
    """The names in `tables` whose options have `key`."""
    return [name for name, options in tables.items() if key in options.model_fields]


def listed(names: Iterable[str], most: int = 4) -> str:
    """`a, b, c, …`."""
    names = list(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
