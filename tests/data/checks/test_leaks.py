"""What two splits have in common: planted leaks of every kind are found, and nothing else; HIT-UAV's published split."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.checks.parts import read_parts
from flyspeck.data.inspection import inspect
from flyspeck.data.scenes import generate_scene
from flyspeck.errors import UserError


@lru_cache
def scene(seed: int) -> np.ndarray:
    return generate_scene(seed, height=96, width=128, kind="field").pixels


def coco(path: Path, names: list[str], boxes: dict[str, list[list[float]]] | None = None, **more: Any) -> Path:
    images = [{"id": n, "file_name": name, "width": 128, "height": 96} for n, name in enumerate(names, 1)]
    entries = [
        {"id": 100 * n + k, "image_id": n, "category_id": 1, "bbox": box, "segmentation": [[0, 0, 1, 0, 1, 1]]}
        for n, name in enumerate(names, 1)
        for k, box in enumerate((boxes or {}).get(name, [[10, 10, 6, 6]]))
    ]
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "p"}], **more}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Train and val with one leak of each kind: listed in both, copied, changed, a neighbouring frame, a Roboflow copy."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = {f"t{word}.png": scene(n) for n, word in enumerate("abcdefgh")}
    images |= {f"v{word}.png": scene(20 + n) for n, word in enumerate("abcdefgh")}
    images["vcopy.png"] = images["ta.png"]
    images["vdark.png"] = (images["tb.png"] * 0.6).astype(np.uint8)
    images["flight_0007.png"], images["flight_0012.png"] = scene(40), scene(41)
    images["roof_jpg.rf.0123456789abcdef01.png"], images["roof_jpg.rf.abcdef0123456789ab.png"] = scene(42), scene(43)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / name)
    (folder / "vcopy.png").write_bytes((folder / "ta.png").read_bytes())
    train = [name for name in images if name.startswith("t")] + [
        "flight_0007.png",
        "roof_jpg.rf.0123456789abcdef01.png",
    ]
    val = [name for name in images if name not in train] + ["tc.png"]
    coco(tmp_path / "train.json", [f"images/{name}" for name in train])
    coco(tmp_path / "val.json", [f"images/{name}" for name in val])
    return tmp_path


def test_every_kind_of_leak_is_found_once(leaking: Path) -> None:
    found = inspect(leaking)
    (leak,) = found.duplicates.leaks
    assert (leak.tested, leak.trained, leak.images) == ("val.json", "train.json", 13)
    assert (leak.same_file, leak.same_content, leak.same_source, leak.neighbours) == (1, 1, 1, 1)
    assert leak.near == 2  # the darker image, and the copy
    assert leak.leaking == 5
    kinds = {(image, other): kind for image, other, kind in leak.first}
    assert kinds == {
        ("vcopy.png", "ta.png"): "same_content",
        ("vdark.png", "tb.png"): "near",
        ("tc.png", "tc.png"): "same_file",
        ("flight_0012.png", "flight_0007.png"): "neighbours",
        ("roof_jpg.rf.abcdef0123456789ab.png", "roof_jpg.rf.0123456789abcdef01.png"): "same_source",
    }
    assert found.duplicates.same == (("ta.png", "vcopy.png"),)
    assert any("5 of 13 images of val.json (38%) leak from train.json" in line for line in found.facts["warnings"])
    json.dumps(found.facts, allow_nan=False)


def test_names_alone_without_pixels(leaking: Path) -> None:
    found = inspect(leaking, compare_images=False).duplicates
    (leak,) = found.leaks
    assert not found.compared
    assert (leak.same_file, leak.same_content, leak.near, leak.neighbours, leak.leaking) == (1, 0, 0, 1, 3)
    (leak,) = inspect(leaking, compare_images=False, frames="no").duplicates.leaks
    assert leak.neighbours == 0


def test_another_part_is_given_by_name(leaking: Path) -> None:
    one = inspect(leaking / "train.json", also=[leaking / "val.json"])
    assert one.duplicates == inspect(leaking).duplicates
    with pytest.raises(UserError, match="given twice"):
        inspect(leaking / "train.json", also=[leaking / "train.json"])
    with pytest.raises(UserError, match="no such file"):
        inspect(leaking / "train.json", also=[leaking / "tset.json"])


def test_the_command_line_says_it(leaking: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(leaking), "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "of 13 images of val.json, 5 have a partner in train.json" in text
    assert "vdark.png ~ tb.png (nearly the same)" in text
    assert main(["data", "inspect", str(leaking), "--also", str(leaking / "gone.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_splits_of_a_yaml_are_parts(leaking: Path, tmp_path: Path) -> None:
    for split, part in (("train", "train"), ("valid", "val")):
        (tmp_path / "yolo" / split / "images").mkdir(parents=True)
        (tmp_path / "yolo" / split / "labels").mkdir()
        for image in json.loads((leaking / f"{part}.json").read_text())["images"]:
            name = Path(image["file_name"]).name
            (tmp_path / "yolo" / split / "images" / name).write_bytes((leaking / "images" / name).read_bytes())
            (tmp_path / "yolo" / split / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.1 0.1\n")
    recipe = tmp_path / "yolo" / "data.yaml"
    recipe.write_text("train: train/images\nval: valid/images\ntest: test/images\nnames: [p]\n")
    for source in (recipe, recipe.parent):
        found = inspect(source)
        assert [part.name for part in found.parts] == ["train", "val"]
        (leak,) = found.duplicates.leaks
        # The image that both listed is a copy in two folders now.
        assert (leak.same_file, leak.same_content, leak.same_source, leak.neighbours, leak.leaking) == (0, 2, 2, 1, 5)
        assert any("'test' is left out" in note for note in found.parts[0].table.notes)
    assert len(read_parts(Path(f"{recipe}:val"))) == 1
    recipe.write_text("train: gone\nval: gone/too\nnames: [p]\n")
    with pytest.raises(UserError, match="does not exist"):
        inspect(recipe)


def test_tiles_that_name_their_whole_image_are_not_listed_twice(leaking: Path) -> None:
    content = json.loads((leaking / "train.json").read_text())
    first = content["images"][0]
    content["images"] = [{**first, "id": n, "corner": [64 * n, 0, 64 * n + 64, 96]} for n in (1, 2)]
    (leaking / "tiles.json").write_text(json.dumps(content))
    assert inspect(leaking / "tiles.json", check_files=False).duplicates.listed_twice == ()
    content["images"] = [{**first, "id": n} for n in (1, 2)]
    (leaking / "twice.json").write_text(json.dumps(content))
    assert inspect(leaking / "twice.json").duplicates.listed_twice == ("twice.json: ta.png",)


def test_a_set_without_images(tmp_path: Path) -> None:
    coco(tmp_path / "none.json", [])
    assert inspect(tmp_path / "none.json").duplicates.leaks == ()


def test_an_image_is_not_its_own_partner(leaking: Path) -> None:
    parts = read_parts(leaking / "train.json")
    again = replace(parts[0], name="again")
    from flyspeck.data.checks.leaks import find_duplicates, find_links

    links = find_links([parts[0], again])
    (leak,) = find_duplicates([parts[0], again], links).leaks
    assert (leak.same_file, leak.same_content, leak.near, leak.leaking) == (10, 0, 0, 10)


def test_two_files_of_the_same_images_are_no_split(leaking: Path) -> None:
    content = json.loads((leaking / "val.json").read_text())
    for entry in content["annotations"]:
        entry["bbox"][0] += 1
        entry["bbox"][1] += 1
    (leaking / "again.json").write_text(json.dumps(content))
    found = inspect(leaking / "val.json", also=[leaking / "again.json"], compare_images=False)
    assert found.shifts[0].step == (1, 1, 1, 1)
    said = "\n".join(found.facts["warnings"])
    assert "every image of val.json is listed in again.json too" in said
    assert "100% of 13 boxes of the same images differ by +1, +1, +1, +1 px" in said


def numbered(folder: Path, part: str, seeds: range) -> Path:
    """Images 000.png, 001.png, ... below `part`, and their annotations."""
    (folder / part / "images").mkdir(parents=True)
    names = [f"images/{n:03d}.png" for n in range(len(seeds))]
    for name, seed in zip(names, seeds, strict=True):
        Image.fromarray(scene(seed)).save(folder / part / name)
    return coco(folder / part / "annotations.json", names)


def test_splits_that_are_numbered_alike_are_told_apart_by_their_pixels(tmp_path: Path) -> None:
    train, val = numbered(tmp_path, "train", range(4)), numbered(tmp_path, "val", range(20, 24))
    assert inspect(train, also=[val]).duplicates.leaks == ()
    (leak,) = inspect(train, also=[val], compare_images=False, frames="no").duplicates.leaks  # the names alone
    assert (leak.tested, leak.trained) == ("val/annotations.json", "train/annotations.json")
    assert (leak.same_source, leak.leaking) == (4, 4)
    Image.fromarray(scene(1)[::-1]).save(tmp_path / "val" / "images" / "003.png")
    Image.fromarray((scene(2) * 0.8).astype(np.uint8)).save(tmp_path / "val" / "images" / "002.png")
    (leak,) = inspect(train, also=[val], frames="no").duplicates.leaks  # one is a copy, and only that one
    assert (leak.near, leak.same_source, leak.leaking) == (1, 1, 1)


def test_tiles_of_one_image_in_two_splits_stay_one(tmp_path: Path) -> None:
    for part, seeds, place in (("train", range(4), 0), ("val", range(20, 24), 64)):
        (tmp_path / part).mkdir()
        for n, seed in enumerate(seeds):
            Image.fromarray(scene(seed)).save(tmp_path / part / f"{n:03d}_{place}_0_{place + 64}_64.png")
        coco(tmp_path / f"{part}.json", [f"{part}/{n:03d}_{place}_0_{place + 64}_64.png" for n in range(4)])
    (leak,) = inspect(tmp_path / "train.json", also=[tmp_path / "val.json"], frames="no").duplicates.leaks
    assert (leak.same_source, leak.leaking) == (4, 4)


def test_a_recipe_in_the_folder_hides_no_part(leaking: Path) -> None:
    before = [part.name for part in read_parts(leaking)]
    (leaking / "recipe.yaml").write_text("name: mine\n")
    assert [part.name for part in read_parts(leaking)] == before == ["train.json", "val.json"]


def test_a_file_for_each_image_is_one_part(leaking: Path, tmp_path: Path) -> None:
    assert (
        main(["data", "convert", str(leaking / "train.json"), "--to", "labelme", "--out", str(tmp_path / "each")]) == 0
    )
    (part,) = read_parts(tmp_path / "each", images=leaking / "images")
    assert (part.format, len(part.table)) == ("labelme", 10)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alike", "2"], "--alike"),
        (["--frames", "maybe"], "auto"),
        (["--frame-gap", "-1"], "--frame-gap"),
        (["--also", "gone.json"], "no such file"),
        (["--fix", "images"], "is there already"),
        (["--fix", "val.json/in/a/file"], "cannot be made"),
    ],
)
def test_a_mistake_is_one_line(
    leaking: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(leaking)
    assert main(["data", "inspect", "val.json", "--no-compare-images", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert said in err


@pytest.mark.slow
def test_published_and_blocked_split_of_hituav(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """573 of 579 test images have a training frame of their flight within 20 frames, as the set's description says."""
    folder = shared / "data" / "hituav"
    start = time.perf_counter(), time.process_time()
    published = inspect(folder / "train.json", also=[folder / "test.json"]).duplicates
    with capsys.disabled():
        wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        print(f"\n{published.images} images: {wall:.1f} s, {cpu:.1f} s of processor time")
    (leak,) = published.leaks
    assert published.frames.verdict == "frames"
    assert (leak.images, leak.neighbours) == (579, 573)
    assert leak.near >= 200
    blocked = inspect(folder / "train_blk.json", also=[folder / "val_blk.json"]).duplicates
    assert all(leak.near == 0 for leak in blocked.leaks)


def test_images_that_coco453_lists_in_both_splits(shared: Path) -> None:
    (leak,) = inspect(
        shared / "data" / "coco453_100", check_files=False, compare_images=False, frames="no"
    ).duplicates.leaks
    assert (leak.tested, leak.trained, leak.leaking, leak.same_file) == ("val2017.json", "train2017.json", 32, 32)
