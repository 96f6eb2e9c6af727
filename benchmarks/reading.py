"""Reading 100,000 boxes in COCO, YOLO, VOC and csv: against pycocotools and plain loops, and against another state of flyspeck.

    python benchmarks/reading.py --out benchmarks/results/reading.json
    python benchmarks/reading.py --before ../older/src

2,000 images of 64 x 64 px with 50 boxes each, on disk with their annotations. Every contender runs in a process of its own, in
turns; seconds are CPU seconds of the reading alone (imports are not counted), megabytes are the peak above what the imports
took. The plain loops do the least that gives the same boxes: they check nothing. Those of YOLO and VOC open every image's
header, as YOLO's shares need and as our reader does for VOC where the xml states no size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES, EACH = 2000, 50
KINDS = ("coco", "yolo", "voc", "csv")
_MEASURED = """
import json, sys, time
from pathlib import Path
{imports}
def peak():
    # Of this process, in KiB; ru_maxrss would be that of the one that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
source = sys.argv[1]
before = peak()
start = time.process_time()
{work}
seconds = time.process_time() - start
print(json.dumps([count, seconds, (peak() - before) / 1024]))
"""
OURS = ("from flyspeck.data.readers import read_annotations", "count = read_annotations(source).num_boxes")
PLAIN = {
    "coco": (
        "import contextlib, io\nfrom pycocotools.coco import COCO",
        "with contextlib.redirect_stdout(io.StringIO()):\n    count = len(COCO(source).anns)",
    ),
    "yolo": (
        "from PIL import Image",
        """
boxes = []
for path in sorted((Path(source) / "images").iterdir()):
    width, height = Image.open(path).size
    for line in (Path(source) / "labels" / f"{path.stem}.txt").read_text().splitlines():
        key, x, y, w, h = line.split()
        x, y, w, h = float(x) * width, float(y) * height, float(w) * width, float(h) * height
        boxes.append((int(key), x - w / 2, y - h / 2, x + w / 2, y + h / 2))
count = len(boxes)""",
    ),
    "voc": (
        "from xml.etree import ElementTree",
        """
boxes = []
for path in sorted((Path(source) / "Annotations").glob("*.xml")):
    for item in ElementTree.parse(path).getroot().findall("object"):
        box = item.find("bndbox")
        boxes.append((item.findtext("name"), *(float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))))
count = len(boxes)""",
    ),
    "csv": (
        "import csv",
        """
with open(source, newline="") as file:
    rows = csv.DictReader(file)
    boxes = [(row["image_path"], row["label"], *(float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax"))) for row in rows]
count = len(boxes)""",
    ),
}


def write_sets(folder: Path) -> dict[str, Path]:
    """The same boxes in each format; returns what is read."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 50, (IMAGES, EACH, 2))
    boxes = np.concatenate([corner, corner + rng.integers(2, 14, (IMAGES, EACH, 2))], 2).tolist()
    for name in ("images", "labels", "Annotations"):
        (folder / name).mkdir()
    images, entries, rows = [], [], ["image_path,xmin,ymin,xmax,ymax,label"]
    for number, listed in enumerate(boxes):
        stem = f"{number:06d}"
        Image.new("L", (64, 64)).save(folder / "images" / f"{stem}.png")
        images.append({"id": number + 1, "file_name": f"images/{stem}.png", "width": 64, "height": 64})
        texts, objects = [], []
        for x1, y1, x2, y2 in listed:
            w, h = x2 - x1, y2 - y1
            entry = {"id": len(entries) + 1, "image_id": number + 1, "category_id": 1, "bbox": [x1, y1, w, h]}
            entries.append({**entry, "area": w * h, "iscrowd": 0, "segmentation": []})
            texts.append(f"0 {(x1 + x2) / 128} {(y1 + y2) / 128} {w / 64} {h / 64}")
            sides = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            flags = "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            objects.append(f"<object><name>car</name>{flags}<bndbox>{sides}</bndbox></object>")
            rows.append(f"images/{stem}.png,{x1},{y1},{x2},{y2},car")
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(texts))
        size = "<size><width>64</width><height>64</height><depth>1</depth></size>"
        head = f"<annotation><filename>{stem}.png</filename>{size}"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"{head}{''.join(objects)}</annotation>")
    (folder / "classes.txt").write_text("car\n")
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "car"}]}
    for name in KINDS:
        (folder / f"only_{name}").mkdir()
    (folder / "only_coco" / "set.json").write_text(json.dumps(content))
    (folder / "only_csv" / "set.csv").write_text("\n".join(rows))
    for name, parts in (("yolo", ("labels", "classes.txt")), ("voc", ("Annotations",))):
        for part in parts:
            (folder / part).rename(folder / f"only_{name}" / part)
    for name in KINDS:
        (folder / f"only_{name}" / ("JPEGImages" if name == "voc" else "images")).symlink_to(folder / "images")
    kinds = {"coco": "only_coco/set.json", "csv": "only_csv/set.csv", "yolo": "only_yolo", "voc": "only_voc"}
    return {name: folder / place for name, place in kinds.items()}


def measured(imports: str, work: str, source: Path, path: str | None = None) -> tuple[int, float, float]:
    """Boxes, CPU seconds and megabytes of one reading in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = path
    command = [sys.executable, "-c", _MEASURED.format(imports=imports, work=work), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    count, seconds, megabytes = json.loads(done.stdout)
    return count, seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", help="the src folder of another state, measured in turns with this one")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, Any] = {"python": platform.python_version(), "boxes": IMAGES * EACH, "formats": {}}
    with tempfile.TemporaryDirectory() as place:
        for name, source in write_sets(Path(place)).items():
            contenders: dict[str, tuple[str, str, str | None]] = {"flyspeck": (*OURS, None)}
            contenders["pycocotools" if name == "coco" else "plain loop"] = (*PLAIN[name], None)
            if options.before:
                contenders["before"] = (*OURS, options.before)
            runs: dict[str, list[tuple[int, float, float]]] = {who: [] for who in contenders}
            for _ in range(options.repeats):
                for who, (imports, work, path) in contenders.items():
                    runs[who].append(measured(imports, work, source, path))
            assert {count for rows in runs.values() for count, *_ in rows} == {IMAGES * EACH}
            ours = runs["flyspeck"]
            for who, rows in runs.items():
                ratio = statistics.median(mine[1] / other[1] for mine, other in zip(ours, rows, strict=True))
                seconds, megabytes = (statistics.median(row[part] for row in rows) for part in (1, 2))
                entry = {
                    "seconds": round(seconds, 3),
                    "megabytes": round(megabytes, 1),
                    "flyspeck_takes": round(ratio, 2),
                }
                found["formats"].setdefault(name, {})[who] = entry
                print(
                    f"{name:5} {who:12} {seconds:6.2f} s {megabytes:7.1f} MB   flyspeck takes {ratio:.2f} times as long"
                )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
