"""Backbones of timm (`timm/NAME`; extra `timm`): any of its models that gives a feature pyramid, as a staged backbone.

timm says of a model which maps it gives; here the maps themselves are looked at, on an image that is no square: their
layout (some models keep the channels last), where they begin (stride 2 or 4) and that their sides are those of their
stride. Whether the model is a chain is found out as well: its parts are run one after another, and where they give exactly
the maps that the model gives, on several sizes, they become the stages `stem`, `stage1`, … (level k + 1 is `stage` k).
Such a backbone freezes by stages, loses strides and pools dynamically like any other. A model that is no chain (parallel
branches, hooks) is one stage, `whole`, that gives all its maps from stride 4 on.

Weights: the path of a file (timm's own format, read without executing anything, or one that flyspeck wrote), or the name of
published ones (`d2_in1k`, `DEFAULT`), which timm fetches. Without either nothing is fetched.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flyspeck.errors import UserError, missing_extra, nearest
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.weights import is_file_name, load_backbone, note_loaded, read_weights
from flyspeck.types import FeatureSpec

PREFIX = "timm/"
"""What begins the name of a backbone of timm."""

_SIZES = ((128, 192), (160, 96))
"""Sides (H, W) of the images that a model is looked at with: whole cells of stride 32, no square, no common ratio."""
_OWN_KEY = re.compile(r"(backbone\.)?stages\.(stem|stage\d+|whole)\.")
_ANY_SIZE: tuple[dict[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
"""Arguments with which some models take images of other sizes than they were trained with."""


def timm_backbone(
    name: str,
    *,
    width: float = 1.0,
    weights: str | Path | None = None,
    outputs: Sequence[str] | None = None,
    **options: Any,
) -> StagedBackbone:
    """timm's model `name` (without `timm/`; a tag after a point names published weights: `convnext_atto.d2_in1k`).

    Args:
        name: As timm lists it.
        width: 1; timm's models have one width each.
        weights: The path of a file, the name of published weights (a tag, or `DEFAULT` for timm's choice), or None.
        outputs: Stages whose outputs are feature maps; None for all from stride 4 on.
        options: Keyword arguments of timm's builder (`drop_path_rate`, …).

    Raises:
        UserError: Without timm, for a model that timm does not know or that has no pyramid, for one that takes images of
            one size only, and for weights that are not the model's.
    """
    check_name(name)
    if width != 1:
        raise UserError(
            f"{PREFIX}{name} has one width", where="width", fix="leave width at 1, or choose another of timm's models"
        )
    own, tag = _split_weights(weights)
    with torch.device("cpu"):  # the maps are compared as numbers, even where only shapes are asked for
        model, maps = _create(_tagged(name, tag), tag is not None, options)
        if own is not None and not _is_ours(own):
            model, maps = _create(name, True, {**options, "pretrained_cfg_overlay": {"file": str(own)}})
            _check_loaded(model, own)
        backbone = _staged(name, model, maps, outputs)
    if own is not None and _is_ours(own):
        load_backbone(backbone, own)
    elif own is not None:
        state = read_weights(own)
        there = {_mark(tensor) for tensor in backbone.state_dict().values()}
        skipped = {key: "no part of the backbone" for key, tensor in state.items() if _mark(tensor) not in there}
        note_loaded(backbone, backbone.state_dict(), where=own, skipped=skipped)
    elif tag is not None:
        published = _timm().get_pretrained_cfg(_tagged(name, tag), allow_unregistered=True)
        note_loaded(
            backbone, backbone.state_dict(), where=f"timm's {published.tag or tag}", licence=published.license or ""
        )
    return backbone.train().to(torch.get_default_device())


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, in [0, 1], that timm's weights of `name` were trained with."""
    check_name(name)
    published = _timm().get_pretrained_cfg(name, allow_unregistered=True)
    if published is None:
        raise UserError(f"timm says nothing of the weights of {name}", where="model name")
    return tuple(published.mean), tuple(published.std)


def check_name(name: str) -> None:
    """Raises UserError that names the nearest model for a `name` (without `timm/`) that timm does not have."""
    timm = _timm()
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        raise UserError(f"timm has no model '{bare}'", where="model name", fix=nearest(bare, timm.list_models()))
    tag = name.partition(".")[2]
    if tag and tag not in _tags(bare):
        raise UserError(f"timm has no weights '{tag}' of {bare}", where="model name", fix=nearest(tag, _tags(bare)))


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise missing_extra("timm", "timm") from None
    return timm


def _tags(bare: str) -> list[str]:
    names = _timm().list_models(f"{bare}.*", pretrained=True)
    return [one.partition(".")[2] for one in names if one.partition(".")[0] == bare]


def _split_weights(weights: str | Path | None) -> tuple[Path | None, str | None]:
    """A file, or the name of published weights."""
    if weights is None:
        return None, None
    if is_file_name(weights) or isinstance(weights, Path):
        read_weights(weights)  # nothing in it can run, or it is refused here
        return Path(weights), None
    return None, weights


def _tagged(name: str, tag: str | None) -> str:
    if tag is None or tag == "DEFAULT":
        return name
    tagged = f"{name.partition('.')[0]}.{tag}"
    check_name(tagged)
    return tagged


def _is_ours(path: Path) -> bool:
    return any(_OWN_KEY.match(key) for key in read_weights(path))


def _create(name: str, pretrained: bool, options: Mapping[str, Any]) -> tuple[nn.Module, list[Tensor]]:
    """The model in evaluation mode, and its maps of an image of the first of `_SIZES`."""
    refusal = ""
    for more in _ANY_SIZE:
        try:
            model = _load(name, pretrained, {**options, **more})
        except TypeError as error:  # it takes no such argument
            if not more:
                raise UserError(
                    f"{PREFIX}{name} takes no such option: {_line(error)}", where="backbone options"
                ) from error
            continue
        try:
            return model, _run(model, _SIZES[0])
        except (AssertionError, RuntimeError, ValueError) as error:
            refusal = refusal or _line(error)
    raise UserError(
        f"{PREFIX}{name} does not take images of any size ({refusal})",
        where="model name",
        fix="choose one that does: convolutional models and most with a pyramid",
    )


def _load(name: str, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    try:
        return _timm().create_model(name, pretrained=pretrained, features_only=True, **options).eval()
    except TypeError:
        raise
    except Exception as error:
        if not pretrained:  # timm raises all kinds for a model that gives no maps
            raise UserError(
                f"{PREFIX}{name} has no feature pyramid ({_line(error)})",
                where="model name",
                fix="choose a model with maps of several strides, such as timm/convnext_atto",
            ) from error
        if "file" in options.get("pretrained_cfg_overlay", {}):
            raise UserError(
                f"not the weights of {PREFIX}{name} ({_line(error)})",
                where=options["pretrained_cfg_overlay"]["file"],
                fix="choose the model that the weights were made for",
            ) from error
        place = getattr(_timm().get_pretrained_cfg(name, allow_unregistered=True), "hf_hub_id", None)
        bring = f"bring model.safetensors of {place} from the Hugging Face hub, and " if place else ""
        raise UserError(
            f"timm could not load the weights of {name} ({_line(error)})",
            where="weights",
            fix=f"{bring}give the path of the local file",
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


@torch.no_grad()
def _run(model: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    return list(model(_image(size)))


def _image(size: tuple[int, int]) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def _check_loaded(model: nn.Module, path: Path) -> None:
    """Raises UserError where tensors of the model are not in the file: timm passes over what is missing."""
    kept = {_mark(tensor) for tensor in read_weights(path).values()}
    wanted = {key: t for key, t in model.state_dict().items() if t.is_floating_point() and t.numel() > 1}
    missing = [key for key, tensor in wanted.items() if _mark(tensor) not in kept]
    if missing:
        raise UserError(
            f"{len(missing)} of the model's {len(wanted)} tensors are not in the file, the first is '{missing[0]}'",
            where=path,
            fix="choose the model that the weights were made for",
        )


def _mark(tensor: Tensor) -> tuple[int, float, float]:
    values = tensor.double()
    return tensor.numel(), round(float(values.sum()), 6), round(float(values.abs().sum()), 6)


def _staged(name: str, model: nn.Module, maps: Sequence[Tensor], outputs: Sequence[str] | None) -> StagedBackbone:
    layouts = [_layout(tensor, _SIZES[0]) for tensor in maps]
    strides = [None if layout is None else layout[1] for layout in layouts]
    places = {s: i for i, s in enumerate(strides) if s is not None and s >= 2}  # of several of one stride, the last
    if len(places) < 2 or None in strides:
        sides = ", ".join("x".join(map(str, tensor.shape[1:])) for tensor in maps)
        raise UserError(
            f"{PREFIX}{name} has no feature pyramid: of {_SIZES[0][0]}x{_SIZES[0][1]} px it makes {sides}",
            where="model name",
            fix="choose a model with maps of several strides, such as timm/convnext_atto",
        )
    wanted = sorted(places.values())
    specs = {_stage_name(strides[i]): _spec(maps[i], _SIZES[0]) for i in wanted}
    units = _chain(model, maps, wanted)
    if units is None:
        specs.pop("stem", None)  # of maps that come together none can be left out later, and pyramids begin at stride 4
        wanted = [i for i in wanted if cast(int, strides[i]) > 2]
        whole = Whole(model, wanted, [not _first(maps[i]) for i in wanted])
        return StagedBackbone({"whole": whole}, {}, outputs=("whole",), branches={"whole": tuple(specs.values())})
    stages, stem = _cut(units, list(specs))
    if stem is not None:
        specs = {"stem": stem, **specs}
    chosen = tuple(n for n in specs if n != "stem") if outputs is None else tuple(outputs)
    return StagedBackbone(stages, specs, outputs=chosen)


def _stage_name(stride: int | None) -> str:
    """`stem` for stride 2, `stage1` for 4, `stage2` for 8, …"""
    level = round(math.log2(cast(int, stride)))
    return "stem" if level == 1 else f"stage{level - 1}"


def _layout(tensor: Tensor, size: tuple[int, int]) -> tuple[bool, int] | None:
    """Whether the channels come first, and the stride, a power of two; None for what is no map of an image of `size`."""
    if tensor.ndim != 4:
        return None
    for first, (height, width) in ((True, tensor.shape[2:]), (False, tensor.shape[1:3])):
        stride = size[0] // height if height else 0
        if stride and stride & (stride - 1) == 0 and (height * stride, width * stride) == size:
            return first, stride
    return None


def _first(tensor: Tensor, size: tuple[int, int] = _SIZES[0]) -> bool:
    layout = _layout(tensor, size)
    return layout is not None and layout[0]


def _spec(tensor: Tensor, size: tuple[int, int]) -> FeatureSpec:
    layout = _layout(tensor, size)
    assert layout is not None
    return FeatureSpec(tensor.shape[1 if layout[0] else 3], layout[1])


class Whole(nn.Module):
    """A model that is no chain: it gives all its maps at once."""

    def __init__(self, model: nn.Module, keep: Sequence[int], turn: Sequence[bool]) -> None:
        super().__init__()
        self.model, self.keep, self.turn = model, tuple(keep), tuple(turn)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images `(B, 3, H, W)` to maps `(B, C, H, W)`, finest first."""
        maps = list(self.model(x))
        return [maps[i].permute(0, 3, 1, 2) if turn else maps[i] for i, turn in zip(self.keep, self.turn, strict=True)]


class Turned(nn.Module):
    """A stage that has its channels last: between stages they come first."""

    def __init__(self, inner: nn.Module, *, takes: bool, gives: bool) -> None:
        super().__init__()
        self.inner, self.takes, self.gives = inner, takes, gives

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`; `takes` and `gives` say whether the stage itself has the channels last."""
        x = self.inner(x.permute(0, 2, 3, 1) if self.takes else x)
        return x.permute(0, 3, 1, 2) if self.gives else x


class _Chain:
    """The parts of a model that give its maps when they run one after another."""

    def __init__(self, units: Sequence[nn.Module], made: Sequence[Tensor], ends: Sequence[int]) -> None:
        self.units, self.ends = list(units), list(ends)
        self.channels_first = [_first(tensor) for tensor in made]
        self.specs = [_spec(tensor, _SIZES[0]) if _layout(tensor, _SIZES[0]) else None for tensor in made]

    def stage(self, start: int, end: int) -> nn.Module:
        """Units from `start` to before `end`."""
        inner = nn.Sequential(*self.units[start:end])
        takes = start > 0 and not self.channels_first[start - 1]
        gives = not self.channels_first[end - 1]
        return Turned(inner, takes=takes, gives=gives) if takes or gives else inner


def _chain(model: nn.Module, maps: Sequence[Tensor], wanted: Sequence[int]) -> _Chain | None:
    """The model as a chain; None where its parts, one after another, do not give its maps."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None  # it takes its maps from within
    units = list(_parts(model))
    made = _walk(units, _SIZES[0])
    ends = [max((p for p, t in enumerate(made) if _equal(t, maps[i])), default=-1) for i in wanted]
    if -1 in ends or ends != sorted(set(ends)):
        return None
    other, again = _run(model, _SIZES[1]), _walk(units, _SIZES[1])
    if not all(end < len(again) and _equal(again[end], other[i]) for end, i in zip(ends, wanted, strict=True)):
        return None
    return _Chain(units, made, ends)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) is nn.Sequential:
            yield from _parts(child)
        else:
            yield child


@torch.no_grad()
def _walk(units: Sequence[nn.Module], size: tuple[int, int]) -> list[Tensor]:
    """What each unit makes of what the one before made, up to one that cannot."""
    x, made = _image(size), []
    for unit in units:
        try:
            x = unit(x)
        except Exception:  # a part that is no link of a chain fails in its own way
            break
        if not isinstance(x, Tensor):
            break
        made.append(x)
    return made


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _cut(chain: _Chain, names: Sequence[str]) -> tuple[dict[str, nn.Module], FeatureSpec | None]:
    """The stages that end with the maps `names`, behind a stem; and the stem's spec where it gives none of the maps."""
    stages: dict[str, nn.Module] = {}
    start, stem = 0, None
    if names[0] != "stem":
        # All but the last part before the first map, if what that part takes is a map.
        last = chain.ends[0]
        stem = chain.specs[last - 1] if last else None
        start = last if stem is not None else 0
        stages["stem"] = chain.stage(0, start) if start else nn.Identity()
    for name, end in zip(names, chain.ends, strict=True):
        stages[name] = chain.stage(start, end + 1)
        start = end + 1
    return stages, stem
