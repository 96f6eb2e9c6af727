"""Sizes that annotations do not state, from the headers of the images that they name; none is opened that may not be."""

from __future__ import annotations

from collections.abc import Sequence

from flyspeck.data.readers.assemble import Draft, ReadOptions
from flyspeck.data.readers.folders import is_there
from flyspeck.data.readers.outside import refuse_outside
from flyspeck.data.readers.places import header_size


def hold_inside(draft: Draft, names: Sequence[str], options: ReadOptions) -> None:
    """Before any of the files `names` is opened: raises UserError where one lies where the options allow none."""
    if options.inside is not None:
        refuse_outside(draft.root, names, source=options.inside, images=options.images)


def named_size(draft: Draft, name: str, options: ReadOptions) -> tuple[int, int]:
    """(height, width) of an image that is named from `draft.root`; (-1, -1) and a problem where it cannot be read."""
    hold_inside(draft, [name], options)
    return header_size(draft, draft.root / name)


def known_sizes(draft: Draft, options: ReadOptions) -> None:
    """Fills in the sizes that the annotations do not state, from the headers of the files that are there."""
    hold_inside(draft, draft.file_names, options)
    for row, size in enumerate(draft.sizes):
        if min(size) < 1 and is_there(draft.root / draft.file_names[row]):
            draft.sizes[row] = header_size(draft, draft.root / draft.file_names[row])
