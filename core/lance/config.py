"""The sizes of a Lance, read from its folder's ``llm_config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.checkpoints.describe import CONFIG_FILE, read_json
from core.checkpoints.resolve import VISION_FOLDER, companion
from core.errors import CheckpointError
from core.lance.structure import lance_structure
from core.quantization.groups import Structure

LATENT_CHANNELS = 48
"""Channels of the Wan2.2 VAE's latents; one decoder token carries one latent position."""

SPATIAL_STRIDE = 16
"""Pixels per latent position, in height and in width."""

TEMPORAL_STRIDE = 4
"""Frames per latent frame after the first."""

MAX_LATENT_SIDE = 64
"""Rows and columns of the latent position table; wider latents alias, as upstream's do."""

MAX_LATENT_FRAMES = 31


@dataclass(frozen=True)
class LanceConfig:
    """Sizes and constants of the language model, and the vision tower's own config as transformers reads it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    vision: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(self.mrope_section) * 2 != self.head_dim:
            raise CheckpointError(
                f"mrope_section {list(self.mrope_section)} covers {sum(self.mrope_section)} frequencies, "
                f"a head of {self.head_dim} has {self.head_dim // 2}"
            )
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly"
            )

    @property
    def structure(self) -> Structure:
        """The decoder as data."""
        return lance_structure(self.num_layers, self.head_dim, self.rms_norm_eps)

    @classmethod
    def from_dict(cls, values: dict[str, Any], vision: dict[str, Any] | None = None) -> LanceConfig:
        """From the content of llm_config.json and, where it lies beside, the vision tower's config.json.

        Raises:
            CheckpointError: a size is missing.
        """
        try:
            heads = int(values["num_attention_heads"])
            hidden = int(values["hidden_size"])
            return cls(
                vocab_size=int(values["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(values["intermediate_size"]),
                num_layers=int(values["num_hidden_layers"]),
                num_heads=heads,
                num_kv_heads=int(values["num_key_value_heads"]),
                head_dim=int(values.get("head_dim") or hidden // heads),
                mrope_section=tuple(values["rope_scaling"]["mrope_section"]),
                rope_theta=float(values.get("rope_theta", 1e6)),
                rms_norm_eps=float(values.get("rms_norm_eps", 1e-6)),
                vision=dict(vision if vision is not None else values.get("vision_config", {})),
            )
        except KeyError as error:
            raise CheckpointError(f"{CONFIG_FILE}: {error.args[0]} is missing") from error

    @classmethod
    def from_folder(cls, folder: Path) -> LanceConfig:
        """From a checkpoint or variant folder; the vision tower's config may lie beside it.

        Raises:
            CheckpointError: no llm_config.json, or a size is missing in it.
        """
        vision_path = companion(folder, f"{VISION_FOLDER}/config.json")
        vision = read_json(vision_path) if vision_path else None
        return cls.from_dict(read_json(folder / CONFIG_FILE), vision)
