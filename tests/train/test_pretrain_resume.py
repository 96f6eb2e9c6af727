"""A pre-training that is killed anywhere ends as one that was not; from memory, folders and shards; on several processes."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flyspeck.cli.main import main
from flyspeck.data.labelled_files import list_labelled_images
from flyspeck.errors import UserError
from flyspeck.models.build import build_backbone
from flyspeck.train import pretrain as module
from flyspeck.train.config import TrainConfig
from flyspeck.train.pretrain import pretrain
from flyspeck.train.pretrain_sets import read_sets
from flyspeck.train.processes import Alone
from labelled_sets import write_folders, write_shards

CONFIG = TrainConfig(
    optimizer="sgd", epochs=3, batch_size=8, lr=0.05, warmup_steps=2, schedule="cosine", checkpoint_every=1, workers=0
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Kill(BaseException):
    """Nothing of ours catches it."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_shards(root / "shards", "train", shards=3, each=10)
    write_shards(root / "shards", "val", shards=1, each=9, first=100)
    write_folders(root / "folders", "train", 30)
    write_folders(root / "folders", "val", 9, first=100)
    return root


def run(root: Path, out: Path, *, stream: bool | None, resume: bool = False, config: TrainConfig = CONFIG):
    torch.manual_seed(0)
    train, val = read_sets(root, size=32, stream=stream)
    found = pretrain(
        build_backbone("resnet18", width=0.06), train, val, config, out, size=32, device="cpu", resume=resume
    )
    with (out / "log.csv").open() as file:
        rows = [row[:4] for row in csv.reader(file)]
    return (
        found.top1,
        found.epoch,
        rows,
        load_file(found.weights),
        torch.load(out / "state.pt", weights_only=True)["model"],
    )


@pytest.mark.parametrize(("kind", "stream"), [("folders", False), ("folders", True), ("shards", None)])
def test_killed_anywhere_it_ends_the_same(sets, tmp_path, monkeypatch, kind, stream):
    expected = run(sets / kind, tmp_path / "whole", stream=stream)
    assert len(expected[2]) == 4
    saves, plain = 0, module.save_state
    for kill in (2, 3, 4, 8):  # before checkpoints within the first epoch, after it, at its end, and in the last
        saves = 0

        def save(path, state, kill=kill):
            nonlocal saves
            saves += 1
            if saves == kill:
                raise Kill
            plain(path, state)

        monkeypatch.setattr(module, "save_state", save)
        with pytest.raises(Kill):
            run(sets / kind, tmp_path / f"{kill}", stream=stream)
        monkeypatch.setattr(module, "save_state", plain)
        found = run(sets / kind, tmp_path / f"{kill}", stream=stream, resume=True)
        assert found[:3] == expected[:3]
        for got, wanted in zip(found[3:], expected[3:], strict=True):
            assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_it_learns_from_the_disk(tmp_path):
    write_shards(tmp_path, "train", shards=4, each=24)
    write_shards(tmp_path, "val", shards=1, each=30, first=200)
    torch.manual_seed(0)
    train, val = read_sets(tmp_path, size=32)
    config = CONFIG.model_copy(update={"epochs": 5, "batch_size": 16, "checkpoint_every": None})
    found = pretrain(
        build_backbone("resnet18", width=0.125), train, val, config, tmp_path / "run", size=32, device="cpu"
    )
    assert found.top1 > 0.8


def test_what_may_not_change(sets, tmp_path):
    config = CONFIG.model_copy(update={"epochs": 1})
    run(sets / "shards", tmp_path, stream=None, config=config)
    with pytest.raises(UserError, match="holds a pre-training already; choose another --out, or go on with --resume"):
        run(sets / "shards", tmp_path, stream=None, config=config)
    run(sets / "shards", tmp_path, stream=None, config=config, resume=True)  # it is at its end
    with pytest.raises(UserError, match=r"state.pt: this run was started with another lr; resume with the same"):
        run(sets / "shards", tmp_path, stream=None, resume=True, config=config.model_copy(update={"lr": 0.1}))
    with pytest.raises(UserError, match="started with another data"):
        run(sets / "folders", tmp_path, stream=True, resume=True, config=config)
    with pytest.raises(UserError, match="nothing to resume"):
        run(sets / "shards", tmp_path / "absent", stream=None, resume=True)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    state["model"].popitem()
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state.pt: not the state of this run \(.*start a new run"):
        run(sets / "shards", tmp_path, stream=None, config=config, resume=True)
    torch.save({"description": {}}, tmp_path / "state.pt")
    with pytest.raises(UserError, match=r"state.pt: not the state of a pre-training"):
        run(sets / "shards", tmp_path, stream=None, config=config, resume=True)


def test_broken_images_are_counted_in_what_is_kept(tmp_path, caplog):
    write_folders(tmp_path, "train", 30)
    write_folders(tmp_path, "val", 9, first=100)
    (tmp_path / "train" / "rows" / "000002.png").write_bytes(b"broken")
    (tmp_path / "val" / "rows" / "000101.png").write_bytes(b"broken")
    train, val = (list_labelled_images(tmp_path, split) for split in ("train", "val"))
    config = CONFIG.model_copy(update={"epochs": 2})
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        found = pretrain(
            build_backbone("resnet18", width=0.06), train, val, config, tmp_path / "run", size=32, max_broken_share=0.2
        )
    assert "rows/000002.png: cannot be decoded" in caplog.text
    assert "rows/000101.png: cannot be decoded" in caplog.text
    assert "1 training images could not be used so far; others stand in for them" in caplog.text
    assert found.top1 in [n / 9 for n in range(10)] + [n / 8 for n in range(9)]
    from safetensors import safe_open

    with safe_open(found.weights, "pt") as file:
        assert file.metadata()["broken"] == "1"


def test_which_way_a_set_is_read(sets, tmp_path, monkeypatch):
    assert type(read_sets(sets / "folders", size=32)[0]).__name__ == "LabelledImages"
    assert type(read_sets(sets / "folders", size=32, stream=True)[1]).__name__ == "LabelledFiles"
    monkeypatch.setattr("flyspeck.train.pretrain_sets.HELD_BYTES", 30 * 32 * 32 * 3 - 1)
    train, _ = read_sets(sets / "folders", size=32)
    assert (type(train).__name__, len(train)) == ("LabelledFiles", 30)
    assert len(read_sets(sets / "folders", size=32, per_class=2)[0]) == 6
    with pytest.raises(UserError, match="holds shards, which are read when needed; leave out --in-memory"):
        read_sets(sets / "shards", size=32, stream=False)
    (tmp_path / "train.npz").touch()
    with pytest.raises(UserError, match="holds arrays, which are read as a whole; leave out --stream"):
        read_sets(tmp_path, size=32, stream=True)
    with pytest.raises(UserError, match="no such folder"):
        read_sets(tmp_path / "absent", size=32, stream=True)


def arguments(root: Path, out: Path) -> list[str]:
    given = [
        "pretrain",
        "resnet18",
        str(root),
        "--out",
        str(out),
        "--epochs",
        "2",
        "--batch-size",
        "10",
        "--size",
        "32x32",
    ]
    return [*given, "--width", "0.06", "--device", "auto", "--loaders", "0"]


def test_verb_with_shards(sets, tmp_path, capsys):
    assert main([*arguments(sets / "shards", tmp_path / "run"), "--max-per-class", "8"]) == 0
    assert "24 training and 9 validation images of 3 classes" in capsys.readouterr().out
    assert main([*arguments(sets / "shards", tmp_path / "run"), "--max-per-class", "8"]) == 2
    assert "go on with --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_kill_is_survived(sets, tmp_path):
    """By SIGKILL within an epoch, by SIGTERM, which is saved, and whole: the same weights."""
    launch = [sys.executable, "-c", PROGRAM, str(sets / "shards")]
    subprocess.run([*launch, str(tmp_path / "whole")], env=ENVIRONMENT, check=True)
    for name, kind in (("killed", signal.SIGKILL), ("asked", signal.SIGTERM)):
        process = subprocess.Popen([*launch, str(tmp_path / name)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        state = tmp_path / name / "state.pt"
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        process.send_signal(kind)
        assert process.wait() != 0
        stopped = torch.load(state, weights_only=True)["progress"]
        assert stopped["epoch"] < 40
        subprocess.run([*launch, str(tmp_path / name)], env=ENVIRONMENT, check=True)
        got, wanted = (load_file(tmp_path / one / "backbone.safetensors") for one in (name, "whole"))
        assert all(torch.equal(got[key], value) for key, value in wanted.items())


PROGRAM = """
import sys
from pathlib import Path

import torch

from flyspeck.models.build import build_backbone
from flyspeck.train.config import TrainConfig
from flyspeck.train.pretrain import pretrain
from flyspeck.train.pretrain_sets import read_sets

config = TrainConfig(optimizer="sgd", epochs=40, batch_size=10, lr=0.05, schedule="cosine", checkpoint_every=2, workers=0)
torch.manual_seed(0)
out = Path(sys.argv[2])
pretrain(build_backbone("resnet18", width=0.06), *read_sets(Path(sys.argv[1]), size=32), config, out, size=32,
         resume=out.exists())
"""


@pytest.mark.slow
def test_two_processes_share_a_batch(sets, tmp_path):
    """Losses as of one process, but for norms over half of a batch; killed and resumed, two end bit for bit the same."""
    several = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    (tmp_path / "program.py").write_text(f"{KILLED}\n{PROGRAM.replace('epochs=40', 'epochs=2')}")
    launch = [*several, str(tmp_path / "program.py"), str(sets / "shards")]
    for out, kill in (("two", ""), ("again", "2"), ("again", "")):  # the second checkpoint is due in the second epoch
        environment = {**ENVIRONMENT, "KILL": kill}
        done = subprocess.run([*launch, str(tmp_path / out)], env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == (not kill), done.stderr[-2000:]
    subprocess.run([sys.executable, str(tmp_path / "program.py"), str(sets / "shards"), str(tmp_path / "one")],
                   env={**ENVIRONMENT, "KILL": ""}, check=True)  # fmt: skip
    logs = []
    for out in ("two", "again", "one"):
        with (tmp_path / out / "log.csv").open() as file:
            logs.append([(row["loss"], row["top1"]) for row in csv.DictReader(file)])
    assert logs[0] == logs[1]
    for two, alone in zip(logs[0], logs[2], strict=True):
        assert float(two[0]) == pytest.approx(float(alone[0]), abs=0.35)
    got, wanted = (load_file(tmp_path / out / "backbone.safetensors") for out in ("two", "again"))
    assert all(torch.equal(got[key], value) for key, value in wanted.items())


KILLED = """
import os
from flyspeck.train import pretrain as module

plain, saves = module.save_state, 0


def save(path, state):
    global saves
    saves += 1
    if str(saves) == os.environ["KILL"]:
        os._exit(9)
    plain(path, state)


module.save_state = save
"""


def test_a_batch_that_processes_cannot_share(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(module, "join_processes", lambda: Alone(torch.device("cpu"), 0, 2))
    config = CONFIG.model_copy(update={"batch_size": 9})
    with pytest.raises(UserError, match="batch_size: a batch of 9 images for so many processes; give a multiple of 2"):
        run(sets / "shards", tmp_path, stream=None, config=config)


@pytest.mark.slow
def test_bh_resnet50_at_224_pixels_takes_two_steps(tmp_path):
    """The whole network, the recipe's settings, on a folder of classes that is streamed."""
    write_folders(tmp_path, "train", 12)
    write_folders(tmp_path, "val", 3, first=100)
    words = [
        "pretrain",
        "bh_resnet50",
        str(tmp_path),
        "--size",
        "224x224",
        "--lr",
        "0.1",
        "--precision",
        "bf16",
        "--stream",
    ]
    out = tmp_path / "run"
    assert main([*words, "--epochs", "1", "--batch-size", "6", "--device", "cpu", "--out", str(out)]) == 0
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["progress"]["epoch"] == 1
    assert (
        sum(v.numel() for k, v in load_file(out / "backbone.safetensors").items() if k.endswith("weight")) > 10_900_000
    )
    assert json.dumps(state["pretraining"]["train"])
