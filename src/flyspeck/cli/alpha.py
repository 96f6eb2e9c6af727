"""`flyspeck alpha`: the statistical fusion factors of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from flyspeck.cli.shared_options import JSON
from flyspeck.errors import counted


def alpha(
    gt: Path = typer.Argument(
        ..., metavar="ANNOTATIONS", help="Annotations: a file or folder in any of the formats read."
    ),
    anchors: str = typer.Option(
        "8,16,32,64,128", "--anchors", metavar="A,B,...", help="Anchor size of each level in pixels, finest first."
    ),
    ratios: str = typer.Option("0.5,1,2", "--ratios", metavar="A,B,...", help="Anchor ratios, height over width."),
    octaves: int = typer.Option(
        3, "--octaves", min=1, metavar="N", help="Anchor sizes per level: size x 2^(k/octaves)."
    ),
    strides: str = typer.Option(
        "4,8,16,32,64", "--strides", metavar="A,B,...", help="Image pixels per map pixel of each level, finest first."
    ),
    size: str = typer.Option(
        "", "--size", metavar="HxW", help="Image size in pixels, as the network sees it; default: each image's own."
    ),
    assign: Literal["anchors", "points"] = typer.Option(
        "anchors", "--assign", help="Who claims an object: anchors (highest IoU) or points (FCOS)."
    ),
    count: Literal["anchors", "objects"] = typer.Option(
        "anchors", "--count", help="What is counted: anchors claimed, each once an image, or every object."
    ),
    extra_levels: int = typer.Option(
        1, "--extra-levels", min=0, metavar="N", help="Coarsest levels made from the one before, without a fusion edge."
    ),
    raw: bool = typer.Option(False, "--raw", help="The plain ratio: no clamp to [0.2, 2], no rounding."),
    as_json: bool = JSON,
) -> None:
    """Count the objects of each pyramid level and give the fusion factors that follow (S-alpha, Algorithm 1)."""
    import warnings
    from functools import partial

    from flyspeck.cli.values import parse_integers, parse_numbers, parse_size
    from flyspeck.data import fusion
    from flyspeck.data.readers import read_annotations

    steps = parse_integers(strides, where="--strides")
    if assign == "points":
        assignment = partial(fusion.assigned_points, strides=steps)
    else:
        levels = fusion.anchor_levels(
            steps,
            parse_numbers(anchors, where="--anchors"),
            ratios=parse_numbers(ratios, where="--ratios"),
            octaves=octaves,
        )
        assignment = partial(fusion.best_anchor, levels=levels)
    annotations = read_annotations(gt)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fusion.fusion_statistics(
            annotations,
            assignment,
            steps,
            size=parse_size(size) if size else None,
            count=count,
            raw=raw,
            extra_levels=extra_levels,
        )
    for warning in caught:
        typer.echo(f"warning: {warning.message}", err=True)
    if found.unmatched:
        typer.echo(f"warning: {found.unmatched} boxes that no anchor or point reaches are not counted", err=True)
    summary = {
        "images": len(annotations),
        "objects": int((~(annotations.ignore | annotations.crowd)).sum()),
        "unmatched": found.unmatched,
        "assign": assign,
        "count": count,
        "clamp": None if raw else list(fusion.CLAMP),
        "counts": dict(zip(found.levels, found.counts, strict=True)),
        "factors": dict(zip(found.edges, found.factors, strict=True)),
    }
    _print_json(summary) if as_json else _print_table(summary)


def _print_json(summary: dict) -> None:
    import json

    typer.echo(json.dumps(summary))


def _print_table(summary: dict) -> None:
    typer.echo(
        f"{counted(summary['objects'], 'object')} in {counted(summary['images'], 'image')}; counted: {summary['count']}"
    )
    for level, number in summary["counts"].items():
        typer.echo(f"  {level:<4} {number:>9}")
    note = "plain ratios" if summary["clamp"] is None else "clamped to [{}, {}], rounded".format(*summary["clamp"])
    typer.echo(f"fusion factors ({note}):")
    for edge, factor in summary["factors"].items():
        typer.echo(f"  {edge:<4} {factor:>9.6g}")
