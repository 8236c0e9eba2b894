"""What quantizing holds beside its device: what is foretold covers it, and nothing outlives its use."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.calibration.statistics import rows_kept
from core.checkpoints.layout import layout_of
from core.checkpoints.source import TensorSource
from core.quantization import recipe as recipes
from core.quantization.layer import LayerResult
from core.quantization.pipeline import plan, quantize
from core.quantization.streams import Extent

CPU = torch.device("cpu")


def host_peak(checkpoint: Path, recipe: str, shard: int, extent: Extent) -> int:
    chosen = recipes.load(recipe).with_group(32)
    return plan(TensorSource.open(checkpoint), layout_of(checkpoint), chosen, shard, extent).host_peak_bytes


def test_the_host_memory_foretold_counts_shards_sequences_and_rows(tiny_checkpoint: Path) -> None:
    layout = layout_of(tiny_checkpoint)
    channels = layout.shapes[f"{layout.structure.embedding}.weight"][1]
    widest = max(layout.shapes[f"{name}.weight"][1] for name in layout.structure.target_linears())
    # So many that the layers bound it, not the embedding.
    tokens = 10**6
    some = host_peak(tiny_checkpoint, "int4-best", 1000, Extent(tokens, 10))
    assert host_peak(tiny_checkpoint, "int4-best", 5000, Extent(tokens, 10)) - some == 4000
    more = host_peak(tiny_checkpoint, "int4-best", 1000, Extent(tokens + 100, 10))
    assert more - some == 100 * 2 * 4 * channels
    rows = host_peak(tiny_checkpoint, "int4-best", 1000, Extent(tokens, 10, buckets=3, rows=50))
    assert rows - some == 3 * 4 * widest * rows_kept(50, widest)
    assert host_peak(tiny_checkpoint, "int4-minmax", 1000, Extent(tokens, 10, 3, 50)) < 10**6


@pytest.mark.parametrize("recipe", ["int4-minmax", "int4-compact"])
def test_the_host_memory_foretold_covers_two_layers_and_every_unit(
    recipe: str, tiny_checkpoint: Path
) -> None:
    layout, source = layout_of(tiny_checkpoint), TensorSource.open(tiny_checkpoint)
    # Without steps: their sizes are the same.
    chosen = replace(recipes.load(recipe).with_group(32), steps=())
    units: list[dict[str, torch.Tensor]] = []
    quantize(source, layout, chosen, lambda group: None, None, units.append, CPU)
    sizes = [sum(tensor.nbytes for tensor in unit.values()) for unit in units]
    foretold = host_peak(tiny_checkpoint, recipe, 0, Extent())
    assert foretold >= 2 * max(sizes[: layout.structure.layers])
    assert foretold >= max(sizes)


class Kept:
    """Keeps no layer, but knows which ones somebody still does."""

    def __init__(self) -> None:
        self.results: list[weakref.ref[LayerResult]] = []

    def load(self, layer: int) -> None:
        return None

    def keep(self, layer: int, result: LayerResult) -> None:
        self.results.append(weakref.ref(result))


def test_no_layer_is_held_while_embeddings_and_head_are_written(tiny_checkpoint: Path) -> None:
    layout, kept = layout_of(tiny_checkpoint), Kept()
    alive: list[int] = []

    def progress(done: int, total: int, message: str) -> None:
        if message == "embeddings and head":
            alive.append(sum(result() is not None for result in kept.results))

    quantize(
        TensorSource.open(tiny_checkpoint),
        layout,
        recipes.load("int4-minmax").with_group(32),
        lambda group: None,
        None,
        lambda unit: None,
        CPU,
        progress,
        kept,
    )
    assert len(kept.results) == layout.structure.layers and alive == [0]
