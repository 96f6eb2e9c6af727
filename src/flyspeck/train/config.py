"""Recipes: one YAML file is one run, complete and typed. No inheritance, no interpolation, no code.

Every field is documented under its name; an unknown key is an error that names the nearest known one. Paths in a recipe
are relative to the recipe's own file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flyspeck.errors import UserError, nearest
from flyspeck.train.distill.config import DistillConfig


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Where the images are and how they are read."""

    train: str
    """Annotations to learn from: any format that `flyspeck data inspect` reads."""
    val: str
    """Annotations to measure on."""
    format: str | None = None
    """Name of the format; None looks at the files."""
    pixels: Literal["half-open", "from-0", "from-1"] | None = None
    """What whole-pixel corners mean where the format leaves it open (VOC); None takes what the writing tool means."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8 and do not say what they are: cp1252, gbk, …"""
    classes: list[str] | None = None
    """Classes to learn, in order; None takes all. Boxes of the others are left out."""
    channels: Literal[1, 3] | None = None
    """Channels to read; None takes what the first image has."""
    cache: Literal["none", "ram"] = "none"
    """Keep decoded images in memory (a set of small images trains faster)."""
    check_files: Literal["none", "headers", "full"] = "headers"
    """What is looked at of every image of both sets before the first step: nothing, its header, or all of its pixels."""
    max_objects: int | None = None
    """Leave out training images with more objects (the papers use 200)."""
    max_broken_share: float = Field(default=0.0, ge=0, le=1)
    """Share of unreadable images, and of broken annotations, that training may skip; they are counted and listed."""
    train_limit: int | None = Field(default=None, ge=1)
    """Use only so many training images, evenly spread over the file."""
    val_limit: int | None = Field(default=None, ge=1)
    """Use only so many validation images, evenly spread over the file."""
    enlarge: float = Field(default=1.0, gt=0)
    """The network learns from and looks at images enlarged so much; results and size bins stay in the files' pixels."""
    short_side: int | None = Field(default=None, ge=1)
    """Enlarge (or shrink) each image until its shorter side has so many pixels; takes the place of `enlarge`."""


class AugmentConfig(_Strict):
    """What training does to an image, in the order of the fields. Everything is seeded by epoch and image."""

    copy_paste: float = Field(default=0.0, ge=0, le=1)
    """Probability of pasting copies of tiny objects from other images."""
    copy_paste_max_objects: int = Field(default=8, ge=1)
    """Copies per image, at most."""
    copy_paste_max_size: float = Field(default=32.0, gt=0)
    """Only objects up to this size (square root of the area, px) are copied."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a vertical flip (images from above)."""
    rot90: float = Field(default=0.0, ge=0, le=1)
    """Probability of a quarter turn (images from straight above)."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random enlargement before the crop."""
    crop: tuple[int, int] | None = None
    """(height, width) of a random crop; smaller images are padded. None keeps the whole image."""
    toward_objects: float = Field(default=0.0, ge=0, le=1)
    """Probability that the crop is placed around an object; in huge images most random crops are empty."""
    square_crops: list[float] = []
    """In place of `scale`: cut a square of one of these shares of the shorter side around an object, and resize it to `crop`."""
    photometric: float = Field(default=0.0, ge=0, le=1)
    """Strength of random brightness, contrast, gamma, noise and blur; 0 is off."""
    oversample: float = Field(default=0.0, ge=0)
    """Repeat images with rare classes or tiny objects: 0 is off, 1 the full repeat factor."""


class AnchorConfig(_Strict):
    """Anchors, relative to the pyramid's strides, or fitted to the training set."""

    base_scale: float = Field(default=2.0, gt=0)
    """Anchor size over stride: 2 gives 8 px at stride 4."""
    ratios: list[float] = [0.5, 1.0, 2.0]
    """Height over width."""
    octaves: int = Field(default=1, ge=1)
    """Sizes per level between one level's and the next's."""
    fit: bool = False
    """Take base scale and ratios from the training set's boxes instead, and print them."""
    receptive_fields: bool = False
    """RFLA's: one size a level, half the backbone's receptive field there; `base_scale` and `octaves` do not count."""


class AssignerConfig(_Strict):
    """Which anchor or point learns which object."""

    name: Literal["max_iou", "nwd", "simd", "rfla", "center_sampling"]
    """`max_iou` is the anchors' usual rule, `center_sampling` that of FCOS."""
    foreground: float | None = Field(default=None, ge=0, le=1)
    """Similarity from which a prior learns an object; None takes the detector's own. Not of `rfla`, which ranks."""
    background: float | None = Field(default=None, ge=0, le=1)
    """Similarity below which a prior is background; None takes the detector's own."""
    constant: float | None = Field(default=None, gt=0)
    """NWD's C in px; None takes the mean size of the training set's objects."""
    ratios: tuple[float, float] | None = None
    """SimD's m and n; None takes them from the training set."""
    distance: Literal["kl", "wasserstein"] = "kl"
    """RFLA's distance of receptive field and object."""
    k: int = Field(default=3, ge=1)
    """RFLA: priors that each object takes at first."""
    decay: float = Field(default=0.9, gt=0, le=1)
    """RFLA: what the fields are shrunk by before each object takes one more."""


class ModelConfig(_Strict):
    """Which detector: a zoo name and its sizes."""

    name: str = "faster_rcnn:mobilenet_v2"
    """DETECTOR:BACKBONE[:NECK], as `flyspeck models` lists them."""
    weights: str | None = None
    """Backbone weights: a file, a name that torchvision (IMAGENET1K_V1) or timm (DEFAULT, d2_in1k) has, or None for random."""
    start: str | None = None
    """Fine-tuning: a run folder or weights file whose tensors are taken over where name and shape agree."""
    width: float = Field(default=1.0, gt=0)
    """Width multiplier of the backbone, and of nothing else."""
    channels: int = Field(default=256, ge=4)
    """Channels of neck and head: 64 on a laptop, 256 in the papers."""
    levels: str | None = None
    """Pyramid levels: 2-6 is strides 4 to 64, 1-5 strides 2 to 32, for backbones that have a map of stride 2; None takes the
    detector's own (of a backbone with a stride elimination: on the maps that this enlarged)."""
    norm: Literal["none", "bn", "gn"] = "none"
    """Norm layers of neck and head."""
    frozen_stages: int = Field(default=0, ge=0)
    """Backbone stages that do not train: 1 freezes the stem and stage 1, 2 also stage 2, and so on; 0 freezes nothing."""
    freeze_norms: bool = False
    """Keep the backbone's norm statistics and weights as loaded."""
    anchors: AnchorConfig | None = None
    """Of detectors that have anchors; None takes the detector's own."""
    assigner: AssignerConfig | None = None
    """Which prior learns which object; None takes the detector's own rule."""
    fusion: list[float] | Literal["one", "three", "attention", "statistic"] | None = None
    """Fusion factors of the pyramid, finest edge first, or who finds them; `statistic` is S-alpha of the training set."""
    sigma: float | None = Field(default=None, gt=0)
    """Sigma-power initialisation of the pyramid (the fusion-factor paper, sec. 3.3); wants `norm: none`."""
    head: dict[str, Any] = {}
    """Further keyword arguments of the detector's builder (depth, hidden, samples, …)."""
    max_detections: int = Field(default=500, ge=1)
    """Detections kept per image."""
    min_score: float = Field(default=0.01, ge=0, le=1)
    """Detections with lower scores never leave the model."""
    nms: float = Field(default=0.5, gt=0, le=1)
    """IoU above which a worse box of the same class is dropped."""
    soft_nms: Literal["linear", "gaussian"] | None = None
    """Lower the scores of overlapping boxes instead of dropping them; `nms` is then the linear form's bound."""


class TrainConfig(_Strict):
    """The optimisation."""

    epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Images per step over all processes; the learning rate belongs to this number."""
    accumulate: int = Field(default=1, ge=1)
    """Split a batch into this many forward passes."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD; with Adam its first beta."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second beta. In runs of a few thousand steps 0.99 forgets the first, large gradients in time."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Not applied to norm layers and biases."""
    warmup_steps: int = Field(default=200, ge=0)
    schedule: Literal["step", "cosine", "cosine_restarts", "constant"] = "step"
    milestones: list[float] = [2 / 3, 11 / 12]
    """Where the step schedule multiplies by 0.1, as shares of the run (8 and 11 of 12 epochs)."""
    final_lr: float = Field(default=0.01, ge=0, le=1)
    """Where the cosine ends, as a share of `lr`."""
    restart_epochs: int = Field(default=30, ge=1)
    """Epochs of one cosine of `cosine_restarts`, which then begins again at the full rate."""
    clip_grad: float | None = 35.0
    """Largest norm of the gradient."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    seed: int = 0
    workers: int | None = None
    """Loader processes; None fits them to the machine."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two lines of the log."""
    eval_every: int = Field(default=1, ge=1)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints within an epoch; None saves at the end of each epoch only."""
    tensorboard: bool = False


class EvaluateConfig(_Strict):
    """How the run measures itself."""

    protocol: str = "flyspeck"
    """A protocol by name; see `flyspeck eval --help`."""
    best: str = "ap50_tiny"
    """The figure that picks the best checkpoint."""
    batch_size: int = Field(default=8, ge=1)
    tile: tuple[int, int] | None = None
    """(height, width) of inference tiles; None: images up to twice the training size go whole."""


class PredictorConfig(_Strict):
    """DPNet's factor predictor (DFP), trained on the frozen detector when its training has ended."""

    guidance: bool = True
    """Labels from the guidance loss (Algorithm 2); False: from the detector's own losses."""
    ratio: float = Field(default=1.1, ge=1)
    """T: a factor is good enough where its loss is at most so many times the least (Eq. 10)."""
    slack: float | None = Field(default=None, ge=0)
    """Takes the place of `ratio`: good enough is up to so much more in the sum over the image's objects. AP counts objects
    and not images, so this beats random choices where Eq. 10 hardly does (docs/papers/dpnet.md); 1.0 is a good start."""
    widths: list[int] | None = None
    """Channels of the blocks; None fits them to the host (128, 128, 256, 256 on a ResNet-50)."""
    pool: int = Field(default=4, ge=1)
    """The map is average-pooled by this before the predictor."""
    statistics: bool = True
    """Learn the statistic branch too."""
    weight: float = Field(default=1.0, gt=0)
    """lambda: the factors' loss against the statistics'."""
    rule: Literal["cheapest", "argmax"] = "cheapest"
    """The smallest factor that is probably good enough (the paper's aim), or the most probable one (its Eq. 4)."""
    threshold: float = Field(default=0.5, ge=0)
    """Of `cheapest`: the probability from which a factor is good enough."""
    epochs: int = Field(default=12, ge=1)
    """Passes over the images. A few hundred are learnt by heart in 40."""
    batch_size: int = Field(default=32, ge=2)
    lr: float = Field(default=0.001, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    seed: int = 0


class DynamicConfig(_Strict):
    """Dynamic pooling (DPNet): a stage's stride becomes a resize by a factor, and one detector serves all factors."""

    factors: list[float] = [0.5, 0.33, 0.25]
    """Down-sampling factors; 0.5 is the stride of 2."""
    default: float = 0.5
    """The factor that acts where nobody chooses; a `single` training learns at this one."""
    stage: str = "stage2"
    """The stage before which maps are resized."""
    stride: Literal["kept", "replaced"] = "kept"
    """`kept`: resize by twice the factor in front of the strided block, so that 0.5 is exactly the static detector;
    `replaced`: the paper's, the stride becomes 1 and the resize is by the factor (costs 4-5 points in short trainings)."""
    norms: Literal["shared", "private", "all"] = "private"
    """Norm layers of each factor (ANM): `private` after the resize, `all` everywhere, `shared` none."""
    train: Literal["mixed", "single"] = "mixed"
    """`mixed`: every batch at all factors (MST); `single`: at the default alone. All factors are measured either way."""
    predictor: PredictorConfig | None = None
    """Also train the predictor, at the end of the run, into its folder `dpnet`; `flyspeck dpnet fit` does it later."""

    @model_validator(mode="after")
    def _pairs(self) -> DynamicConfig:
        if self.train == "single" and self.norms != "shared":
            raise ValueError("a single training never trains the other factors' norms: set norms to shared")
        if self.default not in self.factors:
            raise ValueError(f"the factors {self.factors} do not have the default {self.default:g}")
        return self


class Recipe(_Strict):
    """One run."""

    name: str = "run"
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    dynamic: DynamicConfig | None = None
    """None: a detector of one resolution."""
    distill: DistillConfig | None = None
    """For `flyspeck distill`; None: the detector learns from the ground truth alone."""

    @model_validator(mode="after")
    def _pairs(self) -> Recipe:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not a multiple of train.accumulate {self.train.accumulate}"
            )
        low, high = self.augment.scale
        if not 0 < low <= high:
            raise ValueError(f"augment.scale is a range (low, high) above 0, got ({low}, {high})")
        squares, crop = self.augment.square_crops, self.augment.crop
        if squares and (crop is None or crop[0] != crop[1]):
            raise ValueError(
                f"augment.square_crops are resized to augment.crop: give a square, as [640, 640], not {crop}"
            )
        if any(not 0 < share <= 1 for share in squares):
            raise ValueError(f"augment.square_crops are shares of the shorter side in (0, 1], got {squares}")
        if self.data.enlarge != 1 and self.data.short_side is not None:
            raise ValueError("data.enlarge and data.short_side exclude each other: give one of them")
        return self


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe file; `overrides` are `section.key=value` as on the command line, values in YAML.

    Paths in the recipe become absolute. Raises UserError naming the file, the key and the nearest known key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such recipe", where=path, fix="give a YAML file; recipes/ has examples")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", where=path) from None
    if not isinstance(content, dict):
        raise UserError(
            "a recipe is a mapping of sections", where=path, fix=f"sections: {', '.join(Recipe.model_fields)}"
        )
    for override in overrides or []:
        apply_change(content, override)
    recipe = parse_recipe(content, where=path)
    return resolve_paths(recipe, path.parent)


def parse_recipe(content: dict[str, Any], *, where: Path | str = "recipe") -> Recipe:
    """A mapping to a checked `Recipe`."""
    try:
        return Recipe.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        if first["type"] == "extra_forbidden":
            known = _known_keys(first["loc"])
            raise UserError(
                f"unknown key '{place}'{more}", where=where, fix=nearest(str(first["loc"][-1]), known)
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first.get("input"), dict) else f", got {first.get('input')!r}"
        raise UserError(f"{place + ': ' if place else ''}{message}{got}{more}", where=where) from None


def resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The same recipe with its paths (`data`, `model`, `distill`) made absolute; torchvision's names stay."""
    data = {key: str(_absolute(folder, getattr(recipe.data, key))) for key in ("train", "val")}
    weights = recipe.model.weights
    if weights is not None and ("/" in weights or "." in weights):
        weights = str(_absolute(folder, weights))
    start = None if recipe.model.start is None else str(_absolute(folder, recipe.model.start))
    distill = recipe.distill
    if distill is not None:
        paths = (
            {"teacher": distill.teacher}
            if distill.cache is None
            else {"teacher": distill.teacher, "cache": distill.cache}
        )
        distill = distill.model_copy(update={key: str(_absolute(folder, path)) for key, path in paths.items()})
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data),
            "model": recipe.model.model_copy(update={"weights": weights, "start": start}),
            "distill": distill,
        }
    )


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _absolute(folder: Path, value: str) -> Path:
    path = Path(value).expanduser()
    return path if path.is_absolute() else (folder / path).resolve()


def apply_change(content: dict[str, Any], override: str) -> None:
    """Sets one field of a recipe's mapping, in place: `section.key=value`, the value in YAML."""
    key, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' sets nothing", where="--set", fix="write section.key=value")
    *parents, last = key.strip().split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UserError(f"'{parent}' is not a section", where=f"--set {override}")
    place[last] = yaml.safe_load(value)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Recipe
    for part in location[:-1]:
        kinds = get_args(model.model_fields[part].annotation) or (model.model_fields[part].annotation,)
        model = next(kind for kind in kinds if kind is not type(None))  # a section that may be None
    return list(model.model_fields)
