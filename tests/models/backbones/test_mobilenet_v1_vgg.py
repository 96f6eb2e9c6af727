"""MobileNetV1 with real ImageNet weights, and VGG16 with torchvision's layout."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from flyspeck.errors import UserError
from flyspeck.models.backbones.mobilenet_v1 import CORAL, SameConv2d, mobilenet_v1
from flyspeck.models.backbones.vgg import from_torchvision, vgg16
from flyspeck.models.classifier import Classifier
from flyspeck.models.profile import profile
from flyspeck.models.weights import read_weights

FULL, QUARTER = "mobilenet_v1_1_in1k_coral_bnfolded.pt", "mobilenet_v1_0.25_in1k_coral_bnfolded.pt"


def same(x, weight, bias, stride, groups=1):
    """TensorFlow's 'same' padding, written out: an even image at stride 2 gets its extra pixel right and bottom."""
    if weight.shape[-1] == 3:
        x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
    return F.relu6(F.conv2d(x, weight, bias, stride, groups=groups))


def test_full_width_features_equal_a_hand_written_forward(shared):
    state = torch.load(shared / "weights" / FULL, weights_only=True)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = []
    y = same(x, state["stem.weight"], state["stem.bias"], 2)
    for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)):
        w, b = state[f"blocks.{i}.dw.weight"], state[f"blocks.{i}.dw.bias"]
        y = same(y, w, b, stride, groups=len(w))
        y = same(y, state[f"blocks.{i}.pw.weight"], state[f"blocks.{i}.pw.bias"], 1)
        if i in (2, 4, 10, 12):
            expected.append(y)
    backbone = mobilenet_v1(**CORAL, weights=shared / "weights" / FULL).eval()
    with torch.no_grad():
        assert_close(backbone(x), expected)
    assert [m.shape[1:] for m in expected] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (1024, 2, 3)]


# WordNet ids of the data set to ImageNet's class numbers: Egyptian cat, reel, volleyball, rocking chair, lemon, bullfrog,
# basketball, cliff, espresso, plunger.
IMAGENET = {
    "n02124075": 285, "n04067472": 758, "n04540053": 890, "n04099969": 765, "n07749582": 951, "n01641577": 30,
    "n02802426": 430, "n09246464": 972, "n07920052": 967, "n03970156": 731,
}  # fmt: skip


def classifier(weights, *, width):
    """The whole network of a Coral file: its backbone as we read it, with its own `fc`, a 1x1 convolution."""
    state = read_weights(weights)
    backbone = mobilenet_v1(width=width, weights=weights, **CORAL)
    model = Classifier(backbone, num_classes=len(state["fc.bias"]))
    with torch.no_grad():
        model.fc.weight.copy_(state["fc.weight"].flatten(1))
        model.fc.bias.copy_(state["fc.bias"])
    return model


def test_quarter_width_classifies(shared):
    """Real ImageNet images that were shrunk to 32x32 and enlarged again: weak, but far above chance (0.4 of 80)."""
    model = classifier(shared / "weights" / QUARTER, width=0.25).eval()
    with np.load(shared / "data" / "tinyimagenet32" / "val.npz", allow_pickle=False) as content:
        data, offsets, labels, classes = (content[k] for k in ("data", "offsets", "labels", "classes"))
    right = 0
    for wordnet, number in IMAGENET.items():
        rows = np.flatnonzero(labels == list(classes).index(wordnet))[:8]
        files = [io.BytesIO(data[offsets[row] : offsets[row + 1]].tobytes()) for row in rows]
        images = [Image.open(f).convert("RGB").resize((96, 96), Image.Resampling.BICUBIC) for f in files]
        x = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in images]).float() / 127.5 - 1
        with torch.no_grad():
            best = model(x).topk(5, 1).indices - 1  # class 0 is the background
        right += int((best == number).any(1).sum())
    assert right >= 6


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (7, 2), (8, 2), (9, 2), (2, 2), (1, 2)])
def test_same_padding_gives_the_ceiling(size, stride):
    conv = SameConv2d(1, 1, 3, stride, 0, bias=False)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        out = conv(torch.ones(1, 1, size, size))
    assert out.shape[-1] == -(-size // stride)
    if size == 8:  # even: no padding on the left and top, one on the right and bottom
        assert_close(out[0, 0, 0, 0], torch.tensor(9.0))
        assert_close(out[0, 0, -1, -1], torch.tensor(4.0))


@pytest.mark.parametrize("tf_same", [False, True])
def test_maps_have_the_promised_channels_and_strides(tf_same):
    with torch.device("meta"):
        backbone = mobilenet_v1(width=0.5, tf_same=tf_same)
        maps = backbone(torch.empty(1, 3, 100, 64))
    assert [f.stride for f in backbone.features] == [4, 8, 16, 32]
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 25, 16), (128, 13, 8), (256, 7, 4), (512, 4, 2)]


def test_folded_weights_need_a_folded_network(shared):
    with pytest.raises(UserError, match="another architecture"):
        mobilenet_v1(weights=shared / "weights" / FULL)
    with pytest.raises(
        UserError, match=r"stages\.stem\.0\.conv\.weight' has shape \(32, 3, 3, 3\) where the model has \(8"
    ):
        mobilenet_v1(**CORAL, width=0.25, weights=shared / "weights" / FULL)


def test_vgg16_with_torchvision_weights_equals_torchvision(tmp_path):
    theirs = torchvision.models.vgg16(weights=None).features.eval()
    torch.save({f"features.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "vgg.pth")
    state = torch.load(tmp_path / "vgg.pth", weights_only=True)
    ours = vgg16().eval()
    missing, unexpected = ours.load_state_dict(from_torchvision(state), strict=False)
    assert unexpected == []
    assert {name.split(".")[1] for name in missing} == {"stage4"}
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps = ours(x)
        assert_close(maps[1], theirs[:23](x))  # conv4_3
        assert_close(maps[2], theirs[:30](x))  # conv5_3


def test_vgg16_classifier_becomes_fc6_and_fc7():
    state = {
        "classifier.0.weight": torch.arange(4096.0)[:, None].expand(4096, 512 * 49).contiguous(),
        "classifier.0.bias": torch.arange(4096.0),
        "classifier.3.weight": torch.zeros(4096, 4096),
        "classifier.3.bias": torch.zeros(4096),
    }
    ours = from_torchvision(state)
    assert ours["stages.stage4.1.weight"].shape == (1024, 512, 3, 3)
    assert_close(ours["stages.stage4.1.bias"], torch.arange(0.0, 4096.0, 4))
    assert ours["stages.stage4.3.weight"].shape == (1024, 1024, 1, 1)


def test_vgg16_strides():
    with torch.device("meta"):
        pyramid, single = vgg16(width=0.25), vgg16(width=0.25, top_stride=1)
        assert [m.shape[-1] for m in pyramid(torch.empty(1, 3, 128, 128))] == [32, 16, 8, 4]
        assert [m.shape[-1] for m in single(torch.empty(1, 3, 128, 128))] == [32, 16, 8, 8]
    assert [f.stride for f in single.features] == [4, 8, 16, 16]
    assert profile(single, (64, 64)).params > 0


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows_at_every_size(kernel, stride):
    # ceil(n / stride) outputs; what their windows reach beyond the n pixels is halved, the odd one behind.
    layer = SameConv2d(1, 1, kernel, stride, bias=False)
    for size in range(1, 20):
        x = torch.randn(1, 1, size, 20 - size)
        pads: list[int] = []
        for side in (size, 20 - size):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads = [total // 2, total - total // 2, *pads]
        expected = F.conv2d(F.pad(x, pads), layer.weight, stride=stride)
        assert_close(layer(x), expected)
