"""The end of a greedy decode step: mask the logits, take the best id, move on; one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import decoder_ops

try:
    from kernels import greedy_triton as _triton
except ImportError:
    _triton = None  # type: ignore[assignment]


class Greedy:
    """The state of greedy decoding on a device, moved on by ``step`` without the host."""

    def __init__(self, vocabulary: int, capacity: int, device: torch.device) -> None:
        """Args:
        vocabulary: logits of a step.
        capacity: rows of the cache.
        """
        self.known = torch.full((1,), vocabulary, dtype=torch.int64, device=device)
        """Ids from here on are never chosen."""
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        """The id chosen last: the next one fed."""
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        """Rows in the cache: where the token fed goes."""
        self.chosen = torch.zeros(capacity, dtype=torch.int64, device=device)
        """The id chosen behind each row."""
        self.logits = torch.zeros(vocabulary, device=device)
        """float32; minus infinity for ids that are not known."""
        self._best: tuple[Tensor, Tensor, Tensor] | None = None
        if _triton is not None:
            blocks = _triton.blocks(vocabulary)
            self._best = (
                torch.zeros(blocks, device=device),
                torch.zeros(blocks, dtype=torch.int32, device=device),
                torch.zeros(1, dtype=torch.int32, device=device),
            )

    def step(self, logits: Tensor) -> None:
        """Choose from logits [1, vocabulary] (the first of equals) and move one row on."""
        if self._best is not None and decoder_ops.uses_triton(logits):
            _triton.choose(logits, self.known, self.logits, self.token, self.slot, self.chosen, *self._best)
            return
        ids = torch.arange(logits.shape[1], device=logits.device)
        self.logits.copy_(logits[0].float().masked_fill(ids >= self.known, float("-inf")))
        self.token.copy_(self.logits.argmax(keepdim=True))
        self.chosen.index_copy_(0, self.slot, self.token)
        self.slot += 1
