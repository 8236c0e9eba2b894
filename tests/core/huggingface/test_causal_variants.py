"""Variants of causal LMs: the same numbers through compressed-tensors and transformers as through our runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

from core.checkpoints.describe import describe
from core.checkpoints.layout import structure_of
from core.checkpoints.source import TensorSource
from core.checkpoints.verify import verify
from core.errors import Cancelled, UsageError
from core.quantization import job as quantize
from core.runtime import enforcement
from core.runtime.causal_lm import load_text_model
from core.runtime.linear import QuantizedLinear

TEXT = "When you have eliminated the impossible, whatever remains, however improbable, must be the truth."
VARIANTS = [
    *((kind, "all") for kind in ("llama", "llama-biases", "smollm", "qwen2", "qwen3")),
    ("qwen2.5", "nvfp4"),
    ("smollm", "nvfp4"),
    ("mistral", "int4-minmax"),
]


def made(world: Any, kind: str, recipe: str) -> Path:
    group = 32 if recipe.startswith("int4") else None
    return Path(world.variant(kind, world.recipes.get(recipe, recipe), group)["path"])


@pytest.mark.parametrize(("kind", "recipe"), VARIANTS)
def test_transformers_gives_the_logits_of_our_runtime(kind: str, recipe: str, hf_world: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made(hf_world, kind, recipe)
    ours = load_text_model(folder, "cpu", torch.float32)
    assert enforcement(ours).swapped == enforcement(ours).targets == 14
    tokens, _ = ours.encode(TEXT)
    assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == tokens
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = theirs(torch.tensor([tokens])).logits[0, :-1]
    found = ours.logits(tokens, 1)
    assert found.std() > 0.1 and float((found - wanted).abs().max()) < 1e-3


@pytest.mark.parametrize(("kind", "recipe"), VARIANTS)
def test_compressed_tensors_reads_our_weights_exactly(kind: str, recipe: str, hf_world: Any) -> None:
    folder = made(hf_world, kind, recipe)
    source = TensorSource.open(folder)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    ours = load_text_model(folder, "cpu", torch.float32)
    for name in ours.structure.target_linears():
        parts = {
            key.removeprefix(f"{name}."): source.get(key)
            for key in source.keys()  # noqa: SIM118
            if key.startswith(f"{name}.weight")
        }
        module = ours.model.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert torch.equal(compressor.decompress(parts, scheme)["weight"].float(), module.weight().float())


@pytest.mark.parametrize("kind", ["smollm", "llama"])
def test_the_folder_is_that_of_a_causal_lm(kind: str, hf_world: Any) -> None:
    source, folder = hf_world.folder(kind), made(hf_world, kind, "all")
    info = describe(folder)
    assert (info.kind, info.family, info.missing) == ("variant", "huggingface", [])
    assert verify(folder).problems == []
    before, after = (json.loads((place / "config.json").read_text()) for place in (source, folder))
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {"quantization_config", "dtype"} and after["dtype"] == "bfloat16"
    assert after["quantization_config"]["ignore"] == ["lm_head"]
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    row = hf_world.context.store.checkpoint(info.name)
    assert (row["family"], row["parent"]) == ("huggingface", kind)
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card and "experts" not in card and "license" not in card


def test_a_compact_variant_of_a_tied_model_parts_head_and_embedding(hf_world: Any) -> None:
    plain, folder = made(hf_world, "smollm", "all"), made(hf_world, "smollm", "int4-compact")
    assert structure_of(plain).tied and not structure_of(folder).tied
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    done = hf_world.variant("smollm", "int4-compact")
    source = TensorSource.open(folder)
    stored = sum(entry.nbytes for entry in source.entries.values())
    assert stored == done["size_bytes"] < 0.9 * describe(plain).nbytes
    assert verify(folder).problems == []
    whole, compact, original = (
        load_text_model(place, "cpu", torch.float32) for place in (plain, folder, hf_world.folder("smollm"))
    )
    tokens, _ = whole.encode(TEXT)
    wanted = original.logits(tokens, 1)
    errors = [float((m.logits(tokens, 1) - wanted).norm() / wanted.norm()) for m in (whole, compact)]
    assert max(errors) < 1.5 * min(errors) < 0.5


def test_a_dry_run_tells_the_size_that_the_variant_has(hf_world: Any) -> None:
    for recipe in ("all", "int4-compact"):
        spec = {"checkpoint": str(hf_world.folder("smollm")), "device": "cpu", "dry_run": True}
        group = 32 if recipe.startswith("int4") else None
        spec |= {"recipe": hf_world.recipes.get(recipe, recipe), "group": group}
        spec["calibration"] = hf_world.calibration("smollm")["calibration"]
        predicted = quantize.run(spec, hf_world.context)["plan"]["size_bytes"]
        done = hf_world.variant("smollm", hf_world.recipes.get(recipe, recipe), group)
        assert predicted == done["size_bytes"]


def test_a_job_that_was_stopped_goes_on(hf_world: Any, tmp_path: Path) -> None:
    def stop(done: float, *rest: Any) -> None:
        if done == 1:
            raise Cancelled("job 1: cancelled")

    context = hf_world.context
    spec = {"checkpoint": str(hf_world.folder("llama")), "recipe": hf_world.recipes["all"], "device": "cpu"}
    spec |= {
        "calibration": hf_world.calibration("llama")["calibration"],
        "output": str(tmp_path / "llama_all-g32"),
    }
    go_on, context.progress = context.progress, stop
    with pytest.raises(Cancelled):
        quantize.run(spec, context)
    context.progress = go_on
    quantize.run(spec, context)
    assert "went on from 1 layers" in context.lines[-1]
    undisturbed = made(hf_world, "llama", "all")
    for file in undisturbed.iterdir():
        assert (tmp_path / "llama_all-g32" / file.name).read_bytes() == file.read_bytes()


def test_what_does_not_fit_is_refused(hf_world: Any, tmp_path: Path) -> None:
    spec = {"checkpoint": str(hf_world.folder("llama")), "recipe": "int4-awq", "group": 32, "device": "cpu"}
    other = hf_world.calibration("qwen3")["calibration"]
    with pytest.raises(UsageError, match="was taken from qwen3"):
        quantize.run(spec | {"calibration": other}, hf_world.context)
    with pytest.raises(UsageError, match=r"64 columns do not divide into groups of 48"):
        quantize.run(spec | {"recipe": "int4-minmax", "group": 48}, hf_world.context)
    greedy = tmp_path / "greedy.toml"
    greedy.write_text(
        'name = "greedy"\n[format]\nbits = 4\ngroup = 32\nsymmetric = true\n'
        "[calibration]\nmin_tokens = 100000\n[[steps]]\nkind = 'awq'\n"
    )
    mine = hf_world.calibration("llama")["calibration"]
    with pytest.raises(UsageError, match=r"model\.layers\.0\.self_attn\.q_proj saw 1024 tokens and 13 more"):
        quantize.run(spec | {"recipe": str(greedy), "group": None, "calibration": mine}, hf_world.context)
    with pytest.raises(UsageError, match=r"int4-fp8: has a format for the generation expert \(\[gen\]\)"):
        quantize.run(spec | {"recipe": "int4-fp8", "calibration": mine}, hf_world.context)


def test_transformers_loads_several_widths_where_they_have_no_zeros(hf_world: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    recipe = tmp_path / "two.toml"
    recipe.write_text(
        'name = "two"\n[format]\nbits = 4\ngroup = 32\nsymmetric = true\n[widths]\n"layers.0.*.down" = 8\n'
    )
    folder = Path(hf_world.variant("qwen2", str(recipe))["path"])
    ours = load_text_model(folder, "cpu", torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokens, _ = ours.encode(TEXT)
    with torch.inference_mode():
        wanted = theirs(torch.tensor([tokens])).logits[0, :-1].float()
    assert torch.equal(ours.logits(tokens, 1), wanted)
    assert "transformers loads it" in (folder / "README.md").read_text()
