"""What rounding a group of linears disturbs: rows of its input, the block behind it, and the loss of the block's
outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

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
    mean_sq: Tensor
    """float32 [K], mean square of each channel over all tokens seen, buckets weighed and each measured
    against its own mean over channels.
    """

    sample: Tensor
    """float32 [m, K], further rows, none of them in ``rows``: what is fitted to them is scored on others."""
    sample_weight: Tensor
    """float32 [m], what each of them counts, measured as ``mean_sq`` is."""

    def over(self, scale: Tensor) -> Inputs:
        """What the group sees once its channels are divided by ``scale`` float32 [K]."""
        return replace(
            self,
            rows=self.rows / scale,
            sample=self.sample / scale,
            mean_abs=self.mean_abs / scale,
            mean_sq=self.mean_sq / scale.square(),
        )


def linear_block(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """The linears' own outputs."""
    return [functional.linear(rows, weight) for weight in weights]


def attention_block(biases: Sequence[Tensor | None], q_norm: Tensor, k_norm: Tensor, eps: float) -> Block:
    """Queries and keys after their per-head norm, and values: what attention reads of ``(q, k, v)`` weights.

    The norm takes each head's length out of q and k, so an error along it does not count. Sampled rows are
    not one sequence, so the softmax itself is left out.

    Args:
        biases: of q, k and v, where they have one.
        q_norm: [head_dim], as is ``k_norm``.
        eps: of both norms.
    """

    def heads(x: Tensor, norm: Tensor) -> Tensor:
        split = x.unflatten(-1, (-1, norm.shape[0]))
        return (split * torch.rsqrt(split.pow(2).mean(-1, keepdim=True) + eps) * norm).flatten(-2)

    def run(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        q, k, v = (functional.linear(rows, w, b) for w, b in zip(weights, biases, strict=True))
        return [heads(q, q_norm), heads(k, k_norm), v]

    return run


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}
"""By transformers' words for them."""


def mlp_block(down: Tensor, activation: str, biases: Sequence[Tensor | None]) -> Block:
    """The MLP's output from ``(gate, up)`` weights, with the down projection in full precision.

    Args:
        down: its weight; a bias of it does not count.
        activation: of the gate, one of ``ACTIVATIONS``.
        biases: of gate and up, where they have one.
    """
    act = ACTIVATIONS[activation]

    def run(weights: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        gate, up = (functional.linear(rows, w, b) for w, b in zip(weights, biases, strict=True))
        return [functional.linear(act(gate) * up, down)]

    return run


class BlockLoss:
    """Relative squared disturbance of a block's outputs: mean over outputs, weighed over buckets of rows.

    Each bucket is measured against its own energy, so tokens with large activations do not drown the others.

    Args:
        block: from weights and rows to outputs.
        weights: undisturbed.
        inputs: the rows.
        seen: what rounded weights are given in place of the rows, where their format rounds activations too.
    """

    def __init__(
        self,
        block: Block,
        weights: Sequence[Tensor],
        inputs: Inputs,
        seen: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        self._block = block
        self._inputs = inputs
        self._seen = seen
        self._reference = block(weights, inputs.rows)
        self._energy = [self._per_bucket(part).clamp(min=1e-30) for part in self._reference]

    def _per_bucket(self, part: Tensor) -> Tensor:
        energy = part.double().pow(2).sum(-1)
        return energy.new_zeros(self._inputs.weight.shape[0]).index_add_(0, self._inputs.bucket, energy)

    def measure(self, weights: Sequence[Tensor], scale: Tensor) -> Tensor:
        """The loss of running ``weights`` (already scaled by ``scale`` and rounded) on the rows over ``scale``:
        float64 [] on the device, which nothing has to wait for.
        """
        parts = self._block(weights, self._seen(self._inputs.rows / scale))
        shares = [
            self._per_bucket(part - reference) / energy
            for part, reference, energy in zip(parts, self._reference, self._energy, strict=True)
        ]
        return (torch.stack(shares).sum(0) * self._inputs.weight).sum() / len(parts)

    def __call__(self, weights: Sequence[Tensor], scale: Tensor) -> float:
        """``measure`` as a number."""
        return float(self.measure(weights, scale))
