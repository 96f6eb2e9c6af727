"""Several annotation tables as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyspeck.data.annotations import Annotations


def join_annotations(tables: Sequence[Annotations]) -> Annotations:
    """One table of all images; an image file that several tables list is taken from the first of them.

    Classes are matched by name. Images and boxes are numbered anew, from 1; file names become absolute. Columns that not
    every table has are left out.
    """
    if len(tables) == 1:
        return tables[0]
    classes = tuple(dict.fromkeys(name for table in tables for name in table.classes))
    row_of = {name: row for row, name in enumerate(classes)}
    parts, seen = [], set()
    for table in tables:
        paths = [str(table.path(row).absolute()) for row in range(len(table))]
        fresh = np.array([path not in seen for path in paths], dtype=bool)
        seen.update(paths)
        lookup = np.array([*(row_of[name] for name in table.classes), -1], dtype=np.int64)
        part = replace(
            table,
            file_names=tuple(paths),
            labels=lookup[table.labels],
            extra={**table.extra, "category": lookup[table.own_labels]},
        )
        parts.append(part.select_images(fresh))
    first = np.cumsum([0, *(len(part) for part in parts)])
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _BOX_COLUMNS}
    return Annotations(
        image_ids=np.arange(1, first[-1] + 1),
        file_names=tuple(name for part in parts for name in part.file_names),
        sizes=np.concatenate([part.sizes for part in parts]),
        image_index=np.concatenate([part.image_index + start for part, start in zip(parts, first[:-1], strict=True)]),
        box_ids=np.arange(1, len(joined["boxes"]) + 1),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        root=Path("/"),
        extra=_common([part.extra for part in parts]),
        image_extra=_common([part.image_extra for part in parts]),
        source="; ".join(table.source for table in tables),
        problems=tuple(problem for table in tables for problem in table.problems),
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        unkept=tuple(dict.fromkeys(part for table in tables for part in table.unkept)),
        pixels=tables[0].pixels if len({table.pixels for table in tables}) == 1 else None,
        pixels_known=all(table.pixels_known for table in tables),
        **joined,
    )


_BOX_COLUMNS = ("boxes", "labels", "area", "ignore", "crowd")


def _common(columns: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    shared = set.intersection(*(set(c) for c in columns))
    return {name: np.concatenate([c[name] for c in columns]) for name in columns[0] if name in shared}
