"""Draws the image of the README: a large generated scene, and what stands in it, enlarged.

    python docs/draw_readme_image.py            # docs/large_scene.jpg

The boxes are the scene's own annotations, not detections. The same image comes out every time, up to the versions of NumPy and
Pillow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flyspeck.data.scenes import CLASSES, Scene, generate_scene
from flyspeck.drawing import COLOURS

TARGET = Path(__file__).parent / "large_scene.jpg"
SEED, HEIGHT, WIDTH = 5, 1500, 3000
SHOWN, INSETS, ENLARGED, GAP = 1500, 6, 6, 10
PAPER, INK = (255, 255, 255), (20, 20, 20)


def spread_objects(scene: Scene, number: int) -> list[int]:
    """Rows of objects far from each other, the smallest of each class first."""
    size = np.sqrt((scene.boxes[:, 2] - scene.boxes[:, 0]) * (scene.boxes[:, 3] - scene.boxes[:, 1]))
    centre = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    whole = ((centre > 30) & (centre < [WIDTH - 30, HEIGHT - 30])).all(1)
    good = np.flatnonzero(whole & ~scene.ignore & (scene.labels >= 0) & (size >= 4) & (size <= 26))
    chosen = [int(good[np.argmin(np.abs(size[good] - 8))])]
    while len(chosen) < min(number, len(good)):
        gap = np.linalg.norm(centre[good][:, None] - centre[chosen][None], axis=-1).min(1)
        rare = np.array([sum(scene.labels[c] == scene.labels[g] for c in chosen) for g in good])
        chosen.append(int(good[np.argmax(gap - 400 * rare)]))
    return sorted(chosen, key=lambda row: centre[row, 0])


def draw() -> Image.Image:
    """The scene above, its insets below."""
    scene = generate_scene(SEED, height=HEIGHT, width=WIDTH, kind="road", density=1.0)
    ratio = SHOWN / WIDTH
    above = Image.fromarray(scene.pixels).resize((SHOWN, round(HEIGHT * ratio)), Image.Resampling.LANCZOS)
    side = (SHOWN - GAP * (INSETS - 1)) // INSETS
    page = Image.new("RGB", (SHOWN, above.height + GAP + side + 24), PAPER)
    page.paste(above, (0, 0))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for box, label, ignored in zip(scene.boxes * ratio, scene.labels, scene.ignore, strict=True):
        if not ignored and label >= 0:
            pen.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), outline=COLOURS[int(label)])
    window = side // ENLARGED
    for place, row in enumerate(spread_objects(scene, INSETS)):
        box = scene.boxes[row]
        x = int(np.clip((box[0] + box[2] - window) / 2, 0, WIDTH - window))
        y = int(np.clip((box[1] + box[3] - window) / 2, 0, HEIGHT - window))
        left, top = place * (side + GAP), above.height + GAP
        crop = Image.fromarray(scene.pixels[y : y + window, x : x + window]).resize(
            (side, side), Image.Resampling.NEAREST
        )
        page.paste(crop, (left, top))
        zoom, colour = side / window, COLOURS[int(scene.labels[row])]
        inner = [
            (box[0] - x) * zoom + left,
            (box[1] - y) * zoom + top,
            (box[2] - x) * zoom + left,
            (box[3] - y) * zoom + top,
        ]
        pen.rectangle((inner[0] - 4, inner[1] - 4, inner[2] + 4, inner[3] + 4), outline=colour, width=2)
        outer = [x * ratio, y * ratio, (x + window) * ratio, (y + window) * ratio]
        pen.rectangle(outer, outline=PAPER, width=1)
        pen.line(((outer[0] + outer[2]) / 2, outer[3], left + side / 2, top), fill=PAPER, width=1)
        size = ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
        pen.text((left, top + side + 4), f"{CLASSES[int(scene.labels[row])]}, {size:.0f} px", fill=INK, font=font)
    return page


if __name__ == "__main__":
    draw().save(TARGET, quality=80, optimize=True, progressive=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e3:.0f} KB")
