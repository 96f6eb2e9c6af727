"""What the choice of factors trades: accuracy against GFLOPs, from one evaluation of every factor.

The detections of all factors are there already; a choice takes those of one factor for each image, so any threshold,
random choice or oracle is evaluated without running a network again (DPNet, Tables I, II and VII).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, evaluate, protocol_named
from flyspeck.evaluate.bootstrap import compare, interval_rows
from flyspeck.evaluate.protocols import APProtocol
from flyspeck.evaluate.results import goodness
from flyspeck.models.dynamic.predictor import Decision
from flyspeck.train.measure import metrics_of


@dataclass(frozen=True)
class Candidates:
    """Everything that a choice of factors chooses from, for one set of images."""

    annotations: Annotations
    factors: tuple[float, ...]
    """Largest first."""
    tables: tuple[DetectionTable, ...]
    """The whole set's detections at each factor."""
    gflops: tuple[float, ...]
    """Of one image at each factor, without the predictor."""
    predictor_gflops: float
    protocol: str
    metric: str
    """The metric that counts, as `metrics_of` names it."""

    def chosen(self, places: np.ndarray) -> DetectionTable:
        """The detections of each image at its own place among the factors, `places (I,)`."""
        parts = [table.select(places[table.image_index] == place) for place, table in enumerate(self.tables)]
        return DetectionTable.from_columns(
            image_index=np.concatenate([p.image_index for p in parts]),
            scores=np.concatenate([p.scores for p in parts]),
            labels=np.concatenate([p.labels for p in parts]),
            xywh=np.concatenate([p.xywh for p in parts]),
            boxes=np.concatenate([p.boxes for p in parts]),
        )

    def point(self, places: np.ndarray, *, predictor: bool) -> dict[str, Any]:
        """Metrics and cost of a choice; `predictor` adds the predictor's own GFLOPs."""
        metrics = metrics_of(evaluate(self.annotations, self.chosen(places), self.protocol))
        if self.metric not in metrics:
            raise UserError(f"no metric '{self.metric}'", where="metric", fix=f"known: {', '.join(metrics)}")
        shares = np.bincount(places, minlength=len(self.factors)) / max(1, len(places))
        return {
            "metric": metrics[self.metric],
            "gflops": float(shares @ np.array(self.gflops)) + self.predictor_gflops * predictor,
            "shares": {f"{f:g}": float(s) for f, s in zip(self.factors, shares, strict=True)},
            "metrics": {name: value for name, value in metrics.items() if "50_" in name},
        }


def tradeoff(
    candidates: Candidates,
    probabilities: np.ndarray,
    *,
    decision: Decision,
    oracles: Mapping[str, np.ndarray] | None = None,
    draws: int = 3,
    steps: int = 20,
    samples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """All points as plain values: `static`, `chosen`, `argmax`, `curve`, `random`, `oracle`, `against_static`, `alike`.

    `probabilities (I, m)` are the predictor's; `chosen` is `decision`. `random` gives the same shares of factors to images
    at random, `draws` times (Table II). `oracles` are places by name (Table VII). `against_static` compares the chosen
    with the largest factor by `samples` paired resamples of the images.
    """
    count = len(candidates.annotations)
    if len(probabilities) != count:
        raise ValueError(f"{len(probabilities)} rows of probabilities for {count} images")
    rng = np.random.default_rng(seed)
    mine = decision.choose(probabilities)
    found: dict[str, Any] = {
        "protocol": candidates.protocol,
        "metric": candidates.metric,
        "images": count,
        "factors": list(candidates.factors),
        "gflops": list(candidates.gflops),
        "predictor_gflops": candidates.predictor_gflops,
        "static": [
            {"factor": factor, **candidates.point(np.full(count, place), predictor=False)}
            for place, factor in enumerate(candidates.factors)
        ],
        "chosen": {"rule": decision.rule, "threshold": decision.threshold, **candidates.point(mine, predictor=True)},
        "argmax": candidates.point(Decision("argmax").choose(probabilities), predictor=True),
        "random": [candidates.point(rng.permutation(mine), predictor=False) for _ in range(draws)],
        "oracle": {name: candidates.point(places, predictor=False) for name, places in (oracles or {}).items()},
        "curve": [],
    }
    for threshold in thresholds(probabilities, steps):
        places = Decision("cheapest", threshold).choose(probabilities)
        point = {"threshold": threshold, **candidates.point(places, predictor=True)}
        point["random"] = [candidates.point(rng.permutation(places), predictor=False)["metric"] for _ in range(draws)]
        found["curve"].append(point)
    found["against_static"] = _against(candidates, mine, np.zeros(count, np.int64), samples=samples, seed=seed)
    found["alike"] = cheapest_alike(candidates, probabilities, found["curve"], samples=samples, seed=seed)
    return found


def thresholds(probabilities: np.ndarray, steps: int) -> list[float]:
    """From all images at the smallest factor (0) to all at the largest (above 1), in steps of equal change."""
    inner = np.unique(np.quantile(probabilities, np.linspace(0, 1, steps)).round(6)).tolist()
    return [0.0, *(t for t in inner if 0 < t <= 1), 1.001]


def cheapest_alike(
    candidates: Candidates,
    probabilities: np.ndarray,
    curve: Sequence[Mapping[str, Any]],
    *,
    samples: int = 200,
    seed: int = 0,
) -> dict[str, Any] | None:
    """The cheapest point of the curve that cannot be told from the largest factor for all: 0 lies in the interval of the
    paired difference, here and at every dearer point. It has the fields of a point, and `against`; None as for `_against`.
    """
    found = None
    largest = np.zeros(len(probabilities), np.int64)
    for point in sorted(curve, key=lambda p: -p["gflops"]):
        places = Decision("cheapest", point["threshold"]).choose(probabilities)
        against = _against(candidates, places, largest, samples=samples, seed=seed)
        if against is None or against["difference_high"] < 0:
            break
        found = {**point, "against": against}
    return found


def _against(
    candidates: Candidates, ours: np.ndarray, theirs: np.ndarray, *, samples: int, seed: int
) -> dict[str, Any] | None:
    """The chosen's interval and its paired difference to another choice at IoU 0.5; None for protocols without AP."""
    protocol = protocol_named(candidates.protocol)
    if not isinstance(protocol, APProtocol) or samples < 1 or len(candidates.annotations) < 2:
        return None
    area = candidates.metric.partition("_")[2]
    bins = tuple(own for own in protocol.bins if own.name == area)
    if not bins:
        return None
    protocol = replace(protocol, bins=bins)
    a, b = candidates.chosen(ours), candidates.chosen(theirs)
    rows = compare(candidates.annotations, a, b, protocol, samples=samples, seed=seed)
    own = interval_rows(candidates.annotations, a, protocol, samples=samples, seed=seed)
    mine = next((row for row in rows if row["area"] == area), None)
    if mine is None or mine["difference"] is None:
        return None
    interval = next(row for row in own if row["area"] == area)
    return {**{k: mine[k] for k in ("area", "value", "other", "difference", "p_value", "samples")},
            "difference_low": mine["low"], "difference_high": mine["high"],
            "low": interval["low"], "high": interval["high"]}  # fmt: skip


def cheapest_equal(found: Mapping[str, Any], *, drop: float = 0.0) -> dict[str, Any] | None:
    """The cheapest point of the curve that is as good as the largest static factor, or worse by `drop`; None if none is."""

    def good_as(point: Mapping[str, Any]) -> float:
        return goodness(found["metric"], point["metric"])

    bound = good_as(found["static"][0]) - drop
    good = [p for p in found["curve"] if good_as(p) >= bound]
    return min(good, key=lambda p: p["gflops"], default=None)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The points as a table for a terminal."""
    base = found["static"][0]["gflops"]
    head = (
        f"{'':<28} {found['metric']:>10} {'GFLOPs':>8} {'of ' + format(found['factors'][0], 'g'):>8}  images by factor"
    )

    def row(name: str, point: Mapping[str, Any]) -> str:
        shares = ", ".join(f"{f}: {100 * s:.0f} %" for f, s in point["shares"].items() if s)
        ratio = 100 * point["gflops"] / base
        return f"{name:<28} {100 * point['metric']:>10.2f} {point['gflops']:>8.3f} {ratio:>6.1f} %  {shares}"

    rows = [head]
    rows += [row(f"static {p['factor']:g}", p) for p in found["static"]]
    chosen = found["chosen"]
    rows.append(row(f"DPNet, {chosen['rule']} {chosen['threshold']:g}", chosen))
    rows.append(row("DPNet, argmax", found["argmax"]))
    rows += [row(f"random {i}", p) for i, p in enumerate(found["random"], 1)]
    if found["random"]:
        mean = np.mean([p["metric"] for p in found["random"]])
        rows.append(f"{'random, mean':<28} {100 * mean:>10.2f}")
    rows += [row(f"oracle, {name}", p) for name, p in found["oracle"].items()]
    equal = cheapest_equal(found)
    rows.append(
        f"no point of the curve reaches static {found['factors'][0]:g}"
        if equal is None
        else row(f"cheapest as good, p >= {equal['threshold']:.3f}", equal)
    )
    alike = found["alike"]
    if alike is not None:
        rows.append(row(f"cheapest alike, p >= {alike['threshold']:.3f}", alike))
    against = found["against_static"]
    if against is not None:
        rows.append(
            f"DPNet {100 * against['value']:.2f} [{100 * against['low']:.2f}, {100 * against['high']:.2f}], against static"
            f" {found['factors'][0]:g}: {100 * against['difference']:+.2f} [{100 * against['difference_low']:+.2f},"
            f" {100 * against['difference_high']:+.2f}], p = {against['p_value']:.3f}"
        )
    return rows
