"""Lance's decoder stack for speed: few launches a layer, rows of an expert side by side, static buffers.

Computes what ``core.lance.decoder`` computes, on the same parameters. Rows are ordered by expert (latents first), so no
row is gathered or scattered; attention takes no order among rows, and every row carries its own position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.lance.decoder import GEN, DecoderLayer
from core.lance.model import Lance
from core.runtime.projections import Projection, project
from kernels import decoder_ops

Attend = Callable[[int, Tensor, Tensor], None]
"""(layer, queries [M, heads, head_dim], out [M, heads * head_dim]): fill ``out``."""


@dataclass(frozen=True)
class Expert:
    """One expert of one layer: norm weights and fused products."""

    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor
    k_norm: Tensor
    qkv: Projection
    o: Projection
    gate_up: Projection
    down: Projection

    @classmethod
    def of(cls, layer: DecoderLayer, suffix: str) -> Expert:
        """The expert with this suffix of its module names."""

        def weight(path: str) -> Tensor:
            return layer.get_parameter(f"{path}{suffix}.weight").data

        def linears(block: str, names: tuple[str, ...]) -> Projection:
            if block == "self_attn":
                return project([layer.get_submodule(f"self_attn.{name}_proj{suffix}") for name in names])
            return project([layer.get_submodule(f"mlp{suffix}.{name}_proj") for name in names])

        return cls(
            weight("input_layernorm"),
            weight("post_attention_layernorm"),
            weight("self_attn.q_norm"),
            weight("self_attn.k_norm"),
            linears("self_attn", ("q", "k", "v")),
            linears("self_attn", ("o",)),
            linears("mlp", ("gate", "up")),
            linears("mlp", ("down",)),
        )


@dataclass(frozen=True)
class Rows:
    """How the rows of a pass divide: the first ``gen`` are latents, the rest text and markers."""

    gen: int
    und: int

    def each(self, und: Callable[[slice], None], gen: Callable[[slice], None]) -> None:
        """Call each expert's function with its slice of rows, if it has any."""
        if self.gen:
            gen(slice(0, self.gen))
        if self.und:
            und(slice(self.gen, self.gen + self.und))


class Stack:
    """The decoder layers of a loaded Lance behind fused operations."""

    def __init__(self, model: Lance) -> None:
        self.model = model
        config = model.config
        decoder = model.language_model.model
        self.eps = config.rms_norm_eps
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        layers = [layer for layer in decoder.layers if isinstance(layer, DecoderLayer)]
        self.layers = [(Expert.of(layer, ""), Expert.of(layer, GEN)) for layer in layers]
        self.final = (decoder.norm.weight.data, decoder.norm_moe_gen.weight.data)
        self.middle = config.intermediate_size

    def run(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        rows: Rows,
        keys: list[Tensor],
        values: list[Tensor],
        slots: Tensor,
        attend: Attend,
    ) -> Tensor:
        """Run rows through all layers and the final norms.

        Args:
            x: embeddings [M, hidden], overwritten.
            cos: float32 [M, head_dim]; ``sin`` likewise.
            rows: how the rows divide.
            keys: per layer [capacity, kv, head_dim], as ``values``; this pass's rows are written at
            ``slots`` [M]. attend: attention over a layer's keys and values.

        Returns:
            Normed hidden states [M, hidden].
        """
        count = x.shape[0]
        normed = torch.empty_like(x)
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        qkv = x.new_empty(count, width)
        queries = x.new_empty(count, self.heads, self.head_dim)
        mixed = x.new_empty(count, self.heads * self.head_dim)
        active = x.new_empty(count, self.middle)
        delta = torch.empty_like(x)
        for index, (und, gen) in enumerate(self.layers):

            def project_in(part: slice, e: Expert, index: int = index) -> None:
                if index == 0:
                    decoder_ops.rms_norm(x[part], e.input_norm, self.eps, normed[part])
                else:
                    decoder_ops.add_rms_norm(x[part], delta[part], e.input_norm, self.eps, normed[part])
                e.qkv(normed[part], qkv[part])
                decoder_ops.qk_norm_rope(
                    qkv[part], e.q_norm, e.k_norm, cos[part], sin[part], self.eps, queries[part],
                    keys[index], values[index], slots[part],
                )  # fmt: skip

            def finish(part: slice, e: Expert) -> None:
                e.o(mixed[part], delta[part])
                decoder_ops.add_rms_norm(x[part], delta[part], e.post_norm, self.eps, normed[part])
                e.gate_up.swiglu(normed[part], active[part])
                e.down(active[part], delta[part])

            rows.each(lambda s, e=und: project_in(s, e), lambda s, e=gen: project_in(s, e))  # type: ignore[misc]
            attend(index, queries, mixed)
            rows.each(lambda s, e=und: finish(s, e), lambda s, e=gen: finish(s, e))  # type: ignore[misc]

        def last(part: slice, weight: Tensor) -> None:
            decoder_ops.add_rms_norm(x[part], delta[part], weight, self.eps, normed[part])

        rows.each(lambda s: last(s, self.final[0]), lambda s: last(s, self.final[1]))
        return normed
