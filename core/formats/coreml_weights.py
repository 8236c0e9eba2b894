"""The tensors of a text decoder as Core ML holds them, read from a checkpoint or variant with every key accounted for.

Integer codes go over as they are, with their groups; scales become float16. What is stored in a floating format
becomes float16 too, but for norms, which stay float32. Nothing is quantized here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoints.layout import Layout
from core.checkpoints.source import PIECE, TensorSource
from core.errors import CheckpointError
from core.formats.coreml_decoder import Codes, Layer, Linear, RMSNorm, Sizes, TextDecoder, Weight
from core.quantization.groups import HEAD_NORMS, LINEARS, NORMS, Structure
from core.quantization.scheme import Scheme
from core.runtime.embedding import QuantizedEmbedding
from core.runtime.linear import QuantizedLinear
from core.runtime.loading import quantized_factory
from kernels.nvfp4 import MAGNITUDES
from kernels.packing import unpack

TWICE_E2M1 = [int(2 * m) for m in (*MAGNITUDES, *(-m for m in MAGNITUDES))]
"""What NVFP4's codes are worth, times two: whole numbers."""

GREATEST = torch.finfo(torch.float16).max
ROUNDING = 2**-11
"""Of float16, relative."""


def stored_bits(scheme: Scheme) -> int:
    """Bits that a code takes: Core ML has integers of four and of eight."""
    return 4 if scheme.bits <= 4 else 8


@dataclass
class Rounded:
    """What float16 did to the numbers that went through it."""

    values: int = 0
    changed: int = 0
    worst: float = 0.0
    """Greatest absolute difference."""

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count a tensor and what became of it, in pieces: an embedding is a gigabyte."""
        for old, new in zip(before.flatten().split(PIECE), after.flatten().split(PIECE), strict=True):
            off = (old.double() - new.double()).abs()
            self.values += off.numel()
            self.changed += int((off > 0).sum())
            self.worst = max(self.worst, float(off.amax()))

    @property
    def words(self) -> str:
        """For people: ``3 of 512 changed, by 2e-08 at most``."""
        if not self.changed:
            return f"all {self.values:,} unchanged"
        return f"{self.changed:,} of {self.values:,} changed, by {self.worst:.1e} at most"


@dataclass
class Reader:
    """Reads a decoder's tensors one by one and remembers which keys it took."""

    source: TensorSource
    structure: Structure
    model: Any
    """The whole model on the meta device: shapes and biases."""
    schemes: tuple[Scheme, dict[str, Scheme]] | None
    used: set[str] = field(default_factory=set)
    dense: Rounded = field(default_factory=Rounded)
    """Weights and biases that are stored in a floating format."""
    scales: Rounded = field(default_factory=Rounded)
    formats: dict[str, int] = field(default_factory=dict)
    """Weights by their format's label; ``float16`` too."""
    wide: set[str] = field(default_factory=set)
    """Formats whose codes take more bits here than they have."""
    tables: bool = False
    """Whether codes stand for the values of a table."""

    def decoder(self, sizes: Sizes) -> TextDecoder:
        """The decoder, read layer by layer.

        Raises:
            CheckpointError: a tensor is not finite, mis-shaped, or outside the range of float16; it is named.
        """
        structure = self.structure
        embedding = self.weight(structure.embedding)
        layers = [self._layer(index, sizes) for index in range(structure.layers)]
        norm = self._norm(f"{structure.embedding.rpartition('.')[0]}.norm")
        head = embedding if structure.tied else self.weight(structure.head)
        return TextDecoder(embedding, layers, norm, head, sizes).eval().requires_grad_(False)

    def _layer(self, index: int, sizes: Sizes) -> Layer:
        structure = self.structure
        linears: dict[str, Linear] = {}
        for path in LINEARS:
            name = structure.module(index, path)
            bias = structure.bias_of(name)
            stored = None if bias is None else self._float16(bias, self._get(bias))
            linears[path] = Linear(self.weight(name), stored)
        paths = [*NORMS.values(), *(HEAD_NORMS if structure.head_norms else ())]
        return Layer(
            index, linears, {path: self._norm(structure.module(index, path)) for path in paths}, sizes
        )

    def _get(self, key: str) -> Tensor:
        self.used.add(key)
        return self.source.get(key, finite=True)

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._get(f"{name}.weight").float(), self.structure.norm_eps)

    def _float16(self, key: str, tensor: Tensor) -> Tensor:
        greatest = max(abs(float(end)) for end in tensor.aminmax())
        if greatest > GREATEST:
            raise CheckpointError(
                f"{self.source.entry(key).file}: {key} holds {greatest:g}, beyond the {GREATEST:g} of float16, which "
                "Core ML computes in; it cannot be exported to Core ML"
            )
        half = tensor.half()
        self.dense.add(tensor, half)
        return half

    def weight(self, name: str) -> Weight | Codes:
        """The weight of a linear or embedding, as codes where the source has codes.

        Raises:
            CheckpointError: as ``decoder``.
        """
        made = None
        module: nn.Linear | nn.Embedding = self.model.get_submodule(name)
        if self.schemes is not None:
            made = quantized_factory(self.schemes, torch.device("cpu"), torch.float32)(
                name, module, self.source
            )
        if made is None:
            key = f"{name}.weight"
            self._count("float16")
            return Weight(self._float16(key, self._get(key)))
        quantized, keys = made
        self.used |= keys
        assert isinstance(quantized, QuantizedLinear | QuantizedEmbedding)
        self._count(quantized.scheme.label)
        if isinstance(quantized, QuantizedLinear) and quantized.weight_global_scale is not None:
            return self._nvfp4(name, quantized, quantized.weight_global_scale)
        return self._integers(name, quantized)

    def _count(self, label: str) -> None:
        self.formats[label] = self.formats.get(label, 0) + 1

    def _integers(self, name: str, stored: QuantizedLinear | QuantizedEmbedding) -> Codes:
        scheme, scale = stored.scheme, stored.weight_scale
        columns = stored.in_features if isinstance(stored, QuantizedLinear) else stored.embedding_dim
        codes = unpack(stored.weight_packed, scheme.bits, columns)
        zero = None
        if isinstance(stored, QuantizedLinear) and stored.weight_zero_point is not None:
            zero = unpack(stored.weight_zero_point, scheme.bits, scale.shape[0], dim=0).contiguous()
        steps = codes.unflatten(-1, (scale.shape[1], -1))
        # The widest step from zero of each group: what its scale is multiplied with at most.
        wide = (steps.amax(-1).int(), steps.amin(-1).int())
        reach = torch.stack([(end if zero is None else end - zero).abs() for end in wide]).amax(0)
        bits = stored_bits(scheme)
        if bits != scheme.bits:
            self.wide.add(scheme.label)
        return Codes(codes.contiguous(), self._scale(name, scale.float(), reach), zero, None, bits)

    def _nvfp4(self, name: str, stored: QuantizedLinear, divisor: Tensor) -> Codes:
        packed = stored.weight_packed
        codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2).to(torch.int8)
        table = torch.tensor(TWICE_E2M1, dtype=torch.int8)
        reach = table.abs()[codes.int()].unflatten(-1, (stored.weight_scale.shape[1], -1)).amax(-1)
        self.tables = True
        scale = stored.weight_scale.float() / (2 * divisor.float())
        return Codes(codes, self._scale(name, scale, reach), None, table, 4)

    def _scale(self, name: str, scale: Tensor, reach: Tensor) -> Tensor:
        """Scales float32 [N, G] as float16; ``reach`` [N, G] is the greatest number that each multiplies.

        A group of next to nothing may become nothing, as it would among float16 weights.

        Raises:
            CheckpointError: a weight overflows, or the weights as a whole lose more than rounding them would.
        """
        half = scale.half()
        size, off = scale.double() * reach, (scale.double() - half.double()).abs() * reach
        loss = float(off.norm() / size.norm().clamp(min=1e-300))
        if bool((size > GREATEST).any()):
            bad, what = size, "overflows"
        elif loss > ROUNDING:
            bad, what = off, f"loses {loss:.1%} of the weights with others"
        else:
            needed = reach > 0
            if bool(needed.any()):
                self.scales.add(scale[needed], half[needed])
            return half
        row, group = divmod(int(bad.argmax()), scale.shape[1])
        raise CheckpointError(
            f"{self.source.place}: {name}: the scale {float(scale[row, group]):.3g} of row {row}, group {group} {what} "
            "in float16, which Core ML computes in; quantize the checkpoint again, without this linear"
        )


def check_taken(source: TensorSource, layout: Layout, used: set[str]) -> None:
    """Check that all of a causal LM is in its decoder, but for what the model computes and a tied head's second copy.

    Raises:
        CheckpointError: a tensor is not; it is named.
    """
    twice = f"{layout.structure.head}.weight" if layout.structure.tied else None
    for key in source.entries:
        if key not in used and key != twice and not layout.ignored.match(key):
            raise CheckpointError(
                f"{source.entry(key).file}: {key} has no place in a Core ML decoder; it cannot be exported"
            )
