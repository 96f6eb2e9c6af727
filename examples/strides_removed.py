"""Strides removed with no fine-tuning find the small objects: section 4.1 of the stride-elimination paper (BMVC 2019).

    python examples/strides_removed.py                                   # trains a small SSD on generated shapes first
    python examples/strides_removed.py --run runs/mine --images a.jpg b.jpg --eliminate S1L0 --out found/

The second form takes a detector of `flyspeck train` and your own images. No weight changes: only a stride of the backbone
does, so that every later map is twice as large and the network looks at the image as if it were enlarged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError
from flyspeck.models.backbones.mobilenet_v1 import mobilenet_v1
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.detector import Detector, PixelNorm
from flyspeck.models.heads.ssd import ssd
from flyspeck.models.stride import detect_finer, eliminate_strides, parse_elimination
from flyspeck.types import Detections, ImageBatch, Targets

CLASSES = ("disc", "square")


def shapes(
    count: int, seed: int, *, side: int = 192, sizes: tuple[int, int] = (36, 72)
) -> tuple[ImageBatch, list[Targets]]:
    """Noisy images with one to three bright discs and squares of `sizes` px."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 140, (count, 3, side, side)).astype(np.uint8)
    targets = []
    rows, columns = np.mgrid[:side, :side]
    for image in pixels:
        boxes: list[list[float]] = []
        labels = []
        for _ in range(int(rng.integers(1, 4))):
            size = int(rng.integers(*sizes))
            x, y = rng.integers(0, side - size, 2)
            box = np.array([[x, y, x + size, y + size]], float)
            if boxes and box_algebra.iou(box, np.array(boxes)).max() > 0:
                continue
            label = int(rng.integers(0, 2))
            inside = (rows >= y) & (rows < y + size) & (columns >= x) & (columns < x + size)
            if label == 0:
                inside &= (rows + 0.5 - y - size / 2) ** 2 + (columns + 0.5 - x - size / 2) ** 2 <= (size / 2) ** 2
            image[:, inside] = 230
            boxes.append(box[0].tolist())
            labels.append(label)
        ignore = torch.zeros(len(boxes), dtype=torch.bool)
        targets.append(Targets(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels), ignore))
    return ImageBatch(torch.from_numpy(pixels), ((side, side),) * count), targets


def shrunk(images: ImageBatch, targets: list[Targets], factor: int) -> tuple[ImageBatch, list[Targets]]:
    """The same images and boxes, `factor` times smaller."""
    pixels = nn.functional.avg_pool2d(images.pixels.float(), factor).round().to(torch.uint8)
    sizes = tuple((h // factor, w // factor) for h, w in images.sizes)
    return ImageBatch(pixels, sizes), [Targets(t.boxes / factor, t.labels, t.ignore) for t in targets]


def train(steps: int) -> Detector:
    """A narrow SSD, MobileNetV1 with all its strides, trained on shapes of 36 to 72 px."""
    torch.manual_seed(0)
    norm = PixelNorm((0.4,) * 3, (0.2,) * 3)
    model = ssd(mobilenet_v1(width=0.25), classes=CLASSES, pixel_norm=norm).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        losses = model.losses(*shapes(8, 1000 + step))
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}")
    return model.eval()


def recall(found: list[Detections], targets: list[Targets], *, score: float = 0.3) -> float:
    """Share of objects that a detection of their class with this score covers (IoU above 0.5)."""
    hits, total = 0, 0
    for detections, target in zip(found, targets, strict=True):
        confident = detections[detections.scores >= score]
        for box, label in zip(target.boxes.numpy(), target.labels.numpy(), strict=True):
            mine = confident.boxes[confident.labels == label]
            hits += bool(len(mine)) and bool(box_algebra.iou(mine, box[None]).max() > 0.5)
            total += 1
    return hits / total


def on_shapes(steps: int) -> None:
    """Trains, then shows what each elimination finds in images 1, 2 and 4 times smaller."""
    model = train(steps)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tests = {factor: shrunk(*shapes(60, 7), factor) for factor in (1, 2, 4)}
    print("\nrecall at score 0.3 and IoU 0.5; the network was trained on 36-72 px and is not trained again")
    print(f"{'strides':<10}" + "".join(f"{36 // f:>8}-{72 // f} px" for f in tests))
    for name, eliminated in (("all", ()), ("S1L0", (0,)), ("S1L6", (6,)), ("S2L4-6", (4, 6))):
        network = ssd(mobilenet_v1(width=0.25), classes=CLASSES, pixel_norm=PixelNorm((0.4,) * 3, (0.2,) * 3))
        network.load_state_dict(weights)
        eliminate_strides(chain(network), eliminated)
        factor = 2 ** len(eliminated)
        found = {f: detect_finer(network.eval(), images, factor=factor) for f, (images, _) in tests.items()}
        print(f"{name:<10}" + "".join(f"{100 * recall(found[f], tests[f][1]):>10.0f} %" for f in tests))


def chain(model: Detector) -> StagedBackbone:
    """The backbone, if it is a chain of stages."""
    if not isinstance(model.backbone, StagedBackbone):
        raise SystemExit("this detector's backbone is no plain chain of stages")
    return model.backbone


def on_images(run: Path, images: list[Path], elimination: str, out: Path) -> None:
    """A trained detector on images, before and after; writes both, drawn, into `out`."""
    from flyspeck.convert import plot
    from flyspeck.data.images import read_image
    from flyspeck.train.build import load_detector

    before, after = load_detector(run), load_detector(run)
    eliminate_strides(chain(after), elimination)
    factor = 2 ** len(parse_elimination(elimination))
    channels = len(before.pixel_norm.mean.flatten())
    out.mkdir(parents=True, exist_ok=True)
    for path in images:
        pixels = read_image(path, channels=channels)
        batch = ImageBatch(torch.from_numpy(pixels).permute(2, 0, 1)[None], (pixels.shape[:2],))
        results = {"strided": before.detect(batch)[0], elimination: detect_finer(after, batch, factor=factor)[0]}
        for name, found in results.items():
            confident = found[found.scores >= 0.3]
            sizes = np.sqrt(box_algebra.area(confident.boxes))
            print(f"{path.name} {name}: {len(confident)} found, {int((sizes < 20).sum())} of them below 20 px")
            plot(confident, pixels).save(out / f"{path.stem}.{name}.png")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run folder or weights file of `flyspeck train`")
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--eliminate", default="S1L0", help="S{n}L{i-j}")
    parser.add_argument("--out", type=Path, default=Path("strides_removed"))
    parser.add_argument("--steps", type=int, default=400, help="training steps on generated shapes")
    options = parser.parse_args()
    if options.run is None:
        on_shapes(options.steps)
        return
    if not options.images:
        parser.error("--run needs --images")
    try:
        on_images(options.run, options.images, options.eliminate, options.out)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
