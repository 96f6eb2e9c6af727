"""`flyspeck data`: look at, convert, shrink and tile annotated images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.cli.moved import keep_moved
from flyspeck.cli.terminal import ProgressBar, list_problems
from flyspeck.cli.values import parse_names, parse_size
from flyspeck.errors import UserError
from flyspeck.files import write_text

if TYPE_CHECKING:
    from flyspeck.data.annotations import Annotations

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Annotated images: look, convert, shrink, tile.",
)

SOURCE = typer.Argument(..., help="Annotations: a file or folder in any of the formats read.")
FORMAT = typer.Option(None, "--format", help="Name the format instead of having it found out.")
IMAGES = typer.Option(None, "--images", help="Folder of the images, where it is not the usual one.")
CLASSES = typer.Option(None, "--classes", help="Names of the classes to read, with commas between.")
PIXELS = typer.Option(None, "--pixels", help="What whole corners mean (VOC): half-open, from-0 or from-1.")
ENCODING = typer.Option(None, "--encoding", help="Of text files that are not UTF-8: cp1252, gbk, …")
WORKERS = typer.Option(2, "--workers", min=1, help="Processes.")
IMAGE_FORMAT = typer.Option("png", "--image-format", help="Lossless image format to write: png or webp.")


@app.callback()
def data() -> None:
    """Annotated images: look at them, convert, shrink and tile them."""


@app.command("inspect")
def inspect(
    source: Path = SOURCE,
    as_json: bool = typer.Option(False, "--json", help="One json object on stdout."),
    out: Path | None = typer.Option(None, "--out", help="Folder for sample images with boxes, and inspect.json."),
    samples: int = typer.Option(12, "--samples", min=0, help="How many sample images to draw into --out."),
    check_files: bool = typer.Option(True, help="Look for each image and read its header."),
    assign: bool = typer.Option(False, "--assign", help="Count the positives each label assigner gives to each size."),
    detector: str = typer.Option(
        "faster_rcnn:mobilenet_v2", "--detector", help="--assign: whose anchors or points; a recipe too."
    ),
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: str | None = PIXELS,
    encoding: str | None = ENCODING,
) -> None:
    """Count what is in a data set, by size; say what is broken, and what it asks of a detector."""
    import json

    from flyspeck.data.inspect import inspect as inspect_set
    from flyspeck.data.inspect import summarize_classification
    from flyspeck.data.inspect_text import lines

    packed = sorted(source.glob("*.npz")) if source.is_dir() else [source] if source.suffix == ".npz" else []
    if packed:
        reports = {file.name: summarize_classification(file) for file in packed}
        facts = _joined_classification(reports)
    else:
        table, facts = inspect_set(
            source,
            check_files=check_files,
            format=format,
            images=images,
            classes=None if classes is None else parse_names(classes, where="--classes"),
            pixels=pixels,
            encoding=encoding,
        )
        if assign:
            from flyspeck.train.positives import positives_by_size

            facts["assign"] = positives_by_size(table, detector)
        if out is not None:
            from flyspeck.data.samples import write_samples

            written, faults = write_samples(table, out, samples)
            facts["samples"] = [str(path) for path in written]
            list_problems(faults, "images could not be drawn")
    text = json.dumps(facts, indent=1, allow_nan=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "inspect.json", text)
    typer.echo(text if as_json else "\n".join(lines(facts)))


@app.command("convert")
def convert(
    source: Path = SOURCE,
    to: str = typer.Option(
        "coco", "--to", help="coco, yolo, voc, cvat, label-studio, labelme, fiftyone, or that of a plugin."
    ),
    out: Path = typer.Option(..., "--out", help="The file to write; of yolo, voc and labelme the folder."),
    split: str = typer.Option("train", "--split", help="YOLO: the split to write."),
    link: bool = typer.Option(False, "--link", help="YOLO: link the images instead of copying them."),
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: str | None = PIXELS,
    encoding: str | None = ENCODING,
) -> None:
    """Write annotations of any format as COCO json, as a YOLO data set, or for an annotation tool."""
    from flyspeck.data.writers import write_yolo, writer_named

    write = writer_named(to)
    table = _read(source, format, images, classes, pixels, encoding)
    if to == "yolo":
        lost = write_yolo(table, out, split=split, link=link)
        if lost:
            print(f"note: {lost} ignore regions left out: YOLO has no place for them", file=sys.stderr)
    else:
        if to in ("coco", "cvat", "label-studio", "fiftyone") and out.is_dir():
            raise UserError("is a folder", where=out, fix="name the file to write")
        write(table, out)
    if table.unkept:
        print(f"note: not kept: {', '.join(table.unkept)}", file=sys.stderr)
    typer.echo(f"{table.source}: {len(table)} images, {table.num_boxes} boxes -> {to}: {out}")


@app.command("shrink")
def shrink(
    source: Path = SOURCE,
    out: Path = typer.Option(..., "--out", help="Folder to write: images/ and a COCO json."),
    factor: float | None = typer.Option(None, "--factor", help="Divide width and height by this."),
    short_side: int | None = typer.Option(None, "--short-side", help="Make the shorter side this long, in pixels."),
    size: str = typer.Option("", "--size", help="Squeeze every image to HxW pixels, such as 300x300 (SSD's way)."),
    name: str | None = typer.Option(None, "--name", help="Name of the json; otherwise that of the source."),
    image_format: str = IMAGE_FORMAT,
    workers: int = WORKERS,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: str | None = PIXELS,
    encoding: str | None = ENCODING,
) -> None:
    """Make a data set smaller, as TinyCOCO (--short-side 100) and Tiny CityPersons are made."""
    from flyspeck.data.shrink import shrink as shrink_set

    table = _read(source, format, images, classes, pixels, encoding)
    with ProgressBar("shrinking") as progress:
        small = shrink_set(
            table,
            out,
            name=name or _json_name(source),
            factor=factor,
            short_side=short_side,
            size=parse_size(size) if size else None,
            image_format=_image_format(image_format),
            workers=workers,
            progress=progress.update,
        )
    list_problems(small.problems[len(table.problems) :], "images left out")
    low, high = small.sizes.min(0, initial=10**9), small.sizes.max(0, initial=0)
    typer.echo(
        f"{len(small)} images of {low[1]}-{high[1]} x {low[0]}-{high[0]} px, {small.num_boxes} boxes"
        f" -> {out / (name or _json_name(source))}"
    )


@app.command("tile")
def tile(
    source: Path = SOURCE,
    out: Path = typer.Option(..., "--out", help="Folder to write."),
    rule: str = typer.Option("flyspeck", "--rule", help="Where the tiles lie; see flyspeck.data.tiling.corners."),
    size: str = typer.Option("512x640", "--size", help="Tile as HxW in pixels."),
    overlap: str = typer.Option("50", "--overlap", help="Pixels that tiles share: one number, or HxW."),
    pieces: str = typer.Option("2x2", "--pieces", help="tinybenchmark_split_by_pieces: ROWSxCOLUMNS."),
    clip: bool = typer.Option(
        False, "--clip", help="TinyBenchmark's rules: clip the last tiles, do not move them back."
    ),
    keep: float | None = typer.Option(None, "--keep", help="Visible share from which a cut box stays an object."),
    ignore: float | None = typer.Option(None, "--ignore", help="Visible share from which it is an ignore region."),
    max_objects: int | None = typer.Option(None, "--max-objects", help="Leave out whole images with more annotations."),
    corners_only: bool = typer.Option(False, "--corners-only", help="Write no images, only corners.json."),
    name: str | None = typer.Option(None, "--name", help="Name of the json; otherwise that of the source."),
    image_format: str = IMAGE_FORMAT,
    workers: int = WORKERS,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: str | None = PIXELS,
    encoding: str | None = ENCODING,
) -> None:
    """Cut big images into overlapping tiles, with their annotations.

    Writes the tiles and a json of them, and corners.json: the same tiles as the TinyPerson benchmark lists them, by the whole
    images' names. Boxes at the cut: kept from a visible share, ignored from another, else dropped.
    """
    from flyspeck.data.tile_files import write_corners, write_tiles
    from flyspeck.data.tiling import drop_crowded, tile_annotations

    image_format = _image_format(image_format)
    table = _read(source, format, images, classes, pixels, encoding)
    whole = table if max_objects is None else drop_crowded(table, max_objects)
    tiles = tile_annotations(
        whole,
        rule=rule,
        size=parse_size(size, where="--size"),
        overlap=int(overlap) if overlap.isdigit() else parse_size(overlap, where="--overlap", least=0),
        pieces=parse_size(pieces, where="--pieces"),
        fixed_size=not clip,
        policy=_policy(keep, ignore),
    )
    if not corners_only:
        with ProgressBar("tiling") as progress:
            written = write_tiles(
                whole,
                tiles,
                out,
                name=name or _json_name(source),
                image_format=image_format,
                workers=workers,
                progress=progress.update,
            )
        list_problems(written.problems[len(table.problems) :], "images left out")
    write_corners(whole, tiles, out / "corners.json")
    crowded = len(table) - len(whole)
    left_out = f", {crowded} images with more than {max_objects} annotations left out" if crowded else ""
    typer.echo(f"{len(whole)} images -> {len(tiles)} tiles, {tiles.num_boxes} boxes{left_out} -> {out}")


@app.command("scale-match")
def scale_match(
    source: Path = SOURCE,
    target: Path = typer.Option(..., "--target", help="The data set whose object sizes are wanted."),
    out: Path = typer.Option(..., "--out", help="Folder to write: images/, a COCO json, a report and its image."),
    method: str = typer.Option("msm", "--method", help="sm (sizes drawn), msm (mapped), sm+ (every object by itself)."),
    size: str | None = typer.Option(None, "--size", help="HxW: tile larger images, pad smaller ones to this."),
    overlap: int = typer.Option(0, "--overlap", min=0, help="Pixels that tiles of --size share."),
    bins: int = typer.Option(100, "--bins", help="Bins of the rectified histogram."),
    max_scale: float = typer.Option(2.0, "--max-scale", help="Nothing is enlarged by more."),
    min_side: float = typer.Option(1.0, "--min-side", help="Objects with a shorter side are dropped, px."),
    probability: float = typer.Option(1.0, "--probability", help="sm+: share of images done object by object."),
    seed: int = typer.Option(0, "--seed", help="The same seed draws the same sizes."),
    name: str | None = typer.Option(None, "--name", help="Name of the json; otherwise that of the source."),
    image_format: str = IMAGE_FORMAT,
    workers: int = WORKERS,
    as_json: bool = typer.Option(False, "--json", help="The report as one json object on stdout."),
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: str | None = PIXELS,
    encoding: str | None = ENCODING,
) -> None:
    """Give the objects of SOURCE the sizes of those of --target, to pre-train on (Scale Match, MSM, SM+)."""
    import json

    from flyspeck.data.inspect_text import match_lines
    from flyspeck.data.scale_match import MatchRule
    from flyspeck.data.scale_match_files import scale_match as match

    rule = MatchRule(
        method=method,  # type: ignore[arg-type]
        bins=bins,
        max_scale=max_scale,
        min_side=min_side,
        probability=probability,
        seed=seed,
    )
    image_format = _image_format(image_format)
    wanted = _read(target, None, None, None)
    table = _read(source, format, images, classes, pixels, encoding)
    with ProgressBar("matching") as progress:
        written, report = match(
            table,
            wanted,
            out,
            rule,
            name=name or _json_name(source),
            size=None if size is None else parse_size(size, where="--size"),
            overlap=overlap,
            image_format=image_format,
            workers=workers,
            progress=progress.update,
        )
    list_problems(written.problems[len(table.problems) :], "images left out")
    typer.echo(json.dumps(report, indent=1) if as_json else "\n".join(match_lines(report, out)))


def _policy(keep: float | None, ignore: float | None) -> Any:
    from flyspeck.data.policy import CutPolicy

    if keep is None and ignore is None:
        return None
    usual = CutPolicy()
    keep = usual.keep if keep is None else keep
    ignore = min(usual.ignore, keep) if ignore is None else ignore
    if not 0 <= ignore <= keep <= 1:
        raise UserError(f"shares of {keep} and {ignore}", where="--keep, --ignore", fix="give 0 <= ignore <= keep <= 1")
    return CutPolicy(keep, ignore)


@app.command("scenes")
def scenes(
    out: Path = typer.Option(..., "--out", help="Folder to write: annotations.json and images/."),
    images: int = typer.Option(100, "--images", min=1, help="How many images."),
    seed: int = typer.Option(0, "--seed", min=0, help="The same seed gives the same images, byte for byte."),
    size: str = typer.Option("512x640", "--size", help="Height x width of the images."),
    kind: str | None = typer.Option(None, "--kind", help="Only one kind: sea, field or road."),
    density: float = typer.Option(1.0, "--density", help="How many times as many things as usual."),
    workers: int = WORKERS,
) -> None:
    """Generate images of sea, fields and roads from a drone, with tiny persons, boats and cars."""
    from flyspeck.data.scenes.dataset import write_scenes

    height, width = parse_size(size)
    with ProgressBar("painting") as progress:
        target = write_scenes(
            out,
            num_images=images,
            seed=seed,
            height=height,
            width=width,
            kind=kind,
            density=density,
            workers=workers,
            progress=progress.update,
        )
    typer.echo(f"{target}: {images} images of {height} x {width}")


def _read(
    source: Path,
    format: str | None,
    images: Path | None,
    classes: str | None,
    pixels: str | None = None,
    encoding: str | None = None,
) -> Annotations:
    """The table of a source, with what was seen and what is broken said on stderr."""
    from flyspeck.data.readers import read_annotations

    table = read_annotations(
        source,
        format=format,
        images=images,
        classes=None if classes is None else parse_names(classes, where="--classes"),
        pixels=pixels,
        encoding=encoding,
    )
    print(f"read {table.source}", file=sys.stderr)
    for note in table.notes:
        print(f"note: {note}", file=sys.stderr)
    list_problems(table.problems, "broken entries left out")
    return table


def _json_name(source: Path) -> str:
    return f"{source.stem if source.suffix else source.name}.json"


def _image_format(name: str) -> str:
    from flyspeck.data.image_files import FORMATS
    from flyspeck.errors import nearest

    if name not in FORMATS:
        raise UserError(f"cannot write '{name}' images", where="--image-format", fix=nearest(name, FORMATS))
    return name


def _joined_classification(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Several files of one classification set as one report, each file's beside it."""
    first, *_ = reports.values()
    if len(reports) == 1:
        return first
    total = sum(report["images"] for report in reports.values())
    files = {name: {"images": report["images"], "boxes": 0} for name, report in reports.items()}
    return {**first, "source": f"npz: {', '.join(reports)}", "images": total, "files": files}


keep_moved(app, "prepare", old="flyspeck data prepare", new="flyspeck-lab prepare")
