"""Options whose values come from tables that plugins add to: help lists the names, and the shell completes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flyspeck.errors import UserError, nearest


def annotation_formats() -> list[str]:
    """Formats of annotations that are read."""
    from flyspeck.data.readers import READERS

    return list(READERS)


def written_annotations() -> list[str]:
    """Formats of annotations that are written."""
    from flyspeck.data.writers import WRITERS

    return list(WRITERS)


def detection_formats() -> list[str]:
    """Formats of detections that are written."""
    from flyspeck.infer.outputs import WRITERS

    return list(WRITERS)


def protocols() -> list[str]:
    """Names of the protocols."""
    from flyspeck.evaluate import PROTOCOLS

    return list(PROTOCOLS)


def tile_rules() -> list[str]:
    """Rules of where tiles lie."""
    from flyspeck.data.tiling import RULES

    return list(RULES)


def layouts() -> list[str]:
    """Layouts of other programs' models."""
    from flyspeck.infer.foreign.layouts import LAYOUTS

    return list(LAYOUTS)


_OPEN: dict[str, Callable[[], Sequence[str]]] = {
    "--format": annotation_formats,
    "--protocol": protocols,
    "--layout": layouts,
    "--rule": tile_rules,
    "flyspeck data convert --to": written_annotations,
    "flyspeck predict --to": detection_formats,
}


def check_choice(option: str, value: str, names: Sequence[str]) -> str:
    """`value`, which must be one of `names`; raises UserError with the nearest of them."""
    if value not in names:
        raise UserError(f"'{value}' is unknown", where=option, fix=nearest(value, names))
    return value


def open_choices(path: str, option: str) -> Sequence[str]:
    """The names that `option` of the verb `path` takes, those of loaded plugins too; none where they are fixed or any."""
    names = _OPEN.get(f"{path} {option}") or _OPEN.get(option)
    return names() if names is not None else ()
