"""Muon for the hidden matrices, Adam for everything else, with their rates in a tensor so that a graph can hold them.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): momentum, then the nearest orthogonal matrix by
a quintic Newton-Schulz iteration. Matrices of one shape are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_MOMENTUM, _DECAY = 0.95, 0.05

MATRIX_RATE = 0.015
"""Peak learning rate of hidden matrices, by Muon."""

TABLE_RATE = 3e-3
"""Peak learning rate of the embedding table and of the output head, by Adam."""

OTHER_RATE = 1.5e-3
"""Peak learning rate of everything else, by Adam."""


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately U V^T of each matrix in [n, rows, columns], computed in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """Muon over matrices; fused projections are cut into the given number of row blocks first."""

    def __init__(self, matrices: Iterable[tuple[nn.Parameter, int]]) -> None:
        self.groups: dict[tuple[int, int], list[tuple[nn.Parameter, int]]] = defaultdict(list)
        for parameter, cuts in matrices:
            rows, columns = parameter.shape
            self.groups[rows // cuts, columns].append((parameter, cuts))
        self.velocity = {
            shape: torch.zeros(sum(cuts for _, cuts in members), *shape, device=members[0][0].device)
            for shape, members in self.groups.items()
        }

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All matrices."""
        return [parameter for members in self.groups.values() for parameter, _ in members]

    @torch.no_grad()
    def step(self, rate: torch.Tensor) -> None:
        """One update of all matrices with the learning rate in ``rate`` (a scalar on their device)."""
        for shape, members in self.groups.items():
            gradient = torch.cat([p.grad.view(cuts, *shape) for p, cuts in members if p.grad is not None])
            velocity = self.velocity[shape]
            velocity.lerp_(gradient, 1 - _MOMENTUM)
            update = orthogonalise(gradient.lerp(velocity, _MOMENTUM)).float()
            update *= rate * -(max(1.0, shape[0] / shape[1]) ** 0.5)
            blocks = update.split([cuts for _, cuts in members])
            changes = [block.reshape(p.shape) for (p, _), block in zip(members, blocks, strict=True)]
            matrices: list[torch.Tensor] = [parameter for parameter, _ in members]
            # Without decay the orthogonal steps let attention logits grow without bound.
            torch._foreach_mul_(matrices, 1 - _DECAY * rate)
            torch._foreach_add_(matrices, changes)


class Adam:
    """Adam (arXiv 1412.6980) without weight decay; its step count lives on the device."""

    def __init__(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        self.parameters = list(parameters)
        self.betas = betas
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.count = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, rate: torch.Tensor) -> None:
        """One update with the learning rate in ``rate`` (a scalar on the parameters' device)."""
        fast, slow = self.betas
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.count += 1
        torch._foreach_lerp_(self.first, gradients, 1 - fast)
        torch._foreach_mul_(self.second, slow)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - slow)
        scale = torch._foreach_sqrt(self.second)
        torch._foreach_mul_(scale, (1 - slow**self.count).rsqrt())
        torch._foreach_add_(scale, 1e-8)
        changes = list(torch._foreach_div(self.first, scale))
        torch._foreach_mul_(changes, -rate / (1 - fast**self.count))
        torch._foreach_add_(list[torch.Tensor](self.parameters), changes)


class Optimizer:
    """Muon and Adam together over a Lance's parameters, with one schedule for all."""

    def __init__(self, model: nn.Module) -> None:
        matrices: list[tuple[nn.Parameter, int]] = []
        tables: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                tables.append(parameter)
            elif parameter.ndim == 2 and not name.startswith(("vae2llm", "llm2vae", "time_embedder")):
                matrices.append((parameter, 3 if name.endswith("attn.qkv.weight") else 1))
            else:
                others.append(parameter)
        self.parts: list[tuple[Muon | Adam, float]] = [
            (Muon(matrices), MATRIX_RATE), (Adam(tables), TABLE_RATE), (Adam(others), OTHER_RATE)
        ]  # fmt: skip
        self.factor = torch.zeros((), device=tables[0].device)

    def set_factor(self, factor: float) -> None:
        """Multiply all learning rates by ``factor`` from now on."""
        self.factor.fill_(factor)

    def step(self) -> None:
        """Update every parameter from its gradient."""
        for part, rate in self.parts:
            part.step(self.factor * rate)

    def state(self) -> list[torch.Tensor]:
        """Every tensor a step changes: parameters, moments, counts."""
        tensors: list[torch.Tensor] = []
        for part, _ in self.parts:
            tensors += [parameter.detach() for parameter in part.parameters]
            tensors += (
                part.velocity.values() if isinstance(part, Muon) else [*part.first, *part.second, part.count]
            )
        return tensors

    def clear(self) -> None:
        """Drop the gradients."""
        for part, _ in self.parts:
            for parameter in part.parameters:
                parameter.grad = None
