"""Look at each window at several sizes, and mirrored, and merge what was found: slower, and better at faces of all sizes.

The boxes of one view are never compared with each other: its detector has suppressed them already. NumPy only; a model
is any callable that takes windows (H, W, C) and gives one `Detections` each, in the window's frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flyspeck.data.enlarge import resample
from flyspeck.errors import UserError
from flyspeck.infer.limits import cut_off, marked
from flyspeck.infer.merge import MergeRule, merge
from flyspeck.infer.passes import Model, Splitting
from flyspeck.types import Detections


class MultiScale:
    """A model that asks `model` about every window at each of `scales`, and with `flip` about its mirror image too.

    Larger views go to the model in smaller batches, so that memory does not grow with the scale. `rule` merges the views.
    """

    def __init__(
        self, model: Model, scales: Sequence[float], *, flip: bool = False, rule: MergeRule | None = None
    ) -> None:
        if not scales or not all(0 < scale < np.inf for scale in scales):
            raise UserError(f"scales of {list(scales)}", where="--scales", fix="give positive numbers, as in 0.5,1,2")
        if len(set(scales)) != len(scales):
            raise UserError(f"a scale twice in {list(scales)}", where="--scales", fix="give each once")
        self.model, self.scales, self.flip = model, tuple(scales), flip
        self.rule = rule or MergeRule(threshold=0.45)

    @property
    def threads(self) -> int:
        """The model's, where it splits (`flyspeck.infer.passes.Splitting`)."""
        return self.model.threads if isinstance(self.model, Splitting) else 1

    def split(self, passes: int) -> None:
        """See `Splitting`."""
        if isinstance(self.model, Splitting):
            self.model.split(passes)

    def enter(self) -> None:
        """See `Splitting`."""
        if isinstance(self.model, Splitting):
            self.model.enter()

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """One `Detections` per window, best score first."""
        views: list[list[Detections]] = [[] for _ in windows]
        for scale in self.scales:
            step = max(1, int(len(windows) / max(1.0, scale) ** 2))
            for start in range(0, len(windows), step):
                for mirrored in (False, True)[: 1 + self.flip]:
                    found = self._look(windows[start : start + step], scale, mirrored)
                    for row, detections in enumerate(found, start):
                        views[row].append(detections)
        return [self._merged(parts) for parts in views]

    def _look(self, windows: list[np.ndarray], scale: float, mirrored: bool) -> list[Detections]:
        """What the model finds in the windows seen at `scale`, in the windows' own frame."""
        seen = []
        for window in windows:
            height, width = window.shape[:2]
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            view = window if size == (height, width) else resample(window, size)
            seen.append(np.ascontiguousarray(view[:, ::-1]) if mirrored else view)
        found = []
        for window, view, detections in zip(windows, seen, self.model(seen), strict=True):
            height, width = window.shape[:2]
            boxes = detections.boxes
            if mirrored:
                boxes = np.stack(
                    [view.shape[1] - boxes[:, 2], boxes[:, 1], view.shape[1] - boxes[:, 0], boxes[:, 3]], 1
                )
            ratio = np.array([width / view.shape[1], height / view.shape[0]] * 2)
            score = cut_off(self.model, detections, (view.shape[0], view.shape[1]))
            found.append(marked(replace(detections, boxes=boxes * ratio, image_size=(height, width)), score))
        return found

    def _merged(self, views: list[Detections]) -> Detections:
        if len(views) == 1:
            return views[0]
        number = np.repeat(np.arange(len(views)), [len(view) for view in views])
        joined = replace(
            views[0],
            boxes=np.concatenate([view.boxes for view in views]),
            scores=np.concatenate([view.scores for view in views]),
            labels=np.concatenate([view.labels for view in views]),
            extra={},
            classes=next((view.classes for view in views if view.classes), ()),
        )
        height, width = joined.image_size
        frames = np.tile([0, 0, width, height], (len(views), 1))
        score = max(cut_off(None, view, view.image_size) for view in views)
        return marked(merge(joined, tiles=frames, tile_index=number, rule=self.rule), score)
