"""Writing the demo's checkpoint in the layout of upstream's ``downloads/``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from core.demo.sizes import LLM_CONFIG, VISION_CONFIG
from core.files import replacing, write_text
from core.lance.model import Lance

RECORD: dict[str, Any] = {
    "name": "lance-demo",
    "defaults": {
        "resolution": "image_256res",
        "height": 96,
        "width": 96,
        "num_steps": 30,
        "timestep_shift": 3.5,
        "cfg_text_scale": 4.0,
        "rounding": "plain",
    },
}
"""Content of lance_workbench.json. The model was trained without upstream's rounded rotary frequencies."""

_VISION = "vit_model."


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write ``tensors`` as safetensors, whole or not at all."""
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def lance_tensors(model: Lance) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights in bfloat16 as Lance's files hold them: model.safetensors and the vision tower's bare names."""
    language: dict[str, torch.Tensor] = {}
    vision: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().to(torch.bfloat16).contiguous().cpu()
        if name.startswith(_VISION):
            vision[name.removeprefix(_VISION)] = value
        else:
            language[name] = value
    return language, vision


def write_checkpoint(folder: Path, model: Lance, vae: dict[str, torch.Tensor]) -> None:
    """Write weights and configuration below ``folder``; the tokenizer is written by its own module."""
    language, vision = lance_tensors(model)
    write_tensors(folder / "Lance_Demo" / "model.safetensors", language)
    write_tensors(folder / "Qwen2.5-VL-ViT" / "vit.safetensors", vision)
    write_tensors(folder / "Wan2.2_VAE.safetensors", vae)
    write_text(folder / "Lance_Demo" / "llm_config.json", json.dumps(LLM_CONFIG, indent=1) + "\n")
    write_text(folder / "Lance_Demo" / "lance_workbench.json", json.dumps(RECORD, indent=1) + "\n")
    write_text(folder / "Qwen2.5-VL-ViT" / "config.json", json.dumps(VISION_CONFIG, indent=1) + "\n")
