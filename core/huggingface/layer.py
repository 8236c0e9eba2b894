"""One decoder layer of a causal LM by itself: rows of a sequence in, rows out, with weights that the caller brings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.huggingface.loading import empty_model

if TYPE_CHECKING:
    from core.calibration.sequences import InputSequence


class CausalLayer:
    """Runs a decoder layer of the causal LM in a folder, by transformers' own module."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: transformers does not know the model.
        """
        self._model = empty_model(folder)

    def module(self, layer: int) -> nn.Module:
        """The layer on the meta device; its weights' names are those below the layer."""
        found: nn.Module = self._model.model.layers[layer]
        return found

    def run(self, layer: int, weights: Mapping[str, Tensor], x: Tensor, sequence: InputSequence) -> Tensor:
        """What the layer makes of rows x [n, hidden].

        Args:
            layer: its index.
            weights: all its parameters by name below the layer.
            x: on the weights' device, in their dtype.
            sequence: whose tokens the rows are; its tensors on the same device.
        """
        tables = sequence.cos[None], sequence.sin[None]
        unseen = torch.arange(len(x), device=x.device) >= sequence.visible[:, None]
        # Added to the scores, which every implementation of attention in transformers takes.
        mask = x.new_zeros(unseen.shape).masked_fill_(unseen, torch.finfo(x.dtype).min)
        found = functional_call(
            self.module(layer),
            dict(weights),
            (x[None],),
            {"attention_mask": mask[None, None], "position_embeddings": tables, "use_cache": False},
        )
        rows: Tensor = found[0] if isinstance(found, tuple) else found
        return rows.flatten(0, -2)
