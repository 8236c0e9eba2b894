"""Hooks on the target linears that feed the statistics while a model runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from core.calibration.statistics import Statistics
from core.lance.model import Lance
from core.lance.roles import Role
from core.quantization.groups import LinearGroup, Structure

Share = Callable[[float], float]
"""From a flow time to the share of the noisy rows at that time that is taken."""


class LinearHooks(ABC):
    """While entered, every call of a target linear of ``model`` is shown to ``observe``."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self._model = model
        self._structure = structure
        self._handles: list[Any] = []

    @abstractmethod
    def observe(self, group: LinearGroup, linear: str, rows: Tensor, *, first: bool) -> None:
        """Take in the input rows [n, K] of a call of ``linear``; ``first``: no other of its group comes before it."""

    def __enter__(self) -> Self:
        for group in self._structure.groups():
            for index, name in enumerate(group.linears):
                hook = self._hook(group, name, first=index == 0)
                self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(
        self, group: LinearGroup, name: str, *, first: bool
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.observe(group, name, inputs[0].detach().flatten(0, -2), first=first)

        return run


class Observer(LinearHooks):
    """Observes a Lance: rows are told apart by task and role.

    Linears that share an input share one observation, taken at the first of them; the others are counted, so
    that a linear that is never called is seen to be missing.

    Attributes:
        task: names the buckets of the calls to come.
        share: which share of the noisy rows of a pass is taken (at random); None takes all.
        timesteps: noisy rows taken by task and flow time, counted at the first gen linear of the first layer.
    """

    def __init__(self, model: Lance, statistics: Statistics) -> None:
        super().__init__(model, model.config.structure)
        self.task = ""
        self.share: Share | None = None
        self.timesteps: dict[str, dict[str, int]] = {}
        self._decoder = model.language_model.model
        self._statistics = statistics
        self._generator = torch.Generator().manual_seed(statistics.seed)
        self._seen: tuple[object, dict[str, dict[Role, Tensor | None]]] | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._seen = None

    def observe(self, group: LinearGroup, linear: str, rows: Tensor, *, first: bool) -> None:
        """Count the rows of each role, and add those of the group's first linear to the statistics."""
        for role, index in self._roles(group.expert).items():
            bucket = f"{self.task}/{role.name.lower()}"
            taken = rows if index is None else rows[index]
            self._statistics.count(linear, bucket, taken.shape[0])
            if first:
                self._statistics.add(group.key, bucket, taken)
                if role is Role.NOISY and group.kind == "qkv" and group.layer == 0:
                    self._note_time(taken.shape[0])

    def _note_time(self, rows: int) -> None:
        time = self._decoder.timestep
        if time is not None:
            counts = self.timesteps.setdefault(self.task, {})
            counts[f"{time:.3f}"] = counts.get(f"{time:.3f}", 0) + rows

    def _roles(self, expert: str) -> dict[Role, Tensor | None]:
        """Row indexes of each role that ``expert`` sees in this call; None: all its rows are of that role.

        Computed once a call of the decoder, so all its linears take the same rows.
        """
        routing = self._decoder.routing
        assert routing is not None
        if self._seen is None or self._seen[0] is not routing:
            self._seen = (routing, {})
        experts = self._seen[1]
        if expert not in experts:
            roles = routing.und_roles if expert == "und" else routing.gen_roles
            assert roles is not None
            experts[expert] = self._split(roles)
        return experts[expert]

    def _split(self, roles: Tensor) -> dict[Role, Tensor | None]:
        present = [Role(int(role)) for role in roles.unique()]
        split: dict[Role, Tensor | None] = {}
        for role in present:
            index = None if len(present) == 1 else (roles == role).nonzero().flatten()
            if (
                role in (Role.NOISY, Role.CLEAN)
                and self.share is not None
                and self._decoder.timestep is not None
            ):
                count = len(roles) if index is None else len(index)
                wanted = max(1, round(count * self.share(self._decoder.timestep)))
                if wanted < count:
                    chosen = torch.randperm(count, generator=self._generator)[:wanted].to(roles.device)
                    index = chosen if index is None else index[chosen]
            split[role] = index
        return split
