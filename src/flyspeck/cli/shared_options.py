"""Options that many verbs have: one name, one type, one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import typer

from flyspeck.cli.choices import annotation_formats

Precision = Literal["fp32", "bf16"]
Pixels = Literal["half-open", "from-0", "from-1"]

DEVICE = typer.Option(
    "auto",
    "--device",
    metavar="DEVICE",
    help="Where the model runs: auto for the best there is, cpu, cuda, cuda:1, mps.",
)
FORMAT = typer.Option(
    None,
    "--format",
    metavar="NAME",
    autocompletion=annotation_formats,
    help="Format of the annotations; default: found out.",
)
JSON = typer.Option(False, "--json", help="Print JSON in place of text.")
PIXELS = typer.Option(None, "--pixels", help="What whole corners of VOC's boxes mean.")
PRECISION = typer.Option("fp32", "--precision", help="Numbers that the model computes in.")
PRINT_CONFIG = typer.Option(False, "--print-config", help="Print the complete recipe, every field explained, and stop.")
RESUME = typer.Option(False, "--resume", help="Go on where an earlier call of the same stopped.")
SET = typer.Option(
    [], "--set", metavar="KEY=VALUE", help="Change a field of the recipe, such as train.epochs=3; may be repeated."
)
THREADS = typer.Option(None, "--threads", min=1, metavar="N", help="CPU threads of PyTorch; default: its own choice.")
WIDTH = typer.Option(1.0, "--width", min=0.01, metavar="FACTOR", help="Multiplier of the backbone's channels.")
WORKERS = typer.Option(2, "--workers", min=1, metavar="N", help="Processes that work side by side.")


@contextmanager
def training_device(name: str) -> Iterator[None]:
    """Within it, a training runs on the device of that name; `auto` leaves the choice to accelerate, and to a launcher.

    Raises UserError for a device that is not there, and for one that is named to several processes at once.
    """
    from flyspeck.devices import torch_device
    from flyspeck.errors import UserError

    if name == "auto":
        yield
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes choose their devices themselves", where="--device", fix="leave it out")
    key = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(key)
    os.environ[key] = str(torch_device(name))
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before
