"""Matrix products of a decoder layer as an engine runs them: linears that share an input in one launch,
into given buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from kernels import decoder_ops


class Projection(Protocol):
    """One or more linears over the same rows."""

    out_features: int

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the outputs of rows x [M, K], side by side, to ``out`` [M, out_features]."""
        ...

    def swiglu(self, x: Tensor, out: Tensor) -> Tensor:
        """Write ``silu(gate) * up`` of rows x [M, K] to ``out`` [M, out_features / 2]; the linears are gate, up."""
        ...


class FusedLinear:
    """Plain linears as one matrix. Their parameters become views of it, so nothing is held twice."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        if len(modules) == 1:
            self.weight: Tensor = modules[0].weight.data
            self.bias: Tensor | None = None if modules[0].bias is None else modules[0].bias.data
        else:
            self.weight = torch.cat([module.weight.data for module in modules])
            biases = [module.bias.data for module in modules if module.bias is not None]
            self.bias = torch.cat(biases) if biases else None
            start = 0
            for module in modules:
                stop = start + module.out_features
                module.weight = nn.Parameter(self.weight[start:stop], requires_grad=False)
                if self.bias is not None:
                    module.bias = nn.Parameter(self.bias[start:stop], requires_grad=False)
                start = stop
        self.out_features = self.weight.shape[0]

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)

    def swiglu(self, x: Tensor, out: Tensor) -> Tensor:
        return decoder_ops.swiglu(self(x, x.new_empty(x.shape[0], self.out_features)), out)


class SeparateLinears:
    """Linears of any other kind (quantized ones), run one after another."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.sizes = [int(module.out_features) for module in self.modules]  # type: ignore[arg-type]
        self.out_features = sum(self.sizes)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        for module, part in zip(self.modules, out.split(self.sizes, dim=1), strict=True):
            part.copy_(module(x))
        return out

    def swiglu(self, x: Tensor, out: Tensor) -> Tensor:
        return decoder_ops.swiglu(self(x, x.new_empty(x.shape[0], self.out_features)), out)


def project(modules: Sequence[nn.Module]) -> Projection:
    """The fastest projection for these modules."""
    linears = [module for module in modules if type(module) is nn.Linear]
    return FusedLinear(linears) if len(linears) == len(modules) else SeparateLinears(modules)
