"""Image files decoded in one piece, with which of their pixels are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from flyspeck.data.bands import PixelRule, ranges_text
from flyspeck.data.headers import ImageHeader, read_header
from flyspeck.data.images import opened, read_image, tiff_header
from flyspeck.data.nodata import is_nodata
from flyspeck.data.orientation import upright
from flyspeck.data.tiff import TiffFault, TiffHeader, read_mask
from flyspeck.errors import UserError, missing_extra
from flyspeck.infer.found_range import is_sampled, measured_highest, range_of
from flyspeck.infer.windows import ArraySource, OpenOptions, Source


def open_whole(path: Path, options: OpenOptions, *, name: str) -> Source:
    """The image in a file, decoded now. Raises UserError."""
    header, tags = read_header(path, decoded=options.max_pixels), tiff_header(path)
    # What alpha makes the number of is read with it; grey and colour are the detector's to convert, window by window.
    whole = header.bands + 1 if header.alpha and header.bands + 1 == options.channels else None
    try:
        pixels = read_image(path, channels=whole, bands=options.bands, max_pixels=options.max_pixels)
    except UserError as error:
        raise UserError(error.what, where=name, fix=error.fix) from error
    there = _there(path, pixels, header, tags, options, laid=whole is None)
    wide = pixels.dtype == np.uint16 and options.find_range and options.value_range is None
    source = in_memory(pixels, options, name=name, there=there, stated=header.value_range if wide else None)
    notes = [source.note] * bool(source.note)
    if header.alpha and whole is None and options.bands is None:
        notes.append("transparency laid on black, and what is wholly transparent counts as missing")
    if header.pages > 1:
        notes.append(f"the first of its {header.pages} frames or pages is read: write the others to files of their own")
    source.note = ", ".join(notes)
    return source


def in_memory(
    pixels: np.ndarray,
    options: OpenOptions,
    *,
    name: str,
    there: np.ndarray | None = None,
    stated: tuple[float, float] | None = None,
) -> ArraySource:
    """Pixels `(H, W, C)` whose bands are chosen, as a source: 16-bit values for a detector of 8 bits as `found_rule` says.

    `there` (H, W) bool says which pixels there are, `stated` the range of values by the file's own word. Raises UserError.
    """
    rule, said = found_rule(pixels, options, there=there, stated=stated)
    notes = [said] if said else []
    cut = not said and options.channels is not None and options.bits == 8 and options.value_range is None
    cut = cut and pixels.dtype == np.uint16 and pixels.shape[2] == 3
    if cut:  # a detector that learnt from 8 bits
        pixels = (pixels >> 8).astype(np.uint8)
        notes.append("colours of 16 bits cut to 8, those of the training")
    source = ArraySource(pixels, name=name, rule=rule, there=there)
    source.note = ", ".join([source.note] * bool(source.note and not said) + notes)
    return source


def found_rule(
    pixels: np.ndarray,
    options: OpenOptions,
    *,
    there: np.ndarray | None = None,
    stated: tuple[float, float] | None = None,
) -> tuple[PixelRule, str]:
    """The rule for pixels `(H, W, C)` whose bands are chosen; with the range of 16-bit values, and how it was found, where the
    options ask for one (`flyspeck.infer.found_range`).
    """
    rule = replace(options.rule, bands=None)
    given = rule.value_range is not None and rule.is_for(pixels.dtype)
    if given or pixels.dtype != np.uint16 or not options.find_range:
        return rule, ""

    def highest(x1: int, y1: int, x2: int, y2: int) -> float:
        part = pixels[y1:y2, x1:x2]
        kept = part if there is None else part[there[y1:y2, x1:x2]]
        return float(kept.max()) if kept.size else float("nan")

    size = (pixels.shape[0], pixels.shape[1])
    bits = None if stated is None else int(stated[1]).bit_length()
    found, said = range_of(bits, None if bits else measured_highest(size, highest), sampled=is_sampled(size))
    if found is None:
        return rule, ""
    return PixelRule(value_range=found, of="uint16", bits=8), f"uint16 {ranges_text(found)} as black to white ({said})"


def _there(
    path: Path, pixels: np.ndarray, header: ImageHeader, tags: TiffHeader | None, options: OpenOptions, *, laid: bool
) -> np.ndarray | None:
    """Which pixels the file has `(H, W)` bool, by its alpha, "no data" and mask page; None where nothing says otherwise."""
    parts: list[np.ndarray] = []
    if header.alpha and laid:
        number = header.bands + 1 if tags is None or tags.alpha is None else tags.alpha + 1
        if options.bands is None or number not in options.bands:
            planes = read_image(path, channels=header.bands + 1, max_pixels=options.max_pixels)
            parts.append(planes[:, :, -1] > 0)
    if tags is not None and tags.mask_page is not None:
        parts.append(mask_in(path, tags))
    if tags is not None and tags.nodata is not None and pixels.dtype.kind in "ui":
        parts.append(~_is_nodata(path, pixels, tags))
    if not parts:
        return None
    there = np.logical_and.reduce(parts)
    return None if there.all() else there


def mask_in(path: Path, tags: TiffHeader) -> np.ndarray:
    """The mask page of a TIFF that has one, `(H, W)` bool, upright. Raises UserError."""
    assert tags.mask_page is not None
    try:
        return upright(read_mask(path, tags.mask_page)[:, :, None], tags.orientation)[:, :, 0]
    except TiffFault as fault:
        raise UserError(
            "it has a mask, which takes tifffile to read", where=path, fix=missing_extra(fault.package, "tiff").fix
        ) from None


def _is_nodata(path: Path, pixels: np.ndarray, tags: TiffHeader) -> np.ndarray:
    """Pixels `(H, W)` of which all bands have the "no data" value; of a palette, whose number in it has."""
    assert tags.nodata is not None
    if "palette" in tags.meanings:
        with opened(path) as image:
            numbers = np.array(image) if image.mode == "P" else None
            if tags.palette is not None:
                numbers = tags.numbers(np.array(image.convert("L") if image.mode == "1" else image))
        if numbers is not None:
            return upright(is_nodata(numbers, tags.nodata)[:, :, None], tags.orientation)[:, :, 0]
    value = tags.nodata
    if tags.inverted and pixels.dtype.kind == "u":  # the values were turned around
        top = np.iinfo(pixels.dtype).max
        value = float(top if tags.value_range is None else tags.value_range[1]) - value
    return np.asarray(is_nodata(pixels, value).all(axis=2))
