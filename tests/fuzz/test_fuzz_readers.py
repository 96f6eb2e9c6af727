"""Whatever happens to an annotation file, its reader gives a table or one line: no traceback, no hang, nothing unprintable."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from fuzz_seeds import Content, seeds, write
from mutations import mutated

from flyspeck.data import readers
from flyspeck.data.annotations import Annotations
from flyspeck.data.readers import READERS, format_of, read_annotations
from flyspeck.errors import UserError
from flyspeck.plugins import owned

SEEDS = seeds()
FEW, MANY = 60, 2000
"""Mutated files of each format: in the ordinary run, and in the slow one."""


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of no known format would load whatever is installed, which takes seconds and is tested with the plugins."""
    monkeypatch.setattr(readers, "with_installed", lambda attempt: attempt())


class StillReading(BaseException):
    """No Exception, so that no handler on the way takes it for a broken image."""


@contextmanager
def no_hang(seconds: int) -> Iterator[None]:
    """Far more than any small file needs; what loops forever becomes a failure."""

    def stop(*_: object) -> None:
        raise StillReading(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def held(table: Annotations) -> None:
    """What every table promises, whatever it was read from."""
    images, boxes, classes = len(table), table.num_boxes, len(table.classes)
    assert len(table.file_names) == images
    assert table.sizes.shape == (images, 2)
    assert table.boxes.shape == (boxes, 4)
    assert np.isfinite(table.boxes).all()
    assert (table.boxes[:, :2] < table.boxes[:, 2:]).all()
    assert np.isfinite(table.area).all()
    columns = (table.image_index, table.labels, table.area, table.ignore, table.crowd, table.box_ids)
    assert {len(column) for column in (*columns, *table.extra.values())} <= {boxes}
    assert {len(column) for column in table.image_extra.values()} <= {images}
    assert (np.diff(table.image_index) >= 0).all()
    assert not boxes or (table.image_index.min() >= 0 and table.image_index.max() < images)
    assert not boxes or (table.labels.min() >= -1 and table.labels.max() < classes)
    assert (table.labels[~table.ignore] >= 0).all()
    assert len(set(table.classes)) == classes == len(table.category_ids)
    texts = (*table.classes, *map(str, table.image_ids), *table.file_names)
    "".join(texts).encode("utf-8")  # what is written in UTF-8 later
    for line in (*table.problems, *table.notes, *table.unkept, table.source):
        printable(line)


def printable(line: str) -> None:
    """One line that a terminal of UTF-8 can show."""
    assert line
    assert not [c for c in line if ord(c) < 32 or c in "\x7f\x85\u2028\u2029"], repr(line[:300])
    assert len(line) < 2000, repr(line[:300])
    line.encode("utf-8")


def outcome(source: Path, name: str | None, **more: bool) -> str:
    """What reading gives: "table", "table with notes" or "error"."""
    try:
        with no_hang(60):
            table = read_annotations(source, format=name, **more)
    except UserError as error:
        printable(str(error))
        return "error"
    if not more.get("for_evaluation"):
        held(table)
    return "table with notes" if table.problems or table.notes else "table"


def as_bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


def fuzz(name: str, count: int) -> Counter[str]:
    """Counts of the outcomes of `count` mutated sets of a format; each is a function of the name and its number."""
    found: Counter[str] = Counter()
    layouts = SEEDS[name]
    with tempfile.TemporaryDirectory() as place:
        sources = [write(seed, Path(place) / str(number)) for number, seed in enumerate(layouts)]
        for number in range(count):
            rng = np.random.default_rng([crc32(name.encode()), number])
            which = number % len(layouts)
            seed, source = layouts[which], sources[which]
            victim = sorted(seed.files)[int(rng.integers(len(seed.files)))]
            path = Path(place) / str(which) / victim
            path.write_bytes(mutated(as_bytes(seed.files[victim]), rng))
            try:
                found[
                    outcome(source, name if rng.random() < 0.7 else None, for_evaluation=bool(rng.random() < 0.2))
                ] += 1
            except (Exception, StillReading) as error:
                raise AssertionError(f"{name}, mutation {number} of {victim}: {path.read_bytes()[:400]!r}") from error
            path.write_bytes(as_bytes(seed.files[victim]))
    return found


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_format_has_a_seed_that_reads(name: str, tmp_path: Path) -> None:
    """A new reader without one fails here: nothing of it would be fuzzed."""
    if name in owned("reader"):
        pytest.skip("a plugin's reader")
    assert name in SEEDS, f"give '{name}' a seed in fuzz_seeds.py"
    for number, seed in enumerate(SEEDS[name]):
        source = write(seed, tmp_path / str(number))
        assert format_of(source) == name
        table = read_annotations(source)
        assert not table.problems
        assert table.num_boxes == seed.boxes
        held(table)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_mutated_files_give_a_table_or_one_line(name: str) -> None:
    assert sum(fuzz(name, FEW).values()) == FEW


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_two_thousand_mutated_files_of_each_format(name: str) -> None:
    found = fuzz(name, MANY)
    assert sum(found.values()) == MANY
    assert all(found[kind] > MANY // 100 for kind in ("error", "table with notes")), (
        found
    )  # it reaches further than the parser
