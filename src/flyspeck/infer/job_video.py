"""A prediction job over one video: detections of every frame, tracks, and an annotated video."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flyspeck.errors import UserError
from flyspeck.infer.job_images import PredictionSummary
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.video import Tracker, TrackTable, VideoReader, VideoWriter, draw_tracks
from flyspeck.infer.writer import Writer


def tracked_name(path: Path) -> str:
    """Name of the annotated video of `path`."""
    return f"{path.stem}.tracked.mp4"


def predict_video(
    path: Path,
    predictor: Predictor,
    out: Path,
    writers: Sequence[Writer],
    *,
    show: float,
    every: int,
    draw: bool,
    say: Callable[[str], None],
) -> PredictionSummary:
    """Writes `tracks.csv`, the annotated video (`draw`), and every frame's detections through `writers`.

    Objects of a score of at least `show` are tracked and drawn; of the frames every `every`-th is looked at. Raises UserError
    at the end where the video broke off; what came before is written.
    """
    reader = VideoReader(path, every=every)
    tracker = Tracker(rate=float(reader.info.rate), score=show)
    table = TrackTable(out / "tracks.csv", reader.info.rate)
    annotated = VideoWriter(out / tracked_name(path), reader.info) if draw else None
    frames, boxes, tiles, start = 0, 0, 0, time.perf_counter()
    try:
        for result in predictor.stream(reader.frames()):
            if result.problem is not None:
                raise result.problem
            tracked = tracker(result.detections)
            told = replace(result, detections=tracked)
            table.add(told)
            for writer in writers:
                writer.add(told)
            if annotated is not None:
                annotated.add(draw_tracks(result.item.image, tracked, least=show))  # pyright: ignore[reportArgumentType]
            frames, boxes, tiles = frames + 1, boxes + len(tracked), tiles + result.num_tiles
            if frames % 100 == 0:
                say(f"  {frames}{f'/{reader.info.frames}' if reader.info.frames else ''} frames")
    finally:
        reader.close()
        for part in (table, *writers, *([annotated] if annotated is not None else [])):
            part.close()
    seconds = time.perf_counter() - start
    tracks = len(table.numbers)
    say(
        f"{out}: {frames} frames, {boxes} boxes, {tracks} tracks, {seconds:.1f} s, {frames / seconds:.2f} "
        f"frames/s from decoding to {'the annotated video' if draw else 'the tables'}"
    )
    if reader.broken:
        raise UserError(reader.broken, where=path, fix=f"the {frames} frames before it were written")
    if not frames:
        raise UserError("holds no frame", where=path)
    return PredictionSummary(out=out, images=frames, boxes=boxes, tiles=tiles, seconds=seconds, tracks=tracks)
