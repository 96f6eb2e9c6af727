"""The feature pyramid and its fusion factors: Eq. 1, Eq. 3 and sigma-power of the fusion factor paper."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.ops import FeaturePyramidNetwork

from flyspeck.models.layers import group_norm
from flyspeck.models.necks.fpn import FPN, SelfAttention, sigma_power_
from flyspeck.types import FeatureSpec

CHANNELS = (6, 8, 10, 12)
FEATURES = [FeatureSpec(c, 4 * 2**i) for i, c in enumerate(CHANNELS)]


def backbone_maps(*, dtype: torch.dtype = torch.float32, sizes=((32, 40), (16, 20), (8, 10), (4, 5))) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(CHANNELS, sizes, strict=True)]


def pyramid(fusion=None, **options) -> FPN:
    torch.manual_seed(0)
    return FPN(FEATURES, channels=16, fusion=fusion, **options)


def test_equation_1_by_hand():
    """P'_i = inner_i(C_i) + alpha_i * up(P'_{i+1}), written out level by level."""
    fpn, maps, alpha = pyramid((0.5, 0.3, 0.2)), backbone_maps(), (0.5, 0.3, 0.2)
    inner = [conv(m) for conv, m in zip(fpn.inner, maps, strict=True)]
    p4 = inner[2] + alpha[2] * F.interpolate(inner[3], scale_factor=2)
    p3 = inner[1] + alpha[1] * F.interpolate(p4, scale_factor=2)
    p2 = inner[0] + alpha[0] * F.interpolate(p3, scale_factor=2)
    expected = [layer(m) for layer, m in zip(fpn.layer, (p2, p3, p4, inner[3]), strict=True)]
    assert_close(fpn(maps), [*expected, expected[-1][..., ::2, ::2]])


def test_without_factors_it_is_torchvisions():
    theirs = FeaturePyramidNetwork(list(CHANNELS), 16)
    ours = pyramid(num_extra=0)
    for i in range(4):
        theirs.inner_blocks[i][0].load_state_dict(ours.inner[i][0].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.layer[i][0].state_dict())
    maps = backbone_maps(sizes=((31, 39), (16, 20), (8, 10), (4, 5)))
    assert_close(ours(maps), list(theirs({str(i): m for i, m in enumerate(maps)}).values()))


@pytest.mark.parametrize("extra", ["pool", "conv_c5", "conv_p5"])
def test_sigma_power_weights_with_alpha_1_are_alpha_sigma(extra):
    """Sec. 3.3: an identity, exact for powers of two; biases of the inner convolutions belong to it."""
    maps, sigma = backbone_maps(), 0.5
    fixed = pyramid((sigma,) * 3, extra=extra)
    plain = pyramid(extra=extra)
    for p, q in zip(fixed.parameters(), plain.parameters(), strict=True):
        with torch.no_grad():
            q.copy_(p.copy_(torch.randn_like(p)))  # biases too
    assert_close(sigma_power_(plain, sigma)(maps), fixed(maps), rtol=0, atol=1e-6)


def test_sigma_power_to_a_millionth_in_double_precision():
    fixed, plain = pyramid((0.3,) * 3).double(), pyramid(sigma=0.3).double()
    fixed.fusion = torch.full((3,), 0.3, dtype=torch.float64)
    plain.load_state_dict(fixed.state_dict() | {"fusion": plain.fusion})
    sigma_power_(plain, 0.3)
    maps = backbone_maps(dtype=torch.float64)
    assert_close(plain(maps), fixed(maps), rtol=1e-12, atol=1e-12)


def test_sigma_power_is_refused_where_it_is_no_identity():
    with pytest.raises(ValueError, match="without norm layers"):
        pyramid(norm=group_norm, sigma=0.5)
    with pytest.raises(ValueError, match="positive"):
        pyramid(sigma=0.0)


@pytest.mark.parametrize("levels", [(0,), (1,), (0, 1)], ids=["P2", "P3", "both"])
def test_the_gradient_at_c4_is_affine_in_alpha(levels):
    """Eq. 3: for fixed cotangents at P2 and P3, d/dC4 = a + alpha_3^4 * b. Three points on a line, and the line not flat.

    It is the vector-Jacobian product that is affine, not the gradient of a loss: alpha_3^4 changes P'_3 and so the loss.
    P2 and P3 see C4 through alpha_3^4 alone, so here a = 0 unless P4 has a cotangent too.
    """
    fpn = pyramid((0.7, 1.0, 0.4)).double()
    torch.manual_seed(2)
    cotangents = [torch.randn_like(level) for level in fpn(backbone_maps(dtype=torch.float64))]

    def gradient(alpha: float, with_p4: bool) -> Tensor:
        fpn.fusion = torch.tensor([0.7, alpha, 0.4], dtype=torch.float64)
        maps = backbone_maps(dtype=torch.float64)
        maps[2].requires_grad_()
        out = fpn(maps)
        used = [*levels, 2] if with_p4 else list(levels)
        return torch.autograd.grad([out[i] for i in used], maps[2], [cotangents[i] for i in used])[0]

    for with_p4 in (False, True):
        at_0, at_1, at_2 = (gradient(alpha, with_p4) for alpha in (0.0, 1.0, 2.0))
        assert_close(at_2 - at_1, at_1 - at_0, rtol=1e-10, atol=1e-12)
        assert_close(gradient(0.37, with_p4), at_0 + 0.37 * (at_1 - at_0), rtol=1e-10, atol=1e-12)
        assert (at_1 - at_0).abs().max() > 0.01
        assert bool(at_0.abs().max() > 0.01) is with_p4


def test_alpha_0_cuts_the_levels_apart():
    maps = backbone_maps()
    changed = [*maps[:3], maps[3] + 1]
    before, after = pyramid((0, 0, 0))(maps), pyramid((0, 0, 0))(changed)
    assert_close(before[:3], after[:3], rtol=0, atol=0)
    assert (before[3] - after[3]).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["one", "three", "gate", "self_attention"])
def test_learnable_factors_start_as_the_plain_pyramid_and_learn(mode):
    fpn, maps = pyramid(mode), backbone_maps()
    plain = pyramid()
    plain.load_state_dict(
        {k: v for k, v in fpn.state_dict().items() if "gates" not in k and k != "fusion"}, strict=False
    )
    by_maps = mode in ("gate", "self_attention")
    tolerance = 0.05 if by_maps else 0.0  # such a factor starts near 1, not at it
    assert_close(fpn(maps), plain(maps), rtol=0, atol=tolerance)
    sum(level.square().mean() for level in fpn(maps)).backward()
    factors = [p for name, p in fpn.named_parameters() if "fusion" in name or "gates" in name]
    assert sum(p.numel() for p in fpn.parameters() if p is fpn.fusion) == {"one": 1, "three": 3}.get(mode, 0)
    assert factors
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in factors if p.ndim != 2 or mode != "gate")


def test_self_attention_by_hand():
    """One query at a time, one key at a time, written out."""
    torch.manual_seed(0)
    block, lateral, above = (
        SelfAttention(16).double(),
        torch.randn(2, 16, 4, 6).double(),
        torch.randn(2, 16, 2, 3).double(),
    )
    with torch.no_grad():
        block.factor.weight.normal_()
    found = block(lateral, above)
    for image in range(2):
        halved = F.avg_pool2d(lateral[image : image + 1], 2)
        both = torch.cat([halved, above[image : image + 1]], 1)
        query, key, value = (conv(both)[0].flatten(1) for conv in (block.query, block.key, block.value))
        attended = []
        for i in range(6):
            weights = torch.softmax(torch.stack([(query[:, i] * key[:, j]).sum() / 2**0.5 for j in range(6)]), 0)
            attended.append(sum(weights[j] * value[:, j] for j in range(6)))
        expected = 2 * torch.sigmoid(block.factor(torch.stack(attended).mean(0)))
        assert_close(found[image].flatten(), expected)


def test_self_attention_sees_maps_of_any_ratio():
    assert SelfAttention(16)(torch.randn(1, 16, 7, 9), torch.randn(1, 16, 3, 2)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("mode", ["gate", "self_attention"])
def test_factors_from_maps_are_of_each_image(mode):
    fpn, maps = pyramid(mode), backbone_maps()
    with torch.no_grad():
        for gate in fpn.gates:
            (gate.excite if mode == "gate" else gate.factor).weight.normal_()
    alone = [fpn([m[i : i + 1] for m in maps]) for i in range(2)]
    both = fpn(maps)
    for level in range(5):
        assert_close(both[level], torch.cat([a[level] for a in alone]), rtol=1e-5, atol=1e-5)
    assert fpn.factor(0, torch.randn(2, 16, 8, 8), torch.randn(2, 16, 4, 4)).shape == (2, 1, 1, 1)


def test_wrong_factors_are_refused():
    with pytest.raises(ValueError, match="3 top-down edges, got 2 factors"):
        pyramid((1.0, 0.5))
    with pytest.raises(
        ValueError, match=r"no fusion 'statistic'.*known: a list of factors, gate, one, self_attention, three"
    ):
        pyramid("statistic")


def test_factors_are_stored_with_the_weights():
    state = pyramid((0.5, 0.25, 0.125)).state_dict()
    other = pyramid()
    other.load_state_dict(state)
    assert other.fusion.tolist() == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(("extra", "num_extra"), list(product(["pool", "conv_c5", "conv_p5"], [0, 1, 2])))
def test_specs_are_what_comes_out(extra, num_extra):
    fpn = pyramid(extra=extra, num_extra=num_extra)
    out = fpn(backbone_maps())
    assert len(out) == len(fpn.features) == 4 + num_extra
    for level, spec in zip(out, fpn.features, strict=True):
        assert level.shape[1] == spec.channels
        assert level.shape[2] == -(-128 // int(spec.stride))
