"""Which images are called the same, nearly the same, or too plain to say."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from flyspeck.data.checks import near
from flyspeck.data.checks.fingerprints import (
    Fingerprints,
    difference_hash,
    fingerprint,
    pixel_digest,
    spread,
    structure,
)
from flyspeck.data.checks.leaks import same_content
from flyspeck.data.checks.near import compare, join, keep_best, near_pairs
from flyspeck.data.checks.parts import ImageFiles
from flyspeck.data.scenes import generate_scene
from flyspeck.errors import UserError


@lru_cache
def scene(seed: int, kind: str = "field") -> np.ndarray:
    return generate_scene(seed, height=192, width=256, kind=kind).pixels


def jpeg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def noisy(pixels: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, 8, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "brighter": lambda p: (p * 0.7 + 60).astype(np.uint8),
    "less contrast": lambda p: (p * 0.4).astype(np.uint8),
    "jpeg": jpeg,
    "half the size": lambda p: np.asarray(Image.fromarray(p).resize((128, 96), Image.Resampling.BILINEAR)),
    "twice the size": lambda p: np.asarray(Image.fromarray(p).resize((512, 384), Image.Resampling.BICUBIC)),
    "shifted by 1 px": lambda p: np.roll(p, 1, 1),
    "shifted by 2 px": lambda p: np.roll(p, (2, 2), (0, 1)),
    "noise": noisy,
    "grey": lambda p: np.repeat(np.asarray(Image.fromarray(p).convert("L"))[..., None], 3, 2),
}


def saved(folder: Path, images: dict[str, np.ndarray]) -> list[Path]:
    paths = []
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / name)
        paths.append(folder / name)
    return paths


def groups_of(paths: list[Path]) -> np.ndarray:
    prints = fingerprint(paths)
    return compare(prints, np.ones((len(paths), 1), dtype=bool)).group


def test_changed_copies_are_near_and_other_scenes_are_not(tmp_path: Path) -> None:
    images = {f"{seed}.png": scene(seed, kind) for seed, kind in enumerate(["field", "road", "field", "road"])}
    for name, change in CHANGES.items():
        images[f"{name}.png"] = change(images["0.png"])
        images[f"road {name}.png"] = change(images["1.png"])
    group = groups_of(saved(tmp_path, images))
    assert_array_equal(group, [0, 1, 2, 3] + [0, 1] * len(CHANGES))


def test_frames_of_sea_are_not_near(tmp_path: Path) -> None:
    images = {f"{seed}.png": scene(seed, "sea") for seed in range(12)}
    paths = saved(tmp_path, images)
    assert_array_equal(groups_of(paths), np.arange(12))


def test_images_of_nothing_are_plain_and_never_near(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:120, 0:160]
    blank = np.full((120, 160, 3), 90, np.uint8)
    grain = [(90 + rng.normal(0, 6, blank.shape)).round().clip(0, 255).astype(np.uint8) for _ in range(6)]
    light = [(v + 40 * np.hypot(x - 80, y - 60) ** 2 / 1e4)[..., None].repeat(3, 2).astype(np.uint8) for v in (60, 90)]
    bird = blank.copy()
    bird[50:54, 70:74] = 10
    images = {f"{n}.png": pixels for n, pixels in enumerate([blank, blank + 20, *grain, *light, bird])}
    paths = saved(tmp_path, images)
    prints = fingerprint(paths)
    assert prints.plain.all()
    assert compare(prints, np.ones((len(paths), 1), dtype=bool)).pairs == 0


def test_plain_images_are_the_same_by_their_pixels(tmp_path: Path) -> None:
    black, grey = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 9, np.uint8)
    paths = saved(tmp_path, {"a.png": black, "b.bmp": black, "c.png": grey, "d.webp": grey, "e.png": black[:32]})
    files = ImageFiles(tuple(paths), np.ones((5, 1), dtype=bool), (np.arange(5),), (None,) * 5)
    assert_array_equal(same_content(files, fingerprint(paths))[:3], [0, 0, 2])
    assert same_content(files, fingerprint(paths))[4] == 4
    assert pixel_digest(paths[0]) == pixel_digest(paths[1])


def test_the_same_pixels_in_another_file_are_the_same(tmp_path: Path) -> None:
    one, two = scene(0), scene(2)
    paths = saved(tmp_path, {"a.png": one, "b.bmp": one, "c.png": two, "d.png": one + np.uint8(1)})
    (tmp_path / "e.png").write_bytes((tmp_path / "c.png").read_bytes())
    paths.append(tmp_path / "e.png")
    files = ImageFiles(tuple(paths), np.ones((5, 1), dtype=bool), (np.arange(5),), (None,) * 5)
    assert_array_equal(same_content(files, fingerprint(paths)), [0, 0, 2, 3, 2])


def test_files_that_cannot_be_read_are_named_and_near_nothing(tmp_path: Path) -> None:
    paths = saved(tmp_path, {"a.png": scene(0), "b.png": scene(0)})
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    prints = fingerprint([*paths, tmp_path / "broken.png", tmp_path / "gone.png"])
    assert len(prints.problems) == 2
    assert_array_equal(prints.readable, [True, True, False, False])
    assert_array_equal(compare(prints, np.ones((4, 1), dtype=bool)).group, [0, 0, 2, 3])


def test_deep_images_of_16_bits_have_structure(tmp_path: Path) -> None:
    thermal = (29000 + 4 * scene(0)[..., 0].astype(np.int64)).astype(np.uint16)
    Image.fromarray(thermal).save(tmp_path / "a.png")
    Image.fromarray(scene(0)).save(tmp_path / "b.png")
    prints = fingerprint([tmp_path / "a.png", tmp_path / "b.png"])
    assert not prints.plain.any()
    assert compare(prints, np.ones((2, 1), dtype=bool)).group[1] == 0


def test_a_hash_by_hand() -> None:
    # Brightness falls to the right in the upper half, rises in the lower: no bit there, every bit here.
    ramp = np.tile(np.arange(32.0), (32, 1))
    small = np.concatenate([-ramp[:16], ramp[16:]])
    bits = np.unpackbits(difference_hash(small).view(np.uint8)).reshape(16, 16)
    assert not bits[:8].any()
    assert bits[8:].all()


def test_spread_by_hand() -> None:
    assert spread(np.ones((32, 32))) == 1024
    few = np.zeros((32, 32))
    few[3, 5:9] = 2
    assert spread(few) == 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 50, 1), (50, 1, 3), (7, 5, 4), (33, 31, 1)])
def test_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    found = structure(pixels)
    assert found is None or (found.shape == (32, 32) and np.isfinite(found).all())


def made(count: int, seed: int) -> Fingerprints:
    """Fingerprints that fall into clusters, some plain, some sparse."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, 1024))
    cells = centres[rng.integers(0, 6, count)] + rng.normal(0, 0.4, (count, 1024))
    cells /= np.linalg.norm(cells, axis=1, keepdims=True)
    bits = np.array([difference_hash(row.reshape(32, 32)) for row in cells], dtype=np.uint64).reshape(count, 4)
    none = (b"",) * count
    return Fingerprints(
        bits, cells.astype(np.float16), rng.random(count) < 0.1, rng.random(count) < 0.2, none, none, ()
    )


def slow_pairs(prints: Fingerprints, alike: float, max_bits: int) -> set[tuple[int, int]]:
    found = set()
    for i in range(len(prints.bits)):
        for j in range(i + 1, len(prints.bits)):
            least = max(alike, near.SPARSE_ALIKE) if prints.sparse[i] or prints.sparse[j] else alike
            differ = sum(
                int(a ^ b).bit_count() for a, b in zip(prints.bits[i].tolist(), prints.bits[j].tolist(), strict=True)
            )
            r = float(prints.cells[i].astype(np.float64) @ prints.cells[j].astype(np.float64))
            if not prints.plain[i] and not prints.plain[j] and differ <= max_bits and r >= least:
                found.add((i, j))
    return found


@settings(max_examples=40)
@given(st.integers(0, 40), st.integers(0, 5), st.sampled_from([7, 16, 1000]), st.sampled_from([0.0, 2.0]))
def test_blocks_find_what_a_loop_finds(count: int, seed: int, block: int, dense: float) -> None:
    prints = made(count, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "_ROWS", block)
        patch.setattr(near, "_COLUMNS", 2 * block)
        patch.setattr(near, "_DENSE", dense)
        blocks = list(near_pairs(prints, alike=0.8, max_bits=90))
        pairs = [(int(a), int(b)) for rows, columns, _ in blocks for a, b in zip(rows, columns, strict=True)]
        member = np.random.default_rng(seed).random((count, 2)) < 0.6
        found = compare(prints, member, max_bits=90)
    expected = slow_pairs(prints, 0.8, 90)
    assert len(pairs) == len(set(pairs)) == found.pairs
    assert set(pairs) == expected
    names = np.arange(count)
    for _ in range(count):
        for a, b in expected:
            names[[a, b]] = min(names[a], names[b])
    assert_array_equal(found.group, names)
    for part in range(2):
        having = {a for pair in expected for a, b in (pair, pair[::-1]) if member[b, part]}
        assert set(np.flatnonzero(found.partner[:, part] >= 0).tolist()) == having
        for a in having:
            b = int(found.partner[a, part])
            assert (min(a, b), max(a, b)) in expected
            assert member[b, part]


def test_the_best_partner_stays() -> None:
    best, partner = np.array([0.5, 0, 0.9]), np.array([7, -1, 8])
    keep_best(best, partner, np.array([0, 0, 2, 1]), np.array([4, 5, 6, 3]), np.array([0.6, 0.7, 0.8, 0.4]))
    assert_array_equal(best, [0.7, 0.4, 0.9])
    assert_array_equal(partner, [5, 3, 8])


def test_groups_join_by_way_of_others() -> None:
    group = np.arange(6)
    join(group, np.array([4, 1, 2]), np.array([5, 4, 3]))
    assert_array_equal(group, [0, 1, 2, 2, 1, 1])


def test_a_threshold_below_a_half_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.3 is no threshold of likeness"):
        compare(made(3, 0), np.ones((3, 1), dtype=bool), alike=0.3)
