"""A batched forward of Lance for the demo's fixed shapes, on the same modules as inference, fast enough to train with.

Two shapes: one 224 x 224 picture with several questions that share its prefix, and one caption with one 96 x 96 target
block. Results equal the packed, cached inference path of core.lance (visibility of SPEC section 10, positions of
section 6); a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from core.demo.texts import ANSWER, CAPTION, SEGMENT, Texts
from core.lance.decoder import GEN
from core.lance.latents import latent_position_ids, latent_position_rows
from core.lance.model import Lance
from core.lance.preprocess import CLIP_MEAN, CLIP_STD
from core.lance.rotary import block_extent, block_positions, cos_sin, rotate, text_positions

PICTURE = (1, 8, 8)
"""Merged ViT grid of a 224 x 224 picture."""

TARGET = (1, 6, 6)
"""Latent grid of a 96 x 96 picture."""

_WINDOW = 4  # merged tokens a side
_PATCH = 14


@dataclass
class Captions:
    """A batch of captions: token ids [B, n], how many of them each has, whether it is dropped for guidance.

    ``shifted``: a dropped caption leaves the template's turn at the positions it has in the full prompt, as upstream's
    cached unconditional context does; otherwise positions are those of the shorter prompt.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    dropped: torch.Tensor
    shifted: torch.Tensor


def _bias(visible: torch.Tensor) -> torch.Tensor:
    """Additive attention mask, float32: 0 where seen, else so low that nothing is left of it after the softmax.

    Finite, because minus infinity turns into NaN in some fused backward passes.
    """
    return (~visible).float() * -1e4


def vision_block(
    block: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, windows: int
) -> torch.Tensor:
    """One block of the vision tower over x [B, 256, d], attending within ``windows`` equal runs of tokens."""
    count = x.shape[0]
    q, k, v = block.attn.qkv(block.norm1(x)).view(count, 256, 3, heads, -1).unbind(2)
    q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
    q, k, v = (part.reshape(count * windows, 256 // windows, heads, -1).transpose(1, 2) for part in (q, k, v))
    seen = functional.scaled_dot_product_attention(q, k, v)
    x = x + block.attn.proj(seen.transpose(1, 2).reshape(count, 256, -1))
    return x + block.mlp(block.norm2(x))


def _qkv(
    attention: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, suffix: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (*x.shape[:2], -1, attention.head_dim)
    q = getattr(attention, f"q_norm{suffix}")(getattr(attention, f"q_proj{suffix}")(x).view(shape))
    k = getattr(attention, f"k_norm{suffix}")(getattr(attention, f"k_proj{suffix}")(x).view(shape))
    v = getattr(attention, f"v_proj{suffix}")(x).view(shape)
    return rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype), v


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    groups = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask.to(v.dtype)
    )
    return out.transpose(1, 2).flatten(2)


def question_layer(
    layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """One decoder layer over text and ViT tokens x [B, L, d], all of the understanding expert."""
    q, k, v = _qkv(layer.self_attn, layer.input_layernorm(x), cos, sin, "")
    x = x + layer.self_attn.o_proj(_attend(q, k, v, mask))
    return x + layer.mlp(layer.post_attention_layernorm(x))


def joint_layer(
    layer: Any, x: torch.Tensor, g: torch.Tensor, tables: tuple[torch.Tensor, ...], mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One decoder layer over text and markers x [B, n, d] and latent tokens g [B, 36, d], in one attention."""
    attention = layer.self_attn
    cos, sin, gen_cos, gen_sin = tables
    qu, ku, vu = _qkv(attention, layer.input_layernorm(x), cos, sin, "")
    qg, kg, vg = _qkv(attention, layer.input_layernorm_moe_gen(g), gen_cos, gen_sin, GEN)
    q, k, v = (torch.cat(pair, dim=1) for pair in ((qu, qg), (ku, kg), (vu, vg)))
    out = _attend(q, k, v, mask)
    x = x + attention.o_proj(out[:, : x.shape[1]])
    g = g + attention.o_proj_moe_gen(out[:, x.shape[1] :])
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return x, g + layer.mlp_moe_gen(layer.post_attention_layernorm_moe_gen(g))


class BatchedLance(nn.Module):
    """Lance's modules behind a forward for batches; holds no parameters of its own."""

    frequencies: torch.Tensor
    question_head: torch.Tensor
    question_tail: torch.Tensor
    caption_head: torch.Tensor
    turn: torch.Tensor
    markers: torch.Tensor
    block: torch.Tensor
    latent_rows: torch.Tensor
    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    vision_cos: torch.Tensor
    vision_sin: torch.Tensor

    def __init__(self, model: Lance, texts: Texts, *, compiled: bool = False) -> None:
        """Prepare the tables of the fixed shapes; ``compiled`` compiles the repeated blocks, once for all layers."""
        super().__init__()
        self.model = model
        config = model.config
        self.head_dim = config.head_dim
        blocks: list[Any] = [vision_block, question_layer, joint_layer]
        if compiled:
            blocks = [torch.compile(block, dynamic=False) for block in blocks]
        self._vision_block, self._question_layer, self._joint_layer = blocks
        self.sections, hidden = config.mrope_section, config.hidden_size
        self.register_buffer("frequencies", model.inv_freq.clone().float(), persistent=False)
        head = [*texts.question_head, texts.vision_start]
        self.register_buffer("question_head", torch.tensor(head), persistent=False)
        self.register_buffer("question_tail", torch.tensor([texts.vision_end]), persistent=False)
        self.register_buffer("caption_head", torch.tensor(texts.caption_head), persistent=False)
        self.register_buffer("turn", torch.tensor(texts.turn), persistent=False)
        self.register_buffer(
            "markers", torch.tensor([texts.vision_start, texts.vision_end]), persistent=False
        )
        self.prefix = len(head) + 64 + 1
        self.text_room = len(texts.caption_head) + CAPTION + len(texts.turn)
        self.end = texts.end
        rows = latent_position_rows(latent_position_ids(TARGET), hidden, rounded=False)
        self.register_buffer("block", block_positions(1, TARGET), persistent=False)
        self._tables: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.register_buffer("latent_rows", rows, persistent=False)
        mean = torch.tensor(CLIP_MEAN).view(3, 1, 1) * 255
        std = torch.tensor(CLIP_STD).view(3, 1, 1) * 255
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        cos, sin = self._vision_tables()
        self.register_buffer("vision_cos", cos, persistent=False)
        self.register_buffer("vision_sin", sin, persistent=False)

    # ---- vision tower ------------------------------------------------------------------------------------------

    def _vision_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotary tables of 16 x 16 patches in window order, float32 [256, vit_head_dim]."""
        vision: Any = self.model.vit_model.config
        quarter = vision.hidden_size // vision.num_heads // 4
        rates = 1.0 / (10000.0 ** (torch.arange(quarter, dtype=torch.float32) / quarter))
        row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        places = _window_order(torch.stack([row, column], dim=-1).float())
        angles = (places[:, :, None] * rates).flatten(1)
        full = torch.cat([angles, angles], dim=-1)
        return full.cos(), full.sin()

    def see(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Merged features [B, 64, hidden] in raster order of uint8 pixels [B, 224, 224, 3]."""
        tower: Any = self.model.vit_model
        count = pixels.shape[0]
        image = (pixels.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std
        cut = (
            image.view(count, 3, 16, _PATCH, 16, _PATCH).permute(0, 2, 4, 1, 3, 5).reshape(count, 16, 16, -1)
        )
        patches = _window_order_batch(cut).to(dtype)
        # Both frames of the temporal patch are the same picture, so their kernels add up.
        kernel = tower.patch_embed.proj.weight.sum(dim=2).flatten(1)
        x = functional.linear(patches, kernel)
        heads = tower.config.num_heads
        for index, block in enumerate(tower.blocks):
            windows = 1 if index in tower.config.fullatt_block_indexes else 4
            x = self._vision_block(block, x, self.vision_cos, self.vision_sin, heads, windows)
        merged = tower.merger.mlp(tower.merger.ln_q(x).view(count, 64, -1))
        raster = merged.view(count, 2, 2, _WINDOW, _WINDOW, -1).permute(0, 1, 3, 2, 4, 5)
        return raster.reshape(count, 64, -1)

    # ---- decoder -----------------------------------------------------------------------------------------------

    def _rotary(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return cos_sin(positions, self.frequencies, self.sections)

    def question_layout(self, questions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int64 [3, L] and visibility bool [L, L] of a picture's prefix with ``questions`` segments."""
        text = len(self.question_head)
        start = text + block_extent(PICTURE)
        segment = text_positions(start + 1, SEGMENT)
        parts = [text_positions(0, text), block_positions(text, PICTURE), text_positions(start, 1)]
        positions = torch.cat([*parts, *[segment] * questions], dim=1)
        length = self.prefix + questions * SEGMENT
        index = torch.arange(length)
        owner = torch.where(index < self.prefix, -1, (index - self.prefix) // SEGMENT)
        mask = (index[None] <= index[:, None]) & ((owner[None] == -1) | (owner[None] == owner[:, None]))
        block = slice(text - 1, self.prefix)
        mask[block, block] = True
        return positions, mask

    def question_tables(
        self, questions: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotary tables [L, head_dim] and additive mask [L, L] of ``question_layout``, computed once."""
        if questions not in self._tables:
            positions, mask = self.question_layout(questions)
            self._tables[questions] = (*self._rotary(positions.to(device)), _bias(mask).to(device))
        return self._tables[questions]

    def answers(
        self, pixels: torch.Tensor, segments: torch.Tensor, starts: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Logits [B, Q, ANSWER, vocab] that predict each answer token of Q questions to each picture.

        Args:
            pixels: uint8 [B, 224, 224, 3].
            segments: token ids [B, Q, SEGMENT].
            starts: index of the first answer token in its segment, [B, Q].
            dtype: of activations between the modules.
        """
        language: Any = self.model.language_model
        count, questions = segments.shape[:2]
        cos, sin, mask = self.question_tables(questions, pixels.device)
        embed = language.model.embed_tokens
        head = embed(self.question_head).expand(count, -1, -1)
        tail = embed(self.question_tail).expand(count, -1, -1)
        features = self.see(pixels, dtype)
        x = torch.cat(
            [head.to(dtype), features.to(dtype), tail.to(dtype), embed(segments.flatten(1)).to(dtype)], dim=1
        )
        for layer in language.model.layers:
            x = self._question_layer(layer, x, cos, sin, mask)
        inner = x[:, self.prefix :].reshape(count, questions, SEGMENT, -1)
        reach = (starts[..., None] - 1 + torch.arange(ANSWER, device=pixels.device)).clamp(max=SEGMENT - 1)
        picked = inner.gather(2, reach[..., None].expand(-1, -1, -1, inner.shape[-1]))
        return language.lm_head(language.model.norm(picked))

    def caption_layout(
        self, captions: Captions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Text ids [B, n], their positions [B, n], the block's first position [B], additive mask [B, 1, L, L].

        Text is left-aligned: head, caption, turn, then padding that nothing sees. Rows and columns of the mask are the
        text, the block's two markers and its latents, in this order.
        """
        device = captions.ids.device
        count, head, turn = len(captions.lengths), len(self.caption_head), len(self.turn)
        kept = torch.where(captions.dropped, 0, captions.lengths)
        index = torch.arange(self.text_room, device=device).expand(count, -1)
        inside = index - head
        after = inside - kept[:, None]
        ids = torch.full((count, self.text_room), self.end, device=device)
        ids[:, :head] = self.caption_head
        caption = captions.ids.gather(1, inside.clamp(0, CAPTION - 1)).to(ids.dtype)
        ids = torch.where((inside >= 0) & (after < 0), caption, ids)
        ids = torch.where((after >= 0) & (after < turn), self.turn[after.clamp(0, turn - 1)], ids)
        length = head + kept + turn
        moved = torch.where(captions.dropped & captions.shifted, captions.lengths, 0)
        positions = torch.where(after >= 0, index + moved[:, None], index)
        size = self.text_room + 2 + len(self.latent_rows)
        every = torch.arange(size, device=device)
        is_text = every < self.text_room
        real = ~is_text[None] | (every[None] < length[:, None])
        causal = (every[None] <= every[:, None]) & is_text[None]
        mask = torch.where(is_text[:, None], causal, torch.ones_like(causal))
        return ids, positions, length, _bias((mask[None] & real[:, None])[:, None])

    def velocity(
        self, captions: Captions, latents: torch.Tensor, times: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Predicted velocity [B, 36, 48] for noisy latents [B, 36, 48] at flow times [B]."""
        model: Any = self.model
        decoder = model.language_model.model
        count = len(latents)
        ids, positions, length, mask = self.caption_layout(captions)
        inner = self.block[:, None] + length[:, None]
        ends = torch.stack([length, length + 1 + block_extent(TARGET)], dim=1)
        und_positions = torch.cat([positions, ends], dim=1).expand(3, -1, -1)
        spread = [self._rotary(where.flatten(1)) for where in (und_positions, inner)]
        (cos, sin), (gen_cos, gen_sin) = [
            (c.view(count, -1, self.head_dim), s.view(count, -1, self.head_dim)) for c, s in spread
        ]
        words = torch.cat([ids, self.markers.expand(count, -1)], dim=1)
        x = decoder.embed_tokens(words).to(dtype)
        g = model.vae2llm(latents.to(dtype)) + model.time_embedder(times)[:, None] + self.latent_rows
        g = g.to(dtype)
        tables = (cos, sin, gen_cos, gen_sin)
        for layer in decoder.layers:
            x, g = self._joint_layer(layer, x, g, tables, mask)
        return model.llm2vae(decoder.norm_moe_gen(g))


def _window_order(grid: torch.Tensor) -> torch.Tensor:
    """Rows of a 16 x 16 grid [16, 16, d] in the order (window, merged token, 2 x 2 patch): [256, d]."""
    return _window_order_batch(grid[None])[0]


def _window_order_batch(grid: torch.Tensor) -> torch.Tensor:
    """Like ``_window_order`` for [B, 16, 16, d]: [B, 256, d]."""
    cut = grid.view(grid.shape[0], 2, _WINDOW, 2, 2, _WINDOW, 2, grid.shape[-1])
    return cut.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(grid.shape[0], 256, grid.shape[-1])
