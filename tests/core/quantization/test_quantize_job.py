"""The quantize job: what it writes, and what it refuses with one line and nothing under the final name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.calibration.record import load_record
from core.checkpoints.source import TensorSource
from core.errors import Cancelled, CheckpointError, UsageError, WorkbenchError
from core.lance.structure import lance_structure
from core.quantization import job
from core.quantization import recipe as recipes
from core.quantization.fit import check_coverage
from core.quantization.inputs import CalibrationInputs

Q0 = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def broken(
    tiny_checkpoint: Path, tmp_path: Path
) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], Path]:
    """A copy of the tiny model whose tensors a function has changed."""

    def make(change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny_checkpoint, folder, copy_function=shutil.copy)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def refuse(spec: dict[str, Any], context: Any, error: type[WorkbenchError], message: str) -> None:
    """Run a job that has to fail: with ``message`` in one line, leaving no variant and no half of one."""
    with pytest.raises(error, match=message) as caught:
        job.run({"recipe": "int4-minmax", "group": 32, "device": "cpu"} | spec, context)
    assert "\n" not in str(caught.value)
    variants = context.data_dir / "variants"
    assert not variants.exists() or not list(variants.iterdir())
    assert context.store.checkpoints("variant") == []


def test_the_variant_is_registered_and_its_run_recorded(tiny_world: Any) -> None:
    done = tiny_world.variants["int4-awq"]
    row = tiny_world.context.store.checkpoint("lance-tiny_int4-awq-g32")
    assert (row["parent"], row["recipe"], row["kind"]) == ("lance-tiny", "int4-awq", "variant")
    # 4 bits, 16 of scale and 4 of zero per 32 columns, and 16 bytes of shape.
    assert 4.62 < row["bits"] < 4.7
    assert row["details"]["calibration"] == "both"
    run = tiny_world.context.store.run(done["run"])
    assert (run["kind"], run["state"], run["variant"]) == ("quantize", "succeeded", row["name"])
    assert set(run["manifest"]["fingerprints"]) == {"checkpoint", "recipe", "calibration"}
    assert run["size_bytes"] == done["size_bytes"]


def test_every_tensor_is_accounted_for(tiny_world: Any, tiny_checkpoint: Path) -> None:
    counts = tiny_world.variants["int4-awq"]["tensors"]
    source = TensorSource.open(tiny_checkpoint)
    assert counts["read"] == len(source.keys())
    assert (counts["quantized"], counts["folded"]) == (42, 12)
    variant = TensorSource.open(Path(tiny_world.variants["int4-awq"]["path"]))
    assert counts["written"] == len(variant.keys()) == counts["passed"] + counts["folded"] + 4 * 42


def test_the_plan_predicts_the_size_to_the_byte(tiny_world: Any, tiny_checkpoint: Path, context: Any) -> None:
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": "int4-minmax", "group": 32, "dry_run": True}
    planned = job.run(spec, context)
    assert planned["dry_run"] and planned["plan"]["linears"] == 42
    assert planned["estimated_seconds"] >= 0
    assert planned["plan"]["size_bytes"] == tiny_world.variants["int4-minmax"]["size_bytes"]
    assert not Path(planned["path"]).exists()
    assert context.store.runs() == []


def test_scales_lower_the_loss_of_every_group_or_leave_it(tiny_world: Any) -> None:
    folder = Path(tiny_world.variants["int4-awq"]["path"])
    records = json.loads((folder / "lance_workbench.json").read_text())["linears"]
    assert all(record["loss_after"] <= record["loss_before"] for record in records)
    assert sum(record["mode"] != "identity" for record in records) > 20
    assert {r["mode"] for r in records if r["group"].endswith(".o")} == {"identity"}
    assert all(record["tokens"] > 0 for record in records)


def test_quantizing_twice_gives_the_same_files(tiny_world: Any, tiny_checkpoint: Path, context: Any) -> None:
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": "int4-awq", "group": 32, "device": "cpu"}
    done = job.run(spec | {"calibration": str(tiny_world.calibration)}, context)
    first, again = Path(tiny_world.variants["int4-awq"]["path"]), Path(done["path"])
    for file in first.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


def test_a_symmetric_recipe_of_the_users_own(tiny_checkpoint: Path, context: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n[format]\nbits = 5\ngroup = 16\nsymmetric = true\n')
    output = tmp_path / "place" / "named"
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": str(path), "output": str(output), "device": "cpu"}
    done = job.run(spec, context)
    assert done["variant"] == "lance-tiny_mine-g16"
    assert done["path"] == str(output)
    source = TensorSource.open(output)
    assert not any(key.endswith("weight_zero_point") for key in source.keys())  # noqa: SIM118


def test_what_lies_where_the_variant_should_go_stays(
    tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.toml").write_text("flour, eggs")
    spec = {"checkpoint": str(tiny_checkpoint), "output": str(mine)}
    refuse(spec, context, UsageError, "mine: a folder that holds something, and no variant")
    assert (mine / "recipe.toml").read_text() == "flour, eggs"
    (mine / "recipe.toml").unlink()
    for _ in range(2):  # into an empty folder, then over the variant in it
        job.run({"recipe": "int4-minmax", "group": 32, "device": "cpu"} | spec, context)
    assert (mine / "lance_workbench.json").is_file()


def test_a_nan_weight_is_named(broken: Any, context: Any) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.model.layers.2.mlp.up_proj.weight"][3, 5] = float("nan")

    folder = broken(poison)
    refuse(
        {"checkpoint": str(folder)},
        context,
        CheckpointError,
        r"layers\.2\.mlp\.up_proj\.weight .* holds 1 value",
    )


def test_an_infinite_tensor_outside_the_layers_is_named(broken: Any, context: Any) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["language_model.lm_head.weight"][0, 0] = float("inf")

    refuse({"checkpoint": str(broken(poison))}, context, CheckpointError, r"lm_head\.weight")


def test_missing_unknown_and_misshaped_tensors_are_named(broken: Any, context: Any) -> None:
    folder = broken(lambda tensors: tensors.pop(Q0))
    refuse(
        {"checkpoint": str(folder)},
        context,
        CheckpointError,
        r"layers\.0\.self_attn\.q_proj\.weight is missing",
    )
    shutil.rmtree(folder)
    folder = broken(lambda tensors: tensors.update(extra=torch.zeros(2)))
    refuse({"checkpoint": str(folder)}, context, CheckpointError, r"extra is no tensor of a Lance")
    shutil.rmtree(folder)
    folder = broken(lambda tensors: tensors.update({Q0: tensors[Q0][:32].clone()}))
    refuse(
        {"checkpoint": str(folder)},
        context,
        CheckpointError,
        r"q_proj\.weight has shape \[32, 64\], wanted \[64, 64\]",
    )


def test_a_truncated_file_is_named(tiny_checkpoint: Path, tmp_path: Path, context: Any) -> None:
    folder = tmp_path / "short"
    shutil.copytree(tiny_checkpoint, folder, copy_function=shutil.copy)
    data = (tiny_checkpoint / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:-100])
    refuse({"checkpoint": str(folder)}, context, CheckpointError, r"model\.safetensors: truncated")


def test_a_group_that_does_not_divide_is_named(tiny_checkpoint: Path, context: Any) -> None:
    spec = {"checkpoint": str(tiny_checkpoint), "group": 48}
    refuse(
        spec, context, UsageError, r"q_proj\.weight \[64, 64\]: 64 columns do not divide into groups of 48"
    )


def test_unknown_names_are_refused(tiny_checkpoint: Path, context: Any) -> None:
    spec = {"checkpoint": str(tiny_checkpoint)}
    refuse(spec | {"recipe": "int4-magic"}, context, UsageError, "int4-magic: no such recipe")
    refuse(
        spec | {"calibration": "mine"},
        context,
        UsageError,
        "mine: no such calibration .*`calibrations run CHECKPOINT` makes one",
    )
    refuse(
        spec | {"recipe": "int4-awq"},
        context,
        UsageError,
        "int4-awq looks at activations: give it a calibration",
    )
    refuse({"checkpoint": "nowhere"}, context, UsageError, "nowhere")
    refuse(spec | {"device": "cuda:99"}, context, UsageError, "cuda:99")


def test_a_variant_is_not_quantized_again(tiny_world: Any, context: Any) -> None:
    spec = {"checkpoint": tiny_world.variants["int4-minmax"]["path"]}
    refuse(spec, context, UsageError, "is already a variant")


def test_too_few_tokens_stop_the_job_unless_the_recipe_says_otherwise(
    tiny_world: Any, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": "int4-awq", "group": 32, "device": "cpu"}
    spec["calibration"] = str(tiny_world.parts[0])
    refuse(spec, context, UsageError, r"q_proj_moe_gen saw 0 tokens and 20 more linears too few.* wants 256")
    path = tmp_path / "lenient.toml"
    text = recipes.load("int4-awq").text.replace('"error"', '"round"').replace('"int4-awq"', '"lenient"')
    path.write_text(text)
    done = job.run(spec | {"recipe": str(path)}, context)
    assert done["uncovered"] == 21
    records = json.loads((Path(done["path"]) / "lance_workbench.json").read_text())["linears"]
    assert all((record["mode"] == "uncovered") == ("_moe_gen" in record["linear"]) for record in records)


def test_a_calibration_of_another_checkpoint_is_refused(
    tiny_world: Any, tiny_checkpoint: Path, context: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_world.calibration, folder)
    record = dataclasses.replace(load_record(folder), checkpoint_fingerprint="0" * 64)
    (folder / "calibration.json").write_text(record.to_json())
    spec = {"checkpoint": str(tiny_checkpoint), "recipe": "int4-awq", "calibration": str(folder)}
    refuse(
        spec, context, UsageError, r"calibration both: was taken from lance-tiny \(000000000000\), not from"
    )
    (folder / "calibration.json").write_text(load_record(tiny_world.calibration).to_json())
    data = (folder / "statistics.safetensors").read_bytes()
    (folder / "statistics.safetensors").write_bytes(data[:-8])
    refuse(spec, context, CheckpointError, r"statistics\.safetensors: truncated or changed")


def test_a_cancelled_job_leaves_no_variant_but_what_it_has_done(tiny_checkpoint: Path, context: Any) -> None:
    def stop(done: float, total: float | None, unit: str = "", message: str = "") -> None:
        if done == 2:
            raise Cancelled("job 1: cancelled")

    progress, context.progress = context.progress, stop
    spec = {"recipe": "int4-minmax", "group": 32, "device": "cpu", "checkpoint": str(tiny_checkpoint)}
    with pytest.raises(Cancelled, match="cancelled"):
        job.run(spec, context)
    variants = context.data_dir / "variants"
    assert [path.name for path in variants.iterdir()] == [".lance-tiny_int4-minmax-g32.work"]
    context.progress = progress
    job.run(spec, context)
    assert "went on from 2 layers" in context.lines[-1]
    assert [path.name for path in variants.iterdir()] == ["lance-tiny_int4-minmax-g32"]


def test_a_disk_that_fills_up_leaves_nothing(tiny_checkpoint: Path, context: Any) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        refuse(
            {"checkpoint": str(tiny_checkpoint)},
            context,
            WorkbenchError,
            r"part-00000\.safetensors: cannot be written",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)


def test_buckets_weigh_what_their_role_does_and_share_the_rows(tiny_world: Any) -> None:
    recipe = recipes.load("int4-awq").with_group(32)
    record = load_record(tiny_world.calibration)
    assert (
        check_coverage(record, dataclasses.replace(recipe, min_tokens=1), ["language_model.lm_head"][:0])
        == []
    )
    inputs = CalibrationInputs(tiny_world.calibration, recipe, [], torch.device("cpu"))
    und, gen = (group for group in lance_structure().layer_groups(1) if group.kind == "qkv")
    found = inputs(und)
    assert found is not None
    # Sorted buckets: t2i/text, x2t_image/answer, x2t_image/text, x2t_image/vit.
    assert found.weight.tolist() == pytest.approx([0.15, 0.4, 0.15, 0.3])
    assert found.rows.shape[0] == len(found.bucket) <= recipe.rows
    only = inputs(gen)
    assert only is not None and only.weight.tolist() == [1.0]
    assert (
        CalibrationInputs(tiny_world.calibration, recipe, gen.linears[:1], torch.device("cpu"))(gen) is None
    )
