"""The folder that a prediction writes into: results of two jobs are never mixed, and nothing that is not a result is lost.

A folder holds one job. `flyspeck-results.txt` lists what the job put there, so that `overwrite` removes that and nothing else,
and so that annotated images found on the way are not taken for the images of the next job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.files import write_text

MARK = "flyspeck-results.txt"
TILES = "tiles"
_HEAD = "# Results of `flyspeck predict`: the files and folders below are its own and go with --overwrite."
_PLACES = (
    *(
        "detections.json",
        "images.json",
        "detections.csv",
        "detections.gpkg",
        "cvat.xml",
        "label_studio.json",
        "tracks.csv",
    ),
    *("labels", "geojson", "geoparquet", "widerface", "voc", "labelme", "drawn", "heat", "pictures", TILES),
)
"""What versions that left no list write, by name."""


class ResultsFolder:
    """`path`, made if need be, for one job.

    Args:
        path: The folder.
        resume: Whether the job goes on from the finished tiles that lie there.
        overwrite: Whether the results of an earlier job may be removed.

    Raises:
        UserError: The folder holds results of an earlier job and neither is asked for; or files stand where results would that
            no job is known to have written. Nothing is touched before `clear`.
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        if resume and overwrite:
            raise UserError("--resume keeps what --overwrite removes", where="--resume, --overwrite", fix="give one")
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            if resume and (path / TILES).is_symlink():
                what = f"'{TILES}' is a link, and results are written through none"
                raise UserError(what, where=path, fix="put the folder in its place, or begin anew with --overwrite")
            self._earlier = written_in(path) or []
            if written_in(path) is None:
                self._refuse_strangers()
            elif self._earlier and not (resume or overwrite):
                raise self._taken()
            self._others = {entry.name for entry in path.iterdir()} - {*self._earlier, TILES, MARK}
            self.record(self._earlier)  # they are its own until `clear`
        except OSError as error:
            raise UserError(f"cannot be written to ({error.strerror or error})", where=path) from error

    def clear(self, *, tiles: bool) -> None:
        """Remove what the earlier job wrote; its finished tiles too where `tiles`."""
        try:
            _remove(self.path, [name for name in self._earlier if tiles or name != TILES])
        except OSError as error:
            raise UserError(
                f"cannot be removed ({error.strerror or error})", where=error.filename or self.path
            ) from error

    def record(self, names: Sequence[str] = ()) -> None:
        """List what the job may put here: what all jobs write, and `names`.

        Never what merely lies here: it may be somebody's who worked beside the job, and the list is what `overwrite` removes.
        """
        lines = sorted({*_PLACES, *names} - self._others)
        write_text(self.path / MARK, "\n".join([_HEAD, *lines, ""]))

    def claim(self, names: Sequence[str]) -> None:
        """Raises UserError where one of `names`, which the job will write, is there and no earlier job wrote it."""
        self._refuse(next((name for name in names if name in self._others), None))

    def _refuse_strangers(self) -> None:
        self._refuse(next((name for name in _PLACES if os.path.lexists(self.path / name)), None))

    def _refuse(self, found: str | None) -> None:
        if found is not None:
            raise UserError(
                f"'{found}' is there, and no prediction is known to have written it",
                where=self.path,
                fix="choose another folder, so that nothing is lost",
            )

    def _taken(self) -> UserError:
        tiles = any((self.path / TILES).glob("tiles*.jsonl"))
        on = "--resume to go on from its finished tiles, " if tiles else ""
        return UserError(
            "holds results of an earlier prediction",
            where=self.path,
            fix=f"{on}--overwrite to replace them, or another folder",
        )


def written_in(folder: Path) -> list[str] | None:
    """Names in `folder` that an earlier prediction wrote; None where `folder` holds no prediction.

    Versions before 0.2 left no list: there the tiles, or detections beside their images, tell.
    """
    mark = folder / MARK
    if mark.is_file():
        names = [line for line in mark.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        return [name for name in names if Path(name).name == name and name != ".." and os.path.lexists(folder / name)]
    pair = all((folder / name).is_file() for name in ("detections.json", "images.json"))
    if pair or any((folder / TILES).glob("tiles*.jsonl")):
        return [name for name in _PLACES if os.path.lexists(folder / name)]
    return None


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
