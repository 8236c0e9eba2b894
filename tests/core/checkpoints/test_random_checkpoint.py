"""Random checkpoints: the released sizes to the byte, every layout loads and runs, values follow the seed."""

from __future__ import annotations

import math
import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.checkpoints import random as random_checkpoints
from core.checkpoints.describe import describe
from core.checkpoints.random import Plan, plan, write_random
from core.checkpoints.sizes import sizes
from core.checkpoints.source import TensorSource, read_header
from core.checkpoints.stream import Slot, header, write_stream
from core.checkpoints.verify import verify
from core.errors import UsageError, WorkbenchError
from core.lance import tasks
from core.lance.loading import load_lance
from core.lance.position_table import table_frames
from core.lance.requests import Request
from core.lance.sampler import Sampling
from core.lance.vae import diffusers_name, wan_name

TINY = sizes("tiny")


@pytest.fixture
def tokenizer(golden: Path) -> Path:
    return golden / "tokenizer_tiny"


def elements(planned: Plan, prefix: str, file: str = "Lance_Random/model.safetensors") -> tuple[int, int]:
    """Parameters and tensors of a planned file whose names start with ``prefix``."""
    slots = [slot for slot in planned.files[file] if slot.name.startswith(prefix)]
    return sum(slot.elements for slot in slots), len(slots)


def test_the_released_sizes() -> None:
    """Counts of SPEC section 1.2, which were checked against the sizes of the published files."""
    image, video = plan(sizes("3b")), plan(sizes("3b"), layout="video")
    for planned in (image, video):
        assert elements(planned, "language_model.") == (6_171_895_808, 1012)
        assert elements(planned, "", "Wan2.2_VAE.safetensors") == (704_688_668, 196)
    assert elements(image, "") == (6_185_205_808, 1012 + 8 + 1)
    assert elements(image, "", "Qwen2.5-VL-ViT/vit.safetensors") == (668_684_288, 390)
    assert elements(video, "vit_model.") == (668_684_288, 390)
    assert elements(video, "") == (7_105_548_336, 1012 + 8 + 390 + 1)
    assert "Qwen2.5-VL-ViT/vit.safetensors" not in video.files
    slots = {slot.name: slot for slot in video.files["Lance_Random/model.safetensors"]}
    assert slots["latent_pos_embed.pos_embed"].shape == (126_976, 2048)
    assert slots["language_model.model.layers.35.self_attn.k_proj_moe_gen.weight"].shape == (256, 2048)
    assert slots["vit_model.blocks.31.mlp.down_proj.bias"].shape == (1280,)
    assert round(sum(slot.nbytes for slot in slots.values()) / 1e9, 1) == 28.4
    targets = [
        s for s in slots.values() if "_proj" in s.name and s.name.endswith("weight") and "language" in s.name
    ]
    assert (len(targets), sum(slot.elements for slot in targets)) == (504, 5_549_064_192)


def test_vae_names_are_those_of_the_released_file(golden: Path) -> None:
    released = read_header(golden / "weights" / "vae.safetensors")
    assert sorted(released) == sorted(slot.name for slot in plan(TINY).files["Wan2.2_VAE.safetensors"])
    assert all(wan_name(diffusers_name(name)) == name for name in released)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "video", "dtype": "BF16"},
        {"bundled_vision": True, "shard_bytes": 100_000},
        {"layout": "video", "bundled_vision": False, "shard_bytes": 1 << 30},
    ],
    ids=str,
)
def test_every_layout_is_sound_and_runs(options: dict[str, Any], tokenizer: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    planned = plan(TINY, **options)
    folder = write_random(
        tmp_path / "made",
        planned,
        tokenizer=tokenizer,
        progress=lambda done, total: told.append((done, total)),
    )
    found = verify(folder)
    assert found.problems == []
    assert set(found.info.dtypes) == {options.get("dtype", "F32")}
    assert table_frames(folder) == (31 if options.get("layout") == "video" else 1)
    written = sum(file.stat().st_size for file in (tmp_path / "made").rglob("*.safetensors"))
    assert written == planned.nbytes
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][1] == planned.nbytes
    pipeline = load_lance(folder, "cpu", torch.float32)
    question = Request("t2i", "a cube", height=32, width=48)
    picture = tasks.run(pipeline, question, Sampling(num_steps=2))
    assert isinstance(picture, tasks.Generated)
    assert picture.latents.isfinite().all()
    assert len(picture.frames.unique()) > 10


def test_shards_hold_no_more_than_asked(tokenizer: Path, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "made", plan(TINY, shard_bytes=100_000), tokenizer=tokenizer)
    whole = write_random(tmp_path / "whole", plan(TINY), tokenizer=tokenizer)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 3
    for file in files:
        entries = read_header(file)
        assert len(entries) == 1 or sum(entry.nbytes for entry in entries.values()) <= 100_000
    assert set(TensorSource.open(folder).keys()) == set(load_file(whole / "model.safetensors"))


def test_values_follow_the_seed_and_the_name_only(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_checkpoints, "PIECE", 1000)
    made = {
        name: write_random(tmp_path / name, plan(TINY, **options), seed=seed, tokenizer=tokenizer)
        for name, seed, options in (
            ("one", 1, {}),
            ("sharded", 1, {"shard_bytes": 50_000, "bundled_vision": True}),
            ("two", 2, {}),
        )
    }
    one, sharded, two = (TensorSource.open(folder) for folder in made.values())
    vision = TensorSource.open(made["one"].parent / "Qwen2.5-VL-ViT" / "vit.safetensors")
    for name in sharded.keys():  # noqa: SIM118 - not a dict
        same = vision.get(name.removeprefix("vit_model.")) if name.startswith("vit_model.") else one.get(name)
        assert torch.equal(sharded.get(name), same), name
    name = "language_model.model.layers.1.mlp_moe_gen.down_proj.weight"
    assert not torch.equal(one.get(name), two.get(name))
    values = one.get(name)
    assert abs(float(values.std()) * math.sqrt(values.shape[1] * 2 * 2) - 1) < 0.05
    assert len(values.unique()) > 0.99 * values.numel()


def test_activations_stay_of_order_one(tokenizer: Path, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "made", plan(TINY.with_layers(24)), tokenizer=tokenizer)
    pipeline = load_lance(folder, "cpu", torch.float32)
    seen: list[float] = []
    for layer in pipeline.model.language_model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: seen.append(float(out.std())))
    tasks.prepare(pipeline, Request("t2i", "a cube", height=32, width=32))
    assert len(seen) >= 24
    assert min(seen) > 0.3 and max(seen) < 10


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_checkpoints, "PIECE", 10_000)
    monkeypatch.setattr(random_checkpoints.os, "cpu_count", lambda: 2)
    big = Slot("big.weight", "F32", (2000, 2000))
    planned = Plan(TINY, {"Lance_Random/model.safetensors": [big]})
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in random_checkpoints.TOKENIZER_FILES:
        (tokenizer / name).write_text("{}")
    tracemalloc.start()
    try:
        folder = write_random(tmp_path / "made", planned, tokenizer=tokenizer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert TensorSource.open(folder).get("big.weight").shape == (2000, 2000)
    assert peak < big.nbytes / 10


def test_what_cannot_be_written_is_said_first(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    with pytest.raises(UsageError, match="kept: exists and is not empty"):
        write_random(tmp_path / "kept", plan(TINY), tokenizer=tokenizer)
    with pytest.raises(WorkbenchError, match=r"the tokenizer's vocab\.json is missing"):
        write_random(tmp_path / "made", plan(TINY), tokenizer=tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("core.files.shutil.disk_usage", lambda place: usage(10, 9, 1000))
    with pytest.raises(WorkbenchError, match=r"made: 0\.0 GB needed, 0\.0 GB free; free some space"):
        write_random(tmp_path / "made", plan(TINY), tokenizer=tokenizer)
    assert not (tmp_path / "made").exists()


def test_a_killed_writer_leaves_nothing_under_the_final_name(tokenizer: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random(tmp_path / "made", plan(TINY), tokenizer=tokenizer, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_sizes_and_pieces_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="70b: no such size; known are 3b, tiny"):
        sizes("70b")
    with pytest.raises(UsageError, match="0 layers asked for"):
        TINY.with_layers(0)
    assert len(header([Slot("a", "F32", (2, 3))])) % 8 == 0
    with pytest.raises(ValueError, match="a: 4 bytes given, 24 announced"):
        write_stream(tmp_path / "file", [Slot("a", "F32", (2, 3))], lambda slot: [b"1234"])


def test_describe_names_it(tokenizer: Path, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "made", plan(TINY), tokenizer=tokenizer, name="lance-random-tiny")
    info = describe(folder)
    assert (info.name, info.missing) == ("lance-random-tiny", [])
    assert info.defaults["height"] == 96
