"""Tables of numbers as plain text, headed by the protocol they were made with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flyspeck.evaluate.protocols import COCO_BINS, APProtocol, DelegatedCOCO, MissRateProtocol, Protocol


def table(
    protocol: Protocol,
    rows: Sequence[dict[str, Any]],
    *,
    per_class: bool = False,
    objects: Mapping[str, int] | None = None,
) -> str:
    """Rows of an `EvaluationResult` in percent: a line per subset (bin, setup, setting or class), a column per metric and IoU.

    Beside a size stand its pixels, and its objects where they are known (`objects` by bin, or a row's own `n_gt`).
    """
    by_class = any("_per_class" in row["metric"] for row in rows)
    rows = [row for row in rows if per_class or "_per_class" not in row["metric"]]
    columns: list[tuple[str, str]] = []
    lines: dict[str, dict[tuple[str, str], float | None]] = {}
    known = pixel_ranges(protocol)
    counts: dict[str, int | None] = {}
    sizes: dict[str, str] = {}
    flat = all(_subset(row) == "" for row in rows)
    for row in rows:
        name = _metric(row)
        column = ("value", "") if flat else (name, _iou(row))
        line = row["metric"] if flat else _subset(row) or ("mean" if name != row["metric"] else "all")
        if column not in columns:
            columns.append(column)
        lines.setdefault(line, {})[column] = row["value"]
        area = bin_of_row(row, known)
        counts.setdefault(line, row.get("n_gt", None if "class_name" in row else (objects or {}).get(area)))
        sizes.setdefault(line, known.get(area, ""))
    head = ["", *(f"{metric}{f'@{iou}' if iou else ''}" for metric, iou in columns)]
    body = [[line, *(percent(values.get(column, -1.0)) for column in columns)] for line, values in lines.items()]
    for title, cells in (("objects", counts), ("px", sizes)):
        if any(value not in (None, "") for value in cells.values()):
            head.insert(1, title)
            for row, value in zip(body, cells.values(), strict=True):
                row.insert(1, "" if value is None else str(value))
    hint = "" if per_class or not by_class else "(by class: --per-class)\n"
    quirks = f"quirks of the reference: {'; '.join(protocol.quirks)}\n" if protocol.quirks else ""
    return f"{protocol.text}\n{quirks}{aligned([head, *body])}\n{hint}"


def pixel_ranges(protocol: Protocol) -> dict[str, str]:
    """The sizes in pixels of each bin or setup of a protocol: `2-20`, `32+`; nothing of what takes all."""
    match protocol:
        case MissRateProtocol():
            ranges = [(setup.name, setup.low, setup.high) for setup in protocol.setups]
        case APProtocol() | DelegatedCOCO():
            bins = protocol.bins if isinstance(protocol, APProtocol) else COCO_BINS
            ranges = [(area.name, area.low**0.5, area.high**0.5) for area in bins]
        case _:
            ranges = []
    return {
        name: f"{low:g}-{high:g}" if high < 1e5 * 0.999 else f"{low:g}+"
        for name, low, high in ranges
        if low > 1 or high < 1e5 * 0.999
    }


def bin_of_row(row: Mapping[str, Any], known: Collection[str]) -> str:
    """The bin or setup that a row is about; empty where it is about none. COCO's own names end with it: `APs`."""
    metric = str(row["metric"])
    return str(row.get("area") or row.get("setup") or (metric[2:] if metric[2:] in known else ""))


def percent(value: float | None) -> str:
    """A share in percent with two decimals; a dash where there was nothing to find."""
    if value is None or value != value or value < 0:
        return "—"
    return f"{100 * value:.2f}"


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def interval_text(rows: Sequence[dict[str, Any]]) -> str:
    """AP with its confidence interval by bin."""
    cells = [["", "AP", "low", "high"]]
    cells += [[row["area"], percent(row["value"]), percent(row["low"]), percent(row["high"])] for row in rows]
    level, samples = rows[0]["level"], max(row["samples"] for row in rows)
    head = f"AP at IoU {rows[0]['iou']:g}, {level:.0%} interval by bootstrap over images, {samples} resamples"
    return f"{head}\n{aligned(cells)}\n"


def comparison_text(rows: Sequence[dict[str, Any]], *, names: tuple[str, str] = ("these", "the others")) -> str:
    """The AP of two runs called `names`, their difference with its interval, and the p-value, by bin."""
    cells = [["", *(f"AP {name}" for name in names), "difference", "low", "high", "p"]]
    for row in rows:
        known = row["difference"] is not None
        numbers = [f"{100 * row[name]:+.2f}" if known else "—" for name in ("difference", "low", "high")]
        p_value = f"{row['p_value']:.4f}" if known else "—"
        cells.append([row["area"], percent(row["value"]), percent(row["other"]), *numbers, p_value])
    head = f"paired comparison at IoU {rows[0]['iou']:g}, by bootstrap over images: {names[0]} less {names[1]}"
    return f"{head}\n{aligned(cells)}\n"


def _subset(row: dict[str, Any]) -> str:
    if "_per_class" in row["metric"]:
        return f"{row['class_name']}, {row['area']}" if "area" in row else str(row["class_name"])
    for name in ("area", "setup", "setting", "cls"):
        if name in row:
            return str(row[name])
    return ""


def _metric(row: dict[str, Any]) -> str:
    """The metric without what the line and the IoU say already: `AP_tiny` and `AP50` are AP, `AR_tiny` is AR500."""
    name = row["metric"].removesuffix("_per_class").replace("mAP_", "AP_")
    area = row.get("area")
    if area and name.endswith(f"_{area}"):
        name = name.removesuffix(f"_{area}")
        name += str(row["max_dets"]) if name == "AR" else ""
    return "AP" if "iou" in row and name in ("AP50", "AP75") else name


def _iou(row: dict[str, Any]) -> str:
    iou = row.get("iou", "")
    return iou if isinstance(iou, str) else f"{iou:g}"
