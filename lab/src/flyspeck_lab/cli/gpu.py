"""`flyspeck-lab pack` and `gpu`: what a GPU that is there for some minutes is asked."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, THREADS, training_device


def pack(
    data: Path = typer.Option(
        Path("data"),
        "--data",
        metavar="FOLDER",
        help="Folder of the data sets: hituav, nuclei, and what else is there.",
    ),
    out: Path = typer.Option(Path("packed"), "--out", metavar="FOLDER", help="Where to write: a folder, written anew."),
    megabytes: float = typer.Option(
        45.0,
        "--megabytes",
        min=1,
        metavar="N",
        help="Megabytes of the pack, at most: images of the base weights give way.",
    ),
    scenes: int = typer.Option(1200, "--scenes", min=6, metavar="N", help="Number of generated scenes, at most."),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of the scenes."),
) -> None:
    """Pack the data of `flyspeck-lab gpu`, to be taken to a machine that has none."""
    from flyspeck_lab.gpu_data import pack as write

    told = write(data, out, megabytes=megabytes, scenes=scenes, seed=seed)
    counts = ", ".join(f"{number} {name}" for name, number in told["images"].items())
    typer.echo(f"{out}: {told['bytes'] / 1e6:.1f} MB ({counts})")


def gpu(
    minutes: float = typer.Option(11.0, "--minutes", min=0, metavar="N", help="Minutes to spend, all in all."),
    data: Path = typer.Option(Path("packed"), "--data", metavar="FOLDER", help="Folder of the pack."),
    out: Path = typer.Option(
        Path("runs/gpu/out"), "--out", metavar="FOLDER", help="Where to write: rows, runtimes, small checkpoints."
    ),
    runs: Path = typer.Option(Path("runs/gpu"), "--runs", metavar="FOLDER", help="Folder of the run folders."),
    rows: str = typer.Option("", "--rows", metavar="A,B,...", help="Only these parts, with commas between."),
    steps: int = typer.Option(
        None, "--steps", min=1, metavar="N", help="Training steps of each part: a trial of narrow networks."
    ),
    list_: bool = typer.Option(
        False, "--list", help="List the parts, what is expected of each and what fits, and stop."
    ),
    device: str = DEVICE,
    threads: int | None = THREADS,
) -> None:
    """Test, time and train on a GPU that is there for some minutes; what is done is kept, and another call goes on."""
    import logging

    from flyspeck.cli.values import parse_names

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    import torch

    from flyspeck_lab.gpu import Asked, run

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = parse_names(rows, where="--rows") if rows else None
    with training_device(device):
        found = run(Asked(data, out, runs, minutes, device, steps, chosen), only_plan=list_)
    for name, facts in found.known.items():
        typer.echo(f"{name:<30} {facts['status']}")
