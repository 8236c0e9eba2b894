"""Greedy decoding at batch one against a static cache, one graph replay a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from core.lance.cache import KVCache
from core.runtime.replay import Readback, Replayed
from core.runtime.stack import Rows, Stack
from kernels.decode_attention import Partials, decode_attention
from kernels.greedy import Greedy


class TextDecoder:
    """Greedy decoding, one row a step, against a static cache."""

    def __init__(self, stack: Stack, capacity: int) -> None:
        self.stack = stack
        config, device, dtype = stack.model.config, stack.model.device, stack.model.dtype
        self.cache = KVCache(config.num_layers, capacity)
        shape = (capacity, config.num_kv_heads, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        for index in range(config.num_layers):
            self.cache.layer(index).keys, self.cache.layer(index).values = (
                self.keys[index],
                self.values[index],
            )
        self.cos = torch.zeros(capacity, config.head_dim, device=device)
        self.sin = torch.zeros(capacity, config.head_dim, device=device)
        self.greedy = Greedy(config.vocab_size, capacity, device)
        self._partials = Partials.empty(stack.heads, stack.head_dim, device)
        self._step = Replayed(self._advance, device)
        self._readback = Readback(device)

    def _advance(self) -> None:
        stack, language = self.stack, self.stack.model.language_model

        def attend(layer: int, qkv: Tensor, out: Tensor) -> None:
            und, _ = stack.layers[layer]
            decode_attention(
                qkv, und.q_norm, und.k_norm, self.cos, self.sin, stack.eps, self.keys[layer], self.values[layer],
                self.greedy.slot, self._partials, out,
            )  # fmt: skip

        hidden = stack.run(language.model.embed_tokens(self.greedy.token), Rows(0, 1), attend)
        self.greedy.step(language.lm_head(hidden))

    def run(self, token: int, position: int, vocabulary: int) -> Iterator[tuple[int, Tensor]]:
        """Feed ``token`` at ``position`` behind the cache, then every token chosen; yields (token, logits
        [vocab]).

        The next step is launched before a token is read, so that the device does not wait for the host; a caller
        that stops leaves one step behind it which nobody reads.
        """
        greedy, start = self.greedy, self.cache.length
        steps = self.cache.capacity - start
        if steps <= 0:
            return
        greedy.token.fill_(token)
        greedy.slot.fill_(start)
        greedy.known.fill_(vocabulary)
        cos, sin = self.stack.model.rotary(torch.arange(position, position + steps).expand(3, -1))
        self.cos[start:], self.sin[start:] = cos, sin
        self._step()
        for row in range(start, start + steps):
            self._readback.send(greedy.chosen[row])
            logits = greedy.logits.clone()
            if row + 1 < start + steps:
                self._step()
            self.cache.advance(1)
            yield self._readback.receive(), logits
