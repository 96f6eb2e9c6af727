"""Files that are no mishap: huge lists, bombs, numbers beyond 64 bits, and places where no file lies or none may be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzz_seeds import CVAT, VOC, seeds, write
from test_fuzz_readers import outcome, printable

from flyspeck.data.readers import READERS, read_annotations
from flyspeck.errors import UserError

BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
BOMB = f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{BOMB}]>'
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [],
    "categories": [{"id": 1, "name": "p"}],
}


def told(source: Path, format: str | None = None) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(UserError) as caught:
        read_annotations(source, format=format)
    printable(str(caught.value))
    return str(caught.value)


def dump(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "text", [BOMB + VOC.replace("car", "&e11;"), VOC.replace("<annotation", BOMB + "<annotation", 1)]
)
def test_entities_that_grow(tmp_path: Path, text: str) -> None:
    dump(tmp_path / "a.xml", text)
    assert outcome(tmp_path / "a.xml", "voc") in ("table with notes", "error")


def test_an_entity_of_another_file_is_not_read(tmp_path: Path) -> None:
    secret = dump(tmp_path / "secret.txt", "secret")
    head = f'<!DOCTYPE annotations [<!ENTITY e SYSTEM "file://{secret}">]>'
    assert "secret" not in told(
        dump(tmp_path / "a.xml", CVAT.replace("<annotations>", f"{head}<annotations>").replace("car", "&e;"))
    )


@pytest.mark.parametrize("key", ["names", "path", "train", "kpt_shape"])
def test_aliases_that_grow(tmp_path: Path, key: str) -> None:
    (tmp_path / "images").mkdir()
    keys = {"train": "images", "names": "[car]", key: "*a59"}
    told(dump(tmp_path / "data.yaml", ALIASES + "".join(f"{name}: {value}\n" for name, value in keys.items())))


@pytest.mark.parametrize(
    "box", [[float("nan"), 1, 2, 3], [1, float("inf"), 2, 3], [1, 2, -float("inf"), 3], [1, 2, 3, 10**400]]
)
def test_numbers_that_are_none(tmp_path: Path, box: list[float]) -> None:
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box}
    table = read_annotations(dump(tmp_path / "a.json", {**COCO, "annotations": [entry]}))
    assert table.num_boxes == 0
    assert "has no box of four finite numbers" in table.problems[0]


def test_ids_beyond_64_bits_stay_apart(tmp_path: Path) -> None:
    numbers = [2**63, 2**64, 2**64 + 1]
    images = [{"id": n, "file_name": f"{n}.png"} for n in numbers]
    boxes = [{"id": n, "image_id": str(n), "category_id": 1.0, "bbox": [1, 2, 3, 4]} for n in numbers]
    table = read_annotations(dump(tmp_path / "a.json", {**COCO, "images": images, "annotations": boxes}))
    assert table.image_index.tolist() == [0, 1, 2]
    assert table.box_ids.tolist() == table.image_ids.tolist() == numbers


@pytest.mark.parametrize("width", ["0", "-5", "1e30", "nan", "9" * 40])
def test_sizes_that_no_image_has_are_unknown(tmp_path: Path, width: str) -> None:
    table = read_annotations(dump(tmp_path / "a.xml", VOC.replace("<width>40", f"<width>{width}")))
    assert table.sizes.tolist() == [[-1, -1]]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**COCO, "categories": [{"id": 1, "name": "\ud83d"}]}))
    assert "half of a character" in told(path)
    path.write_text(json.dumps({**COCO, "categories": [{"id": 1, "name": "\U0001f600"}]}))  # a pair of them is one
    assert read_annotations(path).classes == ("\U0001f600",)


@pytest.mark.parametrize("name", ["a\0b.png", "a\nb.png", "x" * 300 + ".png", "a/" * 3000 + "a.png", "/" * 5000])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    path = dump(tmp_path / "a.json", {**COCO, "images": [{"id": 1, "file_name": name}]})
    assert outcome(path, None) in ("table", "table with notes")


@pytest.mark.parametrize("name", sorted(seeds()))
def test_a_folder_where_a_file_is_expected_and_a_file_where_a_folder_is(name: str, tmp_path: Path) -> None:
    for number, seed in enumerate(seeds()[name]):
        source = write(seed, tmp_path / str(number))
        for file in seed.files:
            path = tmp_path / str(number) / file
            content = path.read_bytes()
            path.unlink()
            path.mkdir()
            assert outcome(source, name) in ("table", "table with notes", "error")
            path.rmdir()
            path.write_bytes(content)
        file = tmp_path / str(number) / next(iter(seed.files))
        for wrong in (file, tmp_path / "nothing", tmp_path / str(number) / seed.images[0] if seed.images else tmp_path):
            assert outcome(wrong, name) in ("table", "table with notes", "error")


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.json").symlink_to(tmp_path / "b.json")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    told(tmp_path / "a.json")
    source = write(seeds()["yolo"][0], tmp_path / "set")
    (source / "images" / "train" / "loop").symlink_to(source / "images")
    (source / "images" / "train" / "c.png").symlink_to(source / "images" / "train" / "c.png")
    assert read_annotations(source).num_boxes == 2


@pytest.mark.skipif(os.name != "posix", reason="needs users and modes")
@pytest.mark.parametrize("name", sorted(READERS))
def test_what_may_not_be_read_is_one_line(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is closed to other users
        seed = seeds()[name][0]
        source = write(seed, Path(place) / "set")
        assert outcome(source, name) == outcome(source, name)  # loads what it needs, which another user may not
        with nobody(Path(place)):
            for path in (Path(place) / "set" / next(iter(seed.files)), Path(place) / "set"):
                before = path.stat().st_mode
                path.chmod(0)
                try:
                    found = outcome(source, name)
                finally:
                    path.chmod(before)
                assert found in ("error", "table with notes")


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Without the rights of root, who may read anything; `folder` belongs to that user."""
    if os.geteuid() != 0:
        yield
        return
    for place, _, files in os.walk(folder):
        for name in (place, *(os.path.join(place, file) for file in files)):
            os.chown(name, 65534, -1)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- 10^7 elements within a memory limit

HUGE = 10_000_000
_READ = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]) << 20,) * 2)
from flyspeck.data.readers import read_annotations
from flyspeck.errors import UserError
try:
    table = read_annotations(sys.argv[1], format=sys.argv[2])
    print(len(table), table.num_boxes, len(table.problems), (table.problems or ("",))[-1])
except UserError as error:
    print("error", error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def read_within(path: Path, name: str, megabytes: int) -> tuple[str, int]:
    """What a process of limited memory says of a file, and its peak in megabytes; a killed or stuck one fails."""
    command = [sys.executable, "-c", _READ, str(path), name, str(megabytes)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    said = done.stdout.rstrip("\n")
    printable(said)
    return said, int(done.stderr.split()[-1])


def huge_files(folder: Path, count: int) -> dict[str, tuple[Path, str]]:
    """By what is huge in it: a file of `count` elements and its format."""
    entry = '{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4]}'
    head, tail = json.dumps(COCO).split('"annotations": []')
    mask = f'{{"id":1,"image_id":1,"category_id":1,"segmentation":[[{"1," * (count - 1)}1]]}}'
    corners = "1,2;" * (count // 2)
    polygon = f'<image id="1" name="a.png"><polygon label="a" points="{corners}1,2"/></image>'
    made = {
        "numbers where annotations should be": ("json", "coco", f'{head}"annotations": [{"0," * (count - 1)}0]{tail}'),
        "a polygon": ("json", "coco", f'{head}"annotations": [{mask}]{tail}'),
        "annotations": ("json", "coco", f'{head}"annotations": [{",".join([entry] * (count // 10))}]{tail}'),
        "a list alone": ("json", "coco", f"[{'0,' * (count - 1)}0]"),
        "nested lists": ("json", "coco", "[" * count),
        "a line of csv": ("csv", "csv", f"image_path,xmin,ymin,xmax,ymax,label\na.png{',1' * count}\n"),
        "lines of csv": ("csv", "csv", "image_path,xmin,ymin,xmax,ymax,label\n" + "a.png,1,2,3,4,x\n" * (count // 10)),
        "names of yaml": ("yaml", "yolo", f"train: .\nnames: [{'a,' * (count - 1)}a]\n"),
        "elements of xml": ("xml", "voc", f"<annotation>{'<a/>' * count}</annotation>"),
        "points of cvat": ("xml", "cvat", f"<annotations>{polygon}</annotations>"),
        "faces that a line promises": ("txt", "wider", f"a.png\n{count * 1000}\n1 2 3 4\n"),
        "a line of odgt": ("odgt", "odgt", f'{{"ID": "a", "gtboxes": [{"0," * (count - 1)}0]}}\n'),
    }  # fmt: skip
    found = {}
    for number, (what, (ending, name, text)) in enumerate(made.items()):
        path = folder / f"{number}.{ending}"
        path.write_text(text)
        found[what] = (path, name)
    return found


def test_large_lists_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    for path, name in huge_files(tmp_path, 20_000).values():
        assert outcome(path, name) in ("table", "table with notes", "error")


@pytest.mark.slow
def test_ten_million_elements_within_a_limit_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, (path, name) in huge_files(tmp_path, HUGE).items():
        for limit in (1200, 6000):
            said, peak = read_within(path, name, limit)
            assert peak <= limit
            with capsys.disabled():
                print(f"\n{what}, {limit} MB allowed: peak {peak} MB, {said[:150]}", end="")
        path.unlink()


def test_what_may_not_be_read_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for its size, where the annotations of a format state none: it may be a pipe or a device."""
    opened: set[Path] = set()
    secret = tmp_path / "secret.png"
    (tmp_path / "home" / "work").mkdir(parents=True)
    secret.write_bytes(b"")
    monkeypatch.chdir(tmp_path / "home" / "work")

    def size(path: Path) -> tuple[int, int]:
        opened.add(path.resolve())
        return 16, 16

    monkeypatch.setattr("flyspeck.data.readers.places.read_size", size)
    reached = set()
    for name, layouts in seeds().items():
        for number, seed in enumerate(layouts):
            texts = {
                path: re.sub(r'((?:height|width|Height|Width)"?[=:>, ]+"?)\d+', r"\g<1>0", text)
                for path, text in seed.files.items()
                if isinstance(text, str)
            }
            texts = {path: re.sub(r"[\w/-]*\ba\.png", "../../../secret.png", text) for path, text in texts.items()}
            folder = Path(f"{name}{number}")
            source = write(replace(seed, files={**seed.files, **texts}), folder)
            opened.clear()
            table = read_annotations(source, format=name)
            if secret not in opened:
                continue
            reached.add(name)
            assert secret in [(table.root / file).resolve() for file in table.file_names]
            opened.clear()
            with pytest.raises(UserError, match="outside of its folder"):
                read_annotations(source, format=name, allow_references=False)
            assert secret not in opened
    assert reached == {"coco", "csv", "cvat", "label-studio", "labelme", "via", "wider", "yolo"}
