"""Calibrating a causal LM on running text: documents cut into sequences, run through the model under observation.

Which texts there are, ``core.calibration.prose`` says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from core.calibration.observers import LinearHooks
from core.calibration.prose import TASK
from core.calibration.sequences import InputSequence, Sequences
from core.calibration.statistics import Statistics
from core.files import sha256_text
from core.huggingface.loading import CausalLM
from core.lance.roles import Role
from core.quantization.groups import LinearGroup

SEQUENCE = 512
"""Tokens of a sequence, fewer where a model has fewer positions."""

ROWS = 4096
"""Rows kept of every input: all of them are of one bucket, where a Lance has several."""


@dataclass(frozen=True)
class Piece:
    """A sequence to run: special tokens in front, then a stretch of a document."""

    key: str
    tokens: list[int]


def pieces(model: CausalLM, documents: Sequence[str], count: int, seed: int) -> list[Piece]:
    """``count`` sequences of the documents, or all there are if those are fewer, chosen at random by ``seed``."""
    found: list[Piece] = []
    for number, document in enumerate(documents):
        tokens, given = model.encode(document)
        room = min(SEQUENCE, model.positions) - given
        for start in range(given, len(tokens), room):
            found.append(Piece(f"{number:03d}-{start:06d}", tokens[:given] + tokens[start : start + room]))
    if len(found) <= count:
        return found
    chosen = random.Random(seed).sample(range(len(found)), count)
    return [found[index] for index in sorted(chosen)]


def fingerprint(chosen: Sequence[Piece]) -> str:
    """SHA-256 over the tokens of the sequences."""
    return sha256_text("\n".join(" ".join(map(str, piece.tokens)) for piece in chosen))


class TextObserver(LinearHooks):
    """Observes a causal LM that runs text: all its rows are of one bucket."""

    def __init__(self, model: CausalLM, statistics: Statistics) -> None:
        super().__init__(model.model, model.structure)
        self._statistics = statistics

    def observe(self, group: LinearGroup, linear: str, rows: Tensor, *, first: bool) -> None:
        """Count the rows, and add those of the group's first linear to the statistics."""
        bucket = f"{TASK}/{Role.TEXT.name.lower()}"
        self._statistics.count(linear, bucket, rows.shape[0])
        if first:
            self._statistics.add(group.key, bucket, rows)


class FirstLayer:
    """While entered, keeps of every sequence that a causal LM runs what enters its first layer."""

    def __init__(self, model: CausalLM, sequences: Sequences) -> None:
        self._first = model.model.get_submodule(f"{model.structure.prefix}0")
        # Of a longer one only the beginning is kept, whose tokens see all those before them in every layer.
        self._most = int(getattr(model.model.config, "sliding_window", None) or SEQUENCE)
        self._sequences = sequences

    def __enter__(self) -> FirstLayer:
        self._handle = self._first.register_forward_pre_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        if not self._sequences.has_room(TASK):
            return
        hidden = (inputs[0] if inputs else named["hidden_states"])[0, : self._most].cpu()
        count = len(hidden)
        cos, sin = (
            table.expand(1, -1, -1)[0, :count].float().cpu() for table in named["position_embeddings"]
        )
        visible = torch.arange(1, count + 1, dtype=torch.int32)
        roles = torch.full((count,), int(Role.TEXT), dtype=torch.int8)
        self._sequences.add(InputSequence(TASK, hidden.clone(), cos.clone(), sin.clone(), visible, roles))


@torch.inference_mode()
def collect_texts(
    model: CausalLM,
    chosen: Sequence[Piece],
    statistics: Statistics,
    progress: Callable[[int, int, str], None] = lambda done, total, message: None,
    sequences: Sequences | None = None,
) -> None:
    """Run the sequences and add what is seen to ``statistics``; ``sequences`` takes what enters the decoder."""
    kept = Sequences(0) if sequences is None else sequences
    with TextObserver(model, statistics), FirstLayer(model, kept):
        for index, piece in enumerate(chosen):
            progress(index, len(chosen), piece.key)
            model.model(
                input_ids=torch.tensor([piece.tokens], device=model.device), use_cache=False, logits_to_keep=1
            )
        progress(len(chosen), len(chosen), "")
