"""Functions of static buffers as CUDA graphs, and reading what they leave without stopping the device."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor


class Replayed:
    """A function of static buffers, captured as a CUDA graph at its second call on a GPU and replayed after
    that.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm = False

    def __call__(self) -> None:
        if self._device.type != "cuda":
            self._function()
        elif self._graph is not None:
            self._graph.replay()
        elif not self._warm:
            # Libraries allocate and tune at their first call, which a capture must not see.
            self._function()
            self._warm = True
        else:
            self._graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize(self._device)
            # A decoder that nobody uses any more holds graphs and, being part of a cycle, goes whenever Python next
            # collects: freeing them in the middle of a capture would spoil it.
            gc.collect()
            with torch.cuda.graph(self._graph):
                self._function()
            self._graph.replay()


class Readback:
    """One integer on its way from the device: sent when it is computed, received when it is needed."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host = torch.zeros((), dtype=torch.int64, pin_memory=self._stream is not None)

    def send(self, value: Tensor) -> None:
        """Start copying ``value`` (int64, no dimensions) as the work launched so far leaves it.

        Work launched later must not write it.
        """
        if self._stream is None:
            self._host.copy_(value)
            return
        self._stream.wait_stream(torch.cuda.current_stream(value.device))
        with torch.cuda.stream(self._stream):
            self._host.copy_(value, non_blocking=True)

    def receive(self) -> int:
        """The value sent last, as soon as it is there."""
        if self._stream is not None:
            self._stream.synchronize()
        return int(self._host)
