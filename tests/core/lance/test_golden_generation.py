"""t2i against upstream's own numbers, step by step, in float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.lance import prompts
from core.lance.generation import Drawing, drawing, imagine
from core.lance.latents import latent_position_ids
from core.lance.packing import pack, visibility
from core.lance.sampler import Sampling, Trace, sample

CAPTION = "A red cube on a blue table, soft light."


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "tasks" / "t2i_1" / "tensors.safetensors")


@pytest.fixture(scope="module")
def meta(golden: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((golden / "tasks" / "t2i_1" / "meta.json").read_text())
    assert content["data"]["000000.png"] == CAPTION
    return content


@pytest.fixture(scope="module")
def reader(tiny_pipeline: Any) -> Drawing:
    with torch.inference_mode():
        return drawing(tiny_pipeline, CAPTION, 96, 128)


SAMPLING = Sampling(num_steps=8)


def test_packing_and_visibility_are_upstreams(
    recorded: dict[str, torch.Tensor], meta: dict[str, Any], tiny_pipeline: Any
) -> None:
    packed = pack(prompts.generation(CAPTION, (1, 6, 8)), tiny_pipeline.tokenizer)
    assert packed.ids.tolist() == recorded["data.packed_text_ids"].tolist()
    assert [split.length for split in packed.splits] == meta["split_lens"]
    assert [split.mode for split in packed.splits] == meta["attn_modes"]
    assert packed.modality().tolist() == recorded["data.sample_modality"].tolist()
    assert torch.equal(visibility(packed.splits), recorded["uncached.attention_mask_uint8"].bool())


def test_context_caches(recorded: dict[str, torch.Tensor], reader: Drawing) -> None:
    for context, name in ((reader.conditional, "kv_cond"), (reader.unconditional, "kv_cfg_text")):
        layer, length = context.cache.layer(0), context.cache.length
        assert layer.keys is not None and layer.values is not None
        wanted = recorded[f"{name}.layer0.key"]
        assert length == wanted.shape[0]
        assert (layer.keys[:length] - wanted).abs().max() < 1e-5
        if f"{name}.layer0.value" in recorded:
            assert (layer.values[:length] - recorded[f"{name}.layer0.value"]).abs().max() < 1e-5


@torch.inference_mode()
def test_decoder_call_of_the_target_block(
    recorded: dict[str, torch.Tensor], meta: dict[str, Any], reader: Drawing, tiny_pipeline: Any
) -> None:
    """Markers go through the understanding expert, pads through the other, positions as upstream mixes them."""
    calls = [i for i, call in enumerate(meta["llm_calls_recorded"]) if call["mode"] == "gen"][:2]
    for index, conditional in zip(calls, (True, False), strict=True):
        positions = reader.positions if conditional else reader.uncond_positions
        assert torch.equal(positions, recorded[f"call{index}.position_ids"][:, 0])
        seen: list[torch.Tensor] = []
        decoder = tiny_pipeline.model.language_model.model
        handle = decoder.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        try:
            reader.velocity(recorded["steps.x_t"][0], 1.0, conditional)
        finally:
            handle.remove()
        assert (seen[0] - recorded[f"call{index}.final_hidden"]).abs().max() < 2e-5


@torch.inference_mode()
def test_every_step(recorded: dict[str, torch.Tensor], reader: Drawing) -> None:
    trace = Trace()
    final = sample(recorded["noise"], reader.velocities, SAMPLING, trace=trace)
    times, dts = SAMPLING.schedule()
    assert torch.equal(times, recorded["steps.timesteps"]) and torch.equal(dts, recorded["steps.dts"])
    assert (torch.stack(trace.latents) - recorded["steps.x_t"]).abs().max() < 2e-4
    assert (torch.stack(trace.conditional) - recorded["steps.v_cond"]).abs().max() < 2e-4
    uncond = torch.stack([v for v in trace.unconditional if v is not None])
    assert (uncond - recorded["steps.v_uncond"]).abs().max() < 2e-4
    assert (final.view(1, 6, 8, 48) - recorded["out.latents"]).abs().max() < 1e-3


def test_whole_picture(recorded: dict[str, torch.Tensor], tiny_pipeline: Any) -> None:
    picture = imagine(tiny_pipeline, CAPTION, 96, 128, SAMPLING, noise=recorded["noise"])
    assert (picture.latents - recorded["out.latents"]).abs().max() < 1e-3
    got = torch.frombuffer(bytearray(picture.image.tobytes()), dtype=torch.uint8).view(96, 128, 3)
    difference = (got.int() - recorded["out.uint8_thwc"][0].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


VARIANTS = {
    "cfg1": {"cfg_text_scale": 1.0},
    "renorm_channel": {"cfg_renorm": "channel"},
    "renorm_none": {"cfg_renorm": "none"},
    "renorm_min05": {"cfg_renorm_min": 0.5},
    "interval_0_1": {"cfg_interval": (0.0, 1.0)},
}


@torch.inference_mode()
@pytest.mark.parametrize("name", VARIANTS)
def test_sampler_settings(name: str, recorded: dict[str, torch.Tensor], reader: Drawing) -> None:
    sampling = dataclasses.replace(SAMPLING, **VARIANTS[name])  # type: ignore[arg-type]
    final = sample(recorded["noise"], reader.velocities, sampling)
    assert (final.view(1, 6, 8, 48) - recorded[f"extra.{name}.latents"]).abs().max() < 1e-3


@torch.inference_mode()
def test_rounded_frequencies(recorded: dict[str, torch.Tensor], tiny_pipeline: Any) -> None:
    """Upstream's bfloat16 rounding of rotary frequencies and latent positions, in float32 arithmetic."""
    model = tiny_pipeline.model
    model.rounded = True
    model.reset_buffers()
    try:
        final = sample(recorded["noise"], drawing(tiny_pipeline, CAPTION, 96, 128).velocities, SAMPLING)
    finally:
        model.rounded = False
        model.reset_buffers()
    assert (final.view(1, 6, 8, 48) - recorded["variant.invfreq_bf16.latents"]).abs().max() < 1e-3


@torch.inference_mode()
def test_timestep_embedding(recorded: dict[str, torch.Tensor], tiny_pipeline: Any) -> None:
    out = tiny_pipeline.model.time_embedder(recorded["time_embed.t0"])
    assert (out - recorded["time_embed.out0"]).abs().max() < 1e-5
    assert len(latent_position_ids((1, 6, 8))) == len(recorded["time_embed.t0"])
