"""Names of the files that a prediction writes, one an image: no two images share one, whatever they are called.

`IMG_1.jpg` gives `IMG_1`, as every tool expects of label files. Where that would be the name of two images (`IMG_1.jpg` beside
`IMG_1.png`, `a.jpg` beside `A.jpg` on a disk that does not tell them apart, one name in two unicode forms), each keeps its ending
or gets a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from flyspeck.data.images import EXTENSIONS
from flyspeck.files import folded, without_ending

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv", ".3gp")
)
_ENDINGS = ("", ".txt", ".xml", ".json", ".geojson", ".png")
"""What is put behind a name: a file must not be called as a folder beside it."""


def inside(name: str) -> Path:
    """An image's name as a relative path that cannot leave its folder."""
    parts = [part for part in PurePath(name).parts if part not in ("..", ".", PurePath(name).anchor)]
    return Path(*parts) if parts else Path("image")


def has_ending(path: PurePath) -> bool:
    """Whether a name ends as images do, so that its files are called without that."""
    return path.suffix.lower() in EXTENSIONS or path.suffix.lower() == ".vrt"


def file_names(names: Sequence[str]) -> list[str]:
    """A relative path without ending for each image of a job, in posix form; no two are equal, even by `folded`.

    The rule depends on the list alone, so that a job that is repeated or resumed writes the same files.
    """
    paths = [inside(name) for name in names]
    plain = [(without_ending(path) if has_ending(path) else path).as_posix() for path in paths]
    counts = Counter(folded(name) for name in plain)
    folders = {folded(folder.as_posix()) for path in paths for folder in path.parents}
    taken: set[str] = set()
    found = [""] * len(paths)

    def take(row: int, wanted: str) -> None:
        name, number = wanted, 2
        while folded(name) in taken or any(folded(name + ending) in folders for ending in _ENDINGS[1:]):
            name, number = f"{wanted}~{number}", number + 1
        taken.add(folded(name))
        found[row] = name

    shared = [counts[folded(name)] > 1 for name in plain]
    for row, name in enumerate(plain):  # first those whose name is their own: others must make way for them
        if not shared[row]:
            take(row, name)
    for row, path in enumerate(paths):
        if shared[row]:
            take(row, path.as_posix())
    return found


def is_video(path: Path | str) -> bool:
    """Whether the name's ending is that of a video."""
    return Path(path).suffix.lower() in VIDEO_EXTENSIONS
