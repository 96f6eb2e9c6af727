"""The third part of a name: the comparators that have one configuration know no other."""

from __future__ import annotations

import pytest

from flyspeck.errors import UserError
from flyspeck.models.names import parse_name


@pytest.mark.parametrize(
    ("name", "said", "fix"),
    [
        ("s3fd:resnet18", "S3FD", "leave it out"),
        ("pyramidbox:resnet18", "PyramidBox", "leave it out"),
        ("retinaface:mobilenet_v1", "RetinaFace", "leave it out"),
        ("rfb_net:mobilenet_v1", "RFB Net", "leave it out"),
        ("pelee:peleenet", "Pelee", "leave it out"),
        ("rfcn:resnet18", "R-FCN", "rfcn_fpn takes a neck"),
    ],
)
def test_no_other_configuration(name: str, said: str, fix: str) -> None:
    assert parse_name(f"{name}:base").backbone == name.partition(":")[2]
    with pytest.raises(UserError, match=f"no {said} configuration 'fpn'.*{fix}"):
        parse_name(f"{name}:fpn")
