"""A function of the user's as the callable that the predictor runs: `package.module:function`."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import match_channels
from flyspeck.errors import UserError, one_line
from flyspeck.infer.foreign.checks import checked
from flyspeck.infer.foreign.graph_model import as_8_bit, numbered
from flyspeck.types import Detections

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_function(name: str) -> bool:
    """Whether this names a function, as `package.module:function`, and no file."""
    return _NAME.fullmatch(name) is not None and not os.path.exists(name)


class FunctionModel:
    """Windows (H, W, C) uint8 RGB, all of one size, to their `Detections`, by a function of somebody else's.

    It takes the list of windows and returns one thing each: a `Detections`, a dict of `boxes` (N, 4) xyxy pixels, `scores` (N,)
    and `labels` (N,) from 0, or an array (N, 6) of x1, y1, x2, y2, score, label. Its attributes `classes` (names; else they are
    given) and `tile` (one number, or height and width; else 640) are read where it has them.
    """

    def __init__(self, name: str, *, classes: Sequence[str] | None = None) -> None:
        self.name, self._function = name, _imported(name)
        given = classes if classes is not None else getattr(self._function, "classes", None)
        if isinstance(given, str):
            raise UserError(f"its classes are the text {given!r}", where=name, fix="a list of names")
        self.classes: tuple[str, ...] = tuple(map(str, given)) if given else numbered(None, name)
        tile: Any = getattr(self._function, "tile", 640)
        try:
            size = [int(tile)] * 2 if np.ndim(tile) == 0 else [int(side) for side in tile]
            if len(size) != 2 or min(size) < 1:
                raise ValueError
        except (TypeError, ValueError):
            raise UserError(f"its tile is {tile!r}", where=name, fix="a number of pixels, or (height, width)") from None
        self.description: dict[str, Any] = {
            "classes": list(self.classes),
            "training_size": size,
            "channels": 3,
            "layout": "function",
        }

    @property
    def taken(self) -> dict[float, int]:
        """It has no factors to choose."""
        return {}

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """Detections of each window. Raises UserError for what is not what the function should return, or what it raises."""
        windows = [match_channels(as_8_bit(window), 3) for window in windows]
        try:
            found = self._function(windows)
        except UserError:
            raise
        except Exception as error:  # somebody else's code
            raise UserError(
                one_line(f"it failed{_place(error)}: {type(error).__name__}: {error}"), where=self.name
            ) from error
        try:
            several = list(found)
        except TypeError:
            several = None
        if several is None or len(several) != len(windows):
            count = "no list" if several is None else f"{len(several)} results"
            raise UserError(
                f"it returned {count} for {len(windows)} windows", where=self.name, fix="return one a window"
            )
        return [self._as_detections(one, (w.shape[0], w.shape[1])) for one, w in zip(several, windows, strict=True)]

    def _as_detections(self, one: Any, size: tuple[int, int]) -> Detections:
        if isinstance(one, Detections):
            if one.classes and one.classes != self.classes:
                what = f"it finds the classes {', '.join(one.classes)}, and {', '.join(self.classes)} are named"
                raise UserError(what, where=self.name, fix="--classes names them, in its order")
            columns = [one.boxes, one.scores, one.labels]
        else:
            columns = self._columns(one)
        return checked(
            *columns,
            size=size,
            classes=self.classes,
            where=self.name,
            fix="return corners in pixels of the window, and scores from 0 to 1",
        )

    def _columns(self, one: Any) -> list[np.ndarray]:
        """Boxes, scores and labels of a dict or rows. Raises UserError for anything else."""
        try:
            if isinstance(one, dict):
                missing = [key for key in ("boxes", "scores", "labels") if key not in one]
                if missing:
                    raise ValueError(f"no key '{missing[0]}'")
                boxes, scores, labels = (_array(one[key]) for key in ("boxes", "scores", "labels"))
                boxes = boxes.reshape(-1, 4)
            else:
                rows = _array(one)
                if rows.size and (rows.ndim != 2 or rows.shape[1] != 6):
                    raise ValueError(f"an array of shape {rows.shape}")
                rows = rows.reshape(-1, 6)
                boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5]
            if not len(boxes) == len(scores) == len(labels):
                raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels")
            return [boxes, scores, np.rint(labels).astype(np.int64)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                one_line(
                    f"a result that is neither detections, a dict of boxes, scores and labels, nor (N, 6): {error}"
                ),
                where=self.name,
                fix="see the docs: other people's models",
            ) from None


def source_of(name: str) -> Path:
    """The file of the function's module, to tell whether its code has changed."""
    path = getattr(import_module(name.partition(":")[0]), "__file__", None)
    if path is None:
        raise UserError("its module is no file", where=name, fix="put the function into a file of its own")
    return Path(path)


def _place(error: Exception) -> str:
    """` in FILE, line N`: the innermost line of the user's own code in the traceback; "" where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(__file__).parents[2]),
        "<",
    )
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _array(value: Any) -> np.ndarray:
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu()
    return np.asarray(value, np.float64)


def _imported(name: str) -> Callable[[list[np.ndarray]], Any]:
    """The function, from the working folder or an installed package. The user named it: its code is run."""
    module, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        what = f"no module '{error.name}'" if error.name else str(error)
        raise UserError(what, where=name, fix="run it in the folder of the module, or install it") from error
    except AttributeError:
        raise UserError(f"no '{attribute}' in the module", where=name, fix="package.module:function") from None
    except Exception as error:  # somebody else's code
        raise UserError(
            one_line(f"its module fails{_place(error)}: {type(error).__name__}: {error}"), where=name
        ) from error
    if not callable(function):
        raise UserError(f"'{attribute}' is no function", where=name, fix="package.module:function")
    return function
