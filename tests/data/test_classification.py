"""Labelled images in every layout; nothing in a pickle runs."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.data.classification import LabelledImages, load_arrays, read_labelled_images
from flyspeck.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4
FLAT = PIXELS.transpose(0, 3, 1, 2).reshape(20, -1)  # red plane, green plane, blue plane


def dump(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def cifar10(folder, protocol=2):
    for i in range(5):
        rows = slice(4 * i, 4 * i + 4)
        dump(folder / f"data_batch_{i + 1}", {b"data": FLAT[rows], b"labels": LABELS[rows].tolist()}, protocol)
    dump(folder / "test_batch", {b"data": FLAT[:8], b"labels": LABELS[:8].tolist()}, protocol)
    dump(folder / "batches.meta", {b"label_names": [b"a", b"b", b"c", b"d"]}, protocol)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar10(tmp_path, protocol):
    cifar10(tmp_path, protocol)
    train, val = (read_labelled_images(tmp_path, split) for split in ("train", "val"))
    assert_array_equal(train.pixels, PIXELS)
    assert_array_equal(train.labels, LABELS)
    assert_array_equal(val.pixels, PIXELS[:8])
    assert train.classes == ("a", "b", "c", "d")


def test_cifar100_uses_the_fine_labels(tmp_path):
    for name in ("train", "test"):
        dump(tmp_path / name, {b"data": FLAT, b"fine_labels": LABELS.tolist(), b"coarse_labels": [0] * 20})
    dump(tmp_path / "meta", {b"fine_label_names": [b"apple", b"bear", b"cup", b"dog"], b"coarse_label_names": [b"x"]})
    train = read_labelled_images(tmp_path, "train")
    assert train.classes == ("apple", "bear", "cup", "dog")
    assert_array_equal(train.labels, LABELS)


@pytest.mark.parametrize("kind", ["pickle", "npz"])
def test_imagenet32_counts_labels_from_1(tmp_path, kind):
    for i in range(1, 11):
        rows = slice(2 * (i - 1), 2 * i)
        batch = {"data": FLAT[rows], "labels": (LABELS[rows] + 1).tolist(), "mean": np.zeros(3072)}
        if kind == "npz":
            np.savez(tmp_path / f"train_data_batch_{i}.npz", **batch)
        else:
            dump(tmp_path / f"train_data_batch_{i}", batch, 4)
    train = read_labelled_images(tmp_path, "train")
    assert_array_equal(train.pixels, PIXELS)
    assert_array_equal(train.labels, LABELS)
    assert len(train.classes) == 1000
    with pytest.raises(UserError, match=r"val_data.*no such file.*not complete"):
        read_labelled_images(tmp_path, "val")


def test_folder_of_classes_is_resized_and_cropped(tmp_path):
    for split in ("train", "val"):
        for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0))):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (40, 70), colour).save(folder / "1.png")
            Image.new("L", (16, 16), 9).save(folder / "2.png")
    train = read_labelled_images(tmp_path, "train", size=24)
    assert train.pixels.shape == (4, 24, 24, 3)
    assert train.classes == ("green", "red")
    assert_array_equal(train.labels, [0, 0, 1, 1])
    assert_array_equal(train.pixels[0, 5, 5], [0, 250, 0])
    assert_array_equal(train.pixels[3], np.full((24, 24, 3), 9))


def test_packed_set(tmp_path):
    files = []
    for image in PIXELS:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    data = np.frombuffer(b"".join(files), np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", data=data, offsets=offsets, labels=LABELS, classes=np.array(list("abcd")))
    assert_array_equal(read_labelled_images(tmp_path, "val").pixels, PIXELS)


@pytest.mark.slow
def test_real_packed_sets(shared):
    val = read_labelled_images(shared / "data" / "tinyimagenet32", "val")
    assert (len(val), len(val.classes), val.pixels.shape[1:]) == (10_100, 202, (32, 32, 3))
    assert set(np.bincount(val.labels)) == {50}


def test_limit_takes_the_first_of_each_class():
    some = LabelledImages(PIXELS, LABELS, ("a", "b", "c", "d"), "x").limit(2)
    assert_array_equal(some.labels, [0, 1, 2, 3, 0, 1, 2, 3])
    assert_array_equal(some.pixels, PIXELS[:8])


class _Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    cifar10(tmp_path)
    dump(tmp_path / "data_batch_3", {b"data": FLAT, b"labels": _Runs(tmp_path / "ran")})
    with pytest.raises(UserError, match=r"data_batch_3: not a data batch that can be read safely \(.*mkdir"):
        read_labelled_images(tmp_path, "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1, 2]), b"\x80\x02}q\x00."[:3]])
def test_broken_batches_are_named(tmp_path, content):
    path = tmp_path / "batch"
    path.write_bytes(content)
    with pytest.raises(UserError, match="batch: "):
        load_arrays(path)


def test_wrong_contents_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_labelled_images(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="no data set of labelled images"):
        read_labelled_images(tmp_path, "train")
    cifar10(tmp_path)
    dump(tmp_path / "test_batch", {b"data": FLAT[:, :100], b"labels": LABELS.tolist()})
    with pytest.raises(UserError, match=r"'data' is uint8 of shape \(20, 100\)"):
        read_labelled_images(tmp_path, "val")
    dump(tmp_path / "test_batch", {b"data": FLAT})
    with pytest.raises(UserError, match="has no 'labels'"):
        read_labelled_images(tmp_path, "val")
    dump(tmp_path / "test_batch", {b"data": FLAT, b"labels": (LABELS + 4).tolist()})
    with pytest.raises(UserError, match="labels 4 to 7 for 4 classes"):
        read_labelled_images(tmp_path, "val")
