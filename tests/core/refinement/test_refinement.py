"""Refining variants by gradients: what falls, what stays, what is refused, and that a killed job ends alike."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.calibration import job as calibrate
from core.checkpoints.source import TensorSource
from core.errors import UsageError, WorkbenchError
from core.evaluation import divergence, suites
from core.evaluation.samples import Settings
from core.files import sha256_file
from core.quantization import job
from core.quantization.refine import Refine
from core.quantization.request import look_up
from core.refinement import learning, step
from core.refinement.gains import attach, stored
from core.runtime import load_model
from core.runtime.check import variant_schemes
from core.runtime.loading import quantized_factory
from core.store import Store

RECIPE = """
name = "{name}"
[format]
bits = {bits}
group = 32
symmetric = false
[calibration]
min_tokens = 1
[[steps]]
kind = "ranges"
"""
QUICK = "[refine]\nsteps = 3\nbatch = 2\nheld_out = 0.5\n"
LONG = "[refine]\nsteps = 24\nbatch = 4\nrate = 0.01\n"


def write_suites(folder: Path, golden: Path, first: int, count: int) -> list[str]:
    """Questions about the synthetic pictures and prompts to draw; other numbers are other words."""
    questions, prompts = {}, {}
    for number in range(first, first + count):
        picture = str(golden / "media" / f"img{1 + 2 * (number % 2)}.png")
        questions[f"{number:04d}"] = {
            "interleave_array": [picture, ["Look at it.", f"What is thing {number}?", "yes"]],
            "element_dtype_array": ["image", "text"],
            "istarget_in_interleave": [0, 1],
        }
        prompts[f"{number:06d}.png"] = f"Thing {number} on a table, seen {number + 1} times."
    paths = folder / f"questions{first}.json", folder / f"prompts{first}.json"
    for path, content in zip(paths, (questions, prompts), strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


@pytest.fixture(autouse=True)
def asked_once(monkeypatch: pytest.MonkeyPatch, world: Any) -> None:
    """The original says the same each time: what it said of a checkpoint and samples is kept."""
    ask = step._ask

    def kept(info: Any, drawn: Any, *rest: Any) -> Any:
        key = repr(drawn)
        if key not in world.said:
            world.said[key] = ask(info, drawn, *rest)
        return world.said[key]

    monkeypatch.setattr(step, "_ask", kept)


@pytest.fixture(scope="module")
def world(tiny_checkpoint: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tiny Lance calibrated on four questions and four prompts, and ``make(name, bits, section)``."""
    place = tmp_path_factory.mktemp("refinement")
    store = Store.open(place / "runs.db")
    context: Any = SimpleNamespace(store=store, job_id=None, data_dir=store.data_dir, lines=[])
    context.progress, context.log = (lambda *args: None), context.lines.append
    base = {"checkpoint": str(tiny_checkpoint), "device": "cpu"}
    short = {"max_new_tokens": 6, "num_steps": 3, "height": 64, "width": 64}
    files = write_suites(place, golden, 0, 4)
    calibrate.run(base | short | {"suites": files, "samples": 4, "name": "four"}, context)
    made: dict[str, dict[str, Any]] = {}

    def spec(name: str, bits: int = 3, section: str = "", calibration: str = "four") -> dict[str, Any]:
        path = place / f"{name}.toml"
        path.write_text(RECIPE.format(name=name, bits=bits) + section)
        return base | {"recipe": str(path), "calibration": calibration}

    def make(name: str, bits: int = 3, section: str = "") -> dict[str, Any]:
        if name not in made:
            made[name] = job.run(spec(name, bits, section), context)
        return made[name]

    others = [sample for name in write_suites(place, golden, 100, 3) for sample in suites.load(name).samples]
    pipeline = load_model(tiny_checkpoint, "cpu", torch.float32)
    settings = Settings.combine(pipeline.defaults, short)
    yield SimpleNamespace(
        context=context,
        place=place,
        spec=spec,
        make=make,
        others=others,
        settings=settings,
        short=short,
        said={},
    )
    store.close()


def errors(world: Any, checkpoint: Path, folders: list[Path]) -> list[dict[str, float]]:
    """Mean distance of variants from the original on samples that no calibration saw."""
    pipeline = load_model(checkpoint, "cpu", torch.float32)
    measured = divergence.of_lance(pipeline, world.others, world.settings)
    found = []
    for folder in folders:
        variant = load_model(folder, "cpu", torch.float32)
        pipeline.model = variant.model
        found.append({one.score: divergence.mean(one).value for one in measured})
    return found


def test_what_no_calibration_saw_is_nearer_to_the_original(world: Any, tiny_checkpoint: Path) -> None:
    plain, refined = world.make("plain"), world.make("refined", section=LONG)
    for verdict in refined["refine"]:
        part = learning.PART[verdict["expert"]]
        assert verdict["kept"] and verdict["best"] > 0
        assert verdict["after"][part] < 0.9 * verdict["before"][part]
    before, after = errors(world, tiny_checkpoint, [Path(plain["path"]), Path(refined["path"])])
    print(before, after, refined["refine"])
    assert after["kl"] < 0.9 * before["kl"]
    assert after["velocity"] < 0.95 * before["velocity"]


def test_codes_and_zeros_stay_and_files_are_those_that_their_record_names(world: Any) -> None:
    plain, refined = (Path(world.make(*args)["path"]) for args in (("plain",), ("refined", 3, LONG)))
    before, after = TensorSource.open(plain), TensorSource.open(refined)
    assert set(before.keys()) == set(after.keys())
    changed = {key for key in before.keys() if not torch.equal(before.get(key), after.get(key))}  # noqa: SIM118
    assert {key.rpartition(".")[2] for key in changed} == {"weight_scale", "weight"}
    assert all(key.endswith("weight_scale") or "norm" in key for key in changed)
    assert sum(key.endswith("weight_scale") for key in changed) == 42
    record = json.loads((refined / "lance_workbench.json").read_text())
    assert record["files"] == {name: sha256_file(refined / name) for name in record["files"]}
    assert [verdict["expert"] for verdict in record["refine"]] == ["und", "gen"]
    assert world.make("refined")["size_bytes"] == world.make("plain")["size_bytes"]


def test_the_package_reads_the_weights_that_run(world: Any) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor

    folder = Path(world.make("refined", section=LONG)["path"])
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = quantization.QuantizationConfig.model_validate(config).config_groups["group_0"]
    source, model = TensorSource.open(folder), load_model(folder, "cpu", torch.bfloat16).model
    leaves = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")
    for name in model.config.structure.target_linears():
        local = {leaf: source.get(f"{name}.{leaf}") for leaf in leaves}
        read = PackedQuantizationCompressor.decompress(local, scheme)["weight"]
        assert torch.equal(read, model.get_submodule(name).weight())


def test_gains_of_zero_change_nothing_and_are_differentiated_as_they_should(world: Any) -> None:
    folder = Path(world.make("plain")["path"])
    from core.lance.loading import load_lance

    schemes = variant_schemes(folder)
    assert schemes is not None
    pipeline = load_lance(
        folder, "cpu", torch.float32, quantized_factory(schemes, torch.device("cpu"), torch.float32)
    )
    gains = attach(pipeline.model, pipeline.structure, ("scales", "norms"))
    source = TensorSource.open(folder)
    for own in gains.values():
        for name, tensor in stored(pipeline.model, own).items():
            assert torch.equal(tensor, source.get(name)), name
    name = next(name for name in gains["und"] if name.endswith("down_proj.weight_scale"))
    linear, gain = pipeline.model.get_submodule(name.rpartition(".")[0]), gains["und"][name]
    x = torch.randn(5, linear.linear.in_features, generator=torch.Generator().manual_seed(0))
    gain.requires_grad_(True)
    linear(x).square().sum().backward()
    # A step far above what rounding to bfloat16 hides.
    found, at = float(gain.grad[3, 1]), (3, 1)
    values = []
    for change in (0.25, -0.25):
        with torch.no_grad():
            gain.zero_()
            gain[at] = change
            values.append(float(linear(x).square().sum()))
    assert found == pytest.approx((values[0] - values[1]) / 0.5, rel=0.1)


def test_what_does_not_help_is_not_kept_and_the_record_says_so(world: Any) -> None:
    section = "[refine]\nsteps = 4\nbatch = 1\nrate = 0.9\n"
    done = world.make("wild", section=section)
    assert [verdict["kept"] for verdict in done["refine"]] == [False, False]
    assert all(verdict["best"] == 0 and verdict["steps"] == 4 for verdict in done["refine"])
    for verdict in done["refine"]:
        part = learning.PART[verdict["expert"]]
        assert verdict["after"][part] > verdict["before"][part]
    assert any("not kept" in line for line in world.context.lines)
    names = [path.name for path in Path(done["path"]).glob("*.safetensors")]
    for name in names:
        ours, theirs = (load_file(Path(world.make(which)["path"]) / name) for which in ("wild", "plain"))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("answers", "pictures", "kept"),
    [
        ([0.8, 1.7, 2.6], [1.0, 2.0], True),
        ([0.2, 2.1, 3.0], [1.0, 2.0], False),  # one sample's luck
        ([1.0, 2.0, 3.0], [0.5, 1.5], False),
        ([0.8, 1.7, 2.6], [1.1, 2.1], False),
        ([0.8, 1.7, 2.6], [0.9, 2.2], True),  # no more than chance
    ],
)
def test_a_gain_has_to_be_surer_than_its_error_and_at_no_cost(
    answers: list[float], pictures: list[float], kept: bool
) -> None:
    before: learning.Losses = {"kl": [1.0, 2.0, 3.0], "velocity": [1.0, 2.0]}
    assert learning.gained("kl", before, {"kl": answers, "velocity": pictures}) is kept


def test_the_seed_decides(world: Any, tmp_path: Path) -> None:
    plain = Path(world.make("plain")["path"])
    request = look_up(world.spec("seeded", section=QUICK), world.context.store)

    def shards(name: str, seed: int) -> dict[str, str]:
        folder = shutil.copytree(plain, tmp_path / name)
        chosen = Refine(steps=2, batch=1, held_out=0.5, seed=seed)
        structure = request.layout.structure
        verdicts, files = step.refine(
            folder, request.info, structure, chosen, request.drawn, request.device, lambda *args: None
        )
        assert any(verdict.kept for verdict in verdicts)
        return files

    assert shards("one", 1) == shards("again", 1) != shards("two", 2)


def test_a_killed_refinement_ends_as_an_undisturbed_one(world: Any, tmp_path: Path) -> None:
    wanted = Path(world.make("calm", section=QUICK)["path"])
    spec = world.spec("calm", section=QUICK) | {"output": str(tmp_path / wanted.name)}
    calibrated = str(world.context.data_dir / "calibrations" / "four")

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # The parent's pool of threads is not there in the child.
                torch.set_num_threads(1)
                with Store.open(tmp_path / "runs.db") as store:
                    context: Any = SimpleNamespace(store=store, job_id=None, data_dir=store.data_dir)
                    context.log = lambda text: (tmp_path / "log").open("a").write(f"{text}\n")
                    context.progress = lambda *args: None
                    job.run(spec | {"calibration": calibrated}, context)
                code = 0
            finally:
                os._exit(code)
        return pid

    pid = start()
    log, deadline = tmp_path / "log", time.monotonic() + 60
    while not (log.is_file() and "refining" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / wanted.name).exists()
    assert os.waitstatus_to_exitcode(os.waitpid(start(), 0)[1]) == 0
    assert "went on from 3 layers" in log.read_text()
    made = tmp_path / wanted.name
    assert {f.name: sha256_file(f) for f in made.iterdir()} == {
        f.name: sha256_file(f) for f in wanted.iterdir()
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(f".{wanted.name}")]


def test_a_loss_that_is_not_finite_stops_at_its_step(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def losses(self: Any, pipeline: Any, chosen: Any) -> list[torch.Tensor]:
        calls.append(chosen)
        value = 1.0 if len(calls) < 4 else float("nan")
        return [torch.full((), value, dtype=torch.float64, requires_grad=True) for _ in chosen]

    monkeypatch.setattr("core.refinement.objectives.LanceObjective.losses", losses)
    monkeypatch.setattr(step, "PASS_TOKENS", step.PASS_TOKENS | {"cpu": 10**6})
    with pytest.raises(
        WorkbenchError, match="refine: the loss of the und expert is nan at step 3;"
    ) as caught:
        job.run(world.spec("broken", section="[refine]\nsteps = 40\n"), world.context)
    assert "\n" not in str(caught.value)
    assert not list((world.context.data_dir / "variants").glob("*broken*"))
    assert not list((world.context.data_dir / "variants").glob(".*broken*"))


def test_a_dry_run_foretells_what_refining_takes(world: Any) -> None:
    without = job.run(world.spec("foretold", section="") | {"dry_run": True}, world.context)
    found = job.run(world.spec("foretold", section=LONG) | {"dry_run": True}, world.context)
    assert "refine" not in without
    assert found["refine"]["device_bytes"] > found["plan"]["size_bytes"]
    assert found["refine"]["host_bytes"] > 0
    assert found["refine"]["seconds"] > 0
    more = job.run(
        world.spec("foretold", section=LONG.replace("24", "240")) | {"dry_run": True}, world.context
    )
    assert more["refine"]["device_bytes"] == found["refine"]["device_bytes"]
    assert not Path(found["path"]).exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("steps = -1", r"refine.steps is -1, wanted at least 1"),
        ("steps = 2.5", r"refine.steps is 2.5, wanted a whole number"),
        ("stesp = 3", r"unknown key refine.stesp; there are learn, steps, rate"),
        ("rate = 0.0", r"refine.rate is 0.0, wanted more than 0 and less than 1"),
        ("held_out = 1.0", r"refine.held_out is 1.0, wanted more than 0 and less than 1"),
        ("learn = []", r"refine.learn is \[\], wanted one or both of scales, norms"),
        ('learn = ["codes"]', r"refine.learn has 'codes'; there are scales, norms"),
    ],
)
def test_a_section_that_is_wrong_is_refused_by_its_key(world: Any, section: str, message: str) -> None:
    refused(world, world.spec("wrong", section=f"[refine]\n{section}\n"), message)


def refused(world: Any, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        job.run(spec, world.context)
    assert "\n" not in str(caught.value)
    assert not list((world.context.data_dir / "variants").glob("*wrong*"))


def test_scales_of_nvfp4_are_refused_and_its_norms_are_not(world: Any) -> None:
    path = world.place / "wrong.toml"
    head = 'name = "wrong"\n[format]\ntype = "nvfp4"\n[calibration]\nmin_tokens = 1\n[refine]\nsteps = 2\nbatch = 2\n'
    spec = world.spec("plain") | {"recipe": str(path)}
    path.write_text(f'{head}learn = ["scales", "norms"]\n')
    refused(world, spec, "wrong.toml: refine.learn has 'scales', which nvfp4 stores in steps of 6 to 12 %")
    path.write_text(head.replace("wrong", "floats"))
    done = job.run(spec, world.context)
    assert [verdict["expert"] for verdict in done["refine"]] == ["und", "gen"]


def test_without_samples_to_learn_from_it_says_what_is_missing(
    world: Any, tiny_checkpoint: Path, golden: Path, tiny_world: Any
) -> None:
    section = "[refine]\nsteps = 2\n"
    refused(
        world,
        world.spec("wrong", section=section) | {"calibration": None},
        "recipe wrong looks at activations",
    )
    refused(
        world,
        world.spec("wrong", section=section, calibration=str(tiny_world.calibration)),
        "calibration both: was merged from 2 others, refine wants one whose samples can be drawn again",
    )
    folder = world.place / "own"
    folder.mkdir()
    files = write_suites(folder, golden, 200, 3)
    base = world.short | {"checkpoint": str(tiny_checkpoint), "device": "cpu", "name": "own", "suites": files}
    calibrate.run(base | {"samples": 2}, world.context)
    lonely = world.spec("wrong", section=section, calibration="own")
    refused(
        world,
        lonely,
        "calibration own: its samples of answers are 2, refine wants 3 or more, two of them to hold out",
    )
    calibrate.run(base | {"samples": 3}, world.context)
    text = Path(files[1]).read_text()
    Path(files[1]).write_text(text.replace("table", "chair"))
    refused(
        world, lonely, r"calibration own: its samples cannot be drawn again from .*\(they are others now\)"
    )
    Path(files[1]).unlink()
    refused(world, lonely, "calibration own: .*/own/prompts200.json, which its samples are from, is gone")
