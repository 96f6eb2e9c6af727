"""The facts of `flyspeck data inspect` as lines of text."""

from __future__ import annotations

from typing import Any

from flyspeck.data.checks.text import check_lines
from flyspeck.errors import counted, one_line


def lines(facts: dict[str, Any]) -> list[str]:
    """A report for people: sizes first, then classes, files, what follows and what to look at."""
    text = [str(facts["source"]), f"{counted(facts['images'], 'image')}, {counted(facts['boxes'], 'box')}"]
    for name, part in facts.get("files", {}).items():
        text += [f"  {name}: {counted(part['images'], 'image')}, {counted(part['boxes'], 'box')}"]
    for part in facts.get("overlaps", ()):
        text += [f"  {counted(part['images'], 'image is', 'images are')} in both {' and '.join(part['files'])}"]
    text += [f"note: {note}" for note in facts.get("notes", ())]
    if "objects" not in facts:  # a classification set
        return [
            *text,
            f"{counted(len(facts['classes']), 'class')}; images a class: {_spread(facts['images_per_class'])}",
        ]
    text += ["", *_sizes(facts), "", f"boxes an image: {_spread(facts['boxes_per_image'])}"]
    text += [f"ignore regions: {facts['ignore_regions']} ({facts['ignore_share']:.1%} of the boxes)"]
    text += [f"images without boxes: {facts['images_without_boxes']}"]
    if facts["image_sizes"]["known"]:
        (w1, w2), (h1, h2) = facts["image_sizes"]["width"], facts["image_sizes"]["height"]
        text += [f"image sizes: {w1}-{w2} x {h1}-{h2} px"]
    text += _bands(facts.get("bands"))
    text += ["", "classes: " + ", ".join(f"{one_line(name)} {count}" for name, count in facts["classes"].items())]
    for key in ("broken_entries", "missing_files", "unreadable_files", "wrong_sizes"):
        if key in facts:
            text += [f"{key.replace('_', ' ')}: {facts[key]['count']}"]
            text += [f"  {entry}" for entry in facts[key]["first"][:5]]
    return (
        text
        + check_lines(facts)
        + _implied(facts["implies"])
        + _fusion(facts["fusion"])
        + [f"look at: {warning}" for warning in facts["warnings"]]
        + _assigned(facts.get("assign"))
        + (["", *facts["repair"]] if "repair" in facts else [])
    )


def _bands(bands: dict[str, Any] | None) -> list[str]:
    """The kinds of images, with the values of each band, and what a training makes of them."""
    if bands is None:
        return []
    text = []
    for kind, entry in bands["kinds"].items():
        text.append(f"images of {kind}: {entry['images']}, values by band {_ranges(entry['value_ranges'])}")
        if len(bands["kinds"]) > 1:
            text[-1] += f" (as {entry['first']})"
    return text + [f"note: {line}" for line in bands["trains"]]


def _ranges(pairs: list[list[float | None]]) -> str:
    words = [f"{'-' if low is None else f'{low:g}'} to {'-' if high is None else f'{high:g}'}" for low, high in pairs]
    return ", ".join(words) if words else "unknown"


def _assigned(assign: dict[str, Any] | None) -> list[str]:
    if assign is None:
        return []
    found = assign["assigners"]
    bins = [name for name, part in next(iter(found.values())).items() if part["objects"]]
    head = f"{'':>16}" + "".join(f"{name:>16}" for name in bins)
    text = [
        "",
        f"anchors or points of {assign['detector']} for one object (in brackets: objects without any), by size in px,",
    ]
    text += [f"of {counted(assign['images'], 'image')}:", head]
    objects = next(iter(found.values()))
    text.append(f"{'objects':>16}" + "".join(f"{objects[name]['objects']:>16}" for name in bins))
    for name, parts in found.items():
        cells = [f"{parts[b]['mean']:.2f} ({parts[b]['none']:.1%})" for b in bins]
        text.append(f"{name:>16}" + "".join(f"{cell:>16}" for cell in cells))
    return text


def match_lines(report: dict[str, Any], out: Any) -> list[str]:
    """What Scale Match changed."""
    text = [f"{'':>8}{'objects':>9}{'mean':>8}{'sd':>8}   5, 25, 50, 75, 95 % of the sizes, px"]
    for name, part in report["sizes"].items():
        quantiles = ", ".join(f"{value:.1f}" for value in part["percentiles"].values())
        text.append(f"{name:>8}{report['objects'][name]:>9}{part['mean']:>8.1f}{part['sd']:>8.1f}   {quantiles}")
    px, log = report["wasserstein_px"], report["wasserstein_log2"]
    text.append(
        f"Wasserstein distance to the target: {px['before']:.2f} px before, {px['after']:.2f} px after"
        f" ({log['before']:.2f} and {log['after']:.2f} octaves)"
    )
    if report["capped"]:
        what = "objects or images" if report["method"] == "sm+" else "images"
        text.append(
            f"note: {report['capped']} {what} should have been enlarged beyond the limit (by up to"
            f" {report['largest_scale_wanted']:g}) and were capped: see --max-scale"
        )
    if report["dropped"]:
        text.append(f"note: {counted(report['dropped'], 'object')} got too small, dropped: see --min-side")
    return [
        *text,
        f"{counted(report['written']['images'], 'image')}, {counted(report['written']['boxes'], 'box')} -> {out}",
    ]


def _spread(spread: dict[str, float]) -> str:
    return f"mean {spread['mean']:.1f}, median {spread['median']:.0f}, most {spread['max']}"


def _sizes(facts: dict[str, Any]) -> list[str]:
    objects = facts["objects"]
    count = max(1, objects["count"])
    text = [f"{'size, px':>10} {'objects':>9} {'share':>7}   {'with ignore regions':>19}"]
    for name, number in objects["sizes"].items():
        bar = "#" * round(30 * number / count)
        row = f"{name:>10} {number:>9} {number / count:>7.1%}   {facts['sizes'][name]:>19}  {bar}"
        text.append(row.rstrip())
    if objects["count"]:
        text.append(
            f"size of objects, sqrt(w*h): {objects['size_mean']:.1f} +- {objects['size_sd']:.1f} px,"
            f" {objects['share_to_20px']:.1%} of at most 20 px"
        )
    return text


def _implied(implied: dict[str, Any] | None) -> list[str]:
    if implied is None:
        return []
    reasons, tile = implied["reasons"], implied["tile"]
    tiles = f"{tile[1]}x{tile[0]} px, overlap {implied['overlap']} px" if tile else "none"
    backbone = ", on a backbone that has such a map: `flyspeck models` says which" if implied["stride"] < 4 else ""
    return [
        "",
        "what this asks of a detector:",
        f"  finest stride {implied['stride']} (model.levels: {implied['levels']}{backbone}): {reasons['stride']}",
        f"  anchors (model.anchors, where `fit: true` takes them from the objects): {reasons['anchors']}",
        f"  tiles {tiles} (augment.crop in training, evaluate.tile and predict --tile after it): {reasons['tile']}",
        f"  detections an image {implied['max_detections']} (model.max_detections): {reasons['max_detections']}",
        "  a whole recipe, with these and all other choices: `flyspeck init`",
    ]


def _fusion(fusion: dict[str, Any] | None) -> list[str]:
    if fusion is None:
        return []
    factors = ", ".join(f"{edge} {factor:g}" for edge, factor in fusion["factors"].items())
    counts = ", ".join(f"{level} {count}" for level, count in fusion["counts"].items())
    anchors = fusion["anchors"]
    head = f"  fusion factors (model.fusion: statistic takes them; S-alpha, anchors {anchors[0]}-{anchors[-1]} px)"
    return [f"{head}: {factors}; objects by level: {counts}"]
