"""Lance as one module whose parameters carry the names of Lance's files."""

from __future__ import annotations

import torch
from torch import nn

from core.lance.config import LATENT_CHANNELS, LanceConfig
from core.lance.decoder import Decoder
from core.lance.latents import TimestepEmbedder, latent_position_rows
from core.lance.rotary import cos_sin, inverse_frequencies
from core.lance.vision import VisionTower


class LanguageModel(nn.Module):
    """Decoder and its head; upstream never ties the two."""

    def __init__(self, config: LanceConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Lance(nn.Module):
    """The whole model: language model with two experts, vision tower, and the layers between latents and tokens.

    ``rounded`` reproduces upstream's bfloat16 rounding of the rotary frequencies and the latent position table (SPEC
    15.1), which the released weights were trained with.
    """

    def __init__(self, config: LanceConfig, *, rounded: bool = False) -> None:
        super().__init__()
        self.config = config
        self.rounded = rounded
        self.language_model = LanguageModel(config)
        self.time_embedder = TimestepEmbedder(config.hidden_size)
        self.vae2llm = nn.Linear(LATENT_CHANNELS, config.hidden_size)
        self.llm2vae = nn.Linear(config.hidden_size, LATENT_CHANNELS)
        self.vit_model = VisionTower(config)
        self.inv_freq: torch.Tensor
        self.register_buffer("inv_freq", torch.empty(config.head_dim // 2), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Recompute what no checkpoint stores; needed after ``to_empty``, which leaves buffers uninitialised."""
        frequencies = inverse_frequencies(self.config.head_dim, self.config.rope_theta, rounded=self.rounded)
        if self.inv_freq.is_meta:
            return
        self.inv_freq.copy_(frequencies)
        self.vit_model.reset_buffers(rounded=self.rounded)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.language_model.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.language_model.model.norm.weight.dtype

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32 [n, head_dim] on the model's device, for position ids [3, n]."""
        return cos_sin(position_ids.to(self.device), self.inv_freq.float(), self.config.mrope_section)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [n, hidden] of token ids [n]."""
        return self.language_model.model.embed_tokens(ids.to(self.device))

    def position_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows ``ids`` [n] of the latent position table, [n, hidden] in the model's dtype."""
        rows = latent_position_rows(ids, self.config.hidden_size, rounded=self.rounded)
        return rows.to(self.device, self.dtype)

    def embed_latents(self, latents: torch.Tensor, times: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Decoder inputs [n, hidden] for latent tokens.

        Args:
            latents: [n, 48].
            times: flow time of each token, [n]; 0 for clean latents.
            places: their rows of the latent position table, [n, hidden].
        """
        projected = self.vae2llm(latents.to(self.device, self.dtype))
        return projected + self.time_embedder(times.to(self.device)) + places

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Next-token logits, float32 [n, vocab], from normed hidden states of text rows."""
        return self.language_model.lm_head(hidden).float()

    def velocity(self, hidden: torch.Tensor) -> torch.Tensor:
        """Predicted velocity (noise minus data), float32 [n, 48], from normed hidden states of latent rows."""
        return self.llm2vae(hidden).float()
