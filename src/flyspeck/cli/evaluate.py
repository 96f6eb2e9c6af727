"""`flyspeck eval`: score detections against ground truth under a named protocol."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.errors import UserError


def evaluate(
    gt: Path = typer.Option(None, "--gt", help="Ground truth: a COCO json, or the protocol's own layout."),
    dt: Path = typer.Option(None, "--dt", help="Detections: a COCO results json, or the protocol's own layout."),
    protocol: str = typer.Option("flyspeck", "--protocol", help="Name of the protocol; --list shows them."),
    json_out: Path = typer.Option(None, "--json", help="Write the numbers here."),
    bins: str = typer.Option(None, "--bins", help="Sizes in pixels that bound the bins, such as 2,8,12,20,32."),
    max_dets: int = typer.Option(None, "--max-dets", help="Detections kept per picture and class."),
    iou: str = typer.Option(None, "--iou", help="IoU thresholds, such as 0.25,0.5."),
    merge_from: Path = typer.Option(
        None, "--merge-from", help="COCO json of the tiles (with corners) that --dt was made on: merge it first."
    ),
    merge_kernel: str = typer.Option("cpu", "--merge-kernel", help="NMS rule of the merge: cpu (>=) or cuda (>)."),
    per_class: bool = typer.Option(False, "--per-class", help="Print the numbers of every class too."),
    any_score: bool = typer.Option(False, "--any-score", help="Allow scores outside [0, 1]."),
    list_protocols: bool = typer.Option(False, "--list", help="List the protocols and stop."),
) -> None:
    """Score detections against ground truth under a named protocol."""
    from flyspeck.evaluate import PROTOCOLS, customised, protocol_named
    from flyspeck.evaluate import evaluate as run
    from flyspeck.evaluate.layouts import read_pair
    from flyspeck.evaluate.printing import table

    if list_protocols:
        for known in PROTOCOLS.values():
            typer.echo(f"{known.text}\n    {known.source}")
        return
    if gt is None or dt is None:
        raise UserError("nothing to score", fix="give --gt and --dt")
    chosen = customised(
        protocol_named(protocol), size_edges=_numbers(bins, "--bins"), max_dets=max_dets, ious=_numbers(iou, "--iou")
    )
    annotations, detections = read_pair(
        gt, dt, chosen, any_score=any_score, merge_from=merge_from, merge_kernel=merge_kernel
    )
    result = run(annotations, detections, chosen)
    for note in result.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(table(result, per_class=per_class), nl=False)
    if json_out is not None:
        result.write(json_out)


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """`2,8,12` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"'{text}' is no list of numbers", where=option, fix="for example 2,8,12,20,32") from None
