"""A list of images of which some are broken: what the others gave is not lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from flyspeck.errors import UserError
from flyspeck.types import Detections


class Looked(Protocol):
    """What is asked of a `flyspeck.infer.reading.Result`."""

    @property
    def item(self) -> Any:
        """The image, with its `name`."""

    @property
    def detections(self) -> Detections:
        """What was found."""
        ...

    @property
    def holes(self) -> Sequence[tuple[tuple[int, int, int, int], str]]:
        """Windows that could not be read, with the reason."""
        ...

    @property
    def problem(self) -> UserError | None:
        """Why nothing of it was."""
        ...


class ImagesFailed(UserError):
    """Some images could not be looked at, and what was found in the others.

    Attributes:
        detections: One `Detections` an image, in the order that was given; None for those that failed.
        problems: Why, by the place in that order, from 0.
    """

    def __init__(self, detections: list[Detections | None], problems: Mapping[int, UserError]) -> None:
        self.detections, self.problems = detections, dict(problems)
        first = self.problems[min(self.problems)]
        what = first.what
        if len(detections) > 1:
            what += (
                f" ({len(self.problems)} of {len(detections)} images failed; .detections of this error has the others')"
            )
        super().__init__(what, where=first.where, fix=first.fix)


def detections_of(results: Iterable[Looked]) -> list[Detections]:
    """Those of each image; raises ImagesFailed after the last one where any was not wholly seen."""
    found: list[Detections | None] = []
    problems: dict[int, UserError] = {}
    for place, result in enumerate(results):
        problem = result.problem
        if problem is None and result.holes:
            (x1, y1, x2, y2), reason = result.holes[0]
            problem = UserError(f"window {x1},{y1} to {x2},{y2}: {reason}", where=result.item.name)
        if problem is not None:
            problems[place] = problem
        found.append(None if problem is not None else result.detections)
    if problems:
        raise ImagesFailed(found, problems)
    return [one for one in found if one is not None]
