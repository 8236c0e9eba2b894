"""Reading the files of lance-quant: ``awq_state_dict.safetensors`` beside ``awq_meta.json``, or
``nvfp4_state_dict.safetensors`` beside ``nvfp4_meta.json``.

Per linear ``name`` [N, K] of an integer file, with groups of g columns: ``name.qweight`` uint8 [N, K/2], two codes a
byte, the even column in the low nibble (five-bit files: uint8 [N, K], a code a byte); ``name.scales`` bfloat16
[N, K/g]; ``name.zeros`` uint8 [N, K/g]. A weight is ``(code - zero) * scale`` in bfloat16. That is ``pack-quantized``
in other words: codes and zeros change place, no number changes.

Of an NVFP4 file: ``name.qweight`` uint8 [N, K/2], E2M1 codes packed likewise; ``name.scales_fp8`` uint8 [N, K/16], the
bytes of E4M3 scales; ``name.scales_bf16`` bfloat16 [N, K/16], the same scales rounded less. A weight is ``code *
scale``: ``nvfp4-pack-quantized`` with a global scale of one. The E4M3 scales are taken, bit for bit, as only they are
NVFP4. Weights as small as Lance's leave most of them subnormal, so they lie further from the scales that lance-quant
itself computes with, the bfloat16 ones, than E4M3's digits would: ``scale_error`` says how far.

Every other tensor lies in the files under Lance's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoints.describe import read_json
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError, UsageError
from core.quantization.integer import Quantized
from core.quantization.nvfp4 import Nvfp4Quantized
from core.quantization.rounding import Quantized as AnyQuantized
from core.quantization.scheme import NVFP4, Scheme

META_FILES = {"int": "awq_meta.json", "nvfp4": "nvfp4_meta.json"}
WEIGHTS_FILES = {"int": "awq_state_dict.safetensors", "nvfp4": "nvfp4_state_dict.safetensors"}
PARTS = {"int": ("qweight", "scales", "zeros"), "nvfp4": ("qweight", "scales_fp8", "scales_bf16")}
"""What stands for a linear's weight, by kind of scheme."""

_NOT_NUMBERS = (0x7F, 0xFF)
"""E4M3's; every byte from the first on is no scale."""


@dataclass
class LanceQuantFiles:
    """An opened folder of lance-quant."""

    folder: Path
    source: TensorSource
    scheme: Scheme
    linears: dict[str, str]
    """Module name of every quantized linear -> how it was made, in lance-quant's words."""
    _errors: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> LanceQuantFiles:
        """Open a folder and check that it holds one format.

        Raises:
            UsageError: it holds no such files.
            CheckpointError: they are damaged, or mix formats.
        """
        kind = next((kind for kind, name in META_FILES.items() if (folder / name).is_file()), None)
        if kind is None:
            raise UsageError(
                f"{folder}: no variant of lance-quant: it has no {' and no '.join(META_FILES.values())}; "
                "give the folder that lance-quant wrote"
            )
        if not (folder / WEIGHTS_FILES[kind]).is_file():
            raise UsageError(
                f"{folder}: no variant of lance-quant: it has no {WEIGHTS_FILES[kind]}; "
                "give the folder that lance-quant wrote"
            )
        path = folder / META_FILES[kind]
        try:
            meta: dict[str, Any] = read_json(path)["per_weight"]
            formats = {
                (int(info["n_bit"]), int(info["group_size"]))
                if kind == "int"
                else (4, int(info["block_size"]))
                for info in meta.values()
            }
            linears = {key.removesuffix(".weight"): str(info["scheme"]) for key, info in meta.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: per_weight is damaged ({error!r}); fetch it again") from error
        fits = (
            formats == {(4, NVFP4.group_size)}
            if kind == "nvfp4"
            else [bits for bits, _ in formats] in ([4], [5])
        )
        if not fits:
            wanted = (
                "4 bits in blocks of 16" if kind == "nvfp4" else "one pair for all linears, of 4 or 5 bits"
            )
            raise CheckpointError(f"{path}: bits and groups are {sorted(formats)}, wanted {wanted}")
        bits, group = formats.pop()
        scheme = NVFP4 if kind == "nvfp4" else Scheme(bits, group, False)
        return cls(folder, TensorSource.open(folder / WEIGHTS_FILES[kind]), scheme, linears)

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that stand for a linear's weight."""
        return PARTS[self.scheme.kind]

    @property
    def weights_file(self) -> Path:
        """The file of tensors."""
        return self.folder / WEIGHTS_FILES[self.scheme.kind]

    @property
    def scale_error(self) -> float | None:
        """Root mean square over the NVFP4 linears read so far of their E4M3 scales' relative distance from the
        bfloat16 ones; None of integers.
        """
        return (sum(self._errors) / len(self._errors)) ** 0.5 if self._errors else None

    def weight(self, name: str) -> AnyQuantized:
        """A linear's weight, code by code.

        Raises:
            CheckpointError: a tensor is missing, of another shape or type, or holds codes or scales out of range.
        """
        parts = [self.source.get(f"{name}.{part}", finite=True) for part in self.parts]
        return self._nvfp4(name, *parts) if self.scheme.kind == "nvfp4" else self._integers(name, *parts)

    def _integers(self, name: str, codes: Tensor, scale: Tensor, zero: Tensor) -> Quantized:
        if self.scheme.bits == 4 and codes.dtype == torch.uint8:
            codes = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
        wanted = (torch.uint8, torch.bfloat16, torch.uint8)
        self._check(name, (codes, scale, zero), wanted, codes.shape[-1])
        greatest = max(int(codes.max()), int(zero.max()))
        if greatest >= 1 << self.scheme.bits:
            raise CheckpointError(
                f"{self.source.place}: {name} holds a code of {greatest}, wanted {self.scheme.label}"
            )
        middle = -self.scheme.code_min
        return Quantized(_signed(codes, middle), scale, _signed(zero, middle), self.scheme)

    def _nvfp4(self, name: str, packed: Tensor, scale: Tensor, finer: Tensor) -> Nvfp4Quantized:
        self._check(
            name, (packed, scale, finer), (torch.uint8, torch.uint8, torch.bfloat16), 2 * packed.shape[-1]
        )
        if (bad := int(scale.max())) >= _NOT_NUMBERS[0]:
            word = "no number" if bad in _NOT_NUMBERS else "negative"
            raise CheckpointError(
                f"{self.source.place}: {name}.scales_fp8 holds the byte {bad:#04x}, which is {word}"
            )
        scales = scale.view(torch.float8_e4m3fn)
        apart = (scales.float() - finer.float()) / finer.float().clamp(min=1e-30)
        self._errors.append(float(apart.square().mean()))
        return Nvfp4Quantized(packed, scales, torch.ones(1))

    def _check(
        self, name: str, parts: tuple[Tensor, Tensor, Tensor], types: tuple[torch.dtype, ...], columns: int
    ) -> None:
        """Compare types, and the shapes of the last two parts with the first's."""
        groups = (parts[0].shape[0], columns // self.scheme.group_size)
        if tuple(part.dtype for part in parts) != types or any(
            tuple(part.shape) != groups for part in parts[1:]
        ):
            found = ", ".join(
                f"{key} {list(part.shape)} {str(part.dtype).removeprefix('torch.')}"
                for key, part in zip(self.parts, parts, strict=True)
            )
            raise CheckpointError(f"{self.source.place}: {name}: {found} do not fit {self.scheme.label}")

    def others(self) -> Iterator[str]:
        """Names of the tensors that are not part of a quantized linear's weight."""
        mine = {f"{name}.{part}" for name in self.linears for part in self.parts}
        return (name for name in self.source.keys() if name not in mine)  # noqa: SIM118


def _signed(codes: Tensor, middle: int) -> Tensor:
    return (codes.to(torch.int16) - middle).to(torch.int8)
