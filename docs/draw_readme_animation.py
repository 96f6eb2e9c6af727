"""Draws the animation of the README from a demo that has run: its terminal, the large scene tile by tile, some of what was found.

    python3 bootstrap.py demo 2>&1 | tee demo.log
    python docs/draw_readme_animation.py flyspeck-demo demo.log       # docs/demo.webp

All that is shown is of that demo: its lines, its detections of the score where F1 was best on the unseen scenes, its AP50. Only
time is shortened. The boxes are detections, right or wrong; of several classes in one place the best.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flyspeck.data.readers import read_annotations
from flyspeck.drawing import COLOURS
from flyspeck.infer.one_class import best_of_each_place
from flyspeck.report import read_run
from flyspeck.report.diagnosis import diagnose
from flyspeck.types import Detections

TARGET = Path(__file__).parent / "demo.webp"
WIDTH, HEIGHT, FRAME_MS = 800, 480, 125
TERMINAL_FRAMES, SWEEP_FRAMES, ZOOM_FRAMES, STILL_FRAMES, END_FRAMES = 44, 56, 20, 20, 20
TILE, ENLARGED, SMALL = (512, 640), 5, 32
PAPER, INK, GREY = (16, 20, 26), (230, 232, 235), (140, 150, 160)


@dataclass(frozen=True)
class Story:
    """What there is to show."""

    lines: list[str]
    image: Image.Image
    boxes: np.ndarray
    """(N, 4) xyxy pixels of the large image."""
    labels: np.ndarray
    summary: str


def read_story(demo: Path, log: Path) -> Story:
    """The demo's folder and what it printed."""
    run, large = read_run(demo / "run"), read_annotations(demo / "large" / "annotations.json")
    score = diagnose(run).working_score
    rows = json.loads((demo / "large" / "detections.json").read_text(encoding="utf-8"))
    kept = [row for row in rows if row["score"] >= score]
    boxes = np.array([row["bbox"] for row in kept], dtype=float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = {number: index for index, number in enumerate(sorted({row["category_id"] for row in rows}))}
    height, width = (int(side) for side in large.sizes[0])
    scores, labels = np.array([row["score"] for row in kept]), np.array([ids[row["category_id"]] for row in kept])
    found = best_of_each_place(Detections(boxes, scores, labels, (height, width)))
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("the large scene:")), "")
    end = lines.index("writing the page ...") + 1
    # Of the table and what follows it only the time: its columns ask for a wider screen.
    lines = [*(line for line in lines[:end] if len(line) < 100), *(line[:98] for line in lines if "s in all:" in line)]
    image = Image.open(large.path(0), formats=["PNG", "JPEG"]).convert("RGB")
    return Story(lines, image, found.boxes.astype(float), found.labels, told)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def terminal(story: Story) -> list[Image.Image]:
    """Line after line."""
    frames, rows = [], 22
    shown = ["$ python3 bootstrap.py demo", *story.lines]
    for number in range(TERMINAL_FRAMES):
        page = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        pen = ImageDraw.Draw(page)
        until = max(1, round(len(shown) * min(1.0, 1.15 * number / (TERMINAL_FRAMES - 1))))
        for row, line in enumerate(shown[:until][-rows:]):
            pen.text((18, 14 + 20.5 * row), line[:98], fill=INK if line.startswith("$") else GREY, font=font(15))
        frames.append(page)
    return frames


def scene(story: Story, *, centre: tuple[float, float], zoom: float) -> tuple[Image.Image, np.ndarray]:
    """The window of the large image around `centre` at `zoom` pixels of the screen each, and its origin (2,)."""
    size = np.array([WIDTH, HEIGHT]) / zoom
    origin = np.clip(np.array(centre) - size / 2, 0, np.maximum(0, np.array(story.image.size) - size))
    box = (*origin, *(origin + size))
    kind = Image.Resampling.NEAREST if zoom > 2 else Image.Resampling.BILINEAR
    # `reduce` and `resize` with a box together: only the window is read.
    return story.image.resize((WIDTH, HEIGHT), kind, box=tuple(float(v) for v in box), reducing_gap=2.0), origin


def outlines(page: Image.Image, story: Story, rows: np.ndarray, origin: np.ndarray, zoom: float) -> None:
    """Boxes around what was found, never over it."""
    pen = ImageDraw.Draw(page)
    for row in rows:
        x1, y1, x2, y2 = ((story.boxes[row].reshape(2, 2) - origin) * zoom).reshape(4)
        if x2 > 0 and y2 > 0 and x1 < WIDTH and y1 < HEIGHT:
            colour = COLOURS[int(story.labels[row]) % len(COLOURS)]
            pen.rectangle((x1 - 3, y1 - 3, x2 + 3, y2 + 3), outline=colour, width=2 if zoom > 2 else 1)


def caption(page: Image.Image, text: str) -> Image.Image:
    """A line at the foot."""
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, HEIGHT - 30, WIDTH, HEIGHT), fill=PAPER)
    pen.text((14, HEIGHT - 25), text, fill=INK, font=font(16))
    return page


def sweep(story: Story) -> list[Image.Image]:
    """Tile after tile over the whole scene: what a tile holds appears with it."""
    wide, high = story.image.size
    zoom = max(WIDTH / wide, HEIGHT / high)
    places = [(x, y) for y in range(0, high, TILE[0]) for x in range(0, wide, TILE[1])]
    middle = (story.boxes[:, :2] + story.boxes[:, 2:]) / 2
    base, origin = scene(story, centre=(wide / 2, high / 2), zoom=zoom)
    of_tile = (middle[:, 1] // TILE[0]).astype(int) * -(-wide // TILE[1]) + (middle[:, 0] // TILE[1]).astype(int)
    frames = []
    for number in range(SWEEP_FRAMES):
        done = round(len(places) * min(1.0, 1.1 * (number + 1) / SWEEP_FRAMES))
        page, found = base.copy(), np.flatnonzero(of_tile < done)
        outlines(page, story, found, origin, zoom)
        if done < len(places):
            x, y = (np.array(places[done]) - origin) * zoom
            ImageDraw.Draw(page).rectangle(
                (x, y, x + TILE[1] * zoom, y + TILE[0] * zoom), outline=(255, 255, 255), width=2
            )
        frames.append(caption(page, f"{wide} x {high} pixels, tile by tile: {len(found)} found"))
    return frames


def densest(story: Story) -> tuple[float, float]:
    """Where the most small things stand in one enlarged window."""
    small = story.boxes[(story.boxes[:, 2:] - story.boxes[:, :2]).max(1) < SMALL]
    boxes = small if len(small) else story.boxes
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.array([WIDTH, HEIGHT]) / (2 * ENLARGED)
    near = (np.abs(middle[:, None] - middle[None]) < half).all(-1).sum(1)
    x, y = middle[int(np.argmax(near))]
    return float(x), float(y)


def zoomed(story: Story) -> list[Image.Image]:
    """From the whole scene to where the most was found."""
    wide, high = story.image.size
    first, target = max(WIDTH / wide, HEIGHT / high), densest(story)
    every, frames = np.arange(len(story.boxes)), []
    for number in range(ZOOM_FRAMES):
        share = (number + 1) / ZOOM_FRAMES
        zoom = first * (ENLARGED / first) ** share
        centre = (wide / 2 + (target[0] - wide / 2) * share**0.5, high / 2 + (target[1] - high / 2) * share**0.5)
        page, origin = scene(story, centre=centre, zoom=zoom)
        outlines(page, story, every, origin, zoom)
        frames.append(caption(page, f"enlarged {zoom:.1f} times" if zoom > 1 else " "))
    sides = np.sqrt((story.boxes[:, 2:] - story.boxes[:, :2]).prod(1))
    low, top = np.percentile(sides, [5, 95])
    words = f"enlarged {ENLARGED} times: what was found has {low:.0f} to {top:.0f} pixels"
    still = caption(frames[-1].copy(), words)
    end = caption(frames[-1].copy(), story.summary)
    return [*frames, *[still] * STILL_FRAMES, *[end] * END_FRAMES]


def main() -> None:
    """Reads the demo, writes the file."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("demo", type=Path, help="the demo's folder")
    words.add_argument("log", type=Path, help="what it printed")
    words.add_argument("--out", type=Path, default=TARGET)
    told = words.parse_args()
    story = read_story(told.demo, told.log)
    frames = [*terminal(story), *sweep(story), *zoomed(story)]
    frames[0].save(
        told.out,
        save_all=True,
        append_images=frames[1:],
        duration=FRAME_MS,
        loop=0,
        quality=45,
        method=4,
        minimize_size=True,
    )
    print(f"{told.out}: {len(frames) * FRAME_MS / 1000:.0f} s, {told.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
