"""Folded norms give the same maps and boxes, whatever the architecture; what folding would change stays as it was."""

from __future__ import annotations

import copy
import ctypes
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_norms import ActNorm, BoostedNorm, BranchingNorm, FunctionalActNorm, ResidualNorm, X, shake
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from flyspeck.models.backbones.freezing import freeze_norms
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import resnet18
from flyspeck.models.detector import PixelNorm
from flyspeck.models.fold import fold_norms, probe_images, relative_difference
from flyspeck.models.heads.faster_rcnn import faster_rcnn
from flyspeck.types import ImageBatch


class StandardisedConv(nn.Conv2d):
    """A scale of its weight changes nothing."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-6)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvWithActivation(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class Net(nn.Module):
    """One convolution, one norm, and a way of using them."""

    def __init__(
        self, way: Callable[[Net, Tensor], object], conv: nn.Module | None = None, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(4, 4, 3, padding=1)
        self.norm = norm or nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.way = way
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> object:
        return self.way(self, x)


def plain(net: Net, x: Tensor) -> Tensor:
    return F.relu(net.norm(net.conv(x)))


FOLDS: dict[str, Callable[[], Net]] = {
    "plain": lambda: Net(plain),
    "without bias": lambda: Net(plain, nn.Conv2d(4, 4, 3, bias=False)),
    "strided and dilated": lambda: Net(plain, nn.Conv2d(4, 4, 3, stride=2, dilation=2, padding=1)),
    "depthwise": lambda: Net(plain, nn.Conv2d(4, 4, 3, groups=4)),
    "grouped": lambda: Net(plain, nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "transposed": lambda: Net(plain, nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), nn.BatchNorm2d(6)),
    "transposed, grouped": lambda: Net(plain, nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "transposed, its size given": lambda: Net(
        lambda n, x: n.norm(n.conv(x, output_size=(24, 19))), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
    ),
    "reflected padding": lambda: Net(plain, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    "no affine": lambda: Net(plain, norm=nn.BatchNorm2d(4, affine=False)),
    "torchvision's frozen norm": lambda: Net(plain, norm=TorchvisionFrozenBatchNorm2d(4)),
    "activation in the norm": lambda: Net(lambda n, x: n.norm(n.conv(x)), norm=ActNorm(4)),
    "hard swish in the norm": lambda: Net(lambda n, x: n.norm(n.conv(x)), norm=ActNorm(4, nn.Hardswish())),
    "activation with weights": lambda: Net(lambda n, x: n.norm(n.conv(x)), norm=ActNorm(4, nn.PReLU(4))),
    "functional activation": lambda: Net(lambda n, x: n.norm(n.conv(x)), norm=FunctionalActNorm(4)),
    "output changed in place afterwards": lambda: Net(lambda n, x: n.norm(n.conv(x)).relu_().add_(1)),
    "residual around both": lambda: Net(lambda n, x: x + n.norm(n.conv(x))),
    "input overwritten afterwards": lambda: Net(lambda n, x: _overwrites_input(n, x.clone())),
    "applied to two maps": lambda: Net(lambda n, x: [n.norm(n.conv(x)), n.norm(n.conv(x[..., ::2]))]),
    "weight tied to another": lambda: _tied(),
    "norm in two places": lambda: _twice_registered(),
}

STAYS: dict[str, tuple[Callable[[], Net], str]] = {
    "skip from the convolution": (lambda: Net(lambda n, x: (y := n.conv(x)) + n.norm(y)), "taken by something else"),
    "skip through a module": (lambda: Net(lambda n, x: [n.norm(y := n.conv(x)), n.other(y)]), "taken by something"),
    "skip through a view": (lambda: Net(lambda n, x: [n.norm(y := n.conv(x)), y.flatten(2).mean(2)]), "view"),
    "norm of a view": (lambda: Net(lambda n, x: n.norm(n.conv(x)[..., :5])), "not take a convolution's output"),
    "changed in place before": (lambda: Net(lambda n, x: n.norm(n.conv(x).relu_())), "relu_"),
    "changed in place after": (lambda: Net(lambda n, x: _changed_after(n, x)), "mul_"),
    "convolution's output returned": (lambda: Net(lambda n, x: {"raw": (y := n.conv(x)), "n": n.norm(y)}), "the result"),
    "convolution shared without the norm": (lambda: Net(lambda n, x: n.norm(n.conv(x)) + n.conv(x + 1)), "add"),
    "convolution used alone at last": (lambda: Net(lambda n, x: _alone(n, x)), "used elsewhere"),
    "norm applied twice": (lambda: Net(lambda n, x: n.norm(F.relu(n.norm(n.conv(x))))), "used elsewhere"),
    "norm of two convolutions": (lambda: Net(lambda n, x: n.norm(n.conv(x)) + n.norm(n.other(x))), "used elsewhere"),
    "weight used by a function": (
        lambda: Net(lambda n, x: n.norm(n.conv(x)) + F.conv2d(x, n.conv.weight, padding=1)), "on its weight"
    ),
    "batch statistics": (lambda: Net(plain, norm=nn.BatchNorm2d(4, track_running_stats=False)), "no running statistics"),
    "residual in the norm": (lambda: Net(plain, norm=ResidualNorm(4)), "cannot be told"),
    "a norm that branches": (lambda: Net(plain, norm=BranchingNorm(4)), "cannot be told"),
    "another normalisation": (lambda: Net(plain, norm=BoostedNorm(4)), "would differ"),
    "standardised weight": (lambda: Net(plain, StandardisedConv(4, 4, 3)), "would differ"),
    "convolution that activates": (lambda: Net(plain, ConvWithActivation(4, 4, 3)), "would differ"),
    "computed weight": (lambda: Net(plain, parametrizations.weight_norm(nn.Conv2d(4, 4, 3))), "computed"),
    "hook on the convolution": (lambda: _hooked(), "hooks"),
    "norm after a pool": (lambda: Net(lambda n, x: n.norm(F.avg_pool2d(n.conv(x), 2))), "not take a conv"),
    "kept for later": (lambda: Net(lambda n, x: _kept(n, x)), "taken by something else"),
    "read as an array": (lambda: Net(lambda n, x: _read(n, x)), "would differ"),
}  # fmt: skip


def _overwrites_input(net: Net, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    x.zero_()
    return y


def _changed_after(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.norm(y)
    return z + y.mul_(2)


def _alone(net: Net, x: Tensor) -> Tensor:
    first = net.norm(net.conv(x))
    net.conv(x)  # nobody takes it here; elsewhere it would be without its norm
    return first


def _kept(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    net.seen.append(y)
    z = net.norm(y)
    return z + net.seen.pop()


def _read(net: Net, x: Tensor) -> Tensor:
    """Past every operator: the memory itself."""
    y = net.conv(x)
    values = np.ctypeslib.as_array((ctypes.c_float * y.numel()).from_address(y.data_ptr())).copy()
    return net.norm(y) + torch.as_strided(torch.from_numpy(values), y.shape, y.stride())


def _tied() -> Net:
    """`other` has the same weight: it must keep what it had."""
    net = Net(lambda n, x: n.norm(n.conv(x)) + n.other(x), nn.Conv2d(4, 4, 1))
    net.other.weight = net.conv.weight  # type: ignore[assignment]
    return net


def _twice_registered() -> Net:
    net = Net(lambda n, x: n.again(n.conv(x)))
    net.again = net.norm
    return net


def _hooked() -> Net:
    net = Net(lambda n, x: [n.norm(n.conv(x)), n.seen.pop()])
    net.conv.register_forward_hook(lambda module, args, output: net.seen.append(torch.tensor(output.shape)))
    return net


def _maps(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", FOLDS)
@torch.no_grad()
def test_what_folds(name: str) -> None:
    torch.manual_seed(0)
    net = shake(FOLDS[name]())
    before = _maps(net(X))
    folding = fold_norms(net, lambda: net(X))
    assert folding.folded == ("norm",)
    assert folding.kept == {}
    assert not any(isinstance(m, nn.BatchNorm2d | TorchvisionFrozenBatchNorm2d) for m in net.modules())
    other = X.flip(0) * 0.7 + 0.1  # not the input that it was folded on
    again = shake_copy(name)
    for a, b in zip(_maps(net(X)) + _maps(net(other)), before + _maps(again(other)), strict=True):
        assert relative_difference(a, b) < 1e-5


def shake_copy(name: str) -> nn.Module:
    torch.manual_seed(0)
    return shake(FOLDS[name]())


@pytest.mark.parametrize("name", STAYS)
@torch.no_grad()
def test_what_stays(name: str) -> None:
    torch.manual_seed(0)
    build, reason = STAYS[name]
    net = shake(build())
    state = copy.deepcopy(net.state_dict())
    before = _maps(net(X))
    folding = fold_norms(net, lambda: net(X))
    assert folding.folded == ()
    assert list(folding.kept) == ["norm"]
    assert reason in folding.kept["norm"]
    after = net.state_dict()
    assert list(after) == list(state)
    for a, b in zip([*after.values(), *_maps(net(X))], [*state.values(), *before], strict=True):
        assert_close(a, b, rtol=0, atol=0)


def test_what_differs_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    net = shake(Net(plain, StandardisedConv(4, 4, 3)))
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        fold_norms(net, lambda: net(X))
    assert "1 norms stay as they are, folded their outputs would differ: norm" in caplog.text


@torch.no_grad()
def test_one_that_differs_among_many_is_found() -> None:
    """Seven blocks, of which the memory of one's convolution is read past every operator: six fold."""
    nets = nn.Sequential(*(Net(_read if i == 4 else plain) for i in range(7)))
    shake(nets)
    expected = nets(X)
    folding = fold_norms(nets, lambda: nets(X))
    assert folding.folded == tuple(f"{i}.norm" for i in (0, 1, 2, 3, 5, 6))
    assert relative_difference(nets(X), expected) < 1e-5


@torch.no_grad()
def test_a_model_that_does_not_repeat_itself_stays(caplog: pytest.LogCaptureFixture) -> None:
    net = shake(Net(lambda n, x: plain(n, x) + torch.rand(1)))
    with caplog.at_level(logging.WARNING, logger="flyspeck"):
        assert fold_norms(net, lambda: net(X)).folded == ()
    assert "does not give the same twice" in caplog.text


@torch.no_grad()
def test_a_module_that_reads_its_norm_stays() -> None:
    net = shake(Net(lambda n, x: plain(n, x) * n.norm.num_features))
    expected = net(X)
    assert "would differ" in fold_norms(net, lambda: net(X)).kept["norm"]
    assert_close(net(X), expected, rtol=0, atol=0)


WAYS: list[Callable[[Net, Tensor], Tensor]] = [
    plain,
    lambda n, x: x + n.norm(n.conv(x)),
    lambda n, x: (y := n.conv(x)) + n.norm(y),
    lambda n, x: n.norm(n.conv(x).relu_()),
    lambda n, x: n.norm(n.norm(n.conv(x))),
    lambda n, x: n.norm(n.conv(x)) + n.conv(F.relu(x)),
    lambda n, x: n.norm(n.conv(x).transpose(2, 3)).transpose(2, 3),
    lambda n, x: torch.cat([n.norm(n.conv(x))[:, :2], n.other(x)[:, 2:]], 1),
    lambda n, x: n.norm(n.conv(x)) + n.norm(n.other(x)),
    _kept,
    _read,
]
CONVS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(4, 4, 3, padding=1),
    lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    lambda: nn.Conv2d(4, 4, 1, groups=2),
    lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
    lambda: StandardisedConv(4, 4, 3, padding=1),
]
NORMS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm2d(4),
    lambda: nn.BatchNorm2d(4, affine=False),
    lambda: ActNorm(4, nn.SiLU(inplace=True)),
    lambda: FunctionalActNorm(4),
    lambda: ResidualNorm(4),
    lambda: BoostedNorm(4),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*(st.integers(0, len(k) - 1) for k in (WAYS, CONVS, NORMS))), min_size=1, max_size=5),
    st.booleans(),
)
def test_any_chain_of_odd_blocks_gives_what_it_gave(plan: list[tuple[int, int, int]], frozen: bool) -> None:
    torch.manual_seed(len(plan))
    blocks = nn.Sequential(*(Net(WAYS[w], CONVS[c](), NORMS[n]()) for w, c, n in plan))
    shake(blocks)
    if frozen:
        freeze_norms(blocks)
    with torch.no_grad():
        x = X + 0.5  # another input than that of the proof
        before, other = blocks(X), blocks(x)
        folding = fold_norms(blocks, lambda: blocks(X))
        assert len(folding.folded) + len(folding.kept) == len(plan)
        assert relative_difference(blocks(X), before) <= 1e-4
        assert relative_difference(blocks(x), other) <= 2e-4


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2], ids=["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_backbones(build: type, frozen: bool) -> None:
    backbone = shake(build(width=0.25))
    if frozen:
        freeze_norms(backbone)
        backbone.eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = backbone(x)
        norms = sum("BatchNorm" in type(m).__name__ for m in backbone.modules())
        folding = fold_norms(backbone, lambda: backbone(x))
        assert len(folding.folded) == norms > 10
        assert not folding.kept
        after = backbone(x)
    assert not any("BatchNorm" in type(m).__name__ for m in backbone.modules())
    for a, b in zip(after, before, strict=True):
        assert relative_difference(a, b) < 1e-4


def test_a_shared_tower_keeps_its_private_norms() -> None:
    detector = shake(
        faster_rcnn(
            mobilenet_v2(width=0.25),
            classes="ab",
            pixel_norm=PixelNorm([0.5], [0.2]),
            channels=16,
            hidden=32,
            norm=nn.BatchNorm2d,
        )
    )
    images = ImageBatch(torch.randint(0, 255, (1, 1, 64, 64), dtype=torch.uint8), ((64, 64),))
    folded = copy.deepcopy(detector)

    def forward() -> list[Tensor]:
        folded.detect(images)  # type: ignore[operator]
        return folded.pyramid(images)  # type: ignore[operator]

    assert len(fold_norms(folded, forward).folded) > 20
    kept = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert kept == [f"head.rpn.tower.norms.{level}.0" for level in range(5)]
    for a, b in zip(folded.pyramid(images), detector.pyramid(images), strict=True):  # type: ignore[operator]
        assert relative_difference(a, b.detach()) < 1e-4


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_norms(resnet18(width=0.25), lambda: None)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_detector_is_shown_has_structure(channels: int) -> None:
    images = probe_images(channels, 64)
    assert images.pixels.shape == (1, channels, 64, 64)
    assert float(images.pixels.min()) >= 0
    assert float(images.pixels.max()) <= 1
    assert float(images.pixels.std()) > 0.1
    assert_close(images.pixels, probe_images(channels, 64).pixels, rtol=0, atol=0)
