"""The terms of other papers' methods: values by hand, slow twins, objects of 1 to 8 px, and what must not change them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from flyspeck import boxes as box_algebra
from flyspeck.models.anchors import AnchorGrid
from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.attention import cell_attention, cell_mask, channel_attention, channel_mask
from flyspeck.train.distill.methods.attention_guided import AttentionGuidedTerms, NonLocal, masked_distance
from flyspeck.train.distill.methods.base import Level, PaperTerms, Scene, level_of, root_mean_square
from flyspeck.train.distill.methods.decoupled import DecoupledTerms
from flyspeck.train.distill.methods.fgd import FgdTerms, GlobalContext, focal_weights
from flyspeck.train.distill.methods.fine_grained import FineGrainedTerms, imitation_mask
from flyspeck.train.distill.methods.instance_conditional import InstanceTerms
from flyspeck.train.distill.methods.overhaul import Margin, OverhaulTerms, Regressor, partial_l2
from flyspeck.train.distill.methods.relational import RelationalTerms
from flyspeck.types import ImageBatch, Targets

PADDED = (32, 48)
TINY = [[5.0, 5, 5 + side, 5 + side] for side in (1.0, 2.0, 3.0, 5.0, 8.0)] + [
    [0.0, 0, 1, 1],  # in the corner
    [47.0, 30, 48, 32],  # in the opposite one
    [3.5, 3.5, 4.5, 4.5],  # on the corner of four cells
    [-3.0, 10, 2, 14],  # cut off by the edge
]


def maps(channels: int, *, size: tuple[int, int] = (8, 12), batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def level(student: Tensor, teacher: Tensor, *, sizes: tuple[tuple[int, int], ...] | None = None) -> Level:
    images = ImageBatch(torch.zeros(len(student), 1, *PADDED), sizes or (PADDED,) * len(student))
    return level_of("P2", student, teacher, images)


def scene(*boxes: list[list[float]]) -> Scene:
    return Scene([truth(b) for b in boxes], PADDED)


def run(terms: PaperTerms, *given: Any) -> dict[str, Tensor]:
    """The terms of a batch; what is drawn at random is drawn alike."""
    torch.manual_seed(0)
    return terms(*given)


def truth(boxes: list[list[float]], ignore: bool = False) -> Targets:
    count = len(boxes)
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.full((count,), -ignore), torch.full((count,), ignore))


def made(name: str, channels: tuple[int, int] = (3, 3), *terms: str) -> PaperTerms:
    """The method's terms on one level of stride 4, with weights that are no zeros."""
    torch.manual_seed(0)
    pairs = [LevelPair(2, 0, 0, channels)]
    every = {
        "fine_grained": ["imitation"],
        "attention_guided": ["attention", "masked", "non_local"],
        "overhaul": ["margin"],
        "fgd": ["objects", "background", "attention", "global"],
        "decoupled": ["objects", "background"],
        "instance_conditional": ["instances", "auxiliary"],
        "relational": ["pixels", "objects"],
    }[name]
    wanted = [f"{term} P2" for term in terms or every]
    kinds: dict[str, Any] = {
        "fine_grained": lambda: FineGrainedTerms(pairs, wanted=wanted, anchors={"P2": [(8.0, 8.0)]}),
        "attention_guided": lambda: AttentionGuidedTerms(pairs, wanted=wanted),
        "overhaul": lambda: OverhaulTerms(pairs, wanted=wanted),
        "fgd": lambda: FgdTerms(pairs, wanted=wanted),
        "decoupled": lambda: DecoupledTerms(pairs, wanted=wanted),
        "instance_conditional": lambda: InstanceTerms(pairs, wanted=wanted, classes=2),
        "relational": lambda: RelationalTerms(pairs, wanted=wanted, nodes=4),
    }
    found = kinds[name]()
    for weights in found.parameters():
        if weights.abs().sum() == 0:  # layers that begin at 0 hide what is before them
            torch.nn.init.normal_(weights, std=0.3)
    return found


METHODS = ["fine_grained", "attention_guided", "overhaul", "fgd", "decoupled", "instance_conditional", "relational"]


# --- what holds for all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("channels", [(3, 3), (3, 5)])
def test_what_lies_in_the_padding_changes_nothing(name: str, channels: tuple[int, int]) -> None:
    terms = made(name, channels).eval()
    student, teacher = maps(channels[0]), maps(channels[1], seed=1)
    images = ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, (20, 28)))  # the second fills 5 x 7 of 8 x 12 cells
    targets = [truth(TINY), truth([[5.0, 5, 8, 8]])]
    before = run(terms, [student], {"P2": teacher}, images, targets)
    student, teacher = student.clone(), teacher.clone()
    for m in (student, teacher):
        m[1, :, 5:], m[1, :, :, 7:] = 1e3, -1e3
    after = run(terms, [student], {"P2": teacher}, images, targets)
    assert before
    assert before.keys() == after.keys()
    for term, value in before.items():
        assert float(value.detach()) > 0
        assert_close(after[term], value)


@pytest.mark.parametrize("name", METHODS)
def test_units_are_the_teachers(name: str) -> None:
    terms = made(name).eval()
    for module in terms.modules():  # a linear adapter: what is twice as large stays twice as large
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None and name == "fine_grained":
            torch.nn.init.zeros_(module.bias)
    if name == "overhaul":
        terms.regressors["P2"].norm = torch.nn.Identity()  # type: ignore[union-attr, assignment]
    student, teacher = maps(3), maps(3, seed=1)
    images = ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, PADDED))
    targets = [truth(TINY), truth([])]
    once, tenfold = (run(terms, [k * student], {"P2": k * teacher}, images, targets) for k in (1.0, 10.0))
    for term, value in once.items():
        assert_close(tenfold[term], value)


@pytest.mark.parametrize("name", ["attention_guided", "fgd", "decoupled", "instance_conditional", "relational"])
def test_a_teacher_that_is_the_student_costs_nothing(name: str) -> None:
    torch.manual_seed(0)
    terms = made(name)
    for own, theirs in (("own_relations", "teacher_relations"), ("own_context", "teacher_context")):
        if hasattr(terms, own):  # two modules learn to agree; here they do
            getattr(terms, own).load_state_dict(getattr(terms, theirs).state_dict())
    m = maps(3)
    found = terms([m], {"P2": m}, ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, PADDED)), [truth(TINY), truth([])])
    for term, value in found.items():
        if not term.startswith("auxiliary"):  # the decoder's own loss
            assert_close(value, torch.zeros(()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("boxes", [[box] for box in TINY] + [[], TINY, [[60.0, 60, 64, 64]]])
def test_tiny_objects_none_and_those_outside_give_numbers(name: str, boxes: list[list[float]]) -> None:
    terms = made(name, (3, 5))
    student = maps(3).requires_grad_()
    images = ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, (1, 1)))  # the second image is one pixel
    found = terms([student], {"P2": maps(5, seed=1)}, images, [truth(boxes), truth([])])
    torch.stack([*found.values()]).sum().backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_map_of_one_cell_of_one_image(name: str) -> None:
    terms = made(name, (3, 5))
    student = maps(3, size=(1, 1), batch=1)
    images = ImageBatch(torch.zeros(1, 1, 4, 4), ((4, 4),))
    found = terms([student], {"P2": maps(5, size=(2, 2), batch=1, seed=1)}, images, [truth([[1.0, 1, 3, 3]])])
    assert all(torch.isfinite(value) for value in found.values())


def test_ignore_regions_are_no_objects() -> None:
    both = Targets(
        torch.tensor([[5.0, 5, 9, 9], [20.0, 4, 40, 28]]), torch.tensor([0, -1]), torch.tensor([False, True])
    )
    shown = Scene([both], PADDED)
    assert_close(shown.objects(0, torch.device("cpu")), torch.tensor([[5.0, 5, 9, 9]]))


# --- fine-grained feature imitation -----------------------------------------------------------------------------------


def test_a_mask_by_hand() -> None:
    # Anchors of 8x8 on cells of 4 px, the object 8x8 on the anchor of cell (2, 3): centre (14, 10), overlap 1.
    # A neighbour shares 4 x 8 of 64 + 64 - 32: 1/3; one aslant 16 of 112: 1/7. psi = 0.5 keeps the cell alone, 0.3 the cross.
    at = torch.tensor([[10.0, 6, 18, 14]])
    alone = imitation_mask(at, [(8.0, 8.0)], PADDED, (8, 12), threshold=0.5)
    assert alone.nonzero().tolist() == [[2, 3]]
    cross = imitation_mask(at, [(8.0, 8.0)], PADDED, (8, 12), threshold=0.3)
    assert cross.nonzero().tolist() == [[1, 3], [2, 2], [2, 3], [2, 4], [3, 3]]


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_is_what_the_anchors_overlaps_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(9, 2, generator=generator) * 40 - 4
    objects = torch.cat([low, low + 1 + 7 * torch.rand(9, 2, generator=generator)], 1)
    shapes = [(8.0, 8.0), (4.0, 11.0)]
    anchors = AnchorGrid([shapes]).level(shapes, (8, 12), PADDED, torch.device("cpu"))
    expected = torch.zeros(8, 12, dtype=torch.bool)
    for one in objects:
        overlaps = [float(box_algebra.iou(one[None], anchor[None])) for anchor in anchors]
        for i, overlap in enumerate(overlaps):
            if overlap > 0.5 * max(overlaps) * (1 + 1e-6):
                expected[i // 2 // 12, i // 2 % 12] = True
    found = imitation_mask(objects, shapes, PADDED, (8, 12), threshold=0.5)
    assert found.equal(expected)
    monkeypatch.setattr("flyspeck.train.distill.methods.fine_grained.OVERLAPS_AT_ONCE", 400)  # two objects at a time
    assert imitation_mask(objects, shapes, PADDED, (8, 12), threshold=0.5).equal(expected)


@pytest.mark.parametrize("box", TINY)
def test_every_tiny_object_has_cells(box: list[float]) -> None:
    for side in (8.0, 16.0, 128.0):  # on a fine level and on coarse ones
        assert imitation_mask(torch.tensor([box]), [(side, side)], PADDED, (8, 12), threshold=0.5).any()


def test_imitation_by_hand() -> None:
    terms = FineGrainedTerms([LevelPair(2, 0, 0, (1, 2))], wanted=["imitation P2"], anchors={"P2": [(8.0, 8.0)]})
    adapter = terms.adapters["P2"]
    with torch.no_grad():
        adapter.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))  # type: ignore[union-attr, operator]
        adapter.bias.zero_()  # type: ignore[union-attr, operator]
    teacher = torch.ones(1, 2, 8, 12)
    images = ImageBatch(torch.zeros(1, 1, *PADDED), (PADDED,))
    # The unit is 1. A student of 3 becomes (3, 6): (4 + 25) / 2 channels / 2 for each of the cells of the mask.
    found = terms([torch.full((1, 1, 8, 12), 3.0)], {"P2": teacher}, images, [truth([[10.0, 6, 18, 14]])])
    assert_close(found["imitation P2"].detach(), torch.tensor(29 / 4))
    nothing = terms([torch.full((1, 1, 8, 12), 3.0)], {"P2": teacher}, images, [truth([])])
    assert float(nothing["imitation P2"].detach()) == 0


# --- attention ----------------------------------------------------------------------------------------------------


def test_attention_masks_by_hand() -> None:
    # Two cells, two channels: |3| |1| and |-1| |1|: cells (2, 1), channels (2, 1). Softmax at T = 1: e / (1 + e) = 0.7311.
    m = torch.tensor([[[[3.0, -1.0]], [[-1.0, 1.0]]]])
    valid = torch.ones(1, 1, 2)
    assert_close(cell_attention(m), torch.tensor([[[2.0, 1.0]]]))
    assert_close(channel_attention(m, valid), torch.tensor([[2.0, 1.0]]))
    high, low = 2 / (1 + math.exp(-1)), 2 / (1 + math.exp(1))
    assert_close(cell_mask(cell_attention(m), valid, temperature=1.0), torch.tensor([[[high, low]]]))
    assert_close(channel_mask(channel_attention(m, valid), temperature=1.0), torch.tensor([[high, low]]))
    # At half the temperature the difference of 1 counts twice.
    sharper = cell_mask(cell_attention(m), valid, temperature=0.5)
    assert_close(sharper[0, 0, 0], torch.tensor(2 / (1 + math.exp(-2))))


def test_masks_have_a_mean_of_one_over_the_image() -> None:
    one = level(maps(3), maps(4, seed=1), sizes=(PADDED, (20, 28)))
    mask = cell_mask(cell_attention(one.teacher), one.valid, temperature=0.5)
    assert_close(mask.sum((1, 2)), torch.tensor([96.0, 35.0]))
    assert float(mask[1, 5:].sum() + mask[1, :, 7:].sum()) == 0
    assert_close(channel_mask(channel_attention(one.teacher, one.valid), temperature=0.5).mean(1), torch.ones(2))


def test_masked_distance_is_the_plain_sum() -> None:
    one = level(maps(3), maps(3, seed=1))
    own = one.adapted(torch.nn.Identity())
    cells = cell_attention(own) + cell_attention(one.teacher)
    channels = channel_attention(own, one.valid) + channel_attention(one.teacher, one.valid)
    lengths = []
    for i in range(2):
        where = (cells[i].flatten() / 0.5).softmax(0).view(8, 12) * 96
        which = (channels[i] / 0.5).softmax(0) * 3
        total = 0.0
        for c in range(3):
            for y in range(8):
                for x in range(12):
                    apart = float(own[i, c, y, x] - one.teacher[i, c, y, x])
                    total += apart**2 * float(where[y, x]) * float(which[c])
        lengths.append((total / (3 * 96)) ** 0.5)
    assert_close(masked_distance(own, one, temperature=0.5), torch.tensor(sum(lengths) / 2))


def test_lengths_are_flat_at_nothing() -> None:
    zero = torch.zeros(2, 3, requires_grad=True)
    root_mean_square(zero, 3.0).backward()
    assert_close(zero.grad, torch.zeros(2, 3))
    assert_close(root_mean_square(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 2.0), torch.tensor(12.5**0.5 / 2))


def test_relations_are_sums_over_all_pairs_of_cells() -> None:
    torch.manual_seed(0)
    module = NonLocal(8, pool=2)
    torch.nn.init.normal_(module.out.weight)
    m, valid = maps(8, size=(4, 6)), torch.ones(2, 4, 6)
    found = module(m, valid)
    theta = module.theta(m).flatten(2)
    phi, g = (F.max_pool2d(layer(m), 2).flatten(2) for layer in (module.phi, module.g))
    assert phi.shape == (2, 2, 6)  # a quarter of the channels, 2 x 3 keys
    for i in range(2):
        y = torch.stack([sum((theta[i, :, p] @ phi[i, :, k]) * g[i, :, k] for k in range(6)) / 6 for p in range(24)], 1)
        plain = m[i] + module.out(y.view(1, 2, 4, 6))[0]
        assert_close(found[i], plain, atol=1e-5, rtol=1e-4)


def test_relations_begin_as_the_map_itself() -> None:
    m = maps(8)
    assert_close(NonLocal(8, pool=8)(m, torch.ones(2, 8, 12)), m)
    assert_close(GlobalContext(8)(m, torch.ones(2, 8, 12)), m)


# --- overhaul ---------------------------------------------------------------------------------------------------------


def test_partial_l2_by_hand() -> None:
    # (student, teacher): below a negative teacher nothing; above it, or above 0, the square.
    cases = [
        (-3.0, -1.0, 0.0),
        (-0.5, -1.0, 0.25),
        (2.0, -1.0, 9.0),
        (-1.0, 2.0, 9.0),
        (1.0, 2.0, 1.0),
        (0.0, 0.0, 0.0),
    ]
    student, teacher, expected = torch.tensor(cases).T
    assert_close(partial_l2(student, teacher), expected)


def test_margins_are_mean_negative_responses() -> None:
    margin = Margin(2)
    shown = torch.tensor([[[[-1.0, -3.0, 5.0]], [[1.0, 2.0, 3.0]]]])  # channel 1 is never negative
    cut = margin(shown)
    assert_close(margin.values(), torch.tensor([-2.0, 0.0]))
    assert_close(cut, torch.tensor([[[[-1.0, -2.0, 5.0]], [[1.0, 2.0, 3.0]]]]))
    margin(torch.full((1, 2, 1, 1), -8.0))  # 0.99 * 2 responses of -2 in the mean, and one of -8
    assert_close(margin.values()[0], torch.tensor((0.99 * -4 - 8) / (0.99 * 2 + 1)))
    before = margin.values()
    margin.eval()(torch.full((1, 2, 1, 1), -100.0))  # an evaluation learns nothing
    assert_close(margin.values(), before)


def test_a_student_below_what_the_teacher_suppresses_is_left_alone() -> None:
    terms = OverhaulTerms([LevelPair(2, 0, 0, (3, 3))], wanted=["margin P2"])
    terms.regressors["P2"] = torch.nn.Identity()
    teacher = -maps(3, seed=1).abs()
    images, targets = ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, PADDED)), [truth([]), truth([])]
    below = terms([torch.full((2, 3, 8, 12), -50.0)], {"P2": teacher}, images, targets)["margin P2"]
    assert float(below) == 0
    assert float(terms([torch.zeros(2, 3, 8, 12)], {"P2": teacher}, images, targets)["margin P2"]) > 0.1


def test_a_regressor_normalises_what_it_gives() -> None:
    torch.manual_seed(0)
    found = Regressor(3, 5).train()(7 * maps(3) + 2)
    assert_close(found.mean((0, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    assert_close(found.std((0, 2, 3), correction=0), torch.ones(5), atol=1e-3, rtol=0)


# --- focal and global -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "boxes", [[[8.0, 8, 16, 12], [10.0, 9, 11, 10]], TINY, [[5.0, 5, 5.5, 5.5]], [[0.0, 0, 48, 32]], []]
)
def test_focal_weights_are_the_smallest_objects(boxes: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    one = level(maps(1, batch=1), maps(1, batch=1, seed=1))
    on, off = focal_weights(scene(boxes), one)
    touching = [
        [
            (y, x)
            for y in range(8)
            for x in range(12)
            if b[0] < 4 * x + 4 and b[2] > 4 * x and b[1] < 4 * y + 4 and b[3] > 4 * y
        ]
        for b in boxes
    ]
    expected = torch.zeros(8, 12)
    for cells in touching:
        for y, x in cells:
            expected[y, x] = max(float(expected[y, x]), 1 / len(cells) / len(boxes))
    assert_close(on[0], expected)
    background = (expected == 0).float()
    assert_close(off[0], background / background.sum().clamp(min=1))
    monkeypatch.setattr("flyspeck.train.distill.methods.fgd.CELLS_AT_ONCE", 200)  # two objects at a time
    assert_close(focal_weights(scene(boxes), one)[0], on)


def test_an_object_counts_alike_whatever_its_size() -> None:
    for box in TINY:
        on, off = focal_weights(scene([box]), level(maps(1, batch=1), maps(1, batch=1, seed=1)))
        assert_close(on.sum(), torch.tensor(1.0))
        assert_close(off.sum(), torch.tensor(1.0))


def test_focal_terms_by_hand() -> None:
    # A teacher that is 1 everywhere: the unit is 1, all masks are 1. The student is 3 where the object is, and 2 elsewhere.
    terms = made("fgd", (2, 2), "objects", "background")
    student = torch.full((1, 2, 8, 12), 2.0)
    student[:, :, 2, 3] = 3.0
    images = ImageBatch(torch.zeros(1, 1, *PADDED), (PADDED,))
    found = terms([student], {"P2": torch.ones(1, 2, 8, 12)}, images, [truth([[13.0, 9, 15, 11]])])
    assert_close(found["objects P2"], torch.tensor(4.0))
    assert_close(found["background P2"], torch.tensor(1.0))
    assert found.keys() == {"objects P2", "background P2"}


def test_a_context_is_the_softmax_mean_of_the_image() -> None:
    torch.manual_seed(0)
    block = GlobalContext(4)
    torch.nn.init.normal_(block.last.weight)
    m = maps(4, batch=1)
    valid = torch.zeros(1, 8, 12)
    valid[:, :5, :7] = 1
    m = m * valid[:, None]
    cells = m[0, :, :5, :7].flatten(1).T
    share = torch.cat([block.score(c[None, :, None, None]).flatten() for c in cells]).softmax(0)
    context = (share[:, None] * cells).sum(0)
    added = block.last(torch.relu(block.norm(block.first(context))))
    assert_close(block(m, valid)[0, :, :5, :7], m[0, :, :5, :7] + added[:, None, None])
    assert float(block(m, valid)[0, :, 5:].abs().sum().detach()) == 0
