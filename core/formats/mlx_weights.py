"""How MLX stores a quantized weight, made from how we do, with the same codes.

MLX's affine mode (``mlx.core.quantize``) has ``weight = code * scale + bias`` with unsigned codes in groups of 32, 64
or 128 columns; scales and biases have the dtype that the model computes in. Codes are packed as compressed-tensors
packs them: a dense string of bits, lowest first, for every width, and ours are stored with ``2**(bits - 1)`` added. So
words and scales are taken as they are, and the bias of a group is ``-(zero + 2**(bits - 1)) * scale``. That is exact in
bfloat16 without zeros; with a zero it is rounded, by at most half a unit in the last of its eight bits. Seven bits,
which MLX lacks, are stored as eight; codes have room there to be stored less their zeros, and nothing is rounded.
MLX's Metal kernels compute a weight in float32 and at most round it once to bfloat16, as ours is; its CPU path rounds
``code * scale`` as well when the model runs in bfloat16.

Its nvfp4 mode has our codes and E4M3 scales, bit for bit, and ``weight = code * scale``. The global scale that its
linears have no place for is what ``mlx_decoder`` multiplies their products by: a power of two in our variants, so exact
as well. (The block scales divided by it would leave E4M3's range.)

===================== ================== ==================================
``name.weight``       uint32 [N, K*b/32] packed codes
``name.scales``       bfloat16 [N, K/g]  uint8 (E4M3) for nvfp4
``name.biases``       bfloat16 [N, K/g]  affine only
``name.output_scale`` float32 [1]        nvfp4 only: 1 / global scale
===================== ================== ==================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.formats.compressed_tensors import GLOBAL_SCALE, PACKED, SCALE, ZERO, tensor_keys
from core.formats.understanding import Part, Stored
from core.quantization.layer import store_plain
from core.quantization.scheme import Scheme
from core.runtime.loading import read_codes
from kernels.packing import pack, unpack
from kernels.reference import dequantize

DTYPE = torch.bfloat16
"""Of all that is not packed."""

WIDTHS = {2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}
"""Bits of a code -> bits that MLX stores it in: it has no seven."""

GROUPS = (128, 64, 32)
"""Columns that share a scale in affine mode, the most first: a wider group of ours is several of these."""

ROWS = 1 << 14
"""Rows that are expanded together: an embedding's are many."""


@dataclass(frozen=True)
class Form:
    """How MLX holds a weight: an entry of config.json's ``quantization``."""

    mode: str
    bits: int
    group_size: int

    def to_json(self) -> dict[str, Any]:
        """As mlx-lm hands it to ``to_quantized``."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a weight [out, in]."""
        groups = shape[0] * (shape[1] // self.group_size)
        return shape[0] * shape[1] * self.bits // 8 + groups * (1 if self.mode == "nvfp4" else 4)


def form_of(scheme: Scheme, columns: int) -> Form | None:
    """The form that holds all weights of a scheme over so many columns; None if MLX has none."""
    if scheme.kind == "nvfp4":
        return Form("nvfp4", 4, 16)
    width = scheme.width(columns)
    group = next((size for size in GROUPS if width % size == 0), None)
    return None if group is None else Form("affine", WIDTHS[scheme.bits], group)


@dataclass
class Rounding:
    """What the biases of groups with zeros lose in bfloat16, in steps (differences of neighbouring codes)."""

    linears: int = 0
    groups: int = 0
    squares: float = 0.0
    worst: float = 0.0

    def add(self, exact: Tensor, stored: Tensor, scale: Tensor) -> None:
        """Count a linear's biases [N, G], float32 and as stored; ``scale`` float32 [N, G]."""
        off = (stored.float() - exact) / scale
        self.linears += 1
        self.groups += off.numel()
        self.squares += float(off.double().square().sum())
        self.worst = max(self.worst, float(off.abs().max()))

    @property
    def rms(self) -> float:
        """Root of the mean square over groups; the rounding to codes has 0.29."""
        return math.sqrt(self.squares / self.groups) if self.groups else 0.0


def codes_of(stored: Stored, part: Part, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors that stand for a part's weight, by their last names, checked.

    Raises:
        CheckpointError: one is missing, mis-shaped or not finite; it is named.
    """
    rows, columns = part.shape
    return read_codes(stored.files, part.name, tensor_keys(part.name, scheme), scheme, rows, columns)


def affine(
    found: dict[str, Tensor], scheme: Scheme, columns: int, form: Form, rounding: Rounding
) -> dict[str, Tensor]:
    """``weight``, ``scales`` and ``biases`` of integer codes (``codes_of``)."""
    packed, scale, zero = found[PACKED], found[SCALE], found.get(ZERO)
    if form.bits > scheme.bits:
        codes = unpack(packed, scheme.bits, columns)
        if zero is not None:
            zeros = unpack(zero, scheme.bits, scale.shape[0], dim=0)
            codes = codes - zeros.repeat_interleave(scheme.width(columns), dim=1)
        packed, zero = pack(codes, form.bits), None
    middle = 1 << (form.bits - 1)
    wide = scale.float()
    if zero is None:
        biases = (wide * -middle).to(DTYPE)
    else:
        offset = unpack(zero, scheme.bits, scale.shape[0], dim=0).float() + middle
        exact = -offset * wide
        biases = exact.to(DTYPE)
        rounding.add(exact, biases, wide)
    times = scheme.width(columns) // form.group_size
    return {
        "weight": packed.contiguous().view(torch.uint32),
        "scales": scale.repeat_interleave(times, dim=1),
        "biases": biases.repeat_interleave(times, dim=1),
    }


def nvfp4(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """``weight`` and ``scales`` of NVFP4 codes (``codes_of``), and ``output_scale`` float32 [1], what products with
    them are to be multiplied by.
    """
    return {
        "weight": found[PACKED].contiguous().view(torch.uint32),
        "scales": found[SCALE].contiguous().view(torch.uint8),
        "output_scale": 1.0 / found[GLOBAL_SCALE].float(),
    }


def expanded(found: dict[str, Tensor], scheme: Scheme, columns: int) -> Tensor:
    """The weight of integer codes that the workbench computes with, bfloat16 [N, K]."""
    packed, scale, zero = found[PACKED], found[SCALE], found.get(ZERO)
    zeros = None if zero is None else unpack(zero, scheme.bits, scale.shape[0], dim=0)
    pieces = [slice(first, first + ROWS) for first in range(0, packed.shape[0], ROWS)]
    return torch.cat(
        [
            dequantize(
                unpack(packed[rows], scheme.bits, columns),
                scale[rows],
                None if zeros is None else zeros[rows],
            ).to(DTYPE)
            for rows in pieces
        ]
    )


def plain(stored: Stored, key: str) -> Tensor:
    """A tensor that is no code, bfloat16.

    Raises:
        CheckpointError: it is not finite, or not in bfloat16.
    """
    return store_plain(key, stored.files.get(key, finite=True))
