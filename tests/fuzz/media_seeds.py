"""A small sound image, raster and video of every kind, and classification sets."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from elsewhere import mosaic
from PIL import Image


def _pixels(bands: int = 3, kind: Any = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(7)
    found = rng.integers(0, 250, (30, 40, bands)).astype(kind)
    return found[:, :, 0] if bands == 1 else found


def _saved(kind: str, image: Image.Image, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **more)
    return stream.getvalue()


def images() -> dict[str, bytes]:
    """By file name, whatever can be written here."""
    colour, grey = Image.fromarray(_pixels()), Image.fromarray(_pixels(1))
    palette = colour.convert("P")
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "grey.png": _saved("PNG", grey),
        "colour.png": _saved("PNG", colour),
        "wide.png": _saved("PNG", Image.fromarray(_pixels(1, np.uint16))),
        "palette.png": _saved("PNG", palette, transparency=3),
        "alpha.png": _saved("PNG", colour.convert("RGBA")),
        "turned.jpg": _saved("JPEG", colour, exif=exif),
        "progressive.jpg": _saved("JPEG", colour, progressive=True),
        "cmyk.jpg": _saved("JPEG", colour.convert("CMYK")),
        "a.webp": _saved("WEBP", colour, lossless=True),
        "a.bmp": _saved("BMP", colour),
        "a.gif": _saved("GIF", palette, save_all=True, append_images=[palette], transparency=1),
        "a.jp2": _saved("JPEG2000", colour),
        "a.ppm": _saved("PPM", colour),
        "plain.pgm": b"P2\n3 2\n255\n1 2 3\n4 5 6\n",
        "a.avif": _saved("AVIF", colour),
        "plain.tif": _saved("TIFF", colour),
        "lzw.tif": _saved("TIFF", colour, compression="tiff_lzw"),
        "float.tif": _saved("TIFF", Image.fromarray(_pixels(1, np.float32))),
    }
    stream = io.BytesIO()
    np.save(stream, _pixels(4, np.uint16))
    found["a.npy"] = stream.getvalue()
    try:
        import tifffile

        for name, more in {
            "bands.tif": {"planarconfig": "contig"},
            "planes.tif": {"planarconfig": "separate"},
            "tiled.tif": {"tile": (16, 16), "compression": "zlib", "predictor": True},
        }.items():
            stream = io.BytesIO()
            shaped = np.moveaxis(_pixels(5, np.uint16), 2, 0) if "separate" in more.values() else _pixels(5, np.uint16)
            tifffile.imwrite(stream, shaped, photometric="minisblack", **more)
            found[name] = stream.getvalue()
        import imagecodecs

        found["a.jxl"] = imagecodecs.jpegxl_encode(_pixels())
    except ImportError:
        pass
    return found


def rasters() -> dict[str, Callable[[Path], Sequence[str]]]:
    """By name: what writes one, `main.tif` or `main.vrt` with what lies beside it."""
    try:
        import rasterio  # noqa: F401
        from spots import geotiff  # noqa: F401
    except ImportError:
        return {}
    place, crs = (0.1, 0, 500000, 0, -0.1, 4000000), "EPSG:32633"

    def plain(folder: Path) -> Sequence[str]:
        from spots import geotiff

        geotiff(folder / "main.tif", _pixels(4), place, crs, nodata=0)
        return ["main.tif"]

    def tiled(folder: Path) -> Sequence[str]:
        from spots import geotiff

        big = np.tile(_pixels(3, np.uint16), (5, 5, 1))
        geotiff(folder / "main.tif", big, place, crs, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
        return ["main.tif"]

    def vrt(folder: Path) -> Sequence[str]:
        from spots import geotiff

        geotiff(folder / "part.tif", _pixels(1), place, crs)
        (folder / "main.vrt").write_text(mosaic("part.tif", relative=True))
        return ["main.vrt"]

    def beside(folder: Path) -> Sequence[str]:
        Image.fromarray(_pixels(1)).save(folder / "main.png")
        (folder / "main.pgw").write_text("0.1\n0\n0\n-0.1\n500000\n4000000\n")
        (folder / "main.png.aux.xml").write_text(
            "<PAMDataset><SRS>EPSG:32633</SRS><PAMRasterBand band='1'><NoDataValue>0</NoDataValue></PAMRasterBand>"
            "</PAMDataset>"
        )
        return ["main.pgw", "main.png.aux.xml"]

    def of_another_kind(folder: Path) -> Sequence[str]:
        """A VRT that is called as a TIFF."""
        vrt(folder)
        (folder / "main.vrt").rename(folder / "main.tif")
        return ["main.tif", "part.tif"]

    def overviews(folder: Path) -> Sequence[str]:
        """What GDAL reads along with it: smaller ones, a mask, and where else there are some."""
        from spots import geotiff

        geotiff(folder / "main.tif", _pixels(3), place, crs)
        geotiff(folder / "main.tif.ovr", _pixels(3)[::2, ::2], place, crs)
        geotiff(folder / "main.tif.msk", _pixels(1), place, crs)
        shutil.copyfile(folder / "main.tif.ovr", folder / "other.tif")
        (folder / "main.tif.aux.xml").write_text(
            '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">other.tif</MDI></Metadata></PAMDataset>'
        )
        return ["main.tif.aux.xml", "main.tif.msk", "main.tif.ovr"]

    made = {"plain": plain, "tiled": tiled, "vrt": vrt, "beside": beside}
    return {**made, "of another kind": of_another_kind, "overviews": overviews}


def videos() -> dict[str, Callable[[Path], Sequence[str]]]:
    """By ending: what writes `video.…`."""
    try:
        from video_making import moving, write
    except ImportError:
        return {}

    def maker(ending: str) -> Callable[[Path], Sequence[str]]:
        def make(folder: Path) -> Sequence[str]:
            write(folder / f"video{ending}", moving(8))
            return [f"video{ending}"]

        return make

    return {ending: maker(ending) for ending in (".mp4", ".avi", ".mkv", ".gif", ".ts")}


def npz_set() -> dict[str, bytes]:
    """Packed images with labels, as `flyspeck` packs them."""
    packed = [_saved("PNG", Image.fromarray(_pixels()[:8, :8])) for _ in range(3)]
    offsets = np.cumsum([0, *map(len, packed)])
    data = np.frombuffer(b"".join(packed), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, data=data, offsets=offsets, labels=np.array([0, 1, 0]), classes=np.array(["a", "b"]))
    return {"train.npz": stream.getvalue()}


def pickled_set() -> dict[str, bytes]:
    """CIFAR-10's layout, two images a batch."""
    planes = np.random.default_rng(0).integers(0, 255, (2, 3072), np.uint8)
    batch = pickle.dumps({b"data": planes, b"labels": [0, 1]}, protocol=2)
    names = pickle.dumps({b"label_names": [b"a", b"b"]}, protocol=2)
    return {**{f"data_batch_{n}": batch for n in range(1, 6)}, "test_batch": batch, "batches.meta": names}
