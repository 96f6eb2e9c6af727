"""timm's models as backbones: timm's own maps, on any size, as stages where they are a chain; weights; what is refused."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.freezing import FrozenNorm, freeze_norms, freeze_stages
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.fold import fold_norms, relative_difference
from flyspeck.models.weights import save_weights
from flyspeck.types import FeatureSpec

timm = pytest.importorskip("timm", reason="needs the extra timm")

from flyspeck.models.backbones.timm_models import check_name, pixel_statistics, timm_backbone  # noqa: E402

SHOWN = {  # name to the channels of its maps at strides 4, 8, 16, 32, as timm's feature_info has them
    "mobilenetv3_small_100": (16, 24, 48, 576),
    "efficientnet_b0": (24, 40, 112, 320),
    "mobilenetv4_conv_small": (32, 64, 96, 960),
    "convnext_atto": (40, 80, 160, 320),
    "resnet26d": (256, 512, 1024, 2048),
    "pvt_v2_b0": (32, 64, 160, 256),
}
STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails."""

    def refuse(*_: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def settle(backbone: nn.Module) -> nn.Module:
    """Norms with statistics and weights of their own."""
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
    return backbone.eval()


def own_maps(name: str, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """What timm's own model of the same weights gives from stride 4 on, channels first."""
    model = timm.create_model(name, features_only=True).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        maps = model(x)
    return [m for m, stride in zip(maps, model.feature_info.reduction(), strict=True) if stride >= 4]


@pytest.mark.parametrize("name", SHOWN)
def test_timms_own_maps_on_any_size(name: str, tmp_path: Path) -> None:
    """A file of timm's own format, loaded by timm; even sides and odd ones, which some models round down."""
    torch.manual_seed(0)
    whole = settle(timm.create_model(name, num_classes=3))
    file = tmp_path / "weights.safetensors"
    save_weights(whole, file)
    backbone = timm_backbone(name, weights=file).eval()
    assert list(backbone.stages) == STAGES
    assert backbone.features == tuple(FeatureSpec(c, 4 * 2**i) for i, c in enumerate(SHOWN[name]))
    loaded = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(file)}
    ).state_dict()
    for size in ((64, 96), (67, 101)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            found = backbone(x)
        for a, b in zip(found, own_maps(name, loaded, x), strict=True):
            assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", SHOWN)
def test_folds_without_a_change(name: str) -> None:
    torch.manual_seed(0)
    backbone = settle(timm_backbone(name))
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    other = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    norms = [key for key, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        before = backbone(other)
        folding = fold_norms(backbone, lambda: backbone(x))
        assert sorted(folding.folded) == sorted(norms)  # in all six every batch norm follows a convolution of its own
        for a, b in zip(backbone(other), before, strict=True):
            assert relative_difference(a, b) < 1e-4
    assert len(norms) == {"mobilenetv3_small_100": 34, "efficientnet_b0": 48, "mobilenetv4_conv_small": 45}.get(
        name, 31 if name == "resnet26d" else 0
    )


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "convnext_atto", "resnet26d"])
def test_frozen_stages_and_norms_stay_in_training(name: str) -> None:
    torch.manual_seed(0)
    backbone = settle(timm_backbone(name))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = backbone(x)
    freeze_stages(backbone, 1)  # type: ignore[arg-type]
    freeze_norms(backbone)
    backbone.train()
    state = copy.deepcopy(backbone.state_dict())
    for a, b in zip(backbone(x), expected, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))  # activations are still there
    assert all(torch.equal(a, b) for a, b in zip(state.values(), backbone.state_dict().values(), strict=True))
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (
            key.startswith(("stages.stage2", "stages.stage3", "stages.stage4"))
            and not isinstance(backbone.get_submodule(key.rpartition(".")[0]), FrozenNorm)
        )


def test_a_model_that_is_no_chain_gives_its_maps_at_once() -> None:
    torch.manual_seed(0)
    backbone = settle(timm_backbone("hrnet_w18_small"))
    assert isinstance(backbone, StagedBackbone)
    assert list(backbone.stages) == ["whole"]
    assert backbone.features == tuple(FeatureSpec(c, s) for c, s in ((128, 4), (256, 8), (512, 16), (1024, 32)))
    state = {key.removeprefix("stages.whole.model."): value for key, value in backbone.state_dict().items()}
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(backbone(x), own_maps("hrnet_w18_small", state, x), strict=True):
            assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(UserError, match="no stages to freeze"):
        freeze_stages(backbone, 0)
    freeze_stages(backbone, -1)


def test_channels_last_maps_are_turned() -> None:
    """timm's Swin has its channels last, between the stages too; windows are padded to any size of whole patches."""
    torch.manual_seed(0)
    backbone = timm_backbone("swin_tiny_patch4_window7_224", drop_path_rate=0.0, embed_dim=24).eval()
    assert [f.channels for f in backbone.features] == [24, 48, 96, 192]
    maps = backbone(torch.randn(1, 3, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 24, 16), (48, 12, 8), (96, 6, 4), (192, 3, 2)]
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        middle = backbone.run(x, stop="stage2")
        rest = backbone.run(middle[-1], start="stage2")
        for a, b in zip([*middle, *rest], backbone(x), strict=True):
            assert_close(a, b, rtol=0, atol=0)


def test_a_finer_map_where_there_is_one() -> None:
    assert [f.stride for f in timm_backbone("mobilenetv3_small_100", outputs=STAGES).features] == [2, 4, 8, 16, 32]
    assert timm_backbone("convnext_atto").specs["stem"] == FeatureSpec(40, 4)


def test_shapes_without_weights() -> None:
    with torch.device("meta"):
        backbone = timm_backbone("mobilenetv3_small_100")
    assert all(p.is_meta for p in backbone.parameters())
    assert list(backbone.stages) == STAGES


def test_our_own_file_and_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = settle(timm_backbone("mobilenetv3_small_100"))
    save_weights(first, tmp_path / "ours.safetensors")
    x = torch.randn(1, 3, 64, 64)
    second = timm_backbone("mobilenetv3_small_100", weights=tmp_path / "ours.safetensors").eval()
    with torch.no_grad():
        for made in (second, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
            for a, b in zip(made(x), first(x), strict=True):
                assert_close(a, b, rtol=0, atol=0)


def test_the_pixels_that_its_weights_know() -> None:
    assert pixel_statistics("mobilenetv3_small_100")[0] == (0.485, 0.456, 0.406)
    assert pixel_statistics("tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Mine:
    """What a file must not bring to life."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenetv3_smal_100", {}, r"no model 'mobilenetv3_smal_100'.*mobilenetv3_small_100"),
        ("convnext_atto.d3_in1k", {}, r"no weights 'd3_in1k' of convnext_atto.*d2_in1k"),
        ("convnext_atto", {"weights": "d3_in1k"}, r"no weights 'd3_in1k' of convnext_atto.*d2_in1k"),
        ("vit_tiny_patch16_224", {}, "no feature pyramid: of 128x192 px it makes 192x8x12"),
        ("inception_v3", {}, "no feature pyramid"),
        ("sequencer2d_s", {}, "no feature pyramid"),
        ("efficientformerv2_s0", {}, "does not take images of any size"),
        ("mobilenetv3_small_100", {"width": 0.5}, "has one width"),
        ("mobilenetv3_small_100", {"hiden": 3}, "no such option.*hiden"),
        ("mobilenetv3_small_100", {"weights": "DEFAULT"}, "could not load the weights.*local file"),
        ("mobilenetv3_small_100", {"weights": Path("nowhere.pth")}, "no such weights file"),
    ],
)
def test_one_line_for_what_cannot_be(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        timm_backbone(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_weights(timm.create_model("resnet10t"), file)
    with pytest.raises(UserError, match=r"not the weights of timm/mobilenetv3_small_100|not in the file"):
        timm_backbone("mobilenetv3_small_100", weights=file)
    part = {k: v for k, v in timm.create_model("mobilenetv3_small_100").state_dict().items() if "blocks.3" not in k}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"not in the file, the first is 'blocks\.3|not the weights of"):
        timm_backbone("mobilenetv3_small_100", weights=tmp_path / "part.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"conv_stem.weight": Mine()}}, "evil.pth")
    with pytest.raises(UserError, match="read safely"):
        timm_backbone("mobilenetv3_small_100", weights="evil.pth")
    assert not Path("executed").exists()


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"install 'timm"):
        check_name("convnext_atto")
