"""The section `model` of a recipe: which detector, with the options of its head, its backbone and its assigner.

The keys of `head`, `backbone` and `assigner` depend on what is named, and are checked against the options of that part
(`flyspeck.options`), which may come from a plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from flyspeck.errors import UserError
from flyspeck.models.assigners.build import ASSIGNER_OPTIONS, AssignerOptions
from flyspeck.models.assigners.rfla import Fields
from flyspeck.models.names import DYNAMIC, find_backbone, parse_name, split_backbone
from flyspeck.models.start import snapshot, torchvision_names
from flyspeck.models.zoo import BACKBONES, DETECTORS
from flyspeck.options import Count, Options, Positive, Share, listed, owners, unknown_key
from flyspeck.plugins import owner
from flyspeck.train.sections import PATH_OR_NAME


class AnchorConfig(Options):
    """Anchors, relative to the pyramid's strides, or fitted to the training set."""

    base_scale: Positive = 2.0
    """Anchor size over stride: 2 gives 8 px at stride 4."""
    ratios: list[Positive] = Field(default=[0.5, 1.0, 2.0], min_length=1)
    """Height over width."""
    octaves: int = Field(default=1, ge=1, le=64)
    """Sizes per level between one level's and the next's."""
    torchvision: bool = False
    """As torchvision's detectors have them: whole pixels, centred on the corners of cells rather than on their middle."""
    fit: bool = False
    """Take base scale and ratios from the training set's boxes instead, and print them."""
    receptive_fields: bool | Fields = False
    """RFLA's: one size a level, half the receptive field there of the backbone (`own`, or true) or of ResNet-50 (`resnet50`, as
    in the paper); `base_scale` and `octaves` do not count."""


class ModelConfig(Options):
    """Which detector: a zoo name and its sizes."""

    name: str = "faster_rcnn:mobilenet_v2"
    """DETECTOR:BACKBONE[:NECK], as `flyspeck models` lists them."""
    weights: str | None = Field(default=None, json_schema_extra=PATH_OR_NAME)
    """Backbone weights: a file, a name that torchvision (IMAGENET1K_V1) or timm (DEFAULT, d2_in1k) has, `package:NAME` for
    those of an installed package (package:efficientnet_lite0), or null for random."""
    start: str | None = Field(default=None, json_schema_extra=PATH_OR_NAME)
    """Fine-tuning: a detector whose tensors are taken over as far as both have the same. A run folder or weights file, the name
    of a trained detector (hituav_half), or one of torchvision's (`torchvision:fasterrcnn_resnet50_fpn_v2`, of its cache;
    `torchvision:NAME@FILE`), or a folder of D-FINE or RT-DETRv2 as the library transformers saves them (`transformers:FOLDER`),
    with which the rest of this section becomes that detector's where you do not say otherwise."""
    pruned: dict[str, Count] | None = None
    """Channels left in layers that were pruned, by the layer's name: what `flyspeck prune` wrote."""
    quantised: bool = False
    """Train for INT8: what layers take and their weights are rounded to 8 bits as the exported file will round them. `flyspeck
    quantise` writes it, with the weights to start from."""
    width: float = Field(default=1.0, gt=0, le=64)
    """Width multiplier of the backbone, and of nothing else."""
    channels: int = Field(default=256, ge=4, le=65536)
    """Channels of neck and head: 64 on a laptop, 256 in the papers. Unsaid, the backbone's own: 32, 48, 80 of `specknet_n`, `_s`,
    `_m`; 256 of others."""
    levels: str | None = None
    """Pyramid levels: 2-6 is strides 4 to 64, 1-5 strides 2 to 32, for backbones that have a map of stride 2; null takes the
    detector's own (of a backbone with a stride elimination: on the maps that this enlarged)."""
    norm: Literal["none", "bn", "gn"] = "none"
    """Norm layers of neck and head. Unsaid, the detector's own: `bn` of `speck`, none of others."""
    pixel_norm: Literal["imagenet", "data", "weights"] | None = None
    """By whose mean and deviation pixels are normalised: ImageNet's, the training set's, or those that the weights (of `weights`
    or `start`) were trained with; null is the weights' where there are any and images have 8 bits, else the
    training set's. Kept with the weights."""
    frozen_stages: int = Field(default=0, ge=0, le=100)
    """Backbone stages that do not train: 1 freezes the stem and stage 1, 2 also stage 2, and so on; 0 freezes nothing."""
    freeze_norms: bool = False
    """Keep the backbone's norm statistics and weights as loaded."""
    anchors: AnchorConfig | None = None
    """Of detectors that have anchors; null takes the detector's own."""
    assigner: AssignerOptions | None = None
    """Which prior learns which object; null takes the detector's own rule."""
    fusion: float | list[float] | Literal["one", "three", "self_attention", "gate", "statistic"] | None = None
    """Fusion factors of the pyramid: one for all its edges, one for each, finest first, or who finds them: one or three learnt
    numbers, self-attention (the paper's), a gate on the maps' averages (ours), `statistic` (S-alpha of the training set)."""
    sigma: Positive | None = None
    """Sigma-power initialisation of the pyramid (the fusion-factor paper, sec. 3.3); wants `norm: none`."""
    head: SerializeAsAny[Options] = Field(default_factory=Options, validate_default=True)
    """Options of the detector that `name` names (depth, hidden, samples, …)."""
    backbone: SerializeAsAny[Options] = Field(default_factory=Options, validate_default=True)
    """Options of the backbone that `name` names; most have none."""
    max_detections: Count = 500
    """Detections kept per image."""
    counts: Literal["area", "fixed"] = "area"
    """What counts an image (proposals, candidates, detections) are for: `area`, an input of the training's size, and in
    proportion to its area on larger ones (trained on crops of a quarter of an image, four times as many of the whole image, and
    their time with them: training says so); `fixed`, any input, as papers have it."""
    min_score: Share = 0.01
    """Detections with lower scores never leave the model."""
    pre_nms: Count = 1000
    """Of detectors without proposals: candidates kept per pyramid level before the suppression, the best ones."""
    nms: float = Field(default=0.5, gt=0, le=1)
    """IoU above which a worse box of the same class is dropped."""
    suppression: Literal["nms", "tiny"] = "tiny"
    """What follows NMS: with `tiny` the best box of each object below 48 px moves to the mean of all candidates for it, and
    others on it keep a quarter of their scores; `nms` is NMS alone, as papers have it. With `soft_nms` nothing follows."""
    soft_nms: Literal["linear", "gaussian"] | None = None
    """Lower the scores of overlapping boxes instead of dropping them; `nms` is then the linear form's bound."""

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, given: Any) -> Any:
        """What the start says of the model, under what the recipe says."""
        start = given.get("start") if isinstance(given, Mapping) else None
        if isinstance(start, str) and torchvision_names.is_torchvision(start):
            said = torchvision_names.section(start)
        elif isinstance(start, str) and snapshot.is_snapshot(start):
            said = snapshot.section(start)
        else:
            return given
        if given.get("name", said["name"]) != said["name"]:  # another detector: what fits of it is taken
            return given
        return _under(said, given)

    @model_validator(mode="before")
    @classmethod
    def _one_suppression(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("soft_nms") is None:
            return given
        if given.get("suppression", "nms") == "tiny":
            raise UserError(
                "soft_nms and suppression: tiny exclude each other",
                where="model.suppression",
                fix="write suppression: nms, or leave soft_nms out",
            )
        return {"suppression": "nms", **given}

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        """What is unsaid and the named parts have an own of."""
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            return given
        try:
            host, backbone = named_parts(given["name"])
        except UserError:  # `_a_detector` says so
            return given
        own = {"channels": find_backbone(backbone).channels, "norm": DETECTORS[host].norm}
        return {**own, **given}

    @field_validator("name")
    @classmethod
    def _a_detector(cls, name: str) -> str:
        named_parts(name)
        return name

    @field_validator("head", mode="before")
    @classmethod
    def _head(cls, given: Any, info: ValidationInfo) -> Any:
        if "name" not in info.data:  # which is a fault of its own
            return Options()
        name = info.data["name"]
        return _typed(given, named_parts(name)[0], head_options(name), all_head_options())

    @field_validator("backbone", mode="before")
    @classmethod
    def _backbone(cls, given: Any, info: ValidationInfo) -> Any:
        if "name" not in info.data:
            return Options()
        name = info.data["name"]
        return _typed(given, named_parts(name)[1], backbone_options(name), all_backbone_options())

    @field_validator("fusion", mode="before")
    @classmethod
    def _fusion(cls, given: Any) -> Any:
        if given == "attention":
            fix = "write gate for it, or self_attention for the paper's self-attention"
            raise UserError("what was called attention is called gate now", fix=fix)
        return given

    @field_validator("assigner", mode="before")
    @classmethod
    def _assigner(cls, given: Any) -> Any:
        """Version 0.1.0 wrote every assigner's keys for each of them: what is unset of the others is left out."""
        table = all_assigner_options()
        if not isinstance(given, Mapping) or given.get("name") not in table:
            return given
        mine, kept = table[given["name"]].model_fields, {}
        for key, value in given.items():
            others = owners(str(key), table) if key not in mine else []
            if not others:
                kept[key] = value
            elif value not in (None, table[others[0]].model_fields[key].default):
                raise unknown_key(key, f"it belongs to {listed(others)}; {given['name']} has {listed(mine, 9)}")
        return kept


def _under(said: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` over `said`, mappings merged, but for anchors: they are fitted or given. Null is what nobody has said."""
    merged = dict(given)
    for key, value in said.items():
        if merged.get(key) is None:
            merged[key] = value
        elif key != "anchors" and isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = _under(value, merged[key])
    return merged


def _typed(given: Any, name: str, model: type[Options], table: Mapping[str, type[Options]]) -> Options:
    """`given` as the options `model` of the part `name`; `table` knows those of the other"""
    if type(given) is Options:  # nothing is set
        given = {}
    if isinstance(given, Mapping):
        for key in given:
            if key in model.model_fields or key in model.renamed or key in model.retired:
                continue
            if key in ModelConfig.model_fields and key not in ("name", "head", "backbone"):
                raise unknown_key(key, f"set model.{key}")
            others = owners(str(key), table)
            if others and not get_close_matches(str(key), model.model_fields, n=1, cutoff=0.5):
                has = f"has {listed(model.model_fields, 12)}" if model.model_fields else "has no options"
                raise unknown_key(
                    key, f"it belongs to {listed(others)}; {name} {has}; {{}} in place of all keys takes its own"
                )
    return model.model_validate(given)


def named_parts(name: str) -> tuple[str, str]:
    """Detector and backbone (without its stride elimination) of a recipe's `model.name`.

    Raises UserError for a name that nobody knows, and for one that a recipe cannot train.
    """
    parsed = parse_name(name)
    if parsed.detector is None:
        raise UserError(f"'{name}' is a backbone", where="model.name", fix=f"write faster_rcnn:{name} or the like")
    if parsed.dynamic:
        raise UserError(
            f"'{name}' is a name to count with", where="model.name",
            fix=f"write {name.removeprefix(DYNAMIC)}, and a section `dynamic`",
        )  # fmt: skip
    return parsed.detector, split_backbone(parsed.backbone)[0]


def head_options(name: str) -> type[Options]:
    """The options of the detector that `model.name` names."""
    return DETECTORS[named_parts(name)[0]].settings


def backbone_options(name: str) -> type[Options]:
    """The options of the backbone that `model.name` names."""
    return find_backbone(named_parts(name)[1]).settings


def all_head_options(*, plugins: bool = True) -> Mapping[str, type[Options]]:
    """Detector name to its options; without `plugins` flyspeck's own only."""
    return {name: entry.settings for name, entry in DETECTORS.items() if plugins or owner("detector", name) is None}


def all_backbone_options(*, plugins: bool = True) -> Mapping[str, type[Options]]:
    """Backbone name to its options; without `plugins` flyspeck's own only."""
    return {name: entry.settings for name, entry in BACKBONES.items() if plugins or owner("backbone", name) is None}


def all_assigner_options() -> Mapping[str, type[Options]]:
    """Assigner name to its options."""
    return ASSIGNER_OPTIONS
