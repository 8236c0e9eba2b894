"""Modules on their own against upstream's numbers: VAE, vision tower, rotary, latent table, schedule, preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.lance.buckets import VAE_SIDE, VIT_SIDE, buckets
from core.lance.latents import TimestepEmbedder, latent_position_rows
from core.lance.preprocess import read_image, vae_frames, vit_frames
from core.lance.rotary import cos_sin, inverse_frequencies, rotate
from core.lance.sampler import Sampling
from core.lance.vae import MEAN, STD, VAE


@pytest.fixture(scope="module")
def modules(golden: Path) -> Path:
    return golden / "modules"


@pytest.mark.parametrize("case", ["image", "video9", "video10"])
def test_vae(case: str, modules: Path, golden: Path) -> None:
    recorded = load_file(modules / "vae.safetensors")
    vae = VAE.load(golden / "weights" / "vae.safetensors", "cpu", torch.float32)
    mean = vae.encode(recorded[f"{case}.input"])
    assert (mean - recorded[f"{case}.mu_normalised"].permute(1, 2, 3, 0)).abs().max() < 1e-5
    drawn = vae.encode(recorded[f"{case}.input"], recorded[f"{case}.eps"])
    assert (drawn - recorded[f"{case}.latent_thwc"]).abs().max() < 1e-5
    assert (vae.decode(recorded[f"{case}.latent_thwc"]) - recorded[f"{case}.decoded"]).abs().max() < 1e-5


def test_vae_constants_are_wans(modules: Path) -> None:
    recorded = load_file(modules / "vae.safetensors")
    assert torch.allclose(torch.tensor(MEAN), recorded["scale.mean"], atol=1e-6)
    assert torch.allclose(1 / torch.tensor(STD), recorded["scale.inv_std"], atol=1e-6)


def test_vision_tower(modules: Path, tiny_pipeline: Any) -> None:
    recorded = load_file(modules / "vit.safetensors")
    grids = [tuple(grid) for grid in recorded["grid_thw"].tolist()]
    with torch.inference_mode():
        features = tiny_pipeline.model.vit_model.features(recorded["pixel_patches_bf16"].float(), grids)
    assert (features - recorded["features"]).abs().max() < 1e-5


@pytest.mark.parametrize(("rounded", "name"), [(False, "f32"), (True, "bf16_rounded")])
def test_rotary(rounded: bool, name: str, modules: Path) -> None:
    recorded = load_file(modules / "rope_posemb_time.safetensors")
    frequencies = inverse_frequencies(128, 1e6, rounded=rounded)
    assert torch.equal(frequencies, recorded[f"inv_freq.{name}"])
    cos, sin = cos_sin(recorded["position_ids"][:, 0], frequencies, (16, 24, 24))
    for which in "qk":
        turned = rotate(recorded[which][0].transpose(0, 1), cos, sin).transpose(0, 1)
        assert (turned - recorded[f"{which}_rot.{name}"][0]).abs().max() < 1e-5


def test_latent_table_and_time(modules: Path) -> None:
    recorded = load_file(modules / "rope_posemb_time.safetensors")
    for hidden, name in ((2048, "hidden2048"), (64, "tiny")):
        rows = latent_position_rows(recorded["latent_pos.ids"], hidden, rounded=False)
        wanted = recorded[f"latent_pos.rows_{name}"]
        assert (rows - wanted).abs().max() < 1e-6
    assert (TimestepEmbedder.sinusoid(recorded["time.t"]) - recorded["time.sinusoid256"]).abs().max() < 1e-6


def test_schedules(modules: Path) -> None:
    for name, wanted in json.loads((modules / "schedule.json").read_text()).items():
        steps, shift = name.removeprefix("steps").split("_shift")
        sampling = Sampling(num_steps=int(steps), timestep_shift=float(shift))
        times, dts = sampling.schedule()
        assert torch.equal(times, torch.tensor(wanted["timesteps"])), name
        assert torch.equal(dts, torch.tensor(wanted["dts"])), name
        guided = [sampling.guided(time) for time in times.tolist()]
        assert guided == wanted["cfg_active_interval_0.4_1.0"], name


def test_buckets(modules: Path) -> None:
    for names, wanted in json.loads((modules / "buckets.json").read_text()).items():
        for name in names.split("|"):
            got = [[b.height, b.width] for b in buckets(VAE_SIDE[name])]
            assert got == wanted["vae_buckets_hw"], name
            got = [[b.height, b.width] for b in buckets(VIT_SIDE[name])]
            assert got == wanted["vit_buckets_hw_before_crop28"], name


def test_preprocessing(modules: Path, golden: Path) -> None:
    recorded = load_file(modules / "preprocess.safetensors")
    vit = vit_frames(read_image(golden / "media" / "img2.png"), "image_256res")
    assert torch.equal(vit[:, :1], recorded["img2.vit_video.image_256res"][:, :1])
    vae = vae_frames(read_image(golden / "media" / "img4.png"), "image_256res")
    assert torch.equal(vae, recorded["img4.vae_video.image_256res"])
    shapes = json.loads((modules / "preprocess.json").read_text())
    for name in ("img1", "img2"):
        image = read_image(golden / "media" / f"{name}.png")
        assert list(vit_frames(image, "image_256res").shape[2:]) == shapes[name]["shape_CTHW"][2:]
    for name in ("img3", "img4"):
        image = read_image(golden / "media" / f"{name}.png")
        assert list(vae_frames(image, "image_256res").shape) == shapes[name]["shape_CTHW"]
