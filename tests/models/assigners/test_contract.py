"""What every assigner keeps: tiny boxes get a prior, ignore regions are spared, memory is bounded; and every host takes it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import flyspeck.models.assign as assign_module
from flyspeck.errors import UserError
from flyspeck.models import build as builder
from flyspeck.models.anchors import strided_anchors
from flyspeck.models.assign import BACKGROUND, IGNORED
from flyspeck.models.assigners.base import Assigner, Priors
from flyspeck.models.assigners.build import NAMES, named_assigner, refuse_unless
from flyspeck.models.assigners.hosts import priors_of
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.fcos import FCOSHead
from flyspeck.models.profile import _PeakMemory
from flyspeck.types import FeatureSpec, ImageBatch, Targets

FIELDS = (19.0, 59.0, 267.0, 491.0, 619.0)
HOSTS = ("retinanet", "faster_rcnn", "cascade_rcnn", "fcos")
NOTHING = torch.zeros(0, 4)
HEIGHT, WIDTH = 96, 128


def assigner(name: str, **options: float) -> Assigner:
    builder = named_assigner(name, ratios=(4.6, 3.5), receptive_fields=FIELDS, **options)  # type: ignore[arg-type]
    return builder(foreground=0.7, background=0.3)


def priors(height: int = HEIGHT, width: int = WIDTH) -> Priors:
    grid = strided_anchors([FeatureSpec(8, 4 * 2**i) for i in range(5)])
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(2, 7)]
    return Priors.on_levels(grid(sizes, (height, width), torch.device("cpu")), [3 * h * w for h, w in sizes])


def square(x: float, y: float, side: float) -> Tensor:
    return torch.tensor([[x, y, x + side, y + side]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [1, 1.5, 2, 3, 4, 6, 8])
def test_every_tiny_box_gets_a_prior(name: str, side: float) -> None:
    for x in (40.5, 42.0, 43.9):
        assigned = assigner(name)(priors(), square(x, 30.25, side), NOTHING)
        assert (assigned == 0).any()
        assert (assigned == BACKGROUND).sum() > 0.9 * len(assigned)


@pytest.mark.parametrize("name", NAMES)
def test_of_boxes_around_one_centre_the_sizes_share_the_priors(name: str) -> None:
    objects = torch.cat([square(40 - s / 2, 40 - s / 2, s) for s in (4.0, 16.0, 40.0)])
    assigned = assigner(name)(priors(), objects, NOTHING)
    assert set(assigned[assigned >= 0].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_two_equal_boxes_leave_one_of_them_something(name: str) -> None:
    assigned = assigner(name)(priors(), square(40, 40, 4).repeat(2, 1), NOTHING)
    assert (assigned >= 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_all_and_only_ignore_regions(name: str) -> None:
    offered = priors()
    assert (assigner(name)(offered, NOTHING, NOTHING) == BACKGROUND).all()
    assigned = assigner(name)(offered, NOTHING, torch.tensor([[0.0, 0, WIDTH / 2, HEIGHT]]))
    center = (offered.boxes[:, 0] + offered.boxes[:, 2]) / 2
    size = offered.boxes[:, 2] - offered.boxes[:, 0]
    assert (assigned[(center < WIDTH / 2 - size) & (size < 20)] == IGNORED).sum() > 100
    assert (assigned[center > WIDTH / 2] == BACKGROUND).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_object_inside_an_ignore_region_is_still_learnt(name: str) -> None:
    assigned = assigner(name)(priors(), square(40, 40, 6), torch.tensor([[0.0, 0, WIDTH, HEIGHT]]))
    assert (assigned == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_distinct_objects_does_not_matter(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    corner = 80 * torch.rand(12, 2, generator=generator)
    objects = torch.cat([corner, corner + 2 + 20 * torch.rand(12, 2, generator=generator)], 1)
    forward = assigner(name)(priors(), objects, NOTHING)
    backward = assigner(name)(priors(), objects.flip(0), NOTHING)
    both = (forward >= 0) | (backward >= 0)
    turned = torch.where(backward >= 0, 11 - backward, backward)
    # By thresholds, an anchor rescued by two objects goes to the last of them; by rank, to the better fit.
    share = (forward == turned)[both].float().mean()
    assert share == 1 if name == "rfla" else share > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_number_of_objects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assign_module, "_BLOCK", 1 << 18)
    offered = priors(160, 208)  # 8,866 anchors: 29 objects at a time
    corner = 150 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    objects = torch.cat([corner, corner + 4], 1)
    peaks = []
    for count in (30, 300):
        with _PeakMemory() as memory:
            assigner(name)(offered, objects[:count], objects[:count])
        peaks.append(memory.peak)
    assert peaks[1] < 1.25 * peaks[0]
    assert peaks[1] < 16 * 4 * (1 << 18)  # sixteen numbers for each pair of a block


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_800_objects_and_100000_anchors_take_less_than_300_megabytes(name: str) -> None:
    offered = priors(640, 560)
    assert 80_000 < len(offered.boxes) < 120_000
    corner = 550 * torch.rand(800, 2, generator=torch.Generator().manual_seed(0))
    objects = torch.cat([corner, corner + 1 + 7 * torch.rand(800, 2)], 1)
    with _PeakMemory() as memory:
        assigned = assigner(name)(offered, objects, NOTHING)
    assert memory.peak < 300e6
    # Where several tiny objects share their only anchors, some have none: no more than a tenth here.
    assert len(assigned[assigned >= 0].unique()) > 720


def test_thresholds_of_a_recipe_win_over_the_hosts() -> None:
    built = named_assigner("nwd", foreground=0.6)(foreground=0.7, background=0.3)
    assert (built.foreground, built.background) == (0.6, 0.3)  # type: ignore[attr-defined]
    low = named_assigner("nwd", foreground=0.2)(foreground=0.7, background=0.3)
    assert (low.foreground, low.background) == (0.2, 0.2)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"background 0\.8 above foreground 0\.7"):
        named_assigner("max_iou", background=0.8)(foreground=0.7, background=0.3)


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(UserError, match="did you mean 'nwd'"):
        named_assigner("nwdd")
    with pytest.raises(UserError, match="simd needs the means"):
        named_assigner("simd")
    with pytest.raises(UserError, match="rfla needs the levels' receptive fields"):
        named_assigner("rfla")
    with pytest.raises(
        UserError, match="ssd cannot take the assigner rfla; ssd assigns by its own rule; rfla works with a, b"
    ):
        refuse_unless("rfla", "ssd", (), ("a", "b"))


def build(host: str, **options: object) -> Detector:
    torch.manual_seed(0)
    extra = {"hidden": 32, "samples": 64} if "rcnn" in host else {"depth": 1}
    norm = PixelNorm([0.5] * 3, [0.25] * 3)
    detector = builder.build(
        f"{host}:mobilenet_v2", width=0.25, classes="ab", pixel_norm=norm, channels=16, **extra, **options
    )
    assert isinstance(detector, Detector)
    return detector


def finite_step(detector: Detector, truth: list[Targets]) -> dict[str, float]:
    pixels = torch.randint(0, 256, (len(truth), 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(3))
    batch = ImageBatch(pixels.to(torch.uint8), ((HEIGHT, WIDTH),) * len(truth))
    losses = detector.losses(batch, truth)
    torch.stack([*losses.values()]).sum().backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    return {name: float(value.detach()) for name, value in losses.items()}


def targets(boxes: Tensor) -> Targets:
    return Targets(boxes, torch.arange(len(boxes)) % 2, torch.zeros(len(boxes), dtype=torch.bool))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_host_takes_every_assigner(host: str, name: str) -> None:
    builder = named_assigner(name, ratios=(4.6, 3.5), receptive_fields=FIELDS)
    detector = build(host, assigner=builder)
    sides = torch.tensor([1.0, 2, 4, 8, 8])
    corner = torch.tensor([[10.5, 10.2], [40, 40], [70, 20], [90, 60], [90, 60]])  # two in one place
    truth = [targets(torch.cat([corner, corner + sides[:, None]], 1)), targets(NOTHING)]
    losses = finite_step(detector, truth)
    assert losses["rpn_box" if "rcnn" in host else "box"] > 0
    assert finite_step(detector, [targets(NOTHING)] * 2)["rpn_box" if "rcnn" in host else "box"] == 0


@pytest.mark.parametrize("host", ["retinanet", "faster_rcnn"])
def test_nwd_as_a_box_loss(host: str) -> None:
    options: dict[str, object] = {"box_loss": "nwd", "nwd_constant": 6.0, "box_weight": 10.0}
    detector = build(host, **({"rpn": options} if host == "faster_rcnn" else options))
    losses = finite_step(detector, [targets(square(40.5, 30.2, 3)), targets(NOTHING)])
    key = "rpn_box" if host == "faster_rcnn" else "box"
    assert 0 < losses[key] <= 10  # a positive costs at most 1, times the weight


def test_the_priors_of_a_host_are_those_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in HOSTS:
        detector = build(host, assigner=named_assigner("max_iou"))
        part = detector.head.assigning_part()
        seen: list[Priors] = []
        original = part.assigner
        assert original is not None

        def spy(given: Priors, *rest: Tensor, original: Callable = original, seen: list[Priors] = seen) -> Tensor:
            seen.append(given)
            return original(given, *rest)

        part.assigner = spy  # type: ignore[assignment]
        finite_step(detector, [targets(square(40, 40, 8))])
        expected = priors_of(detector, (HEIGHT, WIDTH))
        assert torch.equal(seen[0].boxes, expected.boxes)
        assert torch.equal(seen[0].levels, expected.levels)


def test_a_point_may_learn_an_object_beside_it() -> None:
    head = build("fcos", assigner=named_assigner("rfla", receptive_fields=FIELDS)).head
    assert isinstance(head, FCOSHead)
    points, cells = torch.tensor([[10.0, 10.0]]), torch.full((1, 2), 4.0)
    beside = torch.tensor([[11.0, 9.0, 13.0, 11.0]])  # 1 px to the right of the point
    distances = torch.tensor([[0.0, 0.25, 0.75, 0.25]], requires_grad=True)
    box, central = head._box_losses(distances, torch.zeros(1), points, cells, beside, torch.tensor(1.0))
    (box + central).backward()
    assert torch.isfinite(box)
    assert torch.isfinite(distances.grad).all()  # type: ignore[arg-type]


def test_heads_with_a_rule_of_their_own_say_what_they_lack() -> None:
    detector = builder.build("reppoints:mobilenet_v2", width=0.25, channels=16)
    assert isinstance(detector, nn.Module)
    with pytest.raises(UserError, match=r"RepPointsHead cannot take an assigner .* implement Head\.assigning_part"):
        detector.head.assigning_part()  # type: ignore[arg-type]
