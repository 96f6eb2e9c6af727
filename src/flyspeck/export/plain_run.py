"""Before a file is kept it is run as strangers run it: by the plain runtime, in odd batches, on images of odd sizes.

A number that tracing took for a constant makes a graph for that batch or that size alone, or for its multiples: such a file
finds the right boxes in a folder of 664 tiles and ends in an error on the last of 665. And what a wrapper does (padding,
clipping, enlarging) is missing where there is no wrapper. So here nothing of `flyspeck.infer` stands between the pixels of an
image and the graph, but for a detector that chooses its factor, whose files need their driver.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError, counted, missing_extra
from flyspeck.export.check_images import ImageSet
from flyspeck.export.parity import Difference, Rule, compare
from flyspeck.export.undecided import asked_again
from flyspeck.infer.exported import ExportedModel, PlainModel, Session, cannot_run
from flyspeck.infer.factor_model import FactorModel, factor_file
from flyspeck.infer.openvino_model import the_core
from flyspeck.infer.predictor import Model, Predictor
from flyspeck.infer.shown import shown_enlargement
from flyspeck.infer.source import open_source
from flyspeck.infer.windows import OpenOptions
from flyspeck.types import Detections

BATCHES = (1, 2, 3, 7)
"""Images at once: one, what it was traced with, and two that are odd and no multiples of another."""
SHARES = ((1.0, 1.0), (0.8, 0.55), (0.5, 0.9), (1.25, 0.4), (0.3, 0.35))
"""Of the sides of a tile: wide, high, both orders, and smaller than a stride or two."""
_LARGEST = 320 * 256
"""Pixels that the network sees of an image of the first size: what is to be found out does not hang on more."""
_DIFFERENT = 3
"""Images of each size; a larger batch has them again."""

Sizes = Sequence[tuple[int, int]]


class PlainSession(Session):
    """A file in its runtime as the runtime's own introduction opens it. OpenVINO is told to compute in float32."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, None
        name = "openvino" if path.suffix == ".xml" else "onnxruntime"
        try:
            runtime: Any = importlib.import_module(name)
        except ImportError:
            raise missing_extra(name, "export") from None
        self._compiled: Any = None
        try:
            if name == "openvino":
                self._compiled = the_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            else:
                self._session: Any = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
                self._inputs = [value.name for value in self._session.get_inputs()]
        except Exception as error:  # the runtimes have no common base of their errors
            reason = " ".join(str(error).split())[-200:]
            raise UserError(f"not exported: {name} does not open the file ({reason})", where="model") from error

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Session.run`."""
        try:
            if self._compiled is not None:
                return [array.copy() for array in self._compiled(list(inputs)).values()]
            return self._session.run(None, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:  # the runtimes have no common base of their errors
            raise cannot_run(self.path, inputs, error) from error


class PlainRun:
    """Images (H, W, C) of one size to their `Detections`, by what the file `path` gives and nothing else."""

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        told = {**description, "divisor": 1, "smallest_side": 1}  # nothing is padded here
        if "factors" in told:
            rest = [PlainSession(factor_file(path, factor)) for factor in told["factors"]["factors"]]
            self._model: ExportedModel = FactorModel(PlainSession(path), rest, told)
        else:
            self._model = PlainModel(PlainSession(path), told)

    def __call__(self, images: list[np.ndarray]) -> list[Detections]:
        """As above; raises UserError where the file does not run, or gives what lies outside of the image."""
        batch, (height, width) = self._model.to_batch(images), images[0].shape[:2]
        boxes, scores, labels, counts = self._model.run(batch)
        if len(counts) != len(images):
            raise UserError(f"{len(images)} images of {height}x{width} at once give {len(counts)} results")
        found = []
        for row, number in enumerate(counts.tolist()):
            mine = boxes[row, :number]
            if (mine < 0).any() or (mine > np.array([width, height] * 2)).any():
                raise UserError(f"boxes reach out of an image of {height}x{width}")
            found.append(
                Detections(mine, scores[row, :number], labels[row, :number], (height, width), self._model.classes)
            )
        return found


def odd_sizes(description: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Five sizes (H, W) of images around that of the training's tiles, in pixels of a file: primes, multiples of nothing."""
    height, width = description.get("training_size", (256, 320))
    rule = shown_enlargement(description)
    scale = math.sqrt(min(1.0, _LARGEST / (height * width)))
    if rule.squeeze is None:
        scale /= rule.scale((height, width))
    return [(_prime(height * scale * a), _prime(width * scale * b)) for a, b in SHARES]


def _prime(number: float) -> int:
    """The first prime from `number` and 5 on."""
    found = max(5, math.ceil(number))
    while any(found % divisor == 0 for divisor in range(2, math.isqrt(found) + 1)):
        found += 1
    return found


def images_of(images: ImageSet, description: Mapping[str, Any], sizes: Sizes) -> list[list[np.ndarray]]:
    """Of every size some windows (H, W, C) of the images, in their own pixels; what is smaller is repeated to the size."""
    options, found = OpenOptions().completed(description), []
    paths = images.spread(_DIFFERENT).paths
    for place, (height, width) in enumerate(sizes):
        rng, mine = np.random.default_rng(place), []
        for path in paths:
            with open_source(path, options) as source:
                rows, columns = min(height, source.size[0]), min(width, source.size[1])
                y, x = (
                    int(rng.integers(all_ - own + 1)) for all_, own in zip(source.size, (rows, columns), strict=True)
                )
                pixels = source.read(x, y, x + columns, y + rows)
            mine.append(np.pad(pixels, ((0, height - rows), (0, width - columns), (0, 0)), mode="wrap"))
        found.append([w for w in mine if (w.shape, w.dtype) == (mine[0].shape, mine[0].dtype)])
    return found


def compare_plainly(
    eager: Model,
    exported: Model,
    images: Sequence[Sequence[np.ndarray]],
    rule: Rule,
    *,
    enlarge: Enlarge,
    network: nn.Module | None = None,
) -> Difference:
    """A file as strangers run it against `flyspeck predict` of the detector; `images` are some of each size.

    Every size is run in every one of `BATCHES`. `network`, the one in `eager`, is asked again where boxes have no partner.
    Raises UserError where the file does not run.
    """

    def wanted() -> list[Detections]:
        found = []
        for own in images:
            reference = reference_of(eager, own, rule, enlarge=enlarge)
            found += [reference[i % len(own)] for batch in BATCHES for i in range(batch)]
        return found

    answers = []
    for own in images:
        for batch in BATCHES:
            answers += run_plainly(exported, [own[i % len(own)] for i in range(batch)])
    return compare(wanted(), answers, rule, again=lambda: [] if network is None else asked_again(network, wanted))


def reference_of(eager: Model, images: Sequence[np.ndarray], rule: Rule, *, enlarge: Enlarge) -> list[Detections]:
    """What `flyspeck predict` finds in images that are one tile each."""
    return Predictor(eager, enlarge=enlarge, score_threshold=rule.score, batch_size=1).predict(list(images))


def run_plainly(exported: Model, images: list[np.ndarray]) -> list[Detections]:
    """What the file finds in images at once; raises UserError that says that it is not kept."""
    try:
        return exported(images)
    except UserError as error:
        height, width = images[0].shape[:2]
        raise UserError(
            f"not exported: the file does not run as it is on {counted(len(images), 'image')} of {height}x{width} ({error.what})",
            where="model",
            fix="a head's decode_batch must take every batch and size (see flyspeck.models.batch_decoding)",
        ) from error
