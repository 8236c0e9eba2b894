"""Trying quantized weights out in a loaded model, and putting the original ones back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from core.formats.compressed_tensors import GLOBAL_SCALE, PACKED, SCALE, SHAPE, ZERO
from core.quantization.groups import Structure
from core.quantization.scheme import Scheme
from core.runtime.linear import QuantizedLinear

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
        for key, tensor in unit.items():
            module, _, leaf = key.rpartition(".")
            if leaf == PACKED:
                self._set(f"{module}.weight", self._weight(module, unit))
            elif leaf not in _PARTS and self._structure.layer_of(key) is not None:
                self._set(key, tensor)

    def _weight(self, module: str, unit: Mapping[str, Tensor]) -> Tensor:
        parts: Sequence[Tensor | None] = [
            unit.get(f"{module}.{leaf}") for leaf in (PACKED, SCALE, ZERO, GLOBAL_SCALE)
        ]
        packed, scale, zero, divisor = parts
        assert packed is not None and scale is not None
        return QuantizedLinear(self._schemes[module], packed, scale, zero, None, divisor).weight()

    @torch.no_grad()
    def _set(self, name: str, tensor: Tensor) -> None:
        self._model.get_parameter(name).copy_(tensor)
