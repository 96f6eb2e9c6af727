"""Samples, padding, and batches that do not depend on how they were loaded."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from flyspeck.data import loading, pixel_cache
from flyspeck.data.annotations import Annotations
from flyspeck.data.copy_paste import CopyPaste
from flyspeck.data.loading import DetectionDataset, collate, default_workers, in_order, make_loader
from flyspeck.data.readers import read_annotations
from flyspeck.data.sampling import Draw, EpochSampler
from flyspeck.data.transforms import Compose, Mosaic, Photometric, RandomFlip, RandomScaleCrop, RandomTurn
from flyspeck.errors import UserError
from flyspeck.types import Sample, Targets


def write_set(folder, images, boxes=None, labels=None, ignore=None, crowd=None, ids=None):
    """A data set of arrays (H, W) or (H, W, 3); `boxes` one (N, 4) list per image."""
    boxes = boxes or [[] for _ in images]
    counts = [len(rows) for rows in boxes]
    num = sum(counts)
    flat = np.array([row for rows in boxes for row in rows], float).reshape(-1, 4)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Annotations(
        image_ids=np.arange(len(images)) if ids is None else np.array(ids, object),
        file_names=tuple(f"{number}.png" for number in range(len(images))),
        sizes=np.array([pixels.shape[:2] for pixels in images]),
        image_index=np.repeat(np.arange(len(images)), counts),
        boxes=flat,
        labels=np.zeros(num, np.int64) if labels is None else np.array(labels),
        area=np.ones(num),
        ignore=np.zeros(num, bool) if ignore is None else np.array(ignore),
        crowd=np.zeros(num, bool) if crowd is None else np.array(crowd),
        box_ids=np.arange(num),
        classes=("a", "b"),
        category_ids=(1, 2),
        root=folder,
        source="coco: made.json",
    )


@pytest.fixture
def varied(tmp_path):
    """Twelve grey images of three sizes with random boxes, one without any."""
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (64, 64), (33, 70)] * 4
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    boxes = [
        [[x, y, x + 4, y + 5] for x, y in rng.integers(0, 28, (int(rng.integers(1, 6)), 2))] if number != 5 else []
        for number in range(12)
    ]
    return write_set(tmp_path, images, boxes)


HEAVY = Compose(
    (
        CopyPaste(probability=0.8),
        Mosaic((48, 64), 0.5),
        RandomFlip(0.5, 0.5),
        RandomTurn(),
        RandomScaleCrop((0.7, 1.4), (40, 40), 0.5),
        Photometric(),
    )
)


# --- samples ---------------------------------------------------------------------------------------------------------


def test_sample_by_hand(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    boxes = [[[1, 0, 3, 2], [-5, -5, 2, 1], [4, 0, 9, 2], [2, 2, 2, 3], [0, 0, 4, 3], [0, 1, 4, 3]]]
    annotations = write_set(
        tmp_path,
        [image],
        boxes,
        labels=[0, 1, 0, 0, 1, -1],
        ignore=[0, 0, 0, 0, 0, 1],
        crowd=[0, 0, 0, 0, 1, 0],
    )
    annotations = replace(annotations, ignore=annotations.ignore.astype(bool), crowd=annotations.crowd.astype(bool))
    sample = DetectionDataset(annotations)[0]
    assert_close(sample.pixels, torch.from_numpy(image)[None])
    # Row 2 lies right of the image and row 3 has no width: gone. Row 1 is clipped. The crowd loses its label.
    assert_close(sample.targets.boxes, torch.tensor([[1.0, 0, 3, 2], [0, 0, 2, 1], [0, 0, 4, 3], [0, 1, 4, 3]]))
    assert sample.targets.labels.tolist() == [0, 1, -1, -1]
    assert sample.targets.ignore.tolist() == [False, False, True, True]
    assert (sample.image_id, sample.pixels.shape[1:]) == (0, (3, 4))
    assert type(sample.image_id) is int


def test_a_box_that_vanishes_in_float32_is_dropped(tmp_path):
    # 1e-9 px at x = 3 is below the step of float32 there.
    sample = DetectionDataset(write_set(tmp_path, [np.zeros((4, 4), np.uint8)], [[[3, 0, 3 + 1e-9, 2]]]))[0]
    assert sample.targets.boxes.shape == (0, 4)


@pytest.mark.parametrize("count", [0, 800])
def test_no_box_and_800_boxes(tmp_path, count):
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (count, 2))
    boxes = [[[x, y, x + 3, y + 3] for x, y in corners]]
    annotations = write_set(tmp_path, [np.zeros((64, 64), np.uint8)], boxes)
    dataset = DetectionDataset(annotations, transform=HEAVY)
    assert len(dataset.raw(0).targets.boxes) == count
    batch = collate([dataset[0], dataset[Draw(3, 1, 0)]], divisor=32)
    assert all(target.boxes.shape[1] == 4 for target in batch.targets)
    assert all(target.boxes.dtype == torch.float32 for target in batch.targets)
    assert all(target.labels.dtype == torch.int64 for target in batch.targets)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_sixteen_bit_becomes_float_in_unit_range(tmp_path, cache):
    image = np.array([[0, 65535], [6553, 32768]], np.uint16)
    sample = DetectionDataset(write_set(tmp_path, [image]), cache=cache)[0]
    assert sample.pixels.dtype == torch.float32
    assert_close(sample.pixels, torch.tensor([[[0, 1], [6553 / 65535, 32768 / 65535]]]))


@pytest.mark.parametrize("channels", [1, 3])
def test_channels(tmp_path, channels):
    grey, colour = np.full((4, 5), 9, np.uint8), np.full((4, 5, 3), 9, np.uint8)
    dataset = DetectionDataset(write_set(tmp_path, [grey, colour]), channels=channels)
    assert [dataset[i].pixels.shape for i in range(2)] == [(channels, 4, 5)] * 2


def test_text_ids_stay_text(tmp_path):
    annotations = write_set(tmp_path, [np.zeros((2, 2), np.uint8)], ids=["DJI_0001"])
    assert DetectionDataset(annotations)[0].image_id == "DJI_0001"


def test_wrong_size_in_the_annotations(tmp_path):
    annotations = write_set(tmp_path, [np.zeros((20, 30), np.uint8)])
    turned = replace(annotations, sizes=np.array([[30, 20]]))
    with pytest.raises(UserError, match=r"0\.png: the image is 30 x 20 where the annotations say 20 x 30"):
        DetectionDataset(turned)[0]
    unknown = replace(annotations, sizes=np.array([[-1, -1]]))
    assert DetectionDataset(unknown)[0].pixels.shape[1:] == (20, 30)


@pytest.mark.parametrize("chunk", [1, 5000, 2**27])
def test_cache_gives_the_same_and_is_never_written_to(varied, monkeypatch, chunk):
    monkeypatch.setattr(pixel_cache, "_CHUNK_BYTES", chunk)
    plain, cached = DetectionDataset(varied), DetectionDataset(varied, cache="ram")
    for index in range(len(varied)):
        assert_close(cached[index].pixels, plain[index].pixels)
    cached[0].pixels.zero_()
    assert_close(cached[0].pixels, plain[0].pixels)


def test_cache_says_its_size_and_keeps_its_limit(varied, caplog):
    caplog.set_level(logging.INFO, logger="flyspeck")
    # 2000 + 4096 bytes fit; the third image (2310) would not.
    dataset = DetectionDataset(varied, cache="ram", cache_limit_bytes=8000)
    assert "2 of 12 images" in caplog.text
    assert_close(dataset[5].pixels, DetectionDataset(varied)[5].pixels)


# --- batches ---------------------------------------------------------------------------------------------------------


def sample_of(pixels, image_id=0):
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    return Sample(pixels, nothing, image_id)


def test_padding_never_moves_or_resizes():
    first, second = torch.randint(0, 256, (1, 5, 9), dtype=torch.uint8), torch.full((1, 8, 3), 7, dtype=torch.uint8)
    images, targets, ids = collate([sample_of(first, 4), sample_of(second, "b")], divisor=8)
    assert images.pixels.shape == (2, 1, 8, 16)
    assert images.sizes == ((5, 9), (8, 3))
    assert_close(images.pixels[0, :, :5, :9], first)
    assert images.pixels[0].sum() == first.sum()
    assert images.pixels[1].sum() == 7 * 24
    assert ids == [4, "b"]
    assert len(targets) == 2


def test_mixed_kinds_are_refused():
    with pytest.raises(UserError, match=r"1 channel.* and 3 channel"):
        collate([sample_of(torch.zeros(1, 4, 4)), sample_of(torch.zeros(3, 4, 4))], divisor=32)
    with pytest.raises(UserError, match=r"float32 and .*uint8"):
        collate([sample_of(torch.zeros(1, 4, 4)), sample_of(torch.zeros(1, 4, 4, dtype=torch.uint8))], divisor=32)


# --- the loader ------------------------------------------------------------------------------------------------------


def flat(batches):
    """Everything in some batches as comparable values."""
    return [
        (
            batch.images.pixels.numpy().tobytes(),
            batch.images.sizes,
            [(t.boxes.tolist(), t.labels.tolist(), t.ignore.tolist()) for t in batch.targets],
            batch.image_ids,
        )
        for batch in batches
    ]


@pytest.fixture
def reference(varied):
    loader = make_loader(DetectionDataset(varied, transform=HEAVY, seed=7), batch_size=3, divisor=32, workers=0, seed=7)
    return [flat(loader.epoch(epoch)) for epoch in range(2)]


def test_epochs_differ(reference):
    assert len(reference[0]) == len(reference[1]) == 4
    assert reference[0] != reference[1]


@pytest.mark.parametrize(("workers", "cache"), [(0, "ram"), (1, "none"), (2, "ram")])
def test_batches_do_not_depend_on_workers_or_cache(varied, reference, workers, cache):
    dataset = DetectionDataset(varied, transform=HEAVY, seed=7, cache=cache)
    loader = make_loader(dataset, batch_size=3, divisor=32, workers=workers, seed=7)
    torch.manual_seed(workers)
    assert flat(loader.epoch(0)) == reference[0]
    # Left in the middle of an epoch, then resumed at the same place: workers and their queues must be clean again.
    epoch = loader.epoch(1)
    assert flat([next(epoch)]) == reference[1][:1]
    assert flat(loader.epoch(1, start=1)) == reference[1][1:]


def test_resume_in_a_fresh_loader_mid_epoch(varied, reference):
    loader = make_loader(DetectionDataset(varied, transform=HEAVY, seed=7), batch_size=3, divisor=32, workers=1, seed=7)
    assert flat(loader.epoch(1, start=2)) == reference[1][2:]


def test_two_processes_see_the_batches_of_one(varied):
    dataset = DetectionDataset(varied, transform=HEAVY, seed=7)
    whole = make_loader(dataset, batch_size=4, divisor=32, workers=0, sampler=EpochSampler(12, seed=7))
    parts = [
        make_loader(
            dataset, batch_size=2, divisor=32, workers=0, sampler=EpochSampler(12, seed=7, rank=rank, world_size=2)
        )
        for rank in range(2)
    ]
    for together, *halves in zip(whole.epoch(1), *(part.epoch(1) for part in parts), strict=True):
        union = {i: t.boxes.tolist() for half in halves for i, t in zip(half.image_ids, half.targets, strict=True)}
        assert union == {i: t.boxes.tolist() for i, t in zip(together.image_ids, together.targets, strict=True)}


def first_number(sample, rng, another=None):
    """A transform that leaves its first random number as the one pixel."""
    return Sample(torch.tensor([[[rng.random()]]]), sample.targets, sample.image_id)


def test_every_draw_has_random_numbers_of_its_own(varied):
    """By seed, epoch, position and attempt; the image drawn there is no part of it, and the same draw gives the same."""
    numbers = {}
    for seed in (0, 1, 7):
        dataset = DetectionDataset(varied, transform=first_number, seed=seed)
        for epoch in range(3):
            for position in range(4):
                for attempt in range(2):
                    draw = Draw(epoch, position, index=5)
                    value = float(dataset.draw(draw, attempt).pixels)
                    assert value == float(dataset.draw(draw._replace(index=2), attempt).pixels)
                    numbers[seed, epoch, position, attempt] = value
    assert len(set(numbers.values())) == len(numbers) == 3 * 3 * 4 * 2
    assert float(DetectionDataset(varied, transform=first_number)[3].pixels) == numbers[0, 0, 3, 0]


def test_what_stands_in_for_a_broken_image_differs_from_draw_to_draw(varied):
    """By seed, epoch and position: or the same image would come twice wherever the broken one was meant."""
    break_image(varied, 4)

    def stand_in(seed, epoch, position):
        sample, errors = loading._Fetcher(DetectionDataset(varied, seed=seed))[Draw(epoch, position, 4)]
        assert len(errors) >= 1
        return sample.image_id

    for varying in range(3):
        # Twelve draws from eleven images: that five or fewer of them differ has a chance of one in five thousand.
        found = [stand_in(*np.eye(3, dtype=int)[varying] * number) for number in range(12)]
        assert len(set(found)) > 5, found
        assert found == [stand_in(*np.eye(3, dtype=int)[varying] * number) for number in range(12)]


def test_the_global_random_state_is_untouched(varied):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in make_loader(DetectionDataset(varied, transform=HEAVY), batch_size=3, divisor=32, workers=1).epoch(0):
        pass
    assert_close(torch.get_rng_state(), before)


def test_evaluation_sees_every_image_once_in_order(varied):
    loader = make_loader(
        DetectionDataset(varied), batch_size=5, divisor=32, workers=0, sampler=in_order(12), drop_last=False
    )
    assert len(loader) == 3
    assert [i for batch in loader.epoch(0) for i in batch.image_ids] == list(range(12))


def test_too_few_images_for_a_batch(varied):
    with pytest.raises(UserError, match=r"made\.json: 12 images do not fill one batch of 13"):
        make_loader(DetectionDataset(varied), batch_size=13, divisor=32, workers=0)
    with pytest.raises(UserError, match="batch_size"):
        make_loader(DetectionDataset(varied), batch_size=0, divisor=32, workers=0)


# --- broken images -------------------------------------------------------------------------------------------------


def break_image(annotations, index):
    path = annotations.path(index)
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_training_with_its_name(varied, workers):
    break_image(varied, 4)
    loader = make_loader(DetectionDataset(varied, transform=HEAVY), batch_size=3, divisor=32, workers=workers)
    with pytest.raises(UserError, match=r"4\.png: the image is broken") as caught:
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_of_broken_images_may_be_left_out(varied, workers, caplog):
    break_image(varied, 4)
    (varied.path(7)).unlink()
    dataset = DetectionDataset(varied, cache="ram")
    loader = make_loader(dataset, batch_size=3, divisor=32, workers=workers, max_broken_share=2 / 12)
    batches = [batch for epoch in range(2) for batch in loader.epoch(epoch)]
    assert len(batches) == 8
    assert all(len(batch.image_ids) == 3 for batch in batches)
    assert not {4, 7} & {i for batch in batches for i in batch.image_ids}
    assert sorted(loader.broken) == [str(varied.path(4)), str(varied.path(7))]
    assert caplog.text.count("left out") == 2


def test_more_than_the_allowed_share(varied):
    for index in (1, 2, 3):
        break_image(varied, index)
    loader = make_loader(
        DetectionDataset(varied), batch_size=3, divisor=32, workers=0, max_broken_share=0.17
    )  # 2.04 images
    with pytest.raises(UserError, match=r"3 of 12 images cannot be used, more than the allowed share of 0\.17"):
        list(loader.epoch(0))


def test_a_broken_image_counts_once_though_many_mosaics_met_it(varied):
    break_image(varied, 4)
    dataset = DetectionDataset(varied, transform=Mosaic((48, 64), 1.0))
    loader = make_loader(dataset, batch_size=3, divisor=32, workers=0, max_broken_share=1 / 12)
    assert sum(len(list(loader.epoch(epoch))) for epoch in range(4)) == 16
    assert list(loader.broken) == [str(varied.path(4))]


@pytest.mark.parametrize("workers", [0, 1])
def test_mixed_depths_in_a_set_are_one_line_from_any_worker(tmp_path, workers):
    annotations = write_set(tmp_path, [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)])
    loader = make_loader(DetectionDataset(annotations), batch_size=2, divisor=32, workers=workers)
    with pytest.raises(UserError, match="images of different kinds in one batch") as caught:
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)


def test_nothing_but_broken_images(varied):
    for index in range(12):
        break_image(varied, index)
    loader = make_loader(DetectionDataset(varied), batch_size=3, divisor=32, workers=1, max_broken_share=1.0)
    with pytest.raises(UserError, match="the image is broken") as caught:
        list(loader.epoch(0))
    assert "\n" not in str(caught.value)


# --- real images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hituav/val_blk.json", "facemask/val.json", "aerialcars/val.json", "coco453_100/val2017.json"]
)
def test_real_sets_go_through(shared, name):
    file = shared / "data" / name
    if not file.is_file():
        pytest.skip(f"{name} is absent")
    table = read_annotations(file)
    table = table.select_images(np.linspace(0, len(table) - 1, 6).astype(int))
    dataset = DetectionDataset(table, channels=3, transform=HEAVY)
    batches = list(make_loader(dataset, batch_size=3, divisor=32, workers=0).epoch(0))
    assert len(batches) == 2
    assert all(images.pixels.float().std() > 5 for images, _, _ in batches)
    assert sum(len(dataset.raw(index).targets.boxes) for index in range(6)) > 0


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (2, 1, 1), (2, 2, 0), (16, 1, 8), (16, 4, 3)])
def test_default_workers(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(loading, "processors", lambda: cores)
    assert default_workers(processes) == workers


def test_data_set_survives_pickling(varied):
    """Workers that are spawned rather than forked (macOS, Windows, Python 3.14) receive the data set this way."""
    dataset = DetectionDataset(varied, cache="ram", transform=HEAVY)
    copy = pickle.loads(pickle.dumps(dataset))
    assert_close(copy[Draw(1, 2, 3)].pixels, dataset[Draw(1, 2, 3)].pixels)
