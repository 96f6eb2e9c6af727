"""The methods of other papers in a distillation: any hosts, a student that learns, and recipes that name what there is not."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.train.build import build_detector
from flyspeck.train.config import ModelConfig, parse_recipe
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.method_names import METHOD_TERMS, MethodName
from flyspeck.train.distill.objective import FeatureObjective, build_objective
from flyspeck.train.distill.stages import TrainedTeacher, _check_same, _identity, _student_method
from flyspeck.train.distill.teacher import Teacher, TeacherSource, weights_hash
from flyspeck.train.loop import OBSERVED, DetectionObjective
from flyspeck.train.optim import parameter_groups
from flyspeck.types import ImageBatch, Targets

METHODS = sorted(METHOD_TERMS)
NEAR_OBJECTS = {"fine_grained": "imitation", "instance_conditional": "instances"}
"""These learn some cells only: what they learn is seen in their own term."""
HEADS: dict[str, dict] = {
    "retinanet": {"depth": 1},
    "fcos": {"depth": 1},
    "tinaface": {"depth": 1},
    "faster_rcnn": {"hidden": 16, "samples": 16, "train_proposals": 30, "proposals": 20},
}


def detector(kind: str, channels: int = 8, *, backbone: str = "mobilenet_v2") -> Detector:
    torch.manual_seed(channels)
    model = ModelConfig(name=f"{kind}:{backbone}", width=0.25, channels=channels, norm="bn", head=HEADS[kind])
    return build_detector(model, classes=("car", "person"), mean=[0.5], std=[0.25], load=False)


@pytest.fixture(scope="module")
def batch() -> tuple[ImageBatch, list[Targets]]:
    pixels = torch.randint(0, 256, (2, 1, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = [torch.tensor([[10.0, 10.0, 14.0, 15.0], [40.0, 30.0, 41.0, 32.0]]), torch.zeros(0, 4)]
    return ImageBatch(pixels, ((64, 96), (60, 90))), [
        Targets(b, torch.zeros(len(b), dtype=torch.int64), torch.zeros(len(b), dtype=torch.bool)) for b in boxes
    ]


@pytest.fixture(scope="module")
def teacher(batch: tuple[ImageBatch, list[Targets]]) -> Detector:
    """With the norm statistics of the batch: the maps of a teacher that saw nothing are all but 0."""
    found = detector("faster_rcnn", channels=12).train()
    with torch.no_grad():
        for _ in range(40):
            found.pyramid(batch[0])
    return found.eval()


def objective(student: Detector, teacher: Detector, *, scale: float = 1.0, **fields: Any) -> FeatureObjective:
    whole = Teacher(teacher, scale=scale)
    config = DistillConfig(teacher="given", **fields)
    found = build_objective(config, student, whole, lambda observe: TeacherSource(whole, observe))
    assert isinstance(found, FeatureObjective)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("student", "fields"),
    [
        ("retinanet", {}),
        ("fcos", {"levels": [2, 3]}),
        ("tinaface", {"match": "level", "scale": 2.0}),
        ("faster_rcnn", {"scale": 2.0}),
    ],
)
def test_a_step_changes_the_student_and_leaves_the_teacher(
    method: str, student: str, fields: dict, teacher: Detector, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    before = weights_hash(teacher)
    pupil = detector(student, backbone="shufflenet_v2" if student == "fcos" else "mobilenet_v2")
    whole = objective(pupil, teacher, method=method, **fields).train()
    optimizer = torch.optim.SGD(parameter_groups(whole, lr=0.01, weight_decay=0.0), lr=0.01)
    names, old = set(pupil.state_dict()), {n: p.detach().clone() for n, p in pupil.backbone.named_parameters()}
    losses = whole(*batch)
    # What the table of terms says is what there is, and each pulls on the student.
    assert {name.removeprefix("kd_") for name in losses if name.startswith("kd_")} == set(METHOD_TERMS[method])
    kd = torch.stack([value for name, value in losses.items() if name.startswith("kd_")]).sum()
    assert torch.isfinite(kd)
    kd.backward(retain_graph=True)
    torch.stack([v for name, v in losses.items() if not name.startswith((OBSERVED, "kd_"))]).sum().backward()
    assert all(p.grad is not None for p in whole.parameters() if p.requires_grad)
    optimizer.step()
    assert any(not torch.equal(old[n], p) for n, p in pupil.backbone.named_parameters())
    assert weights_hash(teacher) == before
    assert set(pupil.state_dict()) == names


def trained(
    whole: torch.nn.Module, batch: tuple[ImageBatch, list[Targets]], steps: int, *, term: str = "kd_"
) -> tuple[Tensor, Tensor]:
    """The terms of the teacher (or one of them) before and after so many steps, over all levels."""
    optimizer = torch.optim.Adam(parameter_groups(whole, lr=0.003, weight_decay=0.0), lr=0.003)
    seen = []
    for _ in range(steps):
        losses = whole(*batch)
        kd = [value.detach() for name, value in losses.items() if name.startswith(term)]
        seen.append(torch.stack(kd).sum() if kd else torch.zeros(()))
        optimizer.zero_grad()
        torch.stack([v for name, v in losses.items() if not name.startswith(OBSERVED)]).sum().backward()
        optimizer.step()
    return seen[0], seen[-1]


def likeness(student: Detector, teacher: Detector, batch: tuple[ImageBatch, list[Targets]]) -> float:
    """Mean CKA of P2 to P5."""
    whole = objective(student, teacher)
    with torch.no_grad():
        found = whole.terms.similarities(student.pyramid(batch[0]), whole.source(batch[0]))
    return float(torch.stack([*found.values()]).mean())


@pytest.fixture(scope="module")
def alone(teacher: Detector, batch: tuple[ImageBatch, list[Targets]]) -> float:
    """How like its teacher a student becomes that learns from the ground truth alone."""
    student = detector("retinanet").train()
    trained(DetectionObjective(student), batch, 18)
    return likeness(student, teacher, batch)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in NEAR_OBJECTS])
def test_a_student_becomes_more_like_its_teacher_than_alone(
    method: str, alone: float, teacher: Detector, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    student = detector("retinanet")
    first, last = trained(objective(student, teacher, method=method).train(), batch, 18)
    assert float(last) < 0.9 * float(first)
    assert likeness(student, teacher, batch) > alone + 0.05


@pytest.mark.parametrize("method", sorted(NEAR_OBJECTS))
def test_cells_near_objects_are_learnt(method: str, teacher: Detector, batch: tuple[ImageBatch, list[Targets]]) -> None:
    whole = objective(detector("retinanet"), teacher, method=method, weight=3.0).train()
    first, last = trained(whole, batch, 16, term=f"kd_{NEAR_OBJECTS[method]}")
    assert float(last) < 0.6 * float(first)


def test_a_decoder_learns_what_it_is_asked(teacher: Detector, batch: tuple[ImageBatch, list[Targets]]) -> None:
    whole = objective(detector("retinanet"), teacher, method="instance_conditional", levels=[2, 3]).train()
    maps, given = whole.detector.pyramid(batch[0]), whole.source(batch[0])
    maps = [m.detach() for m in maps]
    optimizer = torch.optim.Adam(whole.terms.parameters(), lr=0.003)
    seen = []
    torch.manual_seed(0)
    for _ in range(60):
        loss = whole.terms(maps, given, *batch)["auxiliary P2"]
        seen.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])


@pytest.mark.parametrize("adaptive", ["uncertainty", "gradient_norm"])
@pytest.mark.parametrize("method", ["attention_guided", "fine_grained"])
def test_adaptive_weights_take_the_terms_of_any_method(
    adaptive: str, method: str, teacher: Detector, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    whole = objective(detector("retinanet"), teacher, method=method, adaptive=adaptive, levels=[2, 4]).train()
    losses = whole(*batch)
    torch.stack([v for name, v in losses.items() if not name.startswith(OBSERVED)]).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in whole.parameters() if p.grad is not None)


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_every_method_has_a_name_and_its_terms() -> None:
    names = set(typing.get_args(MethodName))
    assert set(METHOD_TERMS) | {"none", "response", "single", "hierarchical"} == names


def test_weights_of_terms_multiply_and_nought_leaves_a_term_out(
    teacher: Detector, batch: tuple[ImageBatch, list[Targets]]
) -> None:
    def losses(**terms: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)  # the adapters
        student = detector("retinanet").eval()
        torch.manual_seed(0)
        return objective(student, teacher, method="fgd", levels=[2, 3], weight=2.0, terms=terms).eval()(*batch)

    plain = losses(attention=0.0, **{"global": 0.0})
    assert {name for name in plain if name.startswith("kd_")} == {"kd_objects", "kd_background"}
    more = losses(objects=[3.0, 3.0], background=0.25, attention=0.0, **{"global": 0.0})
    torch.testing.assert_close(more["kd_objects"], 3 * plain["kd_objects"])
    torch.testing.assert_close(more["kd_background"], 0.5 * plain["kd_background"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method": "fgd", "terms": {"margin": 1}}, "no term 'margin': it has objects, background, attention, global"),
        ({"method": "hierarchical", "terms": {"spatial": 1}}, "method hierarchical has no weights under distill.terms"),
        ({"method": "overhaul", "terms": {"margin": -1}}, "greater than or equal to 0"),
        ({"method": "overhaul", "terms": {"margin": [1, 2]}}, "terms.margin has 2 weights: name as many levels"),
        ({"method": "fgd2"}, "fine_grained"),
        ({"method": "fgd", "attention_temperature": 0}, "greater than 0"),
    ],
)
def test_what_a_recipe_cannot_say(section: dict[str, Any], message: str) -> None:
    content = {"name": "x", "data": {"train": "a", "val": "b"}, "model": {"name": "fcos:resnet18"}}
    with pytest.raises(UserError, match=message):
        parse_recipe({**content, "distill": {"teacher": "t", **section}})


def test_a_stage_that_an_older_version_finished_stays_finished(teacher: Detector, tmp_path: Path) -> None:
    """Fields that came later cannot differ; those that were there can."""
    recipe = parse_recipe({"name": "x", "data": {"train": "a", "val": "b"}, "model": {"name": "fcos:resnet18"}})
    whole = TrainedTeacher(teacher, {}, 1.0, "hash")
    method = _student_method(DistillConfig(teacher="t"), whole)
    noted = json.loads(json.dumps(_identity(recipe, method)))
    del noted["recipe"]["model"]["pruned"]
    for field in ("terms", "imitation_threshold", "attention_temperature"):
        del noted["note"]["distill"][field]
    done = tmp_path / "stage.json"
    done.write_text(json.dumps({"of": noted}))
    _check_same(done, recipe, method)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"lr": 0.5})})
    with pytest.raises(UserError, match="finished with another train"):
        _check_same(done, other, method)
    with pytest.raises(UserError, match="finished with another distill"):
        _check_same(done, recipe, _student_method(DistillConfig(teacher="t", weight=0.5), whole))
