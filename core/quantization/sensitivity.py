"""How much a model suffers from what rounding does to it: step by step of a recipe, and group by group of linears.

Group by group, one group at a time is rounded in a loaded model, all else as it was, and the model's own divergence is
measured. Between widths that is scaled by how the loss of the group's block changes on the calibration's rows: both
grow with the square of the disturbance, so one measurement in the model tells all widths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from core.checkpoints.layout import Layout
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.evaluation import divergence, statistics
from core.evaluation.divergence import Divergence
from core.quantization import widths
from core.quantization.allocation import Option
from core.quantization.fit import formats
from core.quantization.groups import LinearGroup
from core.quantization.layer import STORED, FindInputs, LinearRecord
from core.quantization.losses import BlockLoss, linear_block
from core.quantization.noise import pooled
from core.quantization.pipeline import quantize
from core.quantization.recipe import GptqStep, RangesStep, Recipe
from core.quantization.rounding import Rounding
from core.quantization.scheme import FP8
from core.quantization.streams import Streams
from core.quantization.trial import Trial, given, replaced

Found = TypeVar("Found", bound=FindInputs)

Told = Callable[[str], None]
"""Called with what comes next."""

WITHOUT = "plain rounding"


@dataclasses.dataclass(frozen=True)
class StepResult:
    """A recipe up to one of its steps, run in the model."""

    step: str
    scores: dict[str, float | None]
    """``kl`` and ``velocity`` with their standard errors, as far as samples tell them."""


@dataclasses.dataclass(frozen=True)
class GroupResult:
    """What rounding one group of linears alone does."""

    group: str
    bits: int
    """The width that it was tried in."""
    scores: dict[str, float | None]
    """As those of a step; None where the samples do not reach the group (``reached``)."""
    powers: dict[str, float | None]
    """The same as they add up over groups: ``kl``, and ``velocity`` squared."""
    losses: dict[int, float]
    """Relative loss of the linears' outputs on the calibration's rows, by width."""
    nbytes: dict[int, int]
    """Stored bytes by width."""


def stages(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """The recipe without steps, then with one more at a time: ranges first, compensation last."""
    ordered = sorted(
        recipe.steps, key=lambda step: (not isinstance(step, RangesStep), isinstance(step, GptqStep))
    )
    names = [entry["kind"] for entry in recipe.to_json()["steps"]]
    kinds = dict(zip(map(id, recipe.steps), names, strict=True))
    found = [(WITHOUT, dataclasses.replace(recipe, steps=()))]
    for count, last in enumerate(ordered, start=1):
        taken = ordered[:count]
        steps = tuple(step for step in recipe.steps if step in taken)
        found.append((f"+ {kinds[id(last)]}", dataclasses.replace(recipe, steps=steps)))
    return found


def measure_steps(
    model: nn.Module,
    source: TensorSource,
    layout: Layout,
    recipe: Recipe,
    find_inputs: Callable[[Recipe], Found],
    open_streams: Callable[[Recipe, Found], Streams | None],
    tokens: dict[str, int] | None,
    divergences: Sequence[Divergence],
    device: torch.device,
    told: Told,
) -> tuple[list[StepResult], list[LinearRecord]]:
    """Quantize the checkpoint into ``model`` by each of ``stages`` and measure; the model is left quantized.

    Returns:
        The result of each stage, and the records of the whole recipe's linears.
    """
    found: list[StepResult] = []
    records: list[LinearRecord] = []
    for step, partial in stages(recipe):
        told(step)
        schemes = formats(layout.structure, partial)
        trial = Trial(model, layout.structure, schemes)
        inputs = find_inputs(partial)
        streams = open_streams(partial, inputs)
        done = quantize(source, layout, partial, inputs, tokens, trial.write, device, streams=streams)
        records = done.records
        with given(model, [name for name, scheme in schemes.items() if scheme == FP8], Rounding(FP8).seen):
            found.append(StepResult(step, _scores(divergences)))
    return found, records


def measure_groups(
    model: nn.Module,
    layout: Layout,
    recipe: Recipe,
    find_inputs: FindInputs,
    divergences: Sequence[Divergence],
    told: Told,
) -> list[GroupResult]:
    """Round one group at a time in ``model``, whose weights are the original ones and are so again afterwards.

    Raises:
        CheckpointError: nothing is known of a group's input.
    """
    found = []
    for group in layout.structure.groups():
        told(group.key)
        inputs = find_inputs(group)
        if inputs is None:
            raise CheckpointError(
                f"{group.key}: too few tokens were seen to measure it; calibrate with more samples or tasks"
            )
        names = [f"{name}.weight" for name in group.linears]
        device = inputs.rows.device
        weights = [model.get_parameter(name).data.to(device, torch.float32) for name in names]
        seen = Rounding(recipe.scheme_of(group)).seen
        loss = BlockLoss(linear_block, weights, inputs, seen)
        one = torch.ones_like(inputs.mean_abs)
        tried: dict[int, list[Tensor]] = {}
        for bits in candidates(group, recipe):
            scheme = dataclasses.replace(recipe.scheme_of(group), bits=bits)
            rounding = Rounding(scheme, searched=True, weighed=True, scale_dtype=STORED)
            tried[bits] = rounding.roundtrip(weights, inputs.mean_sq)
        narrowest = min(tried)
        with (
            replaced(model, dict(zip(names, tried[narrowest], strict=True))),
            given(model, group.linears, seen),
        ):
            measured = {one.score: reached(one.measure()) for one in divergences}
        found.append(
            GroupResult(
                group=group.key,
                bits=narrowest,
                scores=_written(measured),
                powers={
                    score: None if values is None else divergence.power(score, values)
                    for score, values in measured.items()
                },
                losses={bits: loss(runs, one) for bits, runs in tried.items()},
                nbytes={bits: nbytes(group, recipe, bits, layout) for bits in tried},
            )
        )
    return found


def reached(values: Sequence[float]) -> Sequence[float] | None:
    """A divergence on each sample, or None where it is exactly zero on all: nothing that the samples ask for depends on
    the group. The generation expert has no part in an answer, nor the other's last layer in a picture; that does not
    make them insensitive.
    """
    return values if any(values) else None


def candidates(group: LinearGroup, recipe: Recipe) -> tuple[int, ...]:
    """The widths that a recipe may give a group."""
    if recipe.mixed is None or widths.pinned(group, recipe.widths):
        return (recipe.scheme_of(group).bits,)
    return recipe.mixed.bits


def options(groups: Sequence[GroupResult]) -> dict[str, list[Option]]:
    """What each width of each group would cost and lose; groups that no score is known of are left out.

    A group's measured divergences, each as its share of all groups' together, are added up, so that both experts
    count alike; they are scaled by the block's loss at a width over that at the width it was tried in.
    """
    totals: dict[str, float] = {}
    for result in groups:
        for score, value in result.powers.items():
            totals[score] = totals.get(score, 0.0) + (value or 0.0)
    found = {}
    for result in groups:
        known = {score: value for score, value in result.powers.items() if value is not None}
        if not known:
            continue
        share = sum(value / totals[score] for score, value in known.items() if totals[score] > 0)
        unit = share / max(result.losses[result.bits], 1e-30)
        found[result.group] = [
            Option(bits, result.nbytes[bits], unit * loss) for bits, loss in result.losses.items()
        ]
    return found


def layers(records: Sequence[LinearRecord]) -> list[dict[str, Any]]:
    """Ratios of whole layers, by expert: the mean noise of their linears, each against its own signal."""
    parts: dict[tuple[int, str], list[LinearRecord]] = {}
    for record in records:
        _, layer, expert, _ = record.group.split(".")
        parts.setdefault((int(layer), expert), []).append(record)
    return [
        {
            "layer": layer,
            "expert": expert,
            "weight_sqnr": pooled(record.weight_sqnr for record in own),
            "output_sqnr": pooled(record.output_sqnr for record in own),
        }
        for (layer, expert), own in sorted(parts.items(), key=lambda item: (item[0][0], item[0][1] != "und"))
    ]


def _scores(divergences: Sequence[Divergence]) -> dict[str, float | None]:
    return _written({one.score: one.measure() for one in divergences})


def _written(measured: Mapping[Any, Sequence[float] | None]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for score, values in measured.items():
        if values is None:
            found |= {score: None, f"{score}_se": None}
            continue
        average = statistics.mean(values)
        found |= {score: average.value, f"{score}_se": average.error}
    return found


def nbytes(group: LinearGroup, recipe: Recipe, bits: int, layout: Layout) -> int:
    """Stored bytes of a group of linears in a width."""
    scheme = dataclasses.replace(recipe.scheme_of(group), bits=bits)
    shapes = [layout.shapes[f"{name}.weight"] for name in group.linears]
    return sum(scheme.nbytes((rows, columns)) for rows, columns in shapes)
