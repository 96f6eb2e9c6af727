from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flyspeck.cli.main import main
from flyspeck.data.images import read_image
from flyspeck.errors import UserError
from flyspeck.infer.job import predict as job
from flyspeck.infer.job_images import match_categories
from flyspeck.infer.predictor import Predictor
from flyspeck.infer.source import Categories
from flyspeck.infer.tiles import default_tiles
from flyspeck.infer.torch_model import TorchModel
from flyspeck.train.build import build_detector, describe_model, load_detector
from flyspeck.train.checkpoint import save_weights
from flyspeck.train.config import ModelConfig


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose weights are random but fixed; its scores lie near the prior of 0.01."""
    torch.manual_seed(0)
    config = ModelConfig(name="retinanet:mobilenet_v2", width=0.25, channels=8, min_score=0.0, max_detections=30)
    statistics = {"classes": ("car", "boat"), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    detector = build_detector(config, **statistics)
    folder = tmp_path_factory.mktemp("run")
    description = {**describe_model(config, **statistics), "training_size": [64, 96]}
    save_weights(folder / "best.safetensors", detector.state_dict(), description)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (100, 150, 3)), ("sub/b.png", (40, 50))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / name)
    return folder


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def test_a_folder_of_images(run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    formats = "coco,csv,geojson,gpkg,yolo"
    asked = ("--score", 0, "--to", formats)
    assert predict("--model", run_folder, images, "--out", out, *asked) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 images, tiles of 64x96, overlap 32")
    assert said[1] == "trained at 64x96"
    assert said[2].startswith("note: with this overlap large images are run 3.0 times over")
    assert said[3].startswith("a.png: 100x150, 6 tiles, ")
    assert said[4].startswith("sub/b.png: 40x50, ")
    results = json.loads((out / "detections.json").read_text())
    table = json.loads((out / "images.json").read_text())
    assert {i["file_name"]: i["id"] for i in table["images"]} == {"a.png": 1, "sub/b.png": 2}
    assert [c["name"] for c in table["categories"]] == ["car", "boat"]
    for name in (
        "drawn/a.png",
        "drawn/sub/b.png",
        "labels/sub/b.txt",
        "geojson/a.geojson",
        "detections.csv",
        "detections.gpkg",
    ):
        assert (out / name).is_file()
    # The same through the library.
    model = TorchModel(load_detector(run_folder))
    predictor = Predictor(model, tile=(64, 96), overlap=32, score_threshold=0)
    found = predictor.predict([images / "a.png", read_image(images / "sub" / "b.png")])
    assert found[0].classes == ("car", "boat")
    assert [r["bbox"] for r in results] == [r["bbox"] for d in found for r in d.to_coco()]


def test_a_coco_json_keeps_its_numbers(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"id": 41, "file_name": "sub/b.png"}]
    categories = [{"id": 3, "name": "car"}, {"id": 9, "name": "tree"}]
    (images / "t.json").write_text(json.dumps({"images": listed, "categories": categories, "annotations": []}))
    assert (
        predict("--model", run_folder, images / "t.json", "--out", tmp_path / "o", "--score", 0, "--tile", "off") == 0
    )
    assert "class 'boat' is not in the annotations; its category id is 10" in capsys.readouterr().err
    results = json.loads((tmp_path / "o" / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {41}
    assert {r["category_id"] for r in results} <= {3, 10}


def test_a_broken_image_ends_in_exit_code_2_and_the_rest_is_done(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:200])
    assert predict("--model", run_folder, images, "--out", tmp_path / "o", "--score", 0) == 2
    said = capsys.readouterr()
    assert "a.png" in said.err
    assert "1 of 2 images could not be read" in said.err
    assert "sub/b.png: 40x50" in said.out
    assert {r["image_id"] for r in json.loads((tmp_path / "o" / "detections.json").read_text())} == {2}


def test_resume_keeps_the_tiles(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", run_folder, images, "--out", tmp_path / "o", "--score", 0)
    assert predict(*arguments) == 0
    before = (tmp_path / "o" / "detections.json").read_bytes()
    assert predict(*arguments, "--resume") == 0
    assert "resumed: 7 tiles kept" in capsys.readouterr().out
    assert (tmp_path / "o" / "detections.json").read_bytes() == before
    assert predict(*arguments[:-1], 0.5, "--resume") == 2
    assert "begin anew with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "o" / "detections.json").read_bytes() == before  # refused before anything was overwritten
    assert predict(*arguments) == 2
    assert "--resume to go on from its finished tiles, --overwrite" in capsys.readouterr().err
    assert (tmp_path / "o" / "detections.json").read_bytes() == before
    (images / "a.png").unlink()
    assert predict(*arguments, "--overwrite") == 0
    assert not (tmp_path / "o" / "drawn" / "a.png").exists(), "of the job before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "2"], "--score"),
        (["--tile", "64"], "HxW"),
        (["--tile", "64x64", "--overlap", "64"], "overlap"),
        (["--tile", "off", "--overlap", "8"], "without tiles"),
        (["--merge", "nsm"], "'soft-nms'"),
        (["--to", "jsn"], "unknown output format"),
        (["--device", "gpu"], "unknown device"),
        (["--precision", "int4"], "--precision"),
        (["--value-range", "5"], "--value-range"),
        (["--batch-size", "0"], "--batch-size"),
        (["--skip", "--skip-audit", "2"], "skip: audit"),
    ],
)
def test_wrong_options_end_in_one_line(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list, message: str
) -> None:
    assert predict("--model", run_folder, images, "--out", tmp_path / "o", *options) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_the_same_job_from_python(run_folder: Path, images: Path, tmp_path: Path) -> None:
    settings = ("--score", 0, "--tile", "48x64", "--overlap", 8, "--flip", "--to", "coco,csv", "--draw", 1)
    assert predict("--model", run_folder, images, "--out", tmp_path / "cli", *settings) == 0
    said: list[str] = []
    summary = job(
        images,
        model=run_folder,
        out=tmp_path / "python",
        score_threshold=0,
        tile=(48, 64),
        overlap=8,
        flip=True,
        formats=("coco", "csv"),
        draw=1,
        say=said.append,
    )
    for name in ("detections.json", "images.json", "detections.csv", "drawn/a.png"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "python" / name).read_bytes(), name
    found = json.loads((tmp_path / "python" / "detections.json").read_text())
    assert (summary.out, summary.images, summary.boxes) == (tmp_path / "python", 2, len(found))
    assert summary.tiles == 9 + 1
    assert said[-1].startswith(f"{tmp_path / 'python'}: {len(found)} boxes in 2 images, 10 tiles")
    with pytest.raises(UserError, match="from 0 to 1"):
        job(images, model=run_folder, out=tmp_path / "never", score_threshold=2)
    assert not (tmp_path / "never").exists()


def test_missing_model_and_source(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--model", tmp_path / "none", run_folder, "--out", tmp_path / "o") == 2
    assert predict("--model", run_folder, tmp_path / "none.png", "--out", tmp_path / "o") == 2
    assert "none.png" in capsys.readouterr().err


def test_default_tiles_hold_the_objects() -> None:
    assert default_tiles(None, None, {"training_size": [256, 320], "object_side_99": 40}) == ((256, 320), 44)
    assert default_tiles(None, None, {"training_size": [256, 320]}) == ((256, 320), 68)
    assert default_tiles((64, 64), None, {}) == ((64, 64), 32)
    with pytest.raises(UserError, match="tile: the weights do not say"):
        default_tiles(None, None, {})


def test_categories_by_name() -> None:
    assert match_categories(("a", "b"), None) == (None, [])
    assert match_categories(("a", "b"), Categories(("b", "a"), (7, 2))) == ([2, 7], [])


def test_a_truncated_geotiff_is_finished_but_for_its_holes(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.random.default_rng(1).integers(0, 4000, (3, 256, 256)).astype(np.uint16)
    settings = {"driver": "GTiff", "width": 256, "height": 256, "count": 3, "dtype": "uint16", "tiled": True}
    settings |= {
        "blockxsize": 64,
        "blockysize": 64,
        "crs": "EPSG:32617",
        "transform": rasterio.Affine(1, 0, 5, 0, -1, 9),
    }
    path = images / "c.tif"
    with rasterio.open(path, "w", **settings) as file:
        file.write(pixels)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    asked = ("--model", run_folder, images, "--out", tmp_path / "o", "--score", 0, "--draw", 0)
    assert predict(*asked, "--tile", "64x64", "--overlap", 0, "--to", "coco,gpkg") == 2
    said = capsys.readouterr()
    assert "c.tif: no result for" in said.err
    assert "1 of 3 images could not be read, wholly or in part" in said.err
    assert "bands 1,2,3 of 3, uint16 0 to 4095 as black to white (12 bits by its values" in said.err
    assert {r["image_id"] for r in json.loads((tmp_path / "o" / "detections.json").read_text())} == {1, 2, 3}


def test_skipping_says_what_it_did(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The random detector is sure of nothing at any size, so every tile but the audited ones is passed over.
    asked = ("--model", run_folder, images, "--score", 0, "--tile", "48x48", "--overlap", 8)
    assert predict(*asked, "--out", tmp_path / "o", "--skip", "--skip-audit", 0) == 0
    said = capsys.readouterr().out
    assert "'flyspeck tune look RUN' trains a better first look" in said
    assert "skip: 14 of 14 tiles not run" in said
    assert "95 %: at most" in said


def test_the_cost_of_skipping_is_measured_on_annotated_images(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [{"id": 7, "file_name": "a.png", "width": 150, "height": 100}]
    categories = [{"id": 1, "name": "car"}]
    model = TorchModel(load_detector(run_folder))
    found = Predictor(model, tile=(64, 96), overlap=32, score_threshold=0).predict([images / "a.png"])[0]
    boxes = [[float(x1), float(y1), float(x2 - x1), float(y2 - y1)] for x1, y1, x2, y2 in found.boxes[:4]]
    annotations = [
        {"id": k, "image_id": 7, "category_id": 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for k, b in enumerate(boxes, 1)
    ]
    table = {"images": listed, "categories": categories, "annotations": annotations}
    (images / "t.json").write_text(json.dumps(table))
    asked = ("--model", run_folder, images / "t.json", "--score", 0)
    assert predict(*asked, "--out", tmp_path / "o", "--skip-check") == 0
    said = capsys.readouterr().out
    # All four are the detector's own boxes; with the look blind to them, skipping would have lost every one.
    assert "recall of 4 annotated objects (IoU 0.5, score >= 0): 100.0 % with all tiles, 0.0 % with skipping" in said
    assert len(json.loads((tmp_path / "o" / "detections.json").read_text())) == len(found)


def test_heat_maps(run_folder: Path, images: Path, tmp_path: Path) -> None:
    asked = ("--model", run_folder, images / "a.png", "--score", 0, "--heat")
    assert predict(*asked, "--out", tmp_path / "o") == 0
    assert (tmp_path / "o" / "heat" / "a.png").is_file()


def test_a_video(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    pytest.importorskip("trackers")
    from fractions import Fraction

    from flyspeck.infer.video.reader import VideoInfo, VideoReader
    from flyspeck.infer.video.writer import VideoWriter

    writer = VideoWriter(tmp_path / "a.mp4", VideoInfo((64, 96), Fraction(5), 6))
    for k in range(6):
        writer.add(np.full((64, 96, 3), 20 * k, np.uint8))
    writer.close()
    asked = ("--model", run_folder, tmp_path / "a.mp4", "--out", tmp_path / "o", "--score", 0.005, "--keep-score", 0)
    assert predict(*asked, "--every", 2) == 0
    said = capsys.readouterr().out
    assert "a.mp4, tiles of 64x96" in said
    assert "frames/s from decoding to the annotated video" in said
    film = VideoReader(tmp_path / "o" / "a.tracked.mp4")
    assert film.info.size == (64, 96)
    assert len(list(film.frames())) == 3
    film.close()
    table = json.loads((tmp_path / "o" / "images.json").read_text())
    assert [i["file_name"] for i in table["images"]] == ["a.mp4#000001", "a.mp4#000002", "a.mp4#000003"]
    assert (tmp_path / "o" / "tracks.csv").read_text().startswith("frame,seconds,track")
    before = (tmp_path / "o" / "tracks.csv").read_bytes()
    assert predict(*asked, "--every", 2, "--resume") == 0
    assert "3 frames kept" in capsys.readouterr().out
    assert (tmp_path / "o" / "tracks.csv").read_bytes() == before
    assert predict(*asked, "--resume") == 2
    assert "was made with every 2, this run has 1" in capsys.readouterr().err
    assert predict(*asked, tmp_path / "a.mp4", "--overwrite") == 2
    assert "a video is predicted alone" in capsys.readouterr().err
    counted = ("--stills", "--max-frames", 5, "--count-line", "10,0,10,64:a", "--count-region", "0,0,9,0,9,9")
    assert predict(*asked, "--overwrite", *counted) == 0
    assert "5 frames" in capsys.readouterr().out
    assert ",line,a,in,*," in (tmp_path / "o" / "counts.csv").read_text()
    assert (tmp_path / "o" / "stills.csv").is_file()
    assert predict(*asked, "--overwrite", "--count-line", "10,0") == 2
    assert "--count-line: '10,0' is no list of points" in capsys.readouterr().err


def test_what_is_of_videos_is_refused_for_images(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("--stills",), ("--max-frames", 3), ("--max-seconds", 1.5), ("--count-line", "0,0,9,9")):
        assert predict("--model", run_folder, images, "--out", tmp_path / "o", *option) == 2
        assert "limits, stills and counts are of videos" in capsys.readouterr().err
    assert predict("--model", run_folder, images, "--out", tmp_path / "o", "--max-seconds", -1) == 2
    assert "give more than 0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def _as_process(rank: int, world: int, arguments: list[str], port: int) -> subprocess.Popen[str]:
    launched = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in launched.items()}}
    command = [sys.executable, "-m", "flyspeck.cli.main", "predict", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow  # two processes that each import torch
def test_two_processes_and_a_killed_one(run_folder: Path, images: Path, tmp_path: Path) -> None:
    alone, many = tmp_path / "alone", tmp_path / "many"
    asked = ["--model", str(run_folder), str(images), "--score", "0", "--draw", "0", "--tile", "32x32"]
    asked += ["--overlap", "8", "--batch-size", "1"]
    assert predict(*asked, "--out", alone) == 0
    both = [_as_process(rank, 2, [*asked, "--out", str(many)], port) for port in [_free_port()] for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "process 2 of 2" in said[1]
    assert json.loads((many / "detections.json").read_text()) == json.loads((alone / "detections.json").read_text())
    # A process was killed: half of its journal, and the last line cut off, is all that is left of its work.
    journals = sorted((many / "tiles").glob("*.jsonl"), key=lambda path: path.stat().st_size)
    lines = journals[-1].read_text().splitlines(keepends=True)
    kept = len(lines) // 2
    journals[-1].write_text("".join(lines[:kept]) + lines[kept][:30])
    tiles = sum(
        "made_with" not in line for path in journals for line in path.read_text().splitlines() if line.endswith("}")
    )
    (many / "detections.json").unlink()
    port = _free_port()
    again = [_as_process(rank, 2, [*asked, "--out", str(many), "--resume"], port) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert f"resumed: {tiles} tiles kept" in said[0]
    done = sum(int(re.search(r"process \d of 2: (\d+) tiles", text).group(1)) for text in said)  # pyright: ignore
    total = json.loads((alone / "detections.json").read_text())
    assert json.loads((many / "detections.json").read_text()) == total
    assert done == sum(tiles_of(alone)) - tiles


@pytest.mark.slow  # four processes that each import torch
def test_a_process_that_is_killed_outright(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(16):  # enough images that each process takes whole ones
        Image.fromarray(rng.integers(0, 255, (100, 150, 3), np.uint8)).save(folder / f"{number:02d}.png")
    alone, many = tmp_path / "alone", tmp_path / "many"
    asked = ["--model", str(run_folder), str(folder), "--score", "0", "--draw", "0", "--tile", "32x32"]
    asked += ["--overlap", "8", "--batch-size", "1"]
    assert predict(*asked, "--out", alone) == 0
    port = _free_port()
    first, second = (_as_process(rank, 2, [*asked, "--out", str(many)], port) for rank in (0, 1))
    while second.poll() is None and sum(tiles_of(many)) < 20:
        time.sleep(0.05)
    second.kill()
    first.kill()  # as a launcher does when one of its processes is gone
    first.communicate()
    second.communicate()
    port = _free_port()
    again = [_as_process(rank, 2, [*asked, "--out", str(many), "--resume"], port) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert json.loads((many / "detections.json").read_text()) == json.loads((alone / "detections.json").read_text())
    lines = [line for path in (many / "tiles").glob("*.jsonl") for line in path.read_text().splitlines()]
    keys = [(e["name"], *e["tile"]) for e in map(json.loads, _whole(lines)) if "made_with" not in e]
    assert len(keys) == len(set(keys)) == sum(tiles_of(alone))  # what was missing, and nothing else


def _whole(lines: list[str]) -> list[str]:
    """Without the line that a kill may have cut off."""
    return [line for line in lines if line.endswith("}")]


def tiles_of(out: Path) -> list[int]:
    """Tiles in each journal of a folder of results."""
    return [
        sum("made_with" not in line for line in path.read_text().splitlines())
        for path in (out / "tiles").glob("*.jsonl")
    ]
