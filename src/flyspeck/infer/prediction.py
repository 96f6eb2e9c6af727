"""One image with what was found in it, as a person in a notebook wants to see it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from flyspeck.drawing import annotated
from flyspeck.errors import UserError
from flyspeck.infer.source import Item, open_source
from flyspeck.infer.windows import OpenOptions
from flyspeck.types import Detections

DRAWN = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a predictor found in one image. In a notebook it shows itself."""

    item: Item
    detections: Detections
    """In pixels of the image."""
    options: OpenOptions = field(repr=False)
    score: float = 0.3
    """Boxes of at least this score are drawn."""

    def __len__(self) -> int:
        return len(self.detections)

    def plot(self, *, score: float | None = None, max_side: int = 1600, crops: int = 8) -> Image.Image:
        """The image with its boxes of at least `score`, and its smallest ones enlarged; at most `max_side` px wide and high.

        Raises UserError where the image cannot be read any more.
        """
        found = self.detections[self.detections.scores >= (self.score if score is None else score)]
        with open_source(self.item.image, self.options, name=self.item.name) as source:
            return annotated(source.read, found, colours=source.colours, max_side=max_side, crops=crops)

    def show(self, *, score: float | None = None) -> None:
        """The plot in the notebook, or in the system's viewer of images where there is none."""
        plot = self.plot(score=score)
        try:
            from IPython import get_ipython  # pyright: ignore[reportMissingImports]
            from IPython.display import display  # pyright: ignore[reportMissingImports]
        except ImportError:
            plot.show(title=self.item.name)
            return
        if get_ipython() is None:
            plot.show(title=self.item.name)
        else:
            display(plot)

    def save(self, path: str | Path) -> Path:
        """Detections by the ending (`.csv`, `.txt`, `.geojson`: those that are drawn; `.json`, COCO results: all), or the plot
        (`.png`, `.jpg`, `.webp`).

        Raises UserError for an ending that is none of these.
        """
        path = Path(path)
        if path.suffix.lower() not in DRAWN:
            shown = self.detections[self.detections.scores >= self.score]
            return (self.detections if path.suffix.lower() == ".json" else shown).save(path)
        try:
            self.plot().save(path)
        except OSError as error:
            raise UserError(f"could not be written ({error.strerror or error})", where=path) from None
        return path

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().save(buffer, "PNG")
        return buffer.getvalue()

    def __getattr__(self, name: str) -> Any:
        """`boxes`, `scores`, `labels` and what else the detections have."""
        if name.startswith("_") or name == "detections":
            raise AttributeError(name)
        return getattr(self.detections, name)
