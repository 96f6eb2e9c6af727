"""One HTML file that explains runs: no server, no network, nothing to install. Opens from disk in any browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flyspeck import boxes as box_algebra
from flyspeck.errors import UserError, counted
from flyspeck.evaluate.learning_curve import remarks
from flyspeck.files import write_text
from flyspeck.report import figures as fig
from flyspeck.report import tables
from flyspeck.report.chosen import chosen_section
from flyspeck.report.crops import ShownImage, data_uri, image, to_html, worst_images
from flyspeck.report.diagnosis import FATES, LOOKS, SIZES, Curve, Rate, RunDiagnosis, diagnose, miss_rates
from flyspeck.report.differences import differences
from flyspeck.report.gains import gains_figure
from flyspeck.report.runs import RunReport
from flyspeck.report.similarity import similarity_figure, similarity_history
from flyspeck.size_bins import in_bins
from flyspeck.version import VERSION

# What the page may do is stated in the page: run its own script, show its own images, and reach nothing else.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A section beside the report's own: what to say, and an annotated image, a table or both."""

    heading: str
    text: str
    image: Image.Image | None = None
    alternative: str = ""
    """What a screen reader says for the image."""
    table: str = ""
    """HTML, of `flyspeck.report.tables`."""


def build_report(
    runs: Sequence[RunReport],
    out: Path | str,
    *,
    images: int = 40,
    title: str = "flyspeck report",
    opening: Sequence[Section] = (),
    appendices: Sequence[Section] = (),
) -> Path:
    """Write the report on one or several `runs` to the file `out` and return its path.

    Runs are compared side by side; they must have been measured on the same images. The `images` on which the first
    run errs most are shown with zoomed crops; image files that cannot be read are listed instead. The page begins with
    the sections of `opening`, and ends with the `appendices`.
    """
    runs = list(runs)
    if not runs:
        raise UserError("no runs to report on")
    _check_alike(runs)
    diagnoses = [diagnose(run) for run in runs]
    shown, problems = worst_images(diagnoses, images)
    sections = [
        *_further("opening", opening),
        ("numbers", "Numbers by size", _numbers(runs)),
        ("why", "What is found and what is lost", _why(diagnoses)),
        ("gains", f"Gained and lost against {runs[0].name}", _gains(diagnoses)),
        ("factors", "Images by chosen factor", _chosen(diagnoses)),
        ("curves", "Curves", _curves(diagnoses)),
        ("data", "Sizes in the data set", _data(runs[0])),
        ("training", "Training", _training(runs)),
        ("images", "Worst images", _images(shown, problems, runs[0].name, diagnoses[0])),
    ]
    sections += _further("appendix", appendices)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, _page(title, runs, [(key, head, body) for key, head, body in sections if body]))
    return out


def _check_alike(runs: Sequence[RunReport]) -> None:
    first = runs[0].annotations
    for run in runs[1:]:
        if run.annotations.classes != first.classes or not np.array_equal(run.annotations.image_ids, first.image_ids):
            raise UserError(
                f"'{run.name}' was measured on other images or classes than '{runs[0].name}'",
                fix="report on them one by one, or give both the same ground truth with --gt",
            )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"two runs are called '{max(names, key=names.count)}'", fix="rename one of their folders")


def _page(title: str, runs: Sequence[RunReport], sections: Sequence[tuple[str, str, str]]) -> str:
    data = runs[0].annotations
    names, source = ", ".join(run.name for run in runs), data.source or "the ground truth"
    lead = f"{names} on {source}: {counted(len(data), 'image')}, {counted(int((~data.ignore).sum()), 'object')}."
    return render_page(title, lead, sections)


def render_page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole page of `sections` (key, heading, HTML text), with its style and script in it; `title` and `lead` are text."""
    style = resources.files("flyspeck.report").joinpath("page.css").read_text(encoding="utf-8")
    script = resources.files("flyspeck.report").joinpath("page.js").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{key}">{escape(head)}</a></li>' for key, head, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{escape(head)}</h2>{text}</section>'
        for key, head, text in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
        f'<style>{style}</style></head><body><a class="skip" href="#main">Skip to the report</a>'
        f'<header><h1>{escape(title)}</h1><p>{escape(lead)}</p><nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main id="main" tabindex="-1">{body}</main><footer><p>flyspeck {VERSION}</p></footer>'
        f"<script>{script}</script></body></html>"
    )


def _numbers(runs: Sequence[RunReport]) -> str:
    """The tables of each protocol, and what is known of the runs."""
    facts = list(dict.fromkeys(key for run in runs for key in run.facts))
    text = tables.by_size(runs) + differences(runs) + tables.counts(runs)
    text += "".join(tables.baselines(run.baselines) for run in runs)
    if len(runs) > 1:
        text = "<p>★ marks the best of several runs; whether a difference may be chance is told below.</p>" + text
    if facts:
        rows = [[key, *(run.facts.get(key, "–") for run in runs)] for key in facts]
        text += tables.table(["run", *(run.name for run in runs)], rows, caption="The runs", words=True)
    return text


def _why(diagnoses: Sequence[RunDiagnosis]) -> str:
    """Recall by size with its interval, and the fate of the objects."""
    scores = "; ".join(f"{d.run.name} {d.working_score:.2f}" for d in diagnoses)
    lead = (
        f"<p>At each run's score of best F1 ({escape(scores)}), IoU 0.5. A label of a few pixels is itself only known to a "
        "pixel: below 12 px, “badly placed” often means a doubtful label.</p>"
    )
    return lead + _recall(diagnoses) + "".join(_fates(d) for d in diagnoses)


def _recall(diagnoses: Sequence[RunDiagnosis]) -> str:
    groups = list(SIZES)
    rates = [[d.recall(name) for name in groups] for d in diagnoses]
    bars = [
        fig.Bars(d.run.name, [100 * r.value for r in row], [(100 * r.low, 100 * r.high) for r in row])
        for d, row in zip(diagnoses, rates, strict=True)
    ]
    chart = fig.bar_chart(
        bars,
        groups,
        title="Objects found by size",
        description="Share of objects found at IoU 0.5, in percent, by size in pixels, with 95 % intervals. "
        "The table below has the values.",
        x_label="size, px",
        y_label="found, %",
        y_range=(0, 108),
    )

    def shown(rate: Rate) -> str:
        return f"{tables.percent(rate.value)} ({tables.percent(rate.low)}–{tables.percent(rate.high)})"

    rows = [[name, str(rates[0][g].count), *(shown(row[g]) for row in rates)] for g, name in enumerate(groups)]
    caption = "Objects found in percent, with 95 % intervals from resampling images"
    data = tables.table(["size, px", "objects", *(d.run.name for d in diagnoses)], rows, caption=caption)
    return _figure("Found, with 95 % intervals", chart, "The values", data)


def _fates(diagnosis: RunDiagnosis) -> str:
    groups, fates, name = list(SIZES), diagnosis.fate_of_objects(), diagnosis.run.name
    chart = fig.stacked_bars(
        [fig.Bars(fate, [fates[group][fate] for group in groups]) for fate in FATES],
        groups,
        title=f"What became of the objects: {name}",
        description="Share of objects by size that were found, badly placed, called another class, or missed. "
        "The table below has the counts.",
        x_label="size, px",
        y_label="objects, %",
    )
    rows = [[group, *(str(fates[group][fate]) for fate in FATES)] for group in groups]
    caption = f"Objects by fate: {name}; false alarms: {len(diagnosis.false_alarms)}"
    return _figure(
        f"{name}: what became of the objects",
        chart,
        "The counts",
        tables.table(["size, px", *FATES], rows, caption=caption),
    )


def _gains(diagnoses: Sequence[RunDiagnosis]) -> str:
    """What every other run finds that the first does not; nothing for a single run."""
    parts = [gains_figure(diagnoses[0], other) for other in diagnoses[1:]]
    lead = "<p>Each run at its score of best F1, IoU 0.5.</p>" if parts else ""
    return lead + "".join(f"{chart}{_behind('The counts', data)}" for chart, data in parts)


def _chosen(diagnoses: Sequence[RunDiagnosis]) -> str:
    """Of runs that choose their factors, the images of each; nothing where none does."""
    parts = [(d.run.name, chosen_section(d, d.run.chosen)) for d in diagnoses if d.run.chosen is not None]
    return "".join(
        (f"<p><strong>{escape(name)}</strong></p>" if len(diagnoses) > 1 else "") + text for name, text in parts
    )


def _curves(diagnoses: Sequence[RunDiagnosis]) -> str:
    """Precision over recall, and miss rate over false positives, by size."""
    return "".join(_precision_recall(d) + _miss_rate(d) for d in diagnoses)


def _precision_recall(diagnosis: RunDiagnosis) -> str:
    lines, name = [diagnosis.precision_recall(group) for group in ("all", *SIZES)], diagnosis.run.name
    chart = fig.line_chart(
        [_line(c, c.y) for c in lines],
        title=f"Precision over recall: {name}",
        description="Precision in percent over recall in percent at IoU 0.5, one line a size, mean of the classes.",
        x_label="recall, %",
        y_label="precision, %",
        x_range=(0, 100),
        y_range=(0, 100),
    )
    points = (0, 25, 50, 75, 90)
    rows = [[c.name, *(tables.number(float(c.y[k])) for k in points)] for c in lines]
    head = ["size, px", *(f"at recall {k} %" for k in points)]
    data = tables.table(head, rows, caption=f"Precision in percent: {name}")
    return _figure(f"{name}: precision over recall", chart, "The values", data)


def _miss_rate(diagnosis: RunDiagnosis) -> str:
    lines, name = miss_rates(diagnosis.run), diagnosis.run.name
    chart = fig.line_chart(
        [_line(c, np.maximum(c.y, 0.1)) for c in lines],
        title=f"Miss rate over false positives: {name}",
        description="Share of objects missed, in percent, over false positives per image at IoU 0.5, both logarithmic, "
        "one line a size.",
        x_label="false positives per image",
        y_label="miss rate, %",
        x_range=(0.01, 1),
        y_range=(_axis_start(lines), 100),
        x_log=True,
        y_log=True,
    )
    rows = [[c.name, *(tables.number(float(v)) for v in c.y)] for c in lines]
    head = ["size", *(f"{v:.3g}" for v in (lines[0].x if lines else ()))]
    data = tables.table(head, rows, caption=f"Miss rate in percent at false positives per image: {name}")
    return _figure(f"{name}: miss rate", chart, "The values", data)


def _line(curve: Curve, y: np.ndarray) -> fig.Series:
    """A size's curve, which looks the same in every figure."""
    return fig.Series(curve.name if curve.name == "all" else f"{curve.name} px", curve.x, y, LOOKS[curve.name])


def _axis_start(curves: Sequence[Curve]) -> float:
    """Where a logarithmic axis of percent begins, so that the curves fill it."""
    least = min((float(curve.y.min()) for curve in curves), default=1.0)
    return next((start for start in (50.0, 20.0, 10.0, 5.0, 2.0) if start <= least), 1.0)


def _data(run: RunReport) -> str:
    """How large the objects are."""
    table = run.annotations
    objects = ~table.ignore & ~table.crowd & (table.labels >= 0)
    sizes = box_algebra.size(table.boxes[objects])
    if not len(sizes):
        return "<p>The ground truth has no objects.</p>"
    edges = [0, 2, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, np.inf]
    counts = in_bins(box_algebra.area(table.boxes[objects]), edges)
    names = [f"{a:g}–{b:g}" if np.isfinite(b) else f"{a:g} and more" for a, b in pairwise(edges)]
    regions = int((~objects).sum())
    small = f"{100 * (sizes <= 20).mean():.0f} % at most 20 px"
    chart = fig.bar_chart(
        [fig.Bars("objects", counts.astype(float).tolist())],
        [f"{a:g}" for a in edges[:-1]],
        title="Objects by size",
        description="Number of objects by the square root of their area in pixels. The table below has the counts.",
        x_label="size from, px",
        y_label="objects",
    )
    rows = [[name, str(int(n)), tables.percent(n / len(sizes))] for name, n in zip(names, counts, strict=True)]
    data = tables.table(["size, px", "objects", "%"], rows, caption="Objects by size")
    per_class = []
    for k, name in enumerate(table.classes):
        mine = sizes[table.labels[objects] == k]
        per_class.append([name, str(len(mine)), tables.number(float(mine.mean())) if len(mine) else "–"])
    classes = tables.table(["class", "objects", "mean size, px"], per_class, caption="Objects by class")
    text = (
        f"<p>{counted(len(sizes), 'object')} in {counted(len(table), 'image')}; "
        f"sqrt(area) {sizes.mean():.1f} ± {sizes.std():.1f} px, {small}; "
        f"{regions} ignore region{'s' * (regions != 1)}.</p>"
    )
    return f'{text}{_figure("Objects by size", chart, "The counts", data)}<div class="half">{classes}</div>'


def _training(runs: Sequence[RunReport]) -> str:
    """Loss and metrics over the epochs; nothing where no run has a history."""
    if not any(run.history for run in runs):
        return ""
    keys = dict.fromkeys(k for run in runs for record in run.history for k in record.get("metrics", {}))
    wanted = [k for k in ("ap50_tiny", "ap50_all") if k in keys] or list(keys)[:2]
    parts = []
    for key in (None, *wanted):
        head, unit = (key, f"{key}, %") if key else ("training loss", "loss")
        chart = fig.line_chart(
            [fig.Series(run.name, *_history(run, key)) for run in runs],
            title=f"{head} over the epochs",
            description=f"{unit} over the epochs, one line a run. The table below has the values.",
            x_label="epoch",
            y_label=unit,
        )
        parts.append(f'<figure class="half"><h3>{escape(head)}</h3>{chart}</figure>')
    for run in runs:
        if likeness := similarity_history(run.history):
            chart, data = similarity_figure(run.name, likeness, heading=f"similarity to the teacher, {run.name}")
            parts += [chart, _behind(f"Similarity by level, {run.name}", data)]
    rows = []
    for run in runs:
        for record in run.history:
            cells = [tables.percent(record.get("metrics", {}).get(k)) for k in wanted]
            seconds = tables.number(float(record.get("seconds", np.nan)))
            rows.append([f"{run.name}, {record['epoch']}", tables.number(_loss(record)), *cells, seconds])
    for run in runs:
        parts += [f'<p class="note">{escape(run.name)}: {escape(line)}.</p>' for line in remarks(run.history, run.best)]
    head = ["run, epoch", "loss", *(f"{k}, %" for k in wanted), "seconds"]
    return "".join(parts) + _behind("The values", tables.table(head, rows, caption="Epochs"))


def _loss(record: Mapping[str, Any]) -> float:
    losses = record.get("losses", {})
    return float(sum(losses.values())) if losses else float("nan")


def _history(run: RunReport, metric: str | None) -> tuple[list[float], list[float]]:
    """Epochs, and the summed loss or a metric in percent."""
    records = [r for r in run.history if metric is None or metric in r.get("metrics", {})]
    values = [_loss(r) if metric is None else 100 * float(r["metrics"][metric]) for r in records]
    return [float(r["epoch"]) for r in records], values


def _images(images: Sequence[ShownImage], problems: Sequence[str], run: str, diagnosis: RunDiagnosis) -> str:
    """The filter and the images."""
    notes = ""
    if problems:
        notes = f'<p class="note">{counted(len(problems), "image")} could not be read: {escape(problems[0])}</p>'
    if not images:
        return notes + ("" if problems else "<p>No object is lost and nothing is wrong.</p>")
    order = [*(f"lost {name}" for name in SIZES), "false alarm", *diagnosis.run.annotations.classes]
    tags = [tag for tag in order if any(tag in p.tags for p in images)]
    radios = "".join(
        f'<label><input type="radio" name="show" value="{escape(tag, quote=True)}"{" checked" if not tag else ""}> '
        f"{escape(f'{tag} px' if tag.startswith('lost') else tag) or 'all'}</label>"
        for tag in ("", *tags)
    )
    legend = (
        "<p>Solid boxes are objects found and detections that count; dashed ones are lost objects and false alarms; grey "
        "dashes are ignore regions. In the overview, circles are lost objects and squares false alarms.</p>"
    )
    articles = "".join(to_html(one, number) for number, one in enumerate(images, 1))
    return (
        f"<p>The {counted(len(images), 'image')} with the most errors of {escape(run)}.</p>{legend}{notes}"
        f'<form id="filter"><fieldset><legend>Show images with</legend>{radios}</fieldset></form>'
        f'<p id="shown" role="status" aria-live="polite">{len(images)} of {len(images)} images shown.</p>{articles}'
    )


def _further(place: str, sections: Sequence[Section]) -> list[tuple[str, str, str]]:
    """Key, heading and HTML of sections that are not the report's own."""
    return [(f"{place}-{number}", extra.heading, _section(extra)) for number, extra in enumerate(sections, 1)]


def _section(extra: Section) -> str:
    seen = "" if extra.image is None else image(data_uri(extra.image), extra.alternative)
    return f"<p>{escape(extra.text)}</p>{extra.table}" + (f'<div class="views">{seen}</div>' if seen else "")


def _figure(head: str, chart: str, summary: str, data: str) -> str:
    """A chart under its heading, with its numbers behind a summary."""
    return f'<figure class="half"><h3>{escape(head)}</h3>{chart}{_behind(summary, data)}</figure>'


def _behind(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
