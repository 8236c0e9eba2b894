"""lance-quant's search and formats as it published them, to be measured against: what a variant of it computes.

Its activations are gaussians of each channel's mean magnitude, no candidate leaves the weights as they are, o and
down are not scaled, the norm is rounded after the scale was chosen, codes are chosen for scales that are rounded
after, and its NVFP4 has no global scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from core.calibration.statistics import StatisticsFile
from core.checkpoints.source import TensorSource
from core.quantization.groups import LinearGroup
from core.quantization.nvfp4 import nearest_codes

Format = Callable[[Tensor], Tensor]
"""From float32 weights [N, K] to those that run."""


def int4(group: int, *, searching: bool = False) -> Format:
    """Asymmetric INT4 by the range of each group, which need not include zero.

    What is stored has its zero clamped and its scale rounded after the codes were chosen; the search scores neither.
    """

    def run(weight: Tensor) -> Tensor:
        groups = weight.unflatten(-1, (-1, group))
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp(min=1e-5 if searching else 1e-8)
        zero = torch.round(-low / scale)
        if not searching:
            zero = zero.clamp(0, 15)
        steps = torch.round(groups / scale + zero).clamp(0, 15) - zero
        if searching:
            return (steps * scale).flatten(-2)
        return (steps * scale.bfloat16().float()).bfloat16().float().flatten(-2)

    return run


def nvfp4_without_global_scale(weight: Tensor) -> Tensor:
    """E2M1 with E4M3 scales of 16 columns that are stored as they come."""
    groups = weight.unflatten(-1, (-1, 16))
    scale = (groups.abs().amax(-1, keepdim=True) / 6).clamp(min=1e-8)
    return (nearest_codes(groups / scale) * scale.to(torch.float8_e4m3fn).float()).flatten(-2)


def mean_magnitude(statistics: StatisticsFile, group: LinearGroup) -> Tensor:
    """Mean |x| of each channel over all tokens, whatever their role."""
    parts = [statistics.moments(group.key, bucket) for bucket in statistics.buckets(group.key)]
    total = torch.stack([part.sum_abs for part in parts]).sum(0)
    return (total / sum(part.count for part in parts)).float()


def search(weights: list[Tensor], act: Tensor, form: Format) -> Tensor:
    """The scale with the least squared error of the outputs on gaussian inputs."""
    x = torch.randn(512, len(act), generator=torch.Generator().manual_seed(0)) * act
    w_max = torch.stack([weight.abs().amax(0) for weight in weights]).clamp(min=1e-5).mean(0)
    best, least = torch.ones_like(act), float("inf")
    for step in range(21):
        alpha = step / 20
        s = act.clamp(min=1e-5).pow(alpha) / w_max.pow(1 - alpha)
        s = s / (s.max() * s.min()).sqrt()
        loss = sum(
            float((functional.linear(x / s, form(w * s)) - functional.linear(x, w)).square().mean())
            for w in weights
        )
        if loss < least:
            best, least = s, loss
    return best


def seed_weights(
    source: TensorSource,
    statistics: StatisticsFile,
    groups: Sequence[LinearGroup],
    form: Format,
    scored: Format | None = None,
) -> dict[str, Tensor]:
    """What the seed's variant of a checkpoint computes with: the tensors that differ, dense float32 by name.

    ``form`` is what is stored, ``scored`` what the search takes for it.
    """
    found: dict[str, Tensor] = {}
    for group in groups:
        weights = [source.get(f"{name}.weight").bfloat16().float() for name in group.linears]
        if group.norm is not None:
            s = search(weights, mean_magnitude(statistics, group), scored or form)
            norm = source.get(f"{group.norm}.weight").float()
            found[f"{group.norm}.weight"] = (norm / s).bfloat16().float()
            weights = [weight * s for weight in weights]
        for name, weight in zip(group.linears, weights, strict=True):
            found[f"{name}.weight"] = form(weight)
    return found
