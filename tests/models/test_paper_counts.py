"""Parameters and GFLOPs that the papers' texts or files give, of variants that `flyspeck models` does not list."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.build import build
from flyspeck.models.layers import group_norm
from flyspeck.models.profile import profile

SIZE = (512, 640)


def frozen_retinanet(**options):
    """Adaptive RetinaNet as the fusion-factor paper trains it: stem, stage 1 and the backbone's norms frozen."""

    def prepare(backbone, _):
        freeze_stages(backbone, 1)
        freeze_norms(backbone)
        return {}

    with torch.device("meta"):
        return build("retinanet:resnet50", prepare=prepare, **options)


@pytest.mark.parametrize(
    ("extra", "trainable", "gflops"),
    [
        ("conv_c5", 36.120e6, 177.520),
        ("pool", 31.401e6, 177.143),
    ],  # TOV_mmdetection's; the text's and the authors' code's
)
def test_p6_of_the_fusion_factor_paper(extra: str, trainable: float, gflops: float) -> None:
    counted = profile(frozen_retinanet(extra=extra), SIZE, convention="mmcv")
    assert counted.params_trainable == pytest.approx(trainable, abs=500)
    assert counted.gflops == pytest.approx(gflops, abs=5e-4)


def test_a_neck_that_makes_its_own_levels_takes_no_rule_for_them() -> None:
    with torch.device("meta"):
        retinanet = partial(build, "retinanet:resnet50:sspnet", channels=16, width=0.25)
        retinanet()
        with pytest.raises(UserError, match="SSPNet makes the levels above the backbone's last itself, not by 'pool'"):
            retinanet(extra="pool")


def test_self_attention_costs_what_cannot_be_neglected() -> None:
    """By hand, at 640x512 and 256 channels: the edges' coarser maps have 64x80, 32x40 and 16x20 cells; to each cell belong
    query and key (512 x 32 each) and value (512 x 256), and with every other cell 32 + 256 multiply-adds; then 256 for the
    factor. The text gives no number, only that it is not negligible."""
    plain, attended = (
        profile(frozen_retinanet(extra="pool", fusion=fusion), SIZE, convention="macs")
        for fusion in (None, "self_attention")
    )
    expected = sum(n * 512 * (2 * 32 + 256) + n**2 * (32 + 256) + 256 for n in (64 * 80, 32 * 40, 16 * 20))
    assert attended.gflops - plain.gflops == pytest.approx(expected / 1e9, rel=1e-9)
    assert 0.05 < expected / 1e9 / plain.gflops < 0.06
    assert attended.params - plain.params == 3 * (512 * (32 + 32 + 256) + 256 + 257)
    gated = profile(frozen_retinanet(extra="pool", fusion="gate"), SIZE, convention="macs")
    assert gated.gflops - plain.gflops < 1e-3


def test_reppoints_on_mobilenet_v2_is_not_the_papers() -> None:
    """DPNet's Table III prints 8.52 M and 95.71 G; nothing that was tried gives that. docs/papers/dpnet.md says what is here."""

    def prepare(backbone, _):
        freeze_stages(backbone, 1)
        return {}

    with torch.device("meta"):
        model = build(
            "reppoints:mobilenet_v2",
            levels="3-7",
            norm=group_norm,
            classes=[str(i) for i in range(80)],
            prepare=prepare,
        )
    counted = profile(model, (796, 1124), convention="mmcv")
    assert counted.params_trainable == 10_352_838
    assert counted.gflops == pytest.approx(95.323, abs=1e-3)
