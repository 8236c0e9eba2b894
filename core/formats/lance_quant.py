"""Reading the files of lance-quant: ``awq_state_dict.safetensors`` beside ``awq_meta.json``.

Per linear ``name`` [N, K], with groups of g columns: ``name.qweight`` uint8 [N, K/2], two codes a byte, the even
column in the low nibble (five-bit files: uint8 [N, K], a code a byte); ``name.scales`` bfloat16 [N, K/g];
``name.zeros`` uint8 [N, K/g]. A weight is ``(code - zero) * scale`` in bfloat16. That is ``pack-quantized`` in other
words: codes and zeros change place, no number changes. Every other tensor lies in the file under Lance's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoints.describe import read_json
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError, UsageError
from core.quantization.integer import Quantized
from core.quantization.scheme import Scheme

WEIGHTS_FILE = "awq_state_dict.safetensors"
META_FILE = "awq_meta.json"
PARTS = ("qweight", "scales", "zeros")


@dataclass(frozen=True)
class LanceQuantFiles:
    """An opened folder of lance-quant."""

    folder: Path
    source: TensorSource
    scheme: Scheme
    linears: dict[str, str]
    """Module name of every quantized linear -> how it was made, in lance-quant's words."""

    @classmethod
    def open(cls, folder: Path) -> LanceQuantFiles:
        """Open a folder and check that it holds one format.

        Raises:
            UsageError: it holds no such files.
            CheckpointError: they are damaged, or mix formats.
        """
        for name in (META_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise UsageError(f"{folder}: no variant of lance-quant: it has no {name}")
        path = folder / META_FILE
        try:
            meta: dict[str, Any] = read_json(path)["per_weight"]
            formats = {(int(info["n_bit"]), int(info["group_size"])) for info in meta.values()}
            linears = {key.removesuffix(".weight"): str(info["scheme"]) for key, info in meta.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: per_weight is damaged ({error!r}); fetch it again") from error
        if len(formats) != 1 or next(iter(formats))[0] not in (4, 5):
            raise CheckpointError(
                f"{path}: bits and groups are {sorted(formats)}, wanted one pair for all linears, of 4 or 5 bits"
            )
        bits, group = formats.pop()
        return cls(folder, TensorSource.open(folder / WEIGHTS_FILE), Scheme(bits, group, False), linears)

    def weight(self, name: str) -> Quantized:
        """A linear's weight, code by code.

        Raises:
            CheckpointError: a tensor is missing, of another shape or type, or holds codes out of range.
        """
        codes, scale, zero = (self.source.get(f"{name}.{part}", finite=True) for part in PARTS)
        if self.scheme.bits == 4 and codes.dtype == torch.uint8:
            codes = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
        groups = (codes.shape[0], codes.shape[-1] // self.scheme.group_size)
        found = (codes.dtype, scale.dtype, zero.dtype, tuple(scale.shape), tuple(zero.shape))
        if found != (torch.uint8, torch.bfloat16, torch.uint8, groups, groups):
            raise CheckpointError(
                f"{self.source.place}: {name}: qweight {list(codes.shape)} {codes.dtype}, scales {list(scale.shape)} "
                f"{scale.dtype} and zeros {list(zero.shape)} {zero.dtype} do not fit {self.scheme.label}"
            )
        greatest = max(int(codes.max()), int(zero.max()))
        if greatest >= 1 << self.scheme.bits:
            raise CheckpointError(
                f"{self.source.place}: {name} holds a code of {greatest}, wanted {self.scheme.label}"
            )
        middle = -self.scheme.code_min
        return Quantized(_signed(codes, middle), scale, _signed(zero, middle), self.scheme)

    def others(self) -> Iterator[str]:
        """Names of the tensors that are not part of a quantized linear's weight."""
        mine = {f"{name}.{part}" for name in self.linears for part in PARTS}
        return (name for name in self.source.keys() if name not in mine)  # noqa: SIM118


def _signed(codes: Tensor, middle: int) -> Tensor:
    return (codes.to(torch.int16) - middle).to(torch.int8)
