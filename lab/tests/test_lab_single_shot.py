"""RFB Net, Pelee and RetinaFace: the published counts, that they learn, boxes of 1 to 8 px, and what a name may say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from flyspeck import boxes as box_algebra
from flyspeck.data.images import read_image
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.profile import profile
from flyspeck.models.stride import layers
from flyspeck.types import ImageBatch, Targets
from flyspeck_lab.comparators.pelee import pelee
from flyspeck_lab.comparators.retinaface import PIXELS, load_published, retinaface
from flyspeck_lab.comparators.rfb_net import rfb, rfb_light, rfb_net, rfb_s
from learning import build_small_backbone, learn_on, make_squares

SYSTEMS = ("rfb_net:vgg16", "rfb_net:mobilenet_v1", "pelee:peleenet", "retinaface:mobilenet_v1")
PAGE = Path(__file__).parents[2] / "docs" / "papers" / "comparators.md"


@pytest.mark.parametrize(("name", "size", "classes", "convention", "gflops", "parameters"), [
    ("rfb_net:vgg16", 300, 80, "ptflops", 39.917, 45_104_096),  # Mudassar and Mukhopadhyay, Table 3: 39.9, 45.1
    ("rfb_net:mobilenet_v1", 300, 80, "ptflops", 1.565, 7_677_728),  # 1.6, 7.7
    ("pelee:peleenet", 304, 80, "macs", 1.284, 5_981_012),  # Wang et al.: 1,290 M; Table 3: 1.3
    ("pelee:peleenet", 304, 20, "macs", 1.205, 5_425_892),  # 1,210 M and 5.43 M; Table 3: 5.4
])  # fmt: skip
def test_published_counts(name: str, size: int, classes: int, convention: str, gflops: float, parameters: int) -> None:
    with torch.device("meta"):
        counted = profile(build(name, classes=[str(i) for i in range(classes)]), (size, size), convention=convention)  # type: ignore[arg-type]
    assert counted.params == parameters
    assert counted.gflops == pytest.approx(gflops, abs=0.0006)
    page = PAGE.read_text(encoding="utf-8")
    assert f"{gflops:.3f}" in page
    assert f"{parameters / 1e6:.3f}" in page


@pytest.mark.parametrize(("name", "size", "maps"), [
    ("rfb_net:vgg16", 300, [38, 19, 10, 5, 3, 1]),
    ("rfb_net:mobilenet_v1", 300, [19, 10, 5, 3, 2, 1]),
    ("pelee:peleenet", 304, [19, 19, 10, 5, 3, 1]),
])  # fmt: skip
def test_maps_and_priors(name: str, size: int, maps: list[int]) -> None:
    detector = build(name, width=0.0625)
    assert isinstance(detector, Detector)
    with torch.no_grad():
        levels = detector.eval().pyramid(ImageBatch(torch.zeros(1, 3, size, size, dtype=torch.uint8), ((size, size),)))
    assert [level.shape[-1] for level in levels] == maps
    priors = detector.head.priors([(m, m) for m in maps], (size, size), torch.device("cpu"))  # type: ignore[operator]
    per_cell = [6] * 6 if name.startswith("pelee") else [6, 6, 6, 6, 4, 4]
    assert len(priors) == sum(m * m * count for m, count in zip(maps, per_cell, strict=True))
    specs = detector.neck.features  # type: ignore[union-attr]
    assert [spec.channels for spec in specs] == [level.shape[1] for level in levels]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_tiny_boxes_and_small_images(name: str, side: int) -> None:
    """Every box of 1 to 8 px finds a prior that learns it, on images smaller than the network's own, one of them empty."""
    torch.manual_seed(0)
    detector = build(name, width=0.0625, classes=("a", "b"))
    assert isinstance(detector, Detector)
    boxes = torch.tensor([[20.0, 30.0, 20.0 + side, 30.0 + side], [60.5, 10.25, 60.5 + side, 10.25 + side]])
    targets = [
        Targets(boxes=boxes, labels=torch.tensor([0, 1]), ignore=torch.zeros(2, dtype=torch.bool)),
        Targets(boxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long), ignore=torch.zeros(0, dtype=torch.bool)),
    ]
    images = ImageBatch(torch.randint(0, 256, (2, 3, 96, 80), dtype=torch.uint8), ((96, 80), (90, 77)))
    losses = detector.train().losses(images, targets)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert losses["box"] > 0  # each object has its best prior, however small
    assert losses["classification"] > 0
    found = detector.eval().detect(images)
    assert [one.image_size for one in found] == [(96, 80), (90, 77)]


def test_receptive_fields_by_hand() -> None:
    """One cell's influence: 1 + the reach of every kernel on the way, (kernel - 1) x dilation x stride so far."""
    for block, reach in ((rfb(32, 32), 5 + 6), (rfb_s(32, light=False), 3 + 10), (rfb_s(32, light=True), 3 + 10)):
        x = torch.zeros(1, 32, 41, 41, requires_grad=True)
        for module in block.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.ones_(module.weight)
        block.eval()(x + 1)[0, :, 20, 20].sum().backward()
        assert x.grad is not None
        seen = x.grad.abs().sum((0, 1)) > 0
        assert seen.any(0).sum() == seen.any(1).sum() == reach
    x = torch.zeros(2, 32, 19, 19)
    assert rfb(32, 48, stride=2)(x).shape == (2, 48, 10, 10)
    assert rfb_light(32, 48)(x).shape == (2, 48, 10, 10)
    assert rfb_light(32, 48)(x[:, :, :5, :6]).shape == (2, 48, 3, 3)


@pytest.mark.parametrize(("builder", "sides"), [(rfb_net, (20, 36)), (pelee, (20, 36)), (retinaface, (14, 30))])
def test_it_learns(builder, sides: tuple[int, int]) -> None:
    """On squares of the size of its smallest priors: 45 px on maps of stride 16, 21 px (Pelee), 10 px."""
    squares, pixel_norm = make_squares(sides=sides), PixelNorm((0.5,) * 3, (0.25,) * 3)
    torch.manual_seed(0)
    detector = builder(
        build_small_backbone(),
        classes=squares.classes,
        pixel_norm=pixel_norm,
        **({} if builder is retinaface else {"width": 0.125}),
    )
    assert learn_on(squares, detector, steps=120 if builder is retinaface else 90) > 0.7


def test_names() -> None:
    for name in ("rfb_net:vgg16:S1L2", "pelee:peleenet:x", "retinaface:resnet18:fpn"):
        with pytest.raises(UserError, match=r"no (RFB Net|Pelee|RetinaFace) configuration"):
            build(name)
    with pytest.raises(UserError, match="chain of stages"):
        build("pelee:hrnet18", width=0.25)
    assert isinstance(build("retinanet:peleenet", width=0.25, channels=16), Detector)
    assert layers(build("peleenet", width=0.25))  # type: ignore[arg-type]


def _retinaface() -> Detector:
    detector = build("retinaface:mobilenet_v1", width=0.25, classes=["face"], pixel_norm=PIXELS)
    assert isinstance(detector, Detector)
    return detector.eval()


def test_retinaface_has_the_published_parameters() -> None:
    # The file has landmark predictors too, 1x1 from 64 channels to 5 points of 2 anchors on three levels: 3 x (64 x 20 + 20).
    assert sum(p.numel() for p in _retinaface().parameters()) == 426_608 - 3_900
    assert "422,708" in PAGE.read_text(encoding="utf-8")


def test_the_published_retinaface_finds_faces() -> None:
    shared = Path(os.environ.get("FLYSPECK_SHARED", Path(__file__).parents[3] / "shared"))
    path, images = shared / "weights" / "biubug6_mobilenet0.25_Final.pth", shared / "data" / "facemask"
    if not path.is_file() or not images.is_dir():
        pytest.skip(f"no {path.name}, or no {images}")
    detector = _retinaface()
    assert len(load_published(detector, path)) == 6  # landmarks: weight and bias of three levels
    table = read_annotations(images / "val.json")
    found = wanted = 0
    for row in range(8):
        pixels = torch.from_numpy(read_image(table.path(row), channels=3)).permute(2, 0, 1)[None].contiguous()
        (one,) = detector.detect(ImageBatch(pixels, (tuple(pixels.shape[-2:]),)))  # type: ignore[arg-type]
        truth = table.boxes[table.of_image(row)]
        overlaps = box_algebra.iou(truth, one.boxes[one.scores > 0.4])
        found, wanted = found + int((overlaps.max(1, initial=0) > 0.5).sum()), wanted + len(truth)
    assert found > 0.6 * wanted > 6


def test_weights_of_something_else(tmp_path: Path) -> None:
    for name, state in (("other", {"body.stage1.0.0.weight": torch.zeros(8, 3, 3, 3)}), ("empty", {})):
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(UserError, match=r"not the weights of RetinaFace on MobileNetV1-0.25"):
            load_published(_retinaface(), tmp_path / f"{name}.pth")
