"""Decoded images kept in memory, for data sets that fit there."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from flyspeck.errors import UserError

log = logging.getLogger(__name__)

LIMIT_BYTES = 4 * 2**30
"""What a cache may take unless told otherwise."""

_CHUNK_BYTES = 2**27


class PixelCache:
    """Decoded images in a few flat tensors, which workers that are not forked receive as shared memory."""

    def __init__(self, decode: Callable[[int], np.ndarray], num: int, limit_bytes: int) -> None:
        self._places: dict[int, tuple[int, int, tuple[int, ...], str]] = {}
        self._chunks: list[torch.Tensor] = []
        pending: list[np.ndarray] = []
        filled = total = 0
        for index in range(num):
            try:
                pixels = decode(index)
            except UserError:
                continue  # it is reported when it is drawn
            if total + pixels.nbytes > limit_bytes:
                break
            if filled + pixels.nbytes > _CHUNK_BYTES and pending:
                self._store(pending)
                pending, filled = [], 0
            self._places[index] = (len(self._chunks), filled, pixels.shape, pixels.dtype.str)
            pending.append(pixels.reshape(-1).view(np.uint8))
            filled += pixels.nbytes
            total += pixels.nbytes
        if pending:
            self._store(pending)
        log.info("image cache: %d of %d images, %.0f MB of memory", len(self._places), num, total / 1e6)

    def _store(self, pending: list[np.ndarray]) -> None:
        self._chunks.append(torch.from_numpy(np.concatenate(pending)))

    def get(self, index: int) -> np.ndarray | None:
        """A view of the cached pixels, or None."""
        if index not in self._places:
            return None
        chunk, start, shape, dtype = self._places[index]
        stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._chunks[chunk][start:stop].numpy().view(dtype).reshape(shape)
