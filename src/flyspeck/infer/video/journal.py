"""Finished frames on disk, so that a long video that was stopped goes on where it was.

`tiles/tiles-frames.jsonl` holds one line a frame: its number and what was found on it, before tracking. The first line says
with what they were made. Going on reads them back in step with the frames, so tracks, tables and the annotated video are made
again from the start, as an undisturbed job makes them; only the detector does not run. A line that a kill left unfinished is
cut off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.files import json_lines
from flyspeck.infer.reading import Result
from flyspeck.infer.results_folder import TILES
from flyspeck.infer.resume import called
from flyspeck.infer.source import Item
from flyspeck.infer.writer import disk_full
from flyspeck.types import Detections

NAME = "tiles-frames.jsonl"


class FrameJournal:
    """The journal in the results folder `folder`, begun anew, or gone on with where `resume`.

    `made_with` is anything that json holds and that changes what is found. Raises UserError for a journal of other settings.
    """

    def __init__(self, folder: Path, made_with: dict[str, Any], *, resume: bool) -> None:
        self.path = folder / TILES / NAME
        head = json.loads(json.dumps({"made_with": made_with}))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.num_kept, whole = self._check(head["made_with"]) if resume and self.path.is_file() else (0, 0)
            self._file = self.path.open("r+b" if whole else "wb")
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise disk_full(self.path, error) from error
        self._old = whole
        if not whole:
            self._write(head)

    def kept(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and entries of the frames of earlier jobs, in their order; they are read one by one."""
        if not self.num_kept:
            return
        for number, entry in json_lines(self.path):
            if number > self.num_kept + 1:
                return
            if entry is not None and "frame" in entry:
                yield int(entry["frame"]), entry

    def record(self, result: Result) -> None:
        """Append a frame's; the line reaches the system before this returns."""
        found = result.detections
        self._write(
            {
                "frame": result.item.number,
                "size": list(found.image_size),
                "tiles": result.num_tiles,
                "boxes": found.boxes.astype(float).tolist(),
                "scores": found.scores.astype(float).tolist(),
                "labels": found.labels.tolist(),
                "cut": found.extra.get("cut", np.zeros(len(found), bool)).tolist(),
                "classes": list(found.classes),
            }
        )

    def close(self) -> None:
        """Nothing more comes."""
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write((json.dumps(entry, separators=(",", ":")) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise disk_full(self.path, error) from error

    def _check(self, wanted: dict[str, Any]) -> tuple[int, int]:
        """How many frames are there, and the bytes up to the end of the last whole line."""
        count, whole = 0, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                entry = _entry(line)
                if number == 0 and entry is None and not line.endswith(b"\n"):
                    return 0, 0
                if number == 0:
                    self._compare((entry or {}).get("made_with"), wanted)
                elif entry is None or "frame" not in entry:
                    break
                count, whole = number, whole + len(line)
        return count, whole

    def _compare(self, before: Any, wanted: dict[str, Any]) -> None:
        if not isinstance(before, dict):
            raise UserError("not a journal of finished frames", where=self.path, fix="begin anew with --overwrite")
        key = next((k for k in {**before, **wanted} if before.get(k) != wanted.get(k)), None)
        if key is not None:
            raise UserError(
                f"was made with {called(key)} {before.get(key)}, this run has {wanted.get(key)}",
                where=self.path,
                fix="use the same settings, or begin anew with --overwrite",
            )


def restored(item: Item, entry: dict[str, Any]) -> Result:
    """The result of a frame from its entry. Raises UserError where the entry is of a frame of another size."""
    try:
        return _restored(item, entry)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"its entry in the journal is broken ({error})", where=item.name, fix="begin anew with --overwrite"
        ) from None


def _restored(item: Item, entry: dict[str, Any]) -> Result:
    size = (int(entry["size"][0]), int(entry["size"][1]))
    if isinstance(item.image, np.ndarray) and item.image.shape[:2] != size:
        raise UserError(
            f"was of {size[1]}x{size[0]} px when the job was stopped",
            where=item.name,
            fix="begin anew with --overwrite",
        )
    found = Detections(
        np.array(entry["boxes"], np.float32).reshape(-1, 4),
        np.array(entry["scores"], np.float32),
        np.array(entry["labels"], np.int64),
        size,
        tuple(entry["classes"]),
        image_id=item.image_id,
        extra={"cut": np.array(entry["cut"], bool)},
    )
    return Result(item, found, int(entry["tiles"]))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
