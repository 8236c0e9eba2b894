"""Matrix products of a decoder layer as an engine runs them: linears that share an input in one launch,
into given buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from kernels import decoder_ops, fp8, row
from kernels import linear as kernel
from kernels.arguments import RowNorm
from kernels.tiles import TiledWeight
from kernels.weights import Int4Weight, Nvfp4Weight, concatenate_int4, concatenate_nvfp4


class Projection(Protocol):
    """One or more linears over the same rows."""

    out_features: int

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the outputs of rows x [M, K], side by side, to ``out`` [M, out_features]."""
        ...

    def swiglu(self, x: Tensor, out: Tensor) -> Tensor:
        """Write ``silu(gate) * up`` of rows x [M, K] to ``out`` [M, out_features / 2]; the linears are gate, up."""
        ...


class GatedBehind:
    """Linears whose product SwiGLU is a launch behind."""

    def swiglu(self: Projection, x: Tensor, out: Tensor) -> Tensor:
        """See ``Projection``."""
        return decoder_ops.swiglu(self(x, x.new_empty(x.shape[0], self.out_features)), out)


class FusedLinear(GatedBehind):
    """Plain linears as one matrix. Their parameters become views of it, so nothing is held twice."""

    def __init__(self, modules: Sequence[nn.Linear]) -> None:
        if len(modules) == 1:
            self.weight: Tensor = modules[0].weight.data
            self.bias: Tensor | None = None if modules[0].bias is None else modules[0].bias.data
        else:
            self.weight = _stacked([module.weight.data for module in modules])
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


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """Matrices [rows, columns] as one: without a copy where they lie one behind the other, as loading lays them."""
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        if not weight.is_contiguous() or weight.data_ptr() != end:
            return torch.cat(list(weights))
        end += weight.nbytes
    if end > first.untyped_storage().data_ptr() + first.untyped_storage().nbytes():
        return torch.cat(list(weights))  # neighbours by chance
    rows = sum(weight.shape[0] for weight in weights)
    return first.as_strided((rows, first.shape[1]), first.stride())


def _joint_bias(modules: Sequence[QuantizedLinear | Fp8Linear], like: Tensor) -> Tensor | None:
    """The biases of ``modules`` behind one another, zeros for those without, where ``like`` is; None if all are."""
    if all(module.bias is None for module in modules):
        return None
    biases = [
        like.new_zeros(module.out_features, dtype=torch.bfloat16) if module.bias is None else module.bias
        for module in modules
    ]
    return torch.cat(biases)


class FusedQuantized:
    """Quantized linears as one weight in the kernels' layout, of which the modules keep their rows."""

    def __init__(self, weight: TiledWeight, modules: Sequence[QuantizedLinear]) -> None:
        self.weight = weight
        self.out_features = weight.rows
        first = 0
        for module in modules:
            module.adopt(weight, first)
            first += module.out_features
        self.bias = _joint_bias(modules, weight.codes)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return kernel.linear(x, self.weight, self.bias, out)

    def swiglu(self, x: Tensor, out: Tensor) -> Tensor:
        return kernel.linear_swiglu(x, self.weight, self.bias, out)

    def of_norm(self, x: Tensor, norm: RowNorm, out: Tensor, gated: bool = False) -> Tensor:
        """As calling it, or ``swiglu``, with the normed row x [1, K]."""
        return row.linear_of_norm(x, norm, self.weight, self.bias, out, gated)

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the output of row x [1, K] to ``residual`` [1, out_features] in place."""
        return row.add_linear(x, self.weight, self.bias, residual)


def fuse(modules: Sequence[QuantizedLinear]) -> FusedQuantized | None:
    """The linears as one weight of the kernels, each freed of its own as soon as that exists; None, with the
    warning of ``kernels.linear.prepare``, if no kernel runs them.
    """
    stored = [module.stored() for module in modules]
    ints = [weight for weight in stored if isinstance(weight, Int4Weight)]
    floats = [weight for weight in stored if isinstance(weight, Nvfp4Weight)]
    if len(ints) < len(stored) > len(floats):
        for module in modules:
            module.lay_out()
        return None
    joint = concatenate_int4(ints) if ints else concatenate_nvfp4(floats)
    prepared = kernel.prepare(joint if len(modules) > 1 else stored[0])  # type: ignore[arg-type]
    return FusedQuantized(prepared, modules) if isinstance(prepared, TiledWeight) else None


class FusedFp8(GatedBehind):
    """FP8 linears as one weight. Their codes and scales become views of it, so nothing is held twice."""

    def __init__(self, modules: Sequence[Fp8Linear]) -> None:
        self.weight = modules[0].parts if len(modules) == 1 else fp8.concatenate([m.parts for m in modules])
        self.out_features = self.weight.shape[0]
        start = 0
        for module in modules:
            stop = start + module.out_features
            module.weight = self.weight.codes[start:stop]
            module.weight_scale = self.weight.scale[start:stop].unsqueeze(1)
            module.wide = None if self.weight.wide is None else self.weight.wide[start:stop]
            start = stop
        self.bias = _joint_bias(modules, self.weight.codes)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return fp8.fp8_linear(x, self.weight, self.bias, out)

    def of_swiglu(self, gate_up: Tensor, out: Tensor) -> Tensor:
        """As calling it with ``silu(gate) * up`` of fused rows [M, 2 K], which is rounded to FP8 as it is computed."""
        return fp8.multiply(*fp8.quantize_swiglu(gate_up), self.weight, self.bias, out)


class SeparateLinears(GatedBehind):
    """Linears of any other kind, run one after another."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.sizes = [int(module.out_features) for module in self.modules]  # type: ignore[arg-type]
        self.out_features = sum(self.sizes)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        for module, part in zip(self.modules, out.split(self.sizes, dim=1), strict=True):
            part.copy_(module(x))
        return out


def project(modules: Sequence[nn.Module]) -> Projection:
    """The fastest projection for these modules."""
    linears = [module for module in modules if type(module) is nn.Linear]
    if len(linears) == len(modules):
        return FusedLinear(linears)
    rounding = [module for module in modules if isinstance(module, Fp8Linear)]
    if len(rounding) == len(modules):
        return FusedFp8(rounding)
    quantized = [module for module in modules if isinstance(module, QuantizedLinear)]
    if len(quantized) == len(modules) and not kernel.no_kernels(quantized[0].weight_packed.device):
        fused = fuse(quantized)
        if fused is not None:
            return fused
    return SeparateLinears(modules)
