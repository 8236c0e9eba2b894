"""Long clips are decoded and encoded chunk by chunk: what is held at a time does not grow with their length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.lance.vae import VAE


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_largest_activation_does_not_grow_with_the_clip(part: str, golden: Path) -> None:
    vae = VAE.load(golden / "weights" / "vae.safetensors", "cpu", torch.float32)
    largest = 0

    def watch(_module: object, _inputs: object, out: object) -> None:
        nonlocal largest
        if isinstance(out, torch.Tensor):
            largest = max(largest, out.numel())

    for module in getattr(vae.autoencoder, part).modules():
        module.register_forward_hook(watch)
    peaks = []
    for frames in (3, 12):
        largest = 0
        if part == "decoder":
            assert vae.decode(torch.randn(frames, 2, 3, 48)).shape == (3, 4 * frames - 3, 32, 48)
        else:
            assert vae.encode(torch.zeros(3, 4 * frames - 3, 32, 48)).shape == (frames, 2, 3, 48)
        peaks.append(largest)
    assert peaks[0] == peaks[1] > 0
