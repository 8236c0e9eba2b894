"""Both velocities of a drawing in one pass over the weights."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from core.lance.generation import Drawing
from core.lance.latents import latent_position_ids
from core.runtime.replay import Replayed
from core.runtime.stack import Rows, Stack
from kernels import decoder_ops


class Denoiser:
    """The target block of a drawing against both of its contexts, batched and captured."""

    def __init__(self, stack: Stack, drawing: Drawing) -> None:
        self.stack = stack
        self.drawing = drawing
        model = stack.model
        block = drawing.packed.target.block
        assert block is not None
        self.count = block.tokens
        split = drawing.packed.target
        self._markers = model.embed_text(drawing.packed.ids[[split.start, split.stop - 1]])
        self._table = model.position_rows(latent_position_ids(block.grid))
        device, layers = model.device, model.config.num_layers
        caches = (drawing.conditional.cache, drawing.unconditional.cache)
        self._spans: list[slice] = []
        start = 0
        for cache in caches:
            self._spans.append(slice(start, start + cache.length + self.count + 2))
            start = self._spans[-1].stop
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for index in range(layers):
            for name, store in (("keys", self.keys), ("values", self.values)):
                parts = [getattr(cache.layer(index), name) for cache in caches]
                joint = parts[0].new_zeros(start, stack.kv_heads, stack.head_dim)
                for part, cache, span in zip(parts, caches, self._spans, strict=True):
                    joint[span.start : span.start + cache.length] = part[: cache.length]
                store.append(joint)
        self.latents = torch.zeros(self.count, 48, device=device)
        self.times = torch.zeros(self.count, device=device)
        self.velocity = torch.zeros(2, self.count, 48, device=device)
        positions = (drawing.positions, drawing.uncond_positions)
        self._passes = {}
        for branches in (1, 2):
            inner = torch.cat([p[:, 1:-1] for p in positions[:branches]], dim=1)
            markers = torch.cat([p[:, [0, -1]] for p in positions[:branches]], dim=1)
            cos, sin = model.rotary(torch.cat([inner, markers], dim=1))
            run = functools.partial(
                self._pass, branches, cos, sin, self._slots(branches), self._places(branches)
            )
            self._passes[branches] = Replayed(run, device)

    def _slots(self, branches: int) -> Tensor:
        """Rows of the caches that the rows of a pass write: latents of all branches, then their markers."""
        spans = [torch.arange(s.stop - self.count - 2, s.stop) for s in self._spans[:branches]]
        order = [s[1:-1] for s in spans] + [s[[0, -1]] for s in spans]
        return torch.cat(order).to(self.stack.model.device)

    def _places(self, branches: int) -> Tensor:
        """Where the rows of a pass are among its queries: there a branch lies together, latents before markers."""
        size = self.count + 2
        spans = [torch.arange(b * size, (b + 1) * size) for b in range(branches)]
        order = [s[:-2] for s in spans] + [s[-2:] for s in spans]
        return torch.cat(order).to(self.stack.model.device)

    def _pass(self, branches: int, cos: Tensor, sin: Tensor, slots: Tensor, places: Tensor) -> None:
        stack, model, count = self.stack, self.stack.model, self.count
        latents = model.embed_latents(self.latents, self.times, self._table)
        x = torch.cat([latents] * branches + [self._markers] * branches)
        rows = Rows(branches * count, branches * 2, self.stack.aside)
        queries = x.new_empty(branches, count + 2, stack.heads, stack.head_dim)

        def attend(layer: int, qkv: Tensor, out: Tensor) -> None:
            keys, values = self.keys[layer], self.values[layer]
            for part, expert in zip(
                (slice(rows.gen, None), slice(0, rows.gen)), stack.layers[layer], strict=True
            ):
                decoder_ops.qk_norm_rope(
                    qkv[part], expert.q_norm, expert.k_norm, cos[part], sin[part], stack.eps,
                    queries.flatten(0, 1), keys, values, slots[part], places[part],
                )  # fmt: skip
            for branch, span in enumerate(self._spans[:branches]):
                q, k, v = (t.transpose(0, 1)[None] for t in (queries[branch], keys[span], values[span]))
                found = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
                mixed = found[0].transpose(0, 1).flatten(1)
                out[branch * count : (branch + 1) * count] = mixed[:count]
                out[rows.gen + 2 * branch : rows.gen + 2 * branch + 2] = mixed[count:]

        hidden = stack.run(x, rows, attend)
        self.velocity[:branches] = model.velocity(hidden[: rows.gen]).view(branches, count, 48)

    def __call__(self, latents: Tensor, time: float, guided: bool) -> tuple[Tensor, Tensor | None]:
        """The conditional and, if ``guided``, the unconditional velocity, float32 [K, 48] each."""
        self.latents.copy_(latents)
        self.times.fill_(time)
        if self.drawing.fixed is not None:
            self.times[self.drawing.fixed] = 0.0
        self._passes[2 if guided else 1]()
        cond, uncond = self.velocity.clone()
        return cond, uncond if guided else None
