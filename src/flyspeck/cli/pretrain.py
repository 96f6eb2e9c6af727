"""`flyspeck pretrain`: a backbone as a classifier of images, small ones in memory, many or large ones from the disk."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, PRECISION, RESUME, WIDTH, Precision
from flyspeck.cli.terminal import loading
from flyspeck.cli.values import parse_size


def pretrain(
    backbone: str = typer.Argument(..., metavar="BACKBONE", help="A backbone of the zoo, such as bh_resnet50."),
    data: Path = typer.Argument(
        ..., metavar="DATA", help="Folder of CIFAR-10/100, ImageNet32, npz files, train/CLASS/images, or train/*.tar."
    ),
    out: Path = typer.Option(
        Path("runs/pretrain"), "--out", metavar="FOLDER", help="Where to write: the folder of weights and log."
    ),
    epochs: int = typer.Option(30, "--epochs", min=1, metavar="N", help="Passes over the training images."),
    batch_size: int = typer.Option(
        128, "--batch-size", min=2, metavar="N", help="Batch size: training images in one step."
    ),
    lr: float = typer.Option(0.05, "--lr", min=0.0, metavar="RATE", help="Largest learning rate, for this batch size."),
    weight_decay: float = typer.Option(
        5e-4, "--weight-decay", min=0.0, metavar="RATE", help="Weight decay of the optimiser."
    ),
    warmup_steps: int = typer.Option(
        200, "--warmup-steps", min=0, metavar="N", help="Steps over which the learning rate rises."
    ),
    width: float = WIDTH,
    weights: Path | None = typer.Option(None, "--weights", metavar="FILE", help="Start from these weights."),
    size: str = typer.Option(
        "32x32", "--size", metavar="HxW", help="Image size in pixels, made from images of any; square."
    ),
    smallest_crop: float = typer.Option(
        0.5, "--smallest-crop", min=0.05, max=1.0, metavar="SHARE", help="Smallest share of the area that a crop keeps."
    ),
    max_per_class: int | None = typer.Option(
        None, "--max-per-class", min=1, metavar="N", help="Use only so many training images of each class."
    ),
    stream: bool | None = typer.Option(
        None,
        "--stream/--in-memory",
        help="Read images when they are needed, or hold all; default: a folder of classes is held if it takes no more than 1 GB.",
    ),
    loaders: int | None = typer.Option(
        None, "--loaders", min=0, metavar="N", help="Processes that read images ahead; default: fitted to the machine."
    ),
    max_broken_share: float = typer.Option(
        0.01,
        "--max-broken-share",
        min=0,
        max=1,
        metavar="SHARE",
        help="Share of the images read when needed that may be unreadable; each is named, and another stands in for it.",
    ),
    resume: bool = RESUME,
    precision: Precision = PRECISION,
    device: str = DEVICE,
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of first weights, order and crops."),
) -> None:
    """Pre-train a backbone as a classifier; its weights load into any detector. `torchrun` shares a batch among processes."""
    import logging

    from flyspeck.devices import torch_device
    from flyspeck.errors import UserError, counted

    with loading("pretrain"):
        import torch

        from flyspeck.models.build import build_backbone
        from flyspeck.train.config import TrainConfig
        from flyspeck.train.pretrain import pretrain as run
        from flyspeck.train.pretrain_sets import read_sets

    main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    height, side = parse_size(size, least=8)
    if height != side:
        raise UserError(f"{size} is not square", where="--size", fix=f"for example {side}x{side}")
    where = torch_device(device)
    torch.manual_seed(seed)
    network = build_backbone(backbone, width=width, weights=weights)
    train, val = read_sets(data, size=side, per_class=max_per_class, stream=stream)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="sgd",
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        schedule="cosine",
        precision=precision,
        seed=seed,
        workers=loaders,
    )
    if main:
        typer.echo(
            f"{backbone}: {len(train)} training and {counted(len(val), 'validation image')} of "
            f"{counted(len(train.classes), 'class')}"
        )
    best = run(
        network,
        train,
        val,
        config,
        out,
        name=backbone,
        smallest_crop=smallest_crop,
        device=str(where),
        size=side,
        max_broken_share=max_broken_share,
        resume=resume,
    )
    if main:
        typer.echo(f"{best.weights}: top-1 {100 * best.top1:.2f} % (epoch {best.epoch})")
