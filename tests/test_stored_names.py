"""What version 0.1 stored under other names is read under today's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from flyspeck.files import read_records, renamed_keys
from flyspeck.train.checkpoint import load_weights, save_weights


def test_a_log_of_version_0_1(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "epoch", "epoch": 1, "step": 4, "figures": {"ap50_all": 0.5}}) + "\n")
    assert read_records(path) == [{"kind": "epoch", "epoch": 1, "step": 4, "metrics": {"ap50_all": 0.5}}]


def test_weights_of_version_0_1(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    layer = nn.Linear(2, 1)
    save_weights(path, layer.state_dict(), {"figures": {"ap50_all": 0.5}, "classes": ["a"]})
    state, description = load_weights(path)
    assert description == {"metrics": {"ap50_all": 0.5}, "classes": ["a"]}
    torch.testing.assert_close(state["weight"], layer.weight.detach())


def test_what_is_stored_today_stays() -> None:
    assert renamed_keys({"metrics": {"a": 1}, "step": 2}) == {"metrics": {"a": 1}, "step": 2}
