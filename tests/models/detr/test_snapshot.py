"""Folders as the library transformers saves them: every tensor has its place, and the boxes are the library's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flyspeck.errors import UserError
from flyspeck.models.backbones.transformers_models import NAMES, PIXELS, name_of, transformers_backbone
from flyspeck.models.build import build
from flyspeck.models.detector import Detector
from flyspeck.models.detr.head import DetrHead
from flyspeck.models.detr.library import Kind, part
from flyspeck.models.start import snapshot
from flyspeck.options import validated
from flyspeck.train.build import build_detector
from flyspeck.train.model_config import ModelConfig
from flyspeck.train.pixels import settled_pixels
from flyspeck.train.start_names import find_start
from flyspeck.types import ImageBatch
from needs import TRANSFORMERS

pytestmark = TRANSFORMERS
CLASSES = ("car", "person", "bicycle")
BACKBONES = {"dfine": "hgnetv2_b0", "rtdetrv2": "resnet18_vd"}


def save(kind: Kind, folder: Path, **more: Any) -> Any:
    """A small published-like detector with random weights, saved by the library; returns its model."""
    from transformers import AutoConfig  # pyright: ignore

    torch.manual_seed(0)
    content = dict(NAMES[BACKBONES[kind]])
    if kind == "dfine":
        content["hidden_sizes"] = content["stage_out_channels"]  # said twice in published files
    backbone = AutoConfig.for_model(content.pop("model_type"), **content, out_indices=[2, 3, 4])
    channels = backbone.hidden_sizes
    own: dict[str, Any] = {"decoder_n_points": [3, 6, 3], "depth_mult": 0.34} if kind == "dfine" else {}
    config = getattr(_configuration(kind), "DFineConfig" if kind == "dfine" else "RTDetrV2Config")(
        **{
            "backbone_config": backbone, "encoder_in_channels": channels[1:], "encoder_hidden_dim": 32, "d_model": 32,
            "decoder_in_channels": [32] * 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_layers": 2,
            "hidden_expansion": 0.5, "num_queries": 50, "id2label": dict(enumerate(CLASSES)), **own, **more,
        }
    )  # fmt: skip
    model = part(kind, "ForObjectDetection")(config).eval()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
            elif isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.15)
    model.save_pretrained(folder)
    return model


def _configuration(kind: Kind) -> Any:
    import importlib

    package = "d_fine" if kind == "dfine" else "rt_detr_v2"
    return importlib.import_module(f"transformers.models.{package}.configuration_{package}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, tuple[Path, Any]]:
    found: dict[Kind, tuple[Path, Any]] = {}
    for kind in ("dfine", "rtdetrv2"):
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = folder, save(kind, folder)
    return found


def started(folder: Path, classes: tuple[str, ...] = CLASSES, **model: Any) -> Detector:
    config = validated(ModelConfig, {"start": f"transformers:{folder}", **model}, where="recipe.yaml")
    torch.manual_seed(1)
    return build_detector(config, classes=classes, mean=PIXELS[0], std=PIXELS[1])


@pytest.mark.parametrize("kind", BACKBONES)
def test_the_boxes_are_the_librarys(kind: Kind, saved: dict[Kind, tuple[Path, Any]]) -> None:
    """At 320x320, where its anchors are two cells of stride 8 and it masks no cell; its queries are the 50 best."""
    folder, theirs = saved[kind]
    mine = started(folder, head={"queries": 50, "anchor_scale": 2.0}).eval()
    assert isinstance(mine.head, DetrHead)
    pixels = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(pixels)
        said = mine.head(mine.pyramid(ImageBatch(pixels, ((320, 320),) * 2)))
    assert float(expected.logits.std()) > 0.05
    torch.testing.assert_close(said.layers[-1].logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(said.layers[-1].boxes, expected.pred_boxes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_tensor_is_reported(kind: Kind, saved: dict[Kind, tuple[Path, Any]]) -> None:
    (report,) = started(saved[kind][0]).starts
    counts = report.counts()
    assert counts["skipped"] == counts["resized"] == 0
    assert [one.key for one in report.of("new") if not one.key.endswith("num_batches_tracked")] == [
        "pixel_norm.mean",
        "pixel_norm.std",
    ]
    assert any(one.source == "model.enc_output.0.weight" for one in report.of("loaded"))


@pytest.mark.parametrize("kind", BACKBONES)
def test_rows_of_classes_go_by_name(kind: Kind, saved: dict[Kind, tuple[Path, Any]]) -> None:
    mine = started(saved[kind][0], classes=("boat", "person"))
    theirs = saved[kind][1].model
    assert isinstance(mine.head, DetrHead)
    torch.testing.assert_close(mine.head.enc_score_head.weight[1], theirs.enc_score_head.weight[1])
    embedded = theirs.denoising_class_embed.weight
    torch.testing.assert_close(mine.head.denoising_class_embed.weight[1:], embedded[[1, 3]])
    words = {one.why for one in mine.starts[0].of("resized")}
    assert words == {"rows of 1 of 2 classes by name: person"}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_level_of_stride_4_is_added_and_the_others_keep_their_layers(
    kind: Kind, saved: dict[Kind, tuple[Path, Any]]
) -> None:
    points = {"head": {"points": [3, 3, 6, 3]}} if kind == "dfine" else {}
    folder, theirs = saved[kind]
    mine = started(folder, levels="2-5", **points)
    neck: Any = mine.neck
    encoder = theirs.model.encoder
    assert isinstance(mine.head, DetrHead)
    own = {name: p for name, p in neck.named_parameters()}
    for name, value in encoder.named_parameters():
        if match := re.fullmatch(r"(fpn_blocks|lateral_convs|downsample_convs|pan_blocks)\.(\d)\.(.+)", name):
            here = int(match[2]) + (
                match[1] in ("downsample_convs", "pan_blocks")
            )  # a way up begins one level lower now
            torch.testing.assert_close(own[f"{match[1]}.{here}.{match[3]}"], value)
    torch.testing.assert_close(neck.input_proj[1][0].weight, theirs.model.encoder_input_proj[0][0].weight)
    layer, other = mine.head.decoder.layers[0].encoder_attn, theirs.model.decoder.layers[0].encoder_attn
    counts = [3, 6, 3] if kind == "dfine" else [4] * 3
    rows = layer.attention_weights.bias.unflatten(0, (8, counts[0] + sum(counts)))
    wanted = other.attention_weights.bias.unflatten(0, (8, sum(counts)))
    torch.testing.assert_close(rows[:, counts[0] :], wanted)
    torch.testing.assert_close(rows[:, : counts[0]], wanted[:, : counts[0]])
    assert "levels of stride 4 are new" in " ".join(mine.starts[0].notes)
    assert len(mine.eval().detect(ImageBatch(torch.rand(1, 3, 64, 96), ((64, 96),)))) == 1


def test_the_recipe_becomes_that_detectors(saved: dict[Kind, tuple[Path, Any]]) -> None:
    config = ModelConfig.model_validate({"start": f"transformers:{saved['dfine'][0]}"})
    assert (config.name, config.channels, config.levels) == ("dfine:transformers/hgnetv2_b0", 32, "3-5")
    assert config.head.model_dump()["points"] == [3, 6, 3]
    assert config.head.model_dump()["layers"] == 2
    _, pixels = settled_pixels(config, ([0.4] * 3, [0.2] * 3))
    assert pixels == ([0.0] * 3, [1.0] * 3)
    assert find_start(config.start or "").is_foreign


@pytest.mark.parametrize("name", NAMES)
def test_backbones_are_recognised_and_built(name: str) -> None:
    assert name_of(NAMES[name]) == name
    with torch.device("meta"):
        backbone = transformers_backbone(name)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    for m, spec in zip(maps, backbone.features, strict=True):
        assert m.shape[1:] == (spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_other_backbones_and_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"no backbone 'transformers/hgnetv2_b1'; did you mean 'hgnetv2_b5'"):
        build("dfine:transformers/hgnetv2_b1")
    with pytest.raises(UserError, match="has one width"):
        build("dfine:transformers/hgnetv2_b0", width=0.5)
    with pytest.raises(UserError, match=r"its backbone \(swin\) is none of those"):
        name_of({"model_type": "swin"})


def bad_folders(good: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Folders that are no start, each with what is said of it."""

    def copy(name: str, **config: Any) -> Path:
        (folder / name).mkdir()
        content = json.loads((good / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps({**content, **config}))
        (folder / name / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
        return folder / name

    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    bare = copy("bare")
    (bare / "config.json").unlink()
    cut = copy("cut")
    (cut / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes()[:5000])
    return {
        "none": (folder / "none", "no such folder"),
        "pickled": (pickled, "a pickle, which could run anything"),
        "bare": (bare, "cannot be read"),
        "cut": (cut, "the library cannot read it"),
        "other": (copy("other", model_type="detr"), "a model of the kind 'detr'"),
        "wide": (copy("wide", encoder_hidden_dim=64), "encoder_hidden_dim is 64 and d_model 32"),
        "bins": (copy("bins", max_num_bins=16), "max_num_bins is 16"),
        "layers": (copy("layers", decoder_layers=3), "not a whole model"),
        "classes": (copy("classes", id2label={"0": "a"}), "another shape than config.json says"),
    }


@pytest.mark.parametrize("which", ["none", "pickled", "bare", "cut", "other", "wide", "bins", "layers", "classes"])
def test_bad_folders_are_one_line(which: str, saved: dict[Kind, tuple[Path, Any]], tmp_path: Path) -> None:
    folder, said = bad_folders(saved["dfine"][0], tmp_path)[which]
    with pytest.raises(UserError, match=said) as caught:
        started(folder)
    assert "\n" not in str(caught.value)


def test_half_precision_and_several_files_are_read(saved: dict[Kind, tuple[Path, Any]], tmp_path: Path) -> None:
    theirs = saved["rtdetrv2"][1]
    theirs.half().save_pretrained(tmp_path, max_shard_size="200KB")
    theirs.float()
    assert not (tmp_path / "model.safetensors").exists()
    mine = started(tmp_path)
    assert all(p.dtype == torch.float32 for p in mine.parameters())
    torch.testing.assert_close(
        mine.head.enc_output[0].weight,  # type: ignore[union-attr, index]
        theirs.model.enc_output[0].weight,
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_prefix_is_all_that_is_asked_of_a_name() -> None:
    assert snapshot.is_snapshot("transformers:x")
    assert not snapshot.is_snapshot("torchvision:x")
