"""The Wan2.2 VAE (48 channels) on diffusers' AutoencoderKLWan, read from Wan2.2_VAE.pth or its names in safetensors."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from core.checkpoints.source import TensorSource
from core.errors import CheckpointError, WorkbenchError
from core.lance.config import LATENT_CHANNELS

MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
"""Mean and standard deviation of the latent channels, the public Wan2.2 constants."""

_TO_DIFFUSERS = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"encoder\.downsamples\.(\d+)\.downsamples\.([01])\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"encoder\.downsamples\.(\d+)\.downsamples\.2\.", r"encoder.down_blocks.\1.downsampler."),
    (r"decoder\.upsamples\.(\d+)\.upsamples\.([012])\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"decoder\.upsamples\.(\d+)\.upsamples\.3\.", r"decoder.up_blocks.\1.upsampler."),
    (r"\.residual\.0\.gamma", ".norm1.gamma"),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.gamma", ".norm2.gamma"),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.head\.0\.gamma", ".norm_out.gamma"),
    (r"\.head\.2\.", ".conv_out."),
)


def diffusers_name(name: str) -> str:
    """The name diffusers' AutoencoderKLWan gives the tensor that Wan2.2_VAE.pth calls ``name``."""
    for pattern, replacement in _TO_DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


_TO_WAN = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
    (r"\.down_blocks\.(\d+)\.downsampler\.", r".downsamples.\1.downsamples.2."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
    (r"\.up_blocks\.(\d+)\.upsampler\.", r".upsamples.\1.upsamples.3."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
)


def wan_name(name: str) -> str:
    """The name Wan2.2_VAE.pth gives the tensor that diffusers' AutoencoderKLWan calls ``name``."""
    for pattern, replacement in _TO_WAN:
        name = re.sub(pattern, replacement, name)
    return name


def read_vae_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a VAE file by their Wan2.2 names; a .pth is read with ``weights_only=True``.

    Raises:
        CheckpointError: the file cannot be read, or a .pth holds more than plain tensors.
    """
    if path.suffix == ".safetensors":
        source = TensorSource.open(path)
        return {name: source.get(name, finite=True) for name in source.keys()}  # noqa: SIM118 - not a dict
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as plain tensors; fetch it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path}: wanted a plain state dict of tensors")
    return content


def build_autoencoder(base_dim: int, decoder_base_dim: int) -> Any:
    """An AutoencoderKLWan of the Wan2.2 topology with the given widths, weights not yet loaded.

    Raises:
        WorkbenchError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise WorkbenchError("the VAE needs diffusers; install lance-workbench[vae]") from error
    return AutoencoderKLWan(
        base_dim=base_dim, decoder_base_dim=decoder_base_dim, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 4, 4],
        num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16,
        latents_mean=list(MEAN), latents_std=list(STD),
    )  # fmt: skip


class VAE:
    """Pictures to normalised latents and back.

    Latents are [t, h, w, 48], normalised with the public constants. One latent frame stands for the first frame, each
    further one for four.
    """

    def __init__(self, autoencoder: Any) -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path, device: str | torch.device, dtype: torch.dtype) -> VAE:
        """Read a VAE of any width; the widths follow from the tensors' shapes.

        Raises:
            CheckpointError: missing, unknown or mis-shaped tensors.
        """
        tensors = read_vae_tensors(path)
        for name in ("encoder.conv1.weight", "decoder.conv1.weight"):
            if name not in tensors:
                raise CheckpointError(f"{path}: no Wan2.2 VAE: {name} is missing")
        with torch.device("meta"):
            autoencoder = build_autoencoder(
                tensors["encoder.conv1.weight"].shape[0], tensors["decoder.conv1.weight"].shape[0] // 4
            )
        renamed = {diffusers_name(name): tensor.to(device, dtype) for name, tensor in tensors.items()}
        wanted = autoencoder.state_dict()
        for name in sorted(wanted.keys() | renamed.keys()):
            if name not in renamed:
                raise CheckpointError(f"{path}: {name} (diffusers' name) is missing")
            if name not in wanted:
                raise CheckpointError(f"{path}: {name} (diffusers' name) is unknown")
            if renamed[name].shape != wanted[name].shape:
                raise CheckpointError(
                    f"{path}: {name} has shape {list(renamed[name].shape)}, wanted {list(wanted[name].shape)}"
                )
        autoencoder.load_state_dict(renamed, assign=True)
        return cls(autoencoder)

    @property
    def _weight(self) -> torch.Tensor:
        weight: torch.Tensor = self.autoencoder.quant_conv.weight
        return weight

    def _constants(self) -> tuple[torch.Tensor, torch.Tensor]:
        like = self._weight
        return (
            torch.tensor(MEAN, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1),
            (1.0 / torch.tensor(STD, device=like.device)).to(like.dtype).view(1, -1, 1, 1, 1),
        )

    @torch.inference_mode()
    def encode(self, frames: torch.Tensor, eps: torch.Tensor | None = None) -> torch.Tensor:
        """Latents [t, h, w, 48] of frames [3, T, H, W] in -1..1.

        Upstream adds posterior noise scaled by the *un-normalised* standard deviation to the *normalised* mean; with
        ``eps`` [48, t, h, w] given this is reproduced, without it the mean alone is returned.
        """
        mean, inverse_std = self._constants()
        posterior = self.autoencoder.encode(frames[None].to(self._weight)).latent_dist
        latents = (posterior.mean - mean) * inverse_std
        if eps is not None:
            latents = latents + torch.exp(0.5 * posterior.logvar) * eps[None].to(latents)
        return latents[0].permute(1, 2, 3, 0).float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames float32 [3, T, H, W] in -1..1 from latents [t, h, w, 48]."""
        mean, inverse_std = self._constants()
        stacked = latents.permute(3, 0, 1, 2)[None].to(self._weight)
        frames = self.autoencoder.decode(stacked / inverse_std + mean).sample
        return frames[0].clamp(-1, 1).float()
