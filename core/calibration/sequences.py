"""Whole sequences as they enter the first layer, so that quantizing can run them on through layers it has changed.

Statistics say what every linear sees of the unquantized model; what it sees once the layers before it are quantized can
only be computed from whole sequences, as attention mixes their tokens. Kept are the embeddings, the rotary tables, how
far back each token sees, and its role. Tasks take turns until there are ``CAPACITY`` tokens, so that the tensors of a
file have at most ``most_bytes``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import CheckpointError, WorkbenchError
from core.formats.safetensors_file import save_tensors
from core.lance.roles import Role

CAPACITY = 32768
"""Tokens that are kept at most: 128 MiB of a full-size Lance in bfloat16."""

_PARTS = ("hidden", "place", "visible", "roles")


def most_bytes(channels: int, head_dim: int, itemsize: int, tokens: int = CAPACITY) -> int:
    """Bytes that the tensors of a file have at most, whatever is calibrated on.

    Args:
        channels: of the hidden states.
        head_dim: of a head of the attention.
        itemsize: bytes of a value of the hidden states.
        tokens: how many are kept.
    """
    # Every position may be another, so the rotary tables can have as many rows as there are tokens.
    return tokens * (channels * itemsize + 2 * head_dim * 4 + 4 + 4 + 1)


@dataclass(frozen=True)
class InputSequence:
    """The n tokens of one sequence. Tensors on the CPU."""

    task: str
    hidden: Tensor
    """[n, channels] in the dtype the model ran in: what enters the first layer."""
    cos: Tensor
    """float32 [n, head_dim], as is ``sin``: rotary tables of the tokens' positions."""
    sin: Tensor
    visible: Tensor
    """int32 [n]: each token sees the first so many of the sequence."""
    roles: Tensor
    """int8 [n], ``Role``."""

    def __len__(self) -> int:
        return len(self.roles)

    @property
    def is_gen(self) -> Tensor:
        """Which tokens are latents, and so the generation expert's: bool [n]."""
        return self.roles >= int(Role.NOISY)


def bucket_of(task: str, role: int) -> str:
    """The bucket of a task's tokens of one role."""
    return f"{task}/{Role(role).name.lower()}"


class Sequences:
    """Takes sequences in and keeps what there is room for."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._kept: dict[str, list[InputSequence]] = {}

    def has_room(self, task: str) -> bool:
        """Whether another sequence of a task may be kept."""
        return self._tokens(task) < self.capacity

    def add(self, sequence: InputSequence) -> None:
        """Take in a sequence; one that no longer fits is left out."""
        if self._tokens(sequence.task) + len(sequence) <= self.capacity:
            self._kept.setdefault(sequence.task, []).append(sequence)

    def _tokens(self, task: str) -> int:
        return sum(map(len, self._kept.get(task, [])))

    def chosen(self) -> list[InputSequence]:
        """What is kept in the end: of every task its first, then every task's second, the shortest of a turn first, as
        long as the next one fits.
        """
        left, found = self.capacity, []
        for turn in range(max(map(len, self._kept.values()), default=0)):
            mine = [self._kept[task][turn] for task in sorted(self._kept) if turn < len(self._kept[task])]
            for one in sorted(mine, key=len):
                if len(one) <= left:
                    found.append(one)
                    left -= len(one)
        return found

    def tokens(self) -> dict[str, int]:
        """Tokens of what is chosen by bucket (``task/role``)."""
        found: Counter[str] = Counter()
        for one in self.chosen():
            for role in one.roles.tolist():
                found[bucket_of(one.task, role)] += 1
        return dict(sorted(found.items()))

    def save(self, path: Path) -> None:
        """Write the chosen sequences to a safetensors file at ``path``.

        Raises:
            WorkbenchError: one holds NaN or infinite values.
        """
        chosen = self.chosen()
        tables = torch.cat([torch.cat([one.cos, one.sin], dim=-1) for one in chosen])
        table, places = tables.unique(dim=0, return_inverse=True)
        cos, sin = table.chunk(2, dim=-1)
        tensors = {"cos": cos, "sin": sin}
        own = places.to(torch.int32).split([len(one) for one in chosen])
        for index, (one, place) in enumerate(zip(chosen, own, strict=True)):
            if not bool(one.hidden.isfinite().all()):
                raise WorkbenchError(
                    f"{one.task}: the embeddings of a sequence hold NaN or infinite values; check the checkpoint with "
                    "`checkpoints verify`"
                )
            key = f"{one.task}/{index:05d}"
            tensors |= {
                f"{key}/hidden": one.hidden,
                f"{key}/place": place.clone(),
                f"{key}/visible": one.visible,
                f"{key}/roles": one.roles,
            }
        save_tensors(tensors, path)


def load_sequences(path: Path) -> list[InputSequence]:
    """The sequences of a file, in the order they were chosen.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            get = file.get_tensor
            cos, sin = get("cos"), get("sin")
            keys = {name.rpartition("/")[0] for name in file.keys() if "/" in name}  # noqa: SIM118
            found = []
            for key in sorted(keys, key=lambda key: key.rpartition("/")[2]):
                hidden, place, visible, roles = (get(f"{key}/{part}") for part in _PARTS)
                task = key.rpartition("/")[0]
                found.append(InputSequence(task, hidden, cos[place], sin[place], visible, roles))
    except (OSError, SafetensorError, IndexError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); calibrate again") from error
    return found


def merge_sequences(parts: Iterable[Iterable[InputSequence]]) -> Sequences:
    """Several files' sequences as one's, shared evenly among tasks as far as there is room."""
    merged = Sequences()
    for part in parts:
        for sequence in part:
            merged.add(sequence)
    return merged
