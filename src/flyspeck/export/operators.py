"""How the operators of `models.batch_decoding` are written in ONNX: suppression and RoIAlign.

`torch.export` cannot see through them, since what they keep depends on the data. In the exported graph they are
`NonMaxSuppression` and `RoiAlign`, with what those need around them.
"""

from __future__ import annotations

from typing import Any

import torch

from flyspeck.export.tiny_form import tiny_suppression_form
from flyspeck.models.batch_decoding import ONNX_FORMS


def onnx_translations() -> dict[Any, Any]:
    """For `torch.onnx.export(custom_translation_table=...)`: the two operators in ONNX, and those of `register_onnx`."""
    from onnxscript import opset18

    op: Any = opset18  # its type constraints cannot follow values through one another

    def nms_mask_onnx(boxes: Any, scores: Any, iou: float, threshold: float, limit: int) -> Any:
        chosen = op.NonMaxSuppression(
            # No change, but for engines that must see the 4: OpenVINO's integer passes lose it on the way from the box layer.
            op.Reshape(boxes, op.Constant(value_ints=[0, -1, 4])),
            scores,
            # A count that grows with the input is a value of the graph.
            op.Constant(value_ints=[limit])
            if isinstance(limit, int)
            else op.Reshape(limit, op.Constant(value_ints=[1])),
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

    further = {}
    for name, form in ONNX_FORMS.items():
        namespace, _, operator = name.partition("::")
        further[getattr(getattr(torch.ops, namespace), operator).default] = form(op)
    return {
        **further,
        torch.ops.flyspeck.nms_mask.default: nms_mask_onnx,
        torch.ops.flyspeck.pyramid_roi_align.default: pyramid_roi_align_onnx,
        torch.ops.flyspeck.tiny_suppression.default: tiny_suppression_form(op),
    }
