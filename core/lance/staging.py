"""Bringing tensors of a mapped file to the device: piece by piece, checked and cast there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 1 << 22
"""Values that are under way at a time: with float32, 16 MB on the host and about three times that on the device."""


class Staging:
    """Copies tensors to ``device``, cast to ``dtype``, and notes which hold a value that is not finite.

    To a CUDA device the values go through two pinned buffers in turn, so that one is filled while the other is on its
    way, and are checked and cast by the device: neither side ever holds a tensor twice.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._flags: dict[str, Tensor] = {}
        self._buffers: list[Tensor] = []
        self._sent: list[torch.cuda.Event] = []
        self._turn = 0
        if device.type == "cuda":
            self._buffers = [torch.empty(8 * PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._sent = [torch.cuda.Event() for _ in self._buffers]

    def beside(self, shapes: Sequence[tuple[int, ...]]) -> list[Tensor | None]:
        """Room for matrices [rows, columns] one behind the other, as one product over all of them reads them; no room
        where tensors are not copied.
        """
        if not self._buffers:
            return [None for _ in shapes]
        rows = [shape[0] for shape in shapes]
        whole = torch.empty(sum(rows), shapes[0][1], dtype=self.dtype, device=self.device)
        return list(whole.split(rows))

    def place(self, name: str, tensor: Tensor, room: Tensor | None = None) -> Tensor:
        """``tensor`` (any shape, on the CPU) on the device, in ``room`` if that is given; ``name`` is what
        ``not_finite`` calls it.
        """
        if not self._buffers:
            self._flags[name] = torch.isfinite(tensor).all()
            return tensor.to(self.device, self.dtype)
        placed = torch.empty(tensor.shape, dtype=self.dtype, device=self.device) if room is None else room
        flat, target = tensor.reshape(-1), placed.view(-1)
        flags = []
        for start in range(0, flat.numel(), PIECE):
            piece = self._send(flat[start : start + PIECE])
            target[start : start + PIECE] = piece
            flags.append(piece.isfinite().all())
        self._flags[name] = torch.stack(flags).all()
        return placed

    def _send(self, piece: Tensor) -> Tensor:
        self._turn = 1 - self._turn
        self._sent[self._turn].synchronize()
        buffer = self._buffers[self._turn][: piece.nbytes].view(piece.dtype)
        buffer.copy_(piece)
        sent = buffer.to(self.device, non_blocking=True)
        self._sent[self._turn].record()
        return sent

    def not_finite(self) -> str | None:
        """The first tensor placed that holds NaN or infinity, None if all are sound; waits for the device."""
        if not self._flags:
            return None
        sound = torch.stack(list(self._flags.values())).cpu()
        if bool(sound.all()):
            return None
        return list(self._flags)[int((~sound).nonzero()[0])]
