"""The optional package `av` (PyAV, which holds FFmpeg): loaded when a video is read or written, and not before."""

from __future__ import annotations

from typing import Any

from flyspeck.errors import missing_extra

# What a file may be. FFmpeg knows formats that read other files or the network (playlists, scripts) and one that takes any text
# for a video; a file that calls itself a video is read as one of these or not at all.
_FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,gif,ogg,mxf,h264,hevc,av1,obu,ivf,m4v,mjpeg,"
    "dv,nut,apng,wtv,swf,rm,vc1,yuv4mpegpipe,live_flv"
)


def pyav() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError:
        raise missing_extra("av", "video") from None
    return av


def file_options() -> dict[str, str]:
    """Options under which FFmpeg reads a local file: nothing but that file, and as a video only."""
    return {"format_whitelist": _FILE_FORMATS, "protocol_whitelist": "file"}


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover image of a sound file; None where there is none."""
    return next((s for s in container.streams.video if "attached_pic" not in _disposition(s)), None)


def _disposition(stream: Any) -> str:
    """Names of what a stream is for."""
    found = stream.disposition
    return str(getattr(found, "name", None) or found)
