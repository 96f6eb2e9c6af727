"""The sections of a recipe that are about data, training and measuring. Every field has its sentence below it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, model_validator

from flyspeck.errors import UserError
from flyspeck.options import Count, Options, Positive, Seed, Share

if TYPE_CHECKING:
    from flyspeck.data.transforms import Transform

PATH: dict[str, JsonValue] = {"format": "path"}
"""Marks a field that names a file or folder: relative to the recipe, and to the working folder on the command line."""
PATH_OR_NAME: dict[str, JsonValue] = {"format": "path-or-name"}
"""Likewise where it holds a slash or a dot; any other word is a name."""
Pair = tuple[float, float]
"""Low and high."""
Side = Annotated[int, Field(ge=1, le=1_000_000)]
"""Pixels."""


class DataConfig(Options):
    """Where the images are and how they are read."""

    train: str = Field(json_schema_extra=PATH)
    """Annotations to learn from: any format that `flyspeck data inspect` reads."""
    val: str = Field(json_schema_extra=PATH)
    """Annotations to measure on."""
    format: str | None = None
    """Name of the format; null looks at the files."""
    pixels: Literal["half-open", "from-0", "from-1"] | None = None
    """What whole-pixel corners mean where the format leaves it open (VOC); null takes what the writing tool means."""
    encoding: str | None = None
    """Encoding of text files that are not UTF-8 and do not say what they are: cp1252, gbk, …"""
    classes: list[str] | None = None
    """Classes to learn, in order; null takes all. Boxes of the others are left out."""
    channels: int | None = Field(default=None, ge=1, le=1024)
    """Bands that the detector takes; null takes what all images have, and 3 of grey and colour together. Of images with more
    bands the first ones are read, grey and colour are converted into each other, and alpha counts where it makes the number."""
    bands: list[Count] | None = Field(default=None, min_length=1)
    """Bands to read of each image, counted from 1, alpha among them; null takes all but alpha."""
    value_range: Pair | list[Pair] | None = None
    """(low, high), the values that become black and white, for all bands or one pair a band; null leaves 8 bits as they are
    and takes what metadata or the training set say of others."""
    metres_per_pixel: float | None = Field(default=None, gt=0, le=1e5)
    """Metres on the ground that a pixel of the images covers, kept with the weights, so that `predict` shows rasters of another
    ground resolution at that of the training; null takes what GeoTIFFs and DOTA's headers say, if they do."""
    cache: Literal["none", "ram"] = "none"
    """Keep decoded images in memory (a set of small images trains faster)."""
    check_files: Literal["none", "headers", "full"] = "headers"
    """What is looked at of every image of both sets before the first step: nothing, its header, or all of its pixels."""
    max_objects: Count | None = None
    """Leave out training images with more objects (the papers use 200)."""
    max_broken_share: Share = 0.0
    """Share of unreadable images, and of broken annotations, that training may skip; they are counted and listed."""
    train_limit: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Use only so many training images, evenly spread over the file."""
    val_limit: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Use only so many validation images, evenly spread over the file."""
    enlarge: float = Field(default=1.0, gt=0, le=100)
    """The network learns from and looks at images enlarged so much; results and size bins stay in the files' pixels."""
    short_side: Side | None = None
    """Enlarge (or shrink) each image until its shorter side has so many pixels; takes the place of `enlarge`."""
    squeeze: tuple[Side, Side] | None = None
    """(height, width): the network sees every image squeezed to this size, its proportions not kept (SSD's way); results and
    size bins stay in the files' pixels, and augmentation works on the whole file before. Takes the place of `enlarge`."""


class ExtraTransform(Options):
    """A transform by name; all further keys are its own (see docs/how-to/extend.md)."""

    model_config = ConfigDict(extra="allow")

    name: str
    """`mosaic`, `resize`, or that of a transform that a plugin has registered."""
    at: Literal["start", "end"] = "end"
    """Before all other augmentation, on the whole image, or after it, on what the network sees."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        return content  # the transform knows them

    @model_validator(mode="after")
    def _build_once(self) -> Self:
        self.build()
        return self

    @property
    def first(self) -> bool:
        """Whether it stands before all other augmentation."""
        return self.at == "start"

    def build(self) -> Transform:
        """The transform. Raises UserError for a name or a key that is not known."""
        from flyspeck.data.transforms import transform_named

        return transform_named(self.name, self.model_extra or {})


class ScaleMatchConfig(Options):
    """Scale Match at every load: each image is resized so that its objects are as large as those of another set."""

    target: str = Field(json_schema_extra=PATH)
    """Annotations whose object sizes, in the pixels of their files, are to be met: those to fine-tune on."""
    match: Literal["sm", "msm"] = "sm"
    """`sm` draws a size from the target's at every load, `msm` maps the image's mean size to the target's quantile (SM+ is made
    on disk: `flyspeck data scale-match`)."""
    bins: int = Field(default=100, ge=3, le=100_000)
    """Of the histogram of sizes; the first and the last hold the few smallest and largest."""
    max_scale: Positive = 2.0
    """Images are enlarged by no more."""
    max_side: Side = 4096
    """No image gets a longer side."""
    min_side: float = Field(default=1.0, ge=0)
    """Objects whose shorter side gets below this, in px, are dropped."""


class AugmentConfig(Options):
    """What training does to an image, in the order of the fields. Everything is seeded by epoch and image."""

    scale_match: ScaleMatchConfig | None = None
    """Scale Match, drawn at every load; null leaves images at their scale."""
    copy_paste: Share = 0.0
    """Probability of pasting copies of tiny objects from other images."""
    copy_paste_max_objects: Count = 8
    """Copies per image, at most."""
    copy_paste_max_size: Positive = 32.0
    """Only objects up to this size (square root of the area, px) are copied."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = 0.0
    """Probability of a vertical flip (images from above)."""
    rot90: Share = 0.0
    """Probability of a quarter turn (images from straight above)."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest angle, in degrees either way, of a random rotation about the image's middle."""
    rotate_probability: Share = 0.5
    """Probability of that rotation."""
    rotated_boxes: Literal["corners", "ellipse"] = "corners"
    """The upright box that a turned one becomes: around its corners (an 8 px square is one of 11 px at 45 degrees), or around the
    ellipse within it (squares keep their size)."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Range of the random enlargement before the crop. With `data.squeeze`: above 1 a window of the image is squeezed (1.5: of
    two thirds of its sides), below 1 the image on a canvas of its mean colour (SSD's zoom-out)."""
    crop: tuple[Side, Side] | None = None
    """(height, width) of a random crop; smaller images are padded. null keeps the whole image."""
    toward_objects: Share = 0.0
    """Probability that the crop is placed around an object; in huge images most random crops are empty."""
    square_crops: list[float] = Field(default=[])
    """In place of `scale`: cut a square of one of these shares of the shorter side around an object, and resize it to `crop`."""
    photometric: Share = 0.0
    """Strength of random brightness, contrast, gamma, noise and blur; 0 is off."""
    extra: list[ExtraTransform] = Field(default=[])
    """Further transforms by name, in this order: `{name: mosaic, size: [640, 640]}`, or a plugin's."""
    oversample: float = Field(default=0.0, ge=0)
    """Repeat images with rare classes or tiny objects: 0 is off, 1 the full repeat factor."""


OF_SGD: Mapping[str, Any] = {
    "lr": 0.01, "weight_decay": 1e-4, "warmup_steps": 200, "schedule": "step", "clip_grad": 35.0, "ema": None
}  # fmt: skip
"""What a recipe that says `optimizer: sgd` means where it says no more: as the papers train."""
MOST_OF_ADAM = 0.005
"""A learning rate above this one was meant for SGD."""


class TrainConfig(Options):
    """The optimisation. Unsaid, it is AdamW as `flyspeck init` takes it; with `optimizer: sgd`, SGD as the papers have it."""

    epochs: Count = 12
    """Passes over the training set."""
    minutes: float | None = Field(default=None, gt=0, le=1e6)
    """End the run after so many minutes on the clock, evaluations and checkpoints included, whatever epoch it is in; the
    schedule follows the time used, so that the learning rate is down at the end. Evaluations before the last then take a fifth
    of the time at most. In place of `epochs`."""
    patience: Count | None = None
    """Stop early after so many evaluations in a row without a gain in `evaluate.best`; null never stops early."""
    min_gain: Share = 0.0
    """A rise of `evaluate.best` is a gain where it is larger than this (0.01: a point of 100)."""
    anneal: Share = 0.1
    """A run that ends before its time (by `patience`, or resumed with `--finish`) goes through the rest of its schedule in so
    much more training, as a share of what it had: its learning rate is brought down, not cut. 0 ends at once."""
    batch_size: Count = 8
    """Images per step over all processes; the learning rate belongs to this number."""
    accumulate: Count = 1
    """Split a batch into this many forward passes."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """SGD with momentum, Adam, or Adam with decoupled weight decay."""
    lr: Positive = 0.001
    """Learning rate after the warm-up. Unsaid, 0.01 with SGD."""
    backbone_lr: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD; with Adam its first beta."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's second beta. In runs of a few thousand steps 0.99 forgets the first, large gradients in time."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Not applied to norm layers and biases. Unsaid, 0.0001 with SGD and Adam, which add it to the
    gradient."""
    warmup_steps: int | None = Field(default=None, ge=0, le=10**9)
    """Steps in which the learning rate rises in a line from near 0; null: 200, but no more than a tenth of the run. Unsaid, 200
    with SGD."""
    schedule: Literal["step", "cosine", "cosine_restarts", "constant"] = "cosine"
    """How the learning rate goes after the warm-up: in steps down, along a cosine, along several, or not at all. Unsaid, in steps
    with SGD."""
    milestones: list[Share] = Field(default=[2 / 3, 11 / 12])
    """Where the step schedule multiplies by 0.1, as shares of the run (8 and 11 of 12 epochs)."""
    final_lr: Share = 0.01
    """Where the cosine ends, as a share of `lr`."""
    restart_epochs: Count = 30
    """Epochs of one cosine of `cosine_restarts`, which then begins again at the full rate."""
    clip_grad: Positive | None = 10.0
    """Largest norm of the gradient; null leaves it as it is. Unsaid, 35 with SGD."""
    ema: float | None = Field(default=0.998, gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is evaluated and kept; in the first steps it is
    shorter. null: none. Unsaid, none with SGD."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward pass; the weights stay fp32."""
    channels_last: bool = True
    """Memory layout of the convolutions: faster on most machines, the same numbers up to rounding."""
    seed: Seed = 0
    """Of the first weights, the order of the images and what is done to them."""
    workers: int | None = Field(default=None, ge=0, le=1024)
    """Loader processes; null fits them to the machine."""
    log_every: Count = 20
    """Steps between two lines of the log."""
    eval_every: Count = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints within an epoch. One is saved anyway at the end of each epoch, and after
    `checkpoint_minutes`."""
    checkpoint_minutes: Positive = 10.0
    """Minutes without a checkpoint after which one is saved within an epoch: so much work is lost at most by a kill."""
    tensorboard: bool = False
    """Also write the curves for TensorBoard, into the run folder."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_optimizer(cls, given: Any) -> Any:
        """What is unsaid beside SGD is SGD's."""
        if not isinstance(given, Mapping):
            return given
        if given.get("optimizer") == "sgd":
            return {**OF_SGD, **given}
        if given.get("optimizer") == "adam":
            given = {"weight_decay": 1e-4, **given}
        rate = given.get("lr")
        if "optimizer" not in given and isinstance(rate, int | float) and MOST_OF_ADAM < rate < math.inf:
            raise UserError(
                f"an lr of {rate:g} is SGD's, which was the optimiser of a recipe that names none, and AdamW is now",
                where="train.lr",
                fix="write train.optimizer: sgd too, or a rate of about 0.001",
            )
        return given

    @property
    def whole_schedule(self) -> str:
        """That of a run of other `epochs`: several cosines of so many epochs each would not end with such a run."""
        return "cosine" if self.schedule == "cosine_restarts" else self.schedule

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.minutes is not None and self.schedule == "cosine_restarts":
            raise ValueError("minutes may end a run in the middle of a cosine of cosine_restarts: take schedule cosine")
        return self


class EvaluateConfig(Options):
    """How the run measures itself."""

    protocol: str = "flyspeck"
    """A protocol by name; see `flyspeck eval --help`."""
    best: str = "ap50_tiny"
    """The metric that picks the best checkpoint: the highest value, of a miss rate (`mr50_reasonable`) the lowest."""
    batch_size: Count = 8
    """Images, or tiles, at a time at most: as many as fit into half a gigabyte."""
    short_side: Side | None = None
    """Measure, and later predict, at images of such a shorter side; null: as large as the network learns from them (`data`)."""
    long_side: Side | None = None
    """With `short_side`: pixels that the longer side may have at most."""
    tile: tuple[Side, Side] | Literal["off"] | None = None
    """(height, width), in pixels that the network sees, of the tiles in which images larger than that are looked at; `off`: all
    images go whole, whatever memory that takes; null: tiles of the training size, for images of more than twice its sides, of
    more than 2 megapixels, or of more than fit into half a gigabyte."""

    @model_validator(mode="before")
    @classmethod
    def _off_is_a_word(cls, content: Any) -> Any:
        """YAML takes a bare `off` for false."""
        if isinstance(content, dict) and content.get("tile") is False:
            return {**content, "tile": "off"}
        return content
