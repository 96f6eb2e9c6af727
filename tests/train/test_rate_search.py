"""The range test: its rule on curves of known shape, and a real one from the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.train.config import Recipe, dump_recipe
from flyspeck.train.rate_search import find_rate, judged, smoothed

RATES = np.geomspace(1e-5, 1, 101)


def course(fall: float, width: float, breaks: float) -> np.ndarray:
    """A loss of 2 that falls to 1 around `fall` within `width` decades, and grows from `breaks` on."""
    decades = np.log10(RATES)
    drop = 1 / (1 + np.exp(-(decades - math.log10(fall)) * 4 / width))
    return 2 - drop + 0.5 * np.maximum(0, decades - math.log10(breaks)) ** 2 * 10


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize(("fall", "breaks"), [(1e-3, 1e-1), (1e-2, 2e-1), (1e-4, 1e-2)])
def test_the_steepest_fall_is_found(fall: float, breaks: float, noise: float) -> None:
    """Ten steps of a running mean come 0.05 decades each after what they follow: half a decade late at most."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        found = judged(RATES.tolist(), (course(fall, 1.0, breaks) + rng.normal(0, noise, 101)).tolist())
        assert -0.3 <= math.log10(found.lr / fall) <= 0.7
        assert found.lr < found.lowest < 8 * breaks
        assert len(f"{found.lr:.1e}") == 7
        assert float(f"{found.lr:.1e}") == found.lr


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (np.full(101, 2.0), "falls nowhere between 1e-05 and 1"),
        (np.linspace(1, 3, 101), "falls nowhere"),
        (np.full(8, 2.0), "broke after 8 steps.*lower --low"),
    ],
)
def test_a_curve_that_says_nothing_is_refused(losses: np.ndarray, said: str) -> None:
    with pytest.raises(UserError, match=said):
        judged(RATES[: len(losses)].tolist(), losses.tolist())


def test_the_running_mean_by_hand() -> None:
    """Of 1 and 3: (0.1 1) / 0.1, then (0.9 0.1 + 0.1 3) / (1 - 0.81) = 0.39 / 0.19."""
    assert smoothed([1.0, 3.0]) == pytest.approx([1.0, 0.39 / 0.19])


def test_a_search_from_the_command_line(
    make_recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(train={"optimizer": "adamw", "accumulate": 2})
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe))
    out = tmp_path / "found"
    assert main(["tune", "lr", str(tmp_path / "r.yaml"), "--steps", "40", "--out", str(out)]) == 0
    said = capsys.readouterr()
    content = json.loads((out / "lr.json").read_text())
    assert f"--set train.lr={content['lr']:g} changes it" in said.out
    assert 1e-5 <= content["lr"] < content["lowest"] <= 0.1
    assert content["rates"][0] == pytest.approx(1e-6)
    assert len(content["rates"]) == len(content["losses"]) <= 40
    assert content["losses"][-1] < content["losses"][0] or len(content["rates"]) < 40
    page = (out / "lr.html").read_text()
    assert f"train.lr={content['lr']:g}" in page
    assert "<polyline" in page
    assert "default-src 'none'" in page
    assert main(["tune", "lr", str(tmp_path / "r.yaml"), "--low", "1", "--high", "0.1"]) == 2
    assert "rates from 1 to 0.1" in capsys.readouterr().err


def test_a_rate_far_too_high_breaks_and_says_so(make_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="tune lr"):
        find_rate(make_recipe(train={"clip_grad": None}), low=1e3, high=1e9, steps=20)
