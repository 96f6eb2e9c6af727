"""Files at http and https addresses: by parts or whole, with limits for servers that stall, end early, lie or redirect.

Standard library only. The rules, which `WebFile` holds:

* Every wait has an end: `timeout` for a connection and for each piece of an answer, and an answer that trickles slower than
  `MIN_RATE` is given up. What failed in passing (a dropped connection, a short answer, 429, 5xx) is tried again.
* A part is what was asked for, byte for byte in place and number, of a file that is still the same (length, ETag, Last-Modified);
  anything else is an error.
* What addresses are asked, and what of them is shown: `flyspeck.infer.web_address`.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, quote, unquote, urljoin

from flyspeck.errors import UserError
from flyspeck.infer.web_address import (
    check_hop,
    check_literal,
    check_peer,
    host_and_port,
    masked,
    origin_of,
    proxy_for,
    split_address,
)
from flyspeck.version import VERSION

_T = TypeVar("_T")
MIN_RATE = 2000
"""Bytes a second below which an answer is given up."""
_CHUNK = 1 << 16
_AHEAD = 1 << 20
_KEPT = 32 << 20
_PASSING = (429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_HOPS = 5


@dataclass(frozen=True)
class WebRule:
    """How long a server is waited for, and how much of it is taken."""

    timeout: float = 30.0
    """Seconds without a connection, or without a further piece of an answer."""
    retries: int = 3
    pause: float = 0.5
    """Seconds before the first retry; doubled for each further one."""
    most_bytes: int = 2 << 30
    """Largest file that is fetched whole."""


class _Passing(Exception):
    """What may go well when it is tried again; its text is for people."""


class WebFile:
    """One file at an address; `open` asks for its first part. Not thread-safe.

    `read_at` gives any part of it through a cache of chunks; where parts follow each other, more is fetched ahead. `download`
    writes all of it. Raises UserError, whose `where` is the masked address.
    """

    size: int | None
    """Bytes, where the server says."""
    by_parts: bool
    """Whether the server gives parts of it."""
    stamp: tuple[int, ...]
    """Equal as long as the file is: its size and a number of its ETag and date of change."""

    def __init__(self, url: str, rule: WebRule | None = None) -> None:
        self.name, self.rule = masked(url), rule or WebRule()
        parts = split_address(url, name=self.name)
        self._url = self._final = parts._replace(
            netloc=host_and_port(parts), path=quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._"), fragment=""
        ).geturl()
        self._origin = origin_of(parts)
        self._login = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._login = "Basic " + base64.b64encode(pair.encode()).decode()
        self._connections: dict[tuple[str, str, int], http.client.HTTPConnection] = {}
        self._answer: http.client.HTTPResponse | None = None
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._last, self._ahead = -1, 0
        self.bytes_read = 0
        self.size, self.by_parts, self._tag = None, False, ""
        self._open()

    def _open(self) -> None:
        def first() -> bytes:
            response = self._ask({"Range": f"bytes=0-{_CHUNK - 1}"})
            self._tag = _tag(response)
            if response.status == 206:
                start, total = self._place(response)
                if start != 0 or total is None:
                    raise self._error("gives parts of the file without saying which")
                self.by_parts, self.size = True, total
                return self._body(response, min(_CHUNK, total))
            if response.status == 416:
                raise self._error("is empty", "look at the address")
            length = response.getheader("Content-Length", "")
            self.size = int(length) if length.isdigit() else None
            self._drop(response)
            return b""

        head = self._patiently(first)
        if self.by_parts:
            self._chunks[0] = head
        self.stamp = (-1 if self.size is None else self.size, zlib.crc32(self._tag.encode()))

    def read_at(self, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer where the file ends."""
        assert self.size is not None
        stop = min(start + count, self.size)
        if stop <= start:
            return b""
        first, last = start // _CHUNK, (stop - 1) // _CHUNK
        chunks: dict[int, bytes] = {}
        number = first
        while number <= last:
            if number in self._chunks:
                self._chunks.move_to_end(number)
                chunks[number] = self._chunks[number]
                number += 1
                continue
            end = number
            while end < last and end + 1 not in self._chunks:
                end += 1
            chunks.update(self._fetch(number, end, reading_on=end == last))
            number = end + 1
        whole = b"".join(chunks[number] for number in range(first, last + 1))
        return whole[start - first * _CHUNK : stop - first * _CHUNK]

    def _fetch(self, first: int, last: int, *, reading_on: bool) -> dict[int, bytes]:
        """Chunks `first` to `last`, and some more where the reader goes on from where it was."""
        assert self.size is not None
        wanted = last
        self._ahead = min(2 * self._ahead + _CHUNK, _AHEAD) if first == self._last + 1 and reading_on else 0
        last = min(last + self._ahead // _CHUNK, (self.size - 1) // _CHUNK)
        self._last = last
        start, stop = first * _CHUNK, min((last + 1) * _CHUNK, self.size)
        data = self._patiently(lambda: self._part(start, stop))
        found = {number: data[(number - first) * _CHUNK :][:_CHUNK] for number in range(first, last + 1)}
        self._chunks.update(found)
        while len(self._chunks) * _CHUNK > _KEPT:
            self._chunks.popitem(last=False)
        return {number: found[number] for number in range(first, wanted + 1)}

    def _part(self, start: int, stop: int) -> bytes:
        response = self._ask({"Range": f"bytes={start}-{stop - 1}"})
        if response.status != 206:
            raise self._error(f"gave parts of the file, and answers {response.status} to a further one")
        self._check_same(response)
        if self._place(response) != (start, self.size):
            raise self._error("gives another part than the one that was asked for")
        return self._body(response, stop - start)

    def download(self, target: Path) -> None:
        """All of it into the file `target`; goes on from where an answer ended, where the server gives parts."""
        if self.size is not None and self.size > self.rule.most_bytes:
            raise self._too_large(self.size)
        with target.open("wb") as file:

            def rest() -> None:
                done = file.tell()
                if done and not self.by_parts:
                    file.seek(0)
                    file.truncate()
                    done = 0
                response = self._ask({"Range": f"bytes={done}-"} if done else {})
                self._check_same(response)
                if done and (response.status != 206 or self._place(response) != (done, self.size)):
                    raise self._error("gives another part than the one that was asked for")
                self._body(response, None if self.size is None else self.size - done, into=file.write, before=done)

            self._patiently(rest)

    def close(self) -> None:
        """Ends the connections."""
        self._end()
        self._chunks.clear()

    def _patiently(self, work: Callable[[], _T]) -> _T:
        """`work`, again where it fails in passing."""
        pause = self.rule.pause
        for left in range(self.rule.retries, -1, -1):
            try:
                return work()
            except UserError:
                self._forget()
                raise
            except ssl.SSLCertVerificationError as error:
                self._forget()
                raise self._error(f"its certificate is not trusted ({error.verify_message})") from None
            except (_Passing, OSError, http.client.HTTPException) as error:
                self._forget()
                reason = _reason(error, self.rule.timeout)
                if not left or _is_final(error):
                    tried = f", {self.rule.retries + 1} times" if self.rule.retries and not left else ""
                    raise self._error(f"{reason}{tried}", "try again later; --resume keeps what is finished") from None
                time.sleep(pause)
                pause *= 2
        raise AssertionError

    def _forget(self) -> None:
        """Connections that something went wrong on, and where redirects led."""
        self._end()
        self._final = self._url

    def _end(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _ask(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """The answer, redirects followed. Raises UserError for one that will not change, `_Passing` for others."""
        url = began = self._final
        for _ in range(_MAX_HOPS + 1):
            parts = split_address(url, name=self.name)
            response = self._request(parts, headers)
            if response.status in _REDIRECTS:
                target = urljoin(url, response.getheader("Location") or "")
                self._drop(response)
                check_hop(parts, target, name=self.name)
                url = target
                continue
            if response.status in (200, 206, 416):
                self._final = url
                if response.getheader("Content-Encoding", "identity") not in ("identity", ""):
                    raise self._error("packs the file, though it was asked not to")
                return response
            self._drop(response)
            if response.status in _PASSING or began != self._url:  # where a redirect led may hold for a while only
                raise _Passing(f"answers {response.status} ({response.reason})")
            raise self._refused(response)
        raise self._error(f"redirects more than {_MAX_HOPS} times")

    def _refused(self, response: http.client.HTTPResponse) -> UserError:
        if response.status in (401, 403, 407):
            given = " with the name and password that were given" if self._login else ""
            fix = "https://NAME:PASSWORD@host/…, or a signed address; neither is shown or stored"
            return self._error(f"needs credentials{given} ({response.status})", fix)
        if response.status in (404, 410):
            return self._error(f"no such file ({response.status})", "check the address")
        return self._error(f"answers {response.status} ({response.reason})", "look at it in a browser")

    def _request(self, parts: SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        own = origin_of(parts) == self._origin
        key = origin_of(parts)
        proxy = proxy_for(parts)
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connected(parts, proxy, own=own)
            self._connections[key] = connection
        target = parts._replace(scheme="", netloc="").geturl() or "/"
        if proxy is not None and parts.scheme == "http":
            target = parts.geturl()
        sent = {"User-Agent": f"flyspeck/{VERSION}", "Accept-Encoding": "identity", **headers}
        if own and self._login:
            sent["Authorization"] = self._login
        try:
            connection.request("GET", target, headers=sent)
            self._answer = connection.getresponse()
            return self._answer
        except http.client.InvalidURL:
            raise self._error("no address", "check its letters") from None

    def _connected(self, parts: SplitResult, proxy: SplitResult | None, *, own: bool) -> http.client.HTTPConnection:
        _, host, port = origin_of(parts)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        if proxy is None:
            connection = kind(host, port, timeout=self.rule.timeout)
        else:
            check_literal(host, own=own, name=self.name)
            connection = kind(proxy.hostname or "", proxy.port or 80, timeout=self.rule.timeout)
            if secure:
                connection.set_tunnel(host, port)
        try:
            connection.connect()
            if proxy is None:
                check_peer(connection.sock.getpeername()[0], own=own, name=self.name)
        except BaseException:
            connection.close()
            raise
        return connection

    def _place(self, response: http.client.HTTPResponse) -> tuple[int, int | None]:
        """(first byte, length of the whole file) that a part states."""
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.getheader("Content-Range", "").strip())
        if found is None:
            raise self._error("gives a part of the file without saying which")
        return int(found[1]), None if found[3] == "*" else int(found[3])

    def _check_same(self, response: http.client.HTTPResponse) -> None:
        if _tag(response) != self._tag:
            raise self._error("the file changed while it was read", "run it again when it is at rest, with --resume")

    def _body(
        self,
        response: http.client.HTTPResponse,
        count: int | None,
        *,
        into: Callable[[bytes], object] | None = None,
        before: int = 0,
    ) -> bytes:
        """The answer's `count` bytes (None: to its end). Raises `_Passing` where fewer come, or where they trickle."""
        began, done, pieces = time.monotonic(), 0, []
        stated = response.length
        while count is None or done < count:
            piece = response.read1(_CHUNK if count is None else min(_CHUNK, count - done))
            if not piece:
                break
            done += len(piece)
            self.bytes_read += len(piece)
            if before + done > self.rule.most_bytes:
                raise self._too_large(None)
            pieces.append(piece) if into is None else into(piece)
            if time.monotonic() - began > self.rule.timeout + done / MIN_RATE:
                raise _Passing(f"sends less than {MIN_RATE / 1000:g} kB a second")
        expected = stated if count is None else count
        if expected is not None and done < expected:
            raise _Passing(f"ended early: {before + done} of {before + expected} bytes came")
        self._finish(response)
        return b"".join(pieces)

    def _finish(self, response: http.client.HTTPResponse) -> None:
        """Leaves the connection usable, or ends it where the answer goes on."""
        if response.length == 0:
            response.close()
        elif not response.isclosed() and response.read1(1):
            self._drop(response)

    def _drop(self, response: http.client.HTTPResponse) -> None:
        """Gives up an answer without reading it; its connection with it."""
        response.close()
        self._end()

    def _too_large(self, size: int | None) -> UserError:
        said = "the file is" if size is None else f"{size / 1e6:,.0f} MB are"
        most = self.rule.most_bytes / 1e6
        fix = "download it, or put it up as a cloud optimised GeoTIFF, of which parts are read"
        return self._error(f"{said} over the limit of {most:,.0f} MB for what is fetched whole", fix)

    def _error(self, what: str, fix: str = "") -> UserError:
        return UserError(what, where=self.name, fix=fix)


def _tag(response: http.client.HTTPResponse) -> str:
    return f"{response.getheader('ETag', '')} {response.getheader('Last-Modified', '')}"


def _is_final(error: BaseException) -> bool:
    """Whether trying again cannot help: a name that nobody knows."""
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME


def _reason(error: BaseException, timeout: float) -> str:
    """In words that hold nothing of the address."""
    if isinstance(error, _Passing):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"no answer for {timeout:g} s"
    if isinstance(error, http.client.HTTPException):
        return f"broke off its answer ({type(error).__name__})"
    strerror = getattr(error, "strerror", None)
    return f"cannot be reached ({strerror or type(error).__name__})"
