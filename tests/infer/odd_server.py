"""A local web server, good and bad: the first part of a path says how it behaves, the rest names a file of its folder."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

LOGIN = "Basic " + base64.b64encode(b"anna:s3cret").decode()


class OddServer(ThreadingHTTPServer):
    """`log` holds (path, Range) of every request, `sent` the bytes of all bodies."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.log, self.sent, self.stop = folder, [], 0, threading.Event()
        self.logins: list[str | None] = []
        self.mood: dict[str, int] = {}

    def url(self, path: str) -> str:
        """The address of a path of it."""
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def times(self, kind: str) -> int:
        """How often this was called with `kind`, from 1."""
        self.mood[kind] = self.mood.get(kind, 0) + 1
        return self.mood[kind]

    def handle_error(self, *_: object) -> None:
        """A client that goes away is nothing to speak of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one piece: two would wait for each other
    server: OddServer

    def log_message(self, *_: object) -> None:
        """Nothing on the console."""

    def do_GET(self) -> None:
        server, parts = self.server, urlsplit(self.path)
        kind, _, name = parts.path.strip("/").partition("/")
        server.log.append((self.path, self.headers.get("Range")))
        server.logins.append(self.headers.get("Authorization"))
        if kind == "loop":
            self._head(302, {"Location": self.path, "Content-Length": "0"})
            return
        if kind == "redirect":
            self._head(302, {"Location": parse_qs(parts.query)["to"][0], "Content-Length": "0"})
            return
        if kind in ("404", "403", "500", "410"):
            body = b"sorry!"
            if (self.headers.get("Authorization") or "").startswith("AWS4"):  # as S3 says it, the key in the answer
                code, text = {"404": ("NoSuchKey", "The specified key does not exist.")}.get(
                    kind, ("AccessDenied", "Access Denied")
                )
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message>".encode()
                body += b"<AWSAccessKeyId>AKIDOPEN</AWSAccessKeyId></Error>"
            self._head(int(kind), {"Content-Length": str(len(body))})
            self.wfile.write(body)
            return
        if kind == "busy" and server.times("busy") <= 2:
            self._head(503, {"Content-Length": "0"})
            return
        if kind == "login" and self.headers.get("Authorization") != LOGIN:
            self._head(401, {"Content-Length": "0", "WWW-Authenticate": "Basic"})
            return
        self._file(kind, (server.folder / name).read_bytes())

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _file(self, kind: str, data: bytes) -> None:
        server, total, asked = self.server, len(data), self.headers.get("Range")
        tag = f'"{server.times("tag")}"' if kind == "changing" else '"one"'
        headers = {"ETag": tag}
        status, body = 200, data
        if asked and kind not in ("whole", "chunked", "wholelong"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else total, total)
            status, body = 206, data[start:stop]
            stated = total + 10**15 if kind == "huge" else total
            shown = start + 7 if kind == "elsewhere" and start else start
            headers["Content-Range"] = f"bytes {shown}-{shown + len(body) - 1}/{stated}"
            if start >= total:
                self._head(416, {"Content-Length": "0"})
                return
            if kind == "half" and start > total // 2 and not server.mood.get("healed"):
                self._head(500, {"Content-Length": "0"})
                return
        length = len(body)
        later = asked is not None and not asked.startswith("bytes=0-6")
        if kind == "long" or (kind == "wholelong"):
            length += 1000
        if kind == "packed":
            headers["Content-Encoding"] = "gzip"
        if kind == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            self._head(200, headers)
            for k in range(0, total, 5000):
                piece = data[k : k + 5000]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
            return
        self._head(status, {**headers, "Content-Length": str(length)})
        early = kind == "early" and later
        early = early or (kind == "early-once" and later and server.times(f"{kind}{asked}") == 1)
        early = early or (kind == "early-twice" and server.times(kind) in (2, 3))
        if early:
            body = body[: len(body) // 2]
            self.close_connection = True
        if kind in ("long", "wholelong"):
            self.close_connection = True
        if kind == "stall" and later:
            self.wfile.write(body[:100])
            self.wfile.flush()
            server.stop.wait(20)
            return
        if kind == "trickle" and later:
            for k in range(len(body)):
                if server.stop.is_set():
                    return
                self.wfile.write(body[k : k + 1])
                self.wfile.flush()
                time.sleep(0.02)
        self.wfile.write(body)
        server.sent += len(body)


@contextmanager
def odd_server(folder: Path) -> Iterator[OddServer]:
    """The server over `folder`, as long as the block lasts."""
    server = OddServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
