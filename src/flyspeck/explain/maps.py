"""What a detector looks at in one image: Grad-CAM of its detections, and the attention of each pyramid level.

Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391): with A_k the channels of a map and y the score of interest,

    w_k = sum over cells of dy / dA_k;    CAM = ReLU(sum_k w_k A_k)

* y is the sum of the log-odds of the detections that are to be explained: the score before sigmoid or softmax, as in the
  paper, for whatever head the detector has. It is taken through the head's own decoding, proposals and all.
* The paper's w_k is the mean over the cells; the sum differs by a constant on one level and lets levels be compared and
  added. Each level of the pyramid has its own CAM; the whole is their sum, enlarged to the image.
* Few cells of a map see a tiny object, and w_k mixes them with all the others: Grad-CAM then shows where the same channels
  are strong, not where the evidence was. LayerCAM (Jiang et al., 2021, IEEE TIP 30) weighs every cell by its own gradient,
  ReLU(sum_k ReLU(dy / dA_k) A_k), and keeps places apart. Both are computed.

Attention is the mean square over the channels of a level, as distillation compares it (`train.distill.terms`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flyspeck.models.detector import Detector, to_detections
from flyspeck.models.postprocess import RawDetections
from flyspeck.types import Detections, FeatureSpec, ImageBatch

GRAD_CAM, LAYER_CAM = "Grad-CAM", "LayerCAM"
_EPS = 1e-6
_IF_NONE = 10  # detections to explain where none reaches the wanted score


@dataclass(frozen=True)
class Explanation:
    """Heat maps of one image, all `(H, W)` float32 at least 0 in its frame, not scaled."""

    found: Detections
    """Everything the detector found."""
    explained: np.ndarray
    """(N,) bool: whether a detection's score is explained."""
    cams: dict[str, np.ndarray]
    """`Grad-CAM` and `LayerCAM`, each the sum of its levels."""
    evidence: dict[str, dict[str, float]]
    """The same names to level (`P2`) to its share of the sum over all cells; shares add up to 1, or are all 0."""
    attention: dict[str, np.ndarray]
    """Level to its attention: mean squares over the channels, enlarged."""


def level_names(features: Sequence[FeatureSpec]) -> list[str]:
    """`P2` for stride 4, and so on; a stride that is no power of two is `P2.58`."""
    return [f"P{round(math.log2(spec.stride), 2):g}" for spec in features]


def explain(
    detector: Detector,
    images: ImageBatch,
    *,
    score: float = 0.3,
    label: int | None = None,
) -> Explanation:
    """Explains the detections of a batch of one image whose scores are at least `score`, or the ten best if none are.

    `label` explains those of one class alone. The detector is used in evaluation mode, which it is left in; its weights
    get no gradients. An image in which nothing at all is found has `cams` of zeros.
    """
    if len(images.sizes) != 1:
        raise ValueError(f"one image at a time, not {len(images.sizes)}")
    detector.eval()
    with torch.no_grad():
        pyramid = detector.pyramid(images)
    maps = [m.detach().float().requires_grad_() for m in pyramid]
    padded = (int(images.pixels.shape[-2]), int(images.pixels.shape[-1]))
    with torch.enable_grad():
        raw = detector.detect_from(maps, padded, images.sizes)[0]
        chosen = _chosen(raw, score, label)
        gradients = _gradients(raw.scores[chosen], maps)
    size = images.sizes[0]
    names = level_names(detector.features)
    cams, evidence = {}, {}
    for method, compute in ((GRAD_CAM, grad_cam), (LAYER_CAM, layer_cam)):
        levels = [compute(m.detach(), g) for m, g in zip(maps, gradients, strict=True)]
        cams[method] = np.sum([_enlarge(c, padded, size) for c in levels], axis=0, dtype=np.float32)
        # Of the cells: an enlarged coarse map would count each of its cells many times.
        sums = [float(c.sum()) for c in levels]
        total = sum(sums) or 1.0
        evidence[method] = {name: s / total for name, s in zip(names, sums, strict=True)}
    return Explanation(
        found=to_detections(raw, size, detector.classes),
        explained=chosen.cpu().numpy(),
        cams=cams,
        evidence=evidence,
        attention={
            name: _enlarge(m.detach().square().mean(1)[0], padded, size) for name, m in zip(names, maps, strict=True)
        },
    )


def _chosen(raw: RawDetections, score: float, label: int | None) -> Tensor:
    """(N,) bool: what is explained."""
    allowed = torch.ones_like(raw.scores, dtype=torch.bool) if label is None else raw.labels == label
    strong = allowed & (raw.scores >= score)
    if strong.any():
        return strong
    best = torch.nonzero(allowed).squeeze(1)[:_IF_NONE]
    return torch.zeros_like(allowed).index_fill(0, best, True)


def _gradients(scores: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Of the sum of the log-odds of `scores`; zeros for a map that no score depends on."""
    if len(scores) == 0:
        return [torch.zeros_like(m) for m in maps]
    odds = torch.logit(scores.float(), eps=_EPS).sum()
    found = torch.autograd.grad(odds, list(maps), allow_unused=True)
    return [torch.zeros_like(m) if g is None else g for m, g in zip(maps, found, strict=True)]


def grad_cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """A map `(1, C, h, w)` and the score's gradient there to `(h, w)`: each channel weighs as its gradients sum up to."""
    return (gradient.sum((2, 3), keepdim=True) * maps).sum(1)[0].clamp(min=0)


def layer_cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """The same, each cell of a channel weighing as its own gradient, where that is positive."""
    return (gradient.clamp(min=0) * maps).sum(1)[0].clamp(min=0)


def _enlarge(cells: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A map `(h, w)` of the padded image, bilinear, cut to the true `size` (H, W)."""
    whole = F.interpolate(cells[None, None], size=padded, mode="bilinear", align_corners=False)[0, 0]
    return whole[: size[0], : size[1]].cpu().numpy()
