"""Exports of a Lance for mlx-lm, loaded and run by mlx-lm on the CPU."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.errors import CheckpointError, UsageError, WorkbenchError
from core.formats.exported import Exported
from core.formats.mlx_export import export
from core.lance.config import LanceConfig
from core.lance.generation import Understanding
from core.lance.rotary import inverse_frequencies
from core.quantization import job
from core.runtime import load_model
from core.store import Store

mx: Any = pytest.importorskip("mlx.core", reason="needs the extra 'mlx'")
mx.set_default_device(mx.cpu)
mlx_lm: Any = pytest.importorskip("mlx_lm", reason="needs the extra 'mlx'")

ROOT = Path(__file__).parents[3]
QUESTION, INSTRUCTION = "What colour is the circle?", "Look at the image carefully and answer the question."

INTEGERS = "[format]\nbits = {bits}\ngroup = {group}\nsymmetric = {symmetric}\n"
COMPACT = """
[head]
bits = 8
group = 64
symmetric = true
[embedding]
bits = 4
group = 32
symmetric = true
[time]
bits = 8
group = 64
symmetric = true
"""
RECIPES = {
    "int4": INTEGERS.format(bits=4, group=64, symmetric="false") + COMPACT,
    "int7": INTEGERS.format(bits=7, group=64, symmetric="false"),
    "int8": INTEGERS.format(bits=8, group='"channel"', symmetric="true"),
    "fine": INTEGERS.format(bits=4, group=16, symmetric="false"),
    "nvfp4": '[format]\ntype = "nvfp4"\n',
    "widths": INTEGERS.format(bits=4, group=32, symmetric="true")
    + '[widths]\n"layers.0.und.qkv" = 3\n"layers.1.und.down" = 5\n"layers.2.und.o" = 6\n',
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """``source(name)``, the demo checkpoint ("bf16") or a variant of it, and ``exported(name)``, each made once."""
    place = tmp_path_factory.mktemp("mlx")
    store = Store.open(place / "runs.db")
    context: Any = SimpleNamespace(store=store, job_id=None, data_dir=store.data_dir)
    context.progress, context.log = (lambda *args: None), (lambda text: None)
    made: dict[str, Exported] = {}

    def source(name: str) -> Path:
        folder = CHECKPOINT if name == "bf16" else place / name
        if not folder.is_dir():
            recipe = place / f"{name}.toml"
            recipe.write_text(f'name = "{name}"\n{RECIPES[name]}')
            spec = {
                "checkpoint": str(CHECKPOINT),
                "recipe": str(recipe),
                "device": "cpu",
                "output": str(folder),
            }
            job.run(spec, context)
        return folder

    def exported(name: str) -> Exported:
        if name not in made:
            made[name] = export(source(name), place / f"{name}-mlx", lambda text: None)
        return made[name]

    yield SimpleNamespace(source=source, exported=exported)
    store.close()


def own_answer(folder: Path) -> tuple[list[int], list[int], torch.Tensor]:
    """Ids of a question without pictures, our greedy answer, and the float32 logits behind each of its tokens."""
    pipeline = load_model(folder, "cpu", torch.float32)
    with torch.inference_mode():
        tokens = [
            token for token, _ in Understanding.of_images(pipeline, [], QUESTION, INSTRUCTION).steps(12)
        ]
        understanding = Understanding.of_images(pipeline, [], QUESTION, INSTRUCTION)
        return understanding.packed.ids.tolist(), tokens, understanding.logits(tokens)


def their_logits(model: Any, ids: list[int], tokens: list[int]) -> torch.Tensor:
    found = model(mx.array([ids + tokens[:-1]]))[0, len(ids) - 1 :]
    return torch.tensor(np.array(found.astype(mx.float32)))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Root of the relative squared error over the tokens that there are."""
    there = torch.isfinite(wanted)
    assert torch.equal(there, torch.isfinite(found)), "the same tokens are never chosen"
    return float((found - wanted)[there].norm() / wanted[there].norm())


@pytest.mark.parametrize(
    ("name", "exact", "rounded"),
    [
        # Relative error of logits where MLX computes in float32, and as it is loaded, in bfloat16, which on the CPU
        # rounds codes times scales too. Our integers are rounded to bfloat16 once, MLX's in float32 are not; of int4
        # the zero points are, as the export says.
        ("bf16", 1e-5, 0.02),
        ("nvfp4", 1e-5, 0.04),
        ("int7", 0.02, 0.12),
        ("int8", 0.02, 0.12),
        ("widths", 0.02, 0.06),
        ("int4", 0.08, 0.09),
    ],
)
def test_mlx_lm_computes_what_lance_does(world: Any, name: str, exact: float, rounded: float) -> None:
    exported = world.exported(name)
    ids, tokens, wanted = own_answer(world.source(name))
    model, tokenizer = mlx_lm.load(str(exported.path), trust_remote_code=True)
    assert tokenizer.encode(f"<|im_start|>user\n{QUESTION}<|im_end|>") == [
        *ids[ids.index(1003, 1) : ids.index(1004, 20) + 1]
    ]
    assert relative(their_logits(model, ids, tokens), wanted) < rounded
    model.set_dtype(mx.float32)
    assert relative(their_logits(model, ids, tokens), wanted) < exact
    found = [answer.token for answer in mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=12)]
    assert found == tokens, "greedy, and it ends where ours ends"


def test_the_folder_is_complete_and_says_what_it_lacks(world: Any) -> None:
    exported = world.exported("int4")
    folder = exported.path
    assert {path.name for path in folder.iterdir()} == set(exported.files) == {
        "README.md", "config.json", "merges.txt", "mlx_decoder.py", "model-00001-of-00001.safetensors",
        "model.safetensors.index.json", "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    for name, digest in exported.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert exported.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    said = "\n".join(exported.left_out)
    for what in ("generation expert", "vision tower", "VAE", "zero points of 28 linears"):
        assert what in said
    card = (folder / "README.md").read_text()
    assert all(f"- {each}" in card for each in exported.left_out)
    assert "28 modules as int4 asym g64" in card and "trust_remote_code=True" in card
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 1e6 and config["eos_token_id"] == 1004
    formats = config["quantization"]
    assert formats["model.layers.3.mlp.down_proj"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert formats["lm_head"]["bits"] == 8 and formats["model.embed_tokens"]["group_size"] == 32
    assert exported.size_bytes < 0.35 * world.exported("bf16").size_bytes
    assert "mlx_lm.load(" in exported.loads_with and "trust_remote_code=True" in exported.loads_with


def test_codes_are_the_variants(world: Any) -> None:
    exported, files = world.exported("widths"), TensorSource.open(world.source("widths"))
    written = load_file(exported.path / "model-00001-of-00001.safetensors")
    for name in ("layers.0.self_attn.q_proj", "layers.1.mlp.down_proj", "layers.2.self_attn.o_proj"):
        codes = files.get(f"language_model.model.{name}.weight_packed")
        assert torch.equal(written[f"model.{name}.weight"].view(torch.int32), codes)
        assert torch.equal(
            written[f"model.{name}.scales"], files.get(f"language_model.model.{name}.weight_scale")
        )
    dense = world.exported("fine")
    assert any("int4 asym g16 codes of 28 modules" in each and "bfloat16" in each for each in dense.left_out)
    said = "\n".join(exported.left_out)
    assert "zero points" not in said and "codes of" not in said, "nothing of symmetric codes is lost"


def test_frequencies_rounded_as_upstreams_are_carried(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Lance_Tiny"
    shutil.copytree(tiny_checkpoint.parent, tmp_path, dirs_exist_ok=True)
    record = json.loads((folder / "lance_workbench.json").read_text())
    record["defaults"]["rounding"] = "upstream"
    (folder / "lance_workbench.json").write_text(json.dumps(record))
    exported = export(folder, tmp_path / "out", lambda text: None)
    model, _ = mlx_lm.load(str(exported.path), trust_remote_code=True)
    table = 1 / np.array(model.layers[0].self_attn.rope._frequencies)
    config = LanceConfig.from_folder(folder)
    for rounded in (True, False):
        wanted = inverse_frequencies(config.head_dim, config.rope_theta, rounded=rounded)
        assert np.allclose(table, wanted.numpy(), rtol=1e-6) is rounded

    pipeline = load_model(folder, "cpu", torch.float32)
    pipeline.model.rounded = True
    pipeline.model.reset_buffers()
    with torch.inference_mode():
        understanding = Understanding.of_images(pipeline, [], "Which colour has the table? " * 20, "Look.")
        own = understanding.logits([5, 9, 30, 7])
    model.set_dtype(mx.float32)
    found = their_logits(model, understanding.packed.ids.tolist(), [5, 9, 30, 7])
    assert relative(found, own) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.update({"language_model.model.layers.0.self_attn.r_proj.weight": torch.ones(2)}),
         "layers.0.self_attn.r_proj.weight is no tensor of a Lance"),
        (lambda tensors: tensors.pop("language_model.model.layers.1.self_attn.q_norm.weight"),
         "layers.1.self_attn.q_norm.weight is missing"),
        (lambda tensors: tensors.update({"language_model.model.norm.weight": torch.ones(7)}),
         r"model.norm.weight has shape \[7\]"),
        (lambda tensors: tensors["language_model.model.layers.2.mlp.up_proj.weight"].view(-1)[3:4].fill_(torch.nan),
         "layers.2.mlp.up_proj.weight .* NaN"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_nothing_is_written(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    folder = tmp_path / "Lance_Demo"
    shutil.copytree(CHECKPOINT, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export(folder, tmp_path / "out", lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["Lance_Demo"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(WorkbenchError):
            export(CHECKPOINT, tmp_path / "out", lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom core.formats.mlx_export import export\n"
        "def say(text):\n    print(text, flush=True)\n    time.sleep(60 if 'mlx-lm' in text else 0)\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]), say)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, CHECKPOINT, tmp_path / "out"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            if "mlx-lm" in line:
                break
        child.kill()
    assert not (tmp_path / "out").exists(), "everything was written, beside its place"
    export(CHECKPOINT, tmp_path / "out", lambda text: None)
    assert mlx_lm.load(str(tmp_path / "out"), trust_remote_code=True)


def test_what_is_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something"):
        export(CHECKPOINT, tmp_path / "out", lambda text: None)
    assert (tmp_path / "out" / "mine.txt").read_text() == "years of work"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(WorkbenchError, match=r'pip install "lance-workbench\[mlx\]"'):
        export(CHECKPOINT, tmp_path / "out", lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_mlx_lm_does_not_build_is_not_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("core.formats.mlx_source.LANCE_DECODER", "qwen2")
    with pytest.raises(CheckpointError, match="mlx-lm does not build what it is"):
        export(CHECKPOINT, tmp_path / "out", lambda text: None)
    assert list(tmp_path.iterdir()) == []
