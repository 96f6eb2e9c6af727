"""Published D-FINE and RT-DETRv2 detectors as sources of weights: a folder as the library transformers saves them.

`transformers:FOLDER` (with `config.json` and `model.safetensors`, in one file or several) makes the rest of a recipe's `model`
that detector's. The library reads the folder itself, so that names of its older versions are translated, and nothing in it is
run: pickles are refused. Each tensor goes to the module of ours that the library's was; a level that the detector has and the
source has not copies the nearest one.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from flyspeck.errors import UserError, brief
from flyspeck.models.backbones import transformers_models
from flyspeck.models.detector import Detector
from flyspeck.models.detr.library import Kind, part
from flyspeck.models.start.rows import Outputs
from flyspeck.models.start.transfer import Source, outputs_of

PREFIX = "transformers:"
LICENCE = (
    "not said in the folder; the published D-FINE and RT-DETRv2 files are Apache-2.0, learnt from COCO or Objects365"
)
_KINDS: dict[str, Kind] = {"d_fine": "dfine", "rt_detr_v2": "rtdetrv2"}
_EXPECTED: dict[str, Any] = {
    "activation_function": "silu", "encoder_activation_function": "gelu", "decoder_activation_function": "relu",
    "normalize_before": False, "learn_initial_query": False, "with_box_refine": True, "decoder_offset_scale": 0.5,
    "decoder_method": "default", "positional_encoding_temperature": 10000, "layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5,
    "eval_idx": -1, "layer_scale": 1, "max_num_bins": 32, "reg_scale": 4.0, "top_prob_values": 4, "lqe_hidden_dim": 64,
    "lqe_layers": 2, "up": 0.5,
}  # fmt: skip
"""What our modules are built with; a folder that says otherwise would compute something else with the same weights."""
_RULES = (
    (r"model\.backbone\.model\.embedder\.(.+)", r"backbone.stages.stem.\1"),
    (r"model\.encoder_input_proj\.(.+)", r"neck.input_proj.\1"),
    (r"model\.encoder\.aifi\.0\.(.+)", r"neck.mixing.\1"),
    (r"model\.encoder\.(.+)", r"neck.\1"),
    (r"model\.decoder_input_proj\.(.+)", r"head.level_proj.\1"),
    (r"model\.(enc_output|enc_score_head|enc_bbox_head|denoising_class_embed|decoder)\.(.+)", r"head.\1.\2"),
    (r"(class_embed|bbox_embed)\.(.+)", r"head.decoder.\1.\2"),
)


def is_snapshot(start: str) -> bool:
    """Whether `start` names a folder of the library transformers."""
    return start.startswith(PREFIX)


def weights_of(start: str) -> Path:
    """The file that a recipe's `start` stands and falls with: of several the list of them.

    Raises UserError for a folder that is not there, or holds no weights that can be read safely.
    """
    folder = Path(start.removeprefix(PREFIX))
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, fix="correct what follows transformers: in model.start")
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return folder / name
    pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
    why = "has its weights as a pickle, which could run anything" if pickled else "has no model.safetensors"
    raise UserError(why, where=folder, fix="save it with the library: save_pretrained(FOLDER)")


def section(start: str) -> Mapping[str, Any]:
    """What a recipe's section `model` is for this start, where the recipe does not say otherwise."""
    config = _config(start)
    kind, levels = _KINDS[config["model_type"]], _levels(config)
    points = config.get("decoder_n_points", 4)
    head: dict[str, Any] = {
        "layers": config.get("decoder_layers", 6),
        "heads": config.get("decoder_attention_heads", 8),
        "ffn": config.get("decoder_ffn_dim", 1024),
        "encoder_layers": config.get("encoder_layers", 1),
        "expansion": config.get("hidden_expansion", 1.0),
        "points": points,
    }
    if kind == "dfine":
        head["depth"] = config.get("depth_mult", 1.0)
    return {
        "name": f"{kind}:{transformers_models.PREFIX}{transformers_models.name_of(config.get('backbone_config') or {})}",
        "channels": config.get("d_model", 256),
        "levels": f"{levels[0]}-{levels[-1]}",
        "norm": "bn",
        "head": head,
    }


def read_source(start: str, detector: Detector) -> Source:
    """The weights that `start` means, under our names and for the levels of `detector`.

    Raises UserError for a folder that is not there or holds something else.
    """
    config, folder = _config(start), Path(start.removeprefix(PREFIX))
    theirs = _canonical(_KINDS[config["model_type"]], folder)
    strides = [2.0**level for level in _levels(config)]
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in theirs.items():
        ours = _translated(key)
        state.setdefault(ours, tensor)
        origin.setdefault(ours, key)
    mine = [float(spec.stride) for spec in detector.features]
    notes = [] if mine == strides else _arrange(state, origin, strides, mine, config)
    labels = config.get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    generic = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    if generic:
        notes.append("its classes have no names: rows of classes are not taken")
    return Source(
        f"{PREFIX}{folder}",
        state,
        Outputs(None if generic else names, outputs_of(detector).rows),
        licence=str(config.get("license") or LICENCE),
        notes=tuple(notes),
        origin=origin,
    )


def _config(start: str) -> dict[str, Any]:
    file = Path(start.removeprefix(PREFIX)) / "config.json"
    weights_of(start)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", where=file, fix="give a whole snapshot") from None
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in _KINDS:
        raise UserError(
            f"a model of the kind {brief(kind)}", where=file, fix=f"flyspeck has modules for {' and '.join(_KINDS)}"
        )
    for key, value in _EXPECTED.items():
        if content.get(key, value) != value:
            raise UserError(
                f"{key} is {brief(content[key])}, and the detector here is built with {brief(value)}",
                where=file,
                fix="choose another size of the model",
            )
    for one, other in (
        ("encoder_hidden_dim", "d_model"), ("encoder_ffn_dim", "decoder_ffn_dim"),
        ("encoder_attention_heads", "decoder_attention_heads"),
    ):  # fmt: skip
        if content.get(one) != content.get(other):
            raise UserError(
                f"{one} is {brief(content.get(one))} and {other} {brief(content.get(other))}; here encoder and decoder have one"
                " of it",
                where=file,
                fix="choose another size of the model",
            )
    return content


def _levels(config: Mapping[str, Any]) -> list[int]:
    strides = config.get("feat_strides") or (8, 16, 32)
    return [int(stride).bit_length() - 1 for stride in strides]


def _canonical(kind: Kind, folder: Path) -> dict[str, Tensor]:
    """The folder's tensors under the names of the installed library; refused unless it is a whole model of that kind."""
    with _quiet():
        try:
            model, found = part(kind, "ForObjectDetection").from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below
                dtype=torch.float32,
            )
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"the library cannot read it ({' '.join(str(error).split())[:160]})",
                where=folder,
                fix="give the folder of a D-FINE or RT-DETRv2 model that save_pretrained wrote",
            ) from None
    tied = re.compile(r"(class_embed|bbox_embed)\..+")
    missing = sorted(key for key in found["missing_keys"] if not tied.fullmatch(key))
    wrong = sorted(key if isinstance(key, str) else str(key[0]) for key in found["mismatched_keys"])
    if missing or wrong:
        first = f"has no '{missing[0]}'" if missing else f"'{wrong[0]}' has another shape than config.json says"
        raise UserError(f"not a whole model: {first}", where=folder, fix="fetch the folder again")
    return dict(model.state_dict())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and remarks: what it would say is in our own report."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _translated(key: str) -> str:
    if match := re.fullmatch(r"model\.backbone\.model\.encoder\.stages\.(\d+)\.(.+)", key):
        return f"backbone.stages.stage{int(match[1]) + 1}.{match[2]}"
    for pattern, replacement in _RULES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, replacement, key)
    return key


def _arrange(
    state: dict[str, Tensor],
    origin: dict[str, str],
    theirs: Sequence[float],
    mine: Sequence[float],
    config: Mapping[str, Any],
) -> list[str]:
    """Puts the layers of levels in the places of `mine`, in place; returns what is to be said of it.

    A block of the way down belongs to the finer level that it makes, one of the way up to the coarser. What a new level has of
    its own copies the nearest level's, but for its projection, whose channels are its own map's.
    """
    nearest = [min(range(len(theirs)), key=lambda i, s=stride: abs(theirs[i] / s - 1)) for stride in mine]
    old = {name: state.pop(name) for name in list(state) if re.match(r"neck\.(?!mixing)|head\.level_proj\.", name)}
    named = {name: origin.pop(name) for name in old}
    count, last = len(mine), len(theirs) - 2

    def clipped(block: int) -> int:
        return min(max(block, 0), last)

    # Down, block k makes level n - 2 - k; up, level k + 1.
    down = [(k, clipped(last - nearest[count - 2 - k])) for k in range(count - 1)]
    up = [(k, clipped(nearest[k + 1] - 1)) for k in range(count - 1)]
    places = {
        "neck.input_proj": [(i, j) for i, j in enumerate(nearest) if theirs[j] == mine[i]],
        "head.level_proj": list(enumerate(nearest)),
        **dict.fromkeys(("neck.lateral_convs", "neck.fpn_blocks"), down),
        **dict.fromkeys(("neck.downsample_convs", "neck.pan_blocks"), up),
    }
    for prefix, pairs in places.items():
        for here, there in pairs:
            for name, tensor in old.items():
                if name.startswith(f"{prefix}.{there}."):
                    ours = f"{prefix}.{here}.{name.removeprefix(f'{prefix}.{there}.')}"
                    state[ours], origin[ours] = tensor, named[name]
    _arrange_samples(state, nearest, config)
    new = [f"{stride:g}" for stride, j in zip(mine, nearest, strict=True) if theirs[j] != stride]
    left = [f"{stride:g}" for stride in theirs if stride not in mine]
    notes = [f"levels of stride {', '.join(new)} are new: their layers and sampled points are copies of the nearest's"]
    return (notes if new else []) + ([f"levels of stride {', '.join(left)} are left out"] if left else [])


def _arrange_samples(state: dict[str, Tensor], nearest: Sequence[int], config: Mapping[str, Any]) -> None:
    """Rows of sampling offsets and attention weights, which are by head, level and point."""
    points = config.get("decoder_n_points", 4)
    strides = config.get("feat_strides") or (8, 16, 32)
    counts = list(points) if isinstance(points, list) else [points] * len(strides)
    heads = config.get("decoder_attention_heads", 8)
    for name, tensor in state.items():
        if re.search(r"encoder_attn\.(?:num|n)_points_scale$", name):
            state[name] = torch.cat([tensor.split(counts)[j] for j in nearest])
        elif match := re.search(r"encoder_attn\.(sampling_offsets|attention_weights)\.", name):
            values = 2 if match[1] == "sampling_offsets" else 1
            parts = tensor.unflatten(0, (heads, sum(counts), values)).split(counts, 1)
            state[name] = torch.cat([parts[j] for j in nearest], 1).flatten(0, 2)
