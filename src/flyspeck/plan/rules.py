"""Every choice of a planned training, in one place, each with its reason and with what it rests on.

A rule takes the data's fingerprint and the machine, and gives values of a recipe's keys. What it rests on is a page of the
documentation and a heading there (`choices.MEASURED`), where somebody can read the numbers, or `JUDGED`: then it is our
judgement and was not measured, and says so in the recipe too. `flyspeck auto` measures some of them on the data at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from flyspeck.data.implications import CELLS
from flyspeck.errors import counted
from flyspeck.plan.choices import JUDGED, Choice, Machine, Plan, Speed, Tier, named
from flyspeck.plan.fingerprint import Fingerprint
from flyspeck.plan.tiers import FEW_PASSES

STRIDE = 4
"""Of the finest map of all detectors below."""
SMALL = CELLS * STRIDE
"""Pixels that the network should see of a small object (25 % are smaller)."""
LARGE = 24.0
"""An object of which the network sees more than this shows all that it needs in a smaller image."""
CROPS = ((256, 320), (384, 480), (512, 640))
"""(height, width) of crops, for images in landscape format."""
LEAST_IMAGE = (128, 160)
"""(short side, long side) below which an image is not shrunk for what that saves."""
CROWDED = 0.1
"""Share of objects that `tiny` suppression would take for a neighbour, from which it is not used."""
FEW, SHORT = 500, 3600
"""Images to learn from, and images that are seen in all, up to which a trained detector is a better start than a backbone:
measured on 10 and 50, of which 2000 were seen; of 50 it was none any more after 6000.
"""
ONE_SIZE = 1.01
"""Sizes that differ by no more are one: formats of text round them."""
LEAST_STEPS = 60
"""Optimiser steps below which nothing is learnt that is worth a name."""


def enlargement(found: Fingerprint) -> Choice:
    """By how much the network sees images enlarged, or shrunk. Small objects come first: those larger than any crop do not shrink
    them away.
    """
    small, long = found.quantile(25), found.long_side
    factor = 1.0
    reason = f"three quarters of the objects are {small:.1f} px or more: {small / STRIDE:.1f} cells of stride {STRIDE}"
    if small < SMALL and 2 * 1.5 * long <= CROPS[-1][0]:
        factor = 2.0
        reason += f" at full size, and a small object should span {CELLS}"
    elif small < SMALL:
        reason += f"; enlarged, those of up to {long:.0f} px would no longer fit into a crop"
    elif small >= LARGE:
        halvings = min(math.floor(math.log2(small / (LARGE / 2))), _halvings(found.image_size))
        factor = 2.0**-halvings
        reason += f", far more than they need: {small * factor:.0f} px tell as much at {factor**2:.2g} of the cost"
        if not halvings:
            reason = f"the objects are large, and so small an image ({found.image_size[1]}x{found.image_size[0]}) costs little"
    else:
        reason += ", enough"
    fits = max(0.01, math.floor(100 * CROPS[-1][0] / 1.25 / long) / 100)
    if factor > fits and small * fits >= SMALL:
        factor, reason = fits, f"objects of up to {long:.0f} px must fit into a crop of {CROPS[-1][0]} px"
    elif factor > fits:
        reason = (
            f"small objects come first: shrunk so that those of up to {long:.0f} px fitted into a crop of {CROPS[-1][0]} px,"
            f" they would have {small * fits:.1f} px. Large ones are learnt only where half of one is in a crop"
        )
    return Choice("data.enlarge", factor, reason)


def _halvings(size: tuple[int, int]) -> int:
    """How often an image may be halved before it is smaller than `LEAST_IMAGE`."""
    short, long = sorted(size)
    return max(0, math.floor(math.log2(max(1.0, min(short / LEAST_IMAGE[0], long / LEAST_IMAGE[1])))))


def crop(found: Fingerprint, factor: float) -> list[Choice]:
    """What of an image a step sees, and where from."""
    height, width = (side * factor for side in found.image_size)
    long = found.long_side * factor
    base = next((size for size in CROPS if size[0] >= 1.5 * long), CROPS[-1])
    if height > width:
        base = (base[1], base[0])
    if height * width <= 1.3 * base[0] * base[1] and max(height, width) <= 1.6 * max(base):
        size = tuple(max(64, math.ceil(side)) for side in (height, width))
        reason = "whole images, as the network sees them (the median size): they are small"
        around = Choice("augment.toward_objects", 0.0, "the crop holds the whole image")
        tall, wide = (side * factor for side in found.largest_image)
        if max(tall / size[0], wide / size[1]) > 1.6:
            largest = f"{found.largest_image[1]}x{found.largest_image[0]}"
            reason = f"the median size, as the network sees it; the largest image ({largest}) is learnt in crops of it"
            words = f"of images larger than the crop ({largest} the largest) a crop placed anywhere would hold little"
            around = Choice("augment.toward_objects", 0.8, words)
    else:
        size = base
        reason = f"the objects' longer sides are up to {long:.0f} px, and smaller crops are more steps in the same time"
        share = base[0] * base[1] / (height * width)
        expected = found.objects / found.images * share
        around = Choice(
            "augment.toward_objects", 0.8 if expected < 4 else 0.3,
            f"a crop is {share:.0%} of an image; placed anywhere it would hold {expected:.1f} objects",
        )  # fmt: skip
    return [Choice("augment.crop", list(size), reason), around]


def cached_bytes(found: Fingerprint, factor: float) -> int:
    """What all images take in memory, decoded, at `factor` times their size: they are kept as the network sees them."""
    return int(found.megapixels * 1e6 * factor**2 * found.channels * (found.bits // 8))


def images_read(found: Fingerprint, machine: Machine, factor: float) -> list[Choice]:
    """How images are read and kept; the network sees them at `factor` times their size."""
    grey = "three bands are stored, and all of those looked at are the same in each: one band tells as much"
    kept = cached_bytes(found, factor)
    cached = kept <= machine.memory / 4
    seen = "decoded" if factor == 1 else f"decoded, at {factor:g} of their size"
    words = f"{seen}, the images take {kept / 1e9:.2g} GB, and {machine.memory / 1e9:.2g} GB of memory are free"
    choices = [
        Choice("data.channels", found.channels, grey if found.grey_as_colour else f"the images have {found.channels}"),
        Choice("data.cache", "ram" if cached else "none", words),
    ]
    if found.problems:
        share = min(1.0, math.ceil(110 * found.problems / max(1, found.objects + found.problems)) / 100)
        words = f"{found.problems} broken entries are left out (`flyspeck data inspect` lists them)"
        choices.append(Choice("data.max_broken_share", share, words))
    return choices


def augmentation(found: Fingerprint) -> list[Choice]:
    """What training does to an image besides the crop."""
    above = found.ground is not None
    turns = (
        "the images are placed on a map, so they are from straight above: every direction is as likely"
        if above
        else "nothing says that the images are from straight above; where they are, set this and augment.vertical_flip"
        " to 0.5"
    )
    classes = [count for count in found.classes.values() if count]
    rare = len(classes) > 1 and found.imbalance >= 10
    low, high = found.image_medians
    wide = high >= 4 * low
    spread = f"the images' own median sizes go from {low:.0f} to {high:.0f} px (10 and 90 %)"
    often = (
        f"the most frequent class has {found.imbalance:.0f} times the objects of the rarest: images of rare classes come"
        " more often"
        if rare
        else "no class is ten times as frequent as another"
    )
    return [
        Choice("augment.flip", 0.5, "mirrored images are as likely, where objects are no letters"),
        Choice("augment.vertical_flip", 0.5 if above else 0.0, turns),
        Choice("augment.rot90", 0.5 if above else 0.0, turns),
        Choice("augment.scale", [0.6, 1.6] if wide else [0.8, 1.3], spread, JUDGED if wide else "hituav"),
        Choice("augment.photometric", 0.5, "light, contrast and noise differ from day to day", "hituav"),
        Choice("augment.oversample", 0.5 if rare else 0.0, often),
    ]


def detector(found: Fingerprint, tier: Tier, machine: Machine, factor: float, seen: float) -> list[Choice]:
    """The model's keys, for a training that sees so many images."""
    choices, more = [], _proposals(found, tier)
    for key, value in tier.model.items():
        if isinstance(value, dict):
            named_keys = ((f"model.{key}.{k}", v) for k, v in value.items())
            choices += [more.get(name, Choice(name, v, tier.words, tier.rests_on)) for name, v in named_keys]
        else:
            choices.append(Choice(f"model.{key}", value, tier.words, tier.rests_on))
    choices += _start(tier, machine, shortly=found.images <= FEW and seen < SHORT)
    if tier.anchored:
        choices += _anchored(found, tier, factor)
    choices += _suppression(found)
    return choices


def _proposals(found: Fingerprint, tier: Tier) -> dict[str, Choice]:
    """In place of the tier's: as many proposals as boxes are kept of an image, or objects of a crowd are lost unseen."""
    head, most = dict(tier.model.get("head", {})), _kept(found)
    if most <= head.get("proposals", most):
        return {}
    words = f"no fewer than the {most} boxes that are kept of an image"
    shares = {name: head[name] / head["proposals"] for name in ("train_proposals", "proposals")}
    return {
        f"model.head.{name}": Choice(f"model.head.{name}", round(most * share), words, "proposals")
        for name, share in shares.items()
    }


def _kept(found: Fingerprint) -> int:
    """Boxes that are kept of an image: half as many more as the fullest has."""
    return max(100, math.ceil(found.most_objects * 1.5 / 100) * 100)


def _start(tier: Tier, machine: Machine, *, shortly: bool) -> list[Choice]:
    """Weights to begin with; `shortly`: few images are seen, of few."""
    own = Choice("model.pixel_norm", "data", "pixels are normalised by the set's own mean and deviation", "hituav")
    passed_on = f"its licence ({machine.start_licence}) is passed on"
    if tier.name in machine.start_whole and shortly:
        words = (
            f"a trained detector of tiny objects that is here: from it, 10 and 50 images gave +1 to +13 AP50 tiny over ImageNet's"
            f" backbone, on other things than it had seen; {passed_on}"
        )
        return [Choice("model.start", machine.start_model, words, "starts"), own]
    if tier.pretrained and machine.start is not None:
        words = "ImageNet's weights are on this machine; a pretrained start is worth points in short trainings"
        return [Choice("model.weights", machine.start, words, "pretraining"), own]
    if machine.start_model is not None and tier.name in machine.start_fits:
        words = (
            f"a trained detector of tiny objects that is here begins nearer to them than random weights; {passed_on}"
        )
        return [Choice("model.start", machine.start_model, words), own]
    words = "no pretrained weights for it are on this machine" if tier.pretrained else "it is trained from scratch"
    if tier.pretrained and machine.missing:
        words += f"; {machine.missing}"
    return [Choice("model.weights", None, words, "pretraining" if tier.pretrained else tier.rests_on), own]


def _anchored(found: Fingerprint, tier: Tier, factor: float) -> Iterator[Choice]:
    """Of detectors with anchors and proposals."""
    small = found.quantile(25) * factor
    base = min(max(small, STRIDE), 3 * STRIDE) / STRIDE
    yield Choice(
        "model.anchors.base_scale", round(base, 2),
        f"the smallest anchor is the size below which a quarter of the objects are ({small:.1f} px as the network sees"
        f" them), between one and three cells of stride {STRIDE}",
    )  # fmt: skip
    yield Choice(
        "model.anchors.ratios", list(found.ratios),
        "height over width of the objects at 15, 50 and 85 %, where they differ by 1.3 or more",
    )  # fmt: skip
    yield Choice("model.anchors.octaves", 1, "one size a level", "hituav")
    if tier.fuses:
        yield Choice(
            "model.fusion", "statistic",
            "S-alpha, counted from the training set: +0.8 AP50 tiny (-2.3 to +4.9) at no cost in time; it may be nothing",
            "fusion",
        )  # fmt: skip
    if found.quantile(50) * factor < 16:
        yield Choice(
            "model.assigner.name", "nwd",
            f"half of the objects are below {found.quantile(50) * factor:.0f} px as the network sees them: there NWD found"
            " more tiny objects than IoU (+3.3 AP50 tiny, +1.2 to +5.7)",
            "assigners",
        )  # fmt: skip


def _suppression(found: Fingerprint) -> list[Choice]:
    """How many boxes are kept, and of which objects."""
    near, _ = found.neighbour_quantiles
    crowded = found.crowded_share > CROWDED
    closest = "each object is alone" if math.isinf(near) else f"5 % of the neighbours are closer than {near:.2g} sizes"
    words = (
        f"{found.crowded_share:.1%} of the objects lie so that `tiny` would take them and a neighbour of their class for one"
        if crowded
        else f"{closest}: one box stays on each tiny object, and its scores are not shared"
    )
    return [
        Choice("model.suppression", "nms" if crowded else "tiny", words, "doubles"),
        Choice("model.max_detections", _kept(found), f"the fullest image has {counted(found.most_objects, 'box')}"),
    ]


def optimisation(
    found: Fingerprint, tier: Tier, machine: Machine, minutes: float, images_per_second: float, *, cached: bool
) -> list[Choice]:
    """The section `train`."""
    images = images_per_second * 60 * minutes
    batch = max(
        1,
        next((b for b in (16, 8, 4) if b <= tier.batch and images / b >= 600), min(4, tier.batch)),
    )
    batch = min(batch, max(1, found.images))
    steps = max(1, int(images / batch))
    ema = 0.998 if steps >= 2500 else 0.99 if steps >= 400 else 0.95
    scratch = "it begins at random" if not tier.pretrained else "the Adams' usual rate, as in our recipes"
    seen = f"about {images:.0f} images will be seen: {steps} steps of {batch}"
    log_every = min(10_000, max(1, round(5 * images_per_second / batch)))
    eval_every = min(10_000, max(1, round(images / max(1, found.images) / 4)))
    workers = 0 if machine.cpus <= 2 and cached else None
    loading = f"{machine.cpus} processors" + (", and the images are in memory" if cached else "")
    return [
        Choice("train.minutes", minutes, "the time that was given; the learning rate falls over the share that is used"),
        Choice("train.batch_size", batch, seen),
        Choice("train.optimizer", "adamw", "as in our recipes", tier.rests_on),
        Choice("train.lr", tier.lr, scratch, tier.rests_on),
        Choice("train.beta2", 0.99 if steps < 4000 else 0.999, "in short trainings 0.99 forgets the first, large gradients"),
        Choice("train.weight_decay", tier.weight_decay, "as in our recipes", tier.rests_on),
        Choice("train.warmup_steps", min(200, max(5, steps // 20)), "a twentieth of the steps, 200 at most"),
        Choice("train.schedule", "cosine", "as in our recipes", tier.rests_on),
        Choice("train.clip_grad", 10.0, "as in our recipes", "hituav"),
        Choice("train.ema", ema, f"the weights are averaged over a small part of {steps} steps"),
        Choice("train.precision", machine.precision, "the faster one for convolutions here, timed"),
        Choice("train.workers", workers, loading),
        Choice("train.eval_every", eval_every, "about four evaluations, one of them at the end"),
        Choice("train.log_every", log_every, "a line about every five seconds"),
        Choice("train.seed", 1, "any: the same seed gives the same start"),
    ]  # fmt: skip


def measuring(found: Fingerprint) -> list[Choice]:
    """The section `evaluate`."""
    tiny = found.tiny_share >= 0.3
    words = f"{found.tiny_share:.0%} of the objects are of 2 to 20 px"
    return [
        Choice("evaluate.protocol", "flyspeck", "COCO's matching, with bins for tiny objects"),
        Choice("evaluate.best", "ap50_tiny" if tiny else "ap50_all", f"{words}: this picks the best checkpoint"),
    ]


def make_plan(
    found: Fingerprint,
    machine: Machine,
    *,
    tier: Tier,
    minutes: float,
    speed: Speed | None,
    name: str,
    train: str,
    val: str,
    scale: Choice | None = None,
    looked_at: int | None = None,
) -> Plan:
    """All choices for one detector; without a `speed` (not measured yet) that of a slow machine is taken.

    `scale` takes the place of the rule for `data.enlarge`; `looked_at` are the images of `val` that there is time to look at,
    where that is not all.
    """
    scale = scale or enlargement(found)
    read = images_read(found, machine, scale.value)
    cached = any(choice.key == "data.cache" and choice.value == "ram" for choice in read)
    rate = speed.images_per_second if speed is not None else 5.0
    choices = [
        Choice("name", name, "of the run folder, where no other is given"),
        Choice("data.train", train, f"{counted(found.images, 'image')}, {counted(found.objects, 'object')}"),
        Choice("data.val", val, "what the training is measured on"),
        *(
            []
            if looked_at is None
            else [Choice("data.val_limit", looked_at, "there is no time to look at more of them")]
        ),
        *read,
        scale,
        *augmentation(found),
        *crop(found, scale.value),
        *detector(found, tier, machine, scale.value, rate * 60 * minutes),
        *optimisation(found, tier, machine, minutes, rate, cached=cached),
        *measuring(found),
    ]
    return Plan(tier, tuple(choices), speed, tuple(remarks(found, minutes, rate)))


def remarks(found: Fingerprint, minutes: float, images_per_second: float) -> Iterator[str]:
    """What somebody should know of the data, one line each."""
    if found.most_objects > 200:
        yield (
            f"the fullest image has {found.most_objects} boxes, and the protocol counts 200 detections of a class an image:"
            " measure with `flyspeck eval --max-dets` too"
        )
    absent = [name for name, count in found.classes.items() if not count]
    few = [name for name, count in found.classes.items() if 0 < count < 20]
    if absent:
        yield f"no object to learn from: {counted(len(absent), 'class')}: {named(absent)}"
    if few:
        yield (f"fewer than 20 objects, too few to learn or to measure: {counted(len(few), 'class')}: {named(few)}")
    if found.quantile(95) <= ONE_SIZE * found.quantile(5):
        yield f"all objects have one size ({found.quantile(50):.1f} px): are they boxes, or points that became boxes?"
    if found.long_side * enlargement(found).value > CROPS[-1][0]:
        yield (
            f"objects of up to {found.long_side:.0f} px are larger than any crop ({CROPS[-1][0]}x{CROPS[-1][1]}) and are learnt"
            " in part only: where they matter, train a second detector for them, on shrunk images (data.enlarge)"
        )
    if found.duplicates:
        twice = counted(found.duplicates, "image is", "images are")
        yield f"{twice} there more than once (`flyspeck data inspect --fix` takes them out)"
    reading = found.decode_seconds * found.megapixels  # each image once, at least
    seen = images_per_second * max(0.0, 60 * minutes - reading)
    passes = seen / found.images
    if passes < 1:
        yield (
            f"the set does not fit in the time: in {counted(minutes, 'minute')} of training {seen:.0f} of {found.images} images"
            f" are seen once; in {counted(time_for(found, images_per_second, 1.0), 'minute')} all, in"
            f" {counted(time_for(found, images_per_second), 'minute')} all {FEW_PASSES} times"
        )
    elif passes < FEW_PASSES:
        yield (
            f"in {counted(minutes, 'minute')} of training each image is seen {passes:.1f} times; in"
            f" {counted(time_for(found, images_per_second), 'minute')} {FEW_PASSES} times"
        )


def time_for(found: Fingerprint, images_per_second: float, passes: float = FEW_PASSES) -> int:
    """Minutes in which each image is seen so many times."""
    seconds = passes * found.images / images_per_second + found.decode_seconds * found.megapixels
    return max(1, math.ceil(seconds / 60))
