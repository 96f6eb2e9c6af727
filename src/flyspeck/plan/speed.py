"""What detectors cost on this machine, measured in seconds: real images of the set, through the real loader and optimiser."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import torch

from flyspeck.allocator import freed_memory_kept
from flyspeck.data.annotations import Annotations
from flyspeck.data.band_choice import Survey
from flyspeck.data.headers import read_header
from flyspeck.data.loading import default_workers
from flyspeck.devices import free_memory, processors, torch_device
from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.plan.budget import LONGEST_TIMING
from flyspeck.plan.choices import Machine, Plan, Speed
from flyspeck.train.build import build_detector
from flyspeck.train.config import Recipe, parse_recipe
from flyspeck.train.ema import EMA
from flyspeck.train.inputs import reading_rule, training_loader
from flyspeck.train.loop import DetectionObjective
from flyspeck.train.optim import build_optimizer
from flyspeck.types import ImageBatch, Targets

LIMIT = LONGEST_TIMING
"""Seconds for all detectors together."""
TRIED = 32
"""Images that steps are timed on, cached where those of the training are."""
LEAST_STEPS = 2
COLD = 2
"""Steps that do not count where there are more: the first waits for the cache, and kernels are chosen in it."""
Say = Callable[[str], None]


def this_machine(device: str = "auto") -> Machine:
    """Processors, free memory and the device, as this process may use them; nothing of weights."""
    name = str(torch_device(device))
    threads = quicker_threads(name)
    return Machine(
        cpus=processors(),
        memory=free_memory(),
        device=name,
        precision=faster_precision(name),
        threads=threads,
        threads_taken=torch.get_num_threads(),
    )


def peak_memory(device: str) -> int:
    """Bytes: of a CUDA device what this process had at most since `forget_peak`, else of this process's memory."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return 0


def forget_peak(device: str) -> None:
    """From now on `peak_memory` is that of what follows, as far as the system lets a process begin anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(torch.device(device))
    # No file, but Linux's way to be told that the highest size so far is to be forgotten.
    with contextlib.suppress(OSError), Path("/proc/self/clear_refs").open("w", encoding="ascii") as told:
        told.write("5")


def faster_precision(device: str = "cpu") -> str:
    """bf16 where a convolution is clearly faster in it than in fp32: old processors emulate it slowly."""
    place = torch.device(device)
    if place.type == "mps":
        return "fp32"
    x = torch.randn(4, 32, 64, 80, device=place).to(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3, device=place)

    def seconds(dtype: torch.dtype) -> float:
        pixels, kernel = x.to(dtype), weight.to(dtype)
        times = []
        for _ in range(8):
            begun = time.perf_counter()
            torch.nn.functional.conv2d(pixels, kernel, padding=1)
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            times.append(time.perf_counter() - begun)
        return min(times[2:])

    return "bf16" if seconds(torch.bfloat16) < 0.8 * seconds(torch.float32) else "fp32"


def quicker_threads(device: str = "cpu") -> int:
    """PyTorch's threads in a training here: those it has, or one, where that is clearly faster.

    Threads that wait for each other cost more than they bring where other programs use the processors too.
    """
    most = torch.get_num_threads()
    if most == 1 or torch.device(device).type != "cpu":
        return most
    layer = torch.nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(2, 32, 128, 160)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        layer(x).sum().backward()
        begun = time.perf_counter()
        for _ in range(6):
            layer(x).relu().sum().backward()
        return time.perf_counter() - begun

    try:
        return one_or(most, alone=min(seconds(1), seconds(1)), together=min(seconds(most), seconds(most)))
    finally:
        torch.set_num_threads(most)


def one_or(most: int, *, alone: float, together: float) -> int:
    """One thread where what took so long `alone` took clearly longer by `most` threads `together`."""
    return 1 if alone < 0.8 * together else most


def take_threads(machine: Machine, say: Say) -> None:
    """From now on this process has as many threads as are faster; said where they are others than before."""
    if machine.threads != torch.get_num_threads():
        say(f"  {machine.threads} thread: faster here now than {torch.get_num_threads()} together")
        torch.set_num_threads(machine.threads)


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Whatever is done in between, PyTorch has as many threads after it as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_speeds(
    plans: Sequence[Plan],
    table: Annotations,
    machine: Machine,
    *,
    limit: float = LIMIT,
    say: Say = lambda text: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Speed]:
    """The speed of each plan's detector on images of `table`, by the name of its tier, the cheapest first.

    All together take about `limit` seconds; what is not reached in that time is left out, but for the first. A detector that
    does not fit into memory is left out and said.
    """
    rows = [int(row * (len(table) - 1) / max(1, min(TRIED, len(table)) - 1)) for row in range(min(TRIED, len(table)))]
    some = table.select_images(sorted(set(rows)))
    begun, found = clock(), {}
    for number, plan in enumerate(plans):
        left = limit - (clock() - begun)
        share = left / (len(plans) - number)
        if found and share < 0.5:
            break
        try:
            found[plan.tier.name] = measured = _speed(plan, some, machine, share, clock)
        except (torch.OutOfMemoryError, MemoryError):
            say(f"  {plan.tier.name}: does not fit into the memory of {machine.device}")
            continue
        say(
            f"  {plan.tier.name} ({plan.tier.words}): {measured.images_per_second:.1f} images/s,"
            f" {measured.memory / 1e9:.1f} GB"
        )
    if not found:
        raise UserError("no detector fits into memory", where=machine.device, fix="free some, or name another --device")
    return found


def bare_recipe(plan: Plan) -> Recipe:
    """The plan's recipe for a detector that is built without pretrained weights and without statistics of the set."""
    content = plan.recipe()
    model = {**content["model"], "weights": None, "fusion": None, "pixel_norm": "data"}
    model.pop("start", None)
    return parse_recipe({**content, "model": model})


@freed_memory_kept()
def _speed(plan: Plan, table: Annotations, machine: Machine, seconds: float, clock: Callable[[], float]) -> Speed:
    """Training steps for about so many seconds, in memory as `train.loop` has it, and one pass of finding."""
    recipe = bare_recipe(plan)
    workers = default_workers() if recipe.train.workers is None else recipe.train.workers
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"workers": 0})})
    survey = Survey(table.source, {str(table.path(row)): read_header(table.path(row)) for row in range(len(table))})
    rule = reading_rule(recipe.data, survey, survey)
    bands, device = rule.channels or 3, torch.device(machine.device)
    forget_peak(machine.device)
    detector = build_detector(recipe.model, classes=table.classes, mean=[0.4] * bands, std=[0.2] * bands, load=False)
    trial = _Trial(detector, recipe, device)
    begun = last = clock()
    loads, steps, images, images_in = [], [], [], None
    with contextlib.closing(
        training_loader(
            recipe, table, rule=rule, divisor=detector.divisor, smallest=detector.smallest_side, rank=0, world_size=1
        )
    ) as loader:
        for epoch in count():
            for images_in, targets, _ in loader.epoch(epoch):
                loaded = clock()
                trial.step(images_in, targets)
                now = clock()
                loads.append(loaded - last)
                steps.append(now - loaded)
                images.append(len(targets))
                last = now
                if len(steps) >= LEAST_STEPS and now - begun >= 0.85 * seconds:
                    break
            if len(steps) >= LEAST_STEPS and last - begun >= 0.85 * seconds:
                break
    warm = min(COLD, len(steps) - 1)
    taken = batch_seconds(
        sum(steps[warm:]), sum(loads[warm:]), workers=workers, threads=machine.threads, cpus=machine.cpus
    )
    rate = sum(images[warm:]) / max(1e-9, taken)
    assert images_in is not None
    detecting, memory = trial.detecting(images_in, clock), peak_memory(machine.device)
    weights = sum(value.numel() * value.element_size() for value in detector.state_dict().values())
    return Speed(rate, memory, detecting, plan.tier.tracing, recipe.train.batch_size, weights)


def batch_seconds(step: float, load: float, *, workers: int, threads: int, cpus: int) -> float:
    """What a batch takes whose step takes so many seconds by `threads` threads, and whose loading by one process.

    Without workers one follows the other. With them the slower of the two counts, or all the work together where there are not
    enough processors for it.
    """
    if workers == 0:
        return step + load
    return max(step, load / workers, (step * min(threads, cpus) + load) / cpus)


class _Trial:
    """A detector with all that a training step has."""

    def __init__(self, detector: Detector, recipe: Recipe, device: torch.device) -> None:
        self.detector, self.recipe, self.device = detector, recipe, device
        self.objective = DetectionObjective(detector).to(device)
        if recipe.train.channels_last:
            self.objective = self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective.train()
        self.optimizer, self.ema = build_optimizer(self.objective, recipe.train), EMA(detector, 0.99)

    def step(self, images: ImageBatch, targets: Sequence[Targets]) -> None:
        """Forward, backward, optimiser and average, as `train.loop` has them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16"):
            losses = self.objective(images.to(self.device), [target.to(self.device) for target in targets])
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.detector)
        self._wait()

    def detecting(self, images: ImageBatch, clock: Callable[[], float]) -> float:
        """Images a second that it finds objects in: of two passes the second, as the first sets up memory."""
        self.detector.eval()
        seconds = 0.0
        for _ in range(2):
            begun = clock()
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.train.precision == "bf16"),
            ):
                self.detector.detect(images.to(self.device))
            self._wait()
            seconds = clock() - begun
        return len(images.sizes) / max(seconds, 1e-9)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
