"""Images that do not lie on a local disk: `https://…`, `s3://…`, `gs://…`, `az://…`, and GDAL's `/vsi…` paths.

====================================  ==================================================================================
named                                 is read
====================================  ==================================================================================
`https://…`, `http://…`,              a TIFF or JPEG 2000 over 1 MB, from a server that gives parts: by windows through GDAL,
`/vsicurl/https://…`                  only the parts that they need. Anything else is fetched into a temporary file, up to
                                      a limit, and read like any local image
`s3://bucket/key`, `gs://…`,          by windows through GDAL's own readers, with the credentials of their environment
`az://…`, `/vsis3/…` and such
`/vsizip/…`, `/vsitar/…` and such     by windows through GDAL, out of a local archive
====================================  ==================================================================================

Nothing is fetched but what was named: no files beside it, and none that it refers to (a VRT is refused).
"""

from __future__ import annotations

import io
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flyspeck.errors import UserError, missing_extra
from flyspeck.infer import raster
from flyspeck.infer.opening import EMPTY, check_piece
from flyspeck.infer.web import WebFile, WebRule
from flyspeck.infer.web_address import masked
from flyspeck.infer.windows import AroundSource, OpenOptions, Source

OpenFile = Callable[[Path, OpenOptions, str], Source]
"""Opens a local file under a name."""

_SCHEMES = {"s3": "vsis3", "gs": "vsigs", "az": "vsiaz"}
_ARCHIVES = ("vsizip", "vsitar", "vsigzip", "vsi7z", "vsirar", "vsisubfile", "vsimem")
_CLOUDS = (*_SCHEMES.values(), "vsiadls", "vsioss", "vsiswift")
_BY_WINDOWS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"),
    **dict.fromkeys((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "JP2OpenJPEG"),
}
"""How TIFF, BigTIFF and JPEG 2000 begin, and GDAL's drivers of them."""
_GIVEN_UP = 3  # windows that fail one after the other: the others are not waited for
_WHOLE = 1 << 20  # bytes; a smaller file is one request, and read like a local one
_DRIVERS = {"GTiff": (".tif", ".tiff"), "JP2OpenJPEG": (".jp2", ".j2k"), "JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
"""GDAL's drivers that may open what it fetches itself, none of which reads other files."""
_QUIET = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
"""GDAL's settings under which it asks for no files beside the one that is named."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_remote(source: object) -> bool:
    """Whether an image is named by an address, or by one of GDAL's virtual paths, and not by a local path.

    Raises UserError for an address as a `Path`, which has lost one of its slashes.
    """
    text = str(source)
    if isinstance(source, str):
        return _ADDRESS.match(text) is not None or text.startswith("/vsi")
    if isinstance(source, Path) and re.match(r"(https?|s3|gs|az):/[^/]", text):
        raise UserError(
            "an address as a Path, which drops slashes", where=text.partition("?")[0], fix="give it as text"
        )
    return text.startswith("/vsi")


def remote_name(source: str) -> str:
    """What messages, results and logs call it: without name, password and query."""
    if source.startswith("/vsicurl/"):
        return masked(source.removeprefix("/vsicurl/"))
    return masked(source) if "://" in source and not source.startswith("/vsi") else source.partition("?")[0]


def file_name_of(source: str) -> str:
    """The last part of its path: what its own result files are called after."""
    return PurePosixPath(remote_name(source)).name or "image"


def open_remote(source: str, options: OpenOptions, name: str, open_file: OpenFile) -> Source:
    """Open what `is_remote`. Raises UserError."""
    if source.startswith("/vsicurl/"):
        source = source.removeprefix("/vsicurl/")
    scheme = source.partition("://")[0].lower()
    if scheme in ("http", "https"):
        return _from_web(source, options, name, open_file)
    if scheme in _SCHEMES:
        return _by_gdal(f"/{_SCHEMES[scheme]}/{source.partition('://')[2]}", options, name)
    system = source.split("/")[1] if source.startswith("/vsi") else ""
    if system in (*_ARCHIVES, *_CLOUDS) and "/vsicurl" not in source:
        return _by_gdal(source, options, name)
    known = ", ".join(["https", "http", *_SCHEMES])
    raise UserError(
        f"images are not read from {system or scheme + '://'}", where=name, fix=f"known: {known}; or download it"
    )


def _from_web(url: str, options: OpenOptions, name: str, open_file: OpenFile) -> Source:
    file = WebFile(url, options.web)
    try:
        large = file.by_parts and (file.size or 0) > _WHOLE
        head = file.read_at(0, 16) if large else b""
        driver = next((driver for magic, driver in _BY_WINDOWS.items() if head.startswith(magic)), None)
        if driver is not None:
            if raster.has_rasterio():
                return _WebRaster(file, driver, options, name)
            if (file.size or 0) > options.web.most_bytes:
                raise missing_extra("rasterio", "geo")
        return _Fetched(file, Path(file_name_of(url)).suffix, options, name, open_file)
    except BaseException:
        file.close()
        raise


class _Opener:
    """Hands GDAL a web file, and keeps what went wrong in `trouble`."""

    def __init__(self, file: WebFile) -> None:
        self._file = file
        self.trouble: UserError | None = None

    def __call__(self, path: str, mode: str = "rb") -> _Handle:
        """The file, under its one name; there are no others beside it."""
        if path != _INSIDE:
            raise FileNotFoundError(path)
        return _Handle(self)

    def read_at(self, start: int, count: int) -> bytes:
        """See `WebFile.read_at`; nothing where it fails: GDAL prints the tracebacks of what is raised.

        After a failure nothing is asked until `trouble` is cleared: GDAL would go on, piece by piece, each with all its waits.
        """
        if self.trouble is not None:
            return b""
        try:
            return self._file.read_at(start, count)
        except UserError as error:
            self.trouble = error
            return b""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size or 0


class _Handle(io.RawIOBase):
    """A place in the file of an `_Opener`."""

    def __init__(self, opener: _Opener) -> None:
        self._opener, self._at = opener, 0

    def read(self, size: int = -1, /) -> bytes:
        """See `io.RawIOBase`."""
        data = self._opener.read_at(self._at, self._opener.size if size < 0 else size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """See `io.RawIOBase`."""
        self._at = (0, self._at, self._opener.size)[whence] + offset
        return self._at

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at


_INSIDE = "remote.tif"


class _WebRaster(AroundSource):
    """A raster by windows, of which the parts are fetched that each window needs."""

    def __init__(self, file: WebFile, driver: str, options: OpenOptions, name: str) -> None:
        self._file, self._opener, self._failed = file, _Opener(file), 0
        try:
            inner = raster.RasterioSource(
                _INSIDE, options, name=name, driver=driver, settings=_QUIET, opener=self._opener
            )
        except UserError as error:
            raise self._opener.trouble or UserError(error.what, where=name, fix=error.fix) from None
        _check(inner, options, name, file.size)
        self._take(inner, name, file.stamp)

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        if self._failed < _GIVEN_UP:
            self._opener.trouble = None
        try:
            pixels = super().window(x1, y1, x2, y2, out)
        except UserError:
            if self._opener.trouble is None:
                raise
        # Some decoders take what is missing for zeros.
        if self._opener.trouble is not None:
            trouble, self._failed = self._opener.trouble, self._failed + 1
            raise UserError(f"the window {x1},{y1} to {x2},{y2}: {trouble.what}", where=self.name, fix=trouble.fix)
        self._failed = 0
        return pixels

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        self._file.close()


def _check(source: raster.RasterioSource, options: OpenOptions, name: str, size: int | None) -> None:
    """Raises UserError, and closes the source, for what no local raster may be either; `size` is that of the file in bytes."""
    check_piece(source, options, where=name)
    pixels = source.size[0] * source.size[1]
    if options.max_pixels is not None and size is not None and pixels > max(options.max_pixels, EMPTY * size):
        source.close()
        raise UserError(
            f"{pixels / 1e6:,.0f} megapixels in {size / 1e6:.1f} MB, more than an image can be packed",
            where=name,
            fix="raise the limit (--max-megapixels) if the file is to be trusted",
        )


class _Fetched(AroundSource):
    """An image that was fetched whole, into a temporary file, and is read from there like any other."""

    def __init__(self, file: WebFile, ending: str, options: OpenOptions, name: str, open_file: OpenFile) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="flyspeck-")
        path = Path(self._folder.name, f"image{ending if re.fullmatch(r'[.][A-Za-z0-9]{1,8}', ending) else ''}")
        try:
            file.download(path)
            file.close()
            with path.open("rb") as content:
                if (
                    content.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
                ):  # a VRT, too, which names other files
                    raise UserError("a page of text, no image", fix="look at the address in a browser")
            self._take(open_file(path, options, name), name, file.stamp)
        except UserError as error:
            self._folder.cleanup()
            raise UserError(error.what, where=name, fix=error.fix) from None
        except BaseException:
            self._folder.cleanup()
            raise

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        self._folder.cleanup()


class _CloudRaster(AroundSource):
    """A raster that GDAL fetches itself. What it says of addresses and credentials is never passed on."""

    def __init__(self, path: str, options: OpenOptions, name: str) -> None:
        if not raster.has_rasterio():
            raise missing_extra("rasterio", "geo")
        self._take(_opened_as_named(path, options, name), name, ())
        self.stamp = _header_stamp(self._inner)

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        try:
            return super().window(x1, y1, x2, y2, out)
        except UserError as error:
            told = _in_words(error.what, "", self.name)
            raise UserError(f"the window {x1},{y1} to {x2},{y2}: {told.what}", where=self.name, fix=told.fix) from None


def _opened_as_named(path: str, options: OpenOptions, name: str) -> Source:
    """Through the driver that the ending tells, or else the first of the others that takes it."""
    settings = {**_QUIET, **_patience(options.web)}
    ending = PurePosixPath(path).suffix.lower()
    refused: UserError | None = None
    for driver in sorted(_DRIVERS, key=lambda one: ending not in _DRIVERS[one]):
        try:
            source = raster.RasterioSource(path, options, name=name, driver=driver, settings=settings)
        except UserError as error:
            refused = _in_words(error.what, path, name)
            if refused.what != _UNKNOWN:
                raise refused from None
        else:
            _check(source, options, name, None)
            return source
    assert refused is not None
    raise refused


def _by_gdal(path: str, options: OpenOptions, name: str) -> Source:
    return _CloudRaster(path, options, name)


def _patience(rule: WebRule) -> dict[str, Any]:
    """GDAL's settings for the same waiting as `WebFile`."""
    return {
        "GDAL_HTTP_CONNECTTIMEOUT": str(max(1, round(rule.timeout))),
        "GDAL_HTTP_LOW_SPEED_TIME": str(max(1, round(rule.timeout))),
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
        "GDAL_HTTP_MAX_RETRY": str(rule.retries),
        "GDAL_HTTP_RETRY_DELAY": str(rule.pause),
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsigs/:/vsiaz/",
    }


_CREDENTIALS = {
    "vsis3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE); AWS_NO_SIGN_REQUEST=YES for public files",
    "vsigs": "GOOGLE_APPLICATION_CREDENTIALS, or GS_ACCESS_KEY_ID and GS_SECRET_ACCESS_KEY; GS_NO_SIGN_REQUEST=YES for public "
    "files",
    "vsiaz": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_ACCESS_KEY",
}
_UNKNOWN = "no image of a kind that is read from there"
_DENIED = ("access denied", "accessdenied", "403", "forbidden", "signature", "invalidaccesskey", "expiredtoken")
_UNSET = ("not defined", "not filled", "missing configuration", "no_sign_request", "no valid credential", "not set")


def _in_words(said: str, path: str, name: str) -> UserError:
    """GDAL's own text may hold keys and signatures: only what kind of failure it is comes through."""
    low = said.lower()
    need = f"set {_CREDENTIALS[system]}" if (system := path.split("/")[1] if path else "") in _CREDENTIALS else ""
    if any(word in low for word in _UNSET):
        return UserError("no credentials", where=name, fix=need)
    if any(word in low for word in _DENIED):
        return UserError("access denied with the credentials that are set", where=name, fix=need)
    if "not exist" in low or "404" in low or "no such" in low or "nosuch" in low:
        return UserError("no such file", where=name, fix="check the name")
    if "not recognized" in low:
        return UserError(_UNKNOWN, where=name, fix=f"known: {', '.join(_DRIVERS)}")
    return UserError("cannot be read from there", where=name, fix="check the name, the network and the credentials")


def _header_stamp(source: Source) -> tuple[int, ...]:
    """GDAL says neither length nor date of such a file: what its header says, and its first pixels."""
    height, width = source.size
    corner = source.read(0, 0, min(width, 64), min(height, 64))
    return height, width, source.bands, zlib.crc32(repr(source.geo).encode()), zlib.crc32(corner.tobytes())
