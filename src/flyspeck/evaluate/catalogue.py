"""Protocols by name.

The rules were written down from the reference evaluators; where a reference has a flaw, the protocol of its name keeps it
and says so in `quirks`, and the protocols whose names start with `flyspeck` are without. See docs/evaluation.md.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np

from flyspeck.errors import UserError
from flyspeck.evaluate.matching import MatchRule, SecondPass
from flyspeck.evaluate.protocols import (
    CALTECH_RULE,
    COCO_IOUS,
    COCO_RULE,
    INFINITE,
    APProtocol,
    Bin,
    DelegatedCOCO,
    MissRateProtocol,
    Protocol,
    Setup,
    VOCProtocol,
    WiderProtocol,
    size_bins,
)
from flyspeck.plugins import UnknownPart, with_installed
from flyspeck.size_bins import half_open

# --- TinyPerson -------------------------------------------------------------------------------------------------------

_TINY_AREAS = (
    Bin("all", 1.0, INFINITE),
    Bin("tiny", 1.0, 400.0),
    Bin("tiny1", 1.0, 64.0),
    Bin("tiny2", 64.0, 144.0),
    Bin("tiny3", 144.0, 400.0),
    Bin("small", 400.0, 1024.0),
    Bin("reasonable", 1024.0, INFINITE),
)
_ID_ZERO = "the annotation with id 0 never counts as found"
_TINY = APProtocol(
    "tinybenchmark_ap",
    "ucas-vg/TinyBenchmark, cocoeval.py, EVAL_STRANDARD=tiny",
    _TINY_AREAS,
    (0.25, 0.5, 0.75),
    (200,),
    rule=MatchRule(second_pass=SecondPass("iou")),
    ignore=("crowd", "ignore", "uncertain"),
    id_zero_matches=False,
    report="tinybenchmark",
    quirks=(
        _ID_ZERO,
        "the second pass measures a crowd region by an IoD of an IoD: on a big region, touching is enough",
    ),
)
_HUICV = MatchRule(second_pass=SecondPass("harmonic"))
_TINYPERSON = (
    _TINY,
    replace(_TINY, name="tinybenchmark_ap_uncertain_ignored_no_iod", rule=COCO_RULE),
    replace(_TINY, name="tinybenchmark_ap_uncertain_kept_iod", ignore=("crowd", "ignore")),
    replace(_TINY, name="tinybenchmark_ap_uncertain_kept_no_iod", ignore=("crowd", "ignore"), rule=COCO_RULE),
    replace(_TINY, name="tinybenchmark_ap_no_ignore_attr", ignore=("crowd", "uncertain")),
    replace(_TINY, name="tinybenchmark_ap_sanya17", ious=(0.3, 0.5, 0.75)),
    replace(_TINY, name="tov_ap", source="ucas-vg/TOV_mmdetection with ucas-vg/huicv", max_dets=(1000,)),
    replace(_TINY, name="huicv_ap", source="ucas-vg/huicv, evaluate_tiny", rule=_HUICV),
    replace(_TINY, name="huicv_ap_maxdets1000", source="ucas-vg/huicv", rule=_HUICV, max_dets=(1000,)),
)

# --- miss rates -------------------------------------------------------------------------------------------------------

_WRAP = "where the best detection is a false positive and 1/N exceeds a point, the recall there is the final one"
_TINY_MR = MissRateProtocol(
    "tinybenchmark_mr",
    "ucas-vg/TinyBenchmark, eval_MR_multisetup.py",
    (
        Setup("tiny1", 2.0, 8.0),
        Setup("tiny2", 8.0, 12.0),
        Setup("tiny3", 12.0, 20.0),
        Setup("tiny", 2.0, 20.0),
        Setup("small", 20.0, 32.0),
        Setup("All", -1.0, INFINITE),
    ),
    (0.25, 0.5, 0.75),
    "size",
    ignore=("ignore", "uncertain"),
    rule=MatchRule(iod_for="ignored", ignored_choice="first", unlimited="ignored", second_pass=SecondPass("half")),
    quirks=(
        _WRAP,
        "no floor: one miss rate of 0 makes the average 0",
        "the second pass takes an IoD of an IoD",
        _ID_ZERO,
    ),
)
_CITY = MissRateProtocol(
    "citypersons_mr",
    "TinyBenchmark, Cityscapes/evaluation/eval_MR_multisetup.py",
    (
        Setup("Reasonable", 50.0, INFINITE),
        Setup("Reasonable_small", 50.0, 75.0),
        Setup("Reasonable_occ=heavy", 50.0, INFINITE, 0.2, 0.65),
        Setup("All", 20.0, INFINITE, 0.2, INFINITE),
        Setup("small", 20.0, 50.0),
    ),
    (0.5, 0.75),
    "height",
    quirks=(_WRAP, "no floor: one miss rate of 0 makes the average 0", _ID_ZERO),
)
_MISS_RATES = (
    _TINY_MR,
    replace(
        _TINY_MR,
        name="tinybenchmark_mr_no_iod",
        rule=replace(_TINY_MR.rule, second_pass=None),
        quirks=(*_TINY_MR.quirks[:2], _ID_ZERO),
    ),
    _CITY,
    replace(
        _CITY,
        name="citypersons_mr_original",
        source="CityPersons, eval_MR_multisetup.py as published",
        setups=_CITY.setups[:4],
        ious=(0.5,),
        fppi=(0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0),
        first_class_only=True,
    ),
    MissRateProtocol(
        "flyspeck_mr",
        "Dollar et al., 2012 (Caltech), by object size; none of the references' flaws",
        _TINY_MR.setups,
        (0.25, 0.5, 0.75),
        "size",
        ignore=("ignore", "uncertain"),
        wrap=False,
        floor=1e-10,
        id_zero_matches=True,
    ),
)

# --- COCO and its relatives -------------------------------------------------------------------------------------------

_FLYSPECK = APProtocol(
    "flyspeck",
    "COCO matching; ignore regions hold for every class and are measured by IoD",
    (
        Bin("all", 0.0, INFINITE),
        *size_bins(tiny=(2, 20), tiny1=(2, 8), tiny2=(8, 12), tiny3=(12, 20), small=(20, 32)),
        Bin("above32", 1024.0, INFINITE),
    ),
    COCO_IOUS,
    (200,),
    rule=MatchRule(iod_for="flagged", unlimited="flagged"),
    ignore=("crowd", "ignore", "uncertain"),
    every_class=True,
)
_COCO_LIKE = (
    DelegatedCOCO("coco_bbox", "pycocotools COCOeval, defaults, by faster-coco-eval", quirks=(_ID_ZERO,)),
    _FLYSPECK,
    replace(
        _FLYSPECK,
        name="flyspeck_tinyperson",
        source="TinyPerson's bins, IoUs and ignore flags; no second pass, one IoD for every ignore region, id 0 counts",
        bins=_TINY_AREAS,
        ious=(0.25, 0.5, 0.75),
        report="tinybenchmark",
    ),
    replace(
        _FLYSPECK,
        name="flyspeck_centre",
        source="as flyspeck, matched by centres: 0.5 is a distance of half the object's size",
        ious=(0.5,),
        affinity="centre",
    ),
    replace(
        _FLYSPECK,
        name="flyspeck_nwd",
        source="as flyspeck, matched by the normalised Wasserstein distance (Wang et al., 2021), C = 12.7 px",
        ious=(0.5,),
        affinity="nwd",
    ),
    APProtocol(
        "visdrone",
        "VisDrone2018-DET-toolkit, calcAccuracy.m and dropObjectsInIgr.m",
        (Bin("all", 0.0, INFINITE),),
        COCO_IOUS,
        (1, 10, 100, 500),
        max_dets_per="image",
        rule=CALTECH_RULE,
        ignore=("crowd", "ignore"),
        drop_under_ignored=0.5,
        interpolation="area",
        class_weights="images",
        report="coco",
        quirks=(
            "maxDets is per image over all classes",
            "a class counts in every mean as often as images have it",
            "the toolkit measures the share under ignored regions on a pixel grid, this on the exact rectangles",
        ),
    ),
    APProtocol(
        "aitod",
        "jwwangchn/cocoapi-aitod, cocoeval.py",
        (
            Bin("all", 0.0, INFINITE),
            Bin("verytiny", 0.0, 64.0),
            Bin("tiny", 64.0, 256.0),
            Bin("small", 256.0, 1024.0),
            Bin("medium", 1024.0, INFINITE),
        ),
        COCO_IOUS,
        (1, 100, 1500),
        id_zero_matches=False,
        report="coco",
        quirks=(_ID_ZERO,),
    ),
    APProtocol(
        "tinycoco",
        "DPNet paper, sec. IV-A: COCO with its short side at 100 px; TinyPerson's bins",
        (
            Bin("all", 0.0, INFINITE),
            *size_bins(tiny=(2, 20), tiny1=(2, 8), tiny2=(8, 12), tiny3=(12, 20), small=(20, 32)),
            Bin("reasonable", 1024.0, INFINITE),
        ),
        COCO_IOUS,
        (200,),
        report="sizes",
    ),
)

# --- VOC, DOTA, WIDER -------------------------------------------------------------------------------------------------

DOTA_CLASSES = (
    *("plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship"),
    *("tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool"),
    "helicopter",
)
_VOC_RULE = MatchRule(strict=True, pixel=1.0, candidates="best", iod_for="never", unlimited="ignored")
_DOTA = VOCProtocol(
    "dota_v1.0_task2",
    "CAPTAIN-WHU/DOTA_devkit, dota_evaluation_task2.py",
    _VOC_RULE,
    truncate_truth=True,
    classes=DOTA_CLASSES,
    absent_class="zero",
    quirks=("corners 1 and 3 only, decimals cut off", "a class without ground truth counts as 0 in the mean"),
)
_CLASSIC = (
    VOCProtocol(
        "voc_devkit_py",
        "the python VOC evaluator (Girshick, Hariharan), as in DOTA_devkit",
        _VOC_RULE,
        ious=(0.25, 0.5, 0.75),
    ),
    VOCProtocol(
        "mmdet2_eval_map",
        "mmdetection 2, core/evaluation/mean_ap.py",
        replace(_VOC_RULE, strict=False, pixel=0.0),
        single_precision=True,
    ),
    _DOTA,
    replace(_DOTA, name="dota_v1.5_task2", source="DOTA_devkit, dota-v1.5_evaluation_task2.py", difficult="ordinary"),
    WiderProtocol(
        "widerface_val",
        "WIDER FACE eval_tools in python, as in Pytorch_Retinaface widerface_evaluate",
        quirks=("rows must be sorted by score: nothing sorts them", "a first threshold without proposals gives NaN"),
    ),
)

PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (*_TINYPERSON, *_COCO_LIKE, *_MISS_RATES, *_CLASSIC)}


def protocol_named(name: str) -> Protocol:
    """The protocol of that name; an unknown one is an error that names the nearest."""

    def find() -> Protocol:
        if name not in PROTOCOLS:
            raise UnknownPart(f"no protocol '{name}'", name=name, known=PROTOCOLS)
        return PROTOCOLS[name]

    return with_installed(find)


def customised(
    base: Protocol,
    *,
    size_edges: tuple[float, ...] | None = None,
    max_dets: int | None = None,
    ious: tuple[float, ...] | None = None,
) -> Protocol:
    """A protocol of one's own: `base` with other bins (by size in pixels), maxDets or IoUs, and a name that says so."""
    changes: dict[str, Any] = {}
    words = []
    if ious is not None:
        if not ious or not all(0 < iou <= 1 for iou in ious) or len(set(ious)) < len(ious):
            what = f"IoU thresholds {list(ious)} are not in (0, 1], or not all different"
            raise UserError(what, where="--iou", fix="for example 0.25,0.5")
        changes["ious"] = ious
        words.append("iou=" + ",".join(f"{iou:g}" for iou in ious))
    if max_dets is not None:
        if max_dets < 1:
            raise UserError(f"maxDets of {max_dets}", where="--max-dets", fix="give a number from 1")
        changes["max_dets"] = max_dets if isinstance(base, MissRateProtocol) else (max_dets,)
        words.append(f"maxDets={max_dets}")
    if size_edges is not None:
        changes |= _bins_of_edges(base, size_edges)
        words.append("bins=" + ",".join(f"{edge:g}" for edge in size_edges))
    if not words:
        return base
    fixed = isinstance(base, WiderProtocol | DelegatedCOCO)
    if fixed or (isinstance(base, VOCProtocol) and (size_edges is not None or max_dets is not None)):
        raise UserError(
            f"'{base.name}' is fixed: {'bins and maxDets' if not fixed else 'bins, maxDets and IoU'} cannot be changed",
            fix="use --protocol flyspeck or tinybenchmark_ap as the base",
        )
    return replace(base, name=f"{base.name}[{'; '.join(words)}]", **changes)


def _bins_of_edges(base: Protocol, edges: tuple[float, ...]) -> dict[str, Any]:
    if len(edges) < 2 or not all(b > a for a, b in itertools.pairwise(edges)) or not 0 <= edges[0] < edges[-1] < 1e5:
        raise UserError(
            f"{list(edges)} are no bin edges", where="--bins", fix="give rising sizes in pixels: 2,8,12,20,32"
        )
    names = [(f"{low:g}-{high:g}", low, high) for low, high in itertools.pairwise(edges)]
    if len(edges) > 2:
        names.append((f"{edges[0]:g}-{edges[-1]:g}", edges[0], edges[-1]))
    names.append((f"{edges[-1]:g}+", edges[-1], INFINITE**0.5))
    if isinstance(base, MissRateProtocol):
        # As sizes, not areas; the bound above is left out all the same.
        return {
            "setups": tuple(
                Setup(name, low, float(np.nextafter(high, 0)) if high < INFINITE**0.5 else high)
                for name, low, high in names
            )
        }
    bins = [Bin(name, *(min(bound, INFINITE) for bound in half_open(low, high))) for name, low, high in names]
    return {"bins": (Bin("all", 0.0, INFINITE), *bins)}
