"""The decoder: per token one of two experts, one attention over the tokens of both (Qwen2 with qk-norm)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from core.lance.cache import KVCache, LayerCache
from core.lance.config import LanceConfig
from core.lance.rotary import rotate

GEN = "_moe_gen"
"""Suffix of every module of the generation expert."""

TARGET_LINEARS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
"""The linears of one expert of one layer that quantization may replace, as paths below the layer."""


def target_name(layer: int, linear: str, expert: str) -> str:
    """Full module name of a target linear, e.g. ``(0, "mlp.up_proj", "gen")`` -> ``…layers.0.mlp_moe_gen.up_proj``."""
    block, projection = linear.split(".")
    if expert == "gen":
        block, projection = (block, projection + GEN) if block == "self_attn" else (block + GEN, projection)
    return f"language_model.model.layers.{layer}.{block}.{projection}"


def target_names(num_layers: int) -> list[str]:
    """All target linears in order of layers, und before gen: 14 per layer, 504 at full size."""
    return [
        target_name(i, linear, e)
        for i in range(num_layers)
        for e in ("und", "gen")
        for linear in TARGET_LINEARS
    ]


@dataclass(frozen=True)
class Routing:
    """Which rows of the current call go through which expert, and what they are for.

    ``und`` and ``gen`` are row indexes (int64), or None where that expert sees every row (the other then sees none).
    The roles (int8, one per row the expert sees, in the order it sees them) are for observers.
    """

    und: torch.Tensor | None
    gen: torch.Tensor | None
    und_roles: torch.Tensor | None
    gen_roles: torch.Tensor | None

    @classmethod
    def of(cls, is_gen: torch.Tensor, roles: torch.Tensor) -> Routing:
        """From a flag per row (True: a latent token) and a role per row."""
        if not bool(is_gen.any()):
            return cls(None, None, roles, None)
        if bool(is_gen.all()):
            return cls(None, None, None, roles)
        return cls((~is_gen).nonzero().flatten(), is_gen.nonzero().flatten(), roles[~is_gen], roles[is_gen])

    def apply(self, x: torch.Tensor, und: nn.Module, gen: nn.Module) -> torch.Tensor:
        """Send every row of x [n, d] through its expert's module; rows keep their places."""
        if self.gen_roles is None:
            return und(x)
        if self.und_roles is None:
            return gen(x)
        und_out, gen_out = und(x[self.und]), gen(x[self.gen])
        out = und_out.new_empty(x.shape[0], *und_out.shape[1:])
        out[self.und] = und_out
        out[self.gen] = gen_out
        return out


class RMSNorm(nn.Module):
    """``w * x / sqrt(mean x^2 + eps)`` over the last dimension, statistics in float32, cast back before ``w``."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normal.to(x.dtype)


class MLP(nn.Module):
    """SwiGLU without biases (arXiv 2002.05202)."""

    def __init__(self, config: LanceConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Grouped-query attention whose projections and qk-norms exist twice, once per expert."""

    def __init__(self, config: LanceConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden, wide, narrow = (
            config.hidden_size,
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        for suffix in ("", GEN):
            setattr(self, f"q_proj{suffix}", nn.Linear(hidden, wide, bias=True))
            setattr(self, f"k_proj{suffix}", nn.Linear(hidden, narrow, bias=True))
            setattr(self, f"v_proj{suffix}", nn.Linear(hidden, narrow, bias=True))
            setattr(self, f"o_proj{suffix}", nn.Linear(wide, hidden, bias=False))
            setattr(self, f"q_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))
            setattr(self, f"k_norm{suffix}", RMSNorm(config.head_dim, config.rms_norm_eps))

    def _routed(self, x: torch.Tensor, name: str, routing: Routing) -> torch.Tensor:
        return routing.apply(x, self.get_submodule(name), self.get_submodule(name + GEN))

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        routing: Routing,
        cache: LayerCache | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend rows x [n, hidden] over the cache and themselves.

        Args:
            cos: rotary table [n, head_dim], as are its sines in ``sin``.
            routing: the rows' experts.
            cache: keys and values of earlier rows; this call's are written behind them.
            mask: bool [n, past + n], True where a row sees a key; None: everything is seen.
        """
        q, k, v = (
            self._routed(x, f"{name}_proj", routing).view(x.shape[0], -1, self.head_dim) for name in "qkv"
        )
        # qk-norm precedes the rotation; each expert has its own.
        q, k = self._routed(q, "q_norm", routing), self._routed(k, "k_norm", routing)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(k, v)
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            enable_gqa=True,
        )
        rows = out[0].transpose(0, 1).reshape(x.shape[0], -1)
        return self._routed(rows, "o_proj", routing)


class DecoderLayer(nn.Module):
    """One layer: attention and MLP, each behind its expert's norm."""

    def __init__(self, config: LanceConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.mlp_moe_gen = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        routing: Routing,
        cache: LayerCache | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        h = routing.apply(x, self.input_layernorm, self.input_layernorm_moe_gen)
        x = x + self.self_attn(h, cos, sin, routing, cache, mask)
        g = routing.apply(x, self.post_attention_layernorm, self.post_attention_layernorm_moe_gen)
        return x + routing.apply(g, self.mlp, self.mlp_moe_gen)


class Decoder(nn.Module):
    """The stack of layers between embeddings and final norms."""

    def __init__(self, config: LanceConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_moe_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.routing: Routing | None = None
        """Routing of the call in progress, for observers on the target linears."""
        self.timestep: float | None = None
        """Flow time of the denoising pass in progress, for observers."""

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        routing: Routing,
        cache: KVCache | None = None,
        *,
        causal: bool = False,
        mask: torch.Tensor | None = None,
        keep: bool = True,
    ) -> torch.Tensor:
        """Run rows through all layers and their expert's final norm.

        Args:
            x: input embeddings [n, hidden].
            cos: rotary table [n, head_dim]; ``sin`` likewise.
            routing: the rows' experts.
            cache: keys and values of the context; None: the rows see only each other.
            causal: among themselves the rows see only earlier ones; they always see the whole cache.
            mask: bool [n, past + n], True where a row sees a key; overrides ``causal``.
            keep: leave this call's keys and values in the cache.

        Returns:
            Normed hidden states [n, hidden].
        """
        past = cache.length if cache is not None else 0
        if mask is None and causal and x.shape[0] > 1:
            rows = torch.arange(x.shape[0], device=x.device)
            mask = torch.arange(past + x.shape[0], device=x.device) <= (rows + past)[:, None]
        self.routing = routing
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, routing, cache.layer(index) if cache is not None else None, mask)
        if cache is not None and keep:
            cache.advance(x.shape[0])
        return routing.apply(x, self.norm, self.norm_moe_gen)
