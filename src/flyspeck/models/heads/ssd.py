"""SSD (Liu et al., arXiv:1512.02325) with the backbones of Mudassar and Mukhopadhyay, "Rethinking Convolutional Feature
Extraction for Small Object Detection" (BMVC 2019): strides eliminated, and a second path with shared weights.

The paper's configurations are in `ssd_tables`, the change to the backbone in `stride`; here are the extra layers
(`SSDNeck`), the predictors, priors and losses (`SSDHead`). Counts at 300x300 with 80 classes and background, by the
`ptflops` convention: base 16.53 M / 2.540 G, S1L0 16.53 M / 9.855 G, S1L0-DualPath19-10-S 16.53 M / 10.544 G.

Deviations: off the table's image size, priors keep their pixels and follow the true ratio of image to map; priors under
ignore regions learn nothing; the number of positives is counted over all processes; background is the last class.
Predictors are plain 3x3 convolutions, as released, though the paper's code calls the network "lite". In the split dual path
(S), predictors 3 to 6 see the extra layers' maps of 5x5, 3x3, 2x2 and 1x1, as released; by the text they begin at the large
path's 10x10 map ("10x10 onwards"), which here only feeds the first extra layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError, nearest
from flyspeck.models.anchors import AnchorGrid
from flyspeck.models.assign import BACKGROUND, max_iou_assign
from flyspeck.models.backbones.staged import StagedBackbone, need_stages
from flyspeck.models.batch_decoding import BatchDetections, Size, decode_anchored, flatten_level
from flyspeck.models.detector import Detector, Head, PixelNorm
from flyspeck.models.heads.ssd_tables import MOBILENET_V1, VGG16, SSDConfiguration
from flyspeck.models.layers import flatten_levels
from flyspeck.models.losses import mean_over_processes, smooth_l1
from flyspeck.models.postprocess import RawDetections, Suppression, suppress, topk_per_level
from flyspeck.models.start.rows import OutputRows
from flyspeck.models.stride import DualPath, eliminate_strides, layers, parse_elimination
from flyspeck.options import Options, Share
from flyspeck.types import FeatureSpec, Targets

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""1 / variances (0.1, 0.1, 0.2, 0.2)."""
SUPPRESSION = Suppression(score=0.01, iou=0.6, max_detections=100)
Assign = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Priors `(A, 4)`, objects `(N, 4)` and ignore regions `(N', 4)` to what each prior learns, `(A,)` as `models.assign` says it."""


class L2Norm(nn.Module):
    """Every pixel's channels scaled to unit length, times one learnt factor per channel (ParseNet, arXiv:1506.04579)."""

    def __init__(self, channels: int, *, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        return F.normalize(x, dim=1, eps=1e-10) * self.weight[None, :, None, None]


def separable_extra(inputs: int, outputs: int, kind: str) -> nn.Sequential:
    """An extra layer of the MobileNet SSDs: 1x1, depthwise 3x3 of stride 2, 1x1, each with BN."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
        nn.Conv2d(outputs, outputs, 3, 2, 1 if kind == "S" else 0, groups=outputs, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def plain_extra(inputs: int, outputs: int, kind: str) -> nn.Sequential:
    """An extra layer of the VGG SSDs: 1x1 to half the channels, then 3x3."""
    stride, padding = (2, 1) if kind == "S" else (1, 0)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs // 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs // 2, outputs, 3, stride, padding),
        nn.ReLU(inplace=True),
    )


def at_least_3x3(x: Tensor) -> Tensor:
    """Zeros right and bottom where a small image leaves too little for a 3x3 convolution without padding."""
    # No `if`: a graph that is traced at a large size would have no padding at any.
    right, bottom = (torch.sym_max(0, 3 - side) for side in (x.shape[-1], x.shape[-2]))
    return F.pad(x, (0, right, 0, bottom))  # type: ignore[arg-type]


class SSDNeck(nn.Module):
    """Backbone maps to the predictors' maps: L2Norm on the first, a chain of extra layers after the last.

    Without a dual path the backbone gives two maps (three with `early`). With one it gives the small path's two, then the
    large path's two: `concat1` joins the small path's second with the large path's first (same size), `concat2` also the
    first extra with the large path's second; `split` predicts on the small path's two and on extras of the large path.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        configuration: SSDConfiguration,
        *,
        separable: bool,
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.dual, self.kinds = configuration.dual, configuration.extras
        dual = self.dual != "none"
        if len(features) != (4 if dual else 2 + configuration.early):
            raise ValueError(f"{len(features)} maps do not fit this configuration")
        sources = list(features[:2] if dual else features)
        self.norm = L2Norm(sources[int(configuration.early)].channels)
        self.normed = int(configuration.early)
        if self.dual.startswith("concat"):
            sources[1] = FeatureSpec(sources[1].channels + features[2].channels, sources[1].stride)
        last = features[3] if self.dual == "split" else sources[-1]
        specs, inputs, stride = list(sources), last.channels, last.stride
        extras: list[nn.Module] = []
        build = separable_extra if separable else plain_extra
        for kind, outputs in zip(configuration.extras, channels, strict=True):
            extras.append(build(inputs, outputs, kind))
            stride = stride * (1 if kind == "V" else 2)
            # The concatenated map is for the predictor alone: the next extra goes on from the extra itself.
            joined = features[3].channels if self.dual == "concat2" and len(extras) == 1 else 0
            specs.append(FeatureSpec(outputs + joined, stride))
            inputs = outputs
        self.extras = nn.ModuleList(extras)
        self.features = tuple(specs)
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps to predictor maps, finest first."""
        maps = list(maps)
        maps[self.normed] = self.norm(maps[self.normed])
        levels = maps if self.dual == "none" else maps[:2]
        x = maps[3] if self.dual == "split" else levels[-1]
        if self.dual.startswith("concat"):
            levels[1] = torch.cat([maps[1], maps[2]], 1)
            x = levels[1]
        for i, extra in enumerate(self.extras):
            x = extra(at_least_3x3(x) if self.kinds[i] != "S" else x)
            levels.append(torch.cat([x, maps[3]], 1) if self.dual == "concat2" and i == 0 else x)
        return levels


class DefaultBoxes(nn.Module):
    """SSD's default boxes, `(A, 4)` xyxy pixels, by map, row, column, shape.

    A cell has a square of the map's size, one of the geometric mean of it and the next map's, and both orientations of
    every further ratio. Sides are at most the image's; boxes may reach out of it.
    """

    def __init__(self, configuration: SSDConfiguration) -> None:
        super().__init__()
        self.steps, self.image = configuration.steps, configuration.image
        self.shapes: tuple[tuple[tuple[float, float], ...], ...] = tuple(
            cell_shapes(size, following, ratios)
            for size, following, ratios in zip(
                configuration.sizes[:-1], configuration.sizes[1:], configuration.ratios, strict=True
            )
        )

    def forward(self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device) -> Tensor:
        """Priors for maps of (H_l, W_l) seen from an image of `padded` (H, W) pixels."""
        return torch.cat(self.levels(map_sizes, padded, device))

    def levels(
        self, map_sizes: Sequence[tuple[int, int]], padded: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        """`forward` by map. The choice of the step is one of tensors, so that an exported graph makes it at each size."""
        if len(map_sizes) != len(self.shapes):
            raise ValueError(f"priors for {len(self.shapes)} maps, got {len(map_sizes)}")
        levels = []
        height, width = (torch.scalar_tensor(side, device=device) for side in padded)
        nominal = (height == self.image) & (width == self.image)
        for (rows, columns), step, shapes in zip(map_sizes, self.steps, self.shapes, strict=True):
            nominal_step = torch.scalar_tensor(float(step), device=device)
            step_y = torch.where(nominal, nominal_step, height / rows)
            step_x = torch.where(nominal, nominal_step, width / columns)
            y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) * step_y
            x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) * step_x
            limit = torch.stack([width, height])
            center = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[:, :, None, :].minimum(limit)
            half = torch.tensor(shapes, device=device).minimum(limit)[None, None] / 2
            levels.append(torch.cat([center - half, center + half], -1).reshape(-1, 4))
        return levels


def cell_shapes(size: float, following: float, ratios: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(width, height) of a cell's priors: squares of `size` and of its mean with `following`, both orientations of each ratio."""
    mean = (size * following) ** 0.5
    shapes = [(size, size), (mean, mean)]
    for ratio in ratios:
        if ratio != 1:
            wide = (size * ratio**0.5, size / ratio**0.5)
            shapes += [wide, wide[::-1]]
    return tuple(shapes)


class SSDHead(Head):
    """One pair of convolutions per map, of 3x3 if not said: classes (background last) and box offsets of every prior.

    `assign` is how priors learn objects (default: `max_iou_assign`, background below `foreground`); `class_logits` has a
    module for each map in place of the convolutions to classes.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        priors: DefaultBoxes | AnchorGrid,
        foreground: float = 0.5,
        negatives_per_positive: int = 3,
        suppression: Suppression | None = None,
        kernel: int = 3,
        box_weight: float = 1.0,
        assign: Assign | None = None,
        class_logits: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.priors, self.box_weight = num_classes, priors, box_weight
        self.negatives_per_positive = negatives_per_positive
        self.assign = assign or partial(max_iou_assign, foreground=foreground, background=foreground)
        self.suppression = suppression or SUPPRESSION
        pairs = list(zip(features, priors.shapes, strict=True))
        classes = num_classes + 1
        convs = (nn.Conv2d(f.channels, len(s) * classes, kernel, 1, kernel // 2) for f, s in pairs)
        self.class_logits = nn.ModuleList(convs if class_logits is None else class_logits)
        self.box_deltas = nn.ModuleList(nn.Conv2d(f.channels, len(s) * 4, kernel, 1, kernel // 2) for f, s in pairs)
        for conv in (*self.class_logits.modules(), *self.box_deltas):
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_uniform_(conv.weight)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Predictor maps to class logits `(B, A*(K+1), H_l, W_l)` and deltas `(B, A*4, H_l, W_l)` per map."""
        logits = [conv(m) for conv, m in zip(self.class_logits, maps, strict=True)]
        deltas = [conv(m) for conv, m in zip(self.box_deltas, maps, strict=True)]
        return logits, deltas

    def losses(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Targets],
        padded: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """`classification` (cross entropy with hard negatives) and `box` (smooth L1), both over the positives."""
        logits, deltas = self(maps)
        flat_logits, flat_deltas = flatten_levels(logits, self.num_classes + 1), flatten_levels(deltas, 4)
        priors = self.priors([(m.shape[-2], m.shape[-1]) for m in logits], padded, flat_logits.device)
        classification, box, positives = flat_logits.sum() * 0, flat_deltas.sum() * 0, 0
        for image_logits, image_deltas, target in zip(flat_logits, flat_deltas, targets, strict=True):
            assigned = self.assign(priors, target.objects, target.ignored)
            positive = torch.nonzero(assigned >= 0).squeeze(1)
            matched = assigned[positive]
            label = torch.full_like(assigned, self.num_classes)
            label[positive] = target.object_labels[matched]
            loss = F.cross_entropy(image_logits, label, reduction="none")
            negative = hardest(loss.detach(), assigned, self.negatives_per_positive * len(positive))
            classification = classification + loss[positive].sum() + loss[negative].sum()
            goal = box_algebra.encode(target.objects[matched], priors[positive], BOX_WEIGHTS)
            box = box + smooth_l1(image_deltas[positive], goal, beta=1.0)
            positives += len(positive)
        total = mean_over_processes(positives, flat_logits.device)
        return {"classification": classification / total, "box": self.box_weight * box / total}

    def detect(
        self, maps: Sequence[Tensor], padded: tuple[int, int], sizes: Sequence[tuple[int, int]]
    ) -> list[RawDetections]:
        """See `Head.detect`."""
        logits, deltas = self(maps)
        map_sizes = [(m.shape[-2], m.shape[-1]) for m in logits]
        counts = [h * w * len(shapes) for (h, w), shapes in zip(map_sizes, self.priors.shapes, strict=True)]
        scores = flatten_levels(logits, self.num_classes + 1).softmax(-1)[..., : self.num_classes]
        flat_deltas = flatten_levels(deltas, 4)
        priors = self.priors(map_sizes, padded, scores.device)
        found = []
        for image_scores, image_deltas, size in zip(scores, flat_deltas, sizes, strict=True):
            rows, classes = topk_per_level(image_scores, counts, self.suppression.pre_nms, self.suppression.score)
            boxes = box_algebra.decode(image_deltas[rows], priors[rows], BOX_WEIGHTS)
            found.append(suppress(boxes, image_scores[rows, classes], classes, size, self.suppression))
        return found

    def output_rows(self) -> Mapping[str, OutputRows]:
        """See `Head.output_rows`."""
        found = {}
        for i, shapes in enumerate(self.priors.shapes):
            if isinstance(self.class_logits[i], nn.Conv2d):
                found[f"class_logits.{i}"] = OutputRows(("anchors", "background"), shapes)
            found[f"box_deltas.{i}"] = OutputRows(("anchors", "values"), shapes)
        return found

    def decode_batch(self, maps: Sequence[Tensor], size: Size) -> BatchDetections:
        """See `Head.decode_batch`."""
        logits, deltas = self(maps)
        scores = [flatten_level(m, self.num_classes + 1).softmax(-1)[..., : self.num_classes] for m in logits]
        priors = self.priors.levels([(m.shape[-2], m.shape[-1]) for m in logits], size, logits[0].device)
        return decode_anchored(scores, deltas, priors, weights=BOX_WEIGHTS, size=size, rule=self.suppression)


def hardest(loss: Tensor, assigned: Tensor, count: int) -> Tensor:
    """Rows of the `count` background priors with the largest `loss (A,)`; all of them where there are fewer."""
    background = torch.nonzero(assigned == BACKGROUND).squeeze(1)
    return background[loss[background].topk(min(count, len(background))).indices]


class SSDOptions(Options):
    """Options of SSD; its configuration is the third part of the model's name."""

    width: float | None = Field(default=None, gt=0, le=16)
    """Scales the extra layers; null takes the backbone's own width, at most 1."""
    foreground: Share = 0.5
    """Overlap (IoU) with an object from which a prior learns it."""
    negatives_per_positive: int = Field(default=3, ge=0, le=1000)
    """Background priors, the hardest of an image, for each that learns an object."""


def ssd(
    backbone: StagedBackbone,
    *,
    classes: Sequence[str],
    pixel_norm: PixelNorm,
    configuration: str | SSDConfiguration = "base",
    plain: bool = False,
    width: float | None = None,
    suppression: Suppression | None = None,
    **head: Any,
) -> Detector:
    """SSD on the last maps of `backbone`, whose strides `configuration` changes in place (weights kept).

    `plain` takes VGG16's extras and table; otherwise MobileNetV1's, for any chain of stages. `configuration` is a name of
    the table, any other `S{n}L{i-j}[-DualPath]` by its pattern, or one of your own. `width` scales the extra layers;
    None takes the backbone's own (its last map's channels over 1024, at most 1).
    """
    if not isinstance(configuration, SSDConfiguration):
        configuration = find_configuration(configuration, plain=plain)
    backbone = need_stages(backbone, "SSD", where="model.name")
    if plain:
        ssd_top(backbone)
    eliminate_strides(backbone, configuration.eliminated)
    if configuration.large_pools:
        _enlarge_last_pool(backbone)
    backbone.outputs = ssd_sources(backbone, early=configuration.early, plain=plain)
    path: nn.Module = backbone
    features = backbone.features
    if configuration.dual != "none":
        path = DualPath(backbone, split=configuration.eliminated[-1])
        features = path.features
    if width is None:
        width = min(1.0, backbone.features[-1].channels / 1024)
    channels = [max(8, round(c * width)) for c in ((512, 256, 256, 256) if plain else (512, 256, 256, 128))]
    neck = SSDNeck(features, configuration, separable=not plain, channels=channels)
    priors = DefaultBoxes(configuration)
    ssd_head = SSDHead(neck.features, num_classes=len(classes), priors=priors, suppression=suppression, **head)
    # At its own size an SSD has the table's maps and priors: any padding would make it another one.
    return Detector(path, neck, ssd_head, pixel_norm=pixel_norm, classes=classes, divisor=1)


def ssd_top(backbone: StagedBackbone) -> None:
    """VGG16's pool5 at stride 1 and fc6 dilated by 6, in place, whatever pyramid it was built for."""
    pool, fc6 = list(backbone.stages["stage4"].children())[:2]
    if not isinstance(pool, nn.MaxPool2d) or not isinstance(fc6, nn.Conv2d):
        raise ValueError("no VGG16: its last stage begins with pool5 and fc6")
    pool.stride, fc6.dilation, fc6.padding = 1, (6, 6), (6, 6)
    backbone.specs["stage4"] = replace(backbone.specs["stage4"], stride=backbone.specs["stage3"].stride)


def ssd_sources(backbone: StagedBackbone, *, early: bool = False, plain: bool) -> tuple[str, ...]:
    """The stages whose maps SSD predicts on first. Raises UserError for a backbone with branches."""
    names = [name for name in backbone.stages if name not in backbone.branches]
    if len(names) < 4:
        raise UserError("SSD needs a chain of stages", where="model", fix="choose a backbone without branches")
    second = names[-3] if plain else names[-2]  # VGG16's conv4_3 is two stages before fc7, which shares conv5's stride
    return (*((names[-3],) if early else ()), second, names[-1])


def _enlarge_last_pool(backbone: StagedBackbone) -> None:
    """Doubles the kernel and stride of the last pool that has a stride, in place."""
    pool = [layer for layer in layers(backbone) if isinstance(layer.module, nn.MaxPool2d) and layer.stride > 1][-1]
    module = pool.module
    module.kernel_size, module.stride, module.ceil_mode = 4, 4, True  # type: ignore[assignment]
    names = list(backbone.stages)
    for name in names[names.index(pool.stage) :]:
        backbone.specs[name] = replace(backbone.specs[name], stride=backbone.specs[name].stride * 2)


def find_configuration(name: str, *, plain: bool = False) -> SSDConfiguration:
    """The configuration `name` of the table; or, by the pattern of those with as many strides, one that is not in it."""
    table = VGG16 if plain else MOBILENET_V1
    if name in table:
        return table[name]
    elimination, _, rest = name.partition("-Dual")
    if rest not in ("", "Path") or not elimination.startswith("S"):
        raise UserError(f"no SSD configuration '{name}'", where="model name", fix=nearest(name, table))
    indices = parse_elimination(elimination)
    pattern = {1: "S1L2" if plain else "S1L0", 2: "S1L2" if plain else "S2L4-6"}.get(len(indices))
    if pattern is None:
        raise UserError(f"'{name}' eliminates {len(indices)} strides", where="model name", fix="eliminate one or two")
    if rest:
        pattern = "S1L2-DualPath" if plain else "S1L0-DualPath19-10-S"
    return replace(table[pattern], eliminated=indices)
