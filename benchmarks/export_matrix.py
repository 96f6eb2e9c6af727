"""Every detector as plain runtimes run it, against `flyspeck predict`: `python benchmarks/export_matrix.py [NAME...]`.

The zoo and the laboratory's comparators, tiny and with random weights whose scores are spread out, on noise; the detectors of
`models/` on real images, where those lie beside the project. Each is exported and run in ONNX Runtime and OpenVINO (float32)
at batches of 1, 2, 3 and 7 and at five sizes that are no multiples of anything, with nothing of flyspeck between. A box counts
as equal as in `flyspeck export`. What is in the result file already is not run again; `--table PAGE` writes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from verdict import RESULTS

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "export")]

from every_batch import differences  # noqa: E402
from every_model import COMPARATORS, matrix_of, names  # noqa: E402

from flyspeck.export.check_images import named_set  # noqa: E402
from flyspeck.export.parity import Difference  # noqa: E402
from flyspeck.export.plain_run import BATCHES, images_of, odd_sizes  # noqa: E402
from flyspeck.files import write_json  # noqa: E402
from flyspeck.train.build import load_described  # noqa: E402

TRAINED = {
    "hituav_half": "hituav/val_blk.json",
    "aerialcars": "aerialcars/val.json",
    "facemask_tinaface": "facemask/val.json",
    "coco453_100_person": "coco453_100/val2017.json",
}
"""Detectors of `models/`, and images to run them on."""
ENGINES = {".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
START, END = "<!-- the table of benchmarks/export_matrix.py -->", "<!-- end -->"


def trained(name: str, data: Path, folder: Path) -> dict[str, Difference] | str:
    """A shipped detector on real images."""
    detector, description = load_described(ROOT / "models" / name / "model.safetensors")
    images = named_set(data / TRAINED[name], detector.classes)
    own = images_of(images, description, odd_sizes(description))
    return differences(detector, folder, description=description, images=own)


def row_of(found: dict[str, Difference] | str) -> dict[str, Any]:
    """Plain values."""
    if isinstance(found, str):
        return {"refused": found}
    return {
        "same": all(one.unmatched == 0 and one.ties <= max(2, 0.002 * one.boxes) for one in found.values()),
        **{key: one.to_dict() for key, one in found.items()},
    }


def table(rows: dict[str, Any]) -> str:
    """Largest difference of a side in pixels, over the sizes."""
    batches = [f"{engine} {batch}" for engine in ENGINES.values() for batch in BATCHES]
    lines = [f"| detector | {' | '.join(batches)} | score | boxes | ties |", "|---|" + "---|" * (len(batches) + 3)]
    for name, row in rows.items():
        if "refused" in row:
            lines.append(f"| `{name}` | refused: {row['refused']} |" + " |" * (len(batches) + 2))
            continue
        if "error" in row:
            lines.append(f"| `{name}` | **failed: {row['error']}** |" + " |" * (len(batches) + 2))
            continue
        cells = {key: one for key, one in row.items() if key != "same"}
        px = [
            max(one["box_px"] for key, one in cells.items() if key.startswith(f"{suffix} {batch}x"))
            for suffix in ENGINES
            for batch in BATCHES
        ]
        score = max(one["score"] for one in cells.values())
        boxes, ties, lone = (sum(one[key] for one in cells.values()) for key in ("boxes", "ties", "unmatched"))
        told = f"{ties}" + (f", **{lone} without a partner**" if lone else "")
        lines.append(f"| `{name}` | {' | '.join(f'{v:.0e}' for v in px)} | {score:.0e} | {boxes} | {told} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help="of the zoo, of a comparator or of a folder of models/; by default all"
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=RESULTS / "export_matrix.json")
    parser.add_argument("--table", type=Path, help="the page whose table is replaced by that of the result file")
    asked = parser.parse_args()
    rows: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
    order = [*TRAINED, *names()[:7], *COMPARATORS, *names()[7:]]
    if asked.table is None:
        torch.set_num_threads(1)
        for name in asked.names or [name for name in order if name not in rows]:
            with tempfile.TemporaryDirectory() as folder:
                run = (
                    (lambda f, n=name: trained(n, asked.data, f))
                    if name in TRAINED
                    else lambda f, n=name: matrix_of(n, f)
                )
                try:
                    rows[name] = row_of(run(Path(folder)))
                except Exception as error:  # one that fails is a row of the table, and the others go on
                    rows[name] = {
                        "same": False,
                        "error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                    }
            rows = {name: rows[name] for name in order if name in rows}
            write_json(asked.out, rows)
            print(table({name: rows[name]}).splitlines()[-1], flush=True)
    else:
        page = asked.table.read_text()
        before, after = page.split(START)[0], page.split(END)[1]
        asked.table.write_text(f"{before}{START}\n\n{table(rows)}\n\n{END}{after}")
    failed = [name for name, row in rows.items() if not row.get("same", True)]
    print(
        f"{len(rows)} detectors, {sum('refused' in row for row in rows.values())} refused, {len(failed)} failed {failed}"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
