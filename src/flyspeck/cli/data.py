"""`flyspeck data`: look at, convert, shrink and tile annotated images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from flyspeck.cli.choices import check_choice, tile_rules, written_annotations
from flyspeck.cli.data_inspect import inspect
from flyspeck.cli.data_split import split as split_set
from flyspeck.cli.label_errors import errors
from flyspeck.cli.layout import PlainApp
from flyspeck.cli.moved import keep_moved
from flyspeck.cli.shared_options import (
    ALLOW_REFERENCES,
    CLASSES,
    ENCODING,
    FORMAT,
    IMAGES,
    JSON,
    LINK,
    PIXELS,
    SOURCE,
    WORKERS,
    Pixels,
)
from flyspeck.cli.terminal import ProgressBar, list_problems
from flyspeck.cli.values import parse_names, parse_size
from flyspeck.errors import UserError, counted

if TYPE_CHECKING:
    from flyspeck.data.annotations import Annotations

app = PlainApp(help="Annotated images: look, convert, shrink, tile.")

ImageFormat = Literal["png", "webp"]
IMAGE_FORMAT = typer.Option("png", "--image-format", help="Format of the images to write; both are lossless.")
NAME = typer.Option(None, "--name", metavar="NAME", help="Name of the json; default: that of the source.")


@app.callback()
def data() -> None:
    """Annotated images: look at them, convert, shrink and tile them."""


app.command("inspect")(inspect)
app.command("split")(split_set)


@app.command("convert")
def convert(
    source: Path = SOURCE,
    to: str = typer.Option("coco", "--to", metavar="NAME", autocompletion=written_annotations, help="Format to write."),
    out: Path = typer.Option(
        ..., "--out", metavar="PATH", help="Where to write: the file; of yolo, voc and labelme the folder."
    ),
    split: str = typer.Option("train", "--split", metavar="NAME", help="YOLO: the split to write."),
    link: bool = LINK,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Write annotations of any format as COCO json, as a YOLO data set, or for an annotation tool."""
    from flyspeck.data.writers import write_yolo, writer_named

    write = writer_named(to)
    if not out.is_dir():
        _not_in_place(source, out)
    table = _read(source, format, images, classes, pixels, encoding, allow_references)
    if table.source.startswith(f"{to}:"):
        _not_in_place(source, out, out / "data.yaml", out / "Annotations")
    if to == "yolo":
        with ProgressBar("writing"):
            lost = write_yolo(table, out, split=split, link=link)
        if lost:
            print(f"note: {counted(lost, 'ignore region')} left out: YOLO has no place for them", file=sys.stderr)
    else:
        if to in ("coco", "cvat", "label-studio", "fiftyone") and out.is_dir():
            raise UserError("is a folder", where=out, fix="name the file to write")
        with ProgressBar("writing"):
            write(table, out)
    if table.unkept:
        print(f"note: not kept: {', '.join(table.unkept)}", file=sys.stderr)
    typer.echo(f"{table.source}: {counted(len(table), 'image')}, {counted(table.num_boxes, 'box')} -> {to}: {out}")


@app.command("shrink")
def shrink(
    source: Path = SOURCE,
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of images/ and a COCO json."
    ),
    by: float | None = typer.Option(None, "--by", metavar="FACTOR", help="Divide width and height by this."),
    short_side: int | None = typer.Option(
        None, "--short-side", metavar="PX", help="Make the shorter side this long, in pixels."
    ),
    size: str = typer.Option(
        "", "--size", metavar="HxW", help="Image size in pixels that every image is squeezed to (SSD's way)."
    ),
    name: str | None = NAME,
    image_format: ImageFormat = IMAGE_FORMAT,
    workers: int = WORKERS,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Make a data set smaller, as TinyCOCO (--short-side 100) and Tiny CityPersons are made."""
    from flyspeck.data.shrink import shrink as shrink_set

    _not_in_place(source, out / (name or _json_name(source)))
    table = _read(source, format, images, classes, pixels, encoding, allow_references)
    with ProgressBar("shrinking") as progress:
        small = shrink_set(
            table,
            out,
            name=name or _json_name(source),
            factor=by,
            short_side=short_side,
            size=parse_size(size) if size else None,
            image_format=image_format,
            workers=workers,
            progress=progress.update,
        )
    list_problems(small.problems[len(table.problems) :], "images left out")
    low, high = small.sizes.min(0, initial=10**9), small.sizes.max(0, initial=0)
    typer.echo(
        f"{counted(len(small), 'image')} of {low[1]}-{high[1]} x {low[0]}-{high[0]} px, {counted(small.num_boxes, 'box')}"
        f" -> {out / (name or _json_name(source))}"
    )


@app.command("tile")
def tile(
    source: Path = SOURCE,
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of images/, a COCO json and corners.json."
    ),
    rule: str = typer.Option(
        "flyspeck", "--rule", metavar="NAME", autocompletion=tile_rules, help="Where the tiles lie."
    ),
    tile: str = typer.Option("512x640", "--tile", metavar="HxW", help="Tile size in pixels."),
    overlap: str = typer.Option(
        "50", "--overlap", metavar="PX|HxW", help="Pixels that tiles share: one number, or HxW."
    ),
    pieces: str = typer.Option(
        "2x2", "--pieces", metavar="ROWSxCOLUMNS", help="How many tiles tinybenchmark_split_by_pieces cuts."
    ),
    clip: bool = typer.Option(
        False, "--clip", help="TinyBenchmark's rules: clip the last tiles, do not move them back."
    ),
    keep: float | None = typer.Option(
        None, "--keep", metavar="SHARE", help="Visible share from which a cut box stays an object."
    ),
    ignore: float | None = typer.Option(
        None, "--ignore", metavar="SHARE", help="Visible share from which it is an ignore region."
    ),
    max_objects: int | None = typer.Option(
        None, "--max-objects", min=0, metavar="N", help="Leave out whole images with more annotations."
    ),
    corners_only: bool = typer.Option(False, "--corners-only", help="Write no images, only corners.json."),
    name: str | None = NAME,
    image_format: ImageFormat = IMAGE_FORMAT,
    workers: int = WORKERS,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Cut big images into overlapping tiles, with their annotations.

    Writes the tiles and a json of them, and corners.json: the same tiles as the TinyPerson benchmark lists them, by the whole
    images' names. Boxes at the cut: kept from a visible share, ignored from another, else dropped.
    """
    from flyspeck.data.tile_files import write_corners, write_tiles
    from flyspeck.data.tiling import drop_crowded, tile_annotations

    check_choice("--rule", rule, tile_rules())
    _not_in_place(source, out / (name or _json_name(source)), out / "corners.json")
    table = _read(source, format, images, classes, pixels, encoding, allow_references)
    whole = table if max_objects is None else drop_crowded(table, max_objects)
    tiles = tile_annotations(
        whole,
        rule=rule,
        size=parse_size(tile, where="--tile"),
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
    left_out = f", {counted(crowded, 'image')} with more than {max_objects} annotations left out" if crowded else ""
    typer.echo(
        f"{counted(len(whole), 'image')} -> {counted(len(tiles), 'tile')}, {counted(tiles.num_boxes, 'box')}{left_out} -> {out}"
    )


@app.command("scale-match")
def scale_match(
    source: Path = SOURCE,
    target: Path = typer.Option(
        ..., "--target", metavar="PATH", help="Annotations of the data set whose object sizes are wanted."
    ),
    out: Path = typer.Option(
        ...,
        "--out",
        metavar="FOLDER",
        help="Where to write: the folder of images/, a COCO json, a report and its plot.",
    ),
    match: Literal["sm", "msm", "sm+"] = typer.Option(
        "msm", "--match", help="How sizes are matched: drawn (sm), mapped (msm), every object by itself (sm+)."
    ),
    size: str | None = typer.Option(
        None, "--size", metavar="HxW", help="Image size in pixels: larger ones are tiled, smaller ones padded."
    ),
    overlap: int = typer.Option(0, "--overlap", min=0, metavar="PX", help="Pixels that tiles share, with --size."),
    num_bins: int = typer.Option(100, "--num-bins", min=1, metavar="N", help="Bins of the rectified histogram."),
    max_scale: float = typer.Option(2.0, "--max-scale", metavar="FACTOR", help="Nothing is enlarged by more."),
    min_side: float = typer.Option(1.0, "--min-side", metavar="PX", help="Objects with a shorter side are dropped."),
    probability: float = typer.Option(
        1.0, "--probability", metavar="SHARE", help="Of sm+: share of images done object by object."
    ),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of the sizes that are drawn."),
    name: str | None = NAME,
    image_format: ImageFormat = IMAGE_FORMAT,
    workers: int = WORKERS,
    as_json: bool = JSON,
    format: str | None = FORMAT,
    images: Path | None = IMAGES,
    classes: str | None = CLASSES,
    pixels: Pixels | None = PIXELS,
    encoding: str | None = ENCODING,
    allow_references: bool = ALLOW_REFERENCES,
) -> None:
    """Give the objects of SOURCE the sizes of those of --target, to pre-train on (Scale Match, MSM, SM+)."""
    import json

    from flyspeck.data.inspect_text import match_lines
    from flyspeck.data.scale_match import SizeMatchRule
    from flyspeck.data.scale_match_files import scale_match as run

    rule = SizeMatchRule(
        method=match,
        bins=num_bins,
        max_scale=max_scale,
        min_side=min_side,
        probability=probability,
        seed=seed,
    )
    for read in (source, target):
        _not_in_place(read, out / (name or _json_name(source)))
    wanted = _read(target, None, None, None)
    table = _read(source, format, images, classes, pixels, encoding, allow_references)
    with ProgressBar("matching") as progress:
        written, report = run(
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


def _not_in_place(source: Path, *targets: Path) -> None:
    """Raises UserError where the annotations that are read would be written over by what becomes of them."""
    read = [path.resolve() for path in (source, Path(str(source).rpartition(":")[0] or source))]  # data.yaml:val
    taken = next((target for target in targets if target.resolve() in read), None)
    if taken is not None:
        raise UserError("is what is read, and nothing is written in place", where=taken, fix="give another --out")


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
    out: Path = typer.Option(
        ..., "--out", metavar="FOLDER", help="Where to write: the folder of annotations.json and images/."
    ),
    num_images: int = typer.Option(100, "--num-images", min=1, metavar="N", help="Images to make."),
    seed: int = typer.Option(
        0, "--seed", min=0, metavar="N", help="Seed of the images; the same gives the same, byte for byte."
    ),
    size: str = typer.Option("512x640", "--size", metavar="HxW", help="Image size in pixels."),
    kind: Literal["sea", "field", "road"] | None = typer.Option(None, "--kind", help="Scenes of one kind only."),
    density: float = typer.Option(1.0, "--density", metavar="FACTOR", help="How many times as many things as usual."),
    workers: int = WORKERS,
) -> None:
    """Generate images of sea, fields and roads from a drone, with tiny persons, boats and cars."""
    from flyspeck.data.scenes.dataset import write_scenes

    height, width = parse_size(size)
    with ProgressBar("painting") as progress:
        target = write_scenes(
            out,
            num_images=num_images,
            seed=seed,
            height=height,
            width=width,
            kind=kind,
            density=density,
            workers=workers,
            progress=progress.update,
        )
    typer.echo(f"{target}: {counted(num_images, 'image')} of {height} x {width}")


def _read(
    source: Path,
    format: str | None,
    images: Path | None,
    classes: str | None,
    pixels: str | None = None,
    encoding: str | None = None,
    allow_references: bool = True,
) -> Annotations:
    """The table of a source, with what was seen and what is broken said on stderr."""
    from flyspeck.data.readers import read_annotations

    with ProgressBar(f"reading {source.name}"):
        table = read_annotations(
            source,
            format=format,
            images=images,
            classes=None if classes is None else parse_names(classes, where="--classes"),
            pixels=pixels,
            encoding=encoding,
            allow_references=allow_references,
        )
    print(f"read {table.source}", file=sys.stderr)
    for note in table.notes:
        print(f"note: {note}", file=sys.stderr)
    list_problems(table.problems, "broken entries left out")
    return table


def _json_name(source: Path) -> str:
    return f"{source.stem if source.suffix else source.name}.json"


app.command("errors")(errors)
keep_moved(app, "prepare", old="flyspeck data prepare", new="flyspeck-lab prepare")
