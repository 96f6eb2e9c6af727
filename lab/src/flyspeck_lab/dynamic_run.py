"""A run folder with a factor predictor to what its trade-off is made of: detections by factor, the predictor's word, oracles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import enlarged_table, native_sizes
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable
from flyspeck.models.dynamic.cost import predictor_gflops, profile_factors
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.models.dynamic.router import FactorRouter
from flyspeck.train.config import PredictorConfig
from flyspeck.train.dynamic_fit import CHOICES, FOLDER, DynamicRun
from flyspeck.train.dynamic_labels import LossKind, select
from flyspeck_lab.dynamic_curve import Candidates


def read_probabilities(path: Path) -> tuple[tuple[int | str, ...], tuple[float, ...], np.ndarray]:
    """Image ids, factors and `(N, m)` probabilities that `write_probabilities` wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ids, factors = tuple(content["image_ids"]), tuple(content["factors"])
        return ids, factors, np.asarray(content["probabilities"], np.float64).reshape(len(ids), len(factors))
    except FileNotFoundError:
        raise UserError("no predictor here", where=path.parent, fix="train it with `flyspeck dpnet fit RUN`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"not the predictor's probabilities ({error})", where=path, fix="fit the predictor again"
        ) from None


def open_candidates(run: DynamicRun, *, metric: str | None = None) -> tuple[Candidates, np.ndarray, Decision]:
    """What the trade-off of a run with a predictor is made of: candidates, `(I, m)` probabilities, its own decision.

    GFLOPs are those of an image of the validation set's mean size, enlarged (sec. IV-A).
    """
    router = run.detector.router
    if not isinstance(router, FactorRouter):
        raise UserError("no predictor here", where=run.folder, fix="train it with `flyspeck dpnet fit RUN`")
    val_set = run.sets()[1]
    sizes = enlarged_table(val_set, run.enlarge).sizes if run.enlarge.changes else native_sizes(val_set)
    size = (round(float(sizes[:, 0].mean())), round(float(sizes[:, 1].mean())))
    ids, factors, probabilities = read_probabilities(run.folder / CHOICES)
    place = {image_id: row for row, image_id in enumerate(ids)}
    wanted = [image_id if isinstance(image_id, str) else int(image_id) for image_id in val_set.image_ids]
    if any(image_id not in place for image_id in wanted):
        raise UserError("probabilities of other images", where=run.folder / CHOICES, fix="fit the predictor again")
    costs = profile_factors(run.detector, size)
    choosing = predictor_gflops(run.detector, size)
    candidates = Candidates(
        annotations=val_set,
        factors=factors,
        tables=read_tables(run.folder, factors, val_set),
        gflops=tuple(costs[f].gflops - choosing for f in factors),
        predictor_gflops=choosing,
        protocol=run.recipe.evaluate.protocol,
        metric=metric or run.recipe.evaluate.best.partition("@")[0],
    )
    return candidates, probabilities[[place[image_id] for image_id in wanted]], router.decision


def oracle_places(
    run: DynamicRun, annotations: Annotations, *, slack: float | None = None, device: str = "auto"
) -> dict[str, np.ndarray]:
    """The choices that the validation set's own labels would make, with the guidance loss and without (Table VII).

    Of each loss the least, the cheapest within T, and the cheapest within `slack`: where none is given, that of the run's
    predictor, if it learnt from one. The guidance loss has the positives of the run's predictor.
    """
    config = PredictorConfig.model_validate(run.description.get("predictor_trained", {}).get("config", {}))
    slack = config.slack if slack is None else slack
    found = {}
    run.detector.router = None
    home = replace(run, folder=run.folder.parent) if run.folder.name == FOLDER else run
    for guidance, name in ((True, "guidance loss"), (False, "own loss")):
        kind = LossKind(guidance, config.positives if guidance else "best")
        losses = home.losses("val", kind=kind, device=device, table=annotations)
        losses = select(losses, [i if isinstance(i, str) else int(i) for i in annotations.image_ids])
        found[f"{name}, least"] = losses.wanted(rule="argmax")
        found[f"{name}, cheapest within T"] = losses.wanted()
        if slack is not None:
            found[f"{name}, cheapest within slack {slack:g}"] = losses.wanted(slack=slack)
    return found


def read_tables(folder: Path, factors: Sequence[float], annotations: Annotations) -> tuple[DetectionTable, ...]:
    """The detections of each factor that a run left; raises UserError where one is missing."""
    found = []
    for factor in factors:
        path = folder / f"detections-df{factor:g}.json"
        if not path.is_file():
            raise UserError(
                f"no detections at the factor {factor:g}",
                where=path,
                fix="give a run folder that `flyspeck train` ended",
            )
        found.append(DetectionTable.from_coco(path, annotations))
    return tuple(found)
