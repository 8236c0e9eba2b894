"""What is exported for transformers computes what the workbench computes, lacks nothing unsaid, and is whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.errors import Cancelled, CheckpointError, UsageError, WorkbenchError
from core.formats import export_job
from core.formats.exported import Exported
from core.formats.huggingface_export import export
from core.lance.decoder import Routing
from core.lance.rotary import inverse_frequencies
from core.quantization import job as quantize
from core.runtime.causal_lm import load_text_model
from core.runtime.loading import load_model
from core.store import Store

ROOT = Path(__file__).parents[3]
TEXT = (
    "<|im_start|>system\nAnswer the question.<|im_end|>\n<|im_start|>user\nWhich colour has the circle on the left?"
    "<|im_end|>\n<|im_start|>assistant\n"
)
RECIPES = {
    "int4": "[format]\nbits = 4\ngroup = 64\nsymmetric = false\n",
    "nvfp4": '[format]\ntype = "nvfp4"\n',
    "channel": '[format]\nbits = 5\ngroup = "channel"\nsymmetric = false\n',
    "compact": "[format]\nbits = 4\ngroup = 64\nsymmetric = false\n"
    '[head]\nbits = 8\ngroup = "channel"\nsymmetric = true\n[embedding]\nbits = 4\ngroup = 32\nsymmetric = true\n'
    "[time]\nbits = 8\ngroup = 64\nsymmetric = true\n",
    "gen-fp8": '[format]\nbits = 4\ngroup = 64\nsymmetric = false\n[gen]\ntype = "fp8"\n',
    "two": '[format]\nbits = 4\ngroup = 32\nsymmetric = false\n[widths]\n"layers.0.*.down" = 5\n"*.gen.qkv" = 3\n',
    "two-sym": '[format]\nbits = 4\ngroup = 32\nsymmetric = true\n[widths]\n"layers.0.*.down" = 8\n',
}
ONE_FORMAT = ("bf16", "int4", "nvfp4", "channel", "compact", "gen-fp8", "two")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Makes a variant of the embedded checkpoint and its export once, when first asked for."""
    place = tmp_path_factory.mktemp("exports")
    store = Store.open(place / "runs.db")
    context: Any = SimpleNamespace(
        store=store,
        job_id=None,
        data_dir=store.data_dir,
        log=lambda text: None,
        progress=lambda *_, **__: None,
    )
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind not in made:
            source = CHECKPOINT
            if kind != "bf16":
                recipe = place / f"{kind}.toml"
                recipe.write_text(f'name = "{kind}"\n{RECIPES[kind]}')
                spec = {"checkpoint": "lance-demo", "recipe": str(recipe), "group": None, "device": "cpu"}
                source = Path(quantize.run(spec, context)["path"])
            steps: list[str] = []
            done = export(source, place / f"hf-{kind}", steps.append)
            made[kind] = SimpleNamespace(source=source, done=done, steps=steps)
        return made[kind]

    return make


def our_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Logits float32 [n, vocabulary] of the workbench's own model for text."""
    model = load_model(folder, "cpu", dtype).model
    with torch.inference_mode():
        cos, sin = model.rotary(torch.arange(len(ids)).expand(3, -1))
        roles = torch.zeros(len(ids), dtype=torch.int8)
        routing = Routing(None, None, roles, None)
        x = model.embed_text(torch.tensor(ids))
        return model.logits(model.language_model.model(x, cos, sin, routing, causal=True))


def theirs(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model; every tensor of the folder found its place."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def tokens(folder: Path) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ONE_FORMAT)
def test_transformers_computes_what_the_workbench_computes(kind: str, exported: Any) -> None:
    if kind != "bf16":
        pytest.importorskip("compressed_tensors")
    each = exported(kind)
    ids = tokens(each.done.path)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        wanted = our_logits(each.source, ids, dtype)
        model = theirs(each.done.path, dtype)
        with torch.inference_mode():
            found = model(torch.tensor([ids])).logits[0].float()
        assert error(found, wanted) < most
        if dtype == torch.float32:
            answer = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))[
                0, len(ids) :
            ]
            # Chosen greedily: each token is our greatest behind those before it.
            ours = our_logits(each.source, [*ids, *answer.tolist()], dtype)[len(ids) - 1 : -1]
            assert ours.argmax(-1).tolist() == answer.tolist() and len(answer) > 2
            unquantized = our_logits(CHECKPOINT, ids, dtype)
            assert (error(found, unquantized) > 0.01) == (kind != "bf16"), "it is the variant that answers"


def test_several_formats_without_zeros_stay_quantized(exported: Any) -> None:
    pytest.importorskip("compressed_tensors")
    each = exported("two-sym")
    ids = tokens(each.done.path)
    with torch.inference_mode():
        found = theirs(each.done.path, torch.bfloat16)(torch.tensor([ids])).logits[0].float()
    assert error(found, our_logits(each.source, ids, torch.bfloat16)) < 2e-2
    kinds = {json.dumps(g["weights"]) for g in quantization(each.done)["config_groups"].values()}
    assert len(kinds) == 2 and not any("written as bfloat16" in words for words in each.done.left_out)


def quantization(done: Exported) -> Any:
    return json.loads((done.path / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("kind", ["int4", "nvfp4", "two"])
def test_codes_are_those_of_the_variant(kind: str, exported: Any) -> None:
    each = exported(kind)
    variant, folder = TensorSource.open(each.source), TensorSource.open(each.done.path)
    carried = 0
    for key in folder.keys():  # noqa: SIM118
        if key.endswith((".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_global_scale")):
            mine, its = folder.get(key), variant.get(f"language_model.{key}")
            assert mine.dtype == its.dtype and torch.equal(mine.view(torch.uint8), its.view(torch.uint8)), key
            carried += key.endswith(".weight_packed")
    assert carried == {"int4": 28, "nvfp4": 28, "two": 27}[kind]


def test_every_key_is_written_or_among_what_is_left_out(exported: Any) -> None:
    each = exported("bf16")
    source, folder = TensorSource.open(each.source), TensorSource.open(each.done.path)
    written = {f"language_model.{key}" for key in folder.keys()}  # noqa: SIM118
    added = {key for key in written if key.endswith("o_proj.bias")}
    assert added == written - set(source.keys()) and not any(folder.get(k[15:]).any() for k in added)
    rest = set(source.keys()) - written
    assert all(
        re.search(r"_moe_gen|^(time_embedder|vae2llm|llm2vae|latent_pos_embed)\.", key) for key in rest
    )
    expert = sum(source.entry(key).nbytes for key in rest if "_moe_gen" in key)
    said = "\n".join(each.done.left_out)
    assert f"the generation expert (28 linears with their norms, {expert / 1e6:,.1f} MB)" in said
    assert all(words in said for words in ("vision tower (Qwen2.5-VL-ViT", "VAE (Wan2.2_VAE.", "vae2llm"))
    assert "bfloat16" not in said


def test_what_is_written_otherwise_is_named(exported: Any) -> None:
    said = exported("compact").done.left_out
    assert any(words.startswith("the int8 sym channel of lm_head") for words in said)
    assert any(words.startswith("the int4 sym g32 of model.embed_tokens") for words in said)
    (named,) = [words for words in exported("two").done.left_out if "int5 asym g32" in words]
    assert "model.layers.0.mlp.down_proj" in named
    assert "model.layers.0.mlp.down_proj" in quantization(exported("two").done)["ignore"]


def test_the_record_of_files_is_complete_and_the_card_says_what_is_left_out(exported: Any) -> None:
    for kind in ("bf16", "compact"):
        done = exported(kind).done
        hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in done.path.iterdir()}
        assert done.files == hashes
        assert done.size_bytes == sum(p.stat().st_size for p in done.path.iterdir())
        card = (done.path / "README.md").read_text()
        assert all(f"- {words}\n" in card for words in done.left_out)
        assert ("compressed-tensors" in card) == (kind != "bf16") == ("compressed-tensors" in done.loads_with)
        assert "layer 4 of 4" in exported(kind).steps[4]


def test_the_workbench_itself_reads_the_export(exported: Any) -> None:
    each = exported("int4")
    ids = tokens(each.done.path)
    found = load_text_model(each.done.path, "cpu", torch.float32).logits(ids, 1)
    assert error(found, our_logits(each.source, ids, torch.float32)[:-1]) < 1e-5


def copied(tmp_path: Path) -> Path:
    shutil.copytree(CHECKPOINT.parent, tmp_path / "copy")
    return tmp_path / "copy" / CHECKPOINT.name


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_frequencies_rounded_as_upstream_stay_so(tmp_path: Path) -> None:
    source = copied(tmp_path)
    edit_json(source / "lance_workbench.json", name="rounded", defaults={"rounding": "upstream"})
    done = export(source, tmp_path / "out", lambda text: None)
    model = theirs(done.path, torch.bfloat16)
    ids = tokens(done.path)
    with torch.inference_mode():
        found = model(torch.tensor([ids])).logits[0].float()
    assert error(found, our_logits(source, ids, torch.bfloat16)) < 2e-2
    for position in (torch.tensor([[len(ids)]]), torch.tensor([[200_000]])):
        model.model.rotary_emb(torch.zeros(1, 1), position)
        run = model.model.rotary_emb.inv_freq
        assert torch.allclose(run, inverse_frequencies(128, 1e6, rounded=True), rtol=3e-7, atol=0)
    assert not torch.allclose(run, inverse_frequencies(128, 1e6, rounded=False), rtol=1e-4, atol=0)


def test_tokenizer_template_and_defaults_come_along(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    source = tmp_path / "Lance_Tiny"
    shutil.copytree(tiny_checkpoint, source)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    edit_json(source / "tokenizer_config.json", chat_template=template)
    changed(source, lambda tensors: tensors.update({name: t.float() for name, t in tensors.items()}))
    (source / "generation_config.json").write_text('{"do_sample": true, "temperature": 1e-6}')
    done = export(source, tmp_path / "out", lambda text: None)
    tokenizer = AutoTokenizer.from_pretrained(done.path)
    words = tokenizer.apply_chat_template([{"role": "user", "content": "Hi."}], tokenize=False)
    assert words == "<|im_start|>user\nHi.<|im_end|>\n"
    defaults = GenerationConfig.from_pretrained(done.path)
    assert defaults.do_sample is False and defaults.max_new_tokens == 256
    assert tokenizer.decode([defaults.eos_token_id]) == "<|im_end|>"
    rows = theirs(done.path, torch.float32).config.vocab_size
    assert defaults.suppress_tokens == list(range(len(tokenizer), rows)) != []
    said = "\n".join(done.left_out)
    assert "the precision of F32: rounded to bfloat16" in said and "generation_config.json" in said


KILLED = """
import os, signal, sys
from pathlib import Path
from core.formats.huggingface_export import export
def say(text):
    if text.startswith("writing layer 3"):
        os.kill(os.getpid(), signal.SIGKILL)
export(Path(sys.argv[1]), Path(sys.argv[2]), say)
"""


def test_a_killed_export_leaves_nothing_under_its_name(tmp_path: Path, context: Any) -> None:
    output = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, CHECKPOINT, output], cwd=ROOT, check=False)
    assert done.returncode == -9 and not output.exists()
    assert len(list(tmp_path.glob(".out.partial-*"))) == 1
    spec = {"checkpoint": "lance-demo", "format": "huggingface", "output": str(output)}
    result = export_job.run(spec, context)
    assert {path.name for path in output.iterdir()} == set(result["files"])
    assert list(tmp_path.glob(".out.partial-*")) == []


def test_a_cancelled_export_leaves_nothing_at_all(tmp_path: Path) -> None:
    def say(text: str) -> None:
        if text.startswith("writing layer 2"):
            raise Cancelled("job 1: cancelled")

    with pytest.raises(Cancelled):
        export(CHECKPOINT, tmp_path / "out", say)
    assert list(tmp_path.iterdir()) == []


def changed(source: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})


LAYER = "language_model.model.layers.1."
Change = Callable[[dict[str, torch.Tensor]], Any]
DAMAGES: list[tuple[Change, str]] = [
    (lambda t: t.pop(LAYER + "mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight is missing"),
    (lambda t: t.pop(LAYER + "self_attn.k_proj.bias"), r"k_proj\.bias is missing"),
    (lambda t: t.update({LAYER + "mlp.more.weight": torch.zeros(2)}), r"mlp\.more\.weight is no tensor of a Lance"),
    (lambda t: t.update({LAYER + "self_attn.o_proj.bias": torch.zeros(256)}), r"o_proj\.bias is no tensor"),
    (
        lambda t: t.update({LAYER + "self_attn.q_norm.weight": torch.ones(64)}),
        r"q_norm\.weight has shape \[64\], wanted \[128\]",
    ),
    (lambda t: t[LAYER + "mlp.down_proj.weight"][0].fill_(float("nan")), r"down_proj\.weight .* NaN"),
    (
        lambda t: t.update({LAYER + "mlp.up_proj.weight": torch.zeros(768, 256, dtype=torch.int8)}),
        r"up_proj\.weight is stored as I8, wanted F32",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_damaged_tensors_are_named_and_nothing_is_written(
    change: Change, message: str, tmp_path: Path
) -> None:
    source = copied(tmp_path)
    changed(source, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        export(source, tmp_path / "out", lambda text: None)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_damaged_variant_is_named(exported: Any, tmp_path: Path) -> None:
    variant = tmp_path / "variant"
    shutil.copytree(exported("int4").source, variant)
    (shard,) = variant.glob("*.safetensors")
    tensors = load_file(shard)
    tensors[LAYER + "mlp.up_proj.weight_scale"] = tensors[LAYER + "mlp.up_proj.weight_scale"][
        :, :2
    ].contiguous()
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight_scale has shape \[768, 2\]"):
        export(variant, tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(exported: Any, tmp_path: Path) -> None:
    done = exported("bf16").done
    with pytest.raises(UsageError, match=r"is a Hugging Face model already; copy .*hf-bf16"):
        export(done.path, tmp_path / "out", lambda text: None)
    with pytest.raises(UsageError, match="holds something"):
        export(CHECKPOINT, done.path, lambda text: None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="a file; choose another"):
        export(CHECKPOINT, tmp_path / "file", lambda text: None)
    source = copied(tmp_path)
    (source / "merges.txt").unlink()
    with pytest.raises(WorkbenchError, match=r"the tokenizer's merges\.txt is missing"):
        export(source, tmp_path / "out", lambda text: None)
    shutil.copyfile(CHECKPOINT / "merges.txt", source / "merges.txt")
    config = (source / "tokenizer_config.json").read_text()
    (source / "tokenizer_config.json").write_text(config.replace("<|im_end|>", "<|end|>"))
    with pytest.raises(CheckpointError, match=r"tokenizer has no <\|im_end\|>"):
        export(source, tmp_path / "out", lambda text: None)
    assert not (tmp_path / "out").exists() and (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = export(CHECKPOINT, tmp_path / "out", lambda text: None)
    assert set(done.files) == {path.name for path in (tmp_path / "out").iterdir()}
