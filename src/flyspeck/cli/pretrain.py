"""`flyspeck pretrain`: a backbone as a classifier of small images."""

from __future__ import annotations

from pathlib import Path

import typer

from flyspeck.cli.shared_options import DEVICE, PRECISION, WIDTH, Precision
from flyspeck.cli.values import parse_size


def pretrain(
    backbone: str = typer.Argument(..., metavar="BACKBONE", help="A backbone of the zoo, such as bh_resnet50."),
    data: Path = typer.Argument(
        ..., metavar="DATA", help="Folder of CIFAR-10/100, ImageNet32, npz files, or train/CLASS/images."
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
        "32x32", "--size", metavar="HxW", help="Image size in pixels, made from a folder of classes; square."
    ),
    smallest_crop: float = typer.Option(
        0.5, "--smallest-crop", min=0.05, max=1.0, metavar="SHARE", help="Smallest share of the area that a crop keeps."
    ),
    max_per_class: int | None = typer.Option(
        None, "--max-per-class", min=1, metavar="N", help="Use only so many training images of each class."
    ),
    precision: Precision = PRECISION,
    device: str = DEVICE,
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of first weights, order and crops."),
) -> None:
    """Pre-train a backbone on small images; its weights load into any detector."""
    import logging

    import torch

    from flyspeck.data.classification import read_labelled_images
    from flyspeck.devices import torch_device
    from flyspeck.errors import UserError
    from flyspeck.models.build import build_backbone
    from flyspeck.train.config import TrainConfig
    from flyspeck.train.pretrain import pretrain as run

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    height, side = parse_size(size, least=8)
    if height != side:
        raise UserError(f"{size} is not square", where="--size", fix=f"for example {side}x{side}")
    where = torch_device(device)
    torch.manual_seed(seed)
    network = build_backbone(backbone, width=width, weights=weights)
    train = read_labelled_images(data, "train", size=side)
    val = read_labelled_images(data, "val", size=side)
    if max_per_class is not None:
        train = train.limit(max_per_class)
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
    )
    typer.echo(f"{backbone}: {len(train)} training and {len(val)} validation images of {len(train.classes)} classes")
    best = run(network, train, val, config, out, name=backbone, smallest_crop=smallest_crop, device=str(where))
    typer.echo(f"{best.weights}: top-1 {100 * best.top1:.2f} % (epoch {best.epoch})")
