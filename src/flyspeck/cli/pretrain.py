"""`flyspeck pretrain`: a backbone as a classifier of small images."""

from __future__ import annotations

from pathlib import Path

import typer


def pretrain(
    backbone: str = typer.Argument(..., help="A backbone of the zoo, such as bh_resnet50."),
    data: Path = typer.Argument(..., help="Folder of CIFAR-10/100, ImageNet32, npz files, or train/CLASS/images."),
    out: Path = typer.Option(Path("runs/pretrain"), "--out", help="Where weights and log go."),
    epochs: int = typer.Option(30, min=1),
    batch_size: int = typer.Option(128, min=2),
    lr: float = typer.Option(0.05, min=0.0, help="Largest learning rate, for this batch size."),
    weight_decay: float = typer.Option(5e-4, min=0.0),
    warmup_steps: int = typer.Option(200, min=0),
    width: float = typer.Option(1.0, min=0.01, help="Multiplier of the backbone's channel counts."),
    weights: Path | None = typer.Option(None, help="Start from these weights."),
    size: int = typer.Option(32, min=8, help="Side of the square images made from a folder of classes."),
    smallest_crop: float = typer.Option(0.5, min=0.05, max=1.0, help="Smallest share of the area that a crop keeps."),
    per_class: int | None = typer.Option(None, min=1, help="Use only so many training images of each class."),
    precision: str = typer.Option("fp32", help="fp32 or bf16."),
    device: str = typer.Option("", help="cpu, cuda, …; default: the GPU where there is one."),
    seed: int = typer.Option(0),
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
    if precision not in ("fp32", "bf16"):
        raise UserError(f"'{precision}' is unknown", where="--precision", fix="write fp32 or bf16")
    torch.manual_seed(seed)
    network = build_backbone(backbone, width=width, weights=weights)
    train = read_labelled_images(data, "train", size=size)
    val = read_labelled_images(data, "val", size=size)
    if per_class is not None:
        train = train.limit(per_class)
    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        warmup_steps=warmup_steps,
        schedule="cosine",
        precision="bf16" if precision == "bf16" else "fp32",
        seed=seed,
    )
    typer.echo(f"{backbone}: {len(train)} training and {len(val)} validation images of {len(train.classes)} classes")
    where = torch_device(device or "auto")
    best = run(network, train, val, config, out, name=backbone, smallest_crop=smallest_crop, device=where)
    typer.echo(f"{best.weights}: top-1 {100 * best.top1:.2f} % (epoch {best.epoch})")
