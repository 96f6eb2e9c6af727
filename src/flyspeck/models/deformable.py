"""Deformable convolution (Dai et al., 2017, arXiv:1703.06211) and group norms in a residual backbone that was built without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck
from torchvision.ops import DeformConv2d

from flyspeck.errors import UserError
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.follows import what_follows
from flyspeck.models.layers import NormBuilder, places


class DeformableConv(nn.Module):
    """A convolution whose k x k samples lie where another convolution says: an offset in x and y for each.

    The offsets start at 0, so that it starts as the plain convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.offset = nn.Conv2d(inputs, 2 * kernel**2, kernel, stride, padding)
        self.conv = DeformConv2d(inputs, outputs, kernel, stride, padding, bias=False)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, C', H', W')`."""
        offset = self.offset(x)
        if torch.compiler.is_exporting():
            stride, padding = self.conv.stride[0], self.conv.padding[0]
            return sampled_deform_conv(x, offset, self.conv.weight, stride=stride, padding=padding)
        return self.conv(x, offset)


def sampled_deform_conv(x: Tensor, offset: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """A deformable convolution by `grid_sample` and one matrix product: torchvision's numbers, up to rounding.

    `x (B, C, H, W)`, offsets `(B, 2 k², H', W')` in cells, (y, x) pairs from the plain kernel's taps, and `weight
    (C', C, k, k)` to `(B, C', H', W')`. On a CPU its gradient is about 10 times as fast as torchvision's operator, and
    graphs of exported models (ONNX of opset 18) have it.
    """
    batch, kernel = x.shape[0], weight.shape[-1]
    taps = kernel**2
    side = torch.arange(kernel, dtype=torch.float32, device=x.device) - padding
    plain = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(taps, 2, 1, 1)
    height, width = offset.shape[-2], offset.shape[-1]
    row, column = torch.meshgrid(
        stride * torch.arange(height, device=x.device), stride * torch.arange(width, device=x.device), indexing="ij"
    )
    places = offset.float().unflatten(1, (taps, 2)) + plain
    places = torch.stack([2 * (places[:, :, 1] + column) + 1, 2 * (places[:, :, 0] + row) + 1], -1)
    sides = torch.stack([torch.scalar_tensor(x.shape[-1]), torch.scalar_tensor(x.shape[-2])]).to(x.device)
    places = places / sides - 1  # cell middles in [-1, 1]
    read = F.grid_sample(x.float(), places.reshape(batch, -1, width, 2), mode="bilinear", align_corners=False)
    read = read.reshape(batch, -1, taps, height * width)
    out = torch.einsum("bcpn,dcp->bdn", read, weight.float().flatten(2))
    return out.reshape(batch, -1, height, width).to(x.dtype)


def make_deformable(backbone: StagedBackbone, stages: Sequence[str] = ("stage3", "stage4")) -> StagedBackbone:
    """Replaces, in place, the 3x3 convolution of every bottleneck of `stages` by a deformable one with its weights.

    Raises UserError where there is no bottleneck with an ungrouped 3x3.
    """
    backbone = need_stages(backbone, "deformable convolution", where="model.name")
    changed = 0
    for name in [name for name in stages if name in backbone.stages]:
        for block in backbone.stages[name].modules():
            if isinstance(block, Bottleneck) and block.conv2.groups == 1:
                old = block.conv2
                new = DeformableConv(
                    old.in_channels,
                    old.out_channels,
                    old.kernel_size[0],
                    stride=old.stride[0],
                    padding=old.padding[0],  # type: ignore[arg-type]
                )
                new.conv.weight.data.copy_(old.weight.data)
                block.conv2 = new  # type: ignore[assignment]
                changed += 1
    if not changed:
        raise UserError(
            f"no bottleneck in {', '.join(stages)} to make deformable",
            fix="take a backbone of bottlenecks, such as resnet50",
        )
    return backbone


def replace_batch_norms(module: nn.Module, norm: NormBuilder) -> nn.Module:
    """Replaces, in place, every BatchNorm2d below `module` by `norm(channels)`, which starts as the identity's scale.

    What a subclass does after it has normalised stays (an activation, say). Raises UserError where that cannot be told.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for parent, name, child in list(places(module)):
        if not isinstance(child, nn.BatchNorm2d):
            continue
        if child not in replaced:  # a norm that sits in two places stays one norm
            rest = what_follows(child)
            if rest is None:
                raise UserError(
                    f"{type(child).__name__} does more than to normalise, and it cannot be told what",
                    where="norm",
                    fix="keep the backbone's own norms",
                )
            made = norm(child.num_features)
            replaced[child] = made if isinstance(rest, nn.Identity) else nn.Sequential(made, rest)
        setattr(parent, name, replaced[child])
    return module
