"""`flyspeck predict` on a video: detections of every frame, tracks, and an annotated video."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.errors import UserError

if TYPE_CHECKING:
    from flyspeck.infer.predictor import Predictor


def predict_video(
    path: Path, predictor: Predictor, out: Path, writers: list[Any], *, show: float, every: int, draw: bool
) -> None:
    """Writes `tracks.csv`, the annotated video (`draw`), and every frame's detections through `writers`.

    Raises UserError at the end where the video broke off; what came before is written.
    """
    from dataclasses import replace

    from flyspeck.infer.video import Tracker, TrackTable, VideoReader, VideoWriter, draw_tracks

    reader = VideoReader(path, every=every)
    tracker = Tracker(rate=float(reader.info.rate), score=show)
    table = TrackTable(out / "tracks.csv", reader.info.rate)
    film = VideoWriter(out / f"{path.stem}.tracked.mp4", reader.info) if draw else None
    frames, boxes, start = 0, 0, time.perf_counter()
    try:
        for result in predictor.stream(reader.frames()):
            if result.problem is not None:
                raise result.problem
            tracked = tracker(result.detections)
            told = replace(result, detections=tracked)
            table.add(told)
            for writer in writers:
                writer.add(told)
            if film is not None:
                film.add(draw_tracks(result.item.image, tracked, least=show))  # pyright: ignore[reportArgumentType]
            frames, boxes = frames + 1, boxes + len(tracked)
            if frames % 100 == 0:
                typer.echo(f"  {frames}{f'/{reader.info.frames}' if reader.info.frames else ''} frames")
    finally:
        reader.close()
        for part in (table, *writers, *([film] if film is not None else [])):
            part.close()
    seconds = time.perf_counter() - start
    typer.echo(
        f"{out}: {frames} frames, {boxes} boxes, {len(table.numbers)} tracks, {seconds:.1f} s, {frames / seconds:.2f} "
        f"frames/s from decoding to {'the annotated video' if draw else 'the tables'}"
    )
    if reader.broken:
        raise UserError(reader.broken, where=path, fix=f"the {frames} frames before it were written")
    if not frames:
        raise UserError("holds no frame", where=path)
