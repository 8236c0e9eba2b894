"""Lance's decoder as data: two experts in every layer, q/k/v with biases, norms on each head, head not tied."""

from __future__ import annotations

from core.quantization.groups import Structure

PREFIX = "language_model.model.layers."
TIME = ("time_embedder.mlp.0", "time_embedder.mlp.2")
UNTOUCHED = ("language_model.lm_head", "vae2llm", "llm2vae", *TIME, r"re:vit_model\..*")
"""Linears outside the layers, as compressed-tensors' ``ignore`` names them."""


def lance_structure(layers: int = 36, head_dim: int = 128, norm_eps: float = 1e-6) -> Structure:
    """The decoder of a Lance; the defaults are the released sizes."""
    return Structure(
        family="lance",
        layers=layers,
        prefix=PREFIX,
        experts={"und": "", "gen": "_moe_gen"},
        head_dim=head_dim,
        biases=frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
        head_norms=True,
        norm_eps=norm_eps,
        activation="silu",
        head="language_model.lm_head",
        embedding="language_model.model.embed_tokens",
        tied=False,
        untouched=UNTOUCHED,
        time=TIME,
    )
