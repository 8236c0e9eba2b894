"""Functions of static buffers as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch


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
            with torch.cuda.graph(self._graph):
                self._function()
            self._graph.replay()
