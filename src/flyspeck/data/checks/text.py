"""What the checks found, for people: lines of the report, and one line for each thing that ruins an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_SHOWN = 3
_CUT = 0.25
"""Share of the objects at the border that are slivers, from which a cut is suspected; one that keeps all leaves about a half."""
_VERDICTS = {
    "frames": "numbers in names count frames",
    "ids": "numbers in names are taken for ids, not frames",
    "unknown": "numbers in names are taken for frames by the names alone",
}
WORDS = {
    "same_file": "listed in both",
    "same_content": "the same under another name",
    "near": "nearly the same",
    "same_source": "tiles or copies of one image",
    "neighbours": "neighbouring frames",
}
"""Kinds of leaks."""


def check_lines(facts: dict[str, Any]) -> list[str]:
    """The lines of the report on `facts` of `inspect`."""
    found: dict[str, Any] | None = facts.get("duplicates")
    text = [""]
    if found is not None:
        text += _compared(found) if found["compared"] else ["images were not compared: names only"]
        text += _frames(found)
        for leak in found["leaks"]:
            text += _leak(leak)
    boxes = facts["box_faults"]
    text.append(
        f"boxes that stand twice in an image: {boxes['repeated']} exactly, {boxes['nearly_repeated']} nearly;"
        f" of two classes at one place: {boxes['two_classes']}"
    )
    text.append(
        f"objects that touch the border of their image: {boxes['border_boxes']} ({boxes['border_expected']:.0f} by chance),"
        f" of them slivers: {boxes['border_slivers']}"
    )
    return text


def _compared(found: dict[str, Any]) -> list[str]:
    text = [
        f"{found['images']} images compared by their pixels: {found['near_images']} have one that is nearly the same"
        f" ({found['near_pairs']} pairs, correlation from {found['alike']:g})"
    ]
    if found["plain"]:
        text.append(f"  {found['plain']} are too plain to be compared by anything but equality (empty sea or sky)")
    if found["not_read"]["count"]:
        text.append(f"  {found['not_read']['count']} could not be read, and are compared with nothing")
    text += [f"  {a} ~ {b} ({value:.2f})" for a, b, value in found["near"][:_SHOWN]]
    return text


def _frames(found: dict[str, Any]) -> list[str]:
    frames = found["frames"]
    if frames["verdict"] == "off":
        return []
    reason = f"{frames['pairs']} pairs of neighbours by number"
    if frames["auc"] is not None:
        reason += f"; such a pair is more alike than one by chance in {frames['auc']:.0%} of cases"
    return [f"{_VERDICTS[frames['verdict']]} ({reason}); --frames says otherwise"]


def _leak(leak: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{leak[kind]} {words}" for kind, words in WORDS.items() if leak[kind])
    text = [
        f"of {leak['images']} images of {leak['tested']}, {leak['leaking']} have a partner in {leak['trained']}: {counts}"
    ]
    return text + [f"  {image} ~ {other} ({WORDS[kind]})" for image, other, kind in leak["first"][:_SHOWN]]


def check_warnings(facts: dict[str, Any], shifts: Sequence[str]) -> list[str]:
    """One line for each thing that somebody should look at."""
    lines: list[str] = []
    found: dict[str, Any] | None = facts.get("duplicates")
    if found is not None:
        for leak in found["leaks"]:
            if leak["same_file"] == leak["images"]:
                what = "no split of its own, or the same images annotated anew?"
                lines.append(f"every image of {leak['tested']} is listed in {leak['trained']} too: {what}")
                continue
            share = leak["leaking"] / max(1, leak["images"])
            lines.append(
                f"{leak['leaking']} of {leak['images']} images of {leak['tested']} ({share:.0%}) leak from {leak['trained']}"
                " (`flyspeck data split` makes a split that does not)"
            )
        if found["same"]["count"]:
            many = f"{found['same']['images']} files are {found['same']['count']} images under several names"
            lines.append(f"{many}; the first: {' = '.join(found['same']['first'][0][:3])}")
        if found["listed_twice"]["count"]:
            lines.append(
                f"{found['listed_twice']['count']} images are listed twice; the first: {found['listed_twice']['first'][0]}"
            )
    boxes = facts["box_faults"]
    for key, words in (
        ("repeated", "boxes repeat another of their image and class exactly"),
        ("nearly_repeated", "boxes repeat another of their image and class nearly"),
        ("two_classes", "pairs of boxes of different classes are at one place"),
    ):
        if boxes[key]:
            lines.append(f"{boxes[key]} {words}; the first: {boxes['first'][key][0]}")
    lines += _border(facts)
    for names in boxes["class_twins"]:
        lines.append(f"classes {_quoted(names)} differ in case or blanks only")
    if boxes["empty_classes"] and facts["objects"]["count"]:
        many = len(boxes["empty_classes"])
        lines.append(
            f"{many} classes are declared and never used: {_quoted(boxes['empty_classes'][:8])}{', …' if many > 8 else ''}"
        )
    return lines + list(shifts)


def left_lines(facts: dict[str, Any], shifts: Sequence[str]) -> list[str]:
    """What `--fix` leaves, for it needs a judgement."""
    lines: list[str] = []
    for leak in facts["duplicates"]["leaks"]:
        counts = [f"{leak[kind]} {WORDS[kind]}" for kind in ("near", "same_source", "neighbours") if leak[kind]]
        if counts:
            lines.append(
                f"of {leak['images']} images of {leak['tested']}, with partners in {leak['trained']}: {', '.join(counts)};"
                " `flyspeck data split` makes a split that does not leak"
            )
    boxes, wrong = facts["box_faults"], facts.get("wrong_sizes", {"count": 0})
    if boxes["two_classes"]:
        first = boxes["first"]["two_classes"][0]
        lines.append(f"{boxes['two_classes']} pairs of boxes of different classes are at one place; the first: {first}")
    if wrong["count"]:
        what = f"{wrong['count']} images are not of the size that the annotations state"
        lines.append(f"{what}; the first: {wrong['first'][0]}")
    return lines + _border(facts) + list(shifts)


def _border(facts: dict[str, Any]) -> list[str]:
    """Slivers are a fault of the cut; a few at the border are objects that happen to be small, or photographs' own."""
    boxes, count = facts["box_faults"], facts["objects"]["count"]
    slivers, touching = boxes["border_slivers"], boxes["border_boxes"]
    lines = []
    if slivers > max(2, 0.005 * count, _CUT * touching):
        lines.append(
            f"{slivers} objects at the border of their image are slivers, less than half of the usual length: cut by tiles"
            f" (`flyspeck data tile --keep --ignore`); the first: {boxes['first']['border_slivers'][0]}"
        )
    if touching > max(10, 0.02 * count) and touching > 2 * boxes["border_expected"]:
        lines.append(
            f"{touching} objects touch the border of their image, {boxes['border_expected']:.0f} would by chance: cut tiles?"
        )
    return lines


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
