"""From a recipe's `data` and `augment` to annotation tables and a loader."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey, choose_rule
from flyspeck.data.bands import KEY, PixelRule, Ranges, rule_of
from flyspeck.data.copy_paste import CopyPaste, paste_sources
from flyspeck.data.enlarge import Enlarge, enlarged_table
from flyspeck.data.loading import DetectionDataset, Loader, default_workers, make_loader
from flyspeck.data.matched_scale import matched_scale
from flyspeck.data.readers import read_annotations
from flyspeck.data.rotate import RandomRotation
from flyspeck.data.sampling import EpochSampler, repeat_factors
from flyspeck.data.scale_match import SizeMatchRule
from flyspeck.data.square_crop import RandomSquareCrop
from flyspeck.data.transforms import Compose, Photometric, RandomFlip, RandomScaleCrop, RandomTurn, Transform
from flyspeck.data.zoom import RandomZoom, Squeezed
from flyspeck.errors import UserError, counted, nearest
from flyspeck.train.checkpoint import load_weights
from flyspeck.train.sections import AugmentConfig, DataConfig, EvaluateConfig, Pair, ScaleMatchConfig, TrainConfig


class LoadedSections(Protocol):
    """What is read here of a recipe."""

    data: DataConfig
    augment: AugmentConfig
    train: TrainConfig


log = logging.getLogger("flyspeck")
RGB = 3
"""Bands of colour."""


def read_sets(data: DataConfig) -> tuple[Annotations, Annotations]:
    """The training and the validation table, limited and filtered as the recipe says, with the same classes."""
    train, val = _read(data, data.train, data.classes), _read(data, data.val, data.classes or None)
    if data.classes is None and train.classes:
        val = _read(data, data.val, train.classes)
    if val.pixels != train.pixels and not (val.pixels_known and train.pixels_known):
        # One rule for the run: a guess gives way to what a tool's marks say, or to the training set's guess.
        leader, other = (val, data.train) if val.pixels_known else (train, data.val)
        again = _read(data.model_copy(update={"pixels": leader.pixels}), other, data.classes or train.classes)
        train, val = (again, val) if leader is val else (train, again)
        log.warning(
            "%s: corners are read as %s, as those of the other set; data.pixels says otherwise", other, leader.pixels
        )
    _check_classes(data, train, val)
    if data.max_objects is not None:
        counts = np.bincount(train.image_index[train.labels >= 0], minlength=len(train))
        train = train.select_images(counts <= data.max_objects)
    return spread(train, data.train_limit), spread(val, data.val_limit)


def _read(data: DataConfig, source: str, classes: Sequence[str] | None) -> Annotations:
    return read_annotations(
        source,
        format=data.format,
        classes=classes,
        pixels=data.pixels,
        encoding=data.encoding,
        absent_classes=True,  # a small validation set may lack a rare class; `_check_classes` looks at both
    )


def _check_classes(data: DataConfig, train: Annotations, val: Annotations) -> None:
    """Raises UserError where there is nothing to learn, or a class that neither set has."""
    if not train.classes:
        raise UserError("no classes to learn", where=data.train, fix="annotate some objects or name data.classes")
    if not (train.labels >= 0).any():
        regions = f" ({counted(train.num_boxes, 'ignore region')})" if train.num_boxes else ""
        what = f"no objects to learn{regions}"
        raise UserError(what, where=train.source, fix="are the label files where they should be? flyspeck data inspect")
    if data.classes is not None:
        present = {
            name
            for table in (train, val)
            for name in np.array(table.classes)[np.unique(table.labels[table.labels >= 0])]
        }
        absent = [name for name in data.classes if name not in present]
        if absent:
            known = _read(data, data.train, None).classes
            if absent[0] not in known:
                raise UserError(
                    f"class '{absent[0]}' is in neither set", where="data.classes", fix=nearest(absent[0], known)
                )
            log.warning("no object of %s in either set", ", ".join(absent))


def reading_rule(data: DataConfig, train: Survey, val: Survey, *, resumed: Path | None = None) -> PixelRule:
    """How the images are read: from the recipe and all headers; of a run of a version that had no such rule, what it did."""
    if resumed is not None and (resumed / "last.safetensors").is_file():
        _, description = load_weights(resumed / "last.safetensors")
        if KEY not in description:
            return rule_of(description)
    return choose_rule(
        train, val, channels=data.channels, bands=data.bands, value_range=_pairs(data.value_range), say=log.warning
    )


def _pairs(given: Pair | list[Pair] | None) -> Ranges | None:
    """One pair, or one a band, as the recipe says it."""
    if given is None:
        return None
    found: list[Pair] = [given] if isinstance(given, tuple) else given
    for low, high in found:
        if not low < high:
            raise UserError(
                f"a range from {low:g} to {high:g}", where="data.value_range", fix="give the lower value first"
            )
    return tuple(found)


def enlargement(data: DataConfig) -> Enlarge:
    """How the recipe enlarges or squeezes images."""
    return Enlarge(data.enlarge, data.short_side, data.squeeze)


def enlargement_in_use(data: DataConfig, evaluate: EvaluateConfig) -> Enlarge:
    """How large the recipe's network sees images where it is measured, and where it is used."""
    if evaluate.short_side is None:
        return enlargement(data)
    return Enlarge(short_side=evaluate.short_side, long_side=evaluate.long_side)


def spread(table: Annotations, limit: int | None) -> Annotations:
    """At most `limit` images, evenly spread over the table: video frames beside each other are nearly the same."""
    if limit is None or limit >= len(table):
        return table
    return table.select_images(np.linspace(0, len(table) - 1, limit).round().astype(np.int64))


def augmentation(
    config: AugmentConfig,
    train: Annotations,
    *,
    bands: int | None = None,
    squeeze: tuple[int, int] | None = None,
) -> Transform:
    """The recipe's transforms, in the order of its fields; what needs colour stands aside where `bands` are not three.

    `train` are the images as they come in. With `squeeze` (H, W), what moves objects works on the whole image, and the last
    that does makes it that size.
    """
    steps: list[Transform] = [extra.build() for extra in config.extra if extra.first]
    if config.scale_match is not None:
        steps.append(_scale_match(config.scale_match, train))
    if config.copy_paste > 0:
        # Every class is copied equally often: the rare ones are what copying is for.
        sources = paste_sources(train, max_size=config.copy_paste_max_size, rare_power=1.0)
        steps.append(
            CopyPaste(
                probability=config.copy_paste if sources is not None else 0.0,
                max_objects=config.copy_paste_max_objects,
                max_size=config.copy_paste_max_size,
                sources=sources,
            )
        )
    flips: list[Transform] = []
    if config.flip > 0 or config.vertical_flip > 0:
        flips.append(RandomFlip(config.flip, config.vertical_flip))
    turns: list[Transform] = [RandomTurn(config.rot90)] if config.rot90 > 0 else []
    if config.rotate > 0 and config.rotate_probability > 0:
        turns.append(RandomRotation(config.rotate, config.rotate_probability, config.rotated_boxes))
    if squeeze is None:
        steps += [*flips, *turns, *_cut(config)]
    else:
        # Flips last: they are exact, so that a flipped image is the flipped image of the evaluation, bit for bit.
        steps += [*turns, RandomZoom(squeeze, config.scale, config.toward_objects), *flips]
    if config.photometric > 0:
        steps.append(Photometric(config.photometric))
    steps = [step for step in steps if not _stands_aside(step, bands)]
    last = [step for extra in config.extra if not extra.first and not _stands_aside(step := extra.build(), bands)]
    return Compose((*steps, *(last if squeeze is None else [Squeezed(step, squeeze) for step in last])))


def _scale_match(config: ScaleMatchConfig, train: Annotations) -> Transform:
    rule = SizeMatchRule(
        method=config.match,
        bins=config.bins,
        max_scale=config.max_scale,
        max_side=config.max_side,
        min_side=config.min_side,
    )
    return matched_scale(train, read_annotations(config.target), rule)


def _stands_aside(step: Transform, bands: int | None) -> bool:
    """Whether a step is left out, or a part of it rests, for lack of colour; said once a run."""
    whole, part = getattr(step, "colour_only", False), getattr(step, "colour_part", "")
    if bands in (None, RGB) or not (whole or (part and bands != 1)):
        return False
    what = type(step).__name__ if whole else f"{part} of {type(step).__name__}"
    log.info("%s needs three bands and stands aside: the images have %d", what, bands)
    return bool(whole)


def _cut(config: AugmentConfig) -> list[Transform]:
    """What resizes and crops, where images keep their proportions."""
    if config.square_crops and config.crop is not None:
        return [RandomSquareCrop(config.crop[0], tuple(config.square_crops))]
    if config.crop is not None or config.scale != (1.0, 1.0):
        return [RandomScaleCrop(scale=config.scale, size=config.crop, toward_objects=config.toward_objects)]
    return []


def training_loader(
    recipe: LoadedSections,
    train: Annotations,
    *,
    rule: PixelRule,
    divisor: int,
    smallest: int = 1,
    rank: int,
    world_size: int,
    pin_memory: bool = False,
) -> Loader:
    """Batches of one process: its share of the global batch, `accumulate` of them a step.

    `divisor` and `smallest` are the detector's, see `make_loader`.
    """
    config = recipe.train
    share, rest = divmod(config.batch_size, config.accumulate * world_size)
    if rest or share == 0:
        raise UserError(
            f"a batch of {config.batch_size} does not divide over {world_size} processes x {config.accumulate} parts",
            where="train.batch_size",
        )
    sizes = enlargement(recipe.data)
    read = sizes if sizes.squeeze is None else Enlarge()  # the augmentation squeezes, after it had the whole image
    dataset = DetectionDataset(
        train,
        rule=rule,
        transform=augmentation(recipe.augment, enlarged_table(train, read), bands=rule.channels, squeeze=sizes.squeeze),
        cache=recipe.data.cache,
        enlarge=read,
        seed=config.seed,
    )
    repeats = None
    if recipe.augment.oversample > 0:
        strength = recipe.augment.oversample
        repeats = repeat_factors(train, rare_below=0.3 * strength, tiny_gain=strength)
    sampler = EpochSampler(len(train), seed=config.seed, rank=rank, world_size=world_size, repeats=repeats)
    return make_loader(
        dataset,
        batch_size=share,
        sampler=sampler,
        workers=default_workers(world_size) if config.workers is None else config.workers,
        seed=config.seed,
        divisor=divisor,
        smallest=smallest,
        max_broken_share=recipe.data.max_broken_share,
        pin_memory=pin_memory,
    )


def data_hash(*tables: Annotations) -> str:
    """SHA-256 over the images' names and every column that training sees."""
    digest = hashlib.sha256()
    for table in tables:
        digest.update("\n".join(table.file_names).encode())
        digest.update("\n".join(table.classes).encode())
        for column in (table.sizes, table.image_index, table.boxes, table.labels, table.ignore, table.crowd):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
