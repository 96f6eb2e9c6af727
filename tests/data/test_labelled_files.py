"""Lists of labelled images in folders and shards: what is found, what every kind of damage says."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.data.labelled_files import ShardGone, list_labelled_images, square_of
from flyspeck.data.tar_shards import check_complete, members, samples
from flyspeck.errors import UserError
from labelled_sets import CLASSES, stripes, write_folders, write_shard, write_shards

NAME = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/\n", exclude_categories=("Cs",)), min_size=1, max_size=200
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(NAME, st.binary(max_size=1500)), min_size=1, max_size=4),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.sampled_from(["", "a/", "folder/" * 20]),
)
def test_members_are_those_that_tarfile_finds(tmp_path_factory, contents, format, folder):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w", format=format) as tar:
        inner = tarfile.TarInfo("a folder")
        inner.type = tarfile.DIRTYPE
        tar.addfile(inner)
        for name, content in contents:
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert [tuple(member) for member in members(path)] == expected


def test_ustar_splits_long_paths(tmp_path):
    write_shard(tmp_path / "x.tar", [("folder/" * 18 + "image", stripes(0)[0], 0)])
    assert next(members(tmp_path / "x.tar")).name == "folder/" * 18 + "image.png"


def test_folders_and_shards_give_the_same_images(tmp_path):
    write_folders(tmp_path / "folders", "train", 9)
    write_shards(tmp_path / "shards", "train", shards=3, each=3)
    folders, shards = (list_labelled_images(tmp_path / kind, "train") for kind in ("folders", "shards"))
    assert folders.classes == CLASSES
    assert shards.classes == ("0", "1", "2")
    assert_array_equal(shards.labels, [0, 1, 2] * 3)
    assert_array_equal(shards.shard_of, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    by_name = {folders.names[i].split("/")[1]: i for i in range(9)}
    for row in range(9):
        assert shards.read(row) == folders.read(by_name[shards.names[row]]) == stripes(row)[0]
        assert folders.labels[by_name[shards.names[row]]] == shards.labels[row]
    assert shards.where(4) == f"{tmp_path / 'shards' / 'train' / '000001.tar'}: 000004.png"
    some = shards.limit(1)
    assert [some.names[i] for i in range(len(some))] == ["000000.png", "000001.png", "000002.png"]
    assert some.read(2) == stripes(2)[0]
    assert some.digest() != shards.digest() == list_labelled_images(tmp_path / "shards", "train").digest()


def test_shards_side_by_side_with_names_of_classes(tmp_path):
    write_shard(tmp_path / "set-train-00000-of-00001.tar", [("a", stripes(0)[0], "columns"), ("b", stripes(2)[0], 2)])
    write_shard(tmp_path / "set-validation-00.tar", [("c", stripes(1)[0], "none")])
    (tmp_path / "classes.txt").write_text("columns\nnone\nrows\n")
    train, val = (list_labelled_images(tmp_path, split) for split in ("train", "val"))
    assert (train.classes, train.labels.tolist()) == (CLASSES, [0, 2])
    assert (val.classes, val.labels.tolist()) == (CLASSES, [1])


def test_a_label_in_json(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in (("x.seg.json", b"{}"), ("x.jpg", b"..."), ("x.json", b'{"label": 3, "size": [1, 2]}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert [(s.image.name, s.label) for s in samples(tmp_path / "train.tar")] == [("x.jpg", 3)]


def test_imagenet_as_it_comes(tmp_path):
    write_folders(tmp_path, "train", 3)
    (tmp_path / "val").mkdir()
    for number in (1, 2):
        (tmp_path / "val" / f"ILSVRC2012_val_{number}.JPEG").write_bytes(stripes(number)[0])
    with pytest.raises(UserError, match="val: holds no images; put them under val/CLASS/"):
        list_labelled_images(tmp_path, "val")
    solution = tmp_path / "LOC_val_solution.csv"
    solution.write_text("ImageId,PredictionString\nILSVRC2012_val_1,none 1 2 3 4 \nILSVRC2012_val_2,rows 1 2 3 4 \n")
    assert list_labelled_images(tmp_path, "val").labels.tolist() == [1, 2]
    solution.write_text("ILSVRC2012_val_1,none\n")
    with pytest.raises(UserError, match=r"ILSVRC2012_val_2.JPEG: stands in no line of LOC_val_solution.csv"):
        list_labelled_images(tmp_path, "val")
    solution.write_text("ILSVRC2012_val_1,none\nILSVRC2012_val_2,n01\n")
    with pytest.raises(UserError, match="its class 'n01' is not in train/"):
        list_labelled_images(tmp_path, "val")


def test_bad_folders(tmp_path, caplog):
    with pytest.raises(UserError, match="no such folder"):
        list_labelled_images(tmp_path / "absent", "train")
    with pytest.raises(UserError, match="holds neither train/ nor shards"):
        list_labelled_images(tmp_path, "train")
    write_folders(tmp_path, "train", 3)
    with pytest.raises(UserError, match="has no val/ beside train/"):
        list_labelled_images(tmp_path, "val")
    (tmp_path / "train" / "rows" / "notes.docx").touch()
    with caplog.at_level(logging.WARNING):
        list_labelled_images(tmp_path, "train")
    assert "1 entries that are no images are passed over, such as notes.docx" in caplog.text
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: the class has no image; put images there, or take the folder away"):
        list_labelled_images(tmp_path, "train")
    write_folders(tmp_path, "val", 3)
    (tmp_path / "val" / "other").mkdir()
    with pytest.raises(UserError, match="class 'other' is not in train/"):
        list_labelled_images(tmp_path, "val")


@pytest.mark.parametrize("names", [
    ["a-000.tar", "a-002.tar"], ["train-00001-of-00004.tar", "train-00002-of-00004.tar"], ["00000-of-00002.tar"],
])  # fmt: skip
def test_a_missing_shard_is_named(tmp_path, names):
    with pytest.raises(UserError, match="shards are missing: "):
        check_complete([tmp_path / name for name in names])


def test_which_shard_is_missing(tmp_path):
    write_shards(tmp_path, "train", shards=4, each=1)
    (tmp_path / "train" / "000002.tar").unlink()
    with pytest.raises(UserError, match=r"1 of 4 shards are missing: 000002.tar; fetch them"):
        list_labelled_images(tmp_path, "train")


@pytest.mark.parametrize("names", [
    ["a-000.tar", "a-001.tar"], ["1.tar", "2.tar"], ["a.tar"], ["x-1-of-2.tar", "x-2-of-2.tar"], ["b-0-of-1.tar"],
    ["20210101.tar", "20230505.tar"],
])  # fmt: skip
def test_no_shard_is_missing(tmp_path, names):
    check_complete([tmp_path / name for name in names])


def _wrong(name: str, root: Path) -> None:
    shard = root / "train" / "000001.tar"
    content = shard.read_bytes()
    if name == "cut in an image":
        shard.write_bytes(content[:700])
    elif name == "cut between two":
        shard.write_bytes(content[: content.index(b"000003.cls") + 1024])
    elif name == "a header of noise":
        shard.write_bytes(content[:10] + b"\xff" + content[11:])
    elif name == "a later header":
        at = content.index(b"000003.png")
        shard.write_bytes(content[:at] + b"x" + content[at + 1 :])
    elif name == "packed":
        shard.write_bytes(gzip.compress(content))
    elif name == "empty":
        shard.write_bytes(b"")
    elif name == "no tar":
        shard.write_bytes(b"<html>" * 200)
    else:
        label = {"no label": None, "below 0": -1, "no class": "zebra", "not whole": "1.5"}.get(name, 0)
        twice = [("5", stripes(1)[0], 0)] if name == "two of a key" else []
        write_shard(shard, [*twice, ("5", stripes(1)[0], label)])


@pytest.mark.parametrize(("name", "message"), [
    ("cut in an image", "000001.tar: is cut off in '000002.png'; fetch the shard again"),
    ("cut between two", "000001.tar: is cut off: no end of the archive at byte"),
    ("a header of noise", "000001.tar: is no tar file"),
    ("a later header", r"000001.tar: is damaged: no header at byte \d+; fetch"),
    ("packed", r"000001.tar: is no tar file; unpack it first \(gunzip"),
    ("empty", "000001.tar: is cut off: no end of the archive at byte 0"),
    ("no tar", "000001.tar: is no tar file"),
    ("no label", "000001.tar: '5' has no label; write it as a whole number into a .cls"),
    ("below 0", r"000001.tar: 5.png: its label -1 is no class \(whole numbers from 0\)"),
    ("no class", "000001.tar: 5.png: its label 'zebra' is no class"),
    ("not whole", "000001.tar: 5.png: its label '1.5' is no class"),
    ("two of a key", "000001.tar: two images with the key '5'"),
])  # fmt: skip
def test_damaged_shards(tmp_path, name, message):
    write_shards(tmp_path, "train", shards=2, each=2)
    _wrong(name, tmp_path)
    with pytest.raises(UserError, match=message):
        list_labelled_images(tmp_path, "train")


def test_labels_beyond_the_classes(tmp_path, caplog):
    write_shards(tmp_path, "train", shards=1, each=3)
    write_shard(tmp_path / "val" / "0.tar", [("x", stripes(0)[0], 3)])
    with pytest.raises(UserError, match=r"0.tar: x.png: its label 3 is no class of the training images \(0 to 2\)"):
        list_labelled_images(tmp_path, "val")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"its label 2 is no class \(the 2 of classes.txt\)"):
        list_labelled_images(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match="names the class 'a' twice"):
        list_labelled_images(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    with caplog.at_level(logging.WARNING):
        list_labelled_images(tmp_path, "train")
    assert "1 of 4 classes have no training image: d" in caplog.text
    (tmp_path / "classes.txt").unlink()
    write_shard(tmp_path / "train" / "000001.tar", [("x", stripes(0)[0], 999_999)])
    with pytest.raises(UserError, match="a label of 999999 for 4 images"):
        list_labelled_images(tmp_path, "train")


def test_a_shard_that_goes(tmp_path):
    write_shards(tmp_path, "train", shards=2, each=2)
    files = list_labelled_images(tmp_path, "train")
    (tmp_path / "train" / "000001.tar").write_bytes(b"short")
    with pytest.raises(ShardGone, match=r"000001.tar: is shorter than before"):
        files.read(2)
    (tmp_path / "train" / "000001.tar").unlink()
    with pytest.raises(ShardGone, match=r"000001.tar: can no longer be read"):
        files.read(2)


def _one(tmp_path: Path, content: bytes):
    write_shard(tmp_path / "train.tar", [("x", content, 0)])
    return list_labelled_images(tmp_path, "train")


def _file(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_the_middle_by_hand(tmp_path):
    # 8 wide, 4 high: the middle is columns 2 to 5; at its own size nothing is resampled.
    pixels = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)
    files = _one(tmp_path, _file(Image.fromarray(pixels), "PNG"))
    assert_array_equal(square_of(files, 0, 4, rng=None, smallest=1.0), pixels[:, 2:6])


def test_odd_images(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = 200  # the top row
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = square_of(_one(tmp_path, _file(Image.fromarray(pixels), "PNG", exif=exif)), 0, 4, rng=None, smallest=1.0)
    assert_array_equal(turned, pixels[::-1])
    hidden = Image.fromarray(np.dstack([pixels, np.zeros((4, 4), np.uint8)]), "RGBA")
    assert square_of(_one(tmp_path, _file(hidden, "PNG")), 0, 4, rng=None, smallest=1.0).max() == 0
    for image, kind in (
        (Image.new("L", (9, 9), 7), "JPEG"),
        (Image.new("CMYK", (9, 9)), "JPEG"),
        (Image.new("1", (1, 9)), "PNG"),
    ):
        assert square_of(
            _one(tmp_path, _file(image, kind)), 0, 4, rng=np.random.default_rng(0), smallest=0.1
        ).shape == (4, 4, 3)
    wide = _file(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG")
    with pytest.raises(UserError, match=r"train.tar: x.png: has more than 8 bits a value"):
        square_of(_one(tmp_path, wide), 0, 4, rng=None, smallest=1.0)
    for broken in (b"", b"no image", stripes(0)[0][:900], _file(Image.new("RGB", (99, 99)), "JPEG")[:700]):
        with pytest.raises(UserError, match=r"train.tar: x.png: cannot be decoded \("):
            square_of(_one(tmp_path, broken), 0, 4, rng=None, smallest=1.0)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 900).astype(np.uint8)[:, None, None], (1, 900, 3))
    files = _one(tmp_path, _file(Image.fromarray(ramp), "JPEG", quality=95))
    found = square_of(files, 0, 32, rng=None, smallest=1.0)
    assert (
        np.abs(found.astype(int) - np.asarray(Image.fromarray(ramp).resize((32, 32), Image.Resampling.BILINEAR))).max()
        <= 3
    )


@pytest.mark.parametrize("size", [(40, 36), (1, 500), (500, 3), (2, 2)])
def test_crops_lie_inside_and_keep_their_share(tmp_path, size):
    from flyspeck.data.labelled_files import _rectangle

    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = _rectangle(size, rng, 0.25)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        if min(size) > 30:
            assert 0.23 <= (right - left) * (bottom - top) / (size[0] * size[1]) <= 1
            assert 0.7 <= (right - left) / (bottom - top) <= 1.4
