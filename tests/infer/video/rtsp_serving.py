"""A small RTSP server for tests: H.264 over RTP, interleaved on the RTSP connection, in real time; FFmpeg packs the RTP.

Each frame shows its number, in blocks that no codec loses, and the server remembers when it sent it.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np

SIZE = (96, 160)
_BITS, _BLOCK = 16, 8
_SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
_SDP += "a=fmtp:96 packetization-mode=1\r\na=control:track0\r\n"


def numbered(number: int) -> np.ndarray:
    """A frame (H, W, 3) that shows `number` as a row of black and white blocks, and a bright spot that moves."""
    pixels = np.full((*SIZE, 3), 60, np.uint8)
    for bit in range(_BITS):
        pixels[:_BLOCK, bit * _BLOCK : (bit + 1) * _BLOCK] = 255 * (number >> bit & 1)
    x = 10 + number % 100
    pixels[40:46, x : x + 6] = 200
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The number that a frame shows."""
    middle = pixels[_BLOCK // 2, _BLOCK // 2 : _BITS * _BLOCK : _BLOCK, 0]
    return sum(1 << bit for bit, value in enumerate(middle.tolist()) if value > 128)


class RtspServer:
    """Serves `frames` frames from where it was to each client that comes, then ends the stream; a context manager.

    `drop_after`: break the first connection, without a word, after so many frames. `stall_after`: send nothing more after so many
    frames in all, but keep the connections.
    """

    def __init__(
        self, *, rate: int = 25, frames: int = 10_000, drop_after: int | None = None, stall_after: int | None = None
    ) -> None:
        self.rate, self.frames, self.drop_after, self.stall_after = rate, frames, drop_after, stall_after
        self.sent: dict[int, float] = {}
        """`time.monotonic()` at which each frame went out."""
        self.clients = 0
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.port = self._socket.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        """Where it serves; any user and password are taken."""
        return f"rtsp://127.0.0.1:{self.port}/cam"

    def __enter__(self) -> RtspServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self._socket.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._socket.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(0.2)
            text = b""
            while not self._stop.is_set():
                try:
                    part = client.recv(4096)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not part:
                    return
                text += part
                while b"\r\n\r\n" in text:
                    request, text = text.split(b"\r\n\r\n", 1)
                    if self._answer(client, request.decode("latin1")):
                        self.clients += 1
                        self._play(client)
                        return

    def _answer(self, client: socket.socket, request: str) -> bool:
        """Whether the client asks for frames now."""
        verb = request.split(" ", 1)[0]
        sequence = next(line.split(":")[1].strip() for line in request.splitlines() if line.lower().startswith("cseq"))
        head, body = f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\n", ""
        if verb == "OPTIONS":
            head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif verb == "DESCRIBE":
            body = _SDP
            head += f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\nContent-Length: {len(body)}\r\n"
        elif verb == "SETUP":
            head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        else:
            head += "Session: 1\r\n"
        client.sendall((head + "\r\n" + body).encode())
        return verb == "PLAY"

    def _play(self, client: socket.socket) -> None:
        import av

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rtp:
            rtp.bind(("127.0.0.1", 0))
            rtp.setblocking(False)
            port = rtp.getsockname()[1]
            with av.open(f"rtp://127.0.0.1:{port}?rtcpport={port}&pkt_size=1200", "w", format="rtp") as out:
                stream: Any = out.add_stream("libx264", rate=self.rate)
                stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
                stream.codec_context.max_b_frames = 0
                stream.options = {
                    "tune": "zerolatency",
                    "preset": "ultrafast",
                    "g": "10",
                    "x264-params": "repeat-headers=1",
                }
                self._frames(client, rtp, out, stream)

    def _frames(self, client: socket.socket, rtp: socket.socket, out: Any, stream: Any) -> None:
        import av

        begun, first, count = time.monotonic(), len(self.sent), 0
        while not self._stop.is_set() and first + count < self.frames:
            number = first + count
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, self.rate)
            out.mux(stream.encode(frame))
            self.sent[number] = time.monotonic()
            try:
                self._relay(client, rtp)
            except OSError:
                return  # the client has gone
            count += 1
            if self.clients == 1 and count == self.drop_after:
                client.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )  # as when a cable is drawn
                return
            if self.stall_after is not None and first + count >= self.stall_after:
                self._stop.wait()
                return
            time.sleep(max(0.0, begun + count / self.rate - time.monotonic()))

    def _relay(self, client: socket.socket, rtp: socket.socket) -> None:
        """Pass on what FFmpeg packed: `$`, the channel, the length, the packet."""
        while True:
            try:
                packet = rtp.recv(65_536)
            except BlockingIOError:
                return
            if not 200 <= packet[1] <= 204:  # reports of the sender go to the same port here
                client.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
