"""Everything that flyspeck reads of other people's files: a sound one of each, and how it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from elsewhere import BAIT
from fuzz_seeds import seeds, write
from hostile import MARKUP, NAMES
from media_seeds import images, npz_set, pickled_set, rasters, videos
from PIL import Image

from flyspeck.cli.main import main


@dataclass(frozen=True)
class Surface:
    """A place where files are read."""

    kind: str
    """What the report counts it under."""
    name: str
    make: Callable[[Path], Sequence[str]]
    """Writes the sound files into an empty folder; which of them are damaged, by path."""
    use: Callable[[Path], object]
    """Reads them; an exit code where it is a command."""
    weight: int = 1
    """How often it is drawn."""
    out: str = ""
    """The folder below which alone it may write; the whole folder where it is empty."""
    refers: bool = False
    """Whether it may read the files elsewhere that it is told to."""


def command(*words: object) -> int:
    """The command line, in this process."""
    return main([str(word) for word in words])


# --- annotations


def _annotations() -> list[Surface]:
    from test_fuzz_readers import held

    from flyspeck.data.readers import read_annotations

    found = []
    for name, layouts in seeds().items():
        for number, seed in enumerate(layouts):

            def make(folder: Path, seed: Any = seed) -> Sequence[str]:
                write(seed, folder)
                return sorted(seed.files)

            def use(folder: Path, seed: Any = seed, name: str = name, refers: bool = True) -> object:
                table = read_annotations(folder / seed.source, format=name, allow_references=refers)
                held(table)
                return table

            def inside(folder: Path, use: Callable[..., object] = use) -> object:
                return use(folder, refers=False)

            # Some milliseconds each: as many as others get in the same time.
            found.append(Surface("annotations", f"{name} {number}", make, use, 4, refers=True))
            found.append(Surface("annotations", f"{name} {number}, without references", make, inside, 2))
    return found


# --- conversions


def _conversions() -> list[Surface]:
    """What names files, written anew: nothing may come to lie outside of the output."""
    from test_fuzz_readers import SEEDS

    (coco, *_), (yolo, *_), (voc, *_) = SEEDS["coco"], SEEDS["yolo"], SEEDS["voc"]
    found = []
    for name, seed, words in (
        ("coco to yolo", coco, ("--to", "yolo", "--out", "out")),
        ("coco to yolo, with references", coco, ("--to", "yolo", "--out", "out", "--allow-references")),
        ("coco to labelme", coco, ("--to", "labelme", "--out", "out", "--allow-references")),
        ("coco to voc", coco, ("--to", "voc", "--out", "out", "--allow-references")),
        ("voc to coco", voc, ("--to", "coco", "--out", "out/a.json")),
        ("yolo to coco", yolo, ("--to", "coco", "--out", "out/a.json")),
    ):

        def make(folder: Path, seed: Any = seed) -> Sequence[str]:
            write(seed, folder / "a" / "b" / "set")
            (folder / "out").mkdir()
            for further in ("a/b", "a", "."):
                Image.new("L", (40, 30), 90).save(folder / further / BAIT)
            return [f"a/b/set/{file}" for file in sorted(seed.files)]

        def use(folder: Path, seed: Any = seed, words: Sequence[str] = words) -> object:
            placed = [str(folder / word) if word.startswith("out") else word for word in words]
            return command("data", "convert", folder / "a" / "b" / "set" / seed.source, *placed)

        found.append(Surface("conversions", name, make, use, 4, "out", "--allow-references" in words))
    return found


# --- images, rasters, videos


def _image(path: Path) -> object:
    from flyspeck.data.headers import read_header
    from flyspeck.data.images import read_image, read_size
    from flyspeck.errors import UserError
    from flyspeck.infer.source import open_source

    said = None
    for read in (read_size, read_header, read_image, _window):
        try:
            read(path) if read is not _window else _window(open_source(path))
        except UserError as error:
            said = error
    if said is not None:
        raise said
    return None


def _window(source: Any) -> object:
    with source:
        height, width = source.size
        return source.read(0, 0, min(64, width), min(64, height))


def _images() -> list[Surface]:
    found = []
    for name, content in images().items():

        def make(folder: Path, name: str = name, content: bytes = content) -> Sequence[str]:
            (folder / name).write_bytes(content)
            return [name]

        found.append(Surface("images", name, make, lambda folder, name=name: _image(folder / name)))
    return found


def _rasters() -> list[Surface]:
    from flyspeck.infer.source import open_source
    from flyspeck.infer.windows import OpenOptions

    found = []
    for name, make in rasters().items():

        def use(folder: Path) -> object:
            places = (folder / f"main.{ending}" for ending in ("vrt", "tif", "png"))
            path = next(place for place in places if place.is_file())
            return _window(open_source(path, OpenOptions(place=True)))

        found.append(Surface("rasters", name, make, use, 6))
    return found


def _videos() -> list[Surface]:
    from flyspeck.infer.video.reader import VideoReader

    def use(folder: Path) -> object:
        (path,) = folder.glob("video.*")
        reader = VideoReader(path)
        try:
            frames = reader.frames()
            return [frame for frame, _ in zip(frames, range(6), strict=False)]
        finally:
            reader.close()

    return [Surface("videos", name, make, use, 2) for name, make in videos().items()]


# --- recipes, weights, runs, exported files


@cache
def trained(place: Path) -> Path:
    """A folder with `run`, a tiny run of one epoch, its data, and `model.onnx`; made once."""
    from flyspeck.export.package import ExportOptions, export_model
    from flyspeck.train.config import parse_recipe
    from flyspeck.train.run import train
    from small_training import base_recipe, write_squares

    if (place / "model.onnx").is_file():
        return place
    write_squares(place)
    recipe = base_recipe()
    data = place / "data" / "squares"
    recipe["data"] |= {"train": str(data / "train.json"), "val": str(data / "val.json")}
    recipe["train"] |= {"epochs": 1, "eval_every": 1, "log_every": 1}
    train(parse_recipe(recipe), place / "run")
    export_model(place / "run", place / "model.onnx", ExportOptions(check_limit=2), say=lambda _: None)
    return place


def _of_run(place: Path) -> list[Surface]:
    from flyspeck.infer.load import load_predictor
    from flyspeck.train.build import load_detector
    from flyspeck.train.checkpoint import load_run_state
    from flyspeck.train.config import load_recipe

    pixels = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)

    def copied(*names: str) -> Callable[[Path], Sequence[str]]:
        def make(folder: Path) -> Sequence[str]:
            shutil.copytree(trained(place) / "run", folder / "run")
            return [f"run/{name}" for name in names]

        return make

    def exported(folder: Path) -> Sequence[str]:
        shutil.copyfile(trained(place) / "model.onnx", folder / "model.onnx")
        return ["model.onnx"]

    def detections(folder: Path) -> Sequence[str]:
        shutil.copyfile(trained(place) / "run" / "detections.json", folder / "dt.json")
        return ["dt.json"]

    def predicted(path: Path) -> object:
        (found,) = load_predictor(path).predict([pixels])
        assert np.isfinite(found.boxes).all()
        assert np.isfinite(found.scores).all()
        return found

    def printed(folder: Path) -> int:
        return command("train", folder / "run", "--print-config")

    def resumed(folder: Path) -> int:
        return command("train", folder / "run", "--resume")

    gt = place / "data" / "squares" / "val.json"
    texts = ("recipe.yaml", "detections.json", "evaluation.json", "metrics.jsonl", "environment.json")

    def named(folder: Path) -> Sequence[str]:
        """Its texts are such as a page or a terminal must not obey."""
        copied()(folder)
        path = folder / "run" / "environment.json"
        about = json.loads(path.read_text(encoding="utf-8"))
        about = {key: f"{value}{NAMES[number % 4]}" if isinstance(value, str) else value
                 for number, (key, value) in enumerate(about.items())}  # fmt: skip
        path.write_text(json.dumps(about), encoding="utf-8")
        recipe = folder / "run" / "recipe.yaml"
        lines = [line for line in recipe.read_text(encoding="utf-8").splitlines() if not line.startswith("name:")]
        recipe.write_text("\n".join([f"name: {json.dumps(MARKUP[0])}", *lines]) + "\n", encoding="utf-8")
        return ["run/metrics.jsonl"]

    def reported(folder: Path) -> int:
        page = folder / "r.html"
        code = command("report", "--draw", 0, "--out", page, folder / "run")
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        assert not any(markup in text for markup in MARKUP), "a name stands on the page as markup"
        return code

    return [
        Surface(
            "recipes", "load", copied("recipe.yaml"), lambda f: load_recipe(f / "run" / "recipe.yaml"), 4, refers=True
        ),
        Surface(
            "recipes",
            "print",
            copied("recipe.yaml"),
            lambda f: command("train", f / "run", "--print-config"),
            2,
            refers=True,
        ),
        Surface("run folders", "report", copied(*texts), reported, 6, refers=True),
        Surface("run folders", "report, names", named, reported, 2, refers=True),
        Surface(
            "run folders", "resume", copied("metrics.jsonl", "state.pt", "last.safetensors"), resumed, 3, refers=True
        ),
        Surface("weights", "load", copied("best.safetensors"), lambda f: load_detector(f / "run"), 4),
        Surface("weights", "predict", copied("best.safetensors"), lambda f: predicted(f / "run"), 4),
        Surface("weights", "state", copied("state.pt"), lambda f: load_run_state(f / "run" / "state.pt"), 3),
        Surface("exported files", "onnx", exported, lambda f: predicted(f / "model.onnx"), 5),
        Surface("detections", "eval", detections, lambda f: command("eval", "--gt", gt, "--dt", f / "dt.json"), 4),
    ]


# --- what else is read


def _others() -> list[Surface]:
    from flyspeck.cli.class_names import class_names
    from flyspeck.data.classification import read_labelled_images
    from flyspeck.infer.region import read_region
    from flyspeck.infer.resume import TileJournal
    from flyspeck.infer.video.journal import FrameJournal, restored
    from flyspeck.infer.video.zones import parse_zones
    from flyspeck.plan.state import FILE, open_state
    from flyspeck.train.dynamic_labels import read_losses

    ring = [[[1, 1], [20, 1], [20, 20], [1, 1]]]
    feature = {"type": "Feature", "properties": {"name": "a", "frame": "pixels"}, "geometry": {"type": "Polygon"}}
    feature["geometry"]["coordinates"] = ring  # type: ignore[index]
    polygons = {"type": "FeatureCollection", "features": [feature, feature], "frame": "pixels"}
    tile = {"name": "a.png", "stamp": [1, 2], "size": [48, 64], "tile": [0, 0, 64, 48], "verdict": "run"}
    tile |= {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [0], "cut": [False], "classes": ["a"]}
    frame = {"frame": 1, "size": [48, 64], "tiles": 1, **{k: tile[k] for k in ("boxes", "scores", "labels", "cut")}}
    tiles = "".join(json.dumps(line) + "\n" for line in ({"made_with": {"a": 1}}, tile, tile))
    frames = "".join(
        json.dumps(line) + "\n"
        for line in ({"made_with": {"a": 1}}, {**frame, "classes": ["a"]}, {**frame, "frame": 2})
    )
    labels = {
        "guidance": True, "image_ids": [1, 2], "factors": [0.5, 0.25], "losses": [[1, 2], [3, 4]],
        "detector_sha256": "ab", "objects": [1, 0],
    }  # fmt: skip
    state = {"format": 1, "asked": {"a": 1}, "seconds": 1.0, "done": {"plan": {}}}

    def one(name: str, content: str) -> Callable[[Path], Sequence[str]]:
        def make(folder: Path) -> Sequence[str]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
            return [name]

        return make

    def packed(folder: Path, content: dict[str, bytes]) -> Sequence[str]:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        return sorted(content)

    def journal(folder: Path) -> object:
        found = FrameJournal(folder, {"a": 1}, resume=True)
        try:
            from flyspeck.infer.source import Item

            return [restored(Item("v", np.zeros((48, 64, 3), np.uint8), n), entry) for n, entry in found.kept()]
        finally:
            found.close()

    return [
        Surface("lists and journals", "tiles", one("tiles/tiles-a-1.jsonl", tiles),
                lambda f: TileJournal(f / "tiles", {"a": 1}).close(), 2),
        Surface("lists and journals", "frames", one("tiles/frames.jsonl", frames), journal, 2),
        Surface("lists and journals", "zones", one("z.geojson", json.dumps(polygons)),
                lambda f: parse_zones([], [str(f / "z.geojson")]), 2),
        Surface("lists and journals", "region", one("r.geojson", json.dumps(polygons)),
                lambda f: read_region(f / "r.geojson"), 2),
        Surface("lists and journals", "class names", one("names.txt", "car\nboat\n"),
                lambda f: class_names(str(f / "names.txt"), where="--classes")),
        Surface("lists and journals", "class names, json", one("names.json", '["car", "boat"]'),
                lambda f: class_names(str(f / "names.json"), where="--classes")),
        Surface("lists and journals", "labels of factors", one("l.json", json.dumps(labels)),
                lambda f: read_losses(f / "l.json")),
        Surface("lists and journals", "state of auto", one(FILE, json.dumps(state)),
                lambda f: open_state(f, {"a": 1}, resume=True)),
        Surface("classification sets", "packed", lambda f: packed(f, npz_set()),
                lambda f: read_labelled_images(f, "train"), 2),
        Surface("classification sets", "pickled", lambda f: packed(f, pickled_set()),
                lambda f: read_labelled_images(f, "train"), 2),
    ]  # fmt: skip


def surfaces(place: Path) -> list[Surface]:
    """All of them; `place` is an empty folder for what is made once."""
    return [
        *(*_annotations(), *_conversions(), *_images(), *_rasters(), *_videos()),
        *(*_of_run(place), *_others()),
    ]
