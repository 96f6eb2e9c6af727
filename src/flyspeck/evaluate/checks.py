"""Suspicions about detections that can be read but look like a mistake; each is one line for the user."""

from __future__ import annotations

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.evaluate.detections import DetectionTable
from flyspeck.evaluate.protocols import INFINITE, APProtocol, Bin, DelegatedCOCO, MissRateProtocol, Protocol

FEW = 20  # below this many boxes other pixels are not suspected
FEW_CORNERS = (
    5  # nor corners below this many: a right box of a small object is rarely wider than its distance to the left
)


def suspicions(annotations: Annotations, detections: DetectionTable, protocol: Protocol) -> tuple[str, ...]:
    """What looks wrong with `detections`, worst first: corners given as sizes, pixels of another image size, an id of 0."""
    notes = []
    if not len(detections):
        left = " left" if detections.notes else ""
        notes.append(f"there are no detections{left}: all that there is to find is missed")
    size_note = _corners_as_sizes(annotations, detections) or _other_pixels(annotations, detections)
    if size_note:
        notes.append(size_note)
    regions = int((annotations.own_labels < 0).sum())
    if regions and isinstance(protocol, DelegatedCOCO):
        notes.append(
            f"the ground truth has {regions} ignore regions of no class; plain COCO knows none, so they have no effect here: "
            "the protocol flyspeck lets them hold for every class"
        )
    loses_zero = isinstance(protocol, DelegatedCOCO)
    if isinstance(protocol, APProtocol | MissRateProtocol):
        loses_zero = not protocol.id_zero_matches
    if loses_zero and annotations.box_ids.dtype != object and (annotations.box_ids == 0).any():
        notes.append(
            f"the ground truth has an annotation with id 0, which {protocol.name} can never count as found "
            "(a flaw of the reference, kept); number annotations from 1"
        )
    return tuple(notes)


def lone_objects(annotations: Annotations, protocol: Protocol) -> tuple[str, ...]:
    """A line where a mean over classes rests on single objects: a class of one counts as much as a class of a thousand."""
    counts = ~annotations.ignore & ~annotations.crowd & (annotations.labels >= 0)
    classes = len(annotations.classes)
    bins = protocol.bins if isinstance(protocol, APProtocol) else (Bin("all", 0.0, INFINITE),)
    if isinstance(protocol, APProtocol) and protocol.class_weights != "equal":
        return ()
    words: dict[str, list[str]] = {}
    for area in bins:
        inside = counts & (annotations.area >= area.low) & (annotations.area <= area.high)
        objects = np.bincount(annotations.labels[inside], minlength=classes)
        if (objects > 0).sum() > 1:
            for label in np.flatnonzero(objects == 1):
                words.setdefault(annotations.classes[label], []).append(area.name)
    if not words:
        return ()
    some = [f"'{name}' ({', '.join(areas)})" for name, areas in words.items()]
    more = f" and {len(some) - 4} more" if len(some) > 4 else ""
    return (
        "a class with one object counts as much in a mean over classes as any other: one hit or miss moves that mean by "
        f"100 / classes points; so {', '.join(some[:4])}{more}; see --per-class",
    )


def _frames(annotations: Annotations, detections: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Detections' boxes and their images' (width, height), for images whose size is known."""
    sizes = _sizes(annotations)[detections.image_index]
    known = (sizes > 0).all(1)
    return detections.xywh[known], sizes[known]


def _sizes(annotations: Annotations) -> np.ndarray:
    """(width, height) of every image; where none is known, a little more than the ground truth reaches stands for it."""
    sizes = annotations.sizes[:, ::-1].astype(np.float64)
    if len(annotations.boxes) >= FEW and not (sizes > 0).any():
        sizes = np.broadcast_to(1.05 * annotations.boxes[:, 2:].max(0), sizes.shape)
    return sizes


def _corners_as_sizes(annotations: Annotations, detections: DetectionTable) -> str | None:
    """Boxes that leave the image as [x, y, w, h] but lie in it as [x1, y1, x2, y2]."""
    xywh, sizes = _frames(annotations, detections)
    if len(xywh) < FEW_CORNERS:
        return None
    leaves = ((xywh[:, :2] + xywh[:, 2:]) > sizes + 2).any(1).mean()
    corners = ((xywh[:, 2:] > xywh[:, :2]) & (xywh[:, 2:] <= sizes + 2)).all(1).mean()
    if leaves > 0.3 and corners > 0.95:
        return (
            f"{leaves:.0%} of the boxes leave their image as [x, y, w, h], and {corners:.0%} lie in it as "
            "[x1, y1, x2, y2]: the file seems to hold corners; convert them to x, y, width, height"
        )
    return None


def _other_pixels(annotations: Annotations, detections: DetectionTable) -> str | None:
    """Boxes in the pixels of a larger or smaller copy of the image."""
    xywh, sizes = _frames(annotations, detections)
    truth_sizes = _sizes(annotations)[annotations.image_index]
    known = (truth_sizes > 0).all(1)
    if len(xywh) < FEW or known.sum() < FEW:
        return None
    reach = _reach((xywh[:, :2] + xywh[:, 2:]) / sizes)
    truth_reach = _reach(annotations.boxes[known, 2:] / truth_sizes[known])
    if xywh.max() <= 1.5 and xywh.max() > 0:
        return "the boxes are between 0 and 1: they seem to be shares of the image; multiply them by its size"
    leaves = ((xywh[:, :2] + xywh[:, 2:]) > sizes * 1.02 + 2).any(1).mean()
    if leaves > 0.1 and (reach > 1.1).any():
        return (
            f"{leaves:.0%} of the boxes leave their image (they reach {reach.max():.2f} of its side): "
            "they seem to be in the pixels of a larger copy"
        )
    if (reach < 0.75 * truth_reach).all():
        return (
            f"the boxes reach only {reach[0]:.2f} of the width and {reach[1]:.2f} of the height, the ground truth "
            f"{truth_reach[0]:.2f} and {truth_reach[1]:.2f}: they seem to be in the pixels of a smaller copy"
        )
    return None


def _reach(shares: np.ndarray) -> np.ndarray:
    """How far right and down boxes reach, (2,): the 99th percentile of their far corners as shares of the image."""
    return np.quantile(shares, 0.99, axis=0)
