"""One rule by which image files are opened, from what they are and what lies beside them.

==========================================  ============================================================================
file                                        is read
==========================================  ============================================================================
JPEG 2000, VRT                              by windows through GDAL
TIFF with a place on Earth, a mask or       by windows through GDAL, or (without a place) through tifffile or pyvips
"no data", or too large for one piece
any image with a world file, `.aux.xml`     by windows through GDAL, if that tells a place or a mask
or `.msk` beside it
any other image                             whole, by Pillow or tifffile; over the limit by windows through pyvips
==========================================  ============================================================================

Where GDAL is not installed, nothing that it would have told is left out in silence: a mask beside the file, a place where results
are written in map coordinates, and bands that the other readers would cut are an error that names the extra.
"""

from __future__ import annotations

import struct
from pathlib import Path

from flyspeck.data.images import check_claims, opened, read_size, tiff_header
from flyspeck.data.orientation import exif_orientation
from flyspeck.errors import UserError, install, missing_extra
from flyspeck.infer import raster
from flyspeck.infer.georeference import mask_beside, metadata_beside, signs_of_place, world_files
from flyspeck.infer.kinds import BY_WINDOWS, driver_of, root_of
from flyspeck.infer.pillow_windows import open_large
from flyspeck.infer.references import check_references
from flyspeck.infer.tiff_windows import TifffileSource
from flyspeck.infer.vips_windows import VipsSource
from flyspeck.infer.whole import open_whole
from flyspeck.infer.windows import OpenOptions, Source

_ALPHA = "<ColorInterp>Alpha<"
_BOMB = 100  # pixels a byte; photographs have 1 to 10, blank scans some tens
EMPTY = 1000
"""Pixels a byte of a raster that is read by windows, whose empty parts may be large; deflate packs no more."""
_ONE_PIECE = 50_000_000  # pixels; larger TIFFs are read by windows where an extra is there to do it


def open_file(path: Path, options: OpenOptions, *, name: str) -> Source:
    """An image file. Raises UserError."""
    if not path.is_file():
        raise UserError("no such image file", where=path, fix="check the path")
    try:
        driver = driver_of(path)
    except OSError as error:
        raise UserError(f"the image file may not be read ({error.strerror})", where=path) from error
    if raster.has_rasterio():
        source = _by_gdal(path, driver, options, name)
        if source is not None:
            return source
    else:
        _refuse_without_gdal(path, driver, options)
    height, width = read_size(path)
    pixels = height * width
    if driver == "GTiff" and pixels > _ONE_PIECE and raster.has_tifffile():
        _refuse_bomb(path, pixels, options, EMPTY)
        _refuse_pieces(path, options)
        return TifffileSource(path, options, name=name)
    if options.max_pixels is not None and pixels > options.max_pixels:
        return _by_vips(path, driver, options, name, pixels)
    large = open_large(path, options, name=name) if pixels > _ONE_PIECE else None
    return large or open_whole(path, options, name=name)


def _by_gdal(path: Path, driver: str, options: OpenOptions, name: str) -> Source | None:
    """A raster by windows, or None for an image of which GDAL knows no more than other readers."""
    if not driver:
        root = _root(path)
        if not root:
            return None
        if not options.allow_references:
            raise UserError(
                f"a text that begins with <{root}>, no image",
                where=path,
                fix="--allow-references lets GDAL follow it to other files and computers, if you trust it",
            )
        return raster.RasterioSource(path, options, name=name)
    if driver not in BY_WINDOWS and not (world_files(path) or metadata_beside(path) or mask_beside(path)):
        return None
    if not options.allow_references:
        check_references(path, driver)
    if driver == "GTiff":
        _refuse_bomb(path, _pixels(path), options, EMPTY)
    source = raster.RasterioSource(path, options, name=name, driver=driver)
    large = source.size[0] * source.size[1] * max(1, source.bands / 4) > _ONE_PIECE
    told = source.geo is not None or source.lost or source.masked or _transparent_beside(path)
    if not (told or large or driver in BY_WINDOWS[1:] or (not source.plain and not raster.has_tifffile())):
        source.close()
        return None
    check_piece(source, options, where=path)
    if _orientation(path, driver) != 1:  # its place on Earth speaks of the pixels as they are stored
        said = "its orientation tag is not followed: boxes are those of the pixels as they are stored"
        source.remark = f"{source.remark}; {said}" if source.remark else said
    return source


def _transparent_beside(path: Path) -> bool:
    """Whether only GDAL's file beside it says which band is transparency."""
    beside = metadata_beside(path)
    return beside is not None and _ALPHA in beside.read_text(encoding="utf-8", errors="replace")


def _orientation(path: Path, driver: str) -> int:
    """Of an image that other readers would turn upright."""
    if driver == "GTiff":
        header = tiff_header(path)
        return 1 if header is None else header.orientation
    if driver not in ("JPEG", "PNG"):
        return 1
    with opened(path) as image:
        return exif_orientation(image)


def _root(path: Path) -> str:
    with path.open("rb") as file:
        return root_of(file.read(2048))


def _pixels(path: Path) -> int:
    """Of a TIFF; raises UserError for one that does not hold what it claims."""
    header = tiff_header(path)
    if header is None:
        return 0
    check_claims(header, path)
    return header.size[0] * header.size[1]


def check_piece(source: raster.RasterioSource, options: OpenOptions, *, where: Path | str) -> None:
    """Raises UserError, and closes the source, where its tiles or strips are more than is decoded in one piece."""
    if options.max_pixels is not None and source.piece > options.max_pixels:
        source.close()
        raise _too_large_a_piece(where, source.piece, options)


def _refuse_bomb(path: Path, pixels: int, options: OpenOptions, most: int) -> None:
    """Raises UserError for a file of more pixels than are decoded in one piece, and than `most` a byte."""
    size = path.stat().st_size
    if options.max_pixels is not None and pixels > options.max_pixels and pixels > most * size:
        raise UserError(
            f"{pixels / 1e6:,.0f} megapixels in {size / 1e6:.1f} MB, more than an image can be packed",
            where=path,
            fix="raise the limit (--max-megapixels) if the file is to be trusted",
        )


def _refuse_pieces(path: Path, options: OpenOptions) -> None:
    header = tiff_header(path)
    if header is not None and options.max_pixels is not None and header.piece > options.max_pixels:
        raise _too_large_a_piece(path, header.piece, options)


def _too_large_a_piece(path: Path | str, piece: int, options: OpenOptions) -> UserError:
    return UserError(
        f"its tiles or strips of {piece / 1e6:.0f} megapixels are over the limit of {(options.max_pixels or 0) / 1e6:g} for"
        " one piece",
        where=path,
        fix="write it in smaller tiles (gdal_translate -co TILED=YES), or raise --max-megapixels",
    )


def _by_vips(path: Path, driver: str, options: OpenOptions, name: str, pixels: int) -> Source:
    if raster.has_pyvips():
        _refuse_bomb(path, pixels, options, _BOMB)
        return VipsSource(path, options, name=name)
    extra = "geo" if driver == "GTiff" else "vips"
    raise UserError(
        f"{pixels / 1e6:.0f} megapixels are over the limit of {(options.max_pixels or 0) / 1e6:g} for one piece",
        where=path,
        fix=f"{install(extra)} to read it by windows, or raise the limit if the file is to be trusted",
    )


def _refuse_without_gdal(path: Path, driver: str, options: OpenOptions) -> None:
    """Raises UserError where the other readers would leave out what GDAL reads of a file."""
    if driver == "VRT":
        raise missing_extra("rasterio", "geo")
    mask, beside = mask_beside(path), metadata_beside(path)
    lost = "" if mask is None else f"its mask {mask.name}"
    if beside is not None:
        text = beside.read_text(encoding="utf-8", errors="replace")
        lost = lost or (f'the "no data" value in {beside.name}' if "<NoDataValue" in text else "")
        lost = lost or (f"the transparency that {beside.name} names" if _transparent_beside(path) else "")
    if options.place:
        sign = signs_of_place(path)
        lost = lost or (
            f"{sign}, which say{'' if sign.startswith('its') else 's'} where it lies on a map" if sign else ""
        )
    if lost:
        raise UserError(f"{lost}: not read without GDAL", where=path, fix=install("geo"))
    if driver == "JP2OpenJPEG":
        bands, bits = _jpeg2000(path)
        if bands not in (0, 1, 3, 4) or (bits > 8 and bands > 1):
            raise UserError(
                f"a JPEG 2000 of {bands} bands of {bits} bits: not read without GDAL", where=path, fix=install("geo")
            )


def _jpeg2000(path: Path) -> tuple[int, int]:
    """Components and bits of the first one, by the SIZ marker of its code stream (ISO 15444-1, A.5.1); zeros without one."""
    with path.open("rb") as file:
        start = file.read(1 << 20)
    at = start.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(start) < at + 43:
        return 0, 0
    (count,) = struct.unpack(">H", start[at + 40 : at + 42])
    return count, (start[at + 42] & 0x7F) + 1
