"""What a model costs: parameters, GFLOPs by part and stage under a named counting convention, memory and latency.

Published GFLOPs come from different counters, so a number means nothing without its convention:

* `macs`: multiply-adds of convolutions (deformable and transposed ones too), linear layers and the products of attention (within
  windows, and between all cells of a map); nothing else.
* `mmcv`: the counter of mmcv, which most tiny-object papers print. One multiply-add is one FLOP; a convolution or linear
  layer counts its bias additions; a norm counts 2 x elements; ReLU modules, pools (by their input) and `nn.Upsample` (by
  its output) count one per element. Functional calls, additions, RoIAlign and deformable convolutions count nothing; of
  attention its linear layers and convolutions alone count. A two-stage head runs on 1000 proposals.
* `thop`: the counter of that name (ultralytics/thop 0.1), which TinaFace's numbers need: multiply-adds of convolutions and
  linear layers without their biases; batch and instance norms count 4 x elements; group norms, ReLUs, max pools, deformable
  convolutions and everything functional nothing. (Its few operations of average pools are left out.)
* `ptflops`: the counter of Mudassar and Mukhopadhyay's published code (a fork of ptflops): like `mmcv`, but a ReLU counts
  its input, and `nn.Upsample` counts nothing.

The model runs once on PyTorch's meta device: shapes only, so 260 GFLOPs are counted in a fraction of a second.
"""

from __future__ import annotations

import copy
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import DeformConv2d

from flyspeck.devices import torch_device
from flyspeck.errors import UserError, nearest
from flyspeck.models.backbones.staged import StagedBackbone
from flyspeck.models.bands import input_bands
from flyspeck.models.detector import Detector
from flyspeck.models.detr.encoder import CellMixing
from flyspeck.models.layers import CellAttention
from flyspeck.models.reparameterised import merge_branches
from flyspeck.types import ImageBatch

Convention = Literal["macs", "mmcv", "thop", "ptflops"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)
NUM_PROPOSALS = 1000
"""Proposals that a two-stage head is counted with, per cascade stage too (mmcv's rule)."""

_RELUS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU)
_MAX_POOLS = (nn.MaxPool2d,)
_POOLS = (*_MAX_POOLS, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Profile:
    """The cost of one forward pass on one image."""

    name: str
    size: tuple[int, int]
    """(H, W) of the image."""
    convention: str
    params: int
    """All parameters, norms included."""
    params_trainable: int
    """Those with `requires_grad`."""
    params_conv: int
    """Weights and biases of convolutions alone."""
    gflops: float
    """In units of 1e9, by the convention."""
    parts: dict[str, float] = field(default_factory=dict)
    """GFLOPs of backbone, neck and head; they add up to `gflops`."""
    stages: dict[str, float] = field(default_factory=dict)
    """GFLOPs of the backbone's stages; they add up to the backbone's."""
    peak_memory_mb: float = 0.0
    """Weights plus the largest sum of activations alive at once, float32, in 1e6 bytes; without the libraries' scratch."""
    latency: Latency | None = None

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values; `latency` is left out where it was not measured."""
        content = asdict(self)
        if self.latency is None:
            del content["latency"]
        return content


@dataclass(frozen=True)
class Latency:
    """Wall time of one image, after warm-up."""

    median_ms: float
    p10_ms: float
    """The tenth percentile: with `p90_ms`, the spread."""
    p90_ms: float
    runs: int
    threads: int
    device: str


def profile(
    model: nn.Module,
    size: tuple[int, int],
    *,
    name: str = "",
    convention: str = "mmcv",
    proposals: int = NUM_PROPOSALS,
) -> Profile:
    """Counts `model` (a `Detector`, or a backbone or any module that maps one image) at `size` (H, W).

    A two-stage head counts `proposals` regions; 1000 is mmcv's rule. Blocks that train with branches are counted as they run:
    merged (`models.reparameterised`). `model` itself is not touched. Trainable parameters are
    counted as they stand: freeze first.
    """
    if convention not in CONVENTIONS:
        raise UserError(
            f"no counting convention '{convention}'", where="convention", fix=nearest(convention, CONVENTIONS)
        )
    twin = copy.deepcopy(model).to("meta").eval()
    merge_branches(twin)
    flops: dict[str, int] = {}
    with _counting(twin, convention, flops), torch.no_grad(), _PeakMemory() as memory:
        extra = _run_once(twin, size, proposals)
    if extra and convention == "macs":
        flops["head"] = extra
    detector = isinstance(model, Detector)
    parts: dict[str, int] = {part: 0 for part in ("backbone", "neck", "head")} if detector else {}
    found = _stages_of(model)
    prefix, stages = found if found is not None else ("", {})
    for path, count in flops.items():
        part = path.split(".")[0] if detector else "backbone"
        parts[part] = parts.get(part, 0) + count
        if found is not None and path.startswith(prefix):
            stages[path.removeprefix(prefix).split(".")[0]] += count
    weights = sum(t.numel() * t.element_size() for t in (*twin.parameters(), *twin.buffers()))
    return Profile(
        name=name,
        size=size,
        convention=convention,
        params=sum(p.numel() for p in twin.parameters()),
        params_trainable=sum(p.numel() for p in twin.parameters() if p.requires_grad),
        params_conv=count_conv_params(twin),
        gflops=sum(flops.values()) / 1e9,
        parts={part: count / 1e9 for part, count in parts.items()},
        stages={stage: count / 1e9 for stage, count in stages.items()},
        peak_memory_mb=(weights + memory.peak) / 1e6,
    )


def activation_bytes_per_pixel(detector: Detector, *, side: int = 512) -> float:
    """Bytes of activations that are alive at once, for each pixel of the input: float32, counted at `side` x `side` pixels.

    From shapes alone, so that it is the same on every machine; the libraries' scratch is not in it. Of a head whose layers
    cannot run without values (`Head.run_layers`), only the backbone's and the neck's. `detector` itself is not touched.
    """
    tensors = [*detector.parameters(), *detector.buffers()]
    # The twin is made without a copy of the weights: whoever asks wants to save memory.
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta")) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
    }
    twin = copy.deepcopy(detector, memo).eval()
    with torch.no_grad(), _PeakMemory() as memory:
        try:
            _run_once(twin, (side, side), NUM_PROPOSALS)
        except (UserError, RuntimeError):
            image = torch.empty(1, _bands(twin), side, side, device="meta")
            twin.pyramid(ImageBatch(image, ((side, side),)))
    return memory.peak / side**2


def count_conv_params(model: nn.Module) -> int:
    """Weights and biases of convolutions (deformable ones too), trainable or not."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d | DeformConv2d)]
    return sum(p.numel() for conv in convs for p in conv.parameters(recurse=False))


def _stages_of(model: nn.Module) -> tuple[str, dict[str, int]] | None:
    """The path of the first chain of stages in `model` (a dual path wraps one), and a zero for each stage."""
    for path, module in model.named_modules():
        if isinstance(module, StagedBackbone):
            return (f"{path}." if path else "") + "stages.", {name: 0 for name in module.stages}
    return None


def _bands(model: nn.Module) -> int:
    """Of the image that it takes; a detector of one band repeats it, and counts the same with three."""
    return model.pixel_norm.channels if isinstance(model, Detector) else input_bands(model)


def _run_once(model: nn.Module, size: tuple[int, int], proposals: int) -> int:
    """Every layer once, on one image of the meta device; gives the multiply-adds that no layer does."""
    x = torch.empty(1, _bands(model), *size, device="meta")
    if not isinstance(model, Detector):
        model(x)
        return 0
    maps = model.neck(model.backbone(model.pixel_norm(ImageBatch(x, (size,)))))
    try:
        model.head.run_layers(maps, proposals=proposals)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        raise UserError(
            f"{type(model.head).__name__} cannot be counted: its layers depend on values, and there are only shapes",
            where="model",
            fix="implement Head.run_layers in it without such steps (flyspeck.models.detector says what it does)",
        ) from error
    return model.head.extra_multiply_adds(maps, proposals=proposals)


@contextmanager
def _counting(model: nn.Module, convention: str, flops: dict[str, int]) -> Iterator[None]:
    """Adds the FLOPs of every leaf module of `model` to `flops[path]` as it runs; a shared module counts at each call."""
    handles = []
    for path, module in model.named_modules():
        count = _counter(module, convention)
        if count is not None:

            def hook(module: nn.Module, inputs: Any, output: Any, *, path: str = path, count: _Count = count) -> None:
                flops[path] = flops.get(path, 0) + count(module, inputs[0], output)

            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_Count = Callable[[Any, Tensor, Tensor], int]


def _counter(module: nn.Module, convention: str) -> _Count | None:
    """How `module` counts under `convention`, or None where it counts nothing."""
    if convention == "thop":
        return _thop_counter(module)
    if isinstance(module, nn.Conv2d):
        return _conv_macs if convention == "macs" else _conv_macs_and_bias
    if isinstance(module, nn.ConvTranspose2d):
        return _deconv_macs if convention == "macs" else _deconv_macs_and_bias
    if isinstance(module, nn.Linear):
        return _linear_macs if convention == "macs" else _linear_macs_and_bias
    if isinstance(module, ShiftedWindowAttention):
        return _attention_macs if convention == "macs" else _attention_linear
    if convention == "macs":
        if isinstance(module, CellAttention):
            return _cell_attention_macs
        if isinstance(module, CellMixing):  # its linear layers count by themselves
            return lambda mixing, m, _: mixing.multiply_adds(m)
        return _conv_macs if isinstance(module, DeformConv2d) else None
    if isinstance(module, _NORMS):
        affine = module.weight is not None
        return lambda _, x, __: (2 if affine else 1) * x.numel()
    if isinstance(module, _RELUS):
        return lambda _, x, __: x.numel()  # a ReLU's output has the size of its input
    if isinstance(module, _POOLS if convention == "mmcv" else _MAX_POOLS):
        return lambda _, x, __: x.numel()
    if convention == "mmcv" and isinstance(module, nn.Upsample):
        return lambda _, __, y: y.numel()
    return None


def _thop_counter(module: nn.Module) -> _Count | None:
    if isinstance(module, nn.Conv2d):
        return _conv_macs
    if isinstance(module, nn.Linear):
        return _linear_macs
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
        affine = module.weight is not None
        return lambda _, x, __: (4 if affine else 2) * x.numel()
    return None


def _conv_macs(module: Any, _: Tensor, output: Tensor) -> int:
    kernel_height, kernel_width = module.kernel_size
    return output.numel() * kernel_height * kernel_width * (module.in_channels // module.groups)


def _conv_macs_and_bias(module: Any, inputs: Tensor, output: Tensor) -> int:
    return _conv_macs(module, inputs, output) + (output.numel() if module.bias is not None else 0)


def _deconv_macs(module: Any, inputs: Tensor, _: Tensor) -> int:
    # Every cell of the input is spread over a kernel of each output channel of its group.
    kernel_height, kernel_width = module.kernel_size
    return inputs.numel() * kernel_height * kernel_width * (module.out_channels // module.groups)


def _deconv_macs_and_bias(module: Any, inputs: Tensor, output: Tensor) -> int:
    return _deconv_macs(module, inputs, output) + (output.numel() if module.bias is not None else 0)


def _linear_macs(module: Any, _: Tensor, output: Tensor) -> int:
    return output.numel() * module.in_features


def _linear_macs_and_bias(module: Any, inputs: Tensor, output: Tensor) -> int:
    # mmcv adds the bias once, not once a row.
    return _linear_macs(module, inputs, output) + (module.out_features if module.bias is not None else 0)


def _attention_tokens(module: Any, inputs: Tensor) -> int:
    """Cells of `inputs` (B, H, W, C) once they are padded to whole windows."""
    batch, height, width, _ = inputs.shape
    high, wide = module.window_size
    return batch * (-(-height // high) * high) * (-(-width // wide) * wide)


def _attention_linear(module: Any, inputs: Tensor, _: Tensor) -> int:
    # The four projections of a token: three of qkv and the last; their biases once, as a linear layer counts.
    channels = inputs.shape[-1]
    return _attention_tokens(module, inputs) * 4 * channels**2 + 4 * channels


def _attention_macs(module: Any, inputs: Tensor, _: Tensor) -> int:
    # Besides the projections, each token meets every token of its window twice: for the weights, and for the mean.
    channels, window = inputs.shape[-1], module.window_size[0] * module.window_size[1]
    return _attention_tokens(module, inputs) * (4 * channels**2 + 2 * window * channels)


def _cell_attention_macs(_: Any, query: Tensor, output: Tensor) -> int:
    # Every pair of cells twice: for the weight, over the query's channels, and for the mean, over the value's.
    cells = query.shape[-2] * query.shape[-1]
    return query.shape[0] * cells**2 * (query.shape[1] + output.shape[1])


class _PeakMemory(TorchDispatchMode):
    """Follows the bytes of all tensors that operations make while they live; `peak` is the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        key = id(storage)
        if key in self._seen:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def measure_latency(
    model: nn.Module,
    size: tuple[int, int],
    *,
    runs: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    device: str = "auto",
) -> Latency:
    """Times `model` on one random image of `size` (H, W): `detect` of a `Detector`, else a forward pass.

    `threads` sets PyTorch's CPU threads for the measurement and puts the old number back afterwards. A detector with
    random weights has unusual scores, so its suppression may cost less or more than after training.
    """
    place = torch_device(device)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        model = model.to(place).eval()
        image = torch.rand(1, _bands(model), *size, generator=torch.Generator().manual_seed(0)).to(place)
        batch = ImageBatch(image, (size,))
        call = (lambda: model.detect(batch)) if isinstance(model, Detector) else (lambda: model(image))
        times = []
        with torch.inference_mode():
            for i in range(warmup + runs):
                start = time.perf_counter()
                call()
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                if i >= warmup:
                    times.append((time.perf_counter() - start) * 1e3)
        tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else [times[0]] * 9
        return Latency(statistics.median(times), tenths[0], tenths[-1], runs, torch.get_num_threads(), str(place))
    finally:
        torch.set_num_threads(before)
