"""The report: one file that holds together, and that a browser opens, filters and reads without a complaint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium

from flyspeck.cli.main import main
from flyspeck.errors import UserError
from flyspeck.evaluate import DetectionTable, evaluate
from flyspeck.report import build_report, read_run, read_runs

VOID = {"meta", "link", "img", "input", "br", "path", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers what accessibility needs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.ids: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory) -> Path:
    return build_report(runs, tmp_path_factory.mktemp("report") / "report.html", title='A "title" <i>')


def test_the_page_is_whole_and_reaches_for_nothing(file):
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    sources = [a[key] for tag, a in page.tags for key in ("src", "href") if key in a]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "://" not in re.sub(r"data:[^\"]*", "", text)
    assert "default-src 'none'" in text
    # names and titles are text, not markup
    assert "poor &lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_a_screen_reader_can_walk_it(file):
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("table")) == len(page.of("caption")) > 5
    assert all("scope" in head for head in page.of("th"))
    assert all(image["alt"] for image in page.of("img"))
    for chart in (a for a in page.of("svg") if a.get("role") == "img"):
        assert all(name in page.ids for name in chart["aria-labelledby"].split())
    assert all(target["href"][1:] in page.ids for target in page.of("a"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1  # no level is skipped
    assert re.search(r'role="status" aria-live="polite"', text)


def test_numbers_carry_their_protocol_and_match_the_evaluation(file, runs):
    text = file.read_text(encoding="utf-8")
    assert "Protocol flyspeck: AP at IoU 0.50:0.95, maxDets 200" in text
    for run in runs:
        value = run.evaluation.value(metric="AP", iou=0.5, area="tiny")
        assert f"<td>{100 * value:.1f}" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("needs Chromium or Chrome on the PATH (or FLYSPECK_CHROMIUM)")
    with Browser(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_doubles_and_counts_are_the_evaluations(file, runs):
    text = file.read_text(encoding="utf-8")
    counts = runs[0].evaluation.counts
    assert "two boxes or more" in text
    for area in ("all", "tiny"):
        row = counts.row(area)
        assert row.objects
        assert f"<td>{row.count_error:.2f}</td>" in text
        assert f"<td>{row.count_bias:+.2f}</td>" in text
        assert f"<td>{100 * row.count_share:.1f}</td>" in text


def test_a_browser_opens_filters_and_does_not_complain(browser, file, runs):
    browser.open(file)
    shown = "[...document.querySelectorAll('.image')].filter(p => !p.hidden).length"
    total = browser.run("document.querySelectorAll('.image').length")
    assert browser.run(shown) == total > 3
    tagged = "[...document.querySelectorAll('.image')].filter(p => p.dataset.tags.split('|').includes('boat')).length"
    expected = browser.run(tagged)
    assert 0 < expected < total
    browser.click("input[value=boat]")
    assert browser.run(shown) == expected
    assert browser.run("document.getElementById('shown').textContent") == f"{expected} of {total} images shown."
    # the keyboard does the same: an arrow key moves to the next choice
    browser.press("ArrowLeft", 37)
    other = browser.run("document.querySelector('input[name=show]:checked').value")
    assert other != "boat"
    assert browser.run(shown) == browser.run(tagged.replace("'boat'", json.dumps(other)))
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0 || i.loading === 'lazy')")
    assert browser.complaints() == []
    assert [address for address in browser.requests() if not address.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser, file, scheme):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(file)
    # WCAG 2.1's contrast of text, soft text and links with the page: at least 4.5 to 1
    contrast = """(() => {
      const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
      const light = c => { const [r, g, b] = rgb(c); return .2126 * r + .7152 * g + .0722 * b; };
      const back = light(getComputedStyle(document.body).backgroundColor);
      const ratio = e => {
        const f = light(getComputedStyle(e).color);
        return (Math.max(f, back) + .05) / (Math.min(f, back) + .05); };
      return [back, ...['body', 'caption', 'nav a', 'summary'].map(s => ratio(document.querySelector(s)))]; })()"""
    back, *ratios = browser.run(contrast)
    assert (back > 0.5) == (scheme == "light")
    assert min(ratios) >= 4.5
    assert browser.complaints() == []


def test_a_focus_ring_can_be_seen(browser, file):
    browser.open(file)
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2


def _write_run(folder: Path, run, ground_truth: Path) -> Path:
    """A run folder as training leaves it."""
    folder.mkdir(parents=True)
    recipe = f"data:\n  train: {ground_truth}\n  val: {ground_truth}\nmodel:\n  name: retinanet:resnet18\n"
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    run.detections.write_coco(folder / "detections.json", run.annotations)
    run.evaluation.write(folder / "evaluation.json")
    lines = "".join(json.dumps(record) + "\n" for record in run.history)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "step", "st', encoding="utf-8")  # cut off by a kill
    return folder


def test_a_run_folder_is_read_back(runs, scene_set, tmp_path):
    run = read_run(_write_run(tmp_path / "a", runs[0], scene_set))
    assert run.evaluation.rows == runs[0].evaluation.rows
    assert [record["epoch"] for record in run.history] == [1, 2, 3, 4, 5, 6]
    assert "retinanet:resnet18" in run.facts["model"]


def test_the_command_compares_runs(runs, scene_set, tmp_path, capsys):
    folders = [_write_run(tmp_path / name, run, scene_set) for name, run in zip("ab", runs, strict=True)]
    out = tmp_path / "deep" / "r.html"
    assert main(["report", *map(str, folders), "--out", str(out), "--draw", "2"]) == 0
    assert "2 runs" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    Page(text)
    assert text.count('class="image"') == 2
    assert "★" in text


@pytest.mark.parametrize(
    ("missing", "words"), [("recipe.yaml", "not a run folder"), ("detections.json", "the run is not finished")]
)
def test_what_is_no_run_is_named(runs, scene_set, tmp_path, capsys, missing, words):
    folder = _write_run(tmp_path / "a", runs[0], scene_set)
    (folder / missing).unlink()
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(folder) in error


def test_runs_are_called_by_where_their_paths_differ(runs, scene_set, tmp_path):
    for name in ("plain/seed1", "plain/seed2", "enlarged/seed1"):
        _write_run(tmp_path / name, runs[0], scene_set)
    folders = [tmp_path / "plain" / "seed1", tmp_path / "enlarged" / "seed1"]
    assert [run.name for run in read_runs(folders)] == ["plain/seed1", "enlarged/seed1"]
    assert [run.name for run in read_runs([folders[0], tmp_path / "plain" / "seed2"])] == ["seed1", "seed2"]
    assert [run.name for run in read_runs(folders[:1])] == ["seed1"]


def test_runs_on_other_images_are_not_compared(runs, tmp_path):
    other = replace(runs[1], annotations=runs[1].annotations.select_images(np.arange(3)))
    with pytest.raises(UserError, match="other images"):
        build_report([runs[0], other], tmp_path / "r.html")
    with pytest.raises(UserError, match="two runs are called 'good'"):
        build_report([runs[0], runs[0]], tmp_path / "r.html")


def test_nothing_found_and_nothing_to_find(runs, tmp_path):
    truth = runs[0].annotations
    blind = replace(
        runs[0], detections=DetectionTable.empty(), evaluation=evaluate(truth, DetectionTable.empty(), "flyspeck")
    )
    Page(build_report([blind], tmp_path / "a.html").read_text(encoding="utf-8"))
    empty = truth.select_boxes(np.zeros(truth.num_boxes, bool))
    bare = replace(runs[0], annotations=empty, evaluation=evaluate(empty, runs[0].detections, "flyspeck"), history=())
    text = build_report([bare], tmp_path / "b.html").read_text(encoding="utf-8")
    Page(text)
    assert "no objects" in text
    assert "–" in text  # a dash, never 0, where there is nothing to find


def test_a_lost_image_file_is_named(runs, tmp_path):
    moved = replace(runs[0], annotations=replace(runs[0].annotations, root=tmp_path / "nowhere"))
    text = build_report([moved], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "images could not be read" in text
