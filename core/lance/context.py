"""Filling a cache with everything that comes before an answer or a picture, and running the target block against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.lance.cache import KVCache
from core.lance.decoder import Routing
from core.lance.latents import latent_position_ids
from core.lance.model import Lance
from core.lance.packing import CAPTION, Packed, Split
from core.lance.prompts import Grid
from core.lance.roles import Role

ANSWER_ROOM = 64
"""Cache rows set aside behind a prompt; longer answers make the cache grow."""


class Context:
    """Keys and values of a packed sample up to its answer or its target block."""

    def __init__(self, model: Lance, packed: Packed, cache: KVCache | None = None) -> None:
        self.model = model
        self.packed = packed
        self.cache = cache or KVCache(model.config.num_layers, capacity=len(packed.ids) + ANSWER_ROOM)
        self._places: dict[Grid, torch.Tensor] = {}

    def inputs(self, split: Split, content: torch.Tensor | None) -> torch.Tensor:
        """Input embeddings [n, hidden] of a split; ``content`` [n - 2, hidden] goes between a block's markers."""
        x = self.model.embed_text(self.packed.ids[split.start : split.stop])
        if content is not None:
            x = torch.cat([x[:1], content.to(x), x[-1:]])
        return x

    def roles(self, split: Split, times: torch.Tensor | None = None) -> torch.Tensor:
        """Role of every token of a split, int8 [n]; target tokens at time 0 (a given first frame) are clean."""
        roles = self.packed.roles(split)
        if times is not None:
            roles[1:-1][times == 0] = int(Role.CLEAN)
        return roles

    def _routing(self, split: Split, times: torch.Tensor | None = None) -> Routing:
        device = self.model.device
        return Routing.of(self.packed.is_gen(split).to(device), self.roles(split, times).to(device))

    def fill(
        self,
        features: Sequence[torch.Tensor] = (),
        sources: Sequence[torch.Tensor] = (),
        *,
        with_caption: bool = True,
        stop: int | None = None,
    ) -> torch.Tensor:
        """Push the splits before the target (or before token ``stop``) through the decoder.

        Args:
            features: ViT features [tokens, hidden] per ViT block, in order.
            sources: clean latents [tokens, 48] per source block, in order.
            with_caption: False leaves the caption out: the unconditional context of text guidance. Its other tokens
                keep the positions of the full prompt, as upstream's cached path has them.
            stop: index of the first token not to push.

        Returns:
            Normed hidden states of the last split.
        """
        features_left, sources_left = iter(features), iter(sources)
        hidden = torch.empty(0)
        decoder = self.model.language_model.model
        for split in self.packed.splits:
            if split.mode == "noise" or (stop is not None and split.start >= stop):
                break
            content = None
            if split.mode == "full":
                content = next(features_left)
            elif split.mode == "full_noise" and split.block is not None:
                content = self.latents(split, next(sources_left), torch.zeros(split.block.tokens))
            if split.modality == CAPTION and not with_caption:
                continue
            length = split.length if stop is None else min(split.length, stop - split.start)
            rows = slice(split.start, split.start + length)
            cos, sin = self.model.rotary(self.packed.positions[:, rows])
            hidden = decoder(
                self.inputs(split, content)[:length],
                cos,
                sin,
                self._routing(split) if length == split.length else self._text_routing(length, split),
                self.cache,
                causal=split.mode == "causal",
            )
        return hidden

    def _text_routing(self, length: int, split: Split) -> Routing:
        return Routing(None, None, self.packed.roles(split)[:length].to(self.model.device), None)

    def latents(self, split: Split, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Decoder inputs [K, hidden] of a split's latents [K, 48] at flow times [K]."""
        assert split.block is not None
        grid = split.block.grid
        if grid not in self._places:
            self._places[grid] = self.model.position_rows(latent_position_ids(grid))
        return self.model.embed_latents(latents, times, self._places[grid])

    def extend(self, ids: torch.Tensor, first_position: int, role: int) -> torch.Tensor:
        """Append text tokens [n] at consecutive positions; returns their normed hidden states [n, hidden]."""
        count = len(ids)
        positions = torch.arange(first_position, first_position + count).expand(3, -1)
        cos, sin = self.model.rotary(positions)
        roles = torch.full((count,), role, dtype=torch.int8, device=self.model.device)
        routing = Routing(None, None, roles, None)
        return self.model.language_model.model(
            self.model.embed_text(ids), cos, sin, routing, self.cache, causal=True
        )

    def velocity(self, latents: torch.Tensor, times: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Velocity float32 [K, 48] of the target block against this context, which stays as it is.

        Args:
            latents: x_t [K, 48].
            times: flow time per token [K].
            positions: rotary positions [3, K + 2] of the block with its markers.
        """
        split = self.packed.target
        decoder = self.model.language_model.model
        cos, sin = self.model.rotary(positions)
        x = self.inputs(split, self.latents(split, latents, times))
        decoder.timestep = float(times.max())
        try:
            hidden = decoder(x, cos, sin, self._routing(split, times), self.cache, keep=False)
        finally:
            decoder.timestep = None
        return self.model.velocity(hidden[1:-1])
