"""Large grey and colour images as Pillow unpacked them: windows are taken out of that, no array of the whole image is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from flyspeck.data.headers import read_header
from flyspeck.data.images import check_bands, opened
from flyspeck.data.orientation import exif_orientation, png_orientation
from flyspeck.errors import UserError
from flyspeck.infer.missing import shown
from flyspeck.infer.windows import OpenOptions, Source


class PillowSource(Source):
    """An upright image of 8 bits, without alpha: 1 byte a pixel of grey, 4 of colour, where an array takes 3 more on the way."""

    def __init__(self, image: Image.Image, options: OpenOptions, *, name: str) -> None:
        self.name, self.size = name, (image.height, image.width)
        self._image: Image.Image | None = image
        self._chosen = None if options.bands is None else [band - 1 for band in options.bands]
        count = len(image.getbands())
        if options.bands is not None:
            check_bands(options.bands, count)
        self.bands = count if options.bands is None else len(options.bands)
        self._rule = replace(options.rule, bands=None)
        if self._rule.value_range is not None and self._rule.is_for(np.dtype(np.uint8)):
            self.value_range = self._rule.value_range
            self.note = f"uint8, {self._rule.text}"

    def window(
        self, x1: int, y1: int, x2: int, y2: int, out: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """See `Source.window`."""
        if self._image is None:
            raise ValueError(f"{self.name} is closed")
        values = np.array(self._image.crop((x1, y1, x2, y2))).reshape(y2 - y1, x2 - x1, -1)
        return shown(values if self._chosen is None else values[:, :, self._chosen], self._rule, None, out)

    def close(self) -> None:
        """See `Source.close`."""
        self._image = None


def open_large(path: Path, options: OpenOptions, *, name: str) -> PillowSource | None:
    """The image, if Pillow holds it as it is read here: grey or colour of 8 bits, upright, one frame, nothing transparent.

    Raises UserError for a file that is broken, or lacks a band.
    """
    try:
        with opened(path, max_pixels=options.max_pixels) as image:
            if image.mode not in ("L", "RGB") or image.format not in ("JPEG", "PNG") or image.has_transparency_data:
                return None
            turned = png_orientation(image, path) if image.format == "PNG" else exif_orientation(image)
            if turned != 1 or read_header(path).pages > 1:
                return None
            image.load()
        return PillowSource(image, options, name=name)
    except UserError as error:
        raise UserError(error.what, where=name, fix=error.fix) from error
