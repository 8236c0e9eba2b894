"""A variant with one scale a row, from the command that makes it to the weights that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpoints.source import TensorSource
from core.quantization import job
from core.quantization.integer import quantize
from core.quantization.scheme import CHANNEL, Scheme
from core.runtime import enforcement, load_model
from core.runtime.linear import QuantizedLinear


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (5, True), (8, False)])
def test_one_scale_a_row_is_written_read_and_run(
    bits: int, symmetric: bool, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    recipe = tmp_path / "rows.toml"
    recipe.write_text(
        f'name = "rows"\n[format]\nbits = {bits}\ngroup = 64\nsymmetric = {str(symmetric).lower()}\n'
    )
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(recipe), "group": "channel", "device": "cpu"}
    done = job.run(spec, context)
    assert done["variant"] == "lance-tiny_rows-channel"
    pipeline = load_model(Path(done["path"]), "cpu", torch.float32)
    scheme = Scheme(bits, CHANNEL, symmetric)
    assert enforcement(pipeline).scheme == scheme.label
    source = TensorSource.open(tiny_checkpoint)
    for name in ("self_attn.k_proj", "mlp_moe_gen.down_proj"):
        key = f"language_model.model.layers.1.{name}"
        module = pipeline.model.get_submodule(key)
        assert isinstance(module, QuantizedLinear) and module.weight_scale.shape[1] == 1
        wanted = quantize(source.get(f"{key}.weight").float(), scheme).dequantize()
        assert torch.equal(module.weight(), wanted)
