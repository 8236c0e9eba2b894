"""Activation-aware scale search (AWQ, arXiv 2306.00978), repaired.

For each group of linears that share an input, a scale per input channel is looked for such that rounding
the scaled weights disturbs the block's output least, on real input rows and with the quantizer that is
stored. The unscaled weights are always among the candidates, so a search never ends with a greater loss
than plain rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.quantization.folds import scale_columns
from core.quantization.integer import roundtrip
from core.quantization.scheme import Scheme

Block = Callable[[Sequence[Tensor], Tensor], list[Tensor]]
"""From the group's weights and its input rows [n, K] to the outputs whose disturbance counts, each [n, *]."""


@dataclass(frozen=True)
class Inputs:
    """What a group's input looks like: sampled rows in buckets (a task's tokens of one role) that are
    weighed.
    """

    rows: Tensor
    """float32 [n, K]."""
    bucket: Tensor
    """int64 [n], the bucket of each row."""
    weight: Tensor
    """float32 [B], what each bucket counts; sums to one."""
    mean_abs: Tensor
    """float32 [K], mean magnitude of each channel over all tokens seen, buckets weighed."""


@dataclass(frozen=True)
class Choice:
    """The outcome of a search. Losses are relative to the energy of the undisturbed output."""

    mode: str
    """``identity``, ``plain`` (activations only) or ``duo`` (activations against weights)."""
    exponent: float
    scale: Tensor
    """float32 [K], the scale of the weights' columns."""
    loss_before: float
    """Loss of rounding the unscaled weights."""
    loss_after: float


def linear_block(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """The linears' own outputs."""
    return [functional.linear(rows, weight) for weight in weights]


def attention_block(biases: Sequence[Tensor], q_norm: Tensor, k_norm: Tensor) -> Block:
    """Queries and keys after their per-head norm, and values: what attention reads of ``(q, k, v)`` weights.

    The norm takes each head's length out of q and k, so an error along it does not count. Sampled rows are
    not one sequence, so the softmax itself is left out.

    Args:
        biases: of q, k and v.
        q_norm: [head_dim], as is ``k_norm``.
    """

    def heads(x: Tensor, norm: Tensor) -> Tensor:
        split = x.unflatten(-1, (-1, norm.shape[0]))
        return (split * torch.rsqrt(split.pow(2).mean(-1, keepdim=True) + 1e-6) * norm).flatten(-2)

    def run(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        q, k, v = (functional.linear(rows, w, b) for w, b in zip(weights, biases, strict=True))
        return [heads(q, q_norm), heads(k, k_norm), v]

    return run


def mlp_block(down: Tensor) -> Block:
    """The MLP's output from ``(gate, up)`` weights, with the down projection in full precision."""

    def run(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        gate, up = (functional.linear(rows, weight) for weight in weights)
        return [functional.linear(functional.silu(gate) * up, down)]

    return run


class BlockLoss:
    """Relative squared disturbance of a block's outputs: mean over outputs, weighed over buckets of rows.

    Each bucket is measured against its own energy, so tokens with large activations do not drown the others.
    """

    def __init__(self, block: Block, weights: Sequence[Tensor], inputs: Inputs) -> None:
        self._block = block
        self._inputs = inputs
        self._reference = block(weights, inputs.rows)
        self._energy = [self._per_bucket(part).clamp(min=1e-30) for part in self._reference]

    def _per_bucket(self, part: Tensor) -> Tensor:
        energy = part.double().pow(2).sum(-1)
        return energy.new_zeros(self._inputs.weight.shape[0]).index_add_(0, self._inputs.bucket, energy)

    def __call__(self, weights: Sequence[Tensor], scale: Tensor) -> float:
        """The loss of running ``weights`` (already scaled by ``scale`` and rounded) on the rows over
        ``scale``.
        """
        parts = self._block(weights, self._inputs.rows / scale)
        total = 0.0
        for part, reference, energy in zip(parts, self._reference, self._energy, strict=True):
            share = self._per_bucket(part - reference) / energy
            total += float((share * self._inputs.weight).sum())
        return total / len(parts)


def candidates(
    weights: Sequence[Tensor], mean_abs: Tensor, scheme: Scheme, exponents: int, duo: bool
) -> Iterator[tuple[str, float, Tensor]]:
    """Scales to try, as (mode, exponent r, float32 [K]): one, ``a**r`` and ``a**r / w**(1-r)``.

    ``a`` is the channel's mean magnitude, ``w`` the mean over rows of ``|W|`` over its group's greatest
    (AutoAWQ's duo scaling); each scale is normalised by the root of its greatest times its least.
    """
    yield "identity", 0.0, torch.ones_like(mean_abs)
    a = mean_abs.clamp(min=float(mean_abs.mean()) * 1e-4 + 1e-30)
    stacked = torch.cat(list(weights)).abs().unflatten(-1, (-1, scheme.group_size))
    w = (stacked / stacked.amax(-1, keepdim=True).clamp(min=1e-30)).flatten(-2).mean(0).clamp(min=1e-4)
    for step in range(1, exponents + 1):
        r = step / exponents
        for mode in ("plain", "duo") if duo and step < exponents else ("plain",):
            s = a.pow(r) if mode == "plain" else a.pow(r) / w.pow(1 - r)
            yield mode, r, s / (s.max() * s.min()).sqrt()


def search(
    weights: Sequence[Tensor],
    inputs: Inputs,
    block: Block,
    scheme: Scheme,
    *,
    exponents: int = 20,
    duo: bool = True,
    effective: Callable[[Tensor], Tensor] = lambda s: s,
    scale_dtype: torch.dtype = torch.bfloat16,
) -> Choice:
    """Find the scale of a group's input channels that loses least.

    Args:
        weights: float32 [N, K] each.
        inputs: rows the group really sees.
        block: what to compare.
        scheme: the stored format.
        exponents: how many exponents in (0, 1] to try; 0 tries identity alone.
        duo: also weigh activations against weights.
        effective: from a wanted scale to the one that the fold realises (a folded norm is rounded).
        scale_dtype: dtype of the stored quantization scales.
    """
    loss = BlockLoss(block, weights, inputs)
    best: Choice | None = None
    for mode, exponent, wanted in candidates(weights, inputs.mean_abs, scheme, exponents, duo):
        s = effective(wanted)
        value = loss([roundtrip(scale_columns(w, s), scheme, scale_dtype) for w in weights], s)
        if best is None:
            best = Choice(mode, exponent, s, value, value)
        elif value < best.loss_after:
            best = Choice(mode, exponent, s, best.loss_before, value)
    assert best is not None  # identity is always tried
    return best
