"""The device of these tests: a CUDA device, or with FLYSPECK_GPU=played one that the processor plays (`played_gpu`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

PLAYED = os.environ.get("FLYSPECK_GPU") == "played"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """With full fp32 products: the processor's are what is compared with."""
    if PLAYED:
        from played_gpu import played_gpu

        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # its tensors have no counter of versions
        with played_gpu() as found:
            yield found
        return
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A device of real kernels."""
    if PLAYED:
        pytest.skip("needs a CUDA device")
    return device
