"""Other places than an input's own folder: their names, files that refer to them, and what was fetched or read there.

The oracle sees what Python does by its audit. What a library in C does is seen here: connections by listening, files that are
opened by asking the kernel (inotify; Linux alone).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

PORT = 45997
"""Where `listening` listens: on this machine, so that a connection goes nowhere."""
BAIT = "beside.png"
"""The name of a sound image that lies further up than an input, where no input may be read from."""
FAR = Path("/tmp/flyspeck-elsewhere/beside.png")
"""A sound image at an absolute place, the same for all, so that an input is a function of its seed."""
PLACES = {
    "further up": (f"../{BAIT}", f"../../{BAIT}", f"../../../{BAIT}", f"..\\..\\{BAIT}"),
    "elsewhere": (
        *(f"http://127.0.0.1:{PORT}/a.png", f"/vsicurl/http://127.0.0.1:{PORT}/a.tif", "s3://bucket/a.png"),
        *(str(FAR), f"file://{FAR}"),
    ),
    "odd": ("/dev/zero", "/etc/passwd", "file:///etc/passwd", "-rf", "|ls", "$(ls).png", "con.png", "a.png\0.jpg"),
}
"""What may stand where the name of a file is expected."""
_FILE = re.compile(rb"[\w./\\-]*\w\.(?:png|jpe?g|tiff?|vrt|xml|txt|json|safetensors|onnx|csv|npz|ovr|msk)\b")


def _place(rng: np.random.Generator) -> str:
    kind = list(PLACES.values())[int(rng.integers(len(PLACES)))]
    return kind[int(rng.integers(len(kind)))]


def sent_elsewhere(content: bytes, rng: np.random.Generator) -> bytes:
    """The name of one file in a text becomes another place."""
    found = list(_FILE.finditer(content))
    if not found:
        return content
    spot = found[int(rng.integers(len(found)))]
    place = _place(rng)
    if content[:1] in (b"{", b"["):
        place = place.replace("\\", "\\\\").replace("\0", "\\u0000")
    return content[: spot.start()] + place.encode() + content[spot.end() :]


def mosaic(source: str, *, relative: bool) -> str:
    """A VRT of 40 x 30 px that shows one file; `source` as it stands in XML."""
    return (
        '<VRTDataset rasterXSize="40" rasterYSize="30"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>500000, 0.1, 0, 4000000, 0, -0.1</GeoTransform>"
        '<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="{int(relative)}">{source}</SourceFilename><SourceBand>1</SourceBand>'
        '<SrcRect xOff="0" yOff="0" xSize="40" ySize="30"/><DstRect xOff="0" yOff="0" xSize="40" ySize="30"/>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def referring(rng: np.random.Generator) -> bytes:
    """A sound file of a format that names other files, whatever its own name says, which refers to another place."""
    place = _place(rng)
    inside = escape(place)
    tiles = (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{inside}</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX>'
        "<UpperLeftY>30</UpperLeftY><LowerRightX>40</LowerRightX><LowerRightY>0</LowerRightY><SizeX>40</SizeX>"
        "<SizeY>30</SizeY><TileLevel>0</TileLevel></DataWindow><Projection>EPSG:3857</Projection>"
        "<BandsCount>1</BandsCount></GDAL_WMS>"
    )
    relative = bool(rng.integers(2))
    segment = f'<SegmentList><SegmentURL media="{inside}"/></SegmentList>'
    kinds = (
        mosaic(inside, relative=relative),
        mosaic(escape(tiles), relative=relative),
        tiles,
        f"<GDALTileIndexDataset><IndexDataset>{inside}</IndexDataset><LocationField>at</LocationField></GDALTileIndexDataset>",
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{inside}</MDI></Metadata></PAMDataset>',
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{place}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{place}'\n",
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="1">{segment}</Representation></AdaptationSet></Period></MPD>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><image href="{inside}"/></svg>',
        f'<!DOCTYPE a [<!ENTITY e SYSTEM "{inside}">]><annotation><filename>&e;</filename></annotation>',
        f"{place}\n{place}\n",
    )
    return kinds[int(rng.integers(len(kinds)))].encode()


class Elsewhere:
    """What comes to `PORT` of this machine, and which of some files are opened, by whatever library."""

    def __init__(self) -> None:
        self._count = 0
        self._own: set[tuple[str, int]] = set()
        self._seen = threading.Event()
        self._opened = _Opened()

    def serve(self, listener: socket.socket) -> None:
        """Counts, answers nothing, closes."""
        while True:
            try:
                one, sender = listener.accept()
            except OSError:
                return
            one.close()
            if sender in self._own:
                self._own.clear()
                self._seen.set()
            else:
                self._count += 1

    def count(self) -> int:
        """Connections until now: they are taken in their order, so that one of our own is the last."""
        self._seen.clear()
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            self._own.add(own.getsockname())
            own.connect(("127.0.0.1", PORT))
            self._seen.wait(10)
        return self._count

    @contextlib.contextmanager
    def watched(self, files: Sequence[Path]) -> Iterator[list[str]]:
        """What is fetched, or which of `files` is opened, within it: told by the list when it ends."""
        found: list[str] = []
        before = self.count()
        with self._opened.watched(files) as opened:
            yield found
        found += ["a connection"] * (self.count() > before)
        found += [f"a file elsewhere was opened: {Path(path).name}" for path in opened]

    def close(self) -> None:
        """No more is watched."""
        self._opened.close()


class _Opened:
    """The kernel's word on files that are opened; nothing is seen where it gives none."""

    _OPEN = 0x20

    def __init__(self) -> None:
        self._number = -1
        if sys.platform == "linux":
            self._library = ctypes.CDLL(None, use_errno=True)
            self._number = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    @contextlib.contextmanager
    def watched(self, files: Sequence[Path]) -> Iterator[list[str]]:
        opened: list[str] = []
        if self._number < 0:
            yield opened
            return
        watches = {self._library.inotify_add_watch(self._number, os.fsencode(path), self._OPEN): path for path in files}
        try:
            yield opened
            opened += sorted({str(watches[at]) for at in self._events() if at in watches})
        finally:
            for at in watches:
                self._library.inotify_rm_watch(self._number, at)
            self._events()

    def _events(self) -> list[int]:
        found: list[int] = []
        while True:
            try:
                block = os.read(self._number, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(block):
                watch, _, _, length = struct.unpack_from("iIII", block, at)
                found.append(watch)
                at += 16 + length

    def close(self) -> None:
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


@contextlib.contextmanager
def listening() -> Iterator[Elsewhere | None]:
    """Watches other places within it; None where somebody else listens there already."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", PORT))
        except OSError:
            yield None
            return
        listener.listen()
        found = Elsewhere()
        threading.Thread(target=found.serve, args=(listener,), daemon=True).start()
        try:
            yield found
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would hold the port beyond the end
            found.close()
