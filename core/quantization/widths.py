"""Widths of their own for some groups of linears, as a recipe names them, and what a mixed recipe chooses from.

Linears that share an input (q, k, v; gate, up) are fused by runtimes and rounded stacked on one another, so they take
one format: a recipe that asks two of them is refused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import filter as matching
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_args

from core.errors import UsageError
from core.quantization.groups import KINDS, LINEARS_OF, Expert
from core.quantization.scheme import MAX_BITS, MIN_BITS, Scheme
from core.quantization.tables import Tables

if TYPE_CHECKING:
    from core.quantization.groups import LinearGroup


@dataclass(frozen=True)
class Mixed:
    """How a mixed recipe chooses: for each group of linears one of ``bits``, within a budget for all of them."""

    bits: tuple[int, ...]
    """Ascending."""
    budget: float | None
    """Bits for each weight, scales and zeros included; or ``budget_bytes``."""
    budget_bytes: int | None

    def allowance(self, weights: int) -> int:
        """Bytes that target linears of so many weights may take."""
        return self.budget_bytes if self.budget_bytes is not None else int((self.budget or 0) * weights / 8)


@dataclass(frozen=True)
class Width:
    """A width for all groups and linears whose name matches: ``layers.0.*.down``, ``layers.*.und.qkv``."""

    pattern: str
    bits: int


DEEPEST = 1000
"""More layers than any decoder has."""


@functools.cache
def _known() -> frozenset[str]:
    """Every name that a group of linears, or one of its linears, may have in any checkpoint."""
    leaves = [*KINDS, *(linear.rpartition(".")[2] for kind in KINDS for linear in LINEARS_OF[kind])]
    return frozenset(
        f"layers.{layer}.{expert}.{leaf}"
        for layer in range(DEEPEST)
        for expert in get_args(Expert)
        for leaf in leaves
    )


def names(group: LinearGroup) -> dict[str, list[str]]:
    """By linear, what a pattern may call it: its group's key, and that with the linear's own name at the end."""
    place = group.key.rpartition(".")[0]
    found = {}
    for linear in group.linears:
        leaf = linear.rpartition(".")[2].partition("_proj")[0] + "_proj"
        found[linear] = [group.key, f"{place}.{leaf}"]
    return found


def scheme_of(group: LinearGroup, base: Scheme, widths: Sequence[Width], recipe: str) -> Scheme:
    """The format of a group: ``base`` in the width of the last pattern that matches.

    Raises:
        UsageError: linears of the group would get two formats.
    """
    found: dict[int, list[str]] = {}
    for called in names(group).values():
        matching = [
            width.bits for width in widths if any(fnmatchcase(name, width.pattern) for name in called)
        ]
        bits = matching[-1] if matching else base.bits
        found.setdefault(bits, []).append(called[1].rpartition(".")[2])
    if len(found) > 1:
        words = " and ".join(f"{', '.join(linears)} in {bits} bits" for bits, linears in found.items())
        raise UsageError(
            f"recipe {recipe} asks {words} in {group.key}: linears that share an input are fused and take one "
            f'format; name the group instead, as in "{group.key}" = {max(found)}'
        )
    return dataclasses.replace(base, bits=next(iter(found)))


def label(schemes: Iterable[Scheme]) -> str:
    """All these formats in a word: ``int4 asym g64``, or ``int3/4/6 asym g64`` for several widths of one."""
    found = list(dict.fromkeys(schemes))
    alike = {
        dataclasses.replace(scheme, bits=MAX_BITS) if scheme.kind == "int" else scheme for scheme in found
    }
    if len(found) > 1 and len(alike) == 1:
        bits = "/".join(str(bits) for bits in sorted(scheme.bits for scheme in found))
        return found[0].label.replace(f"int{found[0].bits}", f"int{bits}", 1)
    return " + ".join(scheme.label for scheme in found)


def pinned(group: LinearGroup, widths: Iterable[Width]) -> bool:
    """Whether a pattern matches the group or one of its linears."""
    return any(
        fnmatchcase(name, width.pattern)
        for called in names(group).values()
        for name in called
        for width in widths
    )


def check(groups: Iterable[LinearGroup], base: Scheme, widths: Sequence[Width], recipe: str) -> None:
    """Check that every pattern matches something and no group gets two formats.

    Raises:
        UsageError: the first that does not, or that does.
    """
    groups = list(groups)
    for width in widths:
        if not any(pinned(group, [width]) for group in groups):
            raise UsageError(
                f'recipe {recipe}: widths."{width.pattern}" matches no group of this checkpoint; they are called '
                f"{groups[0].key} to {groups[-1].key}"
            )
    for group in groups:
        scheme_of(group, base, widths, recipe)


def read_widths(tables: Tables, content: Any, scheme: Scheme) -> tuple[Width, ...]:
    """The table ``widths`` of a recipe: bits by pattern.

    Raises:
        UsageError: it is none, a pattern that no checkpoint has a group for, or a width that integers of this format
            cannot have.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{tables.path}: widths is no table")
    for key in content:
        if key not in _known() and not matching(_known(), key):
            raise UsageError(
                f'{tables.path}: widths."{key}" matches no group of any checkpoint; they are called layers.0.und.qkv '
                f"({', '.join(KINDS)}; und, gen), and their linears layers.0.und.q_proj"
            )
    return tuple(Width(key, _bits(tables, bits, f'widths."{key}"', scheme)) for key, bits in content.items())


def read_mixed(tables: Tables, content: Any, scheme: Scheme) -> Mixed:
    """The table ``mixed`` of a recipe.

    Raises:
        UsageError: widths that are none, or not one budget.
    """
    table = tables.table(content, "mixed", ("bits", "budget", "budget_bytes"))
    found = tables.value(table, "mixed.bits", list)
    bits = tuple(_bits(tables, width, "mixed.bits", scheme) for width in found)
    if len(bits) < 2 or list(bits) != sorted(set(bits)):
        raise UsageError(f"{tables.path}: mixed.bits is {found}, wanted two widths or more, ascending")
    if ("budget" in table) == ("budget_bytes" in table):
        raise UsageError(
            f"{tables.path}: mixed wants either budget (bits a weight, with scales) or budget_bytes"
        )
    if "budget_bytes" in table:
        size = tables.value(table, "mixed.budget_bytes", int)
        if size < 1:
            raise UsageError(
                f"{tables.path}: mixed.budget_bytes is {size}, wanted a positive number of bytes"
            )
        return Mixed(bits, None, size)
    budget = table["budget"]
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget <= 16:
        raise UsageError(f"{tables.path}: mixed.budget is {budget!r}, wanted bits a weight, up to 16")
    return Mixed(bits, float(budget), None)


def _bits(tables: Tables, found: Any, key: str, scheme: Scheme) -> int:
    if scheme.kind != "int":
        raise UsageError(
            f"{tables.path}: {key}: only integer formats have widths, format.type is {scheme.kind!r}"
        )
    if isinstance(found, bool) or not isinstance(found, int) or not MIN_BITS <= found <= MAX_BITS:
        raise UsageError(f"{tables.path}: {key} has {found!r}, wanted {MIN_BITS} to {MAX_BITS} bits")
    return found
