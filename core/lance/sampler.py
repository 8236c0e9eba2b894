"""The flow sampler: shifted schedule, Euler steps, classifier-free guidance and its renormalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from core.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation; the defaults are what upstream's launch script passes."""

    num_steps: int = 30
    timestep_shift: float = 3.5
    cfg_text_scale: float = 4.0
    cfg_interval: tuple[float, float] = (0.4, 1.0)
    cfg_renorm: Literal["global", "channel", "none"] = "global"
    cfg_renorm_min: float = 0.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UsageError(f"{self.num_steps} steps asked for, at least 1 is needed")
        if self.timestep_shift <= 0:
            raise UsageError(f"timestep shift {self.timestep_shift}, wanted a positive number")

    def schedule(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Times t_i and step sizes t_i - t_(i+1), float32 [num_steps] each; 1 is pure noise, 0 is data."""
        u = torch.linspace(1, 0, self.num_steps + 1)
        t = self.timestep_shift * u / (1 + (self.timestep_shift - 1) * u)
        return t[:-1], t[:-1] - t[1:]

    def guided(self, time: float) -> bool:
        """Whether a step at this time takes the second, unconditional pass."""
        low, high = self.cfg_interval
        return self.cfg_text_scale != 1.0 and low < time <= high


def guide(cond: torch.Tensor, uncond: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Guided velocity [K, 48]: extrapolate from the unconditional one, then shrink to the conditional one's norm.

    Norms are Frobenius over the whole block (``global``) or per token over its channels (``channel``).
    """
    mixed = uncond + sampling.cfg_text_scale * (cond - uncond)
    if sampling.cfg_renorm == "none":
        return mixed
    dims = (0, 1) if sampling.cfg_renorm == "global" else (1,)
    wanted = torch.linalg.vector_norm(cond, dim=dims, keepdim=True)
    found = torch.linalg.vector_norm(mixed, dim=dims, keepdim=True)
    return mixed * (wanted / (found + 1e-8)).clamp(min=sampling.cfg_renorm_min, max=1.0)


@dataclass
class Trace:
    """What every step saw and predicted, for metrics and fixtures."""

    times: list[float] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    """x_t [K, 48] at the start of each step, on the CPU."""
    conditional: list[torch.Tensor] = field(default_factory=list)
    unconditional: list[torch.Tensor | None] = field(default_factory=list)


def sample(
    noise: torch.Tensor,
    velocities: Callable[[torch.Tensor, float, bool], tuple[torch.Tensor, torch.Tensor | None]],
    sampling: Sampling,
    *,
    fixed: torch.Tensor | None = None,
    trace: Trace | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Integrate from noise to latents.

    Args:
        noise: starting point, float32 [K, 48].
        velocities: (x_t, t, guided) -> the conditional and, if guided, the unconditional velocity, float32 [K, 48].
        sampling: schedule and guidance.
        fixed: bool [K], tokens that stay as they are.
        trace: filled step by step.
        progress: called with (steps done, steps in all).

    Returns:
        Latents, float32 [K, 48]. The state stays float32 between steps, where upstream rounds it to bfloat16.
    """
    x = noise.float()
    times, steps = sampling.schedule()
    for index, (time, step) in enumerate(zip(times.tolist(), steps.tolist(), strict=True)):
        cond, uncond = velocities(x, time, sampling.guided(time))
        if trace is not None:
            trace.times.append(time)
            trace.latents.append(x.cpu())
            trace.conditional.append(cond.cpu())
            trace.unconditional.append(None if uncond is None else uncond.cpu())
        v = cond if uncond is None else guide(cond, uncond, sampling)
        if fixed is not None:
            v = v.masked_fill(fixed.to(v.device)[:, None], 0.0)
        x = x - v * step
        if progress is not None:
            progress(index + 1, sampling.num_steps)
    return x
