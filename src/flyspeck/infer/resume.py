"""Finished tiles on disk, so that a long job that was stopped goes on where it was.

`tiles-N.jsonl` holds one line a tile: image, its size, the tile's corners, and the boxes found there, in the frame of the
image. The first line says with what they were made (weights, threshold, scale, and so on); a journal made otherwise is
refused, not mixed. A line that a kill left unfinished is dropped. Several processes can share a folder: each writes a file
of its own, all are read.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.files import json_lines
from flyspeck.infer.reading import Finished, Journal, stamp_of
from flyspeck.infer.skip import RUN
from flyspeck.infer.source import Item
from flyspeck.types import Detections

_Key = tuple[str, int, int, int, int, int, int]
_TYPES = {"boxes": np.float32, "scores": np.float32, "labels": np.int64, "cut": bool}


class TileJournal(Journal):
    """Records every finished tile under `folder`; `recall` gives back those of earlier runs.

    `made_with` is anything that json holds and that changes results. With `fresh`, earlier files are removed.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], *, fresh: bool = False) -> None:
        self._done: dict[_Key, dict[str, Any]] = {}
        self.num_written = 0
        self._lock = threading.Lock()
        # Through json and back, so that tuples compare equal to the lists that are read.
        self._made_with = json.loads(json.dumps(made_with))
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("tiles*.jsonl")):
            if fresh:
                path.unlink()
            else:
                self._load(path)
        # Processes of several machines may share a folder, and their numbers with each other.
        self.path = folder / f"tiles-{platform.node() or 'local'}-{os.getpid()}.jsonl"
        self._file = self.path.open("a", encoding="utf-8")
        self._write({"made_with": self._made_with})

    @property
    def num_kept(self) -> int:
        """Tiles that earlier runs finished."""
        return len(self._done)

    def recall(
        self, item: Item, size: tuple[int, int], tiles: np.ndarray, stamp: Sequence[int] | None = None
    ) -> dict[int, Finished]:
        """See `Journal.recall`; an image whose file changed since is done anew."""
        now = list(stamp_of(item) if stamp is None else stamp)
        found = {}
        for row, tile in enumerate(tiles.tolist()):
            entry = self._done.get((item.name, *size, *tile))
            if entry is not None and entry["stamp"] == now:
                found[row] = Finished(_detections(entry, size, item), entry.get("verdict", RUN))
        return found

    def record(
        self,
        item: Item,
        tile: np.ndarray,
        found: Detections,
        *,
        verdict: str = RUN,
        stamp: Sequence[int] | None = None,
    ) -> None:
        """See `Journal.record`; the line reaches the system before this returns."""
        entry = {
            "name": item.name,
            "stamp": list(stamp_of(item) if stamp is None else stamp),
            "size": list(found.image_size),
            "tile": tile.tolist(),
            "verdict": verdict,
            "boxes": found.boxes.astype(float).tolist(),
            "scores": found.scores.astype(float).tolist(),
            "labels": found.labels.tolist(),
            "cut": found.extra.get("cut", np.zeros(len(found), bool)).tolist(),
            "classes": list(found.classes),
        }
        self._write(entry)
        self.num_written += 1

    def close(self) -> None:
        """Close this run's file."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            with self._lock:
                self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
                self._file.flush()
        except OSError as error:
            raise UserError(
                f"could not be written ({error.strerror})", where=self.path, fix="make room and run again with --resume"
            ) from error

    def _load(self, path: Path) -> None:
        for number, entry in json_lines(path):
            if entry is None:
                continue  # the line that a kill cut off: others follow where a later process had the same number
            if "made_with" in entry:
                self._check(entry["made_with"], path)
            elif number == 1:
                raise UserError("not a journal of finished tiles", where=path, fix="begin anew with --overwrite")
            else:
                try:
                    self._keep(entry)
                except (KeyError, TypeError, ValueError, OverflowError):
                    where = f"{path}, line {number}"
                    raise UserError("is no finished tile", where=where, fix="begin anew with --overwrite") from None

    def _keep(self, entry: dict[str, Any]) -> None:
        for column, kind in _TYPES.items():  # lists of numbers take five times the memory
            entry[column] = np.array(entry[column], kind)
        count, classes = len(entry["scores"]), tuple(entry["classes"])
        lengths = {len(entry[column]) for column in ("labels", "cut")} | {len(entry["boxes"].reshape(-1, 4))}
        inside = all(0 <= label < len(classes) for label in entry["labels"].tolist()) or not classes
        if lengths != {count} or not inside or not np.isfinite(entry["boxes"]).all() or "stamp" not in entry:
            raise ValueError("columns that do not go together")
        self._done[(str(entry["name"]), *map(int, entry["size"]), *map(int, entry["tile"]))] = entry  # type: ignore[assignment]

    def _check(self, before: Any, path: Path) -> None:
        if not isinstance(before, dict):
            raise UserError("not a journal of finished tiles", where=path, fix="begin anew with --overwrite")
        keys = [k for k in {**before, **self._made_with} if before.get(k) != self._made_with.get(k)]
        if keys:
            key = keys[0]
            raise UserError(
                f"was made with {called(key)} {before.get(key)}, this run has {self._made_with.get(key)}",
                where=path,
                fix="use the same settings, or begin anew with --overwrite",
            )


def called(key: str) -> str:
    """What messages call a setting of `made_with`: the score is the least that is kept."""
    return "a least score (--keep-score, or a lower --score) of" if key == "score" else key


def _detections(entry: dict[str, Any], size: tuple[int, int], item: Item) -> Detections:
    return Detections(
        entry["boxes"].reshape(-1, 4),
        entry["scores"],
        entry["labels"],
        size,
        tuple(entry["classes"]),
        image_id=item.image_id,
        extra={"cut": entry["cut"]},
    )
