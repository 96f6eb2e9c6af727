from __future__ import annotations

import os

import pytest
import torch
from tiny_exports import exports  # noqa: F401 (a fixture)


@pytest.fixture(autouse=True)
def openvino_on_the_whole_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONEDNN_MAX_CPU_ISA (`tests/processors.py`) holds PyTorch's oneDNN to older instructions, and not OpenVINO's own copy of it.

    OpenVINO asks the processor itself what it can, and stops ("bad combination") where its oneDNN says less: it cannot be held
    to older instructions in this way. Either copy reads the variable once, when it first works, PyTorch's here.
    """
    if "ONEDNN_MAX_CPU_ISA" in os.environ:
        torch.nn.functional.conv2d(torch.ones(1, 16, 32, 32), torch.ones(16, 16, 3, 3))
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
