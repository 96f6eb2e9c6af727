"""Models with published numbers: what `flyspeck models` lists and a test recounts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Listed:
    """A model with published numbers."""

    name: str
    seed: str
    """Number of the seed paper: 000, 002, 003 or 004."""
    paper: str
    size: tuple[int, int]
    """(H, W) of the metrics."""
    convention: str
    params: float
    """Parameters as published; see `counted`."""
    gflops: float
    """As published; 0 where the paper gives none, or none that its text lets anybody count."""
    counted: str = "all"
    """Which parameters: `all`, `conv` (convolutions), `trainable` (stem, stage 1 and norms frozen), `trainable_norms` (stem and
    stage 1 frozen), `none`."""
    mean_of_factors: bool = False
    """Whether the GFLOPs are a mean over a data set's factors: they lie between those of the largest and the smallest."""
    tolerance: float = 1e-3
    """Relative; above 1e-3 the paper's number is not reproduced exactly, and the module says why."""


_NING = "Ning 2023, arXiv:2303.11267"
_GONG = "Gong 2021, arXiv:2011.02298"
_MUDASSAR = "Mudassar 2019, BMVC"
_DPNET = "Gong et al., DPNet"
_TINY = (512, 640)
_ssd = partial(Listed, seed="004", paper=_MUDASSAR, size=(300, 300), convention="ptflops")

LISTED: tuple[Listed, ...] = (
    Listed("resnet50", "002", _NING, _TINY, "mmcv", 23_508_032, 26.91),
    Listed("bh_resnet50", "002", _NING, _TINY, "mmcv", 10_948_160, 27.12),
    Listed("hrnet32", "002", _NING, _TINY, "mmcv", 29.31e6, 51.93),
    Listed("hrnet18", "002", _NING, _TINY, "mmcv", 9.56e6, 21.71),
    Listed("bh_hrnet18", "002", _NING, _TINY, "mmcv", 5.85e6, 21.66, tolerance=0.03),
    Listed("bh_hrnet32", "002", _NING, _TINY, "mmcv", 12.36e6, 51.89, tolerance=0.03),
    Listed("faster_rcnn:resnet50", "002", _NING, _TINY, "mmcv", 41.348e6, 75.58),
    Listed("faster_rcnn:bh_resnet50", "002", _NING, _TINY, "mmcv", 28.788e6, 75.79),
    Listed("faster_rcnn:hrnet32", "002", _NING, _TINY, "mmcv", 0, 100.66, counted="none"),
    Listed("faster_rcnn:hrnet18", "002", _NING, _TINY, "mmcv", 0, 69.33, counted="none"),
    Listed("fcos:resnet50", "002", _NING, _TINY, "mmcv", 0, 174.74, counted="none"),
    Listed("fcos:bh_resnet50", "002", _NING, _TINY, "mmcv", 0, 174.95, counted="none"),
    Listed("retinanet:resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 260.06, counted="none"),
    Listed("retinanet:bh_resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 260.27, counted="none"),
    Listed("cascade_rcnn:resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 186.62, counted="none"),
    Listed("cascade_rcnn:bh_resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 186.83, counted="none"),
    Listed("faster_rcnn:resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 158.82, counted="none"),
    Listed("faster_rcnn:bh_resnet50:sspnet", "002", _NING, _TINY, "mmcv", 0, 159.03, counted="none"),
    Listed("tinaface:resnet50", "002", _NING, _TINY, "thop", 0, 191.30, counted="none"),
    Listed("tinaface:bh_resnet50", "002", _NING, _TINY, "thop", 0, 191.54, counted="none"),
    Listed("tinaface_gn_dcn:resnet50", "002", _NING, _TINY, "thop", 0, 184.29, counted="none"),
    Listed("tinaface_gn_dcn:bh_resnet50", "002", _NING, _TINY, "thop", 0, 188.60, counted="none"),
    Listed("resnet101", "000", _DPNET, _TINY, "mmcv", 0, 0, counted="none"),
    Listed("reppoints:resnet50", "000", _DPNET, _TINY, "mmcv", 0, 158.92, counted="none"),
    Listed(
        "dpnet:reppoints:resnet50",
        "000",
        _DPNET,
        (796, 1124),
        "mmcv",
        39.64e6,
        107.80,
        counted="trainable_norms",
        tolerance=5e-3,
        mean_of_factors=True,
    ),
    Listed("retinanet:resnet50", "003", _GONG, _TINY, "mmcv", 36.12e6, 177.52, counted="trainable"),
    _ssd("ssd:mobilenet_v1", params=16.53e6, gflops=2.540),
    _ssd("ssd:mobilenet_v1:Size512", size=(512, 512), params=16.53e6, gflops=6.993),
    _ssd("ssd:mobilenet_v1:Early", params=17.32e6, gflops=4.236),
    _ssd("ssd:mobilenet_v1:Anchor10", params=16.53e6, gflops=2.540),
    _ssd("ssd:mobilenet_v1:S1L6", params=16.53e6, gflops=8.71),
    _ssd("ssd:mobilenet_v1:S1L4", params=16.53e6, gflops=9.15),
    _ssd("ssd:mobilenet_v1:S1L0", params=16.53e6, gflops=9.86),
    _ssd("ssd:mobilenet_v1:S1L4-Fmap1", params=16.53e6, gflops=9.145),
    _ssd("ssd:mobilenet_v1:S1L0-Fmap1", params=16.53e6, gflops=9.854),
    _ssd("ssd:mobilenet_v1:S2L4-6", params=16.53e6, gflops=33.412),
    _ssd("ssd:mobilenet_v1:S1L0-DualPath19-C", params=19.15e6, gflops=11.86),
    _ssd("ssd:mobilenet_v1:S1L0-DualPath19-10-C", params=23.85e6, gflops=12.33),
    _ssd("ssd:mobilenet_v1:S1L0-DualPath19-10-S", params=16.53e6, gflops=10.54),
    _ssd("ssd:vgg16", params=35.09e6, gflops=35.55),
    _ssd("ssd:vgg16:S1L2", params=35.09e6, gflops=128.98),
    _ssd("ssd:vgg16:S1L2-DualPath", params=35.09e6, gflops=154.10),
)


def listed(name: str) -> Listed | None:
    """The published numbers of `name`, if there are any."""
    return next((m for m in LISTED if m.name == name), None)


def default_size(name: str) -> tuple[int, int]:
    """(H, W) of the published numbers of `name`, or of its paper's tables."""
    entry = listed(name)
    if entry is None:
        return (300, 300) if name.startswith("ssd:") else _TINY
    return entry.size


def default_convention(name: str) -> str:
    """The counting convention of the published numbers of `name`, or of its paper's tables."""
    entry = listed(name)
    if entry is None:
        return "ptflops" if name.startswith("ssd:") else "mmcv"
    return entry.convention
