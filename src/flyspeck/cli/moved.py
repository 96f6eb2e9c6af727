"""What has another name now, verbs and options: each answers with one line that says the new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from flyspeck.errors import UserError
from flyspeck.plugins import IN_LAB

VERBS = {"bench": "flyspeck-lab run"}
"""Verbs of `flyspeck` itself that moved, and their commands now."""

_WRITTEN_IMAGES = {"--pictures": "--image-format"}
_CURVE = {"--figure": "--metric", "--samples": "--bootstrap", "--steps": "--points"}
OPTIONS: dict[str, dict[str, str]] = {
    "flyspeck benchmark": {"--pictures": "--on", "--images": "--on"},
    "flyspeck card": {
        "--data": "--trained-on",
        "--speed": "--latency",
        "--parity-pictures": "--limit",
        "--parity-images": "--limit",
    },
    "flyspeck data inspect": {"--samples": "--draw", "--assign": "--positives"},
    "flyspeck data scale-match": {**_WRITTEN_IMAGES, "--method": "--match", "--bins": "--num-bins"},
    "flyspeck data scenes": {"--pictures": "--num-images", "--images": "--num-images"},
    "flyspeck data shrink": {**_WRITTEN_IMAGES, "--factor": "--by"},
    "flyspeck data tile": {**_WRITTEN_IMAGES, "--size": "--tile"},
    "flyspeck demo": {
        "--pictures": "--num-images",
        "--images": "--num-images",
        "--val-pictures": "--num-val-images",
        "--val-images": "--num-val-images",
    },
    "flyspeck distill": {"--against": "--compare"},
    "flyspeck dpnet labels": {"--on": "--part"},
    "flyspeck eval": {"--json": "--out"},
    "flyspeck explain": {
        "--picture": "--image",
        "--pictures": "--draw",
        "--images": "--draw",
        "--sample": "--limit",
    },
    "flyspeck export": {
        "--format": "--to",
        "--pixels": "--bits",
        "--check": "--on",
        "--check-limit": "--limit",
    },
    "flyspeck models": {"--count": "--recount"},
    "flyspeck predict": {"--format": "--to", "--pictures": "--draw", "--images": "--draw", "--show-score": "--score"},
    "flyspeck pretrain": {"--per-class": "--max-per-class"},
    "flyspeck profile": {"--classes": "--num-classes", "--runs": "--rounds"},
    "flyspeck report": {"--pictures": "--draw", "--images": "--draw"},
    "flyspeck-lab curve": _CURVE,
}
"""Verb to its options of 0.1.0 that have another name now, and that name. All meant one thing in one verb, another in another."""


def refuse_moved(path: str, arguments: Sequence[str], table: Mapping[str, Mapping[str, str]] = OPTIONS) -> None:
    """Raises UserError, with the new name, for the first of a verb's `arguments` that is an old option of it."""
    moved = table.get(path, {})
    for argument in arguments:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if name in moved:
            raise UserError(f"{name} of `{path}` is {moved[name]} now", fix=f"{path} --help lists all options")


def moved_error(old: str, new: str) -> UserError:
    """The error of the command `old`, which is `new` now."""
    return UserError(f"`{old}` is now `{new}`", fix=IN_LAB)


def keep_moved(app: typer.Typer, name: str, *, old: str, new: str) -> None:
    """Keeps `name` as a hidden command of `app` that takes any arguments and raises UserError: `old` is `new` now."""

    def command() -> None:
        raise moved_error(old, new)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, hidden=True, add_help_option=False, context_settings=settings)(command)
