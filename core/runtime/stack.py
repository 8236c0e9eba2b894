"""Lance's decoder stack for speed: few launches a layer, rows of an expert side by side, static buffers.

Computes what ``core.lance.decoder`` computes, on the same parameters. Rows are ordered by expert (latents first), so no
row is gathered or scattered; attention takes no order among rows, and every row carries its own position.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.lance.decoder import GEN, DecoderLayer
from core.lance.model import Lance
from core.runtime.projections import FusedFp8, FusedQuantized, Projection, project
from kernels import decoder_ops
from kernels.arguments import RowNorm
from kernels.row import adds, norms

Attend = Callable[[int, Tensor, Tensor], None]
"""(layer, q/k/v [M, (heads + 2 * kv) * head_dim], out [M, heads * head_dim]): fill ``out``; the norms and rotation of
queries and keys and the cache are its business."""


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
    aside: torch.cuda.Stream | None = None
    """Where the rows of the und expert run while those of the gen expert do; None: one after the other."""

    def each(self, run: Callable[[slice, int], None]) -> None:
        """Call ``run`` with the rows of each expert that has any and its number: 0 und, 1 gen."""
        gen, und = slice(0, self.gen), slice(self.gen, self.gen + self.und)
        if not self.gen or not self.und or self.aside is None:
            if self.gen:
                run(gen, 1)
            if self.und:
                run(und, 0)
            return
        here = torch.cuda.current_stream()
        self.aside.wait_stream(here)
        with torch.cuda.stream(self.aside):
            run(und, 0)
        run(gen, 1)
        here.wait_stream(self.aside)


@dataclass(frozen=True)
class RowLayer:
    """The und expert of a layer as a single row runs through it: norms and sums inside the products."""

    qkv: FusedQuantized
    o: FusedQuantized
    gate_up: FusedQuantized
    down: FusedQuantized
    input_norm: RowNorm
    post_norm: RowNorm

    @classmethod
    def of(cls, expert: Expert, eps: float) -> RowLayer | None:
        """The expert's layer, or None where some kernel cannot do a norm or sum beside its product."""
        qkv, o, gate_up, down = expert.qkv, expert.o, expert.gate_up, expert.down
        if not (
            isinstance(qkv, FusedQuantized)
            and isinstance(o, FusedQuantized)
            and isinstance(gate_up, FusedQuantized)
            and isinstance(down, FusedQuantized)
        ):
            return None
        if not (norms(qkv.weight) and adds(o.weight) and norms(gate_up.weight, True) and adds(down.weight)):
            return None
        return cls(qkv, o, gate_up, down, RowNorm(expert.input_norm, eps), RowNorm(expert.post_norm, eps))


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
        rows = [RowLayer.of(und, self.eps) for und, _ in self.layers]
        # Empty: some layer takes a norm and a sum as kernels of their own.
        self.row_layers = [row for row in rows if row] if all(rows) else []
        self.final = (decoder.norm.weight.data, decoder.norm_moe_gen.weight.data)
        self.middle = config.intermediate_size
        # One for all pictures: cuBLAS keeps a workspace of 32 MB for every stream that it has seen.
        self.aside = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None

    def run(self, x: Tensor, rows: Rows, attend: Attend) -> Tensor:
        """Run rows through all layers and the final norms.

        Args:
            x: embeddings [M, hidden], overwritten.
            rows: how the rows divide.
            attend: attention of a layer.

        Returns:
            Normed hidden states [M, hidden].
        """
        count = x.shape[0]
        normed, delta = torch.empty_like(x), torch.empty_like(x)
        qkv = x.new_empty(count, (self.heads + 2 * self.kv_heads) * self.head_dim)
        mixed = x.new_empty(count, self.heads * self.head_dim)
        active = x.new_empty(count, self.middle)

        def norm(part: slice, weight: Tensor) -> None:
            """Add what the last block computed to the residual stream and norm it for the next one."""
            decoder_ops.add_rms_norm(x[part], delta[part], weight, self.eps, normed[part])

        def enter(part: slice, which: int) -> None:
            first = self.layers[0][which]
            decoder_ops.rms_norm(x[part], first.input_norm, self.eps, normed[part])
            first.qkv(normed[part], qkv[part])

        def finish(part: slice, which: int, index: int) -> None:
            """From a layer's attention to the q/k/v of the next layer, or to the end."""
            expert = self.layers[index][which]
            expert.o(mixed[part], delta[part])
            norm(part, expert.post_norm)
            if isinstance(expert.gate_up, FusedFp8) and isinstance(expert.down, FusedFp8):
                # Between the two only codes are kept, half as many bytes as activations.
                both = expert.gate_up(normed[part], x.new_empty(part.stop - part.start, 2 * self.middle))
                expert.down.of_swiglu(both, delta[part])
            else:
                expert.gate_up.swiglu(normed[part], active[part])
                expert.down(active[part], delta[part])
            if index + 1 == len(self.layers):
                norm(part, self.final[which])
                return
            following = self.layers[index + 1][which]
            norm(part, following.input_norm)
            following.qkv(normed[part], qkv[part])

        if self.row_layers and (rows.gen, rows.und) == (0, 1):
            for index, layer in enumerate(self.row_layers):
                layer.qkv.of_norm(x, layer.input_norm, qkv)
                attend(index, qkv, mixed)
                layer.o.add_to(mixed, x)
                layer.gate_up.of_norm(x, layer.post_norm, active, gated=True)
                layer.down.add_to(active, x)
            return decoder_ops.rms_norm(x, self.final[0], self.eps, normed)
        rows.each(enter)
        for index in range(len(self.layers)):
            attend(index, qkv, mixed)
            rows.each(functools.partial(finish, index=index))
        return normed
