"""The data of `flyspeck-lab gpu`, packed small to be taken along, and unpacked so that training decodes next to nothing.

A pack holds HIT-UAV shrunk by 2 and the nuclei (both parts, for the hosts), and the images of the base weights: generated scenes
and the training parts of further sets, as many as its size allows. What its images are lossy for is said in `pack.json`. Run as
a program (`python -m flyspeck_lab.gpu_data PACK OUT`), it unpacks beside other work.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from flyspeck.data.image_files import in_parallel, read_true, shrink_pixels
from flyspeck.errors import UserError
from flyspeck.files import local_output, write_json, write_text

REPOSITORY = Path(__file__).resolve().parents[3]
PARTS = {"hituav_half": ("train_blk.json", "val_blk.json"), "nuclei": ("train.json", "val.json")}
"""The hosts' sets and their annotations."""
BASE = ("train.json", "val.json")
FORMATS = ("PNG", "JPEG", "WEBP")
QUALITY = 80
"""Of the WebP files of shrunk and generated images; others are copied as they are."""
SHARES = tuple(2 ** (-step / 2) for step in range(14))


def base_weights() -> ModuleType:
    """`benchmarks/base_weights.py`, which makes the base weights' images and recipe. Raises UserError outside of a clone."""
    file = REPOSITORY / "benchmarks" / "base_weights.py"
    found = importlib.util.spec_from_file_location("base_weights", file)
    if found is None or found.loader is None or not file.is_file():
        raise UserError(
            "no such file", where=file, fix="work in a clone of the repository, with lab/ installed from it"
        )
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def pack(data: Path, out: Path, *, megabytes: float, scenes: int, seed: int) -> dict[str, Any]:
    """Writes the pack `out` from the sets in `data` (`hituav`, `nuclei`, and those of the base weights that are there).

    Args:
        data: Folder of the sets.
        out: A new folder, or an earlier pack, which is written over.
        megabytes: Of all its files, at most: images of the base weights are left out, evenly spread, until they fit.
        scenes: Generated scenes to learn from, before any is left out.
        seed: Of the scenes.

    Returns:
        What `pack.json` says: images and licence of each set, and the bytes.

    Raises:
        UserError: For a set of the hosts that is not there, or where these alone are larger than `megabytes`.
    """
    from flyspeck.data.readers import read_annotations

    out, base = local_output(out, where="--out"), base_weights()
    for name, file in (("hituav", "train_blk.json"), ("nuclei", "train.json")):
        if not (data / name / file).is_file():
            raise UserError("no such file", where=data / name / file, fix="give the folder of the sets with --data")
    shutil.rmtree(out, ignore_errors=True)
    _pack_hosts(data, out)
    left = 1e6 * megabytes - _bytes(out)
    work = out / "work"
    more = [name for name in base.SETS if name not in ("hituav", "nuclei") and (data / name).is_dir()]
    tables = [
        *base.scene_tables(work / "scenes", scenes, 1000 * seed + 1),
        *(read_annotations(data / name / base.SETS[name][0]) for name in more),
    ]
    own = [read_annotations(out / name / files[0]) for name, files in PARTS.items()]
    val = base.as_one(list(base.scene_tables(work / "scenes", max(6, scenes // 10), 1000 * seed + 501)), None)
    known = base.as_one(own, None)
    largest = max(len(table) for table in tables)
    for limit in dict.fromkeys(max(1, round(share * largest)) for share in SHARES):
        train = base.as_one(tables, limit)
        images = sum(_small(image, work).stat().st_size for image in [*train["images"], *val["images"]])
        if images + len(json.dumps([train, known, val])) <= left - 2000:  # for pack.json
            break
    else:
        raise UserError(
            f"the sets of the hosts alone have more than {megabytes} MB", where="--megabytes", fix="allow more"
        )
    for name, content in (("train", train), ("val", val)):
        _move_in(content, out / "base", name, work)
    _append(train, known, out / "base")
    for name, content in (("train", train), ("val", val)):
        write_json(out / "base" / f"{name}.json", content, indent=None)
    shutil.rmtree(work)
    told = {
        "sets": {name: base.SETS[name][1] for name in ("hituav", "nuclei", *more)},
        "images": {"base": len(train["images"]), **{name: len(table) for name, table in zip(PARTS, own, strict=True)}},
        "at_most_of_a_base_set": limit,
        "scenes": scenes,
        "seed": seed,
        "quality": QUALITY,
        "bytes": _bytes(out),
    }
    write_json(out / "pack.json", told)
    return told


def _pack_hosts(data: Path, out: Path) -> None:
    """HIT-UAV shrunk by 2 as lossy WebP, and the nuclei as they are."""
    from flyspeck.data.readers import read_annotations
    from flyspeck.data.shrink import scale_annotations
    from flyspeck.data.writers import write_coco

    folder = out / "hituav_half"
    (folder / "images").mkdir(parents=True)
    for file in PARTS["hituav_half"]:
        table = read_annotations(data / "hituav" / file)
        small = scale_annotations(table, table.sizes // 2)
        names = [f"images/{Path(name).stem}.webp" for name in table.file_names]
        for row, name in enumerate(names):
            _shrink_one(table.path(row), folder / name, tuple(int(side) for side in small.sizes[row]))
        write_coco(small, folder / file, file_names=names)
    (out / "nuclei" / "images").mkdir(parents=True)
    for file in PARTS["nuclei"]:
        shutil.copy(data / "nuclei" / file, out / "nuclei" / file)
        for image in json.loads((data / "nuclei" / file).read_text(encoding="utf-8"))["images"]:
            shutil.copy(data / "nuclei" / image["file_name"], out / "nuclei" / image["file_name"])


def _small(image: dict[str, Any], work: Path) -> Path:
    """The file of an image that is packed: its own, of a generated one a WebP beside it, made once."""
    source = Path(image["file_name"])
    if work.resolve() not in source.parents:
        return source
    target = source.with_suffix(".webp")
    if not target.is_file():
        with Image.open(source, formats=FORMATS) as whole:
            whole.save(target, quality=QUALITY, method=4)
    return target


def _move_in(content: dict[str, Any], folder: Path, part: str, work: Path) -> None:
    """Copies a table's images into `folder/PART`, and names them so."""
    (folder / part).mkdir(parents=True)
    for image in content["images"]:
        source = _small(image, work)
        name = f"{part}/{image['id']}{source.suffix}"
        shutil.copy(source, folder / name)
        image["file_name"] = name


def _append(content: dict[str, Any], more: dict[str, Any], folder: Path) -> None:
    """Adds images that are in the pack already to a table whose folder is `folder`."""
    images, boxes = len(content["images"]), len(content["annotations"])
    for image in more["images"]:
        path = os.path.relpath(image["file_name"], folder.resolve())
        content["images"].append({**image, "id": image["id"] + images, "file_name": path})
    for box in more["annotations"]:
        content["annotations"].append({**box, "id": box["id"] + boxes, "image_id": box["image_id"] + images})


def _shrink_one(source: Path, target: Path, size: tuple[int, ...]) -> None:
    pixels = shrink_pixels(read_true(source), (size[0], size[1]))
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(target, quality=QUALITY, method=4)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unpack(packed: Path, out: Path, *, workers: int = 1) -> Path:
    """The pack as uncompressed PNG, which decodes in a tenth of the time; `out/unpacked` is written last. Returns `out`."""
    if not (packed / "pack.json").is_file():
        raise UserError("no pack", where=packed, fix="make one: flyspeck-lab pack --data FOLDER --out PACK")
    told = (packed / "pack.json").read_text(encoding="utf-8")
    if (out / "unpacked").is_file():
        if (out / "unpacked").read_text(encoding="utf-8") == told:
            return out
        shutil.rmtree(out)  # of another pack
    images = [path for path in packed.rglob("*") if path.suffix in (".webp", ".png", ".jpg")]
    jobs = [(path, (out / path.relative_to(packed)).with_suffix(".png")) for path in images]
    for folder in {target.parent for _, target in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    for _ in in_parallel(_unpack_one, jobs, workers):
        pass
    for path in packed.rglob("*.json"):
        if path.name != "pack.json":
            content = json.loads(path.read_text(encoding="utf-8"))
            for image in content["images"]:
                image["file_name"] = str(Path(image["file_name"]).with_suffix(".png"))
            write_json(out / path.relative_to(packed), content, indent=None)
    write_text(out / "unpacked", told)
    return out


def _unpack_one(job: tuple[Path, Path]) -> None:
    source, target = job
    if not target.is_file():
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            part = target.with_suffix(".part")
            image.save(part, format="PNG", compress_level=0)
            part.replace(target)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), workers=max(1, (os.cpu_count() or 1) - 2))
