"""What a file is by its first bytes, whatever its name ends in: the GDAL driver that is to open it, and no other.

GDAL itself tries some 150 drivers on every file, among them those that a few lines of text turn into a request over the network.
"""

from __future__ import annotations

import re
from pathlib import Path

_MAGIC = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"BM", "BMP"),
)
_LOOKED_AT = 2048
BY_WINDOWS = ("GTiff", "JP2OpenJPEG", "VRT")
"""Drivers of the formats that are read by windows whenever GDAL is there."""


def driver_of(path: Path) -> str:
    """GDAL's name of the driver for a file; "" for what is no raster that is opened here. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    for magic, driver in _MAGIC:
        if start.startswith(magic):
            return driver
    return "VRT" if root_of(start) == "VRTDataset" else ""


def root_of(start: bytes) -> str:
    """The outermost element of a text that begins as XML does; "" for anything else."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").decode("utf-8", "replace")
    if not text.startswith("<"):
        return ""
    text = re.sub(r"<\?.*?\?>|<!--.*?-->", "", text, flags=re.DOTALL).lstrip()
    found = re.match(r"<([A-Za-z_][\w.:-]*)", text)
    return found[1] if found else ""
