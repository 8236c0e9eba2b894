"""What a compact variant of the embedded Lance takes beside lance-quant's own layout of it, to the byte."""

from __future__ import annotations

import math

import pytest

from core.checkpoints.layout import layout_of
from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.formats.variant_folder import MAX_SHARD_BYTES
from core.quantization import recipe as recipes
from core.quantization.pipeline import plan


def lance_quant_bytes(source: TensorSource, targets: set[str], group: int) -> int:
    """Two codes a byte, a bfloat16 scale and a zero of a byte for each group; everything else in bfloat16."""
    total = 0
    for name, entry in source.entries.items():
        elements = math.prod(entry.shape)
        total += elements // 2 + 3 * elements // group if name in targets else 2 * elements
    return total


@pytest.mark.parametrize(("recipe", "share"), [("int4-compact", 0.85), ("int4-best", 0.995)])
def test_a_variant_is_smaller_than_the_same_in_lance_quants_layout(recipe: str, share: float) -> None:
    source, layout = TensorSource.open(CHECKPOINT), layout_of(CHECKPOINT)
    targets = {f"{name}.weight" for name in layout.structure.target_linears()}
    theirs = lance_quant_bytes(source, targets, 64)
    ours = plan(source, layout, recipes.load(recipe), MAX_SHARD_BYTES).size_bytes
    assert ours <= share * theirs, f"{ours} bytes, {ours / theirs:.4f} of {theirs}"
