"""Transparent images on black, so that colours hidden under transparency never reach a network."""

from __future__ import annotations

from PIL import Image

_STRIP = 4_000_000  # pixels


def on_black(image: Image.Image) -> Image.Image:
    """An image with any kind of transparency, composited onto black; grey stays grey. By strips, which take little memory."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    found = Image.new(mode, image.size)
    rows = max(1, _STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        layer = straight(image.crop((0, top, image.width, min(image.height, top + rows)))).convert("RGBA")
        black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
        found.paste(Image.alpha_composite(black, layer).convert(mode), (0, top))
    return found


def straight(image: Image.Image) -> Image.Image:
    """Grey that was multiplied by its alpha, without that: Pillow converts it to nothing else."""
    return image.convert("LA") if image.mode == "La" else image
