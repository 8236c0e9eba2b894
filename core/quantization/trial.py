"""Trying quantized weights out in a loaded model, and putting the original ones back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from core.formats.compressed_tensors import CODES, GLOBAL_SCALE, PACKED, SCALE, SHAPE, ZERO
from core.quantization.groups import Structure
from core.quantization.scheme import Scheme
from core.runtime.linear import QuantizedLinear
from kernels.fp8 import Fp8Weight

_PARTS = (SCALE, ZERO, SHAPE, GLOBAL_SCALE)
"""What is stored beside a packed weight."""


@contextlib.contextmanager
def replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the model these parameters (by full name, cast to its dtype) for the length of a ``with``."""
    parameters = {name: model.get_parameter(name) for name in weights}
    kept = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name].to(parameter.data)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]


@contextlib.contextmanager
def given(model: nn.Module, linears: Iterable[str], seen: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Give these linears ``seen`` of their inputs in place of these for the length of a ``with``."""
    modules = [model.get_submodule(name) for name in linears]
    hooks = [module.register_forward_pre_hook(lambda _, inputs: (seen(inputs[0]),)) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def parameters(unit: Mapping[str, Tensor], schemes: Mapping[str, Scheme]) -> Iterator[tuple[str, Tensor]]:
    """The parameters, by full name, that a written unit stands for; what is packed as it runs.

    Args:
        unit: stored tensors.
        schemes: format of every quantized module by name.
    """
    for key, tensor in unit.items():
        module, _, leaf = key.rpartition(".")
        if leaf == PACKED:
            scale, zero, divisor = (unit.get(f"{module}.{part}") for part in (SCALE, ZERO, GLOBAL_SCALE))
            assert scale is not None
            yield (
                f"{module}.weight",
                QuantizedLinear(schemes[module], tensor, scale, zero, None, divisor).weight(),
            )
        elif leaf == CODES and (scheme := schemes.get(module)) is not None and scheme.kind == "fp8":
            yield key, Fp8Weight(tensor, unit[f"{module}.{SCALE}"].view(-1)).dense()
        elif leaf not in _PARTS:
            yield key, tensor


class Trial:
    """Takes the units that ``pipeline.quantize`` writes and puts them, dequantized, into a loaded plain model.

    Every layer is written whole, so the next quantization into the same model leaves nothing of the one before.
    """

    def __init__(self, model: nn.Module, structure: Structure, schemes: Mapping[str, Scheme]) -> None:
        self._model = model
        self._structure = structure
        self._schemes = schemes
        """Format of every quantized module by name."""

    def write(self, unit: Mapping[str, Tensor]) -> None:
        """Take one unit; what lies outside the layers and is not quantized stays as it is."""
        for name, tensor in parameters(unit, self._schemes):
            if name.removesuffix(".weight") in self._schemes or self._structure.layer_of(name) is not None:
                self._set(name, tensor)

    @torch.no_grad()
    def _set(self, name: str, tensor: Tensor) -> None:
        self._model.get_parameter(name).copy_(tensor)
