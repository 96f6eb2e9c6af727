"""`flyspeck demo`: the main job from nothing to one HTML page, on scenes that are generated on the spot."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.cli.demo_recipe import BATCH, NEW, STARTED, form_at_hand
from flyspeck.cli.shared_options import DEVICE, training_device
from flyspeck.devices import processors
from flyspeck.errors import UserError, counted
from flyspeck.files import own_place, write_text

if TYPE_CHECKING:
    from flyspeck.evaluate import EvaluationResult
    from flyspeck.report import Section

TILE = (256, 320)  # images to learn from: small ones are quick
# Scenes to learn from hold three times as many things as those to measure on: a step teaches more in the same time.
DENSITY = 3.0
BIG = (3000, 4000)
LARGE = 2_000_000  # pixels from which a process of its own pays


def demo(
    out: Path = typer.Option(
        Path("flyspeck-demo"), "--out", metavar="FOLDER", help="Where to write: the folder of all that the demo makes."
    ),
    num_images: int | None = typer.Option(
        None,
        "--num-images",
        min=8,
        metavar="N",
        help="Images to make, to learn from. "
        f"Default: {STARTED.images} where a trained detector is at hand to start from (in a clone), else {NEW.images}.",
    ),
    num_val_images: int = typer.Option(
        120, "--num-val-images", min=4, metavar="N", help="Images to make, to measure on."
    ),
    minutes: float | None = typer.Option(
        None,
        "--minutes",
        min=0.1,
        metavar="N",
        help="Minutes to spend: the training takes what the rest leaves. Default: "
        f"{STARTED.minutes:g} with such a detector, else {NEW.minutes:g}.",
    ),
    epochs: int | None = typer.Option(
        None, "--epochs", min=1, metavar="N", help="Passes over the training images, however long they take."
    ),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="Seed of the scenes and of the training."),
    big: str = typer.Option(
        f"{BIG[0]}x{BIG[1]}", "--big", metavar="HxW", help="Size of the one large scene, in pixels."
    ),
    device: str = DEVICE,
) -> None:
    """Scenes, training, evaluation, prediction on one large image, one page: the whole job in a few minutes."""
    import logging

    from flyspeck.cli.values import parse_size

    side = parse_size(big, where="--big")
    if (out / "run").exists() or (out / "train").exists():
        raise UserError("a demo was made there already", where=out, fix="name another --out, or delete this one")
    form = form_at_hand()
    minutes = minutes or form.minutes
    clock = _Clock()
    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    logging.getLogger("flyspeck").setLevel(logging.INFO)
    with clock("painting scenes"):
        painting = _paint(out, num_images or form.images, num_val_images, side, seed)
    with clock("loading PyTorch"):
        import_module("flyspeck.train.run")
    from flyspeck.plan.speed import take_threads, this_machine, threads_kept
    from flyspeck.report import build_report, read_run
    from flyspeck.report.diagnosis import diagnose
    from flyspeck.train.launch import processes_for

    with threads_kept():
        machine = this_machine(device)
        processes = 1
        if not epochs:  # by the clock no two trainings are the same anyway
            if machine.device == "cpu":
                processes = processes_for(machine.cpus, machine.memory, BATCH)
            if processes == 1:
                take_threads(machine, typer.echo)
        with clock("training"), training_device(device):
            starting = clock.parts[-1][1] if processes > 1 else 0.0  # each of them loads PyTorch again
            left = _left(minutes, clock.total + starting, painting)
            length = f"epochs: {epochs}" if epochs else f"minutes: {left:.2f}"
            typer.echo(f"  {form.words()}")
            recipe = form.recipe(length=length, precision=machine.precision, seed=seed)
            _train(out, recipe, processes=processes, threads=max(1, machine.cpus // processes))
        with clock("measuring on unseen scenes"):
            run = read_run(out / "run")
        if processes > 1:  # this one has not trained; by all threads a prediction on a busy machine waits for itself
            take_threads(this_machine(device), typer.echo)
        with clock(f"predicting on one scene of {side[1]} x {side[0]}"):
            scene, on_big = _predict(out, side, device=device, score=diagnose(run).working_score)
    with clock("writing the page"):
        title = "flyspeck demo: tiny things in generated scenes"
        page = build_report([run], out / "report.html", title=title, opening=[scene])
    typer.echo("")
    typer.echo(run.evaluation.table())
    typer.echo(f"the large scene: AP50 {_percent(on_big, 'all')}, AP50 of tiny objects {_percent(on_big, 'tiny')}")
    typer.echo(f"{clock.total:.0f} s in all: {clock.summary}")
    if not epochs:
        typer.echo(_too_short(run.history, minutes, form.fair_epochs), nl=False)
    typer.echo(f"\nThe page: {page.resolve()}\n")
    typer.echo(_next_steps(out))


@dataclass
class _Clock:
    """Says what happens, and how long it took."""

    parts: tuple[tuple[str, float], ...] = ()

    @contextmanager
    def __call__(self, words: str) -> Iterator[None]:
        typer.echo(f"{words} ...")
        start = time.perf_counter()
        yield
        self.parts += ((words, time.perf_counter() - start),)

    @property
    def total(self) -> float:
        """Seconds so far."""
        return sum(seconds for _, seconds in self.parts)

    @property
    def summary(self) -> str:
        """Each part with its seconds."""
        return ", ".join(f"{words} {seconds:.0f} s" for words, seconds in self.parts)


def _paint(out: Path, images: int, val_images: int, side: tuple[int, int], seed: int) -> float:
    """Scenes to learn from, others to measure on, and the large one, each of a seed of its own, by all processors.

    Returns the seconds that one processor would have taken, about.
    """
    from flyspeck.data.image_files import pool_deaths_told
    from flyspeck.data.scenes.dataset import write_scenes

    begun, cpus = time.perf_counter(), processors()
    # Three seeds apart for any --seed: no scene to learn from is ever one to measure on.
    large: dict[str, Any] = {"num_images": 1, "seed": 3 * seed + 2, "height": side[0], "width": side[1]}
    beside = cpus > 1 and side[0] * side[1] > LARGE  # one process paints it while others paint the small ones
    with pool_deaths_told(), ProcessPoolExecutor(1, get_context("spawn")) if beside else nullcontext() as pool:
        painted = None if pool is None else pool.submit(write_scenes, out / "large", **large)
        for folder, number, part, density in (
            ("train", images, 3 * seed, DENSITY),
            ("val", val_images, 3 * seed + 1, 1.0),
        ):
            workers = min(8, cpus) if number > 100 else 1
            size: dict[str, Any] = {"height": TILE[0], "width": TILE[1], "density": density}
            write_scenes(out / folder, num_images=number, seed=part, workers=workers, **size)
        if painted is None:
            write_scenes(out / "large", **large)
        else:
            painted.result()
    return (time.perf_counter() - begun) * (min(8, cpus) if beside else 1)


def _left(minutes: float, used: float, painting: float) -> float:
    """Minutes for the training, of which half a minute at least: what the seconds that are used, and predicting, leave.

    The prediction on the large scene and the page take less than 0.3 of the time that one processor takes to paint all scenes,
    `painting` in seconds, on slow machines and on fast ones.
    """
    return max(0.5, minutes - (used + max(5.0, 0.3 * painting)) / 60)


def _train(out: Path, recipe: str, *, processes: int, threads: int) -> None:
    """The recipe, as a file, and its run; by one process where several cannot."""
    from flyspeck.train.config import load_recipe
    from flyspeck.train.launch import train_together
    from flyspeck.train.run import begun, train

    write_text(out / "recipe.yaml", recipe)
    if processes > 1:
        typer.echo(f"  by {processes} processes, which share each batch")
        if train_together(out / "recipe.yaml", out / "run", processes=processes, threads=threads):
            return
        typer.echo("  they could not go on together: one process goes on")
    train(load_recipe(out / "recipe.yaml"), out / "run", resume=begun(out / "run"))


def _too_short(history: Sequence[Mapping[str, Any]], minutes: float, fair_epochs: int) -> str:
    """A line, with its end, where the detector saw the scenes too seldom to have learnt: its numbers say little then."""
    if len(history) >= fair_epochs:
        return ""
    seconds = sum(record["seconds"] for record in history) / max(1, len(history))
    fair = minutes + seconds * (fair_epochs - len(history)) / 60
    return (
        f"Too short to judge by: it saw each scene {len(history)} of the {fair_epochs} times that are fair. Other programs use"
        f" this machine, or it is slow: try `--minutes {fair:.0f}`, or later\n"
    )


def _predict(out: Path, side: tuple[int, int], *, device: str, score: float) -> tuple[Section, EvaluationResult]:
    """Tiles over one large scene, merged; its numbers, and the image with detections of `score` and more.

    The protocol's number of detections is that of a small scene: the large one has so many for each part of that size.
    """
    import numpy as np

    from flyspeck.data.readers import read_annotations
    from flyspeck.drawing import annotated
    from flyspeck.evaluate import DetectionTable, evaluate
    from flyspeck.evaluate.catalogue import protocol_named
    from flyspeck.evaluate.protocols import APProtocol
    from flyspeck.infer.one_class import best_of_each_place
    from flyspeck.infer.predictor import Predictor
    from flyspeck.infer.source import open_source
    from flyspeck.infer.torch_model import TorchModel
    from flyspeck.report import Section
    from flyspeck.train.build import load_detector

    truth = read_annotations(out / "large" / "annotations.json")
    tile = tuple(2 * s for s in TILE)
    predictor = Predictor(
        TorchModel(load_detector(out / "run"), device=device), tile=(tile[0], tile[1]), overlap=64, batch_size=2
    )
    start = time.perf_counter()
    (found,) = predictor.predict(truth.path(0))
    seconds = time.perf_counter() - start
    table = DetectionTable.from_list([found], truth)
    table.write_coco(out / "large" / "detections.json", truth)
    protocol = protocol_named("flyspeck")
    assert isinstance(protocol, APProtocol)
    parts = max(1.0, side[0] * side[1] / (TILE[0] * TILE[1]))
    result = evaluate(truth, table, replace(protocol, max_dets=tuple(math.ceil(parts * n) for n in protocol.max_dets)))
    strong = best_of_each_place(found[np.flatnonzero(found.scores >= score)])
    with open_source(truth.path(0)) as source:
        image = annotated(source.read, strong, max_side=1000)
    image.save(own_place(out / "large" / "annotated.png"))
    objects = int((~truth.ignore).sum())
    text = (
        f"{counted(objects, 'object')} in {side[1]} x {side[0]} pixels; {counted(len(strong), 'detection')} of score "
        f"{score:.2f} and more (where F1 "
        f"was best on the unseen scenes; of several classes in one place the best), from overlapping tiles, in {seconds:.1f} s."
        f" AP50 {_percent(result, 'all')}, of tiny objects {_percent(result, 'tiny')}."
    )
    alternative = f"The large scene with {len(strong)} detections, and enlarged crops of some of them"
    return Section("One large image", text, image, alternative), result


def _percent(result: EvaluationResult, area: str) -> str:
    from flyspeck.evaluate.printing import percent

    value: Any = result.value(metric="AP", iou=0.5, area=area)
    return f"{percent(value)} %" if value >= 0 else "– (none there)"


def _next_steps(out: Path) -> str:
    return f"""The same with your own images:
  flyspeck data inspect YOUR/annotations        what is in them (COCO, YOLO, VOC, VisDrone, DOTA, WIDER FACE, ...)
  edit data.train and data.val in a copy of {out / "recipe.yaml"}
  flyspeck train YOUR_RECIPE.yaml --out runs/first
  flyspeck predict --model runs/first YOUR/IMAGES --out found
  flyspeck report runs/first --out report.html"""
