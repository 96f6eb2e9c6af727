"""`flyspeck-lab prepare`: the papers' data sets."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import WORKERS
from flyspeck.cli.terminal import ProgressBar, list_problems
from flyspeck.errors import UserError, counted


def prepare(
    name: str = typer.Argument(
        "", metavar="[SET]", help="tinyperson, citypersons, coco, voc, widerface, …; without a name they are listed."
    ),
    root: Path = typer.Option(Path("data"), "--root", metavar="FOLDER", help="Folder of the downloaded set."),
    out: Path | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: a folder; default: ROOT/prepared."
    ),
    overlap: int = typer.Option(
        30,
        "--overlap",
        min=0,
        metavar="PX",
        help="Pixels that training tiles share, of TinyPerson.",
    ),
    test_overlap: int = typer.Option(
        100, "--test-overlap", min=0, metavar="PX", help="Pixels that test tiles share, of TinyPerson."
    ),
    check_only: bool = typer.Option(False, "--check-only", help="Write nothing."),
    hashes: bool = typer.Option(
        True, "--hashes/--no-hashes", help="Read archives and files whose MD5 is known to the end."
    ),
    anyway: bool = typer.Option(False, "--anyway", help="Convert what is there, although something is missing."),
    workers: int = WORKERS,
) -> None:
    """Check a downloaded data set of the papers, say where it is from, and convert it to what its recipes read."""
    from flyspeck_lab.prepare import SETS, check_set, known_set, prepare_set

    if not name:
        for key, known in SETS.items():
            typer.echo(f"{key:<17} {known.title}\n{'':<17} from {known.get}")
        return
    known = known_set(name)
    checks = check_set(known, root, hashes=hashes)
    for check in checks:
        typer.echo(f"  {'ok ' if check.good else 'BAD'} {check.what}: {check.found}")
    typer.echo(f"{known.title}; licence: {known.licence}; counts by {known.facts}")
    bad = sum(not check.good for check in checks)
    if bad and not anyway:
        raise UserError(
            f"{bad} of {len(checks)} checks failed", where=root, fix=f"get the set: {known.get}; or --anyway"
        )
    if check_only:
        return
    if not known.parts:
        typer.echo("read as it is: nothing to convert")
    with ProgressBar("writing") as progress:
        written = list(
            prepare_set(
                known,
                root,
                out or root / "prepared",
                overlap=overlap,
                test_overlap=test_overlap,
                workers=workers,
                progress=progress.update,
            )
        )
    for path, table in written:
        list_problems(table.problems, f"broken entries left out of {path.name}")
        typer.echo(f"{path}: {counted(len(table), 'image')}, {counted(table.num_boxes, 'box')}")
