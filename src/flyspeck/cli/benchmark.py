"""`flyspeck benchmark`: what each engine costs on this machine, from file to result file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flyspeck.cli.shared_options import THREADS
from flyspeck.cli.values import parse_names, parse_numbers
from flyspeck.errors import counted, missing_extra
from flyspeck.files import write_json

if TYPE_CHECKING:
    from flyspeck.export.benchmark import EngineResult

DEFAULT = "eager,eager bf16,compiled,onnx,openvino,openvino bf16,onnx int8,openvino int8"


def benchmark(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder or a weights file."),
    on: Path = typer.Option(
        None, "--on", metavar="PATH", help="Images or annotations to measure on; default: the run's own."
    ),
    out: Path = typer.Option(
        None, "--out", metavar="FOLDER", help="Where to write: the folder of benchmark.json and benchmark.png."
    ),
    engines: str = typer.Option(
        DEFAULT,
        "--engines",
        metavar="A,B,...",
        autocompletion=lambda: DEFAULT.split(","),
        help="Engines to run, with commas between; default: all there are.",
    ),
    limit: int = typer.Option(16, "--limit", min=1, metavar="N", help="At most so many images, evenly spread."),
    rounds: int = typer.Option(3, "--rounds", min=1, metavar="N", help="Timed rounds: turns of every engine."),
    batch_size: int = typer.Option(4, "--batch-size", min=1, metavar="N", help="Batch size: tiles in one pass."),
    score: float = typer.Option(
        0.05, "--score", min=0, max=1, metavar="SCORE", help="Score threshold: weaker detections are left out."
    ),
    scales: str = typer.Option(
        "0.5,0.75,1",
        "--scales",
        metavar="A,B,...",
        help="Scales of the image, with commas between: points of the curve, whose recall falls with them.",
    ),
    threads: int = THREADS,
    calibration_tiles: int = typer.Option(
        48, "--calibration-tiles", min=1, metavar="N", help="Tiles that INT8 is calibrated on."
    ),
) -> None:
    """Milliseconds an image (decode, tile, forward, merge, write) of every engine, AP and recall; a table, json, a curve."""

    import torch

    from flyspeck.export.benchmark import build_engines, check_engines, measure
    from flyspeck.export.check_images import named_set, run_sets
    from flyspeck.train.build import load_described

    names = parse_names(engines, where="--engines")
    check_engines(names)
    factors = list(parse_numbers(scales, where="--scales", example="0.5,1"))
    detector, description = load_described(run)
    if threads is not None:
        torch.set_num_threads(threads)
    if on is None:
        calibration, chosen = run_sets(run)
    else:
        chosen = named_set(on, detector.classes)
        calibration = chosen
    chosen = chosen.spread(limit)

    def say(line: str) -> None:
        typer.echo(f"{line} ...", err=True)

    models = build_engines(detector, description, names, calibration, num_tiles=calibration_tiles, say=say)
    rows = measure(
        models, chosen, description, score=score, rounds=rounds, batch_size=batch_size, scales=factors, say=say
    )
    typer.echo(
        f"{run}: {counted(len(chosen.paths), 'image')} of {chosen.name}, {counted(torch.get_num_threads(), 'thread')}"
    )
    typer.echo(table(rows))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        told = {"run": run.name, "images": len(chosen.paths), "threads": torch.get_num_threads(), "rounds": rounds}
        told |= {"torch": torch.__version__, "score": score, "engines": [row.to_dict() for row in rows]}
        write_json(out / "benchmark.json", told)
        if any(row.curve for row in rows):
            draw_curve(rows, out / "benchmark.png")
        typer.echo(f"written to {out}")


def table(rows: list[EngineResult]) -> str:
    """The engines as lines of text: ms an image, how much faster than the first, AP50 and recall of tiny objects."""
    from flyspeck.export.benchmark import PARTS

    heads = [*PARTS, "total", "faster", "AP50 tiny", "recall tiny"]
    lines = [f"{'ms an image':<16}" + "".join(f"{head:>12}" for head in heads)]
    first = next((row.total for row in rows if not row.problem), 0.0)
    for row in rows:
        if row.problem:
            lines.append(f"{row.name:<16}  {row.problem}")
            continue
        cells = [f"{row.parts[part]:.1f}" for part in PARTS] + [f"{row.total:.1f}", f"{first / row.total:.2f}x"]
        for key in ("ap50_tiny", "recall_tiny"):
            value = row.metrics.get(key, -1.0)
            cells.append("–" if value < 0 else f"{100 * value:.2f}")
        lines.append(f"{row.name:<16}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join([*lines, *_by_size(rows)])


def _by_size(rows: list[EngineResult]) -> list[str]:
    """AP50 by size of each engine against the first."""
    able = [row for row in rows if row.metrics]
    if not able:
        return []
    from flyspeck.export.parity import ap_table

    columns = {
        row.name: {k.removeprefix("ap50_"): v for k, v in row.metrics.items() if k.startswith("ap50_")} for row in able
    }
    return ["", ap_table(columns)]


def draw_curve(rows: list[EngineResult], path: Path) -> None:
    """Recall of tiny objects over milliseconds an image, a line an engine, a point a scale."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "report") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for number, row in enumerate(row for row in rows if row.curve):
        points = sorted((p["ms"], p["recall_tiny"], p["scale"]) for p in row.curve if p.get("recall_tiny", -1) >= 0)
        style = {"marker": "os^Dv<>P"[number % 8], "linestyle": ("-", "--", "-.", ":")[number % 4]}
        axes.plot([p[0] for p in points], [100 * p[1] for p in points], label=row.name, **style)
    axes.set(xscale="log", xlabel="ms an image, end to end", ylabel="recall of tiny objects, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
