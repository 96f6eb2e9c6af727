"""Work of several stages that is crashed: pre-training, distillation, the factor predictor, and the laboratory's tables."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_disk import run
from jobs import QUICK, Job, parsed, plain_recipe

from small_training import write_set as write_squares_set
from tiny_sets import dynamic_recipe, write_set


def weights_of(path: Path) -> dict[str, object]:
    """The tensors of a weights file, by file and name."""
    from flyspeck.train.checkpoint import load_weights

    return {f"{path.name} {key}": tensor for key, tensor in load_weights(path)[0].items()}


def run_folder(folder: Path) -> dict[str, object]:
    """What a finished run leaves that holds no times."""
    names = [name for name in ("detections.json", "evaluation.json", "recipe.yaml") if (folder / name).is_file()]
    found: dict[str, object] = {name: (folder / name).read_bytes() for name in names}
    assert names
    return found | weights_of(folder / "best.safetensors")


def pretraining(squares: Path) -> Job:
    import torch

    from flyspeck.data.classification import LabelledImages
    from flyspeck.models.build import build_backbone
    from flyspeck.train.pretrain import pretrain
    from flyspeck.train.sections import TrainConfig

    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pixels = (rng.integers(0, 90, (24, 32, 32, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    images = LabelledImages(pixels, labels, ("a", "b", "c"), "three greys")
    config = TrainConfig(
        optimizer="sgd", epochs=3, batch_size=8, lr=0.01, warmup_steps=1, workers=0, checkpoint_every=2
    )

    def begin(folder: Path, *, resume: bool = False) -> bool:
        torch.manual_seed(0)
        backbone = build_backbone("resnet18", width=0.125)
        return bool(pretrain(backbone, images, images, config, folder, name="resnet18", device="cpu", resume=resume))

    def results(folder: Path) -> dict[str, object]:
        from safetensors.torch import load_file

        with (folder / "log.csv").open(newline="") as file:
            rows = [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]
        return {"log": rows, **load_file(folder / "backbone.safetensors")}

    def whole(folder: Path) -> None:
        from safetensors.torch import load_file

        for path in folder.glob("*.safetensors"):
            if not path.name.startswith("."):
                load_file(path)

    return Job(begin, lambda folder: begin(folder, resume=folder.is_dir()), results, whole)


def distilling(squares: Path) -> Job:
    from flyspeck.train.config import dump_recipe
    from flyspeck.train.distill.config import DistillConfig
    from flyspeck.train.distill.stages import distill

    few, teacher = squares.parent / "few", squares.parent / "teacher.yaml"
    write_squares_set(few, "train", 4, 1)
    write_squares_set(few, "val", 2, 2)
    plain = plain_recipe(few, QUICK, epochs=1, batch_size=2)
    teacher.write_text(dump_recipe(plain))
    section = DistillConfig.model_validate({"teacher": str(teacher), "weight": 0.1, "finetune": {"epochs": 1}})
    recipe = plain.model_copy(update={"distill": section})

    def begin(folder: Path, *, resume: bool = False) -> bool:
        return bool(distill(recipe, folder, resume=resume))

    def results(folder: Path) -> dict[str, object]:
        table = json.loads((folder / "table.json").read_text())
        found: dict[str, object] = {"rows": len(table["rows"])}
        for stage in (".", "distilled", "teacher"):
            found |= {f"{stage} {name}": value for name, value in run_folder(folder / stage).items()}
        return found

    return Job(begin, lambda folder: begin(folder, resume=True), results, parsed)


def fitting(squares: Path) -> Job:
    from flyspeck.cli.main import main
    from flyspeck.train.run import train

    made, tiny = squares.parent / "dynamic", squares.parent / "tiny"
    if not made.is_dir():
        write_set(tiny, 4, seed=1, name="train.json")
        write_set(tiny, 3, seed=2, name="val.json")
        recipe = dynamic_recipe(tiny, {**QUICK, "name": "retinanet:few_layers"}, predictor_epochs=1)
        code, _, said = run(lambda: bool(train(recipe, made)), made)
        assert code == 0, said
        shutil.rmtree(made / "dpnet", ignore_errors=True)
        for kept in made.glob("*losses*"):
            kept.unlink()

    def prepare(folder: Path) -> None:
        shutil.copytree(made, folder / "run")

    def begin(folder: Path) -> int:
        return main(["dpnet", "fit", str(folder / "run"), "--device", "cpu"])

    def results(folder: Path) -> dict[str, object]:
        out = folder / "run" / "dpnet"
        losses = {path.name: path.read_bytes() for path in sorted((folder / "run").glob("factor-losses*"))}
        choices = {path.name: path.read_bytes() for path in sorted(out.glob("factor-*.json"))}
        return {**run_folder(out), **losses, **choices}

    return Job(begin, begin, results, parsed, prepare)


def rows_of_a_table(squares: Path) -> Job:
    pytest.importorskip("flyspeck_lab", reason="the laboratory is not installed")
    import yaml

    from flyspeck.files import write_text
    from flyspeck.publish.score import SAMPLES
    from flyspeck_lab import runner
    from flyspeck_lab.kinds import Folders, JobOutcome
    from flyspeck_lab.results import Entry, read_results
    from flyspeck_lab.table import load_table

    place = squares.parent
    (place / "base.yaml").write_text(yaml.safe_dump(plain_recipe(squares).model_dump(mode="json")))
    table: dict[str, Any] = {
        "name": "small", "title": "A small table", "source": "nowhere",
        "sets": {"squares": {"train": "squares/train.json", "val": "squares/val.json", "make": "the test"}},
        "grades": {"cpu": {"base": "base.yaml", "data": "squares"}},
        "rows": [{"name": "plain", "seeds": [0, 1]}, {"name": "other", "set": {"train.epochs": 1}, "seeds": [0, 1]}],
        "claims": [{"text": "one is better", "row": "other", "than": "plain", "metric": "ap50_all"}],
    }  # fmt: skip
    (place / "small.yaml").write_text(yaml.safe_dump(table))

    def outcome(job: Any, places: Folders) -> JobOutcome:
        """In place of a training, which is crashed by itself: numbers that hang on the row and the seed."""
        rng = np.random.default_rng((len(job.row.name), job.seed))
        job.folder(places.runs).mkdir(parents=True, exist_ok=True)
        write_text(job.folder(places.runs) / "detections.json", "[]")
        value = 0.25 + 0.25 * (job.row.name == "other") + 0.01 * float(rng.random())
        entry = Entry("cpu", job.row.name, job.seed, job.definition, metrics={"ap50_all": value})
        draws = {"ap50_all": np.clip(value + 0.01 * rng.normal(size=SAMPLES), 0, 1)}
        return JobOutcome([entry], {entry.key: draws})

    def begin(folder: Path) -> int:
        runner.run = outcome
        places = Folders(data=place, runs=folder / "runs")
        order = runner.Order("cpu", places, folder / "results")
        done, left = runner.run_tables([load_table(place / "small.yaml")], order)
        assert left == 0, done
        return 0

    def results(folder: Path) -> dict[str, object]:
        found = read_results(folder / "results", "small")
        draws = {f"{key} {name}": values.tolist() for key, one in found.draws.items() for name, values in one.items()}
        text = (folder / "results" / "small.csv").read_text()
        return {"entries": found.entries, "verdicts": found.verdicts, "csv": text, **draws}

    def whole(folder: Path) -> None:
        parsed(folder)
        found = read_results(folder / "results", "small")
        assert {entry.key for entry in found.entries} <= set(found.draws), "a row counts as done without its resamples"

    return Job(begin, begin, results, whole)
