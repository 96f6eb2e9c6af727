"""The comparators' options: each is a keyword of the builder with the same default, and all of them together build."""

from __future__ import annotations

import inspect

import pytest
import torch

from flyspeck.models.build import build
from flyspeck.models.heads.faster_rcnn import FasterRCNNHead, faster_rcnn
from flyspeck.models.heads.retinanet import retinanet
from flyspeck.options import Options
from flyspeck_lab.comparators.free_anchor import FreeAnchorOptions, free_anchor
from flyspeck_lab.comparators.grid_rcnn import GridRCNNHead, GridRCNNOptions, grid_rcnn
from flyspeck_lab.comparators.libra_rcnn import LibraRCNNOptions, libra_rcnn

PARTS = {
    "free_anchor": (FreeAnchorOptions, (free_anchor, retinanet)),
    "libra_rcnn": (LibraRCNNOptions, (libra_rcnn, faster_rcnn, FasterRCNNHead)),
    "grid_rcnn": (GridRCNNOptions, (grid_rcnn, GridRCNNHead)),
}


@pytest.mark.parametrize("name", PARTS)
def test_options_are_keywords_with_the_same_defaults(name: str) -> None:
    options, takers = PARTS[name]
    known: dict = {}
    for taker in takers:
        for parameter in inspect.signature(taker).parameters.values():
            known.setdefault(parameter.name, parameter.default)
    for key, field in options.model_fields.items():
        assert field.description
        default = field.get_default(call_default_factory=True, validated_data={})
        assert isinstance(default, Options) or default == known[key], key


@pytest.mark.parametrize("name", PARTS)
def test_all_options_together_build(name: str) -> None:
    given = PARTS[name][0]().model_dump()
    with torch.device("meta"):
        build(f"{name}:resnet18", width=0.25, channels=16, prepare=lambda *_: given)
