"""The two steps of detection that ONNX has operators for and `torch.export` cannot see through: suppression and RoIAlign.

Each is a torch operator of fixed output shape, whatever the data: so a batch stays one graph of tensors. In torch it runs
as in the detectors; in the exported graph it is `NonMaxSuppression` or `RoiAlign` with what those need around them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from flyspeck.models.roi_align import pyramid_roi_align as eager_roi_align


@torch.library.custom_op("flyspeck::nms_mask", mutates_args=())
def nms_mask(boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    """Which candidates survive: `boxes (G, M, 4)`, `scores (G, C, M)` to float `(G, C, M)` of 1 and 0.

    Boxes of a group and class that overlap a better one by more than `iou` do not, nor do scores not above `threshold`, nor
    more than `limit` a group and class.
    """
    mask = torch.zeros_like(scores)
    for group in range(scores.shape[0]):
        for category in range(scores.shape[1]):
            rows = torch.nonzero(scores[group, category] > threshold).squeeze(1)
            kept = rows[nms(boxes[group, rows], scores[group, category, rows], iou)[:limit]]
            mask[group, category, kept] = 1
    return mask


@nms_mask.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores)


@torch.library.custom_op("flyspeck::pyramid_roi_align", mutates_args=())
def pyramid_roi_align(
    maps: list[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool
) -> Tensor:
    """`models.roi_align.pyramid_roi_align` as one operator of a graph."""
    return eager_roi_align(maps, regions, level, output, sampling, aligned).contiguous()


@pyramid_roi_align.register_fake
def _(maps: list[Tensor], regions: Tensor, level: Tensor, output: int, sampling: int, aligned: bool) -> Tensor:
    return maps[0].new_empty(regions.shape[0], maps[0].shape[1], output, output)


def onnx_translations() -> dict[Any, Any]:
    """For `torch.onnx.export(custom_translation_table=...)`: the two operators in ONNX."""
    from onnxscript import opset18

    op: Any = opset18  # its type constraints cannot follow values through one another

    def nms_mask_onnx(boxes: Any, scores: Any, iou: float, threshold: float, limit: int) -> Any:
        chosen = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[limit]),
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[threshold]),
        )
        rows = op.Shape(chosen, start=0, end=1)
        ones = op.Expand(op.Constant(value_float=1.0), rows)
        return op.ScatterND(op.Expand(op.Constant(value_float=0.0), op.Shape(scores)), chosen, ones)

    def pyramid_roi_align_onnx(maps: Any, regions: Any, level: Any, output: int, sampling: int, aligned: bool) -> Any:
        mode = "half_pixel" if aligned else "output_half_pixel"
        cuts, orders = [], []
        for i, m in enumerate(maps):
            here = op.Equal(level, op.Constant(value_int=i))
            rows = op.Squeeze(op.NonZero(here), op.Constant(value_ints=[0]))
            mine = op.Gather(regions, rows, axis=0)
            boxes = op.Slice(
                mine, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]), op.Constant(value_ints=[1])
            )
            images = op.Cast(op.Gather(mine, op.Constant(value_int=0), axis=1), to=7)
            cuts.append(
                op.RoiAlign(
                    m,
                    boxes,
                    images,
                    coordinate_transformation_mode=mode,
                    mode="avg",
                    output_height=output,
                    output_width=output,
                    sampling_ratio=sampling,
                    spatial_scale=1.0,
                )
            )
            orders.append(rows)
        order = op.Concat(*orders, axis=0)
        count = op.Squeeze(op.Shape(order), op.Constant(value_ints=[0]))
        places = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
        inverse = op.ScatterElements(places, order, places, axis=0)
        return op.Gather(op.Concat(*cuts, axis=0), inverse, axis=0)

    return {
        torch.ops.flyspeck.nms_mask.default: nms_mask_onnx,
        torch.ops.flyspeck.pyramid_roi_align.default: pyramid_roi_align_onnx,
    }
