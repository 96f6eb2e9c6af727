"""Images by chosen factor: what is read, what is counted, what is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyspeck.errors import UserError
from flyspeck.report import RunReport, build_report
from flyspeck.report.chosen import chosen_section
from flyspeck.report.diagnosis import diagnose
from flyspeck.report.runs import CHOSEN, ChosenFactors, read_chosen


def write(folder: Path, ids: list[Any], **changes: Any) -> None:
    """What `flyspeck dpnet fit` leaves: every third image at 0.25, the others at 0.5."""
    chosen = [0.25 if k % 3 == 0 else 0.5 for k in range(len(ids))]
    content = {"factors": [0.5, 0.25], "image_ids": ids, "probabilities": [[0.5, 0.5]] * len(ids), "chosen": chosen}
    (folder / CHOSEN).write_text(json.dumps({**content, **changes}))


def test_choices_come_in_the_order_of_the_table(runs: list[RunReport], tmp_path: Path) -> None:
    table = runs[0].annotations
    ids = [int(i) for i in table.image_ids]
    assert read_chosen(tmp_path, table) is None
    write(tmp_path, ids[::-1])
    found = read_chosen(tmp_path, table)
    assert found is not None
    assert found.factors == (0.5, 0.25)
    assert found.places.tolist() == [int((len(ids) - 1 - k) % 3 == 0) for k in range(len(ids))]


def test_choices_of_other_images_or_of_no_images(runs: list[RunReport], tmp_path: Path) -> None:
    table = runs[0].annotations
    ids = [int(i) for i in table.image_ids]
    write(tmp_path, ids[1:])
    assert read_chosen(tmp_path, table) is None
    write(tmp_path, ids, chosen=[0.33] * len(ids))
    with pytest.raises(UserError, match="not a list of chosen factors"):
        read_chosen(tmp_path, table)
    (tmp_path / CHOSEN).write_text("{")
    with pytest.raises(UserError, match="fit the predictor again"):
        read_chosen(tmp_path, table)


def test_the_section_counts_and_shows(runs: list[RunReport], tmp_path: Path) -> None:
    run = runs[0]
    places = (np.arange(len(run.annotations)) % 3 == 0).astype(np.int64)
    chosen = ChosenFactors((0.5, 0.33, 0.25), places)
    text = chosen_section(diagnose(run), chosen, each=2)
    assert "Factor 0.5: 8 of 12 images" in text
    assert "Factor 0.33: 4 of 12 images" in text
    assert "Factor 0.25: 0 of 12 images" in text
    assert text.count("<figure") == 4  # two of each that has images
    objects = ~run.annotations.ignore & ~run.annotations.crowd & (run.annotations.labels >= 0)
    mine = objects & (run.annotations.image_index % 3 == 0)
    assert f"<td>{mine.sum() / 4:.4g}</td>" in text
    page = build_report([replace(run, chosen=chosen)], tmp_path / "r.html", images=0).read_text(encoding="utf-8")
    assert 'id="factors"' in page
    assert 'id="factors"' not in build_report([run], tmp_path / "o.html", images=0).read_text(encoding="utf-8")


def test_images_that_cannot_be_read_are_said(runs: list[RunReport]) -> None:
    table = replace(runs[0].annotations, file_names=tuple(f"gone/{n}" for n in runs[0].annotations.file_names))
    run = replace(runs[0], annotations=table)
    text = chosen_section(diagnose(run), ChosenFactors((0.5,), np.zeros(len(table), np.int64)), each=3)
    assert "3 could not be read" in text
    assert "<figure" not in text
