"""Where the bytes of a video lie: in a local file, or at an address whose server gives parts of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from flyspeck.errors import UserError
from flyspeck.infer.remote import file_name_of, remote_name
from flyspeck.infer.video.promise import bytes_missing, has_index
from flyspeck.infer.video.pyav import file_options, pyav
from flyspeck.infer.web import WebFile, WebRule


class VideoFile(Protocol):
    """What the reader of a video needs of its file."""

    name: str
    """What frames are called after."""
    where: Path | str
    """What messages call it."""
    stamp: list[int]
    """Equal as long as the file is."""

    def open(self) -> Any:
        """A container of PyAV. Raises UserError."""
        ...

    def bytes_missing(self) -> int:
        """See `flyspeck.infer.video.promise.bytes_missing`."""
        ...

    def close(self) -> None:
        """Give back what was open."""


def video_file(source: Path | str, rule: WebRule | None = None) -> VideoFile:
    """The file at a local path, or, of a text, at an address. Raises UserError where there is none."""
    return LocalVideo(source) if isinstance(source, Path) else WebVideo(source, rule)


class LocalVideo:
    """A file on a disk."""

    def __init__(self, path: Path) -> None:
        self.name, self._path = path.name, path
        self.where: Path | str = path
        if not path.is_file():
            raise UserError("no such video file", where=path, fix="check the path")
        status = path.stat()
        self.stamp = [status.st_size, status.st_mtime_ns]

    def open(self) -> Any:
        """See `VideoFile.open`."""
        if not self.stamp[0]:
            raise UserError("holds no frame: the file is empty", where=self.where, fix="check the file")
        try:
            return pyav().open(str(self._path), options=file_options(), metadata_errors="replace")
        except (pyav().FFmpegError, OSError) as error:
            raise _unreadable(error, self.where, self._has_index) from error

    def bytes_missing(self) -> int:
        """See `VideoFile.bytes_missing`."""
        with self._path.open("rb") as file:
            return bytes_missing(file, self.stamp[0])

    def close(self) -> None:
        """See `VideoFile.close`."""

    def _has_index(self) -> bool:
        with self._path.open("rb") as file:
            return has_index(file, self.stamp[0])


class WebVideo(io.RawIOBase):
    """A file at an `http://` or `https://` address, of which only the parts are fetched that are needed.

    Nothing else is fetched, as of a local file. What is lost in passing is asked for again, as `rule` says.
    """

    def __init__(self, url: str, rule: WebRule | None = None) -> None:
        self.name = file_name_of(url)
        self.where: Path | str = remote_name(url)
        self._web = WebFile(url, rule)
        if not self._web.by_parts or self._web.size is None:
            self._web.close()
            raise UserError("the server gives no parts of files", where=self.where, fix="download the video")
        self.stamp, self._size, self._at = list(self._web.stamp), self._web.size, 0

    def open(self) -> Any:
        """See `VideoFile.open`."""
        self._at = 0
        # Its ending is a hint, as of a local file: some formats have no other mark.
        options = {"format_whitelist": file_options()["format_whitelist"]}
        try:
            return pyav().open(self, options=options, metadata_errors="replace")
        except (pyav().FFmpegError, OSError) as error:
            raise _unreadable(error, self.where, lambda: has_index(self._whole(), self._size)) from error

    def bytes_missing(self) -> int:
        """See `VideoFile.bytes_missing`."""
        return bytes_missing(self._whole(), self._size)

    def close(self) -> None:
        """See `VideoFile.close`."""
        if "_web" in self.__dict__:  # Python closes what could not be reached and was given up half-made, too
            self._web.close()
        super().close()

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """See `io.RawIOBase`."""
        data = self._web.read_at(self._at, self._size if size < 0 else size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """See `io.RawIOBase`."""
        self._at = max(0, (0, self._at, self._size)[whence] + offset)
        return self._at

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def _whole(self) -> BinaryIO:
        self._at = 0
        return cast(BinaryIO, self)


def reason(error: Exception) -> str:
    """What FFmpeg or the system says, without the path."""
    return getattr(error, "strerror", None) or str(error)


def _unreadable(error: Exception, where: object, indexed: Any) -> UserError:
    fix = "convert it to mp4"
    if isinstance(error, pyav().error.InvalidDataError) and not indexed():
        fix = "its index is missing: the recording or the copy was cut off"
    return UserError(f"not a video that can be read ({reason(error)})", where=where, fix=fix)
