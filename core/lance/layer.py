"""One decoder layer by itself: rows of a sequence in, rows out, with weights that the caller brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.lance.config import LanceConfig
from core.lance.decoder import DecoderLayer, Routing

if TYPE_CHECKING:
    from core.calibration.sequences import InputSequence


class LanceLayer:
    """Runs a decoder layer of a Lance; both experts, all tokens of a sequence in one call."""

    def __init__(self, config: LanceConfig) -> None:
        with torch.device("meta"):
            self._layer = DecoderLayer(config).requires_grad_(False)

    def module(self, layer: int) -> nn.Module:
        """The layer on the meta device; its weights' names are those below the layer."""
        return self._layer

    def run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor, sequence: InputSequence) -> Tensor:
        """What the layer makes of rows x [n, hidden].

        Args:
            layer: its index.
            weights: all its parameters by name below the layer.
            x: on the weights' device, in their dtype.
            sequence: whose tokens the rows are; its tensors on the same device.
        """
        roles = sequence.roles
        mask = torch.arange(len(roles), device=x.device) < sequence.visible[:, None]
        routing = Routing.of(sequence.is_gen, roles)
        out: Tensor = functional_call(
            self._layer, dict(weights), (x, sequence.cos, sequence.sin, routing, None, mask)
        )
        return out
