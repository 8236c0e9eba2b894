"""Going by the inputs of the quantized model lowers the error of a whole causal LM at few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.calibration import job as calibrate
from core.quantization import job as quantize
from core.runtime.causal_lm import load_text_model

RECIPE = """
name = "{inputs}"
[format]
bits = 3
group = 32
symmetric = false
[calibration]
min_tokens = 64
[[steps]]
kind = "ranges"
[[steps]]
kind = "gptq"
inputs = "{inputs}"
"""
TEXT = (
    "It was in the spring of the year 1894 that all London was interested, and the fashionable world dismayed. "
    * 3
)


def test_at_three_bits_the_models_own_error_falls(hf_world: Any, tmp_path: Path) -> None:
    original = load_text_model(hf_world.folder("llama"), "cpu", torch.float32)
    tokens = original.encode(TEXT)[0][:250]
    wanted = original.logits(tokens, 1)
    base = {"checkpoint": str(hf_world.folder("llama")), "device": "cpu"}
    calibration = calibrate.run(base | {"samples": 24, "dtype": "float32", "name": "many"}, hf_world.context)
    errors = {}
    for inputs in ("original", "quantized"):
        path = tmp_path / f"{inputs}.toml"
        path.write_text(RECIPE.format(inputs=inputs))
        spec = base | {"recipe": str(path), "calibration": calibration["path"]}
        done = quantize.run(spec, hf_world.context)
        found = load_text_model(Path(done["path"]), "cpu", torch.float32).logits(tokens, 1)
        errors[inputs] = float((found - wanted).norm() / wanted.norm())
    assert errors["quantized"] < 0.9 * errors["original"]
