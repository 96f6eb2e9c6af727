"""Decoupled features, instance-conditional and relational distillation: values by hand, and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flyspeck.train.distill.levels import LevelPair
from flyspeck.train.distill.methods.base import Level, Scene, level_of
from flyspeck.train.distill.methods.decoupled import DecoupledTerms, object_cells
from flyspeck.train.distill.methods.instance_conditional import HEADS, InstanceTerms, questions
from flyspeck.train.distill.methods.relational import PixelGraph, RelationalTerms, object_relations, relation_filter
from flyspeck.train.distill.weighting import GradientNormWeights
from flyspeck.types import ImageBatch, Targets

PADDED = (32, 48)
IMAGES = ImageBatch(torch.zeros(1, 1, *PADDED), (PADDED,))


def maps(channels: int, *, size: tuple[int, int] = (8, 12), batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def truth(boxes: list[list[float]]) -> Targets:
    count = len(boxes)
    return Targets(torch.tensor(boxes).reshape(-1, 4), torch.arange(count) % 2, torch.zeros(count, dtype=torch.bool))


def level(teacher: Tensor, name: str = "P2") -> Level:
    return level_of(name, teacher, teacher, IMAGES)


# --- decoupled features -----------------------------------------------------------------------------------------------


def test_decoupled_terms_by_hand() -> None:
    # A teacher of 1 (unit 1); the student is 3 on the two cells of the object, 0 on the other 94: 4 / 2 and 1 / 2.
    terms = DecoupledTerms([LevelPair(2, 0, 0, (2, 2))], wanted=["objects P2", "background P2"])
    student = torch.zeros(1, 2, 8, 12)
    student[:, :, 2, 3:5] = 3.0
    found = terms([student], {"P2": torch.ones(1, 2, 8, 12)}, IMAGES, [truth([[15.0, 9, 17, 11]])])
    assert_close(found, {"objects P2": torch.tensor(2.0), "background P2": torch.tensor(0.5)})
    nothing = terms([student], {"P2": torch.ones(1, 2, 8, 12)}, IMAGES, [truth([])])
    assert float(nothing["objects P2"]) == 0


@pytest.mark.parametrize("side", [1.0, 2.0, 4.0, 8.0])
def test_cells_of_objects_are_those_that_boxes_touch(side: float) -> None:
    boxes = [[5.5, 6.5, 5.5 + side, 6.5 + side], [44.0, 0, 48, 1], [-5.0, -5, -1, -1]]
    found = object_cells(Scene([truth(boxes)], PADDED), level(maps(1)))
    for y in range(8):
        for x in range(12):
            touching = any(b[0] < 4 * x + 4 and b[2] > 4 * x and b[1] < 4 * y + 4 and b[3] > 4 * y for b in boxes)
            assert bool(found[0, y, x]) == touching


# --- instance-conditional ---------------------------------------------------------------------------------------------


def test_questions_tell_how_to_find_the_object() -> None:
    torch.manual_seed(0)
    objects = torch.tensor(
        [[5.0, 5, 6, 7], [10.0, 10, 18, 14], [20.0, 20, 20, 24]]
    )  # the last has no area: it is not asked for
    asked = questions(objects, torch.tensor([0, 1, 1]), PADDED)
    assert asked.real.tolist() == [1, 1, 0, 0]
    assert asked.labels.tolist() == [0, 1, 0, 1]
    sides, centers = asked.boxes[:, 2:] - asked.boxes[:, :2], (asked.boxes[:, 2:] + asked.boxes[:, :2]) / 2
    found_centers, found_sides = centers[:2] + asked.offsets[:, :2] * sides[:2], sides[:2] * asked.offsets[:, 2:].exp()
    assert_close(torch.cat([found_centers - found_sides / 2, found_centers + found_sides / 2], 1), objects[:2])
    # Moved by at most half of its sides, and scaled by at most 2.
    own = objects[:2, 2:] - objects[:2, :2]
    assert ((centers[:2] - (objects[:2, 2:] + objects[:2, :2]) / 2).abs() <= own / 2 + 1e-5).all()
    assert (sides[:2] <= 2 * own + 1e-5).all()
    assert (sides[:2] >= own / 2 - 1e-5).all()


def test_a_crowd_is_drawn_from() -> None:
    low = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 20
    asked = questions(torch.cat([low, low + 2], 1), torch.zeros(300, dtype=torch.int64), PADDED)
    assert len(asked.offsets) == 100
    assert len(asked.boxes) == 200


def test_attention_is_a_share_of_all_cells_of_all_levels() -> None:
    torch.manual_seed(0)
    pairs = [LevelPair(2, 0, 0, (3, 5)), LevelPair(3, 1, 1, (3, 4))]
    terms = InstanceTerms(pairs, wanted=["instances P2", "instances P3", "auxiliary P2"], classes=2)
    found = [level(maps(5)), level(maps(4, size=(4, 6)), "P3")]
    _, attended = terms._attention(found, Scene([truth([[5.0, 5, 7, 8], [20.0, 20, 24, 21]])], PADDED))
    assert {name: a.shape for name, a in attended.items()} == {"P2": (1, HEADS, 96), "P3": (1, HEADS, 24)}
    assert_close(attended["P2"].sum(2) + attended["P3"].sum(2), torch.ones(1, HEADS))


def test_instances_are_the_plain_sum_over_heads_and_cells() -> None:
    torch.manual_seed(0)
    terms = InstanceTerms([LevelPair(2, 0, 0, (5, 5))], wanted=["instances P2", "auxiliary P2"], classes=2)
    student, teacher = maps(5), maps(5, seed=1)
    targets = [truth([[5.0, 5, 7, 8], [20.0, 20, 24, 21]])]
    torch.manual_seed(3)
    found = terms([student], {"P2": teacher}, IMAGES, targets)["instances P2"]
    torch.manual_seed(3)
    one = level_of("P2", student, teacher, IMAGES)
    _, attended = terms._attention([one], Scene(targets, PADDED))
    layer = terms.decoder.value_of["P2"]
    own, theirs = (layer(m.flatten(2)[0].T) for m in (one.student / one.unit, one.teacher))  # (cells, heads * channels)
    total = 0.0
    for head in range(HEADS):
        for cell in range(96):
            span = slice(16 * head, 16 * head + 16)
            apart = float((own[cell, span] - theirs[cell, span]).square().mean().detach())
            total += float(attended["P2"][0, head, cell]) * apart
    assert_close(float(found.detach()), total / HEADS / float(theirs.square().mean().detach()), rtol=1e-4, atol=1e-5)


def test_each_loss_reaches_its_own_weights() -> None:
    torch.manual_seed(0)
    terms = InstanceTerms([LevelPair(2, 0, 0, (3, 5))], wanted=["instances P2", "auxiliary P2"], classes=2)
    student = maps(3).requires_grad_()
    found = terms([student], {"P2": maps(5, seed=1)}, IMAGES, [truth([[5.0, 5, 7, 8]])])
    decoder = list(terms.decoder.parameters())
    pulled = torch.autograd.grad(found["instances P2"], decoder, retain_graph=True, allow_unused=True)
    assert all(g is None for g in pulled)
    assert torch.autograd.grad(found["auxiliary P2"], student, retain_graph=True, allow_unused=True)[0] is None
    assert float(torch.autograd.grad(found["instances P2"], student)[0].abs().sum()) > 0
    # Without the decoder's loss it stays as it is, and has no weights to train.
    alone = InstanceTerms([LevelPair(2, 0, 0, (3, 5))], wanted=["instances P2"], classes=2)
    assert {n for n, p in alone.named_parameters() if p.requires_grad} == {"adapters.P2.weight", "adapters.P2.bias"}


# --- relational -------------------------------------------------------------------------------------------------------


def test_a_filter_by_hand() -> None:
    # Cosines 1 and 0 with the others, at a temperature of 0.5: e^2 / (e^2 + 1); the diagonal counts nothing.
    cosines = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    high = math.exp(2) / (math.exp(2) + 1)
    found = relation_filter(cosines)
    assert_close(found, torch.tensor([[0.0, high, 1 - high], [0.5, 0.0, 0.5], [1 - high, high, 0.0]]))


def test_relations_of_objects_by_hand() -> None:
    # Two objects on flat parts of the map. Teacher: (1, 0) and (0, 1), cosine 0. Student: both (1, 1), cosine 1. Each: 1.
    teacher, student = torch.zeros(1, 2, 8, 12), torch.ones(1, 2, 8, 12)
    teacher[:, 0, :, :6], teacher[:, 1, :, 6:] = 1.0, 1.0
    boxes = [torch.tensor([[8.0, 8, 12, 12], [36.0, 8, 40, 12]])]
    assert_close(object_relations(student, teacher, boxes, PADDED), torch.tensor(1.0))
    assert_close(object_relations(3 * teacher, teacher, boxes, PADDED), torch.tensor(0.0))
    for few in (torch.zeros(0, 4), boxes[0][:1]):  # one object has no relations
        assert float(object_relations(student, teacher, [few], PADDED)) == 0


def test_a_graph_of_pixels_is_the_plain_product() -> None:
    torch.manual_seed(0)
    graph = PixelGraph(4, nodes=3)
    torch.nn.init.normal_(graph.out.weight)
    m = maps(4, size=(2, 3))
    found = graph(m, torch.ones(1, 2, 3))
    cells = m[0].flatten(1).T
    share = torch.stack([graph.project(c[None, :, None, None]).flatten() for c in cells])  # (cells, nodes)
    states = torch.stack([graph.reduce(c[None, :, None, None]).flatten() for c in cells])
    nodes = share.T @ states / 6
    related = torch.relu(graph.state(nodes - graph.adjacency.weight @ nodes))
    plain = cells + (share @ related) @ graph.out.weight[:, :, 0, 0].T + graph.out.bias
    assert_close(found[0].flatten(1).T, plain)
    assert_close(PixelGraph(4, nodes=3)(m, torch.ones(1, 2, 3)), m)  # it begins as the map itself


def test_a_crowd_in_one_image_and_none_in_the_other() -> None:
    torch.manual_seed(0)
    terms = RelationalTerms([LevelPair(2, 0, 0, (3, 5))], wanted=["objects P2", "pixels P2"])
    low = (torch.rand(300, 2) * torch.tensor([46.0, 30.0])).tolist()
    boxes = [[x, y, x + 1, y + 2] for x, y in low]
    images = ImageBatch(torch.zeros(2, 1, *PADDED), (PADDED, (20, 28)))
    found = terms([maps(3, batch=2)], {"P2": maps(5, batch=2)}, images, [truth(boxes), truth([])])
    assert float(found["objects P2"].detach()) > 0


# --- weights that follow training -------------------------------------------------------------------------------------


def test_a_term_that_does_not_pull_keeps_its_factor() -> None:
    m = maps(2).requires_grad_()
    weighting = GradientNormWeights({"a": 1.0, "b": 1.0}, every=1)
    weighting({"a": m.square().sum(), "b": (3 * m).square().sum()}, m.square().sum(), [m])
    before = weighting.factors.clone()
    weighting({"a": m.square().sum(), "b": (m * 0).sum()}, m.square().sum(), [m])  # a batch without an object
    assert_close(weighting.factors[1], before[1])
