"""Training the predictor on a frozen detector (DPNet, Algorithm 1, lines 14-19).

The detector never changes, so the map that the predictor reads is computed and pooled once an image; an epoch over what is
kept then takes seconds. The result is a run folder of its own, `dpnet` inside the detector's: weights of both, the recipe,
and the predictor's word on the validation images.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flyspeck.data.annotations import Annotations
from flyspeck.data.bands import PixelRule, rule_of
from flyspeck.data.enlarge import Enlarge
from flyspeck.data.loading import DetectionDataset, in_order, make_loader
from flyspeck.devices import torch_device
from flyspeck.errors import UserError
from flyspeck.files import write_bytes, write_json
from flyspeck.models.detector import Detector
from flyspeck.models.dynamic.pooling import find_switch, run_prefix
from flyspeck.models.dynamic.predictor import (
    Decision,
    FactorPredictor,
    object_statistics,
    predictor_losses,
)
from flyspeck.models.dynamic.router import FactorRouter, attach_predictor
from flyspeck.train.build import load_described
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import PredictorConfig, Recipe, load_recipe
from flyspeck.train.dynamic_labels import (
    FOLDS,
    FactorLosses,
    LossKind,
    compute_losses,
    fingerprint,
    fold_of,
    join_folds,
    losses_file,
    read_losses,
    select,
)
from flyspeck.train.inputs import enlargement_in_use, read_sets
from flyspeck.train.measure import measure
from flyspeck.train.progress import EvaluationLines
from flyspeck.train.viewing import images_at_once, viewing_of

log = logging.getLogger("flyspeck")

FOLDER = "dpnet"
"""The run folder of detector and predictor, inside the detector's."""
CHOICES = "factor-probabilities-val.json"
_LIMIT_BYTES = 4 << 30


TrainWithout = Callable[[Recipe, Path, Sequence[int | str]], Any]
"""Trains a recipe without some of its training images into a folder, or goes on there: `train.run.train_without`."""


@dataclass(frozen=True)
class DynamicRun:
    """A run folder with a dynamic detector, opened."""

    folder: Path
    recipe: Recipe
    detector: Detector
    description: Mapping[str, Any]

    @property
    def rule(self) -> PixelRule:
        """How the images are read."""
        return rule_of(self.description)

    @property
    def enlarge(self) -> Enlarge:
        """How images are enlarged for the network where it is used."""
        return enlargement_in_use(self.recipe.data, self.recipe.evaluate)

    def sets(self) -> tuple[Annotations, Annotations]:
        """Training and validation table."""
        return read_sets(self.recipe.data)

    def losses(
        self,
        part: str,
        *,
        kind: LossKind | None = None,
        again: bool = False,
        device: str = "auto",
        table: Annotations | None = None,
        train_without: TrainWithout | None = None,
    ) -> FactorLosses:
        """The losses of the `train` or `val` set: those in the folder, or computed and kept there.

        With `kind.folds` above 1, `train_without` (`train.run`) trains the detectors that judge what they have not learnt; what
        was trained so before is taken up again. Raises UserError for kept losses of another detector, unless `again`.
        """
        kind = kind or LossKind()
        if part == "val":
            kind = replace(kind, folds=1)  # nobody has learnt them
        own = fingerprint(self.detector.state_dict())
        path = losses_file(self.folder, part=part, kind=kind)
        if path.exists() and not again:
            return read_losses(path, detector=own)
        annotations = table if table is not None else self.sets()[0 if part == "train" else 1]
        if kind.folds == 1:
            found = self._judged(self.detector, annotations, kind, device)
        else:
            if train_without is None:
                raise ValueError("folds need a way to train")
            found = self._held_out(annotations, kind, device, train_without, own)
        found.write(path)
        return found

    def _judged(self, detector: Detector, table: Annotations, kind: LossKind, device: str) -> FactorLosses:
        return compute_losses(
            detector,
            table,
            rule=self.rule,
            enlarge=self.enlarge,
            kind=kind,
            batch_size=self.recipe.evaluate.batch_size,
            device=device,
            precision=self.recipe.train.precision,
        )

    def _held_out(
        self, table: Annotations, kind: LossKind, device: str, train_without: TrainWithout, own: str
    ) -> FactorLosses:
        """The losses of each part of the training images by a detector that was trained on the other parts."""
        if kind.folds > len(table):
            raise UserError(
                f"{kind.folds} parts of {len(table)} images", where="dynamic.predictor.folds", fix="give fewer"
            )
        assert self.recipe.dynamic is not None
        dynamic = self.recipe.dynamic.model_copy(update={"predictor": None})
        recipe = self.recipe.model_copy(update={"dynamic": dynamic})
        fold, parts = fold_of(len(table), kind.folds), []
        for number in range(kind.folds):
            part = table.select_images(fold == number)
            where = self.folder / FOLDS / f"{number + 1}-of-{kind.folds}"
            log.info("part %d of %d: a detector that has not learnt its %d images", number + 1, kind.folds, len(part))
            train_without(recipe, where, [i if isinstance(i, str) else int(i) for i in part.image_ids])
            parts.append(self._judged(load_described(where)[0], part, kind, device))
        ids = [i if isinstance(i, str) else int(i) for i in table.image_ids]
        return join_folds(parts, ids, detector=own)


def open_run(folder: Path) -> DynamicRun:
    """The run folder of a dynamic detector; raises UserError for one that is not dynamic."""
    if not (folder / "recipe.yaml").is_file():
        raise UserError("not a run folder", where=folder, fix="give the folder that `flyspeck train` left")
    recipe = load_recipe(folder / "recipe.yaml")
    if recipe.dynamic is None:
        raise UserError("a run without dynamic pooling", where=folder, fix="train a recipe with a section `dynamic`")
    detector, description = load_described(folder)
    find_switch(detector)
    return DynamicRun(folder, recipe, detector, description)


@dataclass(frozen=True)
class PooledMaps:
    """What the predictor sees of every image, kept in half precision."""

    maps: list[Tensor]
    """(C, H, W) each."""
    statistics: Tensor
    """(N, 4), see `STATISTICS`."""
    image_ids: tuple[int | str, ...]


@torch.no_grad()
def pooled_maps(
    run: DynamicRun, annotations: Annotations, predictor: FactorPredictor, *, device: str = "auto"
) -> PooledMaps:
    """The pooled map before the resize of every image, in the order of the table."""
    loader = make_loader(
        DetectionDataset(annotations, rule=run.rule, enlarge=run.enlarge),
        batch_size=images_at_once(run.detector, annotations, run.enlarge, batch_size=run.recipe.evaluate.batch_size),
        sampler=in_order(len(annotations)),
        workers=0,
        divisor=run.detector.divisor,
        smallest=run.detector.smallest_side,
        drop_last=False,
    )
    place = torch_device(device)
    detector = run.detector.eval().to(place)
    maps: list[Tensor] = []
    statistics, ids, held = [], [], 0
    for images, targets, image_ids in loader.epoch(0):
        with torch.autocast(place.type, torch.bfloat16, enabled=run.recipe.train.precision == "bf16"):
            shared = run_prefix(detector, images.to(place))[1]
        padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        for one, size in zip(shared, images.sizes, strict=True):
            height, width = (-(-c * s // p) for c, s, p in zip(one.shape[-2:], size, padded, strict=True))
            maps.append(predictor.pooled(one[None, :, :height, :width].float())[0].half().cpu())
            held += maps[-1].nbytes
        if held > _LIMIT_BYTES:
            raise UserError(
                f"the maps of {len(maps)} of {len(annotations)} images take {held / 1e9:.1f} GB already",
                where="dynamic.predictor",
                fix="raise dynamic.predictor.pool, or lower data.train_limit",
            )
        statistics.extend(object_statistics(t) for t in targets)
        ids.extend(image_ids)
    return PooledMaps(maps, torch.stack(statistics), tuple(ids))


def train_predictor(
    predictor: FactorPredictor, data: PooledMaps, labels: np.ndarray, config: PredictorConfig, *, device: str = "auto"
) -> list[dict[str, float]]:
    """Algorithm 1, lines 17-19: AdamW with a cosine over `config.epochs`; returns the mean losses of each epoch.

    Images of one size form a batch; each is mirrored, and turned upside down, every other time. An image that is the only one
    of its size, and of which the predictor's last block has a single cell, is no batch for its norms and takes no part.
    Raises UserError where no other is left.
    """
    generator = torch.Generator().manual_seed(config.seed)
    wanted = torch.from_numpy(labels.astype(np.float32))
    by_size: dict[tuple[int, ...], list[int]] = {}
    for row, one in enumerate(data.maps):
        by_size.setdefault(tuple(one.shape), []).append(row)
    shrunk = 2 ** len(predictor.blocks)
    usable = [rows for (_, h, w), rows in by_size.items() if len(rows) > 1 or max(h, w) > shrunk]
    if not usable:
        raise UserError(
            f"{len(data.maps)} small images, no two of a size: nothing that batch norms could learn from",
            where="dynamic.predictor",
            fix="lower dynamic.predictor.pool, or train on more images",
        )
    groups = [(torch.tensor(rows), torch.stack([data.maps[r] for r in rows])) for rows in usable]
    place = torch_device(device)
    predictor.to(place).train()
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    history = []
    for _ in range(config.epochs):
        sums: dict[str, float] = {}
        batches = [
            (rows[part], maps[part])
            for rows, maps in groups
            for part in torch.randperm(len(rows), generator=generator).split(config.batch_size)
            if len(part) > 1 or len(rows) == 1  # batch norm needs two images, or two cells
        ]
        for rows, maps in batches:
            x = maps.float().to(place)
            for side in (-1, -2):
                turned = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
                x = torch.where(turned.to(place), x.flip(side), x)
            logits, statistics = predictor.from_pooled(x)
            losses = predictor_losses(
                logits, statistics, wanted[rows].to(place), data.statistics[rows].to(place), weight=config.weight
            )
            if not config.statistics:
                losses.pop("statistic")
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) * len(rows)
        schedule.step()
        history.append({name: value / sum(len(rows) for rows, _ in batches) for name, value in sums.items()})
    predictor.eval().to("cpu")
    return history


def fit_predictor(
    run: DynamicRun,
    config: PredictorConfig,
    *,
    out: Path | None = None,
    device: str = "auto",
    train_without: TrainWithout | None = None,
) -> tuple[Path, FactorRouter]:
    """Labels, training, and a run folder with both; returns the folder and the router, attached to `run.detector`.

    `train_without` is needed for labels of held-out images, see `DynamicRun.losses`.
    """
    folder = out or run.folder / FOLDER
    if folder.resolve() == run.folder.resolve():
        raise UserError("would overwrite the detector's own run", where=folder, fix="choose another --out")
    train_set, val_set = run.sets()
    run.detector.router = None
    kind = LossKind.of(config)
    losses = run.losses("train", kind=kind, device=device, table=train_set, train_without=train_without)
    torch.manual_seed(config.seed)
    router = attach_predictor(
        run.detector, widths=config.widths, pool=config.pool, decision=Decision(config.rule, config.threshold)
    )
    start = time.monotonic()
    data = pooled_maps(run, train_set, router.predictor, device=device)
    cached = time.monotonic()
    labels = select(losses, data.image_ids).labels(config.ratio, slack=config.slack)
    history = train_predictor(router.predictor, data, labels, config, device=device)
    log.info(
        "predictor: %d parameters, maps of %d images %.1f s, %d epochs %.1f s, losses %s",
        sum(p.numel() for p in router.predictor.parameters()), len(data.maps), cached - start, config.epochs,
        time.monotonic() - cached, " ".join(f"{k} {v:.3f}" for k, v in history[-1].items()),
    )  # fmt: skip
    maps = pooled_maps(run, val_set, router.predictor, device=device)
    probabilities = predicted(router.predictor, maps)
    folder.mkdir(parents=True, exist_ok=True)
    write_probabilities(folder / CHOICES, maps.image_ids, router.switch.factors, probabilities, router.decision)
    for name in ("recipe.yaml", "environment.json"):
        if (run.folder / name).exists():
            write_bytes(folder / name, (run.folder / name).read_bytes())
    told = {
        **run.description,
        "predictor": {"widths": config.widths, "pool": config.pool, "rule": config.rule, "threshold": config.threshold},
        "predictor_trained": {"config": config.model_dump(mode="json"), "history": history},
        "detector_sha256": losses.detector,
        "choices": calibration(probabilities),
    }
    save_weights(folder / "best.safetensors", run.detector.state_dict(), told)
    return folder, router


def measure_routed(run: DynamicRun, folder: Path, *, alone: bool = False) -> dict[str, float]:
    """Metrics of `run.detector` with its predictor on the validation set; its files are left in `folder`.

    Beside them stand those of the single factors, copied from the detector's own run where it has them. `alone` says that of
    several processes only this one calls it.
    """
    from flyspeck.train.processes import Alone, join_processes

    accelerator = join_processes()
    run.detector.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    annotations = run.sets()[1]
    measured = measure(
        run.detector,
        annotations,
        protocol=run.recipe.evaluate.protocol,
        viewing=viewing_of(run.recipe, run.description, run.detector, run.rule),
        accelerator=Alone(accelerator.device) if alone else accelerator,
        tell=EvaluationLines(),
    )
    if accelerator.is_main_process:
        measured.write(folder, annotations)
    for source in sorted(run.folder.glob("*-df*.json")):
        write_bytes(folder / source.name, source.read_bytes())
    return measured.metrics


@torch.no_grad()
def predicted(predictor: FactorPredictor, data: PooledMaps) -> np.ndarray:
    """`(N, m)` probabilities of pooled maps, one image at a time."""
    place = predictor.factors.weight.device
    logits = torch.cat([predictor.from_pooled(one[None].float().to(place))[0] for one in data.maps])
    return logits.sigmoid().cpu().numpy()


def calibration(probabilities: np.ndarray, *, steps: int = 50) -> list[list[float]]:
    """Rows `[threshold, share of images at each factor …]` for `Decision("cheapest", threshold)`, threshold ascending.

    This is what a budget is looked up in; it says what the choice costs, nothing of how good it is.
    """
    inner = np.unique(np.quantile(probabilities, np.linspace(0, 1, steps + 1)).round(6))
    rows = []
    for threshold in [0.0, *inner.tolist(), 1.001]:
        chosen = Decision("cheapest", threshold).choose(probabilities)
        shares = np.bincount(chosen, minlength=probabilities.shape[1]) / max(1, len(chosen))
        rows.append([float(threshold), *shares.tolist()])
    return rows


def write_probabilities(
    path: Path, image_ids: Any, factors: Any, probabilities: np.ndarray, decision: Decision
) -> None:
    """The predictor's word on a set, and the factors that follow by `decision`, as JSON."""
    content = {
        "factors": list(factors),
        "image_ids": list(image_ids),
        "probabilities": np.round(probabilities.astype(float), 6).tolist(),
        "chosen": [factors[place] for place in decision.choose(probabilities)],
    }
    write_json(path, content)
