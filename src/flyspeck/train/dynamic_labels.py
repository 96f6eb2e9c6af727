"""Which factor each image wants, and why: the predictor's labels, computed once with the frozen detector and kept in the
run folder beside a fingerprint of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule
from flyspeck.data.enlarge import Enlarge
from flyspeck.data.loading import DetectionDataset, in_order, make_loader
from flyspeck.devices import torch_device
from flyspeck.errors import UserError, counted
from flyspeck.files import write_json
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.guidance import RATIO, Positives, factor_labels, factor_losses, total_labels
from flyspeck.models.dynamic.pooling import find_switch
from flyspeck.train.dynamic_config import PredictorConfig
from flyspeck.train.viewing import images_at_once

FOLDS = "folds"
"""The folder of the detectors that held images out, inside the detector's run."""
ROUTER = "router."
"""Begins the names of the predictor's weights, which are no part of the detector that labels belong to."""


@dataclass(frozen=True)
class LossKind:
    """Which losses the labels come from."""

    guidance: bool = True
    """The guidance loss, or the detector's own."""
    positives: Positives = "best"
    """Of the guidance loss, see `models.dynamic.guidance`."""
    folds: int = 1
    """Of how many detectors that have not seen the images that they judge; 1: of the one detector, on what it has learnt."""

    @staticmethod
    def of(config: PredictorConfig) -> LossKind:
        """What a recipe asks for."""
        return LossKind(config.guidance, config.positives if config.guidance else "best", config.folds)

    def words(self) -> str:
        """For people."""
        own = "guidance loss" if self.guidance else "detector's own loss"
        matched = ", matched positives" if self.positives == "matched" else ""
        return own + matched + (f", held-out images in {self.folds} parts" if self.folds > 1 else "")


@dataclass(frozen=True)
class FactorLosses:
    """L^(j) of every image of a set at every factor."""

    image_ids: tuple[int | str, ...]
    factors: tuple[float, ...]
    """Largest first."""
    losses: np.ndarray
    """(N, m) float64."""
    kind: LossKind
    detector: str
    """Fingerprint of the detector's weights."""
    objects: np.ndarray
    """(N,) int64 objects in each image."""

    def labels(self, ratio: float = RATIO, *, slack: float | None = None) -> np.ndarray:
        """(N, m) bool, Eq. 10; with `slack`, `total_labels` instead."""
        if slack is not None:
            return total_labels(self.losses, self.objects, slack=slack)
        return factor_labels(self.losses, ratio=ratio)

    def wanted(self, ratio: float = RATIO, *, slack: float | None = None, rule: str = "cheapest") -> np.ndarray:
        """(N,) place of the factor that each image should take.

        `cheapest` of those that are good enough, or with `argmax` the one with the least loss (of equals the largest).
        """
        if rule == "argmax":
            return self.losses.argmin(1)
        good = self.labels(ratio, slack=slack)
        return good.shape[1] - 1 - good[:, ::-1].argmax(1)

    def write(self, path: Path) -> None:
        """As JSON."""
        content = {
            "detector_sha256": self.detector,
            **asdict(self.kind),
            "factors": list(self.factors),
            "image_ids": list(self.image_ids),
            "objects": self.objects.tolist(),
            "losses": np.round(self.losses, 6).tolist(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def read_losses(path: Path, *, detector: str | None = None) -> FactorLosses:
    """What `FactorLosses.write` wrote; raises UserError for losses of another detector than the fingerprint `detector`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = FactorLosses(
            image_ids=tuple(content["image_ids"]),
            factors=tuple(float(f) for f in content["factors"]),
            losses=np.asarray(content["losses"], np.float64).reshape(len(content["image_ids"]), -1),
            # 0.1.0 knew one kind of positives, and held nothing out.
            kind=LossKind(bool(content["guidance"]), content.get("positives", "best"), int(content.get("folds", 1))),
            detector=content["detector_sha256"],
            objects=np.asarray(content["objects"], np.int64),
        )
    except FileNotFoundError:
        raise UserError("no labels here", where=path, fix="compute them with `flyspeck dpnet labels RUN`") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"not a file of labels ({error})", where=path, fix="compute them again") from None
    if detector is not None and found.detector != detector:
        raise UserError(
            "these labels were made with other weights than the detector has now",
            where=path,
            fix="compute them again: `flyspeck dpnet labels RUN --again`",
        )
    return found


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a detector's weights, the predictor's left out."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith(ROUTER):
            digest.update(name.encode())
            digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def compute_losses(
    detector: Detector,
    annotations: Annotations,
    *,
    rule: PixelRule,
    enlarge: Enlarge | None = None,
    kind: LossKind | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "fp32",
) -> FactorLosses:
    """L^(j) of every image, whole images, in the order of the table: `batch_size` at a time, fewer of large ones.

    The detector's mode and device are restored.

    `kind.folds` is only noted: whoever holds images out calls this with the detector that has not learnt them.
    """
    kind = kind or LossKind()
    place = torch_device(device)
    was_training, home = detector.training, detector.pixel_norm.mean.device
    detector.eval().to(place)
    loader = make_loader(
        DetectionDataset(annotations, rule=rule, enlarge=enlarge),
        batch_size=images_at_once(detector, annotations, enlarge, batch_size=batch_size),
        sampler=in_order(len(annotations)),
        workers=0,
        divisor=detector.divisor,
        smallest=detector.smallest_side,
        drop_last=False,
    )
    found, ids, objects = [], [], []
    for images, targets, image_ids in loader.epoch(0):
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
            moved = images.to(place), [t.to(place) for t in targets]
            found.append(factor_losses(detector, *moved, guidance=kind.guidance, positives=kind.positives))
        ids.extend(image_ids)
        objects.extend(len(t.objects) for t in targets)
    detector.train(was_training).to(home)
    return FactorLosses(
        image_ids=tuple(ids),
        factors=find_switch(detector).factors,
        losses=np.concatenate(found),
        kind=kind,
        detector=fingerprint(detector.state_dict()),
        objects=np.asarray(objects, np.int64),
    )


def losses_file(folder: Path, *, part: str, kind: LossKind) -> Path:
    """Where a run folder keeps the losses of its `train` or `val` set."""
    words = [part, *([] if kind.guidance else ["own"]), *([] if kind.positives == "best" else [kind.positives])]
    words += [f"folds{kind.folds}"] if kind.folds > 1 else []
    return folder / f"factor-losses-{'-'.join(words)}.json"


def fold_of(count: int, folds: int) -> np.ndarray:
    """`(count,)` number of the part that each image of a table belongs to.

    Parts are runs of neighbours: frames of one video are nearly the same, and must not be learnt by the one that judges them.
    """
    return np.arange(count) * folds // max(1, count)


def join_folds(parts: Sequence[FactorLosses], image_ids: Any, *, detector: str) -> FactorLosses:
    """The losses of all parts as one, in the order of `image_ids`, under the fingerprint of the detector that will route."""
    whole = replace(
        parts[0],
        image_ids=tuple(image_id for part in parts for image_id in part.image_ids),
        losses=np.concatenate([part.losses for part in parts]),
        objects=np.concatenate([part.objects for part in parts]),
        detector=detector,
    )
    return select(whole, image_ids)


def select(losses: FactorLosses, image_ids: Any) -> FactorLosses:
    """The rows of some images, in their order; raises UserError where one is missing."""
    place = {image_id: row for row, image_id in enumerate(losses.image_ids)}
    missing = [i for i in image_ids if i not in place]
    if missing:
        raise UserError(
            f"no labels of {counted(len(missing), 'image')}, such as {missing[0]}", fix="compute the labels again"
        )
    rows = [place[i] for i in image_ids]
    return replace(losses, image_ids=tuple(image_ids), losses=losses.losses[rows], objects=losses.objects[rows])


def summary(found: FactorLosses, *, ratio: float = RATIO, slack: float | None = None) -> list[str]:
    """Lines for a reader: how many images want which factor, and why."""
    labels = found.labels(ratio, slack=slack)
    cheapest, least = found.wanted(ratio, slack=slack), found.wanted(rule="argmax")
    rule = f"T = {ratio:g}" if slack is None else f"at most {slack:g} more in the sum over objects"
    lines = [
        f"{counted(len(found.image_ids), 'image')}, {found.kind.words()}, {rule}, detector {found.detector[:12]}",
        f"{'factor':>7} {'good enough':>12} {'cheapest good':>14} {'least loss':>11} {'mean loss':>10}"
        f" {'objects an image':>18} {'loss over the least, where it is not good enough':>50}",
    ]
    relative = found.losses / np.maximum(found.losses.min(1, keepdims=True), 1e-12)
    for place, factor in enumerate(found.factors):
        mine, poor = cheapest == place, ~labels[:, place]
        objects = f"{found.objects[mine].mean():.1f}" if mine.any() else "-"
        worse = f"x {np.median(relative[poor, place]):.2f} (median)" if poor.any() else "-"
        lines.append(
            f"{factor:>7g} {int(labels[:, place].sum()):>12d} {int(mine.sum()):>14d} {int((least == place).sum()):>11d}"
            f" {found.losses[:, place].mean():>10.4f} {objects:>18} {worse:>50}"
        )
    combinations, counts = np.unique(labels, axis=0, return_counts=True)
    for row, count in sorted(zip(combinations.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        names = ", ".join(f"{f:g}" for f, yes in zip(found.factors, row, strict=True) if yes)
        lines.append(f"  {count:>6d} images: {names} good enough")
    return lines
