"""A graph of another program as the callable that the predictor runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.images import match_channels
from flyspeck.errors import UserError
from flyspeck.infer.foreign.checks import checked
from flyspeck.infer.foreign.graph_ports import Graph, Ports
from flyspeck.infer.foreign.layouts import Layout, One, Pixels
from flyspeck.infer.foreign.recognise import layout_of, stored_names, stored_size
from flyspeck.infer.merge import MergeRule, merge
from flyspeck.types import Detections

GREY = 114
"""What pads a window to the graph's size; the value that YOLOs are trained with."""
LEAST = 0.01
"""Rows of a lower score are nothing; a raw output has thousands of them."""
MOST = 1000
"""Boxes of a window, the best ones."""
NMS = 0.6
_SIDE = 640  # of a graph that takes any size and says none
_DIVISOR = 32


class GraphModel:
    """Windows (H, W, C) uint8, all of one size, to their `Detections`.

    A window is laid into the graph's input at the upper left, in its own pixels: nothing is resized, as tiny objects would be
    lost. `layout` None: told from the graph. `classes` None: from its metadata, else numbers. `nms` is the IoU from which boxes
    of one class are one, where the graph does not suppress. Raises UserError where the layout or the classes are in doubt.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        layout: str | None = None,
        classes: Sequence[str] | None = None,
        nms: float = NMS,
    ) -> None:
        self._graph, self.path = graph, graph.path
        ports = graph.ports
        names = tuple(classes) if classes is not None else stored_names(ports, graph.path)
        seen = ports if layout is not None else graph.measured(stored_size(ports) or (_SIDE, _SIDE))
        self.layout, count = layout_of(seen, graph.path, asked=layout, num_classes=len(names) if names else None)
        self.classes: tuple[str, ...] = _without_background(names or numbered(count, graph.path), self.layout)
        if count is not None and len(self.classes) != count:
            what = f"{len(self.classes)} classes are named, and its outputs have {count}"
            raise UserError(what, where=graph.path, fix="name them all, in its order: --classes a,b,c")
        pixels = self.layout.pixels
        channels = _channels(ports) or 3
        graph.take_bytes(scale=pixels.scale, mean=pixels.mean[:channels], std=pixels.std[:channels])
        self._nms = MergeRule(threshold=nms, within_tile=True)
        self._fixed = ports.size
        self.batch = ports.image.shape[0] if len(ports.image.shape) == 4 else 1
        size = stored_size(ports) or (_SIDE, _SIDE)
        self.description: dict[str, Any] = {
            "classes": list(self.classes),
            "training_size": list(size),
            "channels": _channels(ports) or 3,
            "layout": self.layout.name,
        }

    @property
    def threads(self) -> int:
        """See `flyspeck.infer.exported.Session.threads`."""
        return self._graph.threads

    def split(self, passes: int) -> None:
        """See `flyspeck.infer.exported.Session.split`."""
        self._graph.split(passes)

    def enter(self) -> None:
        """The engines have threads of their own."""

    @property
    def taken(self) -> dict[float, int]:
        """It has no factors to choose."""
        return {}

    def detection_limit(self, size: tuple[int, int]) -> int | None:
        """Detections that a window can have at most."""
        return MOST

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """Detections of each window in its own frame. Raises UserError where the graph does not run, or gives another layout."""
        step = self.batch or len(windows)
        found: list[Detections] = []
        for start in range(0, len(windows), step):
            found += self._run(windows[start : start + step], step)
        return found

    def _run(self, windows: list[np.ndarray], step: int) -> list[Detections]:
        size = (windows[0].shape[0], windows[0].shape[1])
        seen = self._input_size(size)
        stack = np.stack([self._window(window, seen) for window in windows])
        if len(stack) < step:  # a graph of a fixed batch
            stack = np.concatenate([stack, np.repeat(stack[-1:], step - len(stack), axis=0)])
        outputs = self._graph.run(self._inputs(stack, seen))
        try:
            decoded = self.layout.decode(outputs, seen)
        except (IndexError, KeyError, ValueError, TypeError) as error:
            told = "; ".join(map(str, self._graph.ports.outputs[:4]))
            raise UserError(
                f"its outputs are not in the layout {self.layout.name}: {told} ({error})",
                where=self.path,
                fix="--layout names another",
            ) from None
        decoded = decoded[: len(windows)]
        decoded += [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))] * (len(windows) - len(decoded))
        return [self._kept(one, size) for one in decoded]

    def _kept(self, one: One, size: tuple[int, int]) -> Detections:
        """What counts of one window's boxes, in the window's frame. Errors as for `checked`."""
        boxes, scores, labels = one
        # A NaN stays, for the check to see; a negative label is what fills up a fixed number of rows.
        keep = np.flatnonzero(~(scores < LEAST) & (labels >= 0))
        keep = keep[np.argsort(-scores[keep], kind="stable")]
        found = checked(
            boxes[keep],
            scores[keep],
            labels[keep],
            size=size,
            classes=self.classes,
            where=self.path,
            fix=f"--layout names another than {self.layout.name}",
        )
        return (found if self.layout.suppressed else merge(found, rule=self._nms))[:MOST]

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the graph's input for windows of `size`."""
        sides = []
        for side, fixed, name in zip(size, self._fixed, ("high", "wide"), strict=True):
            if fixed is not None and side > fixed:
                raise UserError(
                    f"windows are {side} px {name}, and its input is {fixed}",
                    where=self.path,
                    fix=f"--tile {'x'.join(str(s or 'any') for s in self._fixed)}, as without --tile",
                )
            sides.append(fixed if fixed is not None else -(-side // _DIVISOR) * _DIVISOR)
        return sides[0], sides[1]

    def _window(self, window: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        window = match_channels(as_8_bit(window), self.description["channels"])
        full = np.full((*size, window.shape[2]), GREY, np.uint8)
        full[: window.shape[0], : window.shape[1]] = window
        return full

    def _inputs(self, stack: np.ndarray, seen: tuple[int, int]) -> list[np.ndarray]:
        """What the graph takes, in its order: the images, and their sizes where it asks for them."""
        ports = self._graph.ports
        pixels = as_input(stack, self.layout.pixels, ports.image.dtype, channels_last=ports.channels_last)
        if len(ports.image.shape) == 3:
            pixels = pixels[0]
        inputs = []
        for port in ports.inputs:
            if port is ports.image:
                inputs.append(pixels)
            elif port.name == "orig_target_sizes":  # (width, height): boxes in pixels of the input
                inputs.append(np.tile(np.array([[seen[1], seen[0]]], port.dtype), (len(stack), 1)))
            else:
                raise UserError(
                    f"an input that nothing here can give: {port}", where=self.path, fix="export it without"
                )
        return inputs


def as_8_bit(window: np.ndarray) -> np.ndarray:
    """Full scale of 16 bits as that of 8."""
    return window if window.dtype == np.uint8 else (window >> 8).astype(np.uint8)


def as_input(stack: np.ndarray, pixels: Pixels, dtype: np.dtype, *, channels_last: bool = True) -> np.ndarray:
    """`(B, H, W, C)` uint8 RGB as the graph wants it, `(B, C, H, W)` unless `channels_last`, in memory of its own."""
    count = stack.shape[3]
    if pixels.order == "bgr" and count == 3:
        stack = stack[..., ::-1]
    axes = (1, 1, 1, count) if channels_last else (1, count, 1, 1)
    if not channels_last:
        stack = stack.transpose(0, 3, 1, 2)
    if dtype == np.uint8:
        return np.ascontiguousarray(stack)
    # Written once, in the order of the graph: the array is twelve times a window's bytes.
    values = np.empty(stack.shape, np.float32)
    np.divide(stack, np.float32(pixels.scale), out=values)
    if any(pixels.mean) or pixels.std != (1.0, 1.0, 1.0):
        values -= np.array(pixels.mean[:count], np.float32).reshape(axes)
        values /= np.array(pixels.std[:count], np.float32).reshape(axes)
    return values.astype(dtype, copy=False)


def _channels(ports: Ports) -> int | None:
    shape = ports.image.shape
    return shape[-1] if ports.channels_last else shape[-3]


def _without_background(names: tuple[str, ...], layout: Layout) -> tuple[str, ...]:
    """Names from the first class on: lists for graphs that count the background may hold it."""
    if layout.background and names and names[0].strip("_ ").lower() in ("background", "bg", "__background__"):
        return names[layout.background :]
    return names


def numbered(count: int | None, path: Path | str) -> tuple[str, ...]:
    """Names for so many classes that have none. Raises UserError where their number is not known either."""
    if count is None:
        raise UserError("it does not say its classes", where=path, fix="name them, in its order: --classes a,b,c")
    return tuple(f"class {number}" for number in range(count))
