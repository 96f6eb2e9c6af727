"""The papers' data sets: is a download whole, where is it from, and how does it become what the recipes read.

Nothing is downloaded: most of these sets ask for a registration or a licence. Counts and hashes are those of the sets' own
papers and pages, or of torchvision's dataset classes (BSD-3), named in each entry's `facts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flyspeck.data.annotations import Annotations
from flyspeck.data.join import join_annotations
from flyspeck.data.readers import read_annotations
from flyspeck.data.shrink import shrink
from flyspeck.data.tile_files import write_tiles
from flyspeck.data.tiling import tile_annotations
from flyspeck.data.writers import write_coco
from flyspeck.errors import UserError, nearest

OVERLAP = 30
"""Pixels that training tiles of TinyPerson share: TinyBenchmark, Ning (2023, sec. 4.2), SSPNet's `train_overlap30`."""
TEST_OVERLAP = 100
"""Those of its test tiles, of TinyBenchmark's and TOV_mmdetection's corner files (`tiny_set_test_sw640_sh512`)."""


@dataclass(frozen=True)
class Files:
    """Files that a set must have."""

    pattern: str
    """Below the root; `{a,b}` are not expanded."""
    count: int
    """How many there are in a whole download."""


@dataclass(frozen=True)
class PublishedPart:
    """Annotations that become part of a prepared set."""

    path: str
    """Below the root: a file or folder that a reader takes."""
    images: str | None = None
    """Folder of the images, where the reader would not find it."""
    listed: str | None = None
    """A text file with one image id a line: only these."""


@dataclass(frozen=True)
class KnownSet:
    """A data set of the papers."""

    title: str
    get: str
    """Where it is to be had, and how it must lie below the root."""
    licence: str
    facts: str
    """Whose word the counts and hashes are."""
    files: tuple[Files, ...] = ()
    md5: Mapping[str, str] = field(default_factory=dict)
    """Path below the root to MD5. An archive (.zip, .tar, .tar.gz) is checked if it still lies there; others must be there."""
    parts: Mapping[str, tuple[PublishedPart, ...]] = field(default_factory=dict)
    """Name of a prepared json to what goes into it; empty where the set is read as it is."""
    classes: tuple[str, ...] | None = None
    tiles: bool = False
    """Cut into TinyPerson's tiles of 640x512."""
    shrink: Mapping[str, int] = field(default_factory=dict)
    """Or shrunk: `factor` or `short_side`."""


_COCO_FILES = (
    Files("train2017/*.jpg", 118_287),
    Files("val2017/*.jpg", 5_000),
    Files("annotations/instances_*2017.json", 2),
)
_COCO_PARTS = {
    "train.json": (PublishedPart("annotations/instances_train2017.json", "train2017"),),
    "val.json": (PublishedPart("annotations/instances_val2017.json", "val2017"),),
}
_CITY_FILES = (
    Files("leftImg8bit/train/*/*_leftImg8bit.png", 2_975),
    Files("leftImg8bit/val/*/*_leftImg8bit.png", 500),
    Files("gtBboxCityPersons/train/*/*_gtBboxCityPersons.json", 2_975),
    Files("gtBboxCityPersons/val/*/*_gtBboxCityPersons.json", 500),
)
_CITY_PARTS = {
    "train.json": (PublishedPart("gtBboxCityPersons/train", "leftImg8bit/train"),),
    "val.json": (PublishedPart("gtBboxCityPersons/val", "leftImg8bit/val"),),
}
_CITY_GET = (
    "cityscapes-dataset.com (registration): leftImg8bit_trainvaltest.zip and gtBbox_cityPersons_trainval.zip, "
    "unpacked side by side"
)
_VOC = "VOCdevkit/VOC{year}"

SETS: dict[str, KnownSet] = {
    "tinyperson": KnownSet(
        "TinyPerson (Yu et al., WACV 2020), cut into tiles",
        "github.com/ucas-vg/TinyBenchmark: the folder tiny_set is the root; images with erased uncertain regions for training",
        "research use; no redistribution of recognisable persons",
        "the paper (794 and 816 images); file names: TinyBenchmark's and TOV_mmdetection's configurations",
        (Files("erase_with_uncertain_dataset/train/**/*.jpg", 794), Files("test/**/*.jpg", 816)),
        parts={
            "train.json": (
                PublishedPart(
                    "erase_with_uncertain_dataset/annotations/task/tiny_set_train_all.json",
                    "erase_with_uncertain_dataset/train",
                ),
            ),
            "test.json": (PublishedPart("annotations/task/tiny_set_test_all.json", "test"),),
        },
        tiles=True,
    ),
    "citypersons": KnownSet(
        "CityPersons (Zhang et al., CVPR 2017)",
        _CITY_GET,
        "Cityscapes' own (no commercial use)",
        "Cityscapes (Cordts et al., CVPR 2016): 2,975 and 500 images",
        _CITY_FILES,
        parts=_CITY_PARTS,
    ),
    "tiny_citypersons": KnownSet(
        "Tiny CityPersons: CityPersons shrunk by 4 (Gong et al., WACV 2021, footnote 1)",
        _CITY_GET,
        "Cityscapes' own (no commercial use)",
        "as citypersons",
        _CITY_FILES,
        parts=_CITY_PARTS,
        shrink={"factor": 4},
    ),
    "coco": KnownSet(
        "COCO 2017 (Lin et al., ECCV 2014)",
        "cocodataset.org: train2017.zip, val2017.zip, annotations_trainval2017.zip, unpacked side by side",
        "annotations CC BY 4.0; images under Flickr's terms",
        "cocodataset.org: 118,287 and 5,000 images",
        _COCO_FILES,
        parts=_COCO_PARTS,
    ),
    "coco100": KnownSet(
        "COCO100, also called TinyCOCO: COCO with its shorter side at 100 px (Gong et al., WACV 2021; DPNet, sec. IV-A)",
        "as coco",
        "as coco",
        "as coco",
        _COCO_FILES,
        parts=_COCO_PARTS,
        shrink={"short_side": 100},
    ),
    "voc": KnownSet(
        "PASCAL VOC 2007 and 2012 (Everingham et al., IJCV 2010)",
        "host.robots.ox.ac.uk/pascal/VOC: the 2007 trainval and test and the 2012 trainval archives, unpacked side by side",
        "Flickr's terms",
        "the challenge pages (9,963 and 17,125 images; 5,011 + 11,540 to learn from, 4,952 to measure on); MD5: torchvision",
        (Files("VOCdevkit/VOC2007/JPEGImages/*.jpg", 9_963), Files("VOCdevkit/VOC2012/JPEGImages/*.jpg", 17_125)),
        {
            "VOCtrainval_06-Nov-2007.tar": "c52e279531787c972589f7e41ab4ae64",
            "VOCtest_06-Nov-2007.tar": "b6e924de25625d8de591ea690078ad9f",
            "VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd",
        },
        {
            "train.json": tuple(
                PublishedPart(_VOC.format(year=year), listed=f"{_VOC.format(year=year)}/ImageSets/Main/trainval.txt")
                for year in (2007, 2012)
            ),
            "test.json": (
                PublishedPart(_VOC.format(year=2007), listed=f"{_VOC.format(year=2007)}/ImageSets/Main/test.txt"),
            ),
        },
    ),
    "widerface": KnownSet(
        "WIDER FACE (Yang et al., CVPR 2016)",
        "shuoyang1213.me/WIDERFACE: WIDER_train.zip, WIDER_val.zip, wider_face_split.zip, unpacked side by side; of its "
        "eval_tools.zip the folder ground_truth",
        "research use",
        "the paper (12,880 and 3,226 images); MD5: torchvision",
        (
            Files("WIDER_train/images/*/*.jpg", 12_880),
            Files("WIDER_val/images/*/*.jpg", 3_226),
            Files("wider_face_split/wider_face_*_bbx_gt.txt", 2),
            Files("ground_truth/wider_*_val.mat", 4),
        ),
        {
            "WIDER_train.zip": "3fedf70df600953d25982bcd13d91ba2",
            "WIDER_val.zip": "dfa7d7e790efa35df3788964cf0bbaea",
            "WIDER_test.zip": "e5d8f4248ed24c334bbd12f49c29dd40",
            "wider_face_split.zip": "0e3767bcf0e326556d407bf5bff5d27c",
        },
    ),
    "visdrone": KnownSet(
        "VisDrone-DET (Zhu et al., TPAMI 2022)",
        "github.com/VisDrone/VisDrone-Dataset: the DET train, val and test-dev archives, unpacked side by side",
        "CC BY-NC-SA 3.0",
        "the data set's page: 6,471, 548 and 1,610 images",
        (
            Files("VisDrone2019-DET-train/images/*.jpg", 6_471),
            Files("VisDrone2019-DET-val/images/*.jpg", 548),
            Files("VisDrone2019-DET-train/annotations/*.txt", 6_471),
            Files("VisDrone2019-DET-val/annotations/*.txt", 548),
        ),
        parts={
            "train.json": (PublishedPart("VisDrone2019-DET-train"),),
            "val.json": (PublishedPart("VisDrone2019-DET-val"),),
        },
    ),
    "dota": KnownSet(
        "DOTA 1.0 (Xia et al., CVPR 2018), horizontal boxes",
        "captain-whu.github.io/DOTA: train and val, each a folder with images/ and labelTxt/",
        "academic use",
        "the paper: 1,411 and 458 images with published labels",
        (
            Files("train/images/*.png", 1_411),
            Files("val/images/*.png", 458),
            Files("train/labelTxt/*.txt", 1_411),
            Files("val/labelTxt/*.txt", 458),
        ),
        parts={"train.json": (PublishedPart("train"),), "val.json": (PublishedPart("val"),)},
    ),
    "cifar100": KnownSet(
        "CIFAR-100 (Krizhevsky, 2009)",
        "www.cs.toronto.edu/~kriz/cifar.html: the python version; cifar-100-python is the root",
        "none stated",
        "the author's page; MD5: torchvision",
        md5={
            "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "imagenet32": KnownSet(
        "ImageNet shrunk to 32x32 (Chrabaszcz et al., arXiv:1707.08819)",
        "image-net.org (registration), downsampled: Imagenet32_train.zip and Imagenet32_val.zip, unpacked into one folder",
        "ImageNet's own (research use)",
        "the authors' page: ten training files and one for validation",
        (Files("train_data_batch_*", 10), Files("val_data*", 1)),
    ),
    "imagenet": KnownSet(
        "ImageNet (ILSVRC 2012)",
        "image-net.org (registration): train/CLASS/*.JPEG and val/CLASS/*.JPEG, 1,000 classes each",
        "ImageNet's own (research use)",
        "the challenge's page: 1,281,167 and 50,000 images; MD5: torchvision",
        (
            Files("train/*/*.JPEG", 1_281_167),
            Files("val/*/*.JPEG", 50_000),
        ),
        {
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
        },
    ),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    good: bool
    found: str


def known_set(name: str) -> KnownSet:
    """The set of that name; raises UserError with the nearest."""
    if name not in SETS:
        raise UserError(f"no data set '{name}'", fix=nearest(name, SETS))
    return SETS[name]


def check_set(known: KnownSet, root: Path, *, hashes: bool = True) -> list[Check]:
    """What of a set is below `root`: files by number, hashes (of archives that still lie there too), annotations."""
    if not root.is_dir():
        raise UserError("no such folder", where=root, fix=f"get the set: {known.get}")
    checks = []
    for files in known.files:
        count = sum(1 for _ in root.glob(files.pattern))
        checks.append(Check(files.pattern, count == files.count, f"{count:,} of {files.count:,}"))
    for path, wanted in known.md5.items():
        archive = path.endswith((".zip", ".tar", ".tar.gz"))
        if not (root / path).is_file():
            if not archive:
                checks.append(Check(path, False, "missing"))
        elif hashes:
            found = _md5(root / path)
            checks.append(Check(path, found == wanted, "MD5 as published" if found == wanted else f"MD5 {found}"))
    for source in (source for sources in known.parts.values() for source in sources):
        for needed in (source.path, source.listed):
            if needed is not None and not (root / needed).exists():
                checks.append(Check(needed, False, "missing"))
    return checks


def prepare_set(
    known: KnownSet,
    root: Path,
    out: Path,
    *,
    overlap: int = OVERLAP,
    test_overlap: int = TEST_OVERLAP,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Path, Annotations]]:
    """Converts a set to what its recipes read and yields each json written with its table.

    Tiles and shrunk images are written below `out` (training tiles share `overlap` px, those of `test.json` `test_overlap`);
    other sets' json refers to the images where they are. Broken entries are in the tables' `problems`.
    """
    for name, sources in known.parts.items():
        table = join_annotations([_read(source, root) for source in sources])
        if known.tiles:
            shared = test_overlap if name == "test.json" else overlap
            tiles = tile_annotations(table, rule="tinybenchmark_split_by_size", size=(512, 640), overlap=shared)
            table = write_tiles(table, tiles, out, name=name, workers=workers, progress=progress)
        elif known.shrink:
            table = shrink(table, out, name=name, workers=workers, progress=progress, **known.shrink)  # type: ignore[arg-type]
        else:
            write_coco(table, out / name)
        yield out / name, table


def _read(source: PublishedPart, root: Path) -> Annotations:
    images = None if source.images is None else root / source.images
    table = read_annotations(root / source.path, images=images)
    if source.listed is None:
        return table
    wanted = set((root / source.listed).read_text(encoding="utf-8").split())
    keep = np.array([str(image_id) in wanted for image_id in table.image_ids.tolist()])
    missing = len(wanted) - int(keep.sum())
    if missing:
        raise UserError(f"{missing} of {len(wanted)} listed images have no annotations", where=root / source.listed)
    return table.select_images(keep)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
