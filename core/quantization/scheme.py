"""The number format of a quantized linear, as data; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from core.errors import UsageError

MIN_BITS, MAX_BITS = 2, 8

CHANNEL = -1
"""The ``group_size`` of one scale for all columns of a row; ``channel`` in recipes, records and names."""

WORD_COLUMNS = 32
"""Columns that fill whole words at any width: how many there are can be told from packed codes alone."""

Kind = Literal["int", "nvfp4", "fp8"]
KINDS: tuple[Kind, ...] = ("int", "nvfp4", "fp8")


@dataclass(frozen=True)
class Scheme:
    """Integers of ``bits`` bits with one scale (and, if asymmetric, one zero) per row and ``group_size``
    columns, or per row (``CHANNEL``); or ``NVFP4``; or ``FP8``.
    """

    bits: int
    group_size: int
    symmetric: bool
    kind: Kind = "int"

    def __post_init__(self) -> None:
        if self.kind == "nvfp4" and (self.bits, self.group_size, self.symmetric) != (4, 16, True):
            raise UsageError("nvfp4 has four bits and groups of 16; leave bits, group and symmetric out")
        if self.kind == "fp8" and (self.bits, self.group_size, self.symmetric) != (8, CHANNEL, True):
            raise UsageError("fp8 has eight bits and a scale a row; leave bits, group and symmetric out")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise UsageError(f"bits is {self.bits}, wanted {MIN_BITS} to {MAX_BITS}")
        if self.group_size < 1 and self.group_size != CHANNEL:
            raise UsageError(
                f"group is {self.group_size}, wanted a positive number of columns, for example 64, or 'channel'"
            )

    @property
    def code_min(self) -> int:
        """The least code."""
        return -(1 << (self.bits - 1))

    @property
    def code_max(self) -> int:
        """The greatest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def label(self) -> str:
        """For records and tables, for example ``int4 asym g64``."""
        if self.kind != "int":
            return self.kind
        return f"int{self.bits} {'sym' if self.symmetric else 'asym'} {self.group_label}"

    @property
    def group_label(self) -> str:
        """``g64`` or ``channel``."""
        return "channel" if self.group_size == CHANNEL else f"g{self.group_size}"

    def width(self, columns: int) -> int:
        """How many of a weight's ``columns`` share a scale."""
        return columns if self.group_size == CHANNEL else self.group_size

    def columns(self, words: int, groups: int) -> int:
        """Columns of a weight of integers, from the words and scales of one of its rows."""
        return 32 * words // self.bits if self.group_size == CHANNEL else groups * self.group_size

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise if a weight of ``shape`` [out, in] cannot be cut into this scheme's groups.

        Raises:
            UsageError: it names the tensor, its shape and the group.
        """
        if len(shape) != 2:
            raise UsageError(f"{name} {list(shape)}: only a matrix [out, in] can be quantized")
        if self.kind == "int" and self.group_size == CHANNEL and shape[1] % WORD_COLUMNS:
            raise UsageError(
                f"{name} {list(shape)}: with one scale a row, columns must come in multiples of {WORD_COLUMNS}; "
                "choose a group that divides them"
            )
        if shape[1] % self.width(shape[1]):
            if self.kind == "nvfp4":
                raise UsageError(
                    f"{name} {list(shape)}: nvfp4 needs columns in sixteens; choose an integer format"
                )
            fits = ", ".join(str(g) for g in (32, 64, 128) if shape[1] % g == 0)
            advice = f"choose a group of {fits}" if fits else "choose a group that divides them"
            raise UsageError(
                f"{name} {list(shape)}: {shape[1]} columns do not divide into groups of {self.group_size}; "
                + advice
            )

    def nbytes(self, shape: tuple[int, int], scale_bytes: int = 2) -> int:
        """Bytes of a weight [out, in] as stored: packed codes, scales, packed zeros and the shape (integers);
        codes, scales of one byte and the global scale (NVFP4); codes of one byte and scales of four (FP8).
        """
        rows, columns = shape
        if self.kind == "nvfp4":
            return rows * columns // 2 + rows * columns // self.group_size + 4
        if self.kind == "fp8":
            return rows * columns + 4 * rows
        groups = columns // self.width(columns)
        zeros = 0 if self.symmetric else 4 * -(-rows * self.bits // 32) * groups
        return 4 * rows * -(-columns * self.bits // 32) + scale_bytes * rows * groups + zeros + 16

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "type": self.kind,
            "bits": self.bits,
            "group": "channel" if self.group_size == CHANNEL else self.group_size,
            "symmetric": self.symmetric,
        }


NVFP4 = Scheme(4, 16, True, "nvfp4")
"""E2M1 codes with an E4M3 scale per 16 columns and a float32 global scale per group of linears."""

FP8 = Scheme(8, CHANNEL, True, "fp8")
"""E4M3 codes with a float32 scale per row; activations are rounded to E4M3 too, each row anew with its own scale."""
