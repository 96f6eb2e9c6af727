"""Options that many verbs have: one name, one type, one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import typer

from flyspeck.cli.choices import annotation_formats

Frames = Literal["auto", "yes", "no"]
Precision = Literal["fp32", "bf16"]
Pixels = Literal["half-open", "from-0", "from-1"]

ALIKE = typer.Option(
    0.8,
    "--alike",
    min=0.5,
    max=1.0,
    metavar="R",
    help="Least correlation of two images at 32x32 that are called nearly the same.",
)
ALLOW_REFERENCES = typer.Option(
    False,
    "--allow-references",
    help="Let files lead to others outside their folder (a json to images, a VRT to sources), and to other computers.",
)
ALSO = typer.Option(
    [], "--also", metavar="PATH", help="Another part of the same set, such as the test split; may be repeated."
)
CLASSES = typer.Option(None, "--classes", metavar="A,B,...", help="Names of the classes to read, with commas between.")
COMPARE_IMAGES = typer.Option(
    True,
    "--compare-images/--no-compare-images",
    help="Decode every image and find those that are the same, or nearly.",
)
DEVICE = typer.Option(
    "auto",
    "--device",
    metavar="DEVICE",
    help="Where the model runs: auto for the best there is, cpu, cuda, cuda:1, mps.",
)
ENCODING = typer.Option(
    None, "--encoding", metavar="NAME", help="Encoding of text files that are not UTF-8: cp1252, gbk, ..."
)
EPOCHS_AFTER = typer.Option(
    None,
    "--epochs",
    min=1,
    metavar="N",
    help="Passes over the training images, in the recipe; default: a quarter of the run's, or of its minutes.",
)
FINISHED_RUN = typer.Argument(..., metavar="RUN", help="A finished run folder.")
FORMAT = typer.Option(
    None,
    "--format",
    metavar="NAME",
    autocompletion=annotation_formats,
    help="Format of the annotations; default: found out.",
)
FRAMES = typer.Option(
    "auto", "--frames", help="Whether numbers in names count frames; auto: where neighbours are more alike than others."
)
FRAME_GAP = typer.Option(
    20, "--frame-gap", min=0, metavar="N", help="Largest difference of the numbers of neighbouring frames."
)
IMAGES = typer.Option(None, "--images", metavar="FOLDER", help="Folder of the images, where it is not the usual one.")
JSON = typer.Option(False, "--json", help="Print JSON in place of text.")
LINK = typer.Option(False, "--link", help="YOLO: link the images instead of copying them.")
MINUTES = typer.Option(
    None, "--minutes", metavar="N", help="Minutes to spend in place of the recipe's epochs (train.minutes)."
)
PIXELS = typer.Option(None, "--pixels", help="What whole corners of VOC's boxes mean.")
PRECISION = typer.Option("fp32", "--precision", help="Numbers that the model computes in.")
PRINT_CONFIG = typer.Option(False, "--print-config", help="Print the complete recipe, every field explained, and stop.")
RESUME = typer.Option(False, "--resume", help="Go on where an earlier call of the same stopped.")
SET = typer.Option(
    [], "--set", metavar="KEY=VALUE", help="Change a field of the recipe, such as train.epochs=3; may be repeated."
)
SOURCE = typer.Argument(..., metavar="SOURCE", help="Annotations: a file or folder in any of the formats read.")
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
