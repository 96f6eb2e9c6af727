"""What a GPU is asked within some minutes, tried on the processor: packed, planned, killed, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
from flyspeck_lab import gpu, gpu_data
from flyspeck_lab.cli.main import main
from flyspeck_lab.gpu_jobs import trainings
from small_training import write_set


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of sets of a few images."""
    root = tmp_path_factory.mktemp("sets")
    for name, parts in (("hituav", ("train_blk", "val_blk")), ("nuclei", ("train", "val")), ("dronesky", ("train",))):
        for seed, part in enumerate(parts):
            write_set(root / name, part, 7, seed)
            content = json.loads((root / name / f"{part}.json").read_text())
            (root / name / "images").mkdir(exist_ok=True)
            for image in content["images"]:
                (root / name / image["file_name"]).rename(root / name / "images" / image["file_name"])
                image["file_name"] = f"images/{image['file_name']}"
            if name == "hituav":
                names = ("Person", "Car", "Bicycle")
                content["categories"] = [{"id": i + 1, "name": known} for i, known in enumerate(names)]
                for i, box in enumerate(content["annotations"]):
                    box["category_id"] = 1 + i % 3
            (root / name / f"{part}.json").write_text(json.dumps(content))
    assert main(["pack", "--data", str(root), "--out", str(root / "packed"), "--megabytes", "1", "--scenes", "6"]) == 0
    return root / "packed"


def test_a_pack_holds_all_that_is_needed(packed: Path) -> None:
    told = json.loads((packed / "pack.json").read_text())
    assert told["images"]["hituav_half"] == told["images"]["nuclei"] == 7
    assert told["images"]["base"] == 6 + 7 + 14  # scenes, dronesky, and those of the hosts
    assert told["bytes"] <= 1e6
    assert set(told["sets"]) == {"hituav", "nuclei", "dronesky"}
    whole = read_annotations(packed / "hituav_half" / "train_blk.json")
    assert whole.sizes.tolist() == [[24, 32]] * 7
    assert whole.classes == ("Person", "Car", "Bicycle")
    base = read_annotations(packed / "base" / "train.json")
    assert base.classes == ("object",)
    for row in range(len(base)):
        with Image.open(base.path(row)) as image:
            assert image.size[::-1] == tuple(base.sizes[row])


def test_images_of_the_base_give_way_to_the_size(packed: Path, tmp_path: Path) -> None:
    root = packed.parent
    with pytest.raises(UserError, match="hosts alone"):
        gpu_data.pack(root, tmp_path / "none", megabytes=0.001, scenes=6, seed=0)
    whole = json.loads((packed / "pack.json").read_text())["bytes"]
    told = gpu_data.pack(root, tmp_path / "few", megabytes=whole / 1e6, scenes=6, seed=0)
    assert told["bytes"] <= whole
    assert 6 + 14 < told["images"]["base"] < 6 + 7 + 14  # scenes and hosts are all there


def test_what_is_unpacked_is_what_was_packed(packed: Path, tmp_path: Path) -> None:
    out = gpu_data.unpack(packed, tmp_path / "data")
    for name in ("base/train.json", "nuclei/val.json"):
        before, after = read_annotations(packed / name), read_annotations(out / name)
        assert (after.boxes == before.boxes).all()
        for row in range(len(before)):
            with Image.open(before.path(row)) as one, Image.open(after.path(row)) as other:
                assert one.tobytes() == other.tobytes()
                assert other.format == "PNG"
    with pytest.raises(UserError, match="no pack"):
        gpu_data.unpack(tmp_path, tmp_path / "more")


def test_the_plan_says_what_fits(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_rate", lambda device: 1e13)
    rows = gpu.Rows(tmp_path, None)
    asked = gpu.Asked(packed, tmp_path, tmp_path, minutes=8, device="cpu")
    todo = [one for one in trainings(packed) if one.name in ("base", "hituav_half-resnet50")]
    found = {one.name: one for one in gpu.plan(asked, rows, todo)}
    assert [*found][:3] == ["tests", "runtimes", "base"]
    assert sum(one.minutes for one in found.values() if one.fits) <= 8
    assert len(trainings(packed)) == 1 + 2 * 3
    assert found["base"].fits
    assert found["base"].minutes == 4
    slow = found["hituav_half-resnet50"]
    # A network of more multiply-adds is slower, and what was measured counts.
    assert 0 < slow.images_per_second < found["base"].images_per_second
    rows.tell(slow.name, status="begun", images_per_second=2 * slow.images_per_second)
    rows.tell("tests", status="done")
    again = {one.name: one for one in gpu.plan(asked, rows, todo)}
    assert again[slow.name].minutes == pytest.approx(slow.minutes / 2)
    assert again["tests"].done
    assert "done" in gpu.lines([again["tests"]], 8)[1]


SCRIPT = """
import sys
from flyspeck_lab import gpu
from flyspeck_lab.cli.main import main
gpu.EVERY = 0.05
sys.exit(main(sys.argv[1:]))
"""


def words(packed: Path, folder: Path, steps: int, rows: str) -> list[str]:
    places = ["--data", str(packed), "--out", str(folder / "out"), "--runs", str(folder / "runs")]
    return ["gpu", "--minutes", "5", "--steps", str(steps), "--device", "cpu", "--rows", rows, *places]


@pytest.mark.slow
def test_a_killed_call_goes_on_elsewhere(packed: Path, tmp_path: Path) -> None:
    """Killed in the base weights; another machine has but the folder that was taken away."""
    command = [sys.executable, "-c", SCRIPT, *words(packed, tmp_path, 40, "base")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    state, rows = tmp_path / "out" / "base.state.pt", tmp_path / "out" / "rows.json"
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    process.kill()
    process.communicate()
    before = json.loads(rows.read_text())["rows"]["base"]
    assert before["status"] == "begun"
    (tmp_path / "runs").rename(tmp_path / "lost")
    late = words(packed, tmp_path, 40, "base")
    late[2] = "0.02"
    assert (
        main(late) == 0
    )  # too little time for a whole one, but what has begun goes on, and is saved where the time ends it
    assert json.loads(rows.read_text())["rows"]["base"]["status"] == "begun"
    assert main(words(packed, tmp_path, 40, "base")) == 0
    after = json.loads(rows.read_text())["rows"]["base"]
    assert after["status"] == "done"
    assert after["went_on_from"] > 0
    assert after["steps"] == 39  # three epochs
    assert "ap50_all" in after["metrics"]


@pytest.mark.slow
def test_all_parts_run_on_the_processor(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(packed, tmp_path, 2, "tests,runtimes,base,nuclei-bh_resnet50")) == 0
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    assert {row["status"] for row in rows.values()} == {"done"}, rows
    assert rows["tests"]["exit_code"] == 0
    assert rows["tests"]["counts"]["passed"] > 30
    assert len(rows["runtimes"]["milliseconds"]) == 8
    assert "ap50_all" in rows["nuclei-bh_resnet50"]["metrics"]
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(files) <= 8
    assert max(path.stat().st_size for path in files) <= gpu.LARGEST
    capsys.readouterr()
    assert main(words(packed, tmp_path, 2, "tests,base")) == 0  # done: nothing is done again
    assert main([*words(packed, tmp_path, 2, "bases")]) == 2
    assert "base" in capsys.readouterr().err
