"""What a calibration will see and take, from its samples' extents, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.calibration.collect import stratified
from core.calibration.samples import MIXED
from core.evaluation.drawings import sampling
from core.evaluation.extent import Extent
from core.evaluation.samples import Settings
from core.lance.roles import Role

Table = dict[str, dict[Role, int]]
"""Tokens by task and role."""


@dataclass(frozen=True)
class Prediction:
    """Tokens that each linear of the role's expert will see; answers may end sooner, so theirs are the most."""

    tokens: Table
    longest_mixed: int
    """Tokens of the longest sequence that packs several samples; 0 without any."""

    def buckets(self) -> dict[str, dict[str, int]]:
        """Tokens by expert and bucket."""
        found: dict[str, dict[str, int]] = {"und": {}, "gen": {}}
        for task, roles in self.tokens.items():
            for role, count in roles.items():
                expert = "gen" if role in (Role.NOISY, Role.CLEAN) else "und"
                found[expert][f"{task}/{role.name.lower()}"] = count
        return found

    def named(self) -> dict[str, dict[str, int]]:
        """``tokens`` with the roles' names."""
        return {
            task: {role.name.lower(): count for role, count in roles.items()}
            for task, roles in self.tokens.items()
        }


def predict(extents: Sequence[Extent], settings: Mapping[str, Settings], mixed: int = 0) -> Prediction:
    """What running samples of ``extents`` will show."""
    table: Table = {}
    for extent in extents:
        seen = _drawn(extent, settings[extent.task]) if extent.target else _answered(extent)
        _add(table.setdefault(extent.task, {}), seen)
    longest = 0
    for index in range(mixed):
        chosen = [own[index] for own in _by_task(extents).values() if index < len(own)]
        for extent in chosen:
            _add(table.setdefault(MIXED, {}), _packed(extent))
        longest = max(longest, sum(extent.rows for extent in chosen))
    return Prediction(table, longest)


def _by_task(extents: Sequence[Extent]) -> dict[str, list[Extent]]:
    found: dict[str, list[Extent]] = {}
    for extent in extents:
        found.setdefault(extent.task, []).append(extent)
    return found


def _add(total: dict[Role, int], more: Mapping[Role, int]) -> None:
    for role, count in more.items():
        if count:
            total[role] = total.get(role, 0) + count


def _answered(extent: Extent) -> dict[Role, int]:
    # The last token that is chosen is fed to nothing.
    return extent.context | {Role.ANSWER: extent.answer - 1}


def _drawn(extent: Extent, settings: Settings) -> dict[Role, int]:
    """Both contexts of guidance, the second without the caption, and every pass of the sampler."""
    seen = {role: 2 * count for role, count in extent.context.items()}
    seen[Role.TEXT] -= extent.caption
    sampler = sampling(settings)
    share = stratified(sampler, extent.block)
    for time in sampler.schedule()[0].tolist():
        passes = 1 + sampler.guided(time)
        seen[Role.TEXT] += 2 * passes
        for role, count in ((Role.NOISY, extent.block - extent.given), (Role.CLEAN, extent.given)):
            if count:
                taken = min(count, max(1, round(count * share(time))))
                seen[role] = seen.get(role, 0) + passes * taken
    return seen


def _packed(extent: Extent) -> dict[Role, int]:
    seen = dict(extent.context)
    if extent.target is None:
        return seen | {Role.ANSWER: extent.answer}
    seen[Role.TEXT] += 2
    seen[Role.NOISY] = extent.block - extent.given
    seen[Role.CLEAN] = seen.get(Role.CLEAN, 0) + extent.given
    return seen
