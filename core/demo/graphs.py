"""Running a training step as one CUDA graph, so that launching its kernels costs no processor time."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensors = tuple[torch.Tensor, ...]

_WARMUP = 3


class Repeated:
    """A function of tensors of fixed shape that is captured once and then replayed.

    ``function`` reads its inputs, changes parameters in place and returns scalars to look at. Elsewhere than on CUDA
    it is simply called.
    """

    def __init__(self, function: Callable[..., Tensors], inputs: Tensors) -> None:
        self._function = function
        self._inputs = inputs
        self._outputs: Tensors = ()
        self._graph: torch.cuda.CUDAGraph | None = None
        if not inputs[0].is_cuda:
            return
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._outputs = function(*self._inputs)
        except RuntimeError as error:
            # Some kernel of this installation cannot be captured; training works without, only slower.
            print(
                f"the step was not captured ({str(error).splitlines()[0]}); running it kernel by kernel",
                flush=True,
            )
            return
        self._graph = graph

    def __call__(self, *inputs: torch.Tensor) -> Tensors:
        """Run on ``inputs``; the returned scalars are overwritten by the next call."""
        if self._graph is None:
            return self._function(*inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs
