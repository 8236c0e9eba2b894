"""From a prompt to the packed sequence: ids, splits with their visibility, experts, roles, positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from core.lance.prompts import VIDEO_PAD, VISION_END, VISION_START, Block, Prompt
from core.lance.roles import Role
from core.lance.rotary import VIT_TEMPORAL_ORIGIN, block_extent, block_positions, text_positions

Mode = Literal["causal", "full", "full_noise", "noise"]

TEXT, CAPTION, TARGET, SOURCE, VIT = -1, 0, 1, 2, 4
"""Modality tags, upstream's numbers."""

_BLOCKS: dict[str, tuple[Mode, int, Role]] = {
    "vit": ("full", VIT, Role.VIT),
    "source": ("full_noise", SOURCE, Role.CLEAN),
    "target": ("noise", TARGET, Role.NOISY),
}


@dataclass(frozen=True)
class Split:
    """A stretch of the sequence that shares one attention mode and modality."""

    start: int
    length: int
    mode: Mode
    modality: int
    block: Block | None = None

    @property
    def stop(self) -> int:
        """Index behind the last token."""
        return self.start + self.length


@dataclass(frozen=True)
class Packed:
    """One sample as the decoder takes it. Index tensors are int64 on the CPU."""

    ids: torch.Tensor
    """Token ids [L]; pads where a visual token's embedding goes."""
    splits: list[Split]
    positions: torch.Tensor
    """Rotary positions [3, L], shifts for edits included."""
    uncond_positions: torch.Tensor
    """Positions [3, L'] of the sequence without its caption, computed from scratch."""

    @property
    def target(self) -> Split:
        """The split to generate."""
        return next(split for split in self.splits if split.mode == "noise")

    def modality(self) -> torch.Tensor:
        """Modality tag of every token, int64 [L]."""
        return torch.cat([torch.full((split.length,), split.modality) for split in self.splits])

    def is_gen(self, split: Split) -> torch.Tensor:
        """Which tokens of a split the generation expert takes: the latents, not their markers. bool [n]."""
        flags = torch.zeros(split.length, dtype=torch.bool)
        if split.mode in ("full_noise", "noise"):
            flags[1:-1] = True
        return flags

    def roles(self, split: Split) -> torch.Tensor:
        """Role of every token of a split, int8 [n]."""
        roles = torch.full((split.length,), int(Role.TEXT), dtype=torch.int8)
        if split.block is not None:
            roles[1:-1] = int(_BLOCKS[split.block.kind][2])
        return roles


def pack(prompt: Prompt, tokenizer: Any) -> Packed:
    """Tokenise a prompt as one string, find its caption by character offsets and lay out its splits.

    ``tokenizer`` is a fast transformers tokenizer. Offsets instead of a search for the caption's own ids: a caption
    that also stands in the system prompt, or merges with the template's newline, is still found.
    """
    text, (first, last) = prompt.render()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start_id, end_id, pad_id = tokenizer.convert_tokens_to_ids([VISION_START, VISION_END, VIDEO_PAD])
    blocks = iter([*prompt.visuals, *([prompt.target] if prompt.target else [])])
    ids: list[int] = []
    splits: list[Split] = []
    run = 0
    tag = TEXT

    def close() -> None:
        nonlocal run
        if run:
            splits.append(Split(len(ids) - run, run, "causal", tag))
        run = 0

    for token, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if token == start_id:
            close()
        elif token == pad_id:
            block = next(blocks)
            mode, modality, _ = _BLOCKS[block.kind]
            splits.append(Split(len(ids) - 1, block.tokens + 2, mode, modality, block))
            ids += [pad_id] * block.tokens
            run = 0
            continue
        elif token == end_id:
            ids.append(token)
            continue
        else:
            caption = prompt.target is not None and first <= begin < last and end > begin
            wanted = CAPTION if caption else TEXT
            if wanted != tag:
                close()
                tag = wanted
            run += 1
        ids.append(token)
    close()
    positions = _positions(splits)
    kept = [split for split in splits if split.modality != CAPTION]
    return Packed(
        torch.tensor(ids), splits, positions, _positions(kept) if len(kept) < len(splits) else positions
    )


def _positions(splits: list[Split]) -> torch.Tensor:
    """Rotary positions [3, L] of consecutive splits, with the shifts that sequences with a clean source get."""
    counter = 0
    parts: list[torch.Tensor] = []
    for split in splits:
        if split.block is None:
            parts.append(text_positions(counter, split.length))
            counter += split.length
            continue
        inner = block_positions(counter + 1, split.block.grid)
        extent = block_extent(split.block.grid)
        parts.append(
            torch.cat([text_positions(counter, 1), inner, text_positions(counter + 1 + extent, 1)], dim=1)
        )
        counter += extent + 2
    # Understanding has ViT blocks too, but upstream shifts nothing there.
    if any(split.mode == "full_noise" for split in splits):
        places = {split.modality: index for index, split in reversed(list(enumerate(splits))) if split.block}
        vit = [index for index, split in enumerate(splits) if split.modality == VIT]
        if vit:
            shift = VIT_TEMPORAL_ORIGIN - int(parts[vit[0]][0, 0])
            for index in vit:
                parts[index] = parts[index].clone()
                parts[index][0] += shift
        source, target = places.get(SOURCE), places.get(TARGET)
        if source is not None and target is not None and splits[source].length == splits[target].length:
            parts[target] = parts[source]
    return torch.cat(parts, dim=1)


def visibility(splits: list[Split]) -> torch.Tensor:
    """Dense mask bool [L, L]: True where the row's query sees the column's key (SPEC section 10)."""
    length = sum(split.length for split in splits)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    start = 0
    for split in splits:
        stop = start + split.length
        if split.mode != "causal":
            mask[start:stop, start:stop] = True
        if split.mode == "noise":
            mask[stop:, start:stop] = False
        start = stop
    return mask


def visible_rows(splits: list[Split]) -> torch.Tensor:
    """How many of the first rows each row sees, int32 [L], of splits among which a target comes last.

    The same as ``visibility``, in a number a row.
    """
    parts = []
    start = 0
    for split in splits:
        stop = start + split.length
        causal = split.mode == "causal"
        parts.append(torch.arange(start + 1, stop + 1) if causal else torch.full((split.length,), stop))
        start = stop
    return torch.cat(parts).int()
