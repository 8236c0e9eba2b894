"""From a checkpoint to a variant's tensors, layer by layer, every key accounted for.

At most one decoder layer is read at a time, and one expert of it is in float32. Each finished layer is handed
on as one unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import OUTER_MODULES, to_tensors
from core.lance.config import LanceConfig
from core.lance.loading import IGNORED, VISION_PREFIX, empty_lance
from core.quantization.gptq import MATRICES
from core.quantization.groups import target_linears
from core.quantization.layer import STORED, FindInputs, LayerResult, LinearRecord, quantize_layer, store_plain
from core.quantization.recipe import Recipe
from core.quantization.rounding import Rounding, round_blindly
from core.quantization.scheme import Scheme

_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.")

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
    input, if errors are compensated.
    """
    host_peak_bytes: int
    """One layer as read, its result, and a shard waiting to be written."""


def check_keys(source: TensorSource, config: LanceConfig, recipe: Recipe) -> None:
    """Check names, shapes and groups before anything is computed.

    Raises:
        CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
        UsageError: a group that does not divide a linear.
    """
    wanted = {name: tuple(p.shape) for name, p in empty_lance(config).named_parameters()}
    for name, shape in wanted.items():
        if name.startswith(VISION_PREFIX) and not any(k.startswith(VISION_PREFIX) for k in source.entries):
            continue
        if source.shape(name) != shape:
            raise CheckpointError(
                f"{source.entry(name).file}: {name} has shape {list(source.shape(name))}, "
                f"wanted {list(shape)} by llm_config.json"
            )
    for name in source.keys():  # noqa: SIM118 - not a dict
        if name not in wanted and name not in IGNORED:
            raise CheckpointError(f"{source.entry(name).file}: {name} is no tensor of a Lance; remove it")
    for name, scheme in formats(config, recipe).items():
        scheme.check_shape(f"{name}.weight", source.shape(f"{name}.weight"))


def formats(config: LanceConfig, recipe: Recipe) -> dict[str, Scheme]:
    """The format of every module that ``recipe`` quantizes, by name: target linears first."""
    found = dict.fromkeys(target_linears(config.num_layers), recipe.scheme)
    return found | {OUTER_MODULES[key]: scheme for key, scheme in recipe.outer.items()}


def plan(source: TensorSource, config: LanceConfig, recipe: Recipe, max_shard_bytes: int) -> Plan:
    """Predict sizes and peaks; checks the keys first, as ``quantize`` does."""
    check_keys(source, config, recipe)
    targets = target_linears(config.num_layers)
    stored = {
        f"{name}.weight": scheme.nbytes(_matrix(source.shape(f"{name}.weight")))
        for name, scheme in formats(config, recipe).items()
    }
    packed = {f"{name}.weight": stored[f"{name}.weight"] for name in targets}
    plain = {name: 2 * math.prod(entry.shape) for name, entry in source.entries.items() if name not in stored}
    elements = sum(math.prod(source.shape(name)) for name in packed)
    layer = sum(entry.nbytes for name, entry in source.entries.items() if _layer_of(name) == 0)
    per_expert = elements // (2 * config.num_layers) * 4
    widest = max(source.shape(name)[1] for name in packed)
    moments = 4 * widest**2 * MATRICES if recipe.gptq else 0
    return Plan(
        linears=len(targets),
        size_bytes=sum(stored.values()) + sum(plain.values()),
        bits_per_weight=8 * sum(packed.values()) / elements,
        device_peak_bytes=3 * per_expert + moments,
        host_peak_bytes=2 * layer + max_shard_bytes,
    )


def quantize(
    source: TensorSource,
    config: LanceConfig,
    recipe: Recipe,
    find_inputs: FindInputs,
    tokens: dict[str, int] | None,
    write: Callable[[Unit], None],
    device: torch.device,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
    finished: Finished | None = None,
) -> Accounting:
    """Quantize a checkpoint.

    Args:
        source: its tensors.
        config: its sizes.
        recipe: how.
        find_inputs: what the calibration knows of a group's input, None where it does not know enough.
        tokens: calibration tokens by linear; None without a calibration.
        write: takes each finished unit (a layer, or a single tensor outside the layers).
        device: where to compute.
        progress: called with (layers done, layers in all, what comes next).
        finished: where layers are committed as they are done; those that are there are taken from it.

    Raises:
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor; it is named.
        UsageError: a group that does not divide a linear.
    """
    check_keys(source, config, recipe)
    accounting = Accounting()
    total = config.num_layers + 1

    def hand_on(unit: Unit) -> None:
        accounting.written += len(unit)
        write(unit)

    for layer in range(config.num_layers):
        progress(layer, total, f"layer {layer}")
        result = finished.load(layer) if finished else None
        if result is None:
            names = [name for name in source.keys() if _layer_of(name) == layer]  # noqa: SIM118
            tensors = {name: source.get(name, finite=True) for name in names}
            with torch.inference_mode():
                result = quantize_layer(layer, tensors, recipe, find_inputs, tokens, device)
            if finished:
                finished.keep(layer, result)
        accounting.read += len(result.quantized) + len(result.folded) + len(result.passed)
        accounting.quantized += len(result.quantized)
        accounting.folded += len(result.folded)
        accounting.passed += len(result.passed)
        accounting.records += result.records
        hand_on(result.tensors)
    progress(config.num_layers, total, "embeddings and head")
    outer = {OUTER_MODULES[key]: scheme for key, scheme in recipe.outer.items()}
    for name in source.keys():  # noqa: SIM118
        if _layer_of(name) is not None:
            continue
        tensor, module = source.get(name, finite=True), name.removesuffix(".weight")
        accounting.read += 1
        if module in outer:
            rounded = round_blindly(
                [tensor.to(device, torch.float32)], Rounding(outer[module], True, False, STORED)
            )
            hand_on(to_tensors(module, rounded.weights[0]))
            accounting.quantized += 1
        else:
            hand_on({name: store_plain(name, tensor)})
            accounting.passed += 1
    done = accounting.quantized + accounting.folded + accounting.passed
    if not accounting.read == done == len(source.entries):
        raise CheckpointError(
            f"{source.place}: {len(source.entries)} tensors, but {accounting.read} read and {done} accounted for"
        )
    progress(total, total, "")
    return accounting


def _layer_of(name: str) -> int | None:
    found = _LAYER.match(name)
    return int(found.group(1)) if found else None


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
