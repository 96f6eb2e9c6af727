"""Would the tests notice? One rule of the evaluation is changed at a time, and a golden value must change with it.

A mutation replaces a text in the source of one module; the package is imported afresh with it, so nothing is written to disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from golden_rows import differences, expected
from tables_by_hand import random_tables
from test_matching import RULES, plain_match

PACKAGE = "flyspeck.evaluate"

# rule: (module, text, replacement)
MUTATIONS: dict[str, tuple[str, str, str]] = {
    "overlap > threshold": ("matching", "else self.overlap >= bound", "else self.overlap > bound"),
    "VOC by >= instead of >": ("matching", "self.overlap > bound if strict", "self.overlap >= bound if strict"),
    "the earlier truth wins a tie": ("matching", "lexsort((-pairs.truth, -overlap", "lexsort((pairs.truth, -overlap"),
    "the least overlap preferred": ("matching", "lexsort((-pairs.truth, -overlap", "lexsort((-pairs.truth, overlap"),
    "crowds by IoU": ("matching", '"crowd": self.truths.crowd,\n', '"crowd": ignored & False,\n'),
    "the miss rate's ignored by IoU": (
        "matching",
        '"ignored": ignored,\n            "never"',
        '"ignored": ignored & False,\n            "never"',
    ),
    "crowds taken once": (
        "matching",
        'unlimited = {"crowd": self.truths.crowd',
        'unlimited = {"crowd": ignored & False',
    ),
    "the miss rate's ignored taken once": (
        "matching",
        '"ignored": ignored}[rule.unlimited]',
        '"ignored": ignored & False}[rule.unlimited]',
    ),
    "second pass at 0.5 for every IoU": (
        "matching",
        'bound if second.threshold == "iou"',
        '0.5 if second.threshold == "iou"',
    ),
    "huicv's second pass at t": ("matching", "2 * bound / (1 + bound)", "bound"),
    "the miss rate's second pass at 0.6": ("matching", "enough = ratio > 0.5", "enough = ratio > 0.6"),
    "second pass by w*h": (
        "matching",
        "self.truths.area[truth] / self.areas[detection]",
        "(self.areas[truth % len(self.areas)]) / self.areas[detection]",
    ),
    "second pass leaves the truth free": (
        "matching",
        "np.minimum.at(holder, wanted, asking)",
        "np.minimum.at(holder, wanted, asking if sharing is None else np.where(sharing[pointer[asking]], len(who), asking))",
    ),
    "no +1 pixel": ("tables", "    pixel = rule.pixel\n", "    pixel = 0.0\n"),
    "second-best truth in VOC": ("matching", 'if self.rule.candidates == "best":', 'if self.rule.candidates == "":'),
    "best ignored truth instead of the first": ("matching", 'self.rule.ignored_choice == "best"', "True"),
    "bins open below": ("ap", "areas >= area.low", "areas > area.low"),
    "bins open above": ("ap", "areas <= area.high", "areas < area.high"),
    "recall points k/100": ("ap", "np.arange(101) * 0.01", "np.arange(101) / 100"),
    "recall beyond the point": ("ap", 'RECALL_POINTS, side="left"', 'RECALL_POINTS, side="right"'),
    "no envelope": ("ap", "np.maximum.accumulate(precision[::-1])[::-1]", "precision"),
    "detections out of the bin count": ("ap", "matching.ignored | (~matched & outside)", "matching.ignored"),
    "matched ones out of the bin do not": ("ap", "(~matched & outside)", "outside"),
    "id 0 counts": ("ap", "if protocol.id_zero_matches else", "if True else"),
    "maxDets 100 instead of 200": (
        "catalogue",
        "    (200,),\n    rule=MatchRule(second_pass",
        "    (100,),\n    rule=MatchRule(second_pass",
    ),
    "maxDets 200 instead of 1000": ("catalogue", "max_dets=(1000,)", "max_dets=(200,)"),
    "uncertain ones count": (
        "catalogue",
        'ignore=("crowd", "ignore", "uncertain"),\n    id_z',
        'ignore=("crowd", "ignore"),\n    id_z',
    ),
    "the ignore field unread": ("tables", "flagged |= flags[name]", 'flagged |= flags[name] & (name != "ignore")'),
    "maxDets over all classes": ("tables", "    if per_class:\n", "    if not per_class:\n"),
    "area from the box": (
        "tables",
        "area=annotations.area[row]",
        "area=np.prod(sides if xywh is None else xywh[row, 2:], axis=1)",
    ),
    "ties against file order": (
        "tables",
        "np.lexsort((-detections.scores, group))",
        "np.lexsort((-np.arange(len(group)), -detections.scores, group))",
    ),
    "sizes from 1 in the miss rate": ("catalogue", 'Setup("tiny1", 2.0, 8.0)', 'Setup("tiny1", 1.0, 8.0)'),
    "no widening by 1.25": ("protocols", "expand: float = 1.25", "expand: float = 1.0"),
    "heights by the square root": (
        "miss_rate",
        'if protocol.measure == "height" else np.sqrt(found.area)',
        "if False else np.sqrt(found.area)",
    ),
    "visibility unread": ("miss_rate", "(visible < setup.visible_low)", "(visible < 0)"),
    "recall 0 instead of the wrap": ("miss_rate", "    if wrap:\n", "    if False:\n"),
    "a floor under the miss rate": ("miss_rate", "np.maximum(known, floor)", "np.maximum(known, 1e-10)"),
    "ignored rows leave the FPPI curve": (
        "miss_rate",
        "rows = by_score[bounds[k] : bounds[k + 1]]",
        "rows = by_score[bounds[k] : bounds[k + 1]]; rows = rows[~matching.ignored[rows]]",
    ),
    "FPPI below the point": ("miss_rate", 'points, side="right"', 'points, side="left"'),
    "decimals for the FPPI points": ("miss_rate", "else _reference_points()", "else np.round(_reference_points(), 4)"),
    "FPPI per image with truth": (
        "miss_rate",
        "np.cumsum(wrong) / images",
        "np.cumsum(wrong) / len(np.unique(truths.image))",
    ),
    "difficult ones count": ("voc", 'if protocol.difficult == "ignored" else ()', "if False else ()"),
    "ten points instead of eleven": ("voc", "np.arange(0.0, 1.1, 0.1)", "np.arange(0.0, 1.0, 0.1)"),
    "precision not made monotone": ("curves", "np.maximum.accumulate(precision[::-1])[::-1]", "precision"),
    "DOTA's decimals kept": ("voc_files", "float(int(corners[k]))", "corners[k]"),
    "absent classes left out in DOTA": ("voc", 'if protocol.absent_class == "zero":', "if False:"),
    "WIDER's scores as they are": ("widerface", "return (scores - low) / (high - low)", "return scores"),
    "WIDER's thresholds exclusive": (
        "widerface",
        'np.sort(scores), points, side="left"',
        'np.sort(scores), points, side="right"',
    ),
    "999 thresholds": ("protocols", "thresholds: int = 1000", "thresholds: int = 999"),
    "WIDER without +1": ("protocols", "WIDER_RULE = MatchRule(pixel=1.0", "WIDER_RULE = MatchRule(pixel=0.0"),
    "NMS of the merge by > on the CPU": ("merging", "(pairs.iou >= threshold)", "(pairs.iou > threshold)"),
    "NMS of the merge without +1": ("merging", "strict: bool, pixel: float = 1.0", "strict: bool, pixel: float = 0.0"),
}

COCO_CASES = (
    *("quirk_area_field", "quirk_crowd_iod", "quirk_id0", "quirk_ignore_multi", "quirk_maxdets", "quirk_mr_negindex"),
    *("quirk_mr_perfect", "quirk_out_of_range", "ped_mr_a", "tiny_a", "tiny_b", "ped_mr_b", "tiny_c"),
)
OWN_LAYOUTS = {
    "voc_a": ("voc_a/Annotations", "voc_a/results"),
    "dota_hbb_a": ("dota_hbb_a/labelTxt", "dota_hbb_a/Task2"),
    "wider_a": ("wider_gt", "wider_a/det.zip"),
}


class _Loader(SourceFileLoader):
    """Loads one module with a text replaced."""

    def __init__(self, name: str, path: str, text: str, replacement: str) -> None:
        super().__init__(name, path)
        self.text, self.replacement = text, replacement

    def get_code(self, fullname: str) -> Any:
        source = Path(self.path).read_text(encoding="utf-8")
        assert self.text in source, f"{fullname} has no {self.text!r}: the rule moved, move the mutation with it"
        return compile(source.replace(self.text, self.replacement), self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, name: str, path: str, text: str, replacement: str) -> None:
        self.name, self.location, self.loader = name, path, _Loader(name, path, text, replacement)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(fullname, self.location, loader=self.loader) if fullname == self.name else None


@contextmanager
def mutated(module: str, text: str, replacement: str) -> Iterator[None]:
    """The package imported afresh with one text replaced; the usual one is back afterwards."""
    name = f"{PACKAGE}.{module}"
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    usual = {key: value for key, value in sys.modules.items() if key.startswith(PACKAGE)}
    parent = sys.modules["flyspeck"]
    package = parent.evaluate  # pyright: ignore
    finder = _Finder(name, spec.origin, text, replacement)
    for key in usual:
        del sys.modules[key]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [key for key in sys.modules if key.startswith(PACKAGE)]:
            del sys.modules[key]
        sys.modules.update(usual)
        parent.evaluate = package  # pyright: ignore


def first_difference(golden: Path) -> str | None:
    """The first golden value that the imported package does not meet; None if it meets all."""
    package, layouts = import_module(PACKAGE), import_module(f"{PACKAGE}.layouts")
    merging = import_module(f"{PACKAGE}.merging")
    pairs = {case: (f"{case}/gt.json", f"{case}/det.json") for case in COCO_CASES} | OWN_LAYOUTS
    for case, (gt, dt) in pairs.items():
        read: Any = None
        for name, rows in expected(golden / case).items():
            if name == "coco_bbox":
                continue
            protocol = package.protocol_named(name)
            if read is None or case == "dota_hbb_a":
                read = layouts.read_pair(golden / gt, golden / dt, protocol)
            wrong = differences(package.evaluate(*read, protocol).rows, rows, 1e-6 if "mmdet" in name else 1e-9)
            if wrong:
                return f"{case}, {name}: {wrong[0]}"
    return _merge_difference(golden / "merge_a", merging)


def _merge_difference(folder: Path, merging: Any) -> str | None:
    import json

    read = [
        json.loads((folder / name).read_text()) for name in ("det.json", "corner_gt.json", "expected_merged_cpu.json")
    ]
    return None if merging.merge_tiles(read[0], read[1]) == read[2] else "merge_a"


def test_nothing_changed_nothing_differs(shared: Path) -> None:
    """The harness itself: a mutation that changes nothing is noticed by nothing."""
    with mutated("ap", "np.arange(101) * 0.01", "np.arange(101) * 0.01"):
        assert first_difference(shared / "golden") is None
        assert loop_difference() is None


def loop_difference() -> str | None:
    """The first random case in which the imported matcher and the references' plain loop part."""
    tables = import_module(f"{PACKAGE}.tables")
    for seed in range(30):
        annotations, detections = random_tables(seed)
        dets = tables.ranked(detections, annotations, None)
        truths = tables.truth_table(annotations, ("crowd", "ignore", "uncertain"))
        for name, rule in RULES.items():
            (matching,) = tables.matcher(dets, truths, rule).at(truths.flagged, (0.5,))
            if matching.truth.tolist() != plain_match(dets, truths, truths.flagged, rule, 0.5):
                return f"{name}, seed {seed}"
    return None


QUICK = ("overlap > threshold", "crowds by IoU", "maxDets 100 instead of 200", "recall points k/100")


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=() if rule in QUICK else pytest.mark.slow) for rule in MUTATIONS]
)
def test_every_rule_is_held_by_a_test(shared: Path, rule: str) -> None:
    """By a golden value; where none can see the rule (which of several ignored truths is taken), by the plain loop."""
    with mutated(*MUTATIONS[rule]):
        assert first_difference(shared / "golden") or loop_difference(), f"nothing notices: {rule}"
