"""What a refinement learns: a factor for every group's scale and every norm's channel, as its logarithm.

Codes and zeros stay. Scales and norms are at every step the bfloat16 numbers that would be stored, and gradients pass
the rounding as if there were none (straight through), so what is learned is what will run.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from core.formats.compressed_tensors import SCALE
from core.quantization.groups import HEAD_NORMS, NORMS, Expert, Structure
from core.quantization.layer import STORED
from core.runtime.linear import QuantizedLinear
from kernels.packing import unpack
from kernels.reference import dequantize

Gains = dict[str, nn.Parameter]
"""Logarithms of factors, float32, by the name of the stored tensor that they multiply and in its shape."""

_LAST = "norm"
"""The norm behind the layers, beside them."""


class _Rounded(torch.autograd.Function):
    """A tensor as it is stored; gradients pass as they come."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        return wide.to(STORED).to(wide.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Product(torch.autograd.Function):
    """``x @ W.T`` where ``W`` is made from codes in either direction and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, linear: RefinedLinear) -> Tensor:
        ctx.save_for_backward(x, gain)
        ctx.linear = linear
        return nn.functional.linear(x, linear.weight(gain).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, gain = ctx.saved_tensors
        weight, grad = ctx.linear.weight(gain), grads[0]
        before = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        if gain is None or not ctx.needs_input_grad[1]:
            return before, None, None
        # A weight is its scale times a constant, so the scale's logarithm changes it by itself.
        each = (grad.flatten(0, -2).t() @ x.flatten(0, -2)).float() * weight.float()
        return before, each.unflatten(-1, (gain.shape[1], -1)).sum(-1), None


class RefinedLinear(nn.Module):
    """A quantized linear that gradients pass through, its scales [N, G] multiplied by ``exp(gain)`` if learned."""

    codes: Tensor
    zero: Tensor | None

    def __init__(self, linear: QuantizedLinear, *, learned: bool) -> None:
        super().__init__()
        self.linear = linear
        self.gain: nn.Parameter | None = None
        if learned:
            bits, rows, packed = linear.scheme.bits, linear.out_features, linear.weight_zero_point
            codes = unpack(linear.weight_packed, bits, linear.in_features)
            self.register_buffer("codes", codes.contiguous())
            self.register_buffer("zero", None if packed is None else unpack(packed, bits, rows, dim=0))
            self.gain = _zeros_like(linear.weight_scale)

    def scale(self, gain: Tensor) -> Tensor:
        """The scales [N, G] to store, in the dtype they came in."""
        found = self.linear.weight_scale
        return (found.float() * gain.exp()).to(found.dtype)

    def weight(self, gain: Tensor | None) -> Tensor:
        """The weight [N, K] that runs, to the bit as ``QuantizedLinear`` has it."""
        return self.linear.weight() if gain is None else dequantize(self.codes, self.scale(gain), self.zero)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self.gain, self)
        bias = self.linear.bias
        return product if bias is None else product + bias.to(x.dtype)


class ChannelGain(nn.Module):
    """Parametrization of a norm's weight [K]: multiplied by ``exp(gain)``, rounded as it is stored."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.gain = _zeros_like(weight)

    def forward(self, weight: Tensor) -> Tensor:
        scaled: Tensor = _Rounded.apply(weight.float() * self.gain.exp())
        return scaled.to(weight.dtype)


def _zeros_like(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(tensor, dtype=torch.float32), requires_grad=False)


def attach(model: nn.Module, structure: Structure, learn: tuple[str, ...]) -> dict[Expert, Gains]:
    """Put gains into a loaded model, all zero; gradients are wanted of none yet.

    Every layer is made to keep no more than its input until it is differentiated.
    """
    found: dict[Expert, Gains] = {expert: {} for expert in structure.experts}
    expert_of = {name: group.expert for group in structure.groups() for name in group.linears}
    # Before the layers, where words and times are embedded, nothing is learned, so these may stay as they are.
    for name in [*expert_of, structure.head]:
        module = model.get_submodule(name)
        if isinstance(module, QuantizedLinear):
            linear = RefinedLinear(module, learned="scales" in learn and name in expert_of)
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, linear)
            if linear.gain is not None:
                found[expert_of[name]][f"{name}.{SCALE}"] = linear.gain
    for expert in structure.experts:
        for name in norms(structure, expert) if "norms" in learn else ():
            norm = model.get_submodule(name)
            gain = ChannelGain(norm.get_parameter("weight"))
            parametrize.register_parametrization(norm, "weight", gain, unsafe=True)
            found[expert][f"{name}.weight"] = gain.gain
    for layer in range(structure.layers):
        block = model.get_submodule(f"{structure.prefix}{layer}")
        again = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = again
    return found


def norms(structure: Structure, expert: Expert) -> list[str]:
    """Every norm of an expert, in the layers and behind them."""
    paths = [*NORMS.values(), *(HEAD_NORMS if structure.head_norms else ())]
    inside = [structure.module(layer, path, expert) for layer in range(structure.layers) for path in paths]
    return [*inside, structure.prefix.removesuffix("layers.") + _LAST + structure.experts[expert]]


def stored(model: nn.Module, gains: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that ``gains`` make, by name, as they are stored, on the CPU."""
    found = {}
    for name, gain in gains.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, RefinedLinear):
            found[name] = module.scale(gain.detach()).cpu()
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            found[name] = weight.detach().to(STORED).cpu()
    return found
