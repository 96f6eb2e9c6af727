"""D-FINE and RT-DETRv2 as heads: the library's numbers, what is left of its traps, queries, padding, precision, cost."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flyspeck
from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.build import build
from flyspeck.models.counts import counts_for
from flyspeck.models.detector import Detector, Head
from flyspeck.models.detr import library
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.detr.library import PRIOR, part
from flyspeck.models.layers import group_norm
from flyspeck.models.profile import profile
from flyspeck.types import ImageBatch, Targets
from needs import TRANSFORMERS

pytestmark = TRANSFORMERS
KINDS: tuple[library.Kind, ...] = ("dfine", "rtdetrv2")
SIZE = (64, 96)


def detector(kind: str, **options: Any) -> Detector:
    torch.manual_seed(0)
    given = {"channels": 16, "layers": 2, "queries": 40, "noise_queries": 8, "levels": "2-5"}
    built = build(f"{kind}:resnet18", classes="ab", width=0.125, **{**given, **options})
    assert isinstance(built, Detector)
    return built


def head_of(one: Detector) -> DetrHead:
    assert isinstance(one.head, DetrHead)
    return one.head


def images(count: int = 1, size: tuple[int, int] = SIZE) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    return ImageBatch(torch.rand(count, 3, *size, generator=generator), (size,) * count)


def target(*boxes: list[float]) -> Targets:
    found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Targets(found, torch.arange(len(found)) % 2, torch.zeros(len(found), dtype=torch.bool))


def test_the_library_is_imported_when_a_detector_is_built_and_not_before() -> None:
    for file in Path(flyspeck.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "transformers" in text or "scipy" in text:
            top = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            named = [ast.unparse(node).split()[1].partition(".")[0] for node in top]
            assert not {"transformers", "scipy"} & set(named), file


@pytest.mark.parametrize("missing", ["transformers", "scipy"])
def test_without_the_library_a_line_names_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = detector("dfine")
    library._library.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    needs = {
        "transformers": lambda: detector("dfine"),
        "scipy": lambda: one.losses(images(), [target([10, 10, 14, 14])]),
    }
    with pytest.raises(UserError, match=rf"needs the package '{missing}'.*install.*transformers>=5\.24.*scipy"):
        needs[missing]()
    library._library.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_alive_with_boxes_that_are_the_anchors(kind: str) -> None:
    """The library's own beginning has batch norms at 0, and boxes from anywhere."""
    one = detector(kind)
    norms = [m for m in one.neck.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(bool((m.weight == 1).all()) for m in norms)
    with torch.no_grad():
        maps = one.train().pyramid(images(2))
        said = head_of(one)(maps)
    assert all(float(m.std()) > 0.1 for m in maps)
    for layer in said.layers:
        torch.testing.assert_close(layer.boxes, said.proposals.boxes, rtol=1e-4, atol=1e-5)
    assert float(said.layers[-1].logits.sigmoid().median()) < 10 * PRIOR


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["2-5", "3-5", "1-5", "2-6"])
def test_any_levels_train_and_every_one_is_sampled(kind: str, levels: str) -> None:
    torch.manual_seed(0)
    one = build(
        f"{kind}:bh_resnet14", classes="ab", width=0.125, channels=16, layers=1, queries=20, levels=levels,
        noise_queries=4,
    )  # fmt: skip
    assert isinstance(one, Detector)
    first, last = (int(end) for end in levels.split("-"))
    assert [f.stride for f in one.features] == [2**level for level in range(first, last + 1)]
    assert head_of(one).shape.levels == len(one.features)
    maps = [m.detach().requires_grad_() for m in one.pyramid(images())]
    losses = one.head.losses(maps, [target([10, 10, 14, 14], [0, 0, 2, 2])], SIZE, [SIZE])
    torch.stack([*losses.values()]).sum().backward()
    assert all(m.grad is not None and float(m.grad.abs().sum()) > 0 for m in maps)


SLOW = [pytest.param(kind, side, marks=pytest.mark.slow) for kind in KINDS for side in (2, 4, 8)]


@pytest.mark.parametrize(("kind", "side"), [("dfine", 1), *SLOW])
def test_boxes_in_the_corner_are_learnt(kind: str, side: int) -> None:
    """Where the library proposes nothing: an object of a few pixels at (0, 0), by the head alone."""
    one = detector(kind, noise_queries=0)
    with torch.no_grad():
        maps = [m[:1] for m in one.train().pyramid(images(2))]
    box = torch.tensor([[0.0, 0, side, side]])
    optimizer = torch.optim.Adam(one.head.parameters(), 1e-2)
    for _ in range(60):
        losses = one.head.losses(maps, [target(box[0].tolist())], SIZE, [SIZE])
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = one.eval().head.detect(maps, SIZE, [SIZE])
    assert float(box_algebra.iou(found.boxes[:1], box)) > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_queries_are_never_of_padding(kind: str) -> None:
    one = detector(kind, queries=500).eval()
    one.head.suppression = replace(one.head.suppression, score=0.0)
    size = (30, 40)
    batch = ImageBatch(images().pixels, (size,))
    with torch.no_grad():
        (found,) = one.head.detect(one.pyramid(batch), SIZE, [size])
    inside = sum((size[0] + s // 2) // s * ((size[1] + s // 2) // s) for s in (4, 8, 16, 32))
    assert 0 < len(found.boxes) <= 2 * inside
    assert float(found.boxes[:, 2].max()) <= size[1]
    assert float(found.boxes[:, 3].max()) <= size[0]


@pytest.mark.parametrize("kind", KINDS)
def test_more_queries_than_cells_are_all_cells(kind: str) -> None:
    one = detector(kind, queries=10_000).eval()
    with torch.no_grad():
        said = head_of(one)(one.pyramid(images()))
    assert said.proposals.boxes.shape[1] == 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3


def test_queries_grow_with_the_image_as_other_counts_do() -> None:
    one = detector("dfine", queries=20).eval()
    with torch.no_grad(), counts_for(one.head, (128, 192), 64 * 96):
        assert head_of(one)(one.pyramid(images(size=(128, 192)))).proposals.boxes.shape[1] == 80
    assert head_of(one).selection.queries == 20


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_keep_their_digits_in_bfloat16(kind: str) -> None:
    one = detector(kind).eval()
    maps = [m.detach() for m in one.pyramid(images())]
    with torch.no_grad():
        plain = one.head.detect(maps, SIZE, [SIZE])
        with torch.autocast("cpu", torch.bfloat16):
            there = one.head.detect([m.bfloat16().float() for m in maps], SIZE, [SIZE])
            losses = one.head.losses(maps, [target([10, 10, 13, 13])], SIZE, [SIZE])
    assert there[0].boxes.dtype == torch.float32
    assert len(there[0].boxes) == len(plain[0].boxes)
    assert all(torch.isfinite(v) for v in losses.values())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_the_same_whatever_mode_the_head_is_in(kind: str) -> None:
    """But for layers that the library's decoder says nothing of outside training."""
    one = detector(kind, noise_queries=0, layers=1, norm=group_norm)
    maps, truth = one.pyramid(images()), [target([10, 10, 14, 14])]
    found = []
    for mode in (True, False):
        one.train(mode)
        losses = one.head.losses(maps, truth, SIZE, [SIZE])
        found.append({name: float(value.detach()) for name, value in losses.items()})
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_and_without_objects_have_the_same_losses(kind: str) -> None:
    one = detector(kind)
    some, none = (one.losses(images(), [target(*boxes)]) for boxes in ([[10.0, 10, 14, 14]], []))
    assert some.keys() == none.keys()
    torch.stack([*none.values()]).sum().backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in one.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_costs_is_counted(kind: str) -> None:
    """Of the decoder's products: queries with queries, and sampled points; of the encoder's, cells with cells."""
    with torch.device("meta"):
        one, more = (
            build(f"{kind}:resnet18", width=0.25, channels=16, layers=1, queries=q, levels="2-5") for q in (100, 200)
        )
    found, twice = (profile(m, (64, 96), convention="macs") for m in (one, more))
    assert found.parts["head"] > 0
    assert twice.parts["head"] > found.parts["head"]
    assert twice.parts["neck"] == found.parts["neck"]


def test_channels_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="20 channels do not divide by 4 and by 8 heads"):
        detector("dfine", channels=20)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_may_be_group_norms_but_not_none(kind: str) -> None:
    one = detector(kind, norm=group_norm)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in one.neck.modules())
    with pytest.raises(UserError, match=r"needs norm layers.*write bn or gn"):
        detector(kind, norm=None)


def test_an_unknown_closeness_is_named() -> None:
    with pytest.raises(UserError, match=r"'nwdd' is no closeness.*did you mean 'nwd'"):
        detector("dfine", closeness="nwdd")


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_another_neck(kind: str) -> None:
    torch.manual_seed(0)
    one = build(f"{kind}:resnet18:fpn", classes="ab", width=0.125, channels=16, layers=1, queries=20, levels="2-5")
    assert isinstance(one, Detector)
    losses = one.losses(images(), [target([10, 10, 14, 14])])
    assert all(bool(torch.isfinite(v)) for v in losses.values())


def test_dynamic_pooling_goes_through_its_encoder() -> None:
    torch.manual_seed(0)
    one = build("dpnet:dfine:resnet18", classes="ab", width=0.125, channels=16, layers=1, queries=20, levels="2-5")
    assert isinstance(one, Detector)
    assert len(one.eval().detect(images(size=(96, 160)))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_something(kind: str) -> None:
    one = detector(kind, layers=2)
    torch.nn.init.normal_(head_of(one).decoder.bbox_embed[0].layers[-1].weight, std=0.1)
    losses = one.losses(images(2), [target([10, 10, 14, 14], [40, 40, 44, 48]), target([20, 20, 23, 22])])
    torch.stack([*losses.values()]).sum().backward()
    silent = [name for name, p in one.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_neck_is_the_librarys_encoder(kind: library.Kind) -> None:
    one = detector(kind).eval()
    neck: Any = one.neck
    theirs = part(kind, "HybridEncoder")(library.configuration(kind, replace(head_of(one).shape, ffn=64))).eval()
    own = {key.replace("mixing.layers", "aifi.0.layers"): v for key, v in neck.state_dict().items()}
    theirs.load_state_dict({k: v for k, v in own.items() if not k.startswith(("input_proj", "extra"))})
    with torch.no_grad():
        maps = one.backbone(one.pixel_norm(images(1, (128, 192))))
        projected = [layer(m) for layer, m in zip(neck.input_proj, maps, strict=True)]
        expected = theirs(inputs_embeds=projected).last_hidden_state
        for mine, other in zip(neck(maps), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_heads_are_heads() -> None:
    assert all(issubclass(type(detector(kind).head), Head) for kind in KINDS)
