"""Loading a causal LM or a variant of one: transformers' model with our quantized linears in it."""

from __future__ import annotations

from pathlib import Path

import torch

from core.huggingface.loading import CausalLM, load_causal_lm
from core.runtime.check import enforcement, variant_schemes
from core.runtime.loading import quantized_factory, settle


def load_text_model(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> CausalLM:
    """Load the checkpoint or variant in ``folder``; ``enforcement`` says of the result what runs.

    Raises:
        CheckpointError: damaged or incomplete files, a decoder of a structure that is not known, or quantization
            that is not in force.
    """
    place = torch.device(device)
    schemes = variant_schemes(folder)
    factory = None if schemes is None else quantized_factory(schemes, place, dtype)
    loaded = load_causal_lm(folder, place, dtype, factory)
    settle(loaded.model, place, dtype)
    enforcement(loaded)
    return loaded
