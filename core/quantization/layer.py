"""Quantizing one decoder layer: tensors in, tensors and records out.

One expert is in float32 at a time. All folds of an expert are chosen first, on full-precision weights, and
the folded weights are rounded after: a fold into up_proj's rows must come before up_proj is rounded.

Where a recipe goes by the inputs of the quantized model, groups are rounded in the order in which the layer runs them,
both experts' before the next kind's, as attention mixes their tokens; then both are in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.checkpoints.source import not_finite
from core.errors import CheckpointError
from core.formats.compressed_tensors import to_tensors
from core.quantization.awq import Choice, search
from core.quantization.folds import fold_norm, fold_rows, scale_columns
from core.quantization.groups import HEAD_NORMS, KINDS, Expert, Kind, LinearGroup, Structure
from core.quantization.losses import Block, BlockLoss, Inputs, attention_block, linear_block, mlp_block
from core.quantization.noise import decibels, output_noise, weight_noise
from core.quantization.recipe import Recipe
from core.quantization.rounding import Rounding, round_best, round_blindly
from core.quantization.streams import Corrected, Streams
from core.quantization.values import ValueFold, search_values

STORED = torch.bfloat16
"""dtype of everything in a variant but codes and FP8's scales."""

FindInputs = Callable[[LinearGroup], Inputs | None]
"""What a group's input looks like; None where the calibration does not know enough of it."""


@dataclass(frozen=True)
class LinearRecord:
    """How one linear was quantized."""

    linear: str
    scheme: str
    group: str
    """Key of the input it shares, and whose loss is recorded."""
    mode: str
    """``identity``, ``plain`` or ``duo``; ``uncovered`` where too few tokens were seen and it was rounded
    as is.
    """
    exponent: float
    loss_before: float | None
    """Relative loss of the group's block under plain rounding; None without a calibration."""
    loss_after: float | None
    tokens: int | None
    """Calibration tokens the linear saw."""
    rounding: str = "nearest"
    """``nearest`` in plain ranges, ``ranges`` where they were searched, ``gptq`` where errors were compensated."""
    damping: float | None = None
    """Share of the mean diagonal that GPTQ added to the second moments."""
    shrinkage: float | None = None
    """Share of the sampled correlations that GPTQ took for chance."""
    weight_sqnr: float | None = None
    """Signal to noise ratio in dB of the weight, as folded and corrected, to what rounding changed in it."""
    output_sqnr: float | None = None
    """The same of the linear's own outputs on the calibration's rows."""
    correction: float | None = None
    """Share that was taken of the change, made before rounding, that makes up for earlier layers' errors."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass
class LayerResult:
    """A finished layer: what is stored, the record of each linear, and what became of each tensor read."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    records: list[LinearRecord] = field(default_factory=list)
    quantized: set[str] = field(default_factory=set)
    folded: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)


def store_plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor that passes through, in the dtype it is stored in.

    Raises:
        CheckpointError: it does not survive the cast.
    """
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(STORED)
    if not_finite(cast):
        raise CheckpointError(f"{name} {list(tensor.shape)} holds values beyond the range of bfloat16")
    return cast


def quantize_layer(
    structure: Structure,
    layer: int,
    tensors: Mapping[str, Tensor],
    recipe: Recipe,
    find_inputs: FindInputs,
    tokens: Mapping[str, int] | None,
    device: torch.device,
    streams: Streams | None = None,
) -> LayerResult:
    """Quantize every target linear of ``layer``.

    Args:
        structure: the decoder's.
        layer: its index.
        tensors: all the layer's tensors by full name, as read, on the CPU.
        recipe: format and steps.
        find_inputs: the calibration's view of a group's input.
        tokens: calibration tokens by linear; None without a calibration.
        device: where to compute.
        streams: has entered the layer and watched it, where the recipe goes by the quantized model's inputs.
    """
    result = LayerResult()

    def rounding_of(group: LinearGroup) -> Rounding:
        return Rounding(
            recipe.scheme_of(group),
            searched=recipe.ranges is not None,
            weighed=recipe.ranges is None or recipe.ranges.weighed,
            scale_dtype=STORED,
        )

    def read(key: str) -> Tensor:
        # On its way to the device a tensor stays as narrow as it is stored.
        return tensors[key].to(device).float()

    fold = None
    if recipe.values is not None:
        fold = search_values(structure, layer, read, find_inputs, recipe.values, rounding_of)
    for name, bias in fold.biases.items() if fold else ():
        result.tensors[name] = store_plain(name, bias.cpu())
        result.folded.add(name)

    def begin(expert: Expert) -> _Expert:
        groups = [group for group in structure.layer_groups(layer) if group.expert == expert]
        return _Expert(structure, groups, read, recipe, rounding_of, fold, find_inputs, tokens)

    if streams is None:
        for expert in structure.experts:
            one = begin(expert)
            one.scale(result)
            one.round(KINDS, result)
    else:
        _follow(streams, layer, tensors, [begin(expert) for expert in structure.experts], result, device)
    for name, tensor in tensors.items():
        if name not in result.quantized and name not in result.folded:
            result.tensors[name] = store_plain(name, tensor)
            result.passed.add(name)
    return result


def _follow(
    streams: Streams,
    layer: int,
    tensors: Mapping[str, Tensor],
    experts: Sequence[_Expert],
    result: LayerResult,
    device: torch.device,
) -> None:
    """Fold all experts, then round them in the order in which the layer runs, each by what it sees by then."""
    for one in experts:
        one.scale(result)
    targets = {f"{name}.weight" for one in experts for name in one.weights}
    plain = {
        streams.below(layer, name): (
            result.tensors[name] if name in result.folded else store_plain(name, tensor)
        ).to(device, torch.float32)
        for name, tensor in tensors.items()
        if name not in targets
    }

    def correct(
        group: LinearGroup, weights: Sequence[Tensor], scale: Tensor, inputs: Inputs
    ) -> Corrected | None:
        current = plain | {
            streams.below(layer, f"{name}.weight"): weight
            for one in experts
            for name, weight in one.weights.items()
        }
        return streams.correct(group, current, weights, scale, inputs)

    for kind in KINDS:
        for one in experts:
            one.round([kind], result, correct)


Correct = Callable[[LinearGroup, Sequence[Tensor], Tensor, Inputs], Corrected | None]
"""From a group, its folded weights, their scale and its folded inputs to what is rounded instead."""


class _Expert:
    """One expert of one layer, in float32 on the device."""

    def __init__(
        self,
        structure: Structure,
        groups: list[LinearGroup],
        read: Callable[[str], Tensor],
        recipe: Recipe,
        rounding_of: Callable[[LinearGroup], Rounding],
        fold: ValueFold | None,
        find_inputs: FindInputs,
        tokens: Mapping[str, int] | None,
    ) -> None:
        self.structure = structure
        self.groups = groups
        self.read = read
        self.recipe = recipe
        self.rounding_of = rounding_of
        self.fold = fold
        self.inputs = {group.key: find_inputs(group) for group in groups}
        self.tokens = tokens
        self.weights = {name: self._float(f"{name}.weight") for group in groups for name in group.linears}
        self.biases: dict[str, Tensor] = {}
        """Those that a fold into rows has changed."""
        self.choices: dict[str, Choice | None] = {}
        """By group, once folds are made."""

    def _float(self, key: str) -> Tensor:
        return self.fold.tensors[key] if self.fold and key in self.fold.tensors else self.read(key)

    def _bias(self, linear: str) -> Tensor | None:
        key = self.structure.bias_of(linear)
        return None if key is None else self.biases[key] if key in self.biases else self._float(key)

    def scale(self, result: LayerResult) -> None:
        """Choose and make all folds: they reach into other groups' weights, so none of these may be rounded yet."""
        self.choices = {group.key: self._scale(group, result) for group in self.groups}

    def round(self, kinds: Collection[Kind], result: LayerResult, correct: Correct | None = None) -> None:
        """Round the groups of some kinds; their weights are then the rounded ones."""
        for group in self.groups:
            if group.kind in kinds:
                self._round(group, self.choices[group.key], result, correct)

    def _scale(self, group: LinearGroup, result: LayerResult) -> Choice | None:
        """Search a group's scale and fold it, or measure plain rounding; None where no rows are known."""
        if group.kind == "o" and self.fold is not None:
            return self.fold.choices[group.expert]
        inputs = self.inputs[group.key]
        if inputs is None:
            return None
        step = self.recipe.step_of(group.kind)
        rounding = self.rounding_of(group)
        weights = [self.weights[name] for name in group.linears]
        norm = None if group.norm is None else self._float(f"{group.norm}.weight")
        if step is None:
            return search(weights, inputs, self._block(group), rounding, exponents=0)

        def effective(s: Tensor) -> Tensor:
            return s if norm is None else fold_norm(norm, s, STORED)[1]

        choice = search(
            weights,
            inputs,
            self._block(group),
            rounding,
            exponents=step.exponents,
            duo=step.duo,
            effective=effective,
        )
        self._fold(group, choice.scale, norm, result)
        return choice

    def _fold(self, group: LinearGroup, scale: Tensor, norm: Tensor | None, result: LayerResult) -> None:
        for name in group.linears:
            self.weights[name] = scale_columns(self.weights[name], scale)
        if norm is not None and group.norm is not None:
            # Dividing by the effective scale gives the rounded folded norm again, to the bit.
            folded = (norm / scale).to(STORED)
            result.tensors[f"{group.norm}.weight"] = folded.cpu()
            result.folded.add(f"{group.norm}.weight")
        if group.rows_of is not None:
            self.weights[group.rows_of] = fold_rows(self.weights[group.rows_of], scale)
            bias, key = self._bias(group.rows_of), self.structure.bias_of(group.rows_of)
            if bias is not None and key is not None:
                self.biases[key] = bias / scale
                result.tensors[key] = store_plain(key, self.biases[key].cpu())
                result.folded.add(key)

    def _round(
        self, group: LinearGroup, choice: Choice | None, result: LayerResult, correct: Correct | None
    ) -> None:
        """Round a group's folded weights in the way that loses least and keep the result."""
        rounding = self.rounding_of(group)
        weights = [self.weights[name] for name in group.linears]
        for name, weight in zip(group.linears, weights, strict=True):
            rounding.scheme.check_shape(f"{name}.weight", tuple(weight.shape))
        inputs = self.inputs.pop(group.key)
        seen: Inputs | None = None
        found: Corrected | None = None
        if choice is None or inputs is None:
            rounded = round_blindly(weights, rounding)
            mode = "uncovered" if self.recipe.needs_calibration else "identity"
        else:
            seen = inputs.over(choice.scale)
            found = None if correct is None else correct(group, weights, choice.scale, seen)
            weights = weights if found is None else found.weights
            loss = BlockLoss(self._block(group), weights, seen, rounding.seen)
            curvature = None if found is None else found.curvature
            rounded = round_best(weights, seen, loss, rounding, self.recipe.gptq, curvature)
            mode = choice.mode
        for name, part, weight in zip(group.linears, rounded.weights, weights, strict=True):
            runs = self.weights[name] = part.dequantize().float()
            result.tensors |= to_tensors(name, part)
            result.quantized.add(f"{name}.weight")
            result.records.append(
                LinearRecord(
                    linear=name,
                    scheme=rounding.scheme.label,
                    group=group.key,
                    mode=mode,
                    exponent=choice.exponent if choice else 0.0,
                    loss_before=choice.loss_before if choice else None,
                    loss_after=rounded.loss,
                    tokens=None if self.tokens is None else self.tokens.get(name, 0),
                    rounding=rounded.way,
                    damping=rounded.damping,
                    shrinkage=rounded.shrinkage,
                    weight_sqnr=decibels(weight_noise(weight, runs)),
                    output_sqnr=None
                    if seen is None
                    else decibels(output_noise(weight, runs, seen, rounding.seen)),
                    correction=None if found is None else found.share,
                )
            )

    def _block(self, group: LinearGroup) -> Block:
        if group.kind == "qkv":
            if not self.structure.head_norms:
                return linear_block
            q_norm, k_norm = (
                self._float(f"{self.structure.module(group.layer, path, group.expert)}.weight")
                for path in HEAD_NORMS
            )
            biases = [self._bias(name) for name in group.linears]
            return attention_block(biases, q_norm, k_norm, self.structure.norm_eps)
        if group.kind == "gate_up":
            down = next(other for other in self.groups if other.kind == "down").linears[0]
            biases = [self._bias(name) for name in group.linears]
            return mlp_block(self.weights[down], self.structure.activation, biases)
        return linear_block
