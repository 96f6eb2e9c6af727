"""Cached outputs are the teacher's own, and of nobody and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from flyspeck.data.loading import DetectionDataset, collate
from flyspeck.data.readers import read_annotations
from flyspeck.data.transforms import flip_horizontal
from flyspeck.errors import UserError
from flyspeck.models.detector import Detector
from flyspeck.train.build import build_detector
from flyspeck.train.config import AugmentConfig, ModelConfig
from flyspeck.train.distill.cache import open_cache, versions
from flyspeck.train.distill.config import DistillConfig
from flyspeck.train.distill.objective import feature_terms, response_terms
from flyspeck.train.distill.teacher import Teacher
from flyspeck.train.sections import ExtraTransform

FLIPS = AugmentConfig(flip=0.5)


def detector(channels: int, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    head = {"hidden": 16, "samples": 16, "train_proposals": 30, "proposals": 20}
    model = ModelConfig(name="faster_rcnn:mobilenet_v2", width=0.25, channels=channels, head=head)
    return build_detector(model, classes=["square"], mean=[0.5], std=[0.25], load=False)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(detector(12))


@pytest.fixture
def dataset(tiny_set: Path) -> DetectionDataset:
    return DetectionDataset(read_annotations(tiny_set / "val.json"), channels=1)


def observe(teacher: Teacher, **fields: object):
    config = DistillConfig(teacher="given", **fields)  # type: ignore[arg-type]
    build = response_terms if config.method == "response" else feature_terms
    return build(config, detector(8), teacher)[0].observe


@pytest.mark.parametrize("fields", [{}, {"method": "single"}, {"method": "response", "regions": 8}])
def test_cached_outputs_are_the_teachers(
    fields: dict, teacher: Teacher, dataset: DetectionDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    what = observe(teacher, **fields)
    with caplog.at_level(logging.INFO):
        source = open_cache(tmp_path / "cache", dataset, teacher, what, augment=FLIPS, limit_bytes=1e9, divisor=32)
    assert "12 images x" in caplog.text  # six, and six flipped
    plain = [dataset.raw(i) for i in (4, 1)]
    images = collate([plain[0], flip_horizontal(plain[1])], divisor=32).images
    wanted, found = teacher.outputs(images, what), source(images)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert_close(found[name].float(), value.float(), rtol=2e-3, atol=1e-3)  # ten bits of mantissa
    # A second start reads what is there.
    written = (tmp_path / "cache" / "index.json").stat().st_mtime_ns
    open_cache(tmp_path / "cache", dataset, teacher, what, augment=FLIPS, limit_bytes=1, divisor=32)
    assert (tmp_path / "cache" / "index.json").stat().st_mtime_ns == written


def test_a_cache_that_was_broken_off_is_filled_again(
    teacher: Teacher, dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, plain, calls = observe(teacher), Teacher.outputs, 0

    def outputs(self: Teacher, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the images
            raise KeyboardInterrupt
        return plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Teacher, "outputs", outputs)
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, dataset, teacher, what, augment=FLIPS, limit_bytes=1e9, divisor=32, batch_size=3)
    monkeypatch.undo()
    assert (tmp_path / "P2.npy").is_file()  # half of it is there already
    source = open_cache(tmp_path, dataset, teacher, what, augment=FLIPS, limit_bytes=1e9, divisor=32, batch_size=3)
    images = collate([dataset.raw(5)], divisor=32).images
    assert_close(source(images)["P2"].float(), teacher.outputs(images, what)["P2"], rtol=2e-3, atol=1e-3)


def test_a_cache_serves_methods_that_need_less(teacher: Teacher, dataset: DetectionDataset, tmp_path: Path) -> None:
    open_cache(tmp_path, dataset, teacher, observe(teacher), augment=FLIPS, limit_bytes=1e9, divisor=32)
    single = observe(teacher, method="single", levels=[3])
    source = open_cache(tmp_path, dataset, teacher, single, augment=FLIPS, limit_bytes=1e9, divisor=32)
    assert set(source(collate([dataset.raw(0)], divisor=32).images)) == {"P3", "P3 cells"}
    six = observe(teacher, levels=[2, 6])
    with pytest.raises(UserError, match="other levels or another method"):
        open_cache(tmp_path, dataset, teacher, six, augment=FLIPS, limit_bytes=1e9, divisor=32)


def test_outputs_of_others_are_refused(
    teacher: Teacher, dataset: DetectionDataset, tiny_set: Path, tmp_path: Path
) -> None:
    what = observe(teacher)
    source = open_cache(tmp_path, dataset, teacher, what, augment=FLIPS, limit_bytes=1e9, divisor=32)
    other = Teacher(detector(12, seed=1))
    with pytest.raises(UserError, match="the outputs of another teacher"):
        open_cache(tmp_path, dataset, other, observe(other), augment=FLIPS, limit_bytes=1e9, divisor=32)
    more = DetectionDataset(read_annotations(tiny_set / "train.json"), channels=1)
    with pytest.raises(UserError, match="the outputs of other images"):
        open_cache(tmp_path, more, teacher, what, augment=FLIPS, limit_bytes=1e9, divisor=32)
    with pytest.raises(UserError, match="the outputs of other images"):
        open_cache(tmp_path, dataset, teacher, what, augment=AugmentConfig(flip=0), limit_bytes=1e9, divisor=32)
    with pytest.raises(UserError, match="1 of 1 images of a batch have other pixels"):
        source(collate([more.raw(0)], divisor=32).images)


def test_too_large_a_cache_is_refused_before_it_is_begun(
    teacher: Teacher, dataset: DetectionDataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"would take 0\.00 GB, more than the limit of 0\.0001 GB"):
        open_cache(tmp_path / "cache", dataset, teacher, observe(teacher), augment=FLIPS, limit_bytes=1e5, divisor=32)
    assert not (tmp_path / "cache").exists()


def test_only_flips_can_be_cached() -> None:
    assert versions(AugmentConfig(flip=0)) == [(False, False)]
    assert versions(FLIPS) == [(False, False), (True, False)]
    assert versions(AugmentConfig(flip=1, vertical_flip=0.2)) == [(True, False), (True, True)]
    with pytest.raises(UserError, match=r"but augment.crop, augment.photometric changes them anew"):
        versions(AugmentConfig(crop=(64, 64), photometric=0.1))
    with pytest.raises(UserError, match=r"but augment.square_crops changes"):
        versions(AugmentConfig(square_crops=[0.5]))
    with pytest.raises(UserError, match=r"but augment.extra changes"):
        versions(AugmentConfig(extra=[ExtraTransform.model_validate({"name": "mosaic", "size": [64, 64]})]))


def test_images_of_several_sizes_are_refused(teacher: Teacher, dataset: DetectionDataset, tmp_path: Path) -> None:
    sizes = dataset.annotations.sizes.copy()
    sizes[2] = np.array([32, 32])
    object.__setattr__(dataset.annotations, "sizes", sizes)
    with pytest.raises(UserError, match="the images have 2 sizes"):
        open_cache(tmp_path, dataset, teacher, observe(teacher), augment=FLIPS, limit_bytes=1e9, divisor=32)
