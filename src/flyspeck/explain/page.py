"""The page of `flyspeck explain`: one HTML file with every sheet and number in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from flyspeck.explain.cases import Case
from flyspeck.explain.subjects import Subject
from flyspeck.report import tables
from flyspeck.report.crops import data_uri, image
from flyspeck.report.html import render_page
from flyspeck.report.similarity import similarity_figure


@dataclass(frozen=True)
class Shown:
    """A case as it was drawn."""

    file: str
    """Name of its PNG."""
    title: str
    image: Image.Image
    case: Case
    shares: dict[str, dict[str, dict[str, float]]]
    """Model to method to level to its share of the evidence."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values, without the image."""
        return {
            "file": self.file,
            "kind": self.case.kind,
            "reason": self.case.reason,
            "window": list(self.case.window),
            "evidence": self.shares,
        }


def build_page(subjects: Sequence[Subject], shown: Sequence[Shown], numbers: dict[str, Any], source: str) -> str:
    """The page's HTML. `numbers` is what `run.measure` returned."""
    names = [s.name for s in subjects]
    sections = [("cases", "Cases", _cases(shown))]
    if numbers["attention"]:
        sections.append(("attention", "Attention on objects", _attention(numbers["attention"], numbers["sample"])))
    if numbers["similarity"]:
        sections.append(("similarity", "Feature similarity", _similarity(numbers["similarity"], names)))
    curves = "".join(_history(s) for s in subjects if s.history)
    if curves:
        sections.append(("training", "Similarity through training", curves))
    kinds = " and ".join(dict.fromkeys(s.case.kind for s in shown))
    lead = f"{' and '.join(names)} on {source or 'the images'}: {len(shown)} cases, {kinds}."
    return render_page("What the detector looks at", lead, sections)


def _cases(shown: Sequence[Shown]) -> str:
    lead = (
        "<p>Blue: annotated, green: found. Grad-CAM and LayerCAM show what speaks for the detections. Grad-CAM weighs whole "
        "channels, so that it lights up every place that looks like the objects to the network; LayerCAM weighs each cell, "
        "and stays where the evidence was. Attention is the strength of a level's features, whatever they speak for. Each "
        "heat map is scaled to its own highest values. The table under a sheet says on which level of the pyramid the evidence "
        "lies.</p>"
    )
    parts = []
    for number, one in enumerate(shown, 1):
        rows = [(f"{model}, {method}", share) for model, ways in one.shares.items() for method, share in ways.items()]
        levels = list(dict.fromkeys(level for _, share in rows for level in share))
        cells = [[name, *(tables.percent(share.get(level)) for level in levels)] for name, share in rows]
        table = tables.table(["model", *levels], cells, caption="Evidence by level, %")
        alt = f"{one.title}: heat maps of {', '.join(one.shares)}; the PNG beside this page is {one.file}"
        parts.append(
            f'<article class="image" aria-labelledby="c{number}"><h3 id="c{number}">{escape(one.title)}</h3>'
            f'<div class="views">{image(data_uri(one.image), alt)}</div>{table}</article>'
        )
    return lead + "".join(parts)


def _attention(attention: dict[str, dict[str, float]], sample: int) -> str:
    levels = list(dict.fromkeys(level for values in attention.values() for level in values))
    nan = float("nan")
    rows = [[level, *(tables.number(values.get(level, nan)) for values in attention.values())] for level in levels]
    text = (
        f"<p>The share of a level's attention that lies under annotated objects, over the share of the area that they "
        f"are: 1 is chance. Means over {sample} images.</p>"
    )
    return text + tables.table(["level", *attention], rows, caption="Attention on objects, times chance")


def _similarity(similarity: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    rows = [
        [
            one["level"],
            tables.number(one["cka"]),
            str(one["cells"]),
            tables.number(one["cka_objects"]),
            str(one["object_cells"]),
        ]
        for one in similarity
    ]
    head = ["level", "all cells", "cells compared", "cells under objects", "of these"]
    text = (
        "<p>Linear CKA: 1 where the maps of a level hold the same up to a rotation of their channels, 0 where they have "
        "nothing in common. It needs no adapter between models of different widths.</p>"
    )
    return text + tables.table(head, rows, caption=f"Linear CKA of {' and '.join(names)}")


def _history(subject: Subject) -> str:
    chart, data = similarity_figure(subject.name, subject.history, heading=subject.name)
    return chart + data
