"""Images by the down-sampling factor that a detector chose for them (DPNet, Fig. 8)."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from flyspeck import boxes as box_algebra
from flyspeck.data.images import read_image
from flyspeck.drawing import as_shown
from flyspeck.errors import UserError
from flyspeck.evaluate.tables import image_ranks
from flyspeck.report import tables
from flyspeck.report.crops import dashed, data_uri, image
from flyspeck.report.diagnosis import FATES, RunDiagnosis
from flyspeck.report.runs import ChosenFactors

_SIDE = 300  # of a thumbnail's longest side in pixels
_TRUTH, _FOUND, _FALSE = (64, 200, 255), (90, 220, 90), (255, 120, 40)


def chosen_section(diagnosis: RunDiagnosis, chosen: ChosenFactors, *, each: int = 6) -> str:
    """HTML: what the images of each factor have in common, and `each` of them, evenly spread over the data set."""
    table = diagnosis.run.annotations
    ranks = image_ranks(table)
    objects = np.bincount(diagnosis.inputs.truths.image[diagnosis.object_rows], minlength=len(table))[ranks]
    areas = diagnosis.inputs.truths.area[diagnosis.object_rows]
    image_of = diagnosis.inputs.truths.image[diagnosis.object_rows]
    found = diagnosis.fates == FATES.index("found")
    rows, galleries, problems = [], [], []
    for place, factor in enumerate(chosen.factors):
        mine = np.flatnonzero(chosen.places == place)
        within = np.isin(image_of, ranks[mine])
        count, total = len(mine), int(within.sum())
        rows.append([
            f"{factor:g}", str(count), tables.percent(count / max(1, len(table))),
            tables.number(float(objects[mine].mean())) if count else "–",
            tables.percent(float((objects[mine] == 0).mean())) if count else "–",
            tables.number(float(np.sqrt(areas[within]).mean())) if total else "–",
            tables.percent(float(found[within].mean())) if total else "–",
        ])  # fmt: skip
        shown, missing = _gallery(diagnosis, mine, ranks, each)
        problems += missing
        head = f"Factor {factor:g}: {count} of {len(table)} images"
        galleries.append(f'<h3>{escape(head)}</h3><div class="views">{shown}</div>')
    columns = ["factor", "images", "%", "objects an image", "without objects, %", "mean size, px", "found, %"]
    lead = (
        "<p>The detector looks at each image's map once and chooses how much of its resolution to keep. Blue: objects; green: "
        "detections that count at the working score; orange and dashed: false alarms. The images are spread evenly over the "
        "data set.</p>"
    )
    note = f'<p class="note">{len(problems)} could not be read: {escape(problems[0])}</p>' if problems else ""
    return lead + tables.table(columns, rows, caption="Images by chosen factor") + note + "".join(galleries)


def _gallery(diagnosis: RunDiagnosis, mine: np.ndarray, ranks: np.ndarray, each: int) -> tuple[str, list[str]]:
    """Figures of some images, and what could not be read."""
    table, shown, problems = diagnosis.run.annotations, [], []
    spread = mine[np.linspace(0, len(mine) - 1, min(each, len(mine))).round().astype(np.int64)] if len(mine) else mine
    for row in spread.tolist():
        try:
            pixels = as_shown(read_image(table.path(row)))
        except UserError as error:
            problems.append(str(error))
            continue
        drawn, words = _thumbnail(diagnosis, int(ranks[row]), pixels)
        name = table.file_names[row]
        caption = f"{Path(name).name}: {words}"
        shown.append(
            f'<figure style="max-width:{_SIDE}px">{image(data_uri(drawn), f"{name}: {words}")}'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(shown), problems


def _thumbnail(diagnosis: RunDiagnosis, rank: int, pixels: np.ndarray) -> tuple[Image.Image, str]:
    truths, found = diagnosis.inputs.truths, diagnosis.inputs.found
    objects = diagnosis.object_rows[truths.image[diagnosis.object_rows] == rank]
    strong = np.flatnonzero((found.image == rank) & (found.scores >= diagnosis.working_score))
    wrong = np.isin(strong, diagnosis.false_alarms)
    zoom = _SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * zoom)), max(1, round(pixels.shape[0] * zoom))
    kind = Image.Resampling.NEAREST if zoom > 1 else Image.Resampling.BOX
    drawn = Image.fromarray(pixels).resize(size, kind)
    pen = ImageDraw.Draw(drawn)
    for boxes, colour, pad in (
        (truths.boxes[objects], _TRUTH, 1.0),
        (found.boxes[strong[~wrong]], _FOUND, 3.0),
        (found.boxes[strong[wrong]], _FALSE, 3.0),
    ):
        for x1, y1, x2, y2 in (boxes * zoom).tolist():
            corners = (x1 - pad, y1 - pad, x2 + pad, y2 + pad)
            if colour == _FALSE:
                dashed(pen, corners, colour)
            else:
                pen.rectangle(corners, outline=colour)
    words = f"{len(objects)} object{'s' * (len(objects) != 1)}"
    if len(objects):
        sizes = box_algebra.size(truths.boxes[objects])
        least, most = f"{sizes.min():.0f}", f"{sizes.max():.0f}"
        words += f" of {least} px" if least == most else f" of {least}–{most} px"
    alarms = int(wrong.sum())
    return drawn, f"{words}, {len(wrong) - alarms} found, {alarms} false alarm{'s' * (alarms != 1)}"
