"""Several samples in one sequence and one pass through the decoder, none of which sees another.

Upstream's inference holds one sample a sequence; in training it packs several. Each sample's rows are those of its
own run (prompt, pictures, answer or target block at one flow time) at the positions they have there, so every row comes
out as it does alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.lance.context import Context
from core.lance.decoder import Routing
from core.lance.model import Lance
from core.lance.packing import CAPTION, Packed, Split, visibility, visible_rows
from core.lance.roles import Role


@dataclass(frozen=True)
class Stream:
    """One sample with all that goes between its markers. Tensors on any device."""

    packed: Packed
    features: Sequence[torch.Tensor] = ()
    """ViT features [tokens, hidden] per ViT block."""
    sources: Sequence[torch.Tensor] = ()
    """Clean latents [tokens, 48] per source block."""
    answer: Sequence[int] = ()
    """Tokens that follow a question."""
    latents: torch.Tensor | None = None
    """x_t [K, 48] of the target block."""
    times: torch.Tensor | None = None
    """Flow time of each target token, [K]."""
    caption: bool = True
    """False: as the unconditional branch of text guidance sees it."""


@dataclass(frozen=True)
class Rows:
    """A stream as decoder inputs."""

    inputs: torch.Tensor
    """[n, hidden] on the model's device."""
    positions: torch.Tensor
    """Rotary positions [3, n]."""
    is_gen: torch.Tensor
    """bool [n]."""
    roles: torch.Tensor
    """int8 [n]."""
    splits: list[Split]
    """Those that are run; their lengths add up to n."""

    @property
    def visible(self) -> torch.Tensor:
        """Each row sees the first so many: int32 [n]."""
        return visible_rows(self.splits)


def rows_of(model: Lance, stream: Stream) -> Rows:
    """What of a stream enters the decoder, up to and with its answer or its target block."""
    packed, context = stream.packed, Context(model, stream.packed)
    features, sources = iter(stream.features), iter(stream.sources)
    inputs, positions, roles, gen = [], [], [], []
    splits: list[Split] = []
    length = 0
    for split in packed.splits:
        if split.modality == CAPTION and not stream.caption:
            continue
        content, times = None, None
        if split.mode == "full":
            content = next(features)
        elif split.mode == "full_noise" and split.block is not None:
            content = context.latents(split, next(sources), torch.zeros(split.block.tokens))
        elif split.mode == "noise":
            assert stream.latents is not None and stream.times is not None
            content, times = context.latents(split, stream.latents, stream.times), stream.times
        inputs.append(context.inputs(split, content))
        roles.append(context.roles(split, times))
        gen.append(packed.is_gen(split))
        splits.append(split)
        # Without its caption only the target moves up; ``Drawing`` says why.
        moved = split.mode == "noise" and not stream.caption
        table, first = (packed.uncond_positions, length) if moved else (packed.positions, split.start)
        positions.append(table[:, first : first + split.length])
        length += split.length
        if split.mode == "noise":
            break  # what follows the target is not run when it is sampled
    if stream.answer:
        count = len(stream.answer)
        inputs.append(model.embed_text(torch.tensor(list(stream.answer))))
        roles.append(torch.full((count,), int(Role.ANSWER), dtype=torch.int8))
        gen.append(torch.zeros(count, dtype=torch.bool))
        splits.append(Split(length, count, "causal", -1))
        first = int(positions[-1][0, -1]) + 1
        positions.append(torch.arange(first, first + count).expand(3, -1))
    return Rows(torch.cat(inputs), torch.cat(positions, dim=1), torch.cat(gen), torch.cat(roles), splits)


@torch.inference_mode()
def run_together(model: Lance, streams: Sequence[Stream], time: float | None = None) -> list[torch.Tensor]:
    """Normed hidden states [n, hidden] of every stream, from one pass.

    Args:
        time: the flow time of the target blocks, for observers.
    """
    return hidden_states(model, streams, time)


def hidden_states(model: Lance, streams: Sequence[Stream], time: float | None = None) -> list[torch.Tensor]:
    """What ``run_together`` computes, open to gradients."""
    rows = [rows_of(model, stream) for stream in streams]
    device = model.device
    cos, sin = model.rotary(torch.cat([row.positions for row in rows], dim=1))
    routing = Routing.of(
        torch.cat([row.is_gen for row in rows]).to(device), torch.cat([row.roles for row in rows]).to(device)
    )
    decoder = model.language_model.model
    decoder.timestep = time
    try:
        hidden = decoder(
            torch.cat([row.inputs for row in rows]),
            cos,
            sin,
            routing,
            mask=torch.block_diag(*[visibility(row.splits) for row in rows]).to(device),
        )
    finally:
        decoder.timestep = None
    return list(hidden.split([len(row.is_gen) for row in rows]))
