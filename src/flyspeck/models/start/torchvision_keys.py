"""torchvision's detectors as sources of weights: its keys are ours, its background comes first and ours last.

The file is first loaded into torchvision's own model (on no device), strictly: so keys of its older versions are translated by
itself, and a file of another model is refused by name. `FrozenBatchNorm2d`, and the published files of its first Faster R-CNN
and RetinaNet, add another number to the variance than our norms do; the difference is put into the stored variance, so that the
norm computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models import get_model_weights

from flyspeck.errors import UserError
from flyspeck.models.backbones.mobilenet_v3 import rename_torchvision
from flyspeck.models.heads.ssd import DefaultBoxes
from flyspeck.models.heads.ssd_tables import VGG16
from flyspeck.models.start import torchvision_names as names
from flyspeck.models.start.rows import OutputRows, Outputs, Shapes
from flyspeck.models.start.transfer import Source
from flyspeck.models.weights import read_weights

RATIOS = (0.5, 1.0, 2.0)
_SSD_ANCHORS = (4, 6, 6, 6, 4, 4)
_VGG_STARTS = {"stem": 0, "stage1": 9, "stage2": 16}

# Key of torchvision to ours, tried in this order; `{L}` stands for every level of the pyramid.
_BACKBONE = (
    (r"backbone\.body\.conv1\.(.+)", r"backbone.stages.stem.0.\1"),
    (r"backbone\.body\.bn1\.(.+)", r"backbone.stages.stem.1.\1"),
    (r"backbone\.body\.layer(\d)\.(.+)", r"backbone.stages.stage\1.\2"),
)
_PYRAMID = (
    (r"backbone\.fpn\.inner_blocks\.(.+)", r"neck.inner.\1"),
    (r"backbone\.fpn\.layer_blocks\.(.+)", r"neck.layer.\1"),
    (r"backbone\.fpn\.extra_blocks\.p6\.(.+)", r"neck.extra_convs.0.0.\1"),
    (r"backbone\.fpn\.extra_blocks\.p7\.(.+)", r"neck.extra_convs.1.0.\1"),
)
_FASTER = (
    (r"rpn\.head\.conv\.(\d)\.0\.(.+)", r"head.rpn.tower.convs.\1.\2"),
    (r"rpn\.head\.cls_logits\.(.+)", r"head.rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"head.rpn.box_deltas.\1"),
    (r"roi_heads\.box_head\.(?:fc6|5)\.(.+)", r"head.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"head.box_head.fc2.\1"),
    (r"roi_heads\.box_head\.(\d)\.([01])\.(.+)", r"head.box_head.convs.\1.\2.\3"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"head.box_head.class_logits.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"head.box_head.box_deltas.\1"),
)
_RETINANET = (
    (r"head\.classification_head\.conv\.(\d)\.0\.(.+)", r"head.class_tower.convs.\1.\2"),
    (r"head\.classification_head\.conv\.(\d)\.1\.(.+)", r"head.class_tower.norms.{L}.\1.\2"),
    (r"head\.classification_head\.cls_logits\.(.+)", r"head.class_logits.\1"),
    (r"head\.regression_head\.conv\.(\d)\.0\.(.+)", r"head.box_tower.convs.\1.\2"),
    (r"head\.regression_head\.conv\.(\d)\.1\.(.+)", r"head.box_tower.norms.{L}.\1.\2"),
    (r"head\.regression_head\.bbox_reg\.(.+)", r"head.box_deltas.\1"),
)
_SSD = (
    (r"backbone\.scale_weight", "neck.norm.weight"),
    (r"backbone\.extra\.0\.7\.(.+)", r"backbone.stages.stage4.\1"),
    (r"backbone\.extra\.0\.(.+)", r"backbone.stages.stage3.\1"),
    (r"head\.classification_head\.module_list\.(.+)", r"head.class_logits.\1"),
    (r"head\.regression_head\.module_list\.(.+)", r"head.box_deltas.\1"),
)


def read_source(start: str, *, file: Path | None = None, all_maps: bool = False) -> Source:
    """The weights that `start` (`torchvision:NAME[@FILE]`) means, under our names.

    Args:
        start: As in a recipe.
        file: Of the weights; None finds it (`torchvision_names.find_file`).
        all_maps: Of the MobileNetV3 ones: both maps of stride 32 that torchvision's pyramid has, of which a pyramid of ours
            has the last.

    Raises:
        UserError: For a file that is not there, cannot be read safely, or holds another model.
    """
    name, _ = names.parse(start)
    kind = names.DETECTORS[name]
    path = file or names.find_file(start)
    theirs = _canonical(name, read_weights(path), path)
    published = path.name == names.published_file(name)[0]
    eps = kind.published_eps if published and kind.published_eps is not None else kind.eps
    strides, maps = ((32.0, *kind.strides), 2) if all_maps and kind.maps == 1 else (kind.strides, kind.maps)
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    unused: dict[str, str] = {}
    for key, tensor in theirs.items():
        if key.endswith("running_var"):
            tensor = tensor + (eps - kind.own_eps if key.startswith("backbone.body") else 0.0)
        ours = _translated(name, key, single=kind.maps == 1 and not all_maps)
        if ours is None:
            unused[key] = "its map is not in the pyramid"
            continue
        for each in [ours.replace("{L}", str(level)) for level in range(len(strides))] if "{L}" in ours else [ours]:
            state[each], origin[each] = _arranged(each, tensor), key
    if name.startswith("fcos"):
        state["head.scales"], origin["head.scales"] = torch.ones(len(strides)), "(none: 1)"
    classes = _classes(name, theirs, kind)
    notes = [*kind.notes, *([] if eps == kind.own_eps else [f"norms of the backbone add {eps:g} to the variance"])]
    if classes is None:
        notes.append("its classes are not COCO's and have no names: rows of classes are not taken")
    return Source(
        f"{names.PREFIX}{name} ({path})",
        state,
        Outputs(classes, _rows(name, kind)),
        strides,
        maps,
        names.LICENCE,
        tuple(notes),
        origin,
        unused,
    )


def guess(state: Mapping[str, Tensor]) -> str | None:
    """Which of torchvision's detectors weights seem to be of, by their keys; None for no such weights."""
    if any(key.startswith("roi_heads.box_predictor.") for key in state):
        if "backbone.body.0.0.weight" in state:
            return "fasterrcnn_mobilenet_v3_large_fpn"
        return "fasterrcnn_resnet50_fpn" + "_v2" * ("roi_heads.box_head.5.weight" in state)
    if "head.regression_head.bbox_ctrness.weight" in state:
        return "fcos_resnet50_fpn"
    if "head.regression_head.bbox_reg.weight" in state:
        return "retinanet_resnet50_fpn" + "_v2" * ("head.regression_head.conv.0.1.weight" in state)
    return "ssd300_vgg16" if "backbone.scale_weight" in state else None


def _canonical(name: str, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`state` under the keys that the installed torchvision has; refused unless it is `name`'s."""
    outputs = _num_outputs(name, state, path)
    with torch.device("meta"):
        builder: Callable[..., torch.nn.Module] = getattr(torchvision.models.detection, name)
        model = builder(weights=None, weights_backbone=None, num_classes=outputs)
    singles = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(singles, strict=False, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise _other_model(name, first[0].strip(), path) from None
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        first = f"has no '{missing[0]}'" if missing else f"'{unexpected[0]}' has no place in it"
        raise _other_model(name, first, path)
    return {key: value for key, value in model.state_dict().items() if value.device.type != "meta"}


def _other_model(name: str, first: str, path: Path) -> UserError:
    return UserError(
        f"not the weights of torchvision's {name}: {first}",
        where=path,
        fix=f"name the detector that they are of: {', '.join(names.DETECTORS)}",
    )


def _num_outputs(name: str, state: Mapping[str, Tensor], path: Path) -> int:
    """`num_classes` as torchvision's builder wants it."""
    key, each = {
        "fasterrcnn": ("roi_heads.box_predictor.cls_score.bias", 1),
        "retinanet": ("head.classification_head.cls_logits.bias", 9),
        "fcos": ("head.classification_head.cls_logits.bias", 1),
        "ssd300": ("head.classification_head.module_list.0.bias", _SSD_ANCHORS[0]),
    }[name.partition("_")[0]]
    if key not in state or len(state[key]) % each:
        raise _other_model(name, f"has no '{key}'" if key not in state else f"'{key}' has {len(state[key])} rows", path)
    return len(state[key]) // each


def _translated(name: str, key: str, *, single: bool) -> str | None:
    """Our name of torchvision's `key`; None for a map that the pyramid does not have. `single`: of two maps the last alone."""
    if single and (match := re.match(r"backbone\.fpn\.(?:inner|layer)_blocks\.(\d)", key)):
        if match[1] == "0":
            return None
        key = key.replace("_blocks.1.", "_blocks.0.")
    kind = name.partition("_")[0]
    if kind == "ssd300":
        return _translated_ssd(key)
    if "mobilenet" in name and key.startswith("backbone.body."):
        return f"backbone.{rename_torchvision(key.replace('backbone.body.', 'features.', 1))}"
    if kind == "fcos":
        key = re.sub(r"_head\.conv\.(\d+)\.", lambda m: f"_head.conv.{int(m[1]) // 3}.{int(m[1]) % 3}.", key)
        key = key.replace("regression_head.bbox_ctrness", "centerness")
    ours = _replaced(key, (*_BACKBONE, *_PYRAMID, *(_FASTER if kind == "fasterrcnn" else _RETINANET)))
    return ours.replace("box_deltas", "box_distances") if kind == "fcos" else ours


def _translated_ssd(key: str) -> str:
    if match := re.fullmatch(r"backbone\.features\.(\d+)\.(.+)", key):
        index = int(match[1])
        stage = [name for name, start in _VGG_STARTS.items() if start <= index][-1]
        return f"backbone.stages.{stage}.{index - _VGG_STARTS[stage]}.{match[2]}"
    if match := re.fullmatch(r"backbone\.extra\.([1-4])\.(.+)", key):
        return f"neck.extras.{int(match[1]) - 1}.{match[2]}"
    return _replaced(key, _SSD)


def _replaced(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def _arranged(key: str, tensor: Tensor) -> Tensor:
    """The rows of a last layer with the background behind the classes, and without boxes of the background."""
    layer = key.rpartition(".")[0]
    if layer == "head.box_head.class_logits":
        return tensor.roll(-1, 0)
    if layer == "head.box_head.box_deltas":
        return tensor[4:]
    if match := re.fullmatch(r"head\.class_logits\.(\d)", layer):
        return tensor.unflatten(0, (_SSD_ANCHORS[int(match[1])], -1)).roll(-1, 1).flatten(0, 1)
    return tensor


def _classes(name: str, theirs: Mapping[str, Tensor], kind: names.Published) -> tuple[str, ...] | None:
    """COCO's names, if the file has as many classes; RetinaNet and FCOS count the background as one that is never there."""
    categories = [str(one) for one in get_model_weights(name)["DEFAULT"].meta["categories"]]
    if _num_outputs(name, theirs, Path(name)) != len(categories):
        return None
    # What stands for no class must not be taken for a user's.
    plain = [f"(none {i})" if one in ("__background__", "N/A") else one for i, one in enumerate(categories)]
    return tuple(plain[1:] if kind.background else plain)


def _rows(name: str, kind: names.Published) -> dict[str, OutputRows]:
    shapes: Shapes = [(size / ratio**0.5, size * ratio**0.5) for ratio in RATIOS for size in kind.sizes]
    if name.startswith("fasterrcnn"):
        return {
            "head.rpn.objectness": OutputRows(("anchors",), shapes),
            "head.rpn.box_deltas": OutputRows(("anchors", "values"), shapes),
            "head.box_head.class_logits": OutputRows(("background",)),
            "head.box_head.box_deltas": OutputRows(("classes", "values")),
        }
    if name.startswith("retinanet"):
        return {
            "head.class_logits": OutputRows(("anchors", "classes"), shapes),
            "head.box_deltas": OutputRows(("anchors", "values"), shapes),
        }
    if name.startswith("fcos"):
        return {"head.class_logits": OutputRows(("classes",))}
    return _ssd_rows()


def _ssd_rows() -> dict[str, OutputRows]:
    found = {}
    for i, shapes in enumerate(DefaultBoxes(VGG16["torchvision"]).shapes):
        found[f"head.class_logits.{i}"] = OutputRows(("anchors", "background"), shapes)
        found[f"head.box_deltas.{i}"] = OutputRows(("anchors", "values"), shapes)
    return found
