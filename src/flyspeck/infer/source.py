"""From what a command line names (files, folders, annotations) to a list of `Item`s, and from an item to its open `Source`.

The list is made first, cheap and in a fixed order; each image is opened when its turn comes. Only formats that cannot do better
are decoded whole.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from flyspeck.data.images import EXTENSIONS, mapped_array
from flyspeck.data.readers import format_of, read_annotations
from flyspeck.data.readers.coco import read_listing
from flyspeck.data.readers.folders import walk
from flyspeck.data.readers.outside import refuse_outside
from flyspeck.data.readers.places import some, unread
from flyspeck.errors import UserError, counted
from flyspeck.files import without_ending
from flyspeck.infer.kinds import driver_of
from flyspeck.infer.naming import file_names, has_ending, inside, is_video
from flyspeck.infer.opening import open_file
from flyspeck.infer.remote import file_name_of, is_remote, open_remote, remote_name
from flyspeck.infer.results_folder import written_in
from flyspeck.infer.whole import found_rule
from flyspeck.infer.windows import ArraySource, OpenOptions, Source
from flyspeck.plugins import UnknownPart


@dataclass(frozen=True, eq=False)
class Held:
    """An image that a program holds (`flyspeck.infer.inputs`); looked at when its turn comes, so that a wrong one is its own
    result.
    """

    source: Callable[[OpenOptions, str], Source]
    """Opens it under a name. Raises UserError."""


@dataclass(frozen=True)
class Item:
    """An image to look at, not opened yet."""

    name: str
    """What messages and outputs call it."""
    image: Path | np.ndarray | Held
    image_id: int | str | None
    """That of the annotations, or a count; the file of one that only a program named; None: an array, or bytes."""
    output: str = ""
    """What its own files are called, without ending (`flyspeck.infer.naming`); as the image, ending and all, where not given."""

    @property
    def number(self) -> int:
        """Its count, where images are counted: frames of a video, rows of annotations."""
        assert isinstance(self.image_id, int)
        return self.image_id

    @property
    def file_name(self) -> str:
        """Name of the image's own result files, without their ending: a relative posix path."""
        return self.output or inside(self.name).as_posix()


def open_source(image: Path | str | np.ndarray | Held, options: OpenOptions | None = None, *, name: str = "") -> Source:
    """Open an image: an array, a `.npy` file (memory-mapped), a raster by windows, or an image file decoded whole.

    What a file is, its first bytes tell (`flyspeck.infer.opening`). `options.bands` and `options.value_range` hold for all of
    them; bands that the detector does not take are an error, never cut. Raises UserError.
    """
    options = options or OpenOptions()
    name = name or (str(image) if isinstance(image, str | Path) else "array")
    source = _opened(image, options, name)
    try:
        options.check(source.bands)
    except UserError as error:
        source.close()
        raise UserError(error.what, where=name, fix=error.fix) from None
    return source


def _opened(image: Path | str | np.ndarray | Held, options: OpenOptions, name: str) -> Source:
    if isinstance(image, Held):
        return image.source(options, name)
    if isinstance(image, np.ndarray):
        return ArraySource(image, name=name, rule=options.rule)
    path = Path(image)
    if path.suffix.lower() == ".npy":
        return _memory_mapped(path, name, options)
    return open_file(path, options, name=name)


def _memory_mapped(path: Path, name: str, options: OpenOptions) -> Source:
    try:
        return _array(mapped_array(path), options, name)
    except FileNotFoundError:
        raise UserError("no such file", where=path) from None
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"not an array file ({error})", where=path, fix="write it with numpy.save") from error


def _array(pixels: np.ndarray, options: OpenOptions, name: str) -> Source:
    """The array of a file, with a range for 16-bit values where the options ask for one."""
    source = ArraySource(pixels, name=name, rule=options.rule)
    if pixels.dtype == np.uint16 and options.find_range and options.value_range is None:
        stacked = pixels if pixels.ndim == 3 else pixels[:, :, None]
        rule, said = found_rule(stacked, options)
        if said:
            source = ArraySource(pixels, name=name, rule=replace(rule, bands=options.bands))
            source.note = said
    return source


def find_items(
    sources: Sequence[str | Path],
    *,
    say: Callable[[str], None] = lambda _: None,
    allow_references: bool = True,
) -> tuple[list[Item], Categories | None]:
    """The images that `sources` name (files, folders, one file of annotations), and the categories of the annotations.

    Folders are searched to the bottom, in the order of names; folders inside them that hold results of an earlier prediction
    are passed over. Images of annotations keep their ids; others are numbered from 1. `say` is called with a line on whatever
    was passed over, or will be named otherwise than expected. Raises UserError for a source that is not there, holds no
    image, for annotations beside other sources, and without `allow_references` for those of images outside of their folder.
    """
    addresses = list(dict.fromkeys(str(s) for s in sources if is_remote(s)))
    paths = [Path(s) for s in sources if not is_remote(s)]
    tables = [p for p in paths if _holds_annotations(p)]
    if tables:
        if len(paths) + len(addresses) > 1:
            raise UserError("a file of annotations beside other sources", where=tables[0], fix="give it alone")
        # Of a COCO json only the list of images is wanted, whatever its annotations are worth.
        read = _coco_items if tables[0].suffix.lower() == ".json" else _annotated_items
        items, categories = read(tables[0], allow_references)
        return _named(items, say), categories
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            found += [(str(p.relative_to(path)), p) for p in _images_below(path, say)]
        elif path.is_file():
            found.append((path.name, path))
        else:
            raise UserError("no such image or folder", where=path, fix="check the path")
    found = _once_each(found, say)
    names = [name for name, _ in found]
    if len(set(names)) < len(names):  # the same name from two folders
        found = [(str(path), path) for _, path in found]
    items = [Item(name, path, number) for number, (name, path) in enumerate(found, start=1)]
    items += [remote_item(address, number) for number, address in enumerate(addresses, start=len(items) + 1)]
    return _named(_told_apart(items), say), None


def matched(source: str | os.PathLike[str]) -> list[Path]:
    """What a source of a command line names: itself, or the files that a pattern (`imgs/*.jpg`, `**/*.png`) matches, by name; of
    a shell that has not expanded it, as in quotes or on Windows. Raises UserError for a pattern that nothing matches.
    """
    text = os.fspath(source)
    if "://" in text or os.path.exists(text) or not glob.has_magic(text):
        return [Path(text)]
    found = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if os.path.isfile(name)]
    if not found:
        raise UserError("no file matches this pattern", where=text, fix="check the folder and the ending")
    return found


def remote_item(address: str, image_id: int | str | None) -> Item:
    """An image at an address (`flyspeck.infer.remote`): looked at when its turn comes, called without password and query."""

    def opened(options: OpenOptions, name: str) -> Source:
        return open_remote(address, options, name, lambda path, asked, called: open_source(path, asked, name=called))

    return Item(remote_name(address), Held(opened), image_id, output=file_name_of(address))


def _told_apart(items: list[Item]) -> list[Item]:
    """Addresses that differ in what is not shown get numbers: a name is one image's."""
    seen: Counter[str] = Counter()
    named = []
    for item in items:
        seen[item.name] += 1
        number = seen[item.name]
        named.append(item if number == 1 else replace(item, name=f"{item.name}#{number}"))
    return named


def _images_below(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """The images in a folder and those below it, without the results of earlier predictions."""
    found: list[Path] = []
    for here, folders, files in walk(folder):
        for name in list(folders):
            written = written_in(Path(here, name))
            if written is not None:
                folders.remove(name)
                say(f"note: {Path(here, name)} holds results of an earlier prediction: its images are passed over")
        images = [name for name in files if Path(name).suffix.lower() in EXTENSIONS]
        texts = {name for name in images if _is_mosaic(Path(here, name))}
        found += [Path(here, name) for name in images if name not in texts]
        mosaics = [name for name in files if name.lower().endswith(".vrt") or name in texts]
        if mosaics:  # most of them are put together of the very images beside them
            say(f"note: {len(mosaics)} VRT in {here} ({some(mosaics)}) passed over: name one to look at it")
    # What an earlier job wrote into this very folder, beside the images.
    own = set(written_in(folder) or ()) if found else set()
    mixed = [path for path in found if path.relative_to(folder).parts[0] in own]
    if mixed and len(mixed) < len(found):
        say(
            f"note: {folder} holds results of an earlier prediction: {counted(len(mixed), 'image')} of its own passed over"
        )
        found = [path for path in found if path.relative_to(folder).parts[0] not in own]
    lost = sorted(str(path.relative_to(folder)) for path in found if path.is_symlink() and not path.exists())
    if lost:
        say(f"note: {counted(len(lost), 'link')} to no file in {folder} ({some(lost)}): passed over")
    found = sorted(path for path in found if path.is_file())
    if not found:
        others = "; ".join([*unread(folder, recursive=True), *_videos_in(folder)])
        raise UserError("no image in this folder", where=folder, fix=others or f"known endings: {_endings()}")
    return found


def _is_mosaic(path: Path) -> bool:
    """Whether a file that is called as images are is the text of a VRT."""
    try:
        return path.is_file() and driver_of(path) == "VRT"
    except OSError:
        return False  # its own line says so when its turn comes


def _once_each(found: list[tuple[str, Path]], say: Callable[[str], None]) -> list[tuple[str, Path]]:
    """Without the files that two sources name."""
    files: dict[Path, tuple[str, Path]] = {}
    for name, path in found:
        files.setdefault(path.resolve(), (name, path))
    if len(files) < len(found):
        say(f"note: {counted(len(found) - len(files), 'image is', 'images are')} named twice and looked at once")
    return list(files.values())


def _named(items: list[Item], say: Callable[[str], None]) -> list[Item]:
    """Each with the name of its own result files (`flyspeck.infer.naming`)."""
    wanted = [item.output or item.name for item in items]
    outputs = file_names(wanted)
    other = [
        (name, output)
        for name, output in zip(wanted, outputs, strict=True)
        if has_ending(PurePath(name))
        and output != without_ending(PurePath(name)).as_posix()
        and output == inside(name).as_posix()
    ]
    if other:
        name, output = other[0]
        say(
            f"note: {counted(len(other), 'image')} would share the name of a result file with others, ending kept there "
            f"({name}: {output}.txt)"
        )
    return [replace(item, output=output) for item, output in zip(items, outputs, strict=True)]


def remarks_on(sources: Sequence[str | Path]) -> list[str]:
    """Lines on images in the folders among `sources` that no reader here reads: how many, which, and the extra that does."""
    folders = [path for path in map(Path, sources) if path.is_dir()]  # an address is none
    return [
        f"{folder}: {line}" for folder in folders for line in (*unread(folder, recursive=True), *_videos_in(folder))
    ]


def _videos_in(folder: Path) -> list[str]:
    """A line on the videos in a folder and those below, which are not looked at there; not on those of an earlier job."""
    found: list[str] = []
    for here, folders, files in walk(folder):
        folders[:] = [name for name in folders if written_in(Path(here, name)) is None]
        own = set(written_in(Path(here)) or ())
        found += [str(Path(here, name).relative_to(folder)) for name in files if is_video(name) and name not in own]
    if not found:
        return []
    return [f"{counted(len(found), 'video is', 'videos are')} passed over ({some(sorted(found))}): give each alone"]


def _endings() -> str:
    return " ".join(sorted(EXTENSIONS))


@dataclass(frozen=True)
class Categories:
    """Names and numbers of an annotation file's categories, in its order."""

    names: tuple[str, ...]
    ids: tuple[int, ...]


def _holds_annotations(path: Path) -> bool:
    """Whether a file is none of images: by its ending where that is known, else by what a reader of annotations sees."""
    ending = path.suffix.lower()
    if ending in (".json", ".npy") or has_ending(path) or not path.is_file():
        return ending == ".json"
    try:
        format_of(path)
    except UnknownPart:
        return False
    return True


def _annotated_items(path: Path, allow_references: bool) -> tuple[list[Item], Categories]:
    """Images of annotations in any other format that is read, those of plugins too."""
    table = read_annotations(path, allow_references=allow_references)
    if not len(table):
        raise UserError("lists no image", where=path)
    ids = [key if isinstance(key, str) else int(key) for key in table.image_ids]
    items = [Item(name, table.path(row), ids[row]) for row, name in enumerate(table.file_names)]
    return items, Categories(table.classes, table.category_ids)


def _coco_items(path: Path, allow_references: bool) -> tuple[list[Item], Categories]:
    """Images of a COCO json, as the reader of annotations takes them; its annotations are not looked at."""
    draft = read_listing(path)
    if not draft.file_names:
        fix = "it needs images with id and file_name, and categories"
        raise UserError("lists no image", where=path, fix=draft.problems[0] if draft.problems else fix)
    if not allow_references:
        refuse_outside(draft.root, draft.file_names, source=path)
    items = zip(draft.image_ids, draft.file_names, strict=True)
    table = Categories(tuple(draft.names), tuple(draft.category_ids))
    return [Item(name, draft.root / name, image_id) for image_id, name in items], table
