"""Stock backbones: torchvision's weights give torchvision's maps, and what comes out is what the specs promise."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import freeze_norms, freeze_stages
from flyspeck.models.backbones.mobilenet import mobilenet_v2
from flyspeck.models.backbones.resnet import (
    rename_torchvision,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50,
)
from flyspeck.models.build import build_backbone
from flyspeck.models.weights import save_weights


def test_resnet18_with_torchvision_weights_equals_torchvision(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "r18.pth")
    ours = resnet18(weights=tmp_path / "r18.pth").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = []
        for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            y = layer(y)
            expected.append(y)
        assert_close(ours(x), expected)


def test_mobilenet_v2_loads_torchvision_file_by_path(shared):
    path = shared / "weights" / "mobilenet_v2-b0353104.pth"
    theirs = torchvision.models.mobilenet_v2(weights=None)
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.eval()
    ours = mobilenet_v2(weights=path).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = ours(x)
        assert_close(maps[-1], theirs.features[:18](x))
        assert_close(maps[0], theirs.features[:4](x))


def test_torchvision_weights_name_uses_its_loading_path(shared, monkeypatch, tmp_path):
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = "mobilenet_v2-b0353104.pth"
    (tmp_path / "hub" / "checkpoints" / name).symlink_to(shared.resolve() / "weights" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    ours = mobilenet_v2(weights="IMAGENET1K_V1")
    state = torch.load(shared / "weights" / name, weights_only=True)
    assert_close(ours.state_dict()["stages.stage2.1.conv.0.0.weight"], state["features.5.conv.0.0.weight"])


@pytest.mark.parametrize("build", [resnet18, resnet34, resnet50, resnet101, resnet152, resnext50, mobilenet_v2])
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_maps_have_the_promised_channels_and_strides(build, width):
    with torch.device("meta"):
        backbone = build(width=width)
        maps = backbone(torch.empty(1, 3, 64, 128))
    assert [spec.stride for spec in backbone.features] == [4, 8, 16, 32]
    for spec, feature in zip(backbone.features, maps, strict=True):
        assert feature.shape == (1, spec.channels, 64 // spec.stride, 128 // spec.stride)


@pytest.mark.parametrize(("build", "name"), [(resnet152, "resnet152"), (resnext50, "resnext50_32x4d")])
def test_shapes_are_torchvisions(build, name):
    with torch.device("meta"):
        ours, theirs = build(), torchvision.models.get_model(name, weights=None)
    expected = {rename_torchvision(key): value.shape for key, value in theirs.state_dict().items()}
    expected.pop(None)
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    convs = (m for m in theirs.modules() if isinstance(m, torch.nn.Conv2d))
    for a, b in zip((m for m in ours.modules() if isinstance(m, torch.nn.Conv2d)), convs, strict=True):
        assert (a.stride, a.padding, a.groups) == (b.stride, b.padding, b.groups)


def test_stages_run_one_by_one():
    backbone = resnet18(width=0.25).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = backbone(x)
        first = backbone.run(x, stop="stage2")
        rest = backbone.run(first[-1], start="stage2")
    assert_close(first + rest, whole)


def test_weights_of_another_architecture_name_the_first_mismatch(tmp_path):
    save_weights(resnet34(width=0.25), tmp_path / "r34.safetensors")
    with pytest.raises(UserError, match=r"stages\.stage1\.2\.bn1.*no place.*120 of the model's 120 tensors fit"):
        resnet18(width=0.25, weights=tmp_path / "r34.safetensors")
    save_weights(resnet18(width=0.5), tmp_path / "r18.safetensors")
    with pytest.raises(UserError, match=r"stages\.stem\.0\.weight' has shape \(32, 3, 7, 7\) where the model has \(16"):
        resnet18(width=0.25, weights=tmp_path / "r18.safetensors")


def test_weights_that_are_not_weights(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"not a pickle at all")
    with pytest.raises(UserError, match=r"x\.pth: not a weights file"):
        resnet18(width=0.25, weights=tmp_path / "x.pth")
    with pytest.raises(UserError, match="no such weights file"):
        resnet18(width=0.25, weights=tmp_path / "absent.pth")
    with pytest.raises(UserError, match=r"no weights 'IMAGENET'.*did you mean 'IMAGENET1K_V1'"):
        resnet18(weights="IMAGENET")


def test_a_name_of_weights_that_a_backbone_has_not_is_no_missing_file():
    with pytest.raises(UserError, match=r"no published weights, so none called 'IMAGENET1K_V1'; .*or leave it out"):
        build_backbone("bh_resnet14", width=0.25, weights="IMAGENET1K_V1")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="read safely"):
        resnet18(width=0.25, weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_frozen_norms_keep_their_statistics_and_shut_the_gradient():
    backbone = resnet18(width=0.25)
    keys = list(backbone.state_dict())
    assert freeze_norms(backbone) == 20  # 1 in the stem, 16 in 8 blocks, 3 projections
    assert list(backbone.state_dict()) == keys
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train()
    backbone(torch.randn(2, 3, 32, 32))[-1].sum().backward()
    for name, buffer in backbone.named_buffers():
        assert_close(buffer, before[name], rtol=0, atol=0)
    trainable = {name for name, p in backbone.named_parameters() if p.requires_grad}
    norms = {f"{name}.weight" for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 20
    assert not norms & trainable


def test_frozen_norm_equals_batch_norm_in_eval_mode():
    torch.manual_seed(0)
    backbone = resnet18(width=0.25)
    backbone.train()
    backbone(torch.randn(4, 3, 32, 32))  # so that the statistics are not 0 and 1
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = backbone.eval()(x)
        freeze_norms(backbone)
        assert_close(backbone.train()(x), expected)


def test_frozen_stages_are_the_stem_and_stage_1():
    backbone = resnet50(width=0.25)
    freeze_stages(backbone, 1)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    learning = {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}
    assert (frozen, learning) == ({"stem", "stage1"}, {"stage2", "stage3", "stage4"})
    with pytest.raises(UserError, match="cannot freeze 5 stages"):
        freeze_stages(backbone, 5)
