"""PASCAL VOC 2007 and 2012: `VOCdevkit/VOC2007` and `VOC2012`, as the archives unpack side by side.

Real in it: corners that count pixels from 1 with the last included, objects marked difficult, parts of persons (with boxes of
their own inside the object), corners written as fractions in 2012, and images of 2012 that no list of the detection task names.
"""

from __future__ import annotations

from pathlib import Path

from fakes.drawing import write_image, write_text

CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor"
)
PART = "<part><name>head</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{1}</ymax></bndbox></part>"


def write(root: Path) -> None:
    """Writes `VOCdevkit` below `root`."""
    lists: dict[tuple[int, str], list[str]] = {}
    for year, part, number in ((2007, "trainval", 5), (2012, "trainval", 2), (2007, "test", 4), (2012, None, 1)):
        for count in range(number):
            at = f"{2008 + count}_{count + 1:06d}" if year == 2012 else f"{count * 2 + 1 + (part == 'test'):06d}"
            name = f"{at}{'x' if part is None else ''}"
            _write_image(root / f"VOCdevkit/VOC{year}", year, name, classes_of(count, number))
            if part is not None:
                lists.setdefault((year, part), []).append(name)
    for (year, part), names in lists.items():
        write_text(root / f"VOCdevkit/VOC{year}/ImageSets/Main/{part}.txt", "".join(f"{name}\n" for name in names))


def classes_of(row: int, number: int) -> list[str]:
    """The classes of one of `number` images: all 20 occur in the images together."""
    return CLASSES.split()[row::number]


def _write_image(folder: Path, year: int, name: str, classes: list[str]) -> None:
    """One image with an object of each class, and a difficult one of the first."""
    boxes, objects = [], []
    for place, label in enumerate([*classes, classes[0]]):
        x, y, w, h = 4 + 20 * (place % 5), 6 + 22 * (place // 5), 8 + place % 7, 12
        boxes.append((x, y, w, h))
        corners = (x + 1, y + 1, x + w, y + h)
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        inner = "".join(f"<{side}>{value + (0.5 if year == 2012 and side == 'xmax' and place == 0 else 0)}</{side}>"
                        for side, value in sides)  # fmt: skip
        more = PART.format(x + 1, y + 1, x + 3) if label == "person" else ""
        flags = f"<pose>Unspecified</pose><truncated>0</truncated><difficult>{int(place == len(classes))}</difficult>"
        objects.append(f"<object><name>{label}</name>{flags}<bndbox>{inner}</bndbox>{more}</object>")
    write_image(folder / f"JPEGImages/{name}.jpg", 112, 104, boxes)
    source = f"<source><database>The VOC{year} Database</database><annotation>PASCAL VOC{year}</annotation></source>"
    size = "<size><width>112</width><height>104</height><depth>3</depth></size>"
    head = f"<folder>VOC{year}</folder><filename>{name}.jpg</filename>{source}{size}"
    write_text(folder / f"Annotations/{name}.xml", f"<annotation>{head}{''.join(objects)}</annotation>")
