"""The response-based baseline: the student learns the teacher's class scores and boxes (Hinton et al., 2015,
arXiv:1503.02531; for two-stage detectors Chen et al., NeurIPS 2017).

A one-stage head is compared at every anchor or point: per-class Bernoulli distributions for sigmoid scores, and box outputs.
Nearly all anchors show background, so sums are divided by the teacher's total confidence, and box terms count each anchor by
it; softening by a temperature of its own (`sigmoid_temperature`) is off by default, because it lifts the scores of all that
background. A two-stage head is compared twice: the proposal network like a one-stage head, and both
box heads on the teacher's best proposals, by softmax with the temperature.

Both heads must be of one kind, on the same anchors or points; classes are aligned by name. Queries of detection transformers have
no such places: each of the teacher's is compared with the student's that would be matched with it, were it an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck.errors import UserError
from flyspeck.models.detector import DenseOutputs, Detector, Head
from flyspeck.train.distill.teacher import TeacherOutputs, shared_classes
from flyspeck.types import ImageBatch


def bernoulli_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Elementwise T^2 KL(sigmoid(t / T) || sigmoid(s / T)) of logits of one shape."""
    soft = torch.sigmoid(teacher / temperature)
    cross = F.binary_cross_entropy_with_logits(student / temperature, soft, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher / temperature, soft, reduction="none")
    return temperature**2 * (cross - own)


def softmax_kl(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL of softened class distributions, `(..., K)` logits to `(...)`; T^2 keeps the gradient's size (Hinton)."""
    log_student, log_teacher = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def dense_terms(
    logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Class and box term of a dense head: logits `(B, A, K)`, box outputs `(B, A, 4)` of student and teacher.

    Both are sums over the teacher's total confidence: the highest class probability of each anchor, summed, at least 1.
    """
    confidence = torch.sigmoid(teacher_logits).amax(-1)
    total = confidence.sum().clamp(min=1.0)
    classes = bernoulli_kl(logits, teacher_logits, temperature=temperature).sum() / total
    distance = F.smooth_l1_loss(boxes, teacher_boxes, beta=0.11, reduction="none").mean(-1)
    return classes, (distance * confidence).sum() / total


class ResponseTerms(nn.Module):
    """The terms of final outputs; `observe` and `forward` as in `FeatureTerms`, with `watched(student)` in between."""

    def __init__(
        self,
        student: Detector,
        teacher: Detector,
        *,
        temperature: float,
        regions: int,
        sigmoid_temperature: float = 1.0,
        teacher_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_heads(student, teacher, teacher_scale)
        own, theirs, self.remarks = shared_classes(student.classes, teacher.classes)
        if not own:
            raise UserError(
                f"teacher and student share no class: {', '.join(teacher.classes)} against {', '.join(student.classes)}",
                where="distill.method response",
                fix="use a teacher of the same classes, or a method of features",
            )
        self.classes = (own, theirs)
        self.temperature, self.sigmoid_temperature, self.regions = temperature, sigmoid_temperature, regions

    def observe(self, teacher: Detector, images: ImageBatch) -> TeacherOutputs:
        """The teacher's dense outputs, and of a two-stage teacher its regions and what it says of them."""
        maps = teacher.pyramid(images)
        head = teacher.head
        if not head.implements("region_outputs"):
            return _named(head.dense_outputs(head.dense_part()(maps)))
        padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        with watched(head) as seen:
            proposals = head.propose(maps, padded, images.sizes)
        boxes = torch.zeros(len(proposals), self.regions, 4, device=maps[0].device)
        for row, found in zip(boxes, proposals, strict=True):
            row[: len(found)] = found[: self.regions]
        logits, deltas = head.region_outputs(maps, list(boxes), padded)
        shape = boxes.shape[:2]
        return {
            **_named(head.dense_outputs(seen[0])),
            "regions": boxes,
            "region logits": logits.unflatten(0, shape),
            "region deltas": deltas.unflatten(0, shape),
        }

    def forward(
        self, student: Detector, seen: Sequence, maps: Sequence[Tensor], given: TeacherOutputs, images: ImageBatch
    ) -> dict[str, Tensor]:
        """Unweighted terms; `seen` is what `watched` saw of the student's dense part while it made its own losses."""
        head = student.head
        own = head.dense_outputs(seen[0])
        columns, teacher_columns = self.classes if own.per_class else ([0], [0])
        teacher_logits, teacher_boxes = given["logits"].float()[..., teacher_columns], given["boxes"].float()
        logits, boxes = own.logits[..., columns], own.boxes
        if head.implements("dense_pairs"):
            logits, boxes, teacher_logits, teacher_boxes = _paired(
                head, DenseOutputs(logits, boxes), DenseOutputs(teacher_logits, teacher_boxes), images
            )
        found = {}
        found["class" if own.per_class else "objectness"], found["anchors"] = dense_terms(
            logits,
            boxes,
            teacher_logits,
            teacher_boxes,
            temperature=self.sigmoid_temperature,
        )
        if own.quality is not None:
            confidence = torch.sigmoid(teacher_logits).amax(-1, keepdim=True)
            apart = bernoulli_kl(own.quality, given["centerness"].float(), temperature=self.sigmoid_temperature)
            found["centerness"] = (apart * confidence).sum() / confidence.sum().clamp(min=1.0)
        if head.implements("region_outputs"):
            found |= self._region_terms(head, maps, given, images)
        return found

    def _region_terms(
        self, head: Head, maps: Sequence[Tensor], given: TeacherOutputs, images: ImageBatch
    ) -> dict[str, Tensor]:
        padded = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
        regions = given["regions"].float()
        real = (regions[..., 2] > regions[..., 0]).flatten()
        logits, deltas = head.region_outputs(maps, list(regions), padded)
        teacher_logits = given["region logits"].float().flatten(0, 1)[real]
        teacher_deltas = given["region deltas"].float().flatten(0, 1)[real]
        logits, deltas = logits[real], deltas[real]
        columns, teacher_columns = self.classes
        last, teacher_last = logits.shape[-1] - 1, teacher_logits.shape[-1] - 1  # background
        apart = softmax_kl(
            logits[:, [*columns, last]],
            teacher_logits[:, [*teacher_columns, teacher_last]],
            temperature=self.temperature,
        )
        sure = teacher_logits.softmax(-1)[:, teacher_columns]
        # Boxes of a class each, or one for all of them: that one counts by the sum of the classes.
        deltas = deltas if deltas.shape[1] == 1 else deltas[:, columns]
        teacher_deltas = teacher_deltas if teacher_deltas.shape[1] == 1 else teacher_deltas[:, teacher_columns]
        distance = F.smooth_l1_loss(*torch.broadcast_tensors(deltas, teacher_deltas), beta=1 / 9, reduction="none")
        distance = distance.mean(-1)
        if distance.shape[1] == 1:
            sure = sure.sum(1, keepdim=True)
        boxes = (distance * sure).sum() / sure.sum().clamp(min=1.0)
        return {"class": apart.sum() / max(len(apart), 1), "boxes": boxes}


def _paired(
    head: Head, own: DenseOutputs, given: DenseOutputs, images: ImageBatch
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and boxes of the student and of the teacher, row by row of the pairs: `(1, P, …)` of all images together."""
    size = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    with torch.no_grad():
        rows = head.dense_pairs(own, given, size)
    image, theirs = torch.nonzero(rows >= 0, as_tuple=True)
    mine = rows[image, theirs]
    pairs = own.logits[image, mine], own.boxes[image, mine], given.logits[image, theirs], given.boxes[image, theirs]
    return tuple(part[None] for part in pairs)  # type: ignore[return-value]


def _named(outputs: DenseOutputs) -> TeacherOutputs:
    """Under the names by which a cache of teacher outputs keeps them."""
    found = {"logits": outputs.logits, "boxes": outputs.boxes}
    return found if outputs.quality is None else {**found, "centerness": outputs.quality}


@contextmanager
def watched(head: Head) -> Iterator[list]:
    """Fills the list with what the dense part of `head` returns while the block runs, so that nothing runs twice."""
    seen: list = []
    handle = head.dense_part().register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def _check_heads(student: Detector, teacher: Detector, scale: float) -> None:
    kinds = type(student.head), type(teacher.head)
    place = "distill.method response"
    if kinds[0] is not kinds[1]:
        raise UserError(
            f"final outputs can be compared between heads of one kind only, these are {kinds[0].__name__} and"
            f" {kinds[1].__name__}",
            where=place,
            fix="use a method of features (single, hierarchical, …), or a teacher with the student's head",
        )
    if not student.head.implements("dense_outputs"):
        raise student.head.lacks(
            "dense_outputs", "be distilled by responses", instead="use a method of features (single, hierarchical, …)"
        )
    if student.head.implements("dense_pairs"):
        return
    if scale != 1:
        raise UserError(
            f"the teacher sees images enlarged by {scale:g}: its anchors are not the student's",
            where=place,
            fix="use distill.teacher_scale 1, or a method of features",
        )
    if _grid(student) != _grid(teacher):
        raise UserError(
            f"teacher and student have different {'anchors' if student.head.dense_grid() else 'points'}:"
            f" {_grid(teacher)} against {_grid(student)}",
            where=place,
            fix="give both recipes the same model.levels and model.anchors",
        )


def _grid(detector: Detector) -> list:
    """Of each level: its stride, and the shapes of its anchors where it has any."""
    shapes = detector.head.dense_grid() or [()] * len(detector.features)
    rounded = [[(round(w, 2), round(h, 2)) for w, h in level] for level in shapes]
    return [(f.stride, level) for f, level in zip(detector.features, rounded, strict=True)]
