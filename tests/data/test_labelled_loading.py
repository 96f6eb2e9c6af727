"""Batches from the disk: whole, the same again from anywhere, shared by processes; broken images are named and counted."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from flyspeck.data.labelled_files import list_labelled_images
from flyspeck.data.labelled_loading import LabelledLoader
from flyspeck.data.sampling import BLOCKS_AT_ONCE, EpochSampler
from flyspeck.errors import UserError
from labelled_sets import stripes, write_folders, write_shard, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_shards(root, "train", shards=4, each=5)
    return list_labelled_images(root, "train")


def loader(files, **changes):
    return LabelledLoader(files, **{"size": 16, "batch_size": 4, "smallest_crop": 0.5, "seed": 3, **changes})


def same(a, b):
    assert len(a) == len(b)
    for (x, labels), (y, others) in zip(a, b, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(labels, others)


def test_the_same_epoch_from_anywhere_with_any_workers(shards):
    whole = list(loader(shards).epoch(1))
    assert [len(labels) for _, labels in whole] == [4] * 5
    assert torch.cat([labels for _, labels in whole]).bincount().tolist() == [7, 7, 6]
    same(list(loader(shards).epoch(1, start=3)), whole[3:])
    several = loader(shards, workers=2)
    same(list(several.epoch(1)), whole)
    same(list(several.epoch(1, start=2)), whole[2:])
    several.close()
    assert not torch.equal(next(loader(shards).epoch(2))[0], whole[0][0])
    assert not torch.equal(next(loader(shards, seed=4).epoch(1))[0], whole[0][0])


def test_two_processes_share_the_batches_of_one(shards):
    whole = list(loader(shards).epoch(0))
    halves = [list(loader(shards, batch_size=2, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    for (x, labels), *parts in zip(whole, *halves, strict=True):
        for rank, (y, own) in enumerate(parts):
            assert torch.equal(x[rank::2], y)
            assert torch.equal(labels[rank::2], own)


def test_middles_come_once_in_order(shards):
    middles = list(loader(shards, smallest_crop=None, batch_size=8).epoch(0))
    assert [len(labels) for _, labels in middles] == [8, 8, 4]
    assert_array_equal(torch.cat([labels for _, labels in middles]), shards.labels)


@pytest.mark.parametrize(("num", "shard_count"), [(1, 1), (7, 3), (400, 50), (400, 400)])
def test_blocks_few_at_a_time_and_every_image_once(num, shard_count):
    blocks = np.sort(np.arange(num) % shard_count)
    sampler = EpochSampler(num, seed=1, blocks=blocks)
    orders = [sampler.order(epoch) for epoch in (0, 1)]
    for order in orders:
        assert_array_equal(np.sort(order), np.arange(num))
        # A slow twin: a file that has been left is never come back to, once all of a window are read.
        seen, open_files, counts = set(), set(), np.bincount(blocks)
        left = counts.copy()
        for block in blocks[order]:
            open_files.add(int(block))
            seen.add(int(block))
            left[block] -= 1
            open_files -= {b for b in open_files if not left[b]}
            assert len(open_files) <= BLOCKS_AT_ONCE
    if num > 10:
        assert (orders[0] != orders[1]).any()


def _with_broken(root, broken):
    for number in range(20):
        content = b"broken" if number in broken else stripes(number)[0]
        samples = [(f"{number:06d}", content, number % 3)]
        write_shard(root / "train" / f"{number}.tar", samples)
    return list_labelled_images(root, "train")


def test_a_broken_image_is_named_once_counted_and_replaced(tmp_path, caplog):
    files = _with_broken(tmp_path, {4})
    stream = loader(files, max_broken_share=0.1)
    with caplog.at_level(logging.WARNING):
        first = list(stream.epoch(0))
        list(stream.epoch(1))
    assert [len(labels) for _, labels in first] == [4] * 5
    assert list(stream.broken.found) == [f"{tmp_path / 'train' / '4.tar'}: 000004.png"]
    assert caplog.text.count("left out (1 of 2 allowed)") == 1
    assert "4.tar: 000004.png: cannot be decoded" in caplog.text
    same(list(loader(files, max_broken_share=0.1, workers=2).epoch(0)), first)
    middles = list(loader(files, smallest_crop=None, batch_size=20, max_broken_share=0.1).epoch(0))
    assert [len(labels) for _, labels in middles] == [19]  # no other image stands for it in an evaluation


def test_too_many_broken_images_are_an_error(tmp_path):
    files = _with_broken(tmp_path, {4, 9, 13})
    with pytest.raises(UserError, match=r"3 of 20 images cannot be used, more than the allowed share of 0.1"):
        list(loader(files, max_broken_share=0.1).epoch(0))
    with pytest.raises(UserError, match=r": 0000\d\d.png: cannot be decoded"):
        list(loader(files).epoch(0))
    write_folders(tmp_path / "all", "train", 3)
    for path in (tmp_path / "all").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be decoded"):
        list(loader(list_labelled_images(tmp_path / "all", "train"), batch_size=3, max_broken_share=1).epoch(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_taken_away_stops_the_training(tmp_path, workers):
    files = _with_broken(tmp_path, set())
    (tmp_path / "train" / "7.tar").unlink()
    with pytest.raises(
        UserError, match=r"7.tar: can no longer be read \(No such file or directory\); put it back, and --resume"
    ):
        list(loader(files, max_broken_share=1.0, workers=workers).epoch(0))
