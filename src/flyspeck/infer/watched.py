"""How far the tiles and images of a prediction have come, seen from its journal: that is told of every image and every tile."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flyspeck.errors import one_line
from flyspeck.infer.reading import Finished, Journal, Result
from flyspeck.infer.skip import RUN
from flyspeck.infer.source import Item
from flyspeck.progress import Advance, Tell
from flyspeck.types import Detections


class Watched(Journal):
    """A journal that passes everything on, and tells how many of the images, and of the tiles of the next, are done."""

    def __init__(self, journal: Journal, images: int, tell: Tell) -> None:
        self._journal, self._images, self._tell = journal, images, tell
        self._lock = threading.Lock()
        self._done, self._left = 0, dict[str, list[int]]()  # name of each image on its way: tiles done, tiles

    def recall(
        self, item: Item, size: tuple[int, int], tiles: np.ndarray, stamp: Sequence[int] | None = None
    ) -> dict[int, Finished]:
        """See `Journal.recall`."""
        kept = self._journal.recall(item, size, tiles, stamp)
        with self._lock:
            self._left[item.name] = [0, len(tiles) - len(kept)]  # what is kept takes no time
        self._say()
        return kept

    def record(
        self,
        item: Item,
        tile: np.ndarray,
        found: Detections,
        *,
        verdict: str = RUN,
        stamp: Sequence[int] | None = None,
    ) -> None:
        """See `Journal.record`."""
        self._journal.record(item, tile, found, verdict=verdict, stamp=stamp)
        with self._lock:
            if item.name in self._left:
                self._left[item.name][0] += 1
        self._say()

    def counted(self, results: Iterable[Result]) -> Iterator[Result]:
        """The results, each counted once whoever takes them has done with it."""
        self._tell(Advance("detecting", 0.0))
        for result in results:
            yield result
            with self._lock:
                self._done += 1
                self._left.pop(result.item.name, None)
            self._say()

    def _say(self) -> None:
        with self._lock:
            name, (tiles, of_tiles) = next(iter(self._left.items()), ("", (0, 0)))
            done = self._done
        if of_tiles and tiles >= of_tiles > 1:
            self._tell(Advance("merging", words=one_line(name, 60)))
            return
        words = f"{done} of {self._images} images" if self._images > 1 else ""
        if of_tiles > 1:
            words += f"{', ' if words else ''}{tiles} of {of_tiles} tiles"
        share = (done + (tiles / of_tiles if of_tiles else 0)) / max(self._images, 1)
        self._tell(Advance("detecting", min(share, 1.0), words))
