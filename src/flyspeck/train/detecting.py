"""Detections of a whole set by a model in memory, as it is while it trains: nothing is folded, copied or exported.

Images that go whole (`Viewing.goes_whole`) are sorted by the size that the network takes, and a batch holds images of one such
size: so nothing depends on what else is in a batch. The others go through the predictor, in tiles and by windows of their files.
Memory is that of one batch, and of one decoded file where its format cannot be read by windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from flyspeck.data.annotations import Annotations
from flyspeck.data.enlarge import native_sizes
from flyspeck.data.images import match_channels
from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.errors import UserError
from flyspeck.infer.padding import padded as padded_window
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import Item
from flyspeck.infer.torch_model import to_batch
from flyspeck.infer.windows import OpenOptions
from flyspeck.train.processes import Processes, in_step
from flyspeck.train.progress import Advance, Tell
from flyspeck.train.viewing import FILE_PIXELS, Viewing, padded
from flyspeck.types import Detections, ImageBatch


class LiveModel:
    """A detector as the callable that the predictor runs: windows (H, W, C) of one size to their `Detections`."""

    def __init__(self, detector: nn.Module, *, device: torch.device, viewing: Viewing) -> None:
        self.detector, self.device, self.viewing = detector, device, viewing

    def __call__(self, windows: list[np.ndarray]) -> list[Detections]:
        """Padded as in training, so that a window is seen as an image of its size is."""
        channels, size = self.viewing.rule.channels, windows[0].shape[:2]
        divisor, smallest = self.detector.divisor, self.detector.smallest_side
        ready = [window if channels is None else match_channels(window, channels) for window in windows]
        pixels = to_batch([padded_window(w, divisor=divisor, smallest=smallest) for w in ready])  # type: ignore[arg-type]
        return self.detect(ImageBatch(pixels, ((size[0], size[1]),) * len(windows)))

    def detect(self, images: ImageBatch) -> list[Detections]:
        """Detections of a batch, in its frame."""
        bf16 = self.viewing.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), torch.no_grad():
            return self.detector.detect(images.to(self.device))  # type: ignore[operator]


def detect_all(
    detector: nn.Module,
    annotations: Annotations,
    *,
    viewing: Viewing,
    accelerator: Processes,
    tell: Tell | None = None,
) -> list[Detections]:
    """Detections of every image of the table in its order, in the pixels of the files, shared over the processes.

    `tell` is called as the work goes on. Raises UserError, with the file, for an image that cannot be read or is not of the
    stated size, and for boxes or scores that are not finite.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    found: dict[int, Detections] = {}
    with in_step(accelerator), _evaluating(detector):
        _check_weights(detector)
        plan = planned(annotations, viewing, detector).share(rank, world)
        model = LiveModel(detector, device=accelerator.device, viewing=viewing)
        for row, one in plan.run(model, tell or (lambda _: None)):
            found[row] = _checked(one, annotations, row)
    if world > 1:
        found = dict(gather_object(list(found.items())))
    return [replace(found[row], image_id=_plain(key)) for row, key in enumerate(annotations.image_ids)]


@contextmanager
def _evaluating(detector: nn.Module) -> Iterator[None]:
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(was_training)


def shrunk_back(found: Detections, size: tuple[int, int]) -> Detections:
    """Detections in an enlarged image, in the frame of the file's image of `size` (H, W)."""
    height, width = found.image_size
    ratio = np.array([size[1] / width, size[0] / height] * 2)
    return replace(found, boxes=found.boxes * ratio, image_size=size)


@dataclass(frozen=True)
class Plan:
    """Which images of a table go together, and which by windows."""

    annotations: Annotations
    viewing: Viewing
    sizes: np.ndarray
    """(I, 2) (height, width) of the files; 0 where neither the table nor, so far, anybody says."""
    batches: tuple[tuple[int, ...], ...]
    """Rows that go whole, those of one batch together."""
    windowed: tuple[int, ...]
    """Rows that are read by windows: large ones in tiles, and large files that the network sees small."""
    processes: int = 1

    def share(self, rank: int, world: int) -> Plan:
        """The part of process `rank` of `world`."""
        return replace(self, batches=self.batches[rank::world], windowed=self.windowed[rank::world], processes=world)

    def run(self, model: LiveModel, tell: Tell) -> Iterator[tuple[int, Detections]]:
        """(row, detections in the pixels of its file) of every image."""
        counter = _Counter(self, tell)
        dataset = DetectionDataset(self.annotations, rule=self.viewing.rule, enlarge=self.viewing.enlarge)
        divisor, smallest = model.detector.divisor, model.detector.smallest_side
        for rows in self.batches:
            images, _, _ = collate([dataset[row] for row in rows], divisor=divisor, smallest=smallest)  # type: ignore[arg-type]
            for row, one in zip(rows, model.detect(images), strict=True):
                yield row, shrunk_back(one, self._size(row)) if dataset.enlarged else one
                counter.image(row)
        items = [Item(str(self.annotations.path(row)), self.annotations.path(row), row) for row in self.windowed]
        for tiled in (False, True):
            mine = [item for item in items if self.viewing.goes_whole(self._size(item.number)) != tiled]
            predictor = self._predictor(model, tiled)
            for item in mine:
                row = item.number
                (result,) = predictor.stream([item], progress=counter.tiles_of(row))
                if result.problem is not None:
                    raise result.problem
                if result.holes:
                    (x1, y1, x2, y2), reason = result.holes[0]
                    raise UserError(f"window {x1},{y1} to {x2},{y2}: {reason}", where=item.name)
                _same_size(result.detections.image_size, self._size(row), item.name)
                yield row, replace(result.detections, extra={})
                counter.image(row)

    def _size(self, row: int) -> tuple[int, int]:
        return int(self.sizes[row, 0]), int(self.sizes[row, 1])

    def tiles(self, row: int) -> tuple[int, int]:
        """How many tiles an image of `windowed` has, and the pixels that the network sees of it."""
        predictor = self._predictor(None, not self.viewing.goes_whole(self._size(row)))
        frames, (height, width) = predictor.tiles_of(self._size(row))
        return len(frames), len(frames) * height * width

    def _predictor(self, model: LiveModel | None, tiled: bool) -> Predictor:
        viewing, rule = self.viewing, self.viewing.rule
        seen = viewing.enlarge.squeeze or viewing.tile
        return Predictor(
            model,  # type: ignore[arg-type]
            tile=viewing.tile if tiled else None,
            overlap=viewing.overlap if tiled else 0,
            enlarge=viewing.enlarge,
            batch_size=viewing.at_once(seen) if tiled and seen is not None else 1,
            score_threshold=0.0,  # the detector's own holds, as in whole images
            options=OpenOptions(
                channels=rule.channels, bands=rule.bands, value_range=rule.value_range, of=rule.of, bits=rule.bits
            ),
        )


def planned(annotations: Annotations, viewing: Viewing, detector: nn.Module) -> Plan:
    """What goes whole, in which batches, and what by windows."""
    sizes = native_sizes(annotations)
    windowed: list[int] = []
    whole: dict[tuple[int, int], list[int]] = {}
    for row, (height, width) in enumerate(sizes.tolist()):
        if viewing.goes_whole((height, width)) and height * width <= FILE_PIXELS:
            whole.setdefault(padded(viewing.enlarge.size((height, width)), detector), []).append(row)  # type: ignore[arg-type]
        else:
            windowed.append(row)
    batches = []
    for size in sorted(whole):
        rows, most = whole[size], viewing.at_once(size)
        batches += [tuple(rows[start : start + most]) for start in range(0, len(rows), most)]
    # The largest first, so that processes which take turns have about as much to do.
    windowed.sort(key=lambda row: -int(sizes[row].prod()))
    return Plan(annotations, viewing, sizes, tuple(batches), tuple(windowed))


class _Counter:
    """Counts images and tiles, and the network's pixels, of which the time is made."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self.tell, self.done, self.pixels, self.processes = tell, 0, 0.0, plan.processes
        self.cost: dict[int, float] = {}
        for rows in plan.batches:
            self.cost |= {row: float(np.prod(plan.viewing.enlarge.size(plan._size(row)))) for row in rows}
        self.num_tiles: dict[int, int] = {}
        for row in plan.windowed:
            self.num_tiles[row], self.cost[row] = plan.tiles(row)
        self.total = sum(self.cost.values())
        self._say()

    def image(self, row: int) -> None:
        """An image is done."""
        self.done, self.pixels = self.done + 1, self.pixels + self.cost[row]
        self._say()

    def tiles_of(self, row: int) -> Callable[[int], None]:
        """What is to be called with the number of tiles of an image that were just done."""
        done, of_tiles = 0, self.num_tiles[row]

        def more(tiles: int) -> None:
            nonlocal done
            done += tiles
            self._say(done, of_tiles, self.cost[row] * done / of_tiles)

        return more

    def _say(self, tiles: int = 0, of_tiles: int = 0, pixels: float = 0.0) -> None:
        share = (self.pixels + pixels) / self.total if self.total else 0.0
        self.tell(Advance(self.done, len(self.cost), tiles, of_tiles, share, self.processes))


def _same_size(found: Sequence[int], stated: tuple[int, int], name: str) -> None:
    if tuple(found) != stated:
        raise UserError(
            f"the image is {found[1]} x {found[0]} where the annotations say {stated[1]} x {stated[0]}",
            where=name,
            fix="correct the annotations (the size counts after the EXIF orientation is applied)",
        )


def _check_weights(detector: nn.Module) -> None:
    """Raises UserError where a weight is no number: its scores would pass no threshold, and nothing would seem to be there."""
    for name, value in detector.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"the model's weights are not finite ({name})",
                where="evaluation",
                fix="train again with a lower train.lr, more train.warmup_steps or train.precision fp32",
            )


def _checked(found: Detections, annotations: Annotations, row: int) -> Detections:
    """The same detections; raises UserError where a number is none."""
    if np.isfinite(found.boxes).all() and np.isfinite(found.scores).all():
        return found
    raise UserError(
        "the model gave a box or score that is not finite",
        where=annotations.path(row),
        fix="try a lower train.lr, more train.warmup_steps or train.precision fp32",
    )


def _plain(image_id: object) -> int | str:
    return image_id if isinstance(image_id, str) else int(image_id)  # type: ignore[call-overload]
