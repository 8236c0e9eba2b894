"""Training a small VAE of the Wan2.2 topology on the drawn 96 x 96 pictures.

Single pictures only: for one frame every causal 3-D convolution sees zeros but at its last temporal tap, so training
computes 2-D convolutions with that tap. The temporal weights keep their initial values: the demo draws no videos.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from core.demo.graphs import Repeated
from core.demo.optimizer import Adam
from core.demo.sizes import VAE_DIM
from core.lance.vae import MEAN, STD, build_autoencoder, wan_name

_KL = 1e-4
_BATCH = 96
_CHUNK = 512
_RATE = 2e-3


def _flat(convolution: Any) -> Callable[..., torch.Tensor]:
    """A causal 3-D convolution's result for one frame, by its last temporal tap."""
    padding = convolution.kernel_size[1] // 2

    def forward(x: torch.Tensor, _cache: Any = None) -> torch.Tensor:
        out = functional.conv2d(x[:, :, 0], convolution.weight[:, :, -1], convolution.bias, padding=padding)
        return out[:, :, None]

    return forward


def flatten_convolutions(autoencoder: Any) -> Any:
    """Make ``autoencoder`` treat every input as single frames: same results there, much faster. Returns it."""
    for module in autoencoder.modules():
        if type(module).__name__ == "WanCausalConv3d":
            module.forward = _flat(module)
    return autoencoder


def fold_pixels(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] as the encoder takes them: [B, 12, 1, H / 2, W / 2]."""
    count, channels, height, width = x.shape
    cut = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 1, 5, 3, 2, 4)
    return cut.reshape(count, channels * 4, 1, height // 2, width // 2)


def unfold_pixels(x: torch.Tensor) -> torch.Tensor:
    """The inverse of ``fold_pixels``."""
    count, _, _, height, width = x.shape
    cut = x.view(count, 3, 2, 2, height, width).permute(0, 1, 4, 3, 5, 2)
    return cut.reshape(count, 3, height * 2, width * 2)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] as float32 [B, 3, H, W] in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def moments(autoencoder: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance [B, 48, 1, h, w] of pictures [B, 3, H, W] in -1..1."""
    mean, logvar = autoencoder.quant_conv(autoencoder.encoder(fold_pixels(x))).chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(autoencoder: Any, z: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] of latents [B, 48, 1, h, w]."""
    return unfold_pixels(autoencoder.decoder(autoencoder.post_quant_conv(z), first_chunk=True))


def _loss(autoencoder: Any, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, logvar = moments(autoencoder, x)
    z = mean + torch.exp(0.5 * logvar) * noise
    difference = decode(autoencoder, z) - x
    error = difference.square().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error + 0.5 * difference.abs().mean() + _KL * kl, error


def train_vae(pixels: torch.Tensor, seconds: float, seed: int, *, between: Callable[[], None]) -> Any:
    """Train for ``seconds`` on pixels uint8 [N, 96, 96, 3], which lie on the device to train on.

    ``between`` is called before every step.

    Returns:
        diffusers' AutoencoderKLWan, float32, with latents normalised to Lance's public constants.
    """
    torch.manual_seed(seed)
    device = pixels.device
    autoencoder = flatten_convolutions(build_autoencoder(VAE_DIM, VAE_DIM)).to(device)
    # The temporal convolutions take no part in single frames.
    trained = [p for name, p in autoencoder.named_parameters() if "time_conv" not in name]
    adam = Adam(trained, betas=(0.9, 0.99))
    rate = torch.zeros((), device=device)
    generator = torch.Generator(device).manual_seed(seed)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(pixels), (_BATCH,), generator=generator, device=device)
        return pixels[rows], torch.randn(_BATCH, 48, 1, 6, 6, generator=generator, device=device)

    def learn(chosen: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            loss, error = _loss(autoencoder, scaled(chosen), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step(rate)
        autoencoder.zero_grad(set_to_none=True)
        return (error.detach(),)

    step_of = Repeated(learn, draw())
    begun, step = time.monotonic(), 0
    while (share := (time.monotonic() - begun) / seconds) < 1 or step < 2:
        between()
        rate.fill_(_RATE * min(1.0, (step + 1) / 100) * max(0.01, min(1.0, 1.25 * (1 - share))))
        (error,) = step_of(*draw())
        if step % 500 == 0:
            print(f"vae step {step} {share:.0%} mse {error.item():.5f}", flush=True)
        elif step % 20 == 0:
            error.item()  # the clock counts finished steps
        step += 1
    print(f"vae trained: {step} steps, {time.monotonic() - begun:.0f} s, mse {error.item():.5f}", flush=True)
    normalise(autoencoder, pixels[: 8 * _BATCH])
    return autoencoder


@torch.no_grad()
def encode(autoencoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised latents float32 [N, 36, 48] (posterior means under the public constants) of uint8 [N, 96, 96, 3]."""
    device = pixels.device
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    parts = []
    for chunk in pixels.split(_CHUNK):
        found, _ = moments(autoencoder, scaled(chunk))
        parts.append((found[:, :, 0].flatten(2).mT - mean) / std)
    return torch.cat(parts)


@torch.no_grad()
def paint(autoencoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [N, 96, 96, 3] of normalised latents [N, 36, 48]."""
    device = latents.device
    raw = latents * torch.tensor(STD, device=device) + torch.tensor(MEAN, device=device)
    z = raw.mT.reshape(len(raw), 48, 1, 6, 6)
    pixels = decode(autoencoder, z).clamp(-1, 1) * 127.5 + 127.5
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


@torch.no_grad()
def normalise(autoencoder: Any, pixels: torch.Tensor) -> None:
    """Fold an affine map per latent channel into the two 1x1x1 convolutions around the latents.

    Afterwards posterior means of ``pixels`` have, channel by channel, Lance's public mean and standard deviation, and
    decoding undoes the map. The log variance moves along.
    """
    found = torch.cat([moments(autoencoder, scaled(chunk))[0] for chunk in pixels.split(256)])
    centre = found.mean(dim=(0, 2, 3, 4))
    spread = found.std(dim=(0, 2, 3, 4)).clamp_min(1e-4)
    scale = torch.tensor(STD, device=centre.device) / spread
    shift = torch.tensor(MEAN, device=centre.device) - centre * scale
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    before.weight[:48] *= scale.view(-1, 1, 1, 1, 1)
    before.bias[:48] = before.bias[:48] * scale + shift
    before.bias[48:] += 2 * scale.log()
    after.bias -= after.weight[:, :, 0, 0, 0] @ (shift / scale)
    after.weight /= scale.view(1, -1, 1, 1, 1)


def wan_tensors(autoencoder: Any) -> dict[str, torch.Tensor]:
    """The weights in bfloat16 under the names of Wan2.2_VAE.pth."""
    state = autoencoder.state_dict()
    return {wan_name(key): value.to(torch.bfloat16).contiguous().cpu() for key, value in state.items()}
