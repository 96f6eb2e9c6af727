"""`predict`: a whole prediction job, from the paths of a model and of images to result files."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flyspeck.errors import UserError, counted, one_line
from flyspeck.evaluate.score_curve import ScoreCurve, ScoreRule
from flyspeck.files import local_output
from flyspeck.infer.job_images import DrawRule, ImageJob, PredictionSummary, made_with
from flyspeck.infer.job_video import Limit, VideoJob, told_name
from flyspeck.infer.load import load_model, suppression_of, tile_of
from flyspeck.infer.look_choice import choose_skip_rule
from flyspeck.infer.merge import DEFAULT, MergeRule
from flyspeck.infer.multiscale import MultiScale
from flyspeck.infer.naming import is_video
from flyspeck.infer.outputs import MAP_FORMATS, check_formats
from flyspeck.infer.placing import Placing
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.processes import Processes
from flyspeck.infer.region import read_region
from flyspeck.infer.remote import file_name_of, is_remote, remote_name
from flyspeck.infer.resolution import described_resolution
from flyspeck.infer.shown import Showing, shown_batch, shown_enlargement, shown_tiles
from flyspeck.infer.source import Categories, Item, find_items, matched, remarks_on
from flyspeck.infer.video.live import is_live
from flyspeck.infer.video.zones import parse_zones
from flyspeck.infer.web import WebRule
from flyspeck.infer.windows import OpenOptions
from flyspeck.progress import Advance, Tell, untold
from flyspeck.projection import known_crs

log = logging.getLogger("flyspeck")
AnyPath = str | os.PathLike[str]


def predict(
    source: AnyPath | Sequence[AnyPath],
    *,
    model: AnyPath,
    out: AnyPath,
    formats: Sequence[str] = ("coco",),
    tile: int | tuple[int, int] | Literal["off"] | None = None,
    overlap: int | None = None,
    scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    score_threshold: float | str = "auto",
    keep_score: float = 0.05,
    merge: MergeRule | None = None,
    suppression: Literal["nms", "tiny"] | None = None,
    batch_size: int = 8,
    readers: int = 1,
    device: str = "auto",
    precision: str = "fp32",
    draw: int = 100,
    heat: bool = False,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    crs: str | None = None,
    roi: AnyPath | None = None,
    resolution: str | float | None = None,
    max_megapixels: float = 200,
    allow_references: bool = False,
    timeout: float = 30,
    resume: bool = False,
    overwrite: bool = False,
    skip: bool = False,
    skip_audit: float = 0.05,
    skip_check: bool = False,
    budget: str | None = None,
    quality: float | None = None,
    factor: float | None = None,
    every: int = 1,
    max_frames: int | None = None,
    max_seconds: float | None = None,
    stills: bool = False,
    count_lines: Sequence[str] = (),
    count_regions: Sequence[AnyPath] = (),
    layout: str | None = None,
    classes: Sequence[str] | None = None,
    say: Callable[[str], None] = log.info,
    warn: Callable[[str], None] = log.warning,
    progress: Tell = untold,
) -> PredictionSummary:
    """Find objects in images of any size, in a video, or in a camera's stream, and write result files and annotated images.

    Args:
        source: Image files, patterns of them (`imgs/*.jpg`), folders (searched to the bottom), one file of annotations, one
            video, or the address of one stream (`rtsp://…`). An image may be an address: `https://…`, `s3://…`, `gs://…`,
            `az://…`, or one of GDAL's `/vsi…` paths.
        model: A run folder, a weights file, an exported `.onnx`, `.xml` or `.tflite` file (which needs no torch), also of another
            program,
            or a function, `package.module:function`.
        out: Folder for the results; made if need be. It holds the files of `formats`, `drawn/`, and the finished tiles under
            `tiles/` that `resume` goes on from.
        formats: Some of `coco` (`detections.json`, `images.json`), `csv`, `geojson`, `gpkg`, `geoparquet`, `widerface`, `yolo`.
        tile: (height, width), or one number, of a tile in pixels that the model sees, or `"off"` for whole images; None: as
            `flyspeck auto` measured to be best, where the model says it, else the training size. Of a model that squeezes its
            images: in pixels of the image, each tile being squeezed; None: whole images.
        overlap: Pixels that neighbouring tiles share at least; the largest object must fit in. None: from the training's objects.
        scale: Model pixels per image pixel; None: as `flyspeck auto` measured to be best, where the model says it, else as in
            training, which alone a model that squeezes its images takes.
        scales: See each tile at all of these sizes, relative to `scale`, and merge.
        flip: See each tile mirrored too, and merge.
        score_threshold: What is drawn, counted, tracked, said and written is of at least this score: a number from 0 to 1, or
            what it shall have been worth on the model's validation set: `auto` (the best F1; 0.3 where the model does not say
            it), `precision=0.9`, or `false-positives=0.1` (an image).
        keep_score: Formats for evaluation (`coco`, `widerface`) hold weaker ones too, from this score on.
        merge: How boxes of overlapping tiles become one; None: `flyspeck.infer.merge.DEFAULT`.
        suppression: What the detector does with several boxes of one object: `tiny` lets one keep its score, `nms` all that
            overlap little; None: as in training, and `tiny` for a model of version 0.1, which says nothing. An exported model
            has its own.
        batch_size: Tiles in one pass of the model.
        readers: Threads that decode ahead.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the best that is there.
        precision: `fp32` or `bf16`.
        draw: Annotated images are drawn of the first so many; 0 draws none.
        heat: A heat map of each image drawn, not only of images over 8000 px.
        bands: Bands to read, counted from 1, alpha among them; None: as in training, else all but alpha.
        value_range: (low, high), the values that become black and white; None: as in training, else the type's full scale.
        crs: Coordinate system of map results (`geojson`, `gpkg`, `geoparquet`), such as `EPSG:4326`, with which GeoJSON follows
            RFC 7946; None: that of each image.
        roi: A file of polygons (GeoJSON, GeoPackage, Shapefile): only tiles that meet them are run, and detections are kept whose
            centre lies inside.
        resolution: Of images on a map: `"trained"` shows them at the metres a pixel of the training, a number at those,
            `"native"` as they are; `"auto"` at the training's where they are more than 1.25 times apart, if it is known. None:
            `auto`, and `native` beside a `scale`. Boxes stay in pixels of the image.
        max_megapixels: Largest image, tile or strip of a file that is decoded in one piece.
        allow_references: Let local files lead to files outside their folder (annotations to images, a VRT to its sources), and to
            other computers.
        timeout: Of images at addresses: seconds without a connection, or without a further piece of an answer.
        resume: Keep the tiles that an earlier job with the same settings finished.
        overwrite: Replace the results of an earlier job; without it, or `resume`, a folder that holds some is refused.
        skip: Pass over tiles that a cheap first look finds empty.
        skip_audit: Share of the empty tiles that is run all the same, to estimate what skipping loses.
        skip_check: Run every tile, and say what `skip` would have lost.
        budget: Of a detector with factors: mean cost of a tile, as in `0.6GFLOPs` or `12ms`.
        quality: Of a detector with factors: from 0, the cheapest, to 1, the largest.
        factor: Of a detector with factors: this one for everything. `budget`, `quality` and `factor` exclude each other.
        every: Of a video, every so manieth frame.
        max_frames: Of a video, no more than so many frames.
        max_seconds: Of a video, nothing from this time on.
        stills: Of a video, the best crop of each track, under `stills/`, and a table of them.
        count_lines: Of a video, lines whose crossings are counted: `x1,y1,x2,y2` in pixels, with or without `:name`.
        count_regions: Of a video, regions that are entered and left: `x1,y1,x2,y2,x3,y3,...` with or without `:name`, or a
            GeoJSON file of polygons in pixels.
        layout: Of another program's file: how its outputs give boxes (`flyspeck.infer.foreign.layouts`); None: the file tells.
        classes: Of another program's model: the names of its classes in its order, where it does not say them.
        say: Called with each line of the job's account; the logger `flyspeck` where it is not given.
        warn: Called with each line on what is amiss.
        progress: Called with each `flyspeck.progress.Advance`: the step, its share, and words for people. Silent by default.

    Returns:
        What was done. Boxes in the files are in pixels of the original images.

    Raises:
        UserError: Before any work for a setting or path that cannot be; at the end if an image or a part of one could not be
            read, when everything else is written.
    """
    warn = _on_one_line(warn)
    wanted = ScoreRule.parse(score_threshold)
    check_formats(formats)
    placing = _placing(crs, None if roi is None else Path(roi), formats)
    given = [source] if isinstance(source, str | os.PathLike) else list(source)
    sources = [place for one in given for place in ([str(one)] if is_remote(one) else matched(one))]
    on_video: dict[str, Any] = {"limit": Limit(frames=max_frames, seconds=max_seconds), "stills": stills}
    on_video["zones"] = parse_zones(count_lines, [str(region) for region in count_regions])
    folder, path, rule = local_output(out), Path(model), merge or DEFAULT
    processes = Processes.from_environment()
    video, items, categories = _found(sources, warn, progress, allow_references, processes)
    _check_video(video, processes, placing, on_video)
    asked = (("budget", budget), ("quality", quality), ("factor", factor))
    choice: dict[str, Any] = {name: value for name, value in asked if value is not None}
    size = None if tile == "off" else tile_of(tile)
    with processes.together():
        network, description = load_model(
            os.fspath(model),
            device=processes.device(device),
            precision=precision,
            choice=choice,
            tile=size,
            layout=layout,
            classes=classes,
            suppression=suppression,
        )
    reading: dict[str, Any] = {"bands": bands, "value_range": value_range, "allow_references": allow_references}
    reading |= {"web": _patience(timeout), "place": _on_map(placing, formats)}
    options = _options(reading, max_megapixels).completed(description)
    reported, why = wanted.reported(ScoreCurve.of(description))
    sides, shared = shown_tiles(size, overlap, description, whole=tile == "off")
    seer, views = _views(network, tuple(scales), flip, rule)
    predictor = Predictor(
        seer,
        tile=sides,
        overlap=shared,
        enlarge=shown_enlargement(description, scale=scale),
        batch_size=shown_batch(batch_size, sides, description),
        score_threshold=min(keep_score, reported),
        merge=rule,
        readers=readers,
        options=options,
        placing=replace(placing, resolution=described_resolution(description, resolution, scale=scale)),
    )
    if skip or skip_check:
        share = 1.0 if skip_check else skip_audit
        predictor.skip = choose_skip_rule(path, network, audit=share, score=reported, say=say)
    if processes.leads:
        what = counted(len(items), "image") if video is None else told_name(video)
        say(settings_line(what, predictor, description, f"{reported:.3g}{why}"))
    settings = {**made_with(os.fspath(model), predictor, precision), **choice, **views, **_told(description)}
    asked_of_all: dict[str, Any] = {"out": folder, "formats": formats, "classes": network.classes}
    asked_of_all |= {"resume": resume, "overwrite": overwrite, "say": say, "warn": warn, "progress": progress}
    if video is not None:
        found = {**settings, **layout_of(predictor)}
        on_video |= {"web": reading["web"], "show": reported, "every": every, "draw": draw > 0, "made_with": found}
        return VideoJob(source=video, **on_video, **asked_of_all).run(predictor)
    job = ImageJob(
        items=items,
        categories=categories,
        truth=Path(sources[0]) if skip_check and categories is not None else None,
        made_with=settings,
        drawing=DrawRule(images=draw, score=reported, heat=heat),
        **asked_of_all,
    )
    summary = replace(_with_remarks(job, predictor, processes, sources), factors=dict(network.taken))
    if processes.leads and (total := sum(summary.factors.values())):
        counts = ", ".join(f"{f:g}: {n} ({100 * n / total:.0f} %)" for f, n in summary.factors.items())
        say(f"images or tiles by factor: {counts}")
    return summary


def _on_one_line(warn: Callable[[str], None]) -> Callable[[str], None]:
    """`warn`, with escapes for what a file's name would do to a terminal."""
    return lambda line: warn(one_line(line, 4000))


def _on_map(placing: Placing, formats: Sequence[str]) -> bool:
    """Whether the places of images are asked for: by formats of maps, or by a region in map coordinates."""
    return bool(set(formats) & set(MAP_FORMATS)) or bool(placing.region and placing.region.needs(None))


def _options(reading: Mapping[str, Any], max_megapixels: float) -> OpenOptions:
    """How the job opens its images, without what the model says of that."""
    bands = reading["bands"]
    return OpenOptions(
        max_pixels=_max_pixels(max_megapixels),
        bands=None if bands is None else tuple(bands),
        value_range=reading["value_range"],
        allow_references=reading["allow_references"],
        web=reading["web"],
        place=reading["place"],
    )


def _max_pixels(megapixels: float) -> int | None:
    """The limit in pixels; None for an infinite one. Raises UserError for what is no size."""
    if not megapixels > 0:
        raise UserError(f"{megapixels} megapixels", where="--max-megapixels", fix="give a number above 0, such as 200")
    return None if megapixels == math.inf else int(min(megapixels * 1e6, 2**62))


def _patience(timeout: float) -> WebRule:
    if not 0 < timeout < 1e6:
        raise UserError(f"a timeout of {timeout:g} s", where="timeout", fix="give seconds, above 0")
    return WebRule(timeout=timeout, pause=min(0.5, timeout / 10))


def _placing(crs: str | None, roi: Path | None, formats: Sequence[str]) -> Placing:
    """Raises UserError for a system or a region that cannot be, and for a system that no format of the job would say."""
    if crs is not None and not set(formats) & set(MAP_FORMATS):
        fix = f"add {' or '.join(MAP_FORMATS)} to --to, or leave out --crs"
        raise UserError(f"{', '.join(formats)}: these formats hold pixels", where="--crs", fix=fix)
    return Placing(None if crs is None else known_crs(crs), None if roi is None else read_region(roi))


def _with_remarks(
    job: ImageJob, predictor: Predictor, processes: Processes, sources: list[Path | str]
) -> PredictionSummary:
    """The job, and what was passed over in its folders: said last, where it is seen."""
    remarks = tuple(remarks_on(sources))
    try:
        return replace(job.run(predictor, processes), remarks=remarks)
    finally:
        for remark in remarks if processes.leads else ():
            job.warn(f"note: {remark}")


def _found(
    sources: list[Path | str],
    warn: Callable[[str], None],
    progress: Tell,
    allow_references: bool,
    processes: Processes,
) -> tuple[Path | str | None, list[Item], Categories | None]:
    """`_sources`, the first step of a job, after which its model is loaded."""
    progress(Advance("looking for images"))
    with processes.together():
        found = _sources(sources, warn, allow_references)
    progress(Advance("loading the model"))
    return found


def _sources(
    sources: list[Path | str], warn: Callable[[str], None], allow_references: bool
) -> tuple[Path | str | None, list[Item], Categories | None]:
    """One video, or the address of one stream, or images with the categories of their json."""
    for address in sources:
        web = is_live(address) or str(address).startswith(("http://", "https://"))
        if isinstance(address, str) and is_video(file_name_of(address)) and not web:
            fix = "give an https:// address, or download it"
            raise UserError("videos are not read from there", where=remote_name(address), fix=fix)
    video = next(
        (one for one in sources if is_live(one) or is_video(one if isinstance(one, Path) else file_name_of(one))), None
    )
    if video is None:
        return None, *find_items(sources, say=warn, allow_references=allow_references)
    if len(sources) > 1:
        raise UserError("a video is predicted alone", where=told_name(video), fix="give it alone")
    return video, [], None


def _check_video(video: Path | str | None, processes: Processes, placing: Placing, on_video: dict[str, Any]) -> None:
    """Raises UserError for what goes with images alone, or with videos alone."""
    if video is None:
        if on_video["limit"] != Limit() or on_video["stills"] or on_video["zones"]:
            raise UserError(
                "limits, stills and counts are of videos", where="the source is no video", fix="leave them out"
            )
        return
    if processes.world > 1:
        raise UserError(
            "a video is predicted by one process", where=told_name(video), fix="start it without a launcher"
        )
    if placing != Placing():
        raise UserError("a video has no place on a map", where=told_name(video), fix="leave out --crs and --roi")


def layout_of(predictor: Predictor) -> dict[str, Any]:
    """What decides, beside `made_with`, what is found on a whole image: its tiles and how they are merged."""
    return {"tile": predictor.tile, "overlap": predictor.overlap, "merge": _told_rule(predictor.merge)}


def _views(network: Any, scales: tuple[float, ...], flip: bool, rule: MergeRule) -> tuple[Any, dict[str, Any]]:
    """The model with all the views of a tile that are asked for, and what a journal has to know of them."""
    if scales == (1.0,) and not flip:
        return network, {}
    # They are merged before a tile is noted: unlike that of tiles, this merge is in what the journal holds.
    return MultiScale(network, scales, flip=flip, rule=rule), {
        "views": [*scales, flip],
        "merge of views": _told_rule(rule),
    }


def _told_rule(rule: MergeRule) -> list[Any]:
    """All that decides which boxes a merge leaves."""
    return [
        rule.method,
        rule.threshold,
        rule.places,
        rule.metric,
        rule.class_aware,
        rule.within_tile,
        rule.sigma,
        rule.min_score,
    ]


def _told(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a journal has to know of the model: what the user may say of a foreign one, and the suppression.

    That of version 0.1, NMS, goes without saying.
    """
    told = {key: description[key] for key in ("layout", "classes") if "layout" in description}
    method = suppression_of(description)
    return told if method in ("nms", "its own") else {**told, "suppression": method}


def settings_line(what: str, predictor: Predictor, description: Mapping[str, Any], score: str) -> str:
    """What was chosen, and what it follows from, in one to three lines for people; `what` is predicted, from `score` on."""
    sides, shared, rule = predictor.tile, predictor.overlap[0], predictor.merge
    said = "whole images" if sides is None else f"tiles of {sides[0]}x{sides[1]}, overlap {shared}"
    scale = predictor.enlarge.words()
    merge = f"suppression {suppression_of(description)}, merge {rule.method} {rule.threshold:g} ({rule.places})"
    line = f"{what}, {said}, {scale}, score >= {score}, {merge}"
    trained = description.get("training_size")
    if "layout" in description:  # another program's
        line += f"\na model for {trained[0]}x{trained[1]}, layout {description['layout']}" if trained else ""
        line += f", {counted(len(description['classes']), 'class')}: {one_line(', '.join(description['classes']), 120)}"
    elif trained is not None:
        line += f"\ntrained at {trained[0]}x{trained[1]}"
        if "object_side_99" in description:
            line += f", where 99 % of the objects were at most {description['object_side_99']:.0f} px long"
            line += " in the files" if predictor.enlarge.squeeze is not None else ""
    if sides is not None and Showing.of(description) == Showing(sides, shared, predictor.enlarge.factor):
        line += "; this tile and scale were measured to be the best on validation images"
    if sides is not None:
        waste = sides[0] * sides[1] / ((sides[0] - shared) * (sides[1] - shared))
        if waste > 2:
            line += (
                f"\nnote: with this overlap large images are run {waste:.1f} times over; "
                "larger tiles or less overlap are faster"
            )
    return line
