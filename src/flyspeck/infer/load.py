"""Any trained model by its path: a run folder or weights file (torch), or an exported file (no torch)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from flyspeck.data.enlarge import described_enlargement
from flyspeck.errors import UserError
from flyspeck.evaluate.score_curve import ScoreCurve, ScoreRule
from flyspeck.infer.engines import is_exported
from flyspeck.infer.exported import ExportedModel
from flyspeck.infer.factor_model import FactorModel
from flyspeck.infer.foreign.function_model import FunctionModel, is_function
from flyspeck.infer.foreign.graph_model import GraphModel
from flyspeck.infer.foreign.opening import open_graph
from flyspeck.infer.merge import MergeRule
from flyspeck.infer.placing import Placing
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.resolution import described_resolution
from flyspeck.infer.shown import shown_batch, shown_enlargement, shown_tiles
from flyspeck.infer.skip import SkipRule
from flyspeck.infer.windows import OpenOptions


def load_model(
    path: Path | str,
    *,
    device: str = "auto",
    precision: str = "fp32",
    choice: Mapping[str, Any] | None = None,
    tile: tuple[int, int] | None = None,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    suppression: Literal["nms", "tiny"] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The callable that `Predictor` runs, and what the file says of itself (classes, training size, metrics).

    `path` may name a function too (`package.module:function`), which is then imported; `layout` and `classes` are for models of
    other programs (`flyspeck.infer.foreign`). `choice` is for detectors with factors: `budget`, `quality` or `factor`
    (`models.dynamic.budget.Choice`); a budget is that of a tile (H, W), or of an image of the training's size. `suppression` is
    that of `train.build.load_for_use`; exported files and models of other programs have their own.
    """
    if isinstance(classes, str):
        raise UserError(
            f"the text {classes!r} is no list of classes", where="classes", fix="give a list: ['car', 'boat']"
        )
    if is_function(str(path)):
        function = FunctionModel(str(path), classes=classes)
        if choice or layout is not None:
            raise UserError(f"a function has no {next(iter(choice or {}), 'layout')} to choose", where=path)
        _check_suppression(suppression, function.description, path)
        return function, function.description
    if is_exported(path):
        model = open_graph(path, device=device, precision=precision, layout=layout, classes=classes)
        if choice:
            _choose(model, choice)
        _check_suppression(suppression, model.description, path)
        return model, model.description
    if layout is not None or classes is not None:
        what = "a layout" if layout is not None else "classes"
        raise UserError(f"{what} for a model of flyspeck, which says them itself", where=path, fix="leave it out")
    from flyspeck.devices import torch_device
    from flyspeck.infer.torch_model import TorchModel
    from flyspeck.train.build import load_for_use

    device = str(torch_device(device))
    detector, description = load_for_use(path, suppression)
    if choice:
        from flyspeck.models.dynamic.budget import Choice, apply_choice

        squeezes = described_enlargement(description).squeeze is not None
        size = tuple(description["training_size"]) if tile is None or squeezes else tile
        detector = apply_choice(detector, Choice(**choice), description, size=size, device=device)  # type: ignore[arg-type]
    return TorchModel(detector, device=device, precision=precision), description  # pyright: ignore[reportArgumentType]


def suppression_of(description: Mapping[str, Any]) -> str:
    """`nms`, `tiny`, a form of soft-NMS or `its own`, of what `load_model` says of a model."""
    inside = description.get("suppression")
    return "its own" if inside is None else inside.get("method", "nms")


def _check_suppression(asked: str | None, description: Mapping[str, Any], path: object) -> None:
    """Raises UserError where a model that holds its suppression is asked for another."""
    inside = suppression_of(description)
    if asked not in (None, inside):
        known = "is part of it" if inside == "its own" else f"is part of it: {inside}"
        fix = "leave it out" if inside == "its own" else f"export it again with --suppression {asked}, or give the run"
        raise UserError(f"suppression {asked} for a model whose suppression {known}", where=path, fix=fix)


def _choose(model: ExportedModel | GraphModel, choice: Mapping[str, Any]) -> None:
    """Applies a choice to an exported model, where it has factors."""
    if not isinstance(model, FactorModel):
        raise UserError(
            f"this exported model has no {next(iter(choice))} to choose", where=model.path, fix="give a run folder"
        )
    if len(choice) > 1:
        raise UserError(f"{' and '.join(choice)} exclude each other", fix="give one of them")
    if "budget" in choice:
        raise UserError("an exported model takes no budget", where="budget", fix="give a quality, or a run folder")
    model.set_choice(**choice)


def tile_of(tile: object) -> tuple[int, int] | None:
    """(height, width) of what a caller gives: one number, or two. Raises UserError for what is neither."""
    if tile is None:
        return None
    sides = (tile, tile) if isinstance(tile, int) else tile
    if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise UserError(
            f"{tile!r} is no tile", where="tile", fix="give pixels, (height, width) or one number, or 'off'"
        )
    return int(sides[0]), int(sides[1])


def load_predictor(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "fp32",
    tile: int | tuple[int, int] | Literal["off"] | None = None,
    overlap: int | None = None,
    scale: float | None = None,
    resolution: str | float | None = None,
    score_threshold: float = 0.05,
    merge: MergeRule | None = None,
    suppression: Literal["nms", "tiny"] | None = None,
    batch_size: int = 8,
    readers: int = 1,
    skip: SkipRule | None = None,
    options: OpenOptions | None = None,
    budget: str | None = None,
    quality: float | None = None,
    factor: float | None = None,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
) -> Predictor:
    """The predictor of a trained model: images of any size in, one `Detections` each out.

    Args:
        path: A run folder, a weights file, an exported `.onnx`, `.xml` or `.tflite` file (which needs no torch), also of another
            program,
            or a function, `package.module:function`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the best that is there.
        precision: `fp32` or `bf16`.
        tile: (height, width), or one number, of a tile in pixels that the model sees, or `"off"` for whole images; None: as
            `flyspeck auto` measured to be best, where the model says it, else the training size. Of a model that squeezes its
            images: in pixels of the image, each tile being squeezed; None: whole images.
        overlap: Pixels that neighbouring tiles share at least; the largest object must fit in. None: from the training's objects.
        scale: Model pixels per image pixel; None: as `flyspeck auto` measured to be best, where the model says it, else as in
            training, which alone a model that squeezes its images takes.
        resolution: Of images on a map: `"trained"`, `"native"`, `"auto"` or metres a pixel, as `flyspeck.predict` has it.
        score_threshold: Detections below this score, from 0 to 1, are left out.
        merge: How boxes of overlapping tiles become one; None: `flyspeck.infer.merge.DEFAULT`.
        suppression: What the detector does with several boxes of one object: `tiny` lets one keep its score, `nms` all that
            overlap little; None: as in training, and `tiny` for a model of version 0.1, which says nothing. An exported model
            has its own.
        batch_size: Tiles in one pass of the model.
        readers: Threads that decode ahead.
        skip: Which tiles are passed over as empty; None: none.
        options: How image files are opened: bands, range of values, largest size; None: as in training.
        budget: Of a detector with factors: mean cost of a tile, as in `0.6GFLOPs` or `12ms`.
        quality: Of a detector with factors: from 0, the cheapest, to 1, the largest.
        factor: Of a detector with factors: this one for everything. `budget`, `quality` and `factor` exclude each other.
        layout: Of another program's file: how its outputs give boxes (`flyspeck.infer.foreign.layouts`); None: the file tells.
        classes: Of another program's model: the names of its classes in its order, where it does not say them.

    Returns:
        A predictor: `.predict(images)` for a list, `.stream(images)` for one result after the other. Boxes are xyxy in pixels
        of the original image.

    Raises:
        UserError: For a file that is not there or of another program, and for settings that cannot be.
    """
    asked: dict[str, Any] = {"budget": budget, "quality": quality, "factor": factor}
    choice = {name: value for name, value in asked.items() if value is not None}
    size = None if tile == "off" else tile_of(tile)
    model, description = load_model(
        os.fspath(path),
        device=device,
        precision=precision,
        choice=choice,
        tile=size,
        layout=layout,
        classes=classes,
        suppression=suppression,
    )
    sides, shared = shown_tiles(size, overlap, description, whole=tile == "off")
    predictor = Predictor(
        model,
        tile=sides,
        overlap=shared,
        enlarge=shown_enlargement(description, scale=scale),
        batch_size=shown_batch(batch_size, sides, description),
        score_threshold=score_threshold,
        merge=merge,
        skip=skip,
        readers=readers,
        options=(options or OpenOptions()).completed(description),
        placing=Placing(resolution=described_resolution(description, resolution, scale=scale)),
    )
    predictor.shown_from, _ = ScoreRule().reported(ScoreCurve.of(description))
    return predictor
