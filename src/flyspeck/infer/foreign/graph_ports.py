"""What a graph of another program says of itself: its inputs, outputs, metadata and operators; and one call to run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flyspeck.errors import UserError


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    shape: tuple[int | None, ...]
    """None where the graph leaves it open."""
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.name} ({', '.join('?' if side is None else str(side) for side in self.shape)})"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """All that a layout is told by."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()
    """Kinds of operators in the graph, where the engine tells them."""

    @property
    def image(self) -> Port:
        """The input that takes the pixels: the first of 3 or 4 axes."""
        return next((port for port in self.inputs if len(port.shape) in (3, 4)), self.inputs[0])

    @property
    def channels_last(self) -> bool:
        """Whether the image input is (B, H, W, C)."""
        shape = self.image.shape
        return shape[-1] in (1, 3) and shape[-3] not in (1, 3)

    @property
    def size(self) -> tuple[int | None, int | None]:
        """(H, W) of the image input."""
        shape = self.image.shape
        return (shape[-3], shape[-2]) if self.channels_last else (shape[-2], shape[-1])

    @property
    def names(self) -> frozenset[str]:
        """Of the outputs."""
        return frozenset(port.name for port in self.outputs)

    def output(self, name: str) -> Port:
        """The output of this name."""
        return next(port for port in self.outputs if port.name == name)


class Graph(ABC):
    """A graph in an engine."""

    path: Path
    ports: Ports
    threads: int = 1
    """As `flyspeck.infer.exported.Session.threads`."""

    def split(self, passes: int) -> None:
        """As `flyspeck.infer.exported.Session.split`."""
        if passes > self.threads:
            raise ValueError(f"{passes} passes on {self.threads} threads")

    def measured(self, size: tuple[int, int]) -> Ports:
        """The ports for one image of `size` (H, W), with the sides that the graph leaves open as a run gives them.

        Where it does not run so, as it is: whoever runs it in earnest is told why.
        """
        ports, image = self.ports, self.ports.image
        open_sides = any(None in port.shape[1:] for port in ports.outputs)
        if not open_sides or len(ports.inputs) > 1 or len(image.shape) != 4:
            return ports
        channels = image.shape[-1] if ports.channels_last else image.shape[1]
        shape = (1, *size, channels or 3) if ports.channels_last else (1, channels or 3, *size)
        try:
            found = self.run([np.zeros(shape, image.dtype)])
        except UserError:
            return ports
        outputs = [
            replace(port, shape=(port.shape[0], *found[port.name].shape[1:])) if None in port.shape[1:] else port
            for port in ports.outputs
        ]
        inputs = tuple(replace(port, shape=(port.shape[0], *shape[1:])) for port in ports.inputs)
        return replace(ports, inputs=inputs, outputs=tuple(outputs))

    def take_bytes(self, *, scale: float, mean: Sequence[float], std: Sequence[float]) -> bool:
        """Whether the image input, of floats, is (B, H, W, C) uint8 from now on: (value / scale - mean) / std is the graph's."""
        return False

    @abstractmethod
    def run(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name, for the inputs in the graph's order. Raises UserError where the engine fails."""
