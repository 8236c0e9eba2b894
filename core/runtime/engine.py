"""The fast way to run a loaded Lance, handed to its pipeline: decoding and denoising behind static buffers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from core.lance.cache import KVCache
from core.lance.generation import Drawing
from core.lance.model import Lance
from core.runtime.denoiser import Denoiser
from core.runtime.stack import Stack
from core.runtime.text_decoder import TextDecoder

SMALLEST_CACHE = 512


class Engine:
    """Implements ``core.lance.loading.Engine``. Its caches are reused: one question at a time."""

    def __init__(self, model: Lance) -> None:
        self.stack = Stack(model)
        self._decoders: dict[int, TextDecoder] = {}

    def new_cache(self, rows: int) -> KVCache:
        """An empty static cache with room for ``rows`` rows; the one handed out before is given up."""
        capacity = SMALLEST_CACHE
        while capacity < rows:
            capacity *= 2
        if capacity not in self._decoders:
            self._decoders[capacity] = TextDecoder(self.stack, capacity)
        cache = self._decoders[capacity].cache
        cache.length = 0
        return cache

    def decode(
        self, cache: KVCache, token: int, position: int, vocabulary: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Greedy decoding behind a filled cache of ``new_cache``; see ``TextDecoder.run``."""
        return self._decoders[cache.capacity].run(token, position, vocabulary)

    def velocities(self, drawing: Drawing) -> Denoiser:
        """Both velocities of a drawing, batched."""
        return Denoiser(self.stack, drawing)


def accelerated(device: torch.device) -> bool:
    """Whether an engine pays on this device: it saves launches, which cost little on a CPU."""
    return device.type == "cuda"
