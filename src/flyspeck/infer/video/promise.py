"""What a video file promises, against what came of it: a file that was cut off is never taken for a shorter one.

A container says how long it is in bytes: EBML (Matroska, WebM) of its segment, RIFF (AVI) of its chunks, ISO media (MP4, MOV)
of its boxes; a GIF has a byte that ends it. Where the file ends before that, something is missing; how many frames, its index
or its duration tells. A container without such a number (a transport stream, a recording that was never finished) promises
nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"styp",
    b"sidx",
    b"mfra",
    b"uuid",
    b"meta",
    b"pnot",
}


def bytes_missing(file: BinaryIO, size: int) -> int:
    """How many bytes fewer than its container says a file of `size` has; 0 where it is whole or the container says nothing."""
    head = file.read(16)
    file.seek(0)
    return max(0, _promised(head, file, size) - size)


def has_index(file: BinaryIO, size: int) -> bool:
    """Whether an MP4 or MOV file has its index; without it nothing of it can be read. True for other files."""
    kinds: list[bytes] = []
    if file.read(16)[4:8] not in _BOXES:
        return True
    file.seek(0)
    _boxes_end(file, size, kinds.append)
    return b"moov" in kinds


def frames_missing(
    container: Any, stream: Any, *, packets: int, end: float | None, rate: float, cut: int
) -> int | None:
    """How many frames a file holds less than it promises, by its index or its duration; None where that cannot be told.

    Args:
        container: Of PyAV, as is `stream`.
        stream: The video in it.
        packets: How many packets of the stream came, those that could not be decoded among them.
        end: Seconds at which the last packet ends, on the clock of the stream.
        rate: Frames per second.
        cut: What `bytes_missing` says. Without it a duration proves nothing: it may be that of the sound, or the time that the
            last frame is shown.
    """
    if "mp4" in container.format.name and stream.frames:
        # The demuxer's own list leaves out what an edit list removes; `frames` still counts it.
        return max(0, (len(stream.index_entries) or stream.frames) - packets)
    if not cut:
        return 0
    if container.format.name == "gif":
        return None  # its duration is that of what is there
    steps = (
        stream.frames if container.format.name == "avi" else stream.duration
    )  # of AVI it is that of what is there, too
    duration = steps and float(steps * stream.time_base)
    if not duration and container.duration and len(container.streams) == 1:
        duration = container.duration / 1e6
    if not duration or end is None:
        return None
    start = float((stream.start_time or 0) * stream.time_base)
    return max(0, round((start + duration - end) * rate))


def _promised(head: bytes, file: BinaryIO, size: int) -> int:
    if head[:4] == _EBML:
        return _ebml_end(file)
    if head[:4] == b"GIF8":
        file.seek(max(0, size - 64))
        return size + (not file.read().rstrip(b"\0").endswith(b";"))
    if head[:4] == b"RIFF":
        return _riff_end(file, size)
    if head[4:8] in _BOXES:
        return _boxes_end(file, size)
    return 0


def _ebml_end(file: BinaryIO) -> int:
    """Where the segment ends; 0 where its length is not known."""
    for _ in range(4):
        name = file.read(4)
        length = _ebml_number(file)
        if length is None or len(name) < 4:
            return 0
        end = file.tell() + length
        if name == _SEGMENT:
            return end
        file.seek(end)
    return 0


def _ebml_number(file: BinaryIO) -> int | None:
    """A length in EBML: as many bytes as the first has leading zero bits, and one; all ones: not known."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 8 - first[0].bit_length()
    rest = file.read(count)
    value = int.from_bytes(bytes([first[0] & (0x7F >> count)]) + rest, "big")
    return None if len(rest) < count or value == (1 << 7 * (count + 1)) - 1 else value


def _riff_end(file: BinaryIO, size: int) -> int:
    """Where the last RIFF chunk ends: large files have several."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            break
        length = struct.unpack("<I", head[4:])[0]
        if length in (0, 0xFFFFFFFF):
            return 0  # a recording that was never finished
        end += 8 + length
    return end


def _boxes_end(file: BinaryIO, size: int, tell: Callable[[bytes], None] = lambda _: None) -> int:
    """Where the last box ends; `tell` is called with the kind of each that is whole."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        if len(head) < 8:
            return end + 8
        length, kind = struct.unpack(">I4s", head[:8])
        if not kind.isalnum() and kind not in _BOXES:
            return 0  # something else lies behind the boxes
        if length == 0:
            return 0  # to the end of the file
        if length == 1:
            length = struct.unpack(">Q", head[8:])[0] if len(head) == 16 else 16
        if length < 8:
            return 0
        end += length
        if end <= size:
            tell(kind)
    return end
