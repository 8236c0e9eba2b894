"""What cannot go to Core ML is refused in one line that names it, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coremltools", reason="needs the extra 'coreml'", exc_type=ImportError)

import torch
from plain_variants import write_causal, write_variant
from safetensors.torch import load_file, save_file

from core.checkpoints.describe import describe
from core.checkpoints.layout import layout_of, packed_weights, structure_of
from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.errors import CheckpointError, UsageError, WorkbenchError
from core.formats import coreml_convert
from core.formats.coreml_export import export
from core.formats.coreml_sizes import lance_sizes
from core.formats.coreml_weights import Reader
from core.quantization.scheme import Scheme
from core.runtime.check import variant_schemes


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Path:
    return write_causal(tmp_path_factory.mktemp("causal") / "qwen3", golden)


def refuse(folder: Path, output: Path, words: str, kind: type[WorkbenchError] = CheckpointError) -> None:
    """The export fails with a line that has ``words`` in it and leaves nothing behind."""
    beside = sorted(output.parent.iterdir())
    with pytest.raises(kind, match=words) as caught:
        export(folder, output, lambda text: None)
    assert "\n" not in str(caught.value)
    assert sorted(output.parent.iterdir()) == beside


def test_what_cannot_be_exported_is_named_and_leaves_nothing(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "changed", tmp_path / "place" / "out"
    output.parent.mkdir()
    shutil.copytree(causal, folder)
    tensors = load_file(folder / "model.safetensors")

    def write(**changes: torch.Tensor) -> None:
        save_file({**tensors, **changes}, folder / "model.safetensors")

    down = "model.layers.0.mlp.down_proj.weight"
    large = tensors[down].clone()
    large[3, 5] = 1e6
    write(**{down: large})
    refuse(folder, output, r"down_proj\.weight holds 1e\+06, beyond the 65504 of float16")
    write(**{"model.extra.weight": torch.ones(2)})
    refuse(folder, output, r"model\.extra\.weight is not known")
    save_file({key: t for key, t in tensors.items() if key != down}, folder / "model.safetensors")
    refuse(folder, output, r"has no mlp\.down_proj\.weight")
    write()
    config = json.loads((folder / "config.json").read_text())
    for changes, words in (
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', Core ML gets 'silu'"),
        (
            {"model_type": "olmo", "architectures": ["OlmoForCausalLM"]},
            "model_type is 'olmo', Core ML gets llama",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type is 'dynamic'",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(config | changes))
        refuse(folder, output, words)
    (folder / "config.json").write_text(json.dumps(config))

    def broken(*args: Any, **kwargs: Any) -> str:
        package = args[1]
        package.mkdir()
        raise WorkbenchError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("core.formats.coreml_export.convert", broken)
        refuse(folder, output, "no space", WorkbenchError)
        patch.setitem(sys.modules, "coremltools", None)
        refuse(folder, output, r'pip install "lance-workbench\[coreml\]"', WorkbenchError)
    output.mkdir()
    (output / "mine").write_text("kept")
    refuse(folder, output, "a folder that holds something", UsageError)
    assert (output / "mine").read_text() == "kept"


def test_scales_that_float16_cannot_hold_are_refused_unless_nothing_hangs_on_them(tmp_path: Path) -> None:
    variant = write_variant(CHECKPOINT, tmp_path / "variant", lambda name: Scheme(4, 64, False), {})
    key = "language_model.model.layers.0.mlp.up_proj"
    tensors = load_file(variant / "model.safetensors")
    scale = tensors[f"{key}.weight_scale"]
    model, _ = lance_sizes(describe(variant))

    def read(row: int | slice, size: float) -> Reader:
        changed = scale.clone()
        changed[row] = size
        save_file({**tensors, f"{key}.weight_scale": changed}, variant / "model.safetensors")
        source = TensorSource.open(variant)
        reader = Reader(source, structure_of(variant), model, variant_schemes(variant))
        reader.weight(key)
        return reader

    with pytest.raises(CheckpointError, match=r"up_proj: the scale 3e\+04 of row 2, group \d overflows"):
        read(2, 3e4)
    with pytest.raises(CheckpointError, match=r"up_proj: the scale 1e-08 of .* loses 100\.0% of the weights"):
        read(slice(None), 1e-8)
    # A row of next to nothing vanishes, and is counted.
    before, after = read(2, float(scale[2, 0])).scales, read(2, 1e-8).scales
    assert after.changed == before.changed + 4 and after.worst < 1e-7


def test_a_lance_that_lacks_a_tensor_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "part")
    tensors = load_file(CHECKPOINT / "model.safetensors")
    del tensors["language_model.model.layers.2.self_attn.k_norm.weight"]
    save_file(tensors, tmp_path / "part" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.2\.self_attn\.k_norm\.weight is missing"):
        part = TensorSource.open(tmp_path / "part")
        layout_of(tmp_path / "part").check(part, packed_weights(part))


def test_a_converter_that_fails_is_reported_in_one_line(
    causal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = coreml_convert.load_coremltools()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise ValueError("operation 'x'\nis unknown")

    monkeypatch.setattr(tools, "convert", fails)
    refuse(
        causal, tmp_path / "out", r"cannot convert the decoder \(operation 'x' is unknown\)", WorkbenchError
    )
