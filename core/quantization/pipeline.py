"""From a checkpoint to a variant's tensors, layer by layer, every key accounted for.

One expert of one decoder layer is in float32 at a time, while the layer behind it is read and the one before it,
handed on as one unit, is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from core.calibration.statistics import rows_kept
from core.checkpoints.layout import Layout
from core.checkpoints.source import PIECE, TensorSource
from core.errors import CheckpointError, UsageError
from core.formats.compressed_tensors import SHAPE, to_tensors
from core.quantization.fit import check_formats, formats, outer_formats
from core.quantization.gptq import MATRICES
from core.quantization.groups import Structure
from core.quantization.layer import STORED, FindInputs, LayerResult, LinearRecord, quantize_layer, store_plain
from core.quantization.overlap import WriteBehind, read_ahead
from core.quantization.recipe import Recipe
from core.quantization.rounding import Rounding, round_blindly
from core.quantization.scheme import Scheme
from core.quantization.streams import NOTHING, Extent, Streams, held
from core.quantization.trial import parameters

Unit = dict[str, Tensor]


class Finished(Protocol):
    """Layers that a job before this one has done."""

    def load(self, layer: int) -> LayerResult | None:
        """A layer that is done, or None."""
        ...

    def keep(self, layer: int, result: LayerResult) -> None:
        """Commit a layer."""
        ...


@dataclass
class Accounting:
    """What became of every key of the checkpoint, and the record of every linear."""

    read: int = 0
    quantized: int = 0
    folded: int = 0
    passed: int = 0
    written: int = 0
    records: list[LinearRecord] = field(default_factory=list)

    def count(self, layer: LayerResult) -> None:
        """Take in a finished layer; what is written is counted where it is."""
        self.read += len(layer.quantized) + len(layer.folded) + len(layer.passed)
        self.quantized += len(layer.quantized)
        self.folded += len(layer.folded)
        self.passed += len(layer.passed)
        self.records += layer.records

    def counts(self) -> dict[str, int]:
        """The counts as plain data."""
        return {
            "read": self.read,
            "quantized": self.quantized,
            "folded": self.folded,
            "passed": self.passed,
            "written": self.written,
        }


@dataclass(frozen=True)
class Plan:
    """What quantizing would take, from headers alone. Bytes."""

    linears: int
    size_bytes: int
    """Tensors of the finished variant."""
    bits_per_weight: float
    """Stored bits of a target linear's weight, scales and zeros included."""
    device_peak_bytes: int
    """One expert of one layer in float32 with a scaled and a rounded copy; and the second moments of its widest
    input, if errors are compensated. All experts and the hidden states of sequences, if these are carried along.
    """
    host_peak_bytes: int
    """Beside the interpreter and its libraries, and above the page cache, through which a checkpoint is read: a shard
    waiting to be written, the results of two layers, the calibration's rows of the input with most of them, and what
    sequences are to give in a layer. Or, if that is more, the greatest tensor outside the layers beside the shard.
    """


def check_keys(source: TensorSource, layout: Layout, recipe: Recipe) -> None:
    """Check names, shapes and groups before anything is computed.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
        UsageError: a group that does not divide a linear, or widths that the recipe cannot have here.
    """
    layout.check(source)
    check_formats(layout.structure, recipe, layout.shapes.__getitem__)


def parted(source: TensorSource, structure: Structure, recipe: Recipe) -> bool:
    """Whether a head that shares the embedding's tensor gets one of its own: they are no longer alike once either is
    quantized.
    """
    apart = structure.tied and not {"head", "embedding"}.isdisjoint(recipe.outer)
    return apart and f"{structure.head}.weight" not in source


def plan(
    source: TensorSource, layout: Layout, recipe: Recipe, max_shard_bytes: int, extent: Extent = NOTHING
) -> Plan:
    """Predict sizes and peaks; checks the keys first, as ``quantize`` does.

    Args:
        source: the checkpoint's tensors.
        layout: what it must hold.
        recipe: how it is quantized.
        max_shard_bytes: of a file of the variant.
        extent: of what a calibration keeps.
    """
    check_keys(source, layout, recipe)
    structure = layout.structure
    targets = structure.target_linears()
    stored = {
        f"{name}.weight": scheme.nbytes(_matrix(layout.shapes[f"{name}.weight"]))
        for name, scheme in formats(structure, recipe).items()
    }
    packed = {f"{name}.weight": stored[f"{name}.weight"] for name in targets}
    plain = {name: 2 * math.prod(entry.shape) for name, entry in source.entries.items() if name not in stored}
    head = f"{structure.head}.weight"
    if parted(source, structure, recipe) and head not in stored:
        plain[head] = 2 * math.prod(layout.shapes[head])
    elements = sum(math.prod(source.shape(name)) for name in packed)
    per_expert = elements // (len(structure.experts) * structure.layers) * 4
    widest = max(source.shape(name)[1] for name in packed)
    device = 4 * per_expert + (4 * widest**2 * MATRICES if recipe.gptq else 0)
    inside, outside = Counter[int](), [0]
    for name, nbytes in (plain | stored).items():
        found = structure.layer_of(name)
        if found is not None:
            inside[found] += nbytes
        else:
            # Rounded in pieces, which are then put together.
            outside.append(2 * nbytes if name in stored else nbytes)
    # One that is computed, one that is written.
    results = 2 * max(inside.values())
    # Rows of the input with most of them, put together from their buckets, in the widest dtype they are kept in.
    most = max(rows_kept(extent.rows, source.shape(name)[1]) * source.shape(name)[1] for name in packed)
    host = 4 * most * extent.buckets if recipe.needs_calibration else 0
    if recipe.follows:
        groups = [[layout.shapes[f"{name}.weight"] for name in g.linears] for g in structure.layer_groups(0)]
        stacked = [(sum(shape[0] for shape in shapes), shapes[0][1]) for shapes in groups]
        channels = layout.shapes[f"{structure.embedding}.weight"][1]
        streams = held(stacked, channels, structure.head_dim, extent)
        device = max(device, 4 * per_expert + streams.device) + (len(structure.experts) - 1) * per_expert
        host += streams.host
    return Plan(
        linears=len(targets),
        size_bytes=sum(stored.values()) + sum(plain.values()),
        bits_per_weight=8 * sum(packed.values()) / elements,
        device_peak_bytes=device,
        host_peak_bytes=max_shard_bytes + max(results + host, results // 2 + max(outside)),
    )


def quantize(
    source: TensorSource,
    layout: Layout,
    recipe: Recipe,
    find_inputs: FindInputs,
    tokens: dict[str, int] | None,
    write: Callable[[Unit], None],
    device: torch.device,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
    finished: Finished | None = None,
    streams: Streams | None = None,
) -> Accounting:
    """Quantize a checkpoint.

    Args:
        source: its tensors.
        layout: what it must hold, and its decoder's structure.
        recipe: how.
        find_inputs: what the calibration knows of a group's input, None where it does not know enough.
        tokens: calibration tokens by linear; None without a calibration.
        write: takes each finished unit (a layer, or a single tensor outside the layers).
        device: where to compute.
        progress: called with (layers done, layers in all, what comes next).
        finished: where layers are committed as they are done; those that are there are taken from it.
        streams: carries hidden states along, for a recipe that goes by the quantized model's inputs.

    Raises:
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor; it is named.
        UsageError: a group that does not divide a linear; no streams for a recipe that needs them.
    """
    check_keys(source, layout, recipe)
    if recipe.follows and streams is None:
        raise UsageError(
            f"recipe {recipe.name} goes by the inputs of the quantized model: give it a calibration with sequences"
        )
    structure = layout.structure
    accounting = Accounting()
    schemes = formats(structure, recipe)
    total = structure.layers + 1

    def hand_on(unit: Unit) -> None:
        accounting.written += len(unit)
        write(unit)

    def read(layer: int) -> tuple[LayerResult | None, dict[str, Tensor]]:
        done = finished.load(layer) if finished else None
        if done is not None and streams is None:
            return done, {}
        names = [name for name in source.keys() if structure.layer_of(name) == layer]  # noqa: SIM118
        return done, {name: source.get(name, finite=True) for name in names}

    def commit(layer: int, result: LayerResult, fresh: bool) -> None:
        if finished and fresh:
            finished.keep(layer, result)
        hand_on(result.tensors)

    @torch.inference_mode()
    def advance(layer: int, done: LayerResult | None, tensors: dict[str, Tensor]) -> LayerResult:
        if streams is not None:
            streams.enter(layer, _floats(streams, layer, tensors.items(), device), watched=done is None)
        result = done or quantize_layer(
            structure, layer, tensors, recipe, find_inputs, tokens, device, streams
        )
        if streams is not None and layer + 1 < structure.layers:
            placed = {name: tensor.to(device) for name, tensor in result.tensors.items()}
            streams.leave(layer, _floats(streams, layer, parameters(placed, schemes), device))
        accounting.count(result)
        return result

    # What belongs to a layer is held by no name here, which would keep it while the next one is computed.
    with WriteBehind() as behind:
        for layer, found in read_ahead(read, range(structure.layers)):
            progress(layer, total, f"layer {layer}")
            behind(partial(commit, layer, advance(layer, *found), found[0] is None))
            del found
    if streams is not None:
        streams.close()
    progress(structure.layers, total, "embeddings and head")
    outer = outer_formats(structure, recipe)

    def finish(module: str, name: str, tensor: Tensor) -> bool:
        """Hand on a tensor outside the layers; whether it was quantized."""
        if module not in outer:
            hand_on({name: store_plain(name, tensor)})
            return False
        hand_on(round_in_pieces(module, tensor, outer[module], device))
        return True

    for name in source.keys():  # noqa: SIM118
        if structure.layer_of(name) is not None:
            continue
        tensor = source.get(name, finite=True)
        accounting.read += 1
        if finish(name.removesuffix(".weight"), name, tensor):
            accounting.quantized += 1
        else:
            accounting.passed += 1
        if name == f"{structure.embedding}.weight" and parted(source, structure, recipe):
            finish(structure.head, f"{structure.head}.weight", tensor)
    known = accounting.quantized + accounting.folded + accounting.passed
    if not accounting.read == known == len(source.entries):
        raise CheckpointError(
            f"{source.place}: {len(source.entries)} tensors, but {accounting.read} read and {known} accounted for"
        )
    progress(total, total, "")
    return accounting


def round_in_pieces(module: str, weight: Tensor, scheme: Scheme, device: torch.device) -> Unit:
    """The stored tensors of a module outside the layers, its rows rounded some at a time: a vocabulary's are many.

    Args:
        module: its name.
        weight: [N, K], as read.
        scheme: integers, whose rows have nothing in common.
        device: where to compute.
    """
    rounding = Rounding(scheme, searched=True, weighed=False, scale_dtype=STORED)
    # Zeros of 32 rows fill whole words at any width.
    rows = max(32, PIECE // weight.shape[1] // 32 * 32)
    parts = [
        to_tensors(module, round_blindly([piece.to(device).float()], rounding).weights[0])
        for piece in weight.split(rows)
    ]
    shape = {f"{module}.{SHAPE}": torch.tensor(weight.shape, dtype=torch.int64)}
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key not in shape} | shape


def _floats(
    streams: Streams, layer: int, tensors: Iterable[tuple[str, Tensor]], device: torch.device
) -> dict[str, Tensor]:
    """A layer's parameters as streams take them."""
    return {streams.below(layer, name): tensor.to(device).float() for name, tensor in tensors}


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
