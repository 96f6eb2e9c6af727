"""What `flyspeck demo` trains: from a detector that ships with flyspeck, where one is at hand, or from random weights."""

from __future__ import annotations

from dataclasses import dataclass

START = "aerialcars"
"""The trained detector that a demo starts from: in a clone, or in an installed package of weights."""
BATCH = 6  # three images for each of two processes
# Everything that a run is, in one file that the reader can change and train again.
RECIPE = """\
# Written by `flyspeck demo`: a detector for small images, 2 cores and a few minutes.
name: demo
data:
  train: train/annotations.json
  val: val/annotations.json
  cache: ram
augment:
  flip: 0.5
{augment}\
{model}\
  max_detections: 200
  min_score: 0.05
train:
  {length}
  batch_size: {batch}
  optimizer: adamw
  lr: {lr}
  beta2: 0.99
  warmup_steps: 50
  schedule: cosine
  ema: 0.99
  precision: {precision}
  workers: 0
  eval_every: 10
  log_every: {log_every}
  seed: {seed}
"""


@dataclass(frozen=True)
class Form:
    """One detector of the demo, and what it needs."""

    augment: str
    """The end of the recipe's section `augment`."""
    model: str
    """The beginning of its section `model`."""
    start: str
    lr: float
    minutes: float
    """What the whole demo takes, unless said otherwise."""
    images: int
    """Scenes to learn from, unless said otherwise."""
    fair_epochs: int
    """Passes over the scenes below which it has learnt little."""
    log_every: int

    def recipe(self, *, length: str, precision: str, seed: int) -> str:
        """The text of its recipe; `length` is the line `epochs: N` or `minutes: N`."""
        told = {"length": length, "precision": precision, "seed": seed, "batch": BATCH}
        return RECIPE.format(augment=self.augment, model=self.model, lr=self.lr, log_every=self.log_every, **told)

    def words(self) -> str:
        """What it begins with, for a person."""
        if not self.start:
            return f"from random weights: the trained detector {START} comes with a clone and is not here"
        from flyspeck.train.start_names import find_start

        licence = find_start(self.start).licence
        return f"from the trained detector {self.start}" + (f" ({licence})" if licence else "")


STARTED = Form(
    """\
  crop: [192, 224]
  toward_objects: 0.3
""",
    f"""\
# A light Faster R-CNN that goes on from one that knows cars from the air: most of what there is to learn about small
# things it knows already, so that a few passes are enough.
model:
  name: faster_rcnn:mobilenet_v2
  start: {START}
  # Statistics of batches as small as these are wrong for an image that is all dark sea: it sees cars in it then.
  freeze_norms: true
  channels: 32
  norm: bn
  pixel_norm: data
  anchors: {{base_scale: 2.0, ratios: [0.5, 1.0, 2.0], octaves: 1}}
  head: {{hidden: 128, samples: 128, train_proposals: 500, proposals: 300}}
""",
    start=START,
    lr=0.002,
    minutes=3.5,
    images=300,
    fair_epochs=9,
    log_every=50,
)
NEW = Form(
    "",
    """\
# A small anchor-free detector.
model:
  name: fcos:bh_resnet14
  width: 0.5
  channels: 32
  levels: 2-5
  norm: bn
  # Points around an object learn it too, for the smallest hold one point or none, and scores follow the expected overlap: see
  # models/heads/fcos.py.
  head: {depth: 2, reach: 1.0, quality: iou}
""",
    start="",
    lr=0.004,
    minutes=4.5,
    images=600,
    fair_epochs=8,
    log_every=200,
)


def form_at_hand() -> Form:
    """What this installation can begin with."""
    from flyspeck.train.start_names import shipped

    return STARTED if START in shipped() else NEW
