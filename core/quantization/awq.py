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

from core.quantization.folds import scale_columns
from core.quantization.losses import Block, BlockLoss, Inputs
from core.quantization.rounding import Rounding
from core.quantization.scheme import CHANNEL


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


def evenness(weights: Sequence[Tensor], group: int) -> Tensor:
    """Mean over rows [K] of the weights' magnitudes over the greatest in their group (AutoAWQ's duo scaling).

    Args:
        weights: [N, K] each.
        group: columns of a group, or ``CHANNEL``.
    """
    stacked = torch.cat(list(weights)).abs()
    stacked = stacked.unflatten(-1, (-1, stacked.shape[-1] if group == CHANNEL else group))
    return (stacked / stacked.amax(-1, keepdim=True).clamp(min=1e-30)).flatten(-2).mean(0)


def candidates(a: Tensor, w: Tensor, exponents: int, duo: bool) -> Iterator[tuple[str, float, Tensor]]:
    """Scales to try, as (mode, exponent r, float32 [K]): one, ``a**r`` and ``a**r / w**(1-r)``.

    ``a`` is the channels' mean magnitude, ``w`` their ``evenness``; each scale is normalised by the root of its
    greatest times its least.
    """
    yield "identity", 0.0, torch.ones_like(a)
    a = a.clamp(min=float(a.mean()) * 1e-4 + 1e-30)
    w = w.clamp(min=1e-4)
    for step in range(1, exponents + 1):
        r = step / exponents
        for mode in ("plain", "duo") if duo and step < exponents else ("plain",):
            s = a.pow(r) if mode == "plain" else a.pow(r) / w.pow(1 - r)
            yield mode, r, s / (s.max() * s.min()).sqrt()


def search(
    weights: Sequence[Tensor],
    inputs: Inputs,
    block: Block,
    rounding: Rounding,
    *,
    exponents: int = 20,
    duo: bool = True,
    effective: Callable[[Tensor], Tensor] = lambda s: s,
) -> Choice:
    """Find the scale of a group's input channels that loses least.

    Args:
        weights: float32 [N, K] each.
        inputs: rows the group really sees.
        block: what to compare.
        rounding: how the weights will be rounded, but for a compensation of errors.
        exponents: how many exponents in (0, 1] to try; 0 tries identity alone.
        duo: also weigh activations against weights.
        effective: from a wanted scale to the one that the fold realises (a folded norm is rounded).
    """
    loss = BlockLoss(block, weights, inputs, rounding.seen)

    def value_of(s: Tensor, rounding: Rounding) -> Tensor:
        scaled = [scale_columns(w, s) for w in weights]
        return loss.measure(rounding.roundtrip(scaled, inputs.mean_sq / s.square()), s)

    one = effective(torch.ones_like(inputs.mean_abs))
    tried = [("identity", 0.0, one)]
    values = [value_of(one, rounding.plain())]
    w = evenness(weights, rounding.scheme.group_size)
    for mode, exponent, wanted in candidates(inputs.mean_abs, w, exponents, duo):
        s = effective(wanted)
        tried.append((mode, exponent, s))
        values.append(value_of(s, rounding))
    # Only now does the host wait for the device.
    losses = torch.stack(values).tolist()
    best = min(range(len(tried)), key=losses.__getitem__)
    return Choice(*tried[best], losses[0], losses[best])
