"""Greedy decoding at batch one against a static cache, one graph replay a token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.lance.cache import KVCache
from core.runtime.replay import Replayed
from core.runtime.stack import Rows, Stack


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
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.known = torch.tensor(config.vocab_size, device=device)
        self.logits = torch.zeros(config.vocab_size, device=device)
        self._index = torch.arange(capacity, device=device)
        self._vocabulary = torch.arange(config.vocab_size, device=device)
        self._step = Replayed(self._advance, device)

    def _advance(self) -> None:
        stack, model = self.stack, self.stack.model
        x = model.language_model.model.embed_tokens(self.token)
        cos, sin = model.rotary(self.position.expand(3, 1))
        repeat = stack.heads // stack.kv_heads
        bias = (
            torch.where(self._index <= self.slot, 0.0, float("-inf"))
            .to(x.dtype)
            .expand(1, 1, repeat, -1)
            .contiguous()
        )

        def attend(layer: int, queries: Tensor, out: Tensor) -> None:
            # The query heads of one key/value head become rows of one small attention: no key is repeated.
            q = queries.view(1, stack.kv_heads, repeat, stack.head_dim)
            k, v = self.keys[layer].transpose(0, 1)[None], self.values[layer].transpose(0, 1)[None]
            found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            out.copy_(found.reshape(1, -1))

        hidden = stack.run(x, cos, sin, Rows(0, 1), self.keys, self.values, self.slot, attend)
        logits = model.logits(hidden)[0].masked_fill(self._vocabulary >= self.known, float("-inf"))
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(keepdim=True))
        self.position += 1
        self.slot += 1

    def run(self, token: int, position: int, vocabulary: int) -> Iterator[tuple[int, Tensor]]:
        """Feed ``token`` at ``position`` behind the cache, then every token chosen; yields (token, logits
        [vocab]).
        """
        self.token.fill_(token)
        self.position.fill_(position)
        self.slot.fill_(self.cache.length)
        self.known.fill_(vocabulary)
        while self.cache.length < self.cache.capacity:
            self._step()
            self.cache.advance(1)
            yield int(self.token), self.logits.clone()
