"""`flyspeck eval`: score detections against ground truth under a named protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from flyspeck.cli.choices import protocols
from flyspeck.cli.plugin_option import name_waiting_plugins
from flyspeck.cli.shared_options import DEVICE, PIXELS, Pixels
from flyspeck.cli.terminal import Steps
from flyspeck.cli.values import parse_names, parse_numbers
from flyspeck.errors import UserError
from flyspeck.progress import Advance


def evaluate(
    gt: Path = typer.Option(
        None, "--gt", "--data", metavar="PATH", help="Ground truth: a COCO json, or the protocol's own layout."
    ),
    dt: Path = typer.Option(
        None, "--dt", metavar="PATH", help="Detections: a COCO results json, or the protocol's own layout."
    ),
    model: Path = typer.Option(
        None,
        "--model",
        metavar="PATH",
        help="A run folder, weights or exported file: run on the images of --data first.",
    ),
    protocol: str = typer.Option(
        "flyspeck",
        "--protocol",
        metavar="NAME",
        autocompletion=protocols,
        help="Protocol to score under; --list says what each is.",
    ),
    out: Path = typer.Option(None, "--out", metavar="FILE", help="Where to write: a JSON file of the numbers."),
    bins: str = typer.Option(
        None, "--bins", metavar="A,B,...", help="Sizes in pixels that bound the bins, such as 2,8,12,20,32."
    ),
    max_dets: int = typer.Option(None, "--max-dets", min=1, metavar="N", help="Detections kept per image and class."),
    iou: str = typer.Option(None, "--iou", metavar="A,B,...", help="IoU thresholds, such as 0.25,0.5."),
    merge_from: Path = typer.Option(
        None,
        "--merge-from",
        metavar="FILE",
        help="COCO json of the tiles (with corners) that --dt was made on: merge it first.",
    ),
    merge_kernel: Literal["cpu", "cuda"] = typer.Option(
        "cpu", "--merge-kernel", help="NMS rule of the merge: cpu (>=) or cuda (>)."
    ),
    classes: str = typer.Option(
        None, "--classes", metavar="A,B,...", help="Names of the classes to score, with commas between."
    ),
    per_class: bool = typer.Option(False, "--per-class", help="Print the numbers of every class too."),
    score: float = typer.Option(
        None,
        "--score",
        metavar="SCORE",
        help="Score threshold that boxes are counted from; default: that of the best F1 on these images.",
    ),
    any_score: bool = typer.Option(False, "--any-score", help="Allow scores outside [0, 1]."),
    why: bool = typer.Option(False, "--why", help="Errors by size, what they cost, oLRP, recall, calibration."),
    bootstrap: int = typer.Option(
        0,
        "--bootstrap",
        min=0,
        metavar="N",
        help="Resamples of the images for confidence intervals; 1000 is good, 0 leaves them out.",
    ),
    against: Path = typer.Option(
        None, "--against", metavar="FILE", help="Detections of another run: difference and p-value."
    ),
    tiles: Path = typer.Option(
        None, "--tiles", metavar="FILE", help="COCO json of tiles (with corners): recall by distance to their borders."
    ),
    pixels: Pixels | None = PIXELS,
    max_broken_share: float = typer.Option(
        0.0,
        "--max-broken-share",
        min=0,
        max=1,
        metavar="SHARE",
        help="Share of the ground truth's entries that may be broken and left out.",
    ),
    baselines: bool = typer.Option(
        False,
        "--baselines",
        help="Measure what needs no network too: no box, blobs of the usual sizes, the usual places and number.",
    ),
    train: Path = typer.Option(
        None,
        "--train",
        metavar="PATH",
        help="Annotations that --baselines is fitted to; default: the training set of the run.",
    ),
    html: Path = typer.Option(None, "--html", metavar="FILE", help="Page of the numbers, curves and worst images."),
    device: str = DEVICE,
    list_protocols: bool = typer.Option(False, "--list", help="List the protocols and stop."),
) -> None:
    """Score detections, or a model that is run first, against ground truth under a named protocol."""
    from flyspeck.cli.evaluate_more import Besides, Reasons, called, found_by
    from flyspeck.evaluate import PROTOCOLS, customised, protocol_named
    from flyspeck.evaluate import evaluate as run
    from flyspeck.evaluate.layouts import read_pair

    if list_protocols:
        for known in PROTOCOLS.values():
            typer.echo(f"{known.text}\n    {known.source}")
        name_waiting_plugins()
        return
    for path, option in ((against, "--against"), (tiles, "--tiles")):
        if path is not None and not path.is_file():
            raise UserError("no such file", where=f"{option} {path}", fix="check the path")
    if score is not None and not (any_score or 0 <= score <= 1):
        raise UserError(f"a score of {score:g}", where="--score", fix="give 0 to 1, or allow others with --any-score")
    chosen = customised(
        protocol_named(protocol),
        size_edges=None if bins is None else parse_numbers(bins, where="--bins", least=0, example="2,8,12,20,32"),
        max_dets=max_dets,
        ious=None if iou is None else parse_numbers(iou, where="--iou", least=0, example="0.5,0.75"),
    )
    with Steps("running the model" if model is not None else "reading") as steps:
        with found_by(model, gt, dt, device=device, steps=steps) as (truth, found):
            annotations, detections = read_pair(
                truth,
                found,
                chosen,
                any_score=any_score,
                merge_from=merge_from,
                merge_kernel=merge_kernel,
                classes=None if classes is None else parse_names(classes, where="--classes"),
                pixels=pixels,
                max_broken_share=max_broken_share,
            )
        steps(Advance("matching"))
        run_folder = dt.parent if model is None else model
        name = called(dt) if model is None else model.stem
        result = run(annotations, detections, chosen, score=score)
        steps(Advance("looking for reasons"))
        reasons = Reasons(why or tiles is not None, bootstrap, against, tiles or merge_from, any_score, name)
        text = reasons.add(annotations, detections, result)
        text += Besides(baselines, train, html, run_folder, name).add(annotations, detections, result)
    for note in result.notes:
        typer.echo(f"warning: {note}", err=True)
    typer.echo(result.table(per_class=per_class), nl=False)
    typer.echo(text, nl=False)
    if out is not None:
        result.write(out)
