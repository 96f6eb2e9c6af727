"""`data split`: groups stay together, shares and classes are met as far as groups allow, and nothing leaks."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.checks.grouping import MOST_CLASSES, assign, features
from flyspeck.data.checks.split import Split, SplitPart, split
from flyspeck.data.inspection import inspect
from flyspeck.data.readers import read_annotations
from flyspeck.data.writers import write_coco, write_yolo
from flyspeck.errors import UserError


def texture(seed: int) -> np.ndarray:
    """An image with structure of its own, quickly made."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC))


def made(folder: Path, images: dict[str, np.ndarray], classes: int = 2) -> Path:
    """A COCO file of the images, each with a few boxes of classes in turn."""
    (folder / "images").mkdir(parents=True)
    listed, entries = [], []
    for n, (name, pixels) in enumerate(images.items(), 1):
        Image.fromarray(pixels).save(folder / "images" / name)
        listed.append({"id": n, "file_name": f"images/{name}", "width": 128, "height": 96})
        for k in range(n % 3):
            box = [10 * k + 5, 7, 4 + 6 * (n % 4), 5]
            entries.append({"id": len(entries) + 1, "image_id": n, "category_id": 1 + (n + k) % classes, "bbox": box})
            entries[-1]["note"] = f"kept {n}"
    content = {
        "images": listed,
        "annotations": entries,
        "categories": [{"id": k + 1, "name": f"c{k}"} for k in range(classes)],
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return folder / "gt.json"


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six flights of a slowly moving camera, 24 single images, a copy and a darker one."""
    images = {}
    for flight in range(6):
        for frame in range(10):
            images[f"flight{flight}_{frame * 5:04d}.png"] = np.roll(texture(flight), frame, 1)
    images |= {f"single{chr(97 + n)}.png": texture(100 + n) for n in range(24)}
    images["copy.png"] = texture(100)
    images["dark.png"] = (texture(101) * 0.6).astype(np.uint8)
    return made(tmp_path_factory.mktemp("flights") / "set", images)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "groups.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_groups_stay_together_and_nothing_leaks(flights: Path, tmp_path: Path) -> None:
    done = split(flights, out=tmp_path / "out", shares={"train": 0.6, "val": 0.2, "test": 0.2})
    assert (done.groups, done.largest, done.left_out) == (30, 10, 0)
    assert [part.images for part in done.parts] == pytest.approx([51.6, 17.2, 17.2], abs=2)
    where = {row["image"]: (row["group"], row["split"], row["tied to others by"]) for row in rows(tmp_path / "out")}
    for flight in range(6):
        assert len({where[name][:2] for name in where if name.startswith(f"flight{flight}")}) == 1
    assert where["copy.png"] == where["singlea.png"]
    assert where["copy.png"][2] == "same content, nearly the same"
    assert where["dark.png"] == where["singleb.png"]
    assert where["dark.png"][2] == "nearly the same"
    assert "neighbouring frames" in where["flight0_0005.png"][2]
    found = inspect(tmp_path / "out")
    assert [part.name for part in found.parts] == ["test.json", "train.json", "val.json"]
    assert found.duplicates.leaks == ()
    assert len(found.annotations) == 86
    content = json.loads((tmp_path / "out" / "val.json").read_text())
    assert all(entry["note"] == f"kept {entry['image_id']}" for entry in content["annotations"])
    assert found.annotations.path(0).is_file()


def test_a_random_split_of_the_same_set_leaks(flights: Path, tmp_path: Path) -> None:
    table = read_annotations(flights)
    val = np.arange(len(table)) % 5 == 0
    write_coco(table.select_images(~val), tmp_path / "train.json")
    write_coco(table.select_images(val), tmp_path / "val.json")
    (leak,) = inspect(tmp_path / "train.json", also=[tmp_path / "val.json"]).duplicates.leaks
    assert leak.near >= 11
    # The parts of a leaky split make one that does not leak.
    split(tmp_path / "train.json", also=[tmp_path / "val.json"], out=tmp_path / "out")
    assert inspect(tmp_path / "out").duplicates.leaks == ()


def test_a_seed_gives_the_same_and_another_something_else(flights: Path, tmp_path: Path) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split(flights, out=tmp_path / name, seed=seed, compare_images=False)
        found.append([row["split"] for row in rows(tmp_path / name)])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_one_long_series_is_cut_where_that_is_asked(tmp_path: Path) -> None:
    # A camera that moves on: frames 20 apart show another place.
    wide = np.concatenate([texture(n) for n in range(8)], 1)
    images = {f"a{7 * frame:05d}.png": wide[:, 9 * frame : 9 * frame + 128] for frame in range(90)}
    source = made(tmp_path / "set", images)
    with pytest.raises(UserError, match="1 group of images for 2 splits; give --cut"):
        split(source, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    done = split(source, out=tmp_path / "out", cut=True)
    assert 0 < done.left_out < 45
    assert sum(part.images for part in done.parts) + done.left_out == 90
    assert all(part.images >= 5 for part in done.parts)
    assert sum(row["split"] == "left out" for row in rows(tmp_path / "out")) == done.left_out
    assert inspect(tmp_path / "out", frames="yes").duplicates.leaks == ()


def test_a_yolo_set_is_split_as_yolo(flights: Path, tmp_path: Path) -> None:
    write_yolo(read_annotations(flights), tmp_path / "yolo")
    split(tmp_path / "yolo", out=tmp_path / "out", link=True)
    found = inspect(tmp_path / "out")
    assert [part.name for part in found.parts] == ["train", "val"]
    assert found.duplicates.leaks == ()
    assert len(found.annotations) == 86


def test_images_that_nothing_is_known_of_are_counted(tmp_path: Path) -> None:
    images = {f"{word}.png": texture(n) for n, word in enumerate("abcdefgh")}
    source = made(tmp_path / "set", {**images, "plain.png": np.zeros((96, 128, 3), np.uint8)})
    (tmp_path / "set" / "images" / "a.png").write_bytes(b"broken")
    said = split(source, out=tmp_path / "out").text()
    assert "1 image could not be read" in said
    assert "1 image is too plain" in said
    assert "images were not compared" in split(source, out=tmp_path / "names", compare_images=False).text()


def test_the_command_line(flights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["data", "split", str(flights), "--no-compare-images", "--out", str(out)]
    assert main([*words, "--shares", "fit=0.5,keep=0.5"]) == 0
    text = capsys.readouterr().out
    assert "groups of images, the largest of 10" in text
    assert (out / "fit.json").is_file()
    assert (out / "summary.txt").read_text() == text
    for shares, said in (
        ("train=0.8", "shares of train=0.8"),
        ("train=0.8,val=0.3", "add up to 1"),
        ("train=0.8,val", "'val' is no share"),
        ("train=0.5,train=0.5", "'train=0.5' is no share"),
        ("a/b=0.5,c=0.5", "no name of a split"),
    ):
        assert main(["data", "split", str(flights), "--out", str(tmp_path / "x"), "--shares", shares]) == 2
        out_text, err = capsys.readouterr()
        assert (out_text, err.count("\n")) == ("", 1)
        assert said in err
    assert main([*words]) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@settings(max_examples=30)
@given(st.integers(2, 7), st.integers(0, 9))
def test_small_sets_are_dealt_out_nearly_as_well_as_can_be(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sums, weights = rng.integers(0, 9, (count, 3)).astype(float), np.array([4.0, 1, 1])
    sums[0] += 1
    aims = np.array([0.7, 0.3])
    parts = sums / np.maximum(sums.sum(0), 1)

    def cost(place: tuple[int, ...]) -> float:
        off = np.stack([parts[np.array(place) == k].sum(0) - aims[k] for k in range(2)])
        return float(((weights * off**2).sum(1) / aims).sum())

    best = min(cost(place) for place in product(range(2), repeat=count))
    assert cost(tuple(assign(sums, weights, aims.tolist(), 0))) <= best + 0.35


def test_balance_of_many_groups() -> None:
    rng = np.random.default_rng(0)
    sums = rng.poisson(3, (300, 6)).astype(float)
    sums[:40, 0] += 20
    chosen = assign(sums, np.array([4.0, 1, 1, 1, 1, 1]), (0.7, 0.15, 0.15), seed=0)
    got = np.stack([sums[chosen == k].sum(0) for k in range(3)]) / sums.sum(0)
    assert np.abs(got - np.array([[0.7], [0.15], [0.15]])).max() < 0.005


def test_what_is_balanced(flights: Path) -> None:
    table = read_annotations(flights)
    group = np.arange(len(table)) % 7
    sums, weights = features(table, group)
    assert_array_equal(sums[:, 0], np.bincount(group))
    assert sums[:, 3:9].sum() == sums[:, 9:].sum() == table.num_boxes
    assert_array_equal(sums[:, 1], np.bincount(group[np.bincount(table.image_index, minlength=86) == 0], minlength=7))
    assert (weights >= 0).all()
    assert weights[2] == 0  # there is no ignore region


def test_of_very_many_classes_the_rare_ones_are_balanced_together(flights: Path) -> None:
    table = read_annotations(flights)
    rng = np.random.default_rng(1)
    labels = np.where(rng.random(table.num_boxes) < 0.5, rng.integers(0, 20, table.num_boxes) * 400, 9_999)
    many = replace(
        table,
        labels=labels,
        classes=tuple(f"c{k}" for k in range(10_000)),
        category_ids=tuple(range(10_000)),
    )
    sums, weights = features(many, np.arange(len(table)) % 7)
    assert sums.shape == (7, 9 + MOST_CLASSES + 1)
    assert len(weights) == sums.shape[1]
    assert sums[:, 9:].sum() == table.num_boxes
    assert sums[:, 9:].max() == np.bincount(np.arange(len(table))[many.image_index] % 7, labels == 9_999).max()


def test_of_many_classes_the_most_uneven_are_shown_and_how_many_there_are():
    names = [f"c{number:02d}" for number in range(30)]
    even, odd = dict.fromkeys(names, 8) | {"c07": 10}, dict.fromkeys(names, 2) | {"c07": 0}
    parts = (
        SplitPart("train", 0.8, 80, 0.8, sum(even.values()), even, 5),
        SplitPart("val", 0.2, 20, 0.2, sum(odd.values()), odd, 2),
    )
    done = Split(parts, groups=7, largest=20, left_out=0, notes=())
    assert all(f"  {name} (10): " in done.text() for name in names)
    short = done.text(most=3).splitlines()
    assert "the 3 most uneven of 30 classes" in short[4]
    assert len(short) == 8
    assert "  c07 (10): train 100.0%, val 0.0%" in short
    assert done.text(most=30) == done.text()
