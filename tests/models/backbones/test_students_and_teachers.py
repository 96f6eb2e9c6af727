"""ShuffleNetV2 and Swin-T: torchvision's weights give torchvision's maps; any image size; the counts are right."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from flyspeck.errors import UserError
from flyspeck.models.backbones.shufflenet import rename_torchvision, shufflenet_v2
from flyspeck.models.backbones.swin import swin_t
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.profile import profile
from flyspeck.models.stride import eliminate_strides
from flyspeck.types import ImageBatch, Targets

BOTH = pytest.mark.parametrize("make", [shufflenet_v2, swin_t])


def randomize(model):
    """Weights and norm statistics that leave no layer the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


def test_shufflenet_with_torchvision_weights_equals_torchvision(tmp_path):
    theirs = randomize(torchvision.models.shufflenet_v2_x0_5(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "shuffle.pth")
    ours = shufflenet_v2(width=0.5, weights=tmp_path / "shuffle.pth").eval()
    x = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        y = theirs.maxpool(theirs.conv1(x))
        expected = [y]
        for stage in (theirs.stage2, theirs.stage3, theirs.stage4):
            y = stage(y)
            expected.append(y)
        assert_close(ours(x), expected)


@pytest.mark.parametrize(
    ("width", "name"), [(1.0, "shufflenet_v2_x1_0"), (1.5, "shufflenet_v2_x1_5"), (2.0, "shufflenet_v2_x2_0")]
)
def test_shufflenets_of_other_widths_have_torchvisions_shapes(width, name):
    with torch.device("meta"):
        ours, theirs = shufflenet_v2(width=width), torchvision.models.get_model(name, weights=None)
    expected = {rename_torchvision(key): value.shape for key, value in theirs.state_dict().items()}
    expected.pop(None)
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


def test_swin_with_torchvision_weights_equals_torchvision(tmp_path):
    # Narrow, to be quick; `test_published_weights_load_by_name` and the counts hold the published network.
    sizes = {
        "patch_size": [4, 4],
        "embed_dim": 24,
        "depths": [2, 2, 6, 2],
        "num_heads": [1, 2, 4, 8],
        "window_size": [7, 7],
    }
    theirs = randomize(torchvision.models.SwinTransformer(**sizes))
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    ours = swin_t(width=0.25, weights=tmp_path / "swin.pth").eval()
    x = torch.randn(1, 3, 72, 100)  # windows of 7 and mergings have to pad, at every stage
    with torch.no_grad():
        y, expected = x, []
        for i, part in enumerate(theirs.features):
            y = part(y)
            if i % 2:
                expected.append(y.permute(0, 3, 1, 2))
        assert_close(ours(x), expected)


def test_swin_pads_a_image_with_zeros_to_whole_patches():
    ours = swin_t(width=0.125).eval()
    x = torch.randn(1, 3, 61, 50)
    with torch.no_grad():
        assert_close(ours(x), ours(F.pad(x, (0, 2, 0, 3))))


def test_published_weights_load_by_name(monkeypatch, tmp_path):
    """By torchvision's loading path: a file of its name in its cache; `check_hash` looks at names only where it fetches."""
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    small, swin = torchvision.models.shufflenet_v2_x0_5(), torchvision.models.swin_t()
    for theirs, file, ours in (
        (small, "shufflenetv2_x0.5-f707e7126e.pth", partial(shufflenet_v2, width=0.5)),
        (swin, "swin_t-704ceda3.pth", swin_t),
    ):
        torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / file)
        state = ours(weights="IMAGENET1K_V1").state_dict()
        key = "stages.stage3.0.branch2.0.weight" if "shuffle" in file else "stages.stage3.blocks.5.mlp.0.weight"
        source = "stage3.0.branch2.0.weight" if "shuffle" in file else "features.5.5.mlp.0.weight"
        assert_close(state[key], theirs.state_dict()[source], rtol=0, atol=0)
    with pytest.raises(UserError, match=r"no ShuffleNetV2 weights at width 0\.25"):
        shufflenet_v2(width=0.25, weights="IMAGENET1K_V1")


@BOTH
@pytest.mark.parametrize("width", [1.0, 0.5, 0.125])
def test_maps_have_the_promised_channels_and_strides(make, width):
    with torch.device("meta"):
        backbone = make(width=width)
        maps, odd = backbone(torch.empty(1, 3, 64, 128)), backbone(torch.empty(1, 3, 75, 97))
    assert [spec.stride for spec in backbone.features] == [4, 8, 16, 32]
    for spec, even_map, odd_map in zip(backbone.features, maps, odd, strict=True):
        assert even_map.shape == (1, spec.channels, 64 // spec.stride, 128 // spec.stride)
        assert odd_map.shape[-2:] == (-(-75 // spec.stride), -(-97 // spec.stride))


@BOTH
def test_stages_run_one_by_one(make):
    backbone = make(width=0.125).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        first = backbone.run(x, stop="stage2")
        assert_close(first + backbone.run(first[-1], start="stage2"), backbone(x))


@pytest.mark.parametrize(
    ("make", "width", "name", "head_params", "head_macs"),
    [
        # ShuffleNet's last convolution on 7x7 cells with its norm, then a classifier of 1000 classes on 1024 channels.
        (shufflenet_v2, 0.5, "shufflenet_v2_x0_5", 192 * 1024 + 2048 + 1_025_000, 49 * 192 * 1024 + 1_024_000),
        (shufflenet_v2, 1.0, "shufflenet_v2_x1_0", 464 * 1024 + 2048 + 1_025_000, 49 * 464 * 1024 + 1_024_000),
        (swin_t, 1.0, "swin_t", 2 * 768 + 769_000, 768_000),
    ],
)
def test_counts_are_the_published_ones_less_the_classifier(make, width, name, head_params, head_macs):
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        model = make(width=width)
    found = profile(model, (224, 224), convention="macs")
    assert found.params == published["num_params"] - head_params
    assert round(found.gflops + head_macs / 1e9, 3) == published["_ops"]
    assert sum(found.stages.values()) == pytest.approx(found.gflops)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert found.gflops * 1e9 == pytest.approx(counter.get_total_flops() / 2)


def test_mmcv_counts_the_linear_layers_of_attention_and_the_norms():
    # One stage-1 block on 14x14 cells of 12 channels (width 0.125, one head), no bias per row: qkv and proj 196 x 4 x 144
    # + 48; two norms 2 x 2 x 196 x 12; the MLP 196 x 2 x 12 x 48 + 48 + 12. Two blocks.
    block = 196 * 4 * 144 + 48 + 4 * 196 * 12 + 196 * 2 * 12 * 48 + 60
    with torch.device("meta"):
        model = swin_t(width=0.125)
    assert profile(model, (56, 56), convention="mmcv").stages["stage1"] * 1e9 == pytest.approx(2 * block)


def test_swin_detects_through_normed_maps_and_profiles_by_parts():
    with torch.device("meta"):
        model = build("retinanet:swin_t", width=0.125, channels=32)
    assert isinstance(model, Detector)
    assert model.neck.input_norms is not None
    parts = profile(model, (128, 160)).parts
    assert all(parts[part] > 0 for part in ("backbone", "neck", "head"))
    x = 100 * torch.randn(1, 12, 3, 5) + 7
    norm = build("retinanet:swin_t", width=0.125, channels=32).neck.input_norms[0]
    normed = norm(x)
    assert_close(normed.mean(1), torch.zeros(1, 3, 5), atol=1e-4, rtol=0)
    assert_close(normed.var(1, unbiased=False), torch.ones(1, 3, 5), atol=1e-3, rtol=0)


def test_strides():
    with torch.device("meta"):
        finer = eliminate_strides(shufflenet_v2(width=0.25), "S1L1")
        assert [m.shape[-1] for m in finer(torch.empty(1, 3, 64, 64))] == [32, 16, 8, 4]
        with pytest.raises(UserError, match="cuts the image into patches"):
            eliminate_strides(swin_t(width=0.125), "S1L0")


@pytest.mark.parametrize("name", ["retinanet:shufflenet_v2", "retinanet:swin_t"])
@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_boxes_of_a_few_pixels_reach_every_stage(name, side):
    torch.manual_seed(0)
    detector = build(name, width=0.125, channels=32, classes=("a",), depth=1)
    assert isinstance(detector, Detector)
    pixels = torch.randint(0, 256, (2, 3, 75, 97), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[40.5, 30.25, 40.5 + side, 30.25 + side]])
    full = Targets(box, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    empty = Targets(box[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    losses = detector.train().losses(ImageBatch(pixels, ((75, 97), (60, 80))), [full, empty])
    assert losses["box"] > 0
    torch.stack(list(losses.values())).sum().backward()
    grads = [p.grad for n, p in detector.backbone.named_parameters() if "stem" in n]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().sum() > 0 for g in grads)
