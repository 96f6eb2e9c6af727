"""Any trained model by its path: a run folder or weights file (torch), or an exported file (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flyspeck.data.enlarge import Enlarge
from flyspeck.errors import UserError
from flyspeck.infer.engines import is_exported, open_exported
from flyspeck.infer.exported import ExportedModel
from flyspeck.infer.factor_model import FactorModel
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.tiles import default_tiles


def load_model(
    path: Path | str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    choice: Mapping[str, Any] | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The callable that `Predictor` runs, and what the file says of itself (classes, training size, figures).

    `choice` is for detectors with factors: `budget`, `quality` or `factor` (`models.dynamic.budget.Choice`); a budget is that of
    a tile (H, W), or of an image of the training's size.
    """
    if is_exported(path):
        model = open_exported(path, device=device, precision=precision)
        if choice:
            _choose(model, choice)
        return model, model.description
    from flyspeck.infer.torch_model import TorchModel
    from flyspeck.train.build import load_described

    detector, description = load_described(path)
    if choice:
        from flyspeck.models.dynamic.budget import Choice, apply_choice

        size = tile or tuple(description["training_size"])
        detector = apply_choice(detector, Choice(**choice), description, size=size, device=device)  # type: ignore[arg-type]
    return TorchModel(detector, device=device, precision=precision), description  # pyright: ignore[reportArgumentType]


def _choose(model: ExportedModel, choice: Mapping[str, Any]) -> None:
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


def load_predictor(
    path: Path | str,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    choice: Mapping[str, Any] | None = None,
    **options: Any,
) -> Predictor:
    """The predictor of a run folder, a weights file, or an exported model: images of any size in, detections out.

    `tile` (height, width) and `overlap` in pixels and the enlargement default to what the training saw; `choice` is that of
    `load_model`; `options` go to `Predictor`.
    """
    model, description = load_model(path, device=device, precision=precision, choice=choice, tile=tile)
    sides, shared = default_tiles(tile, overlap, description)
    if "scale" not in options and "enlarge" in description:
        options.setdefault("enlarge", Enlarge(**description["enlarge"]))
    return Predictor(model, tile=sides, overlap=shared, **options)
