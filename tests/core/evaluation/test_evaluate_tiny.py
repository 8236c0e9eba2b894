"""Evaluations of the tiny golden model, end to end into a temporary database."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.demo import SUITES
from core.errors import Cancelled, CheckpointError, DataError, UsageError, WorkbenchError
from core.evaluation import comparison, job, report
from core.evaluation.image_scores import PSNR_CEILING
from core.lance.generation import Understanding
from core.lance.position_table import POSITION_TABLE
from core.quantization import job as quantize_job
from core.store import Store, manifest


class Context:
    """A job's context without a job."""

    job_id = None

    def __init__(self, store: Store, stop_after: int | None = None) -> None:
        self.store, self.stop_after = store, stop_after
        self.lines: list[str] = []
        self.seen: list[tuple[float, float | None, str]] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, done: float, total: float | None, unit: str = "", message: str = "") -> None:
        self.seen.append((done, total, message))
        if done == self.stop_after:
            raise Cancelled("stopped")


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "runs.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A question suite in Lance's format (the answers of the tiny model are babble) and a small t2i suite."""
    folder = tmp_path_factory.mktemp("suites")
    samples = {}
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (300, 200), colour).save(folder / f"{colour}.png")
        samples[f"{index:04}"] = {
            "interleave_array": [f"{colour}.png", ["Look.", "Which colour?", colour]],
            "element_dtype_array": ["image", "text"],
            "istarget_in_interleave": [0, 1],
        }
    (folder / "questions.json").write_text(json.dumps(samples))
    drawn = {
        "name": "drawings",
        "task": "t2i",
        "settings": {"height": 32, "width": 48, "num_steps": 3},
        "samples": [
            {"key": "a", "prompt": "a red circle", "shape": "circle", "colour": "red", "seed": 1},
            {"key": "b", "prompt": "a cube", "seed": 2},
        ],
    }
    (folder / "drawings.json").write_text(json.dumps(drawn))
    return str(folder / "questions.json"), str(folder / "drawings.json")


def _spec(checkpoint: Path, *suites: str, **changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": str(checkpoint),
        "suites": list(suites),
        "device": "cpu",
        "dtype": "float32",
    } | changes


@pytest.fixture(scope="session")
def brief_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, which rarely ends an answer by itself, made to stop after eight tokens."""
    folder = tmp_path_factory.mktemp("brief")
    shutil.copytree(tiny_checkpoint.parent, folder, dirs_exist_ok=True)
    own = folder / "Lance_Tiny" / "lance_workbench.json"
    record = json.loads(own.read_text())
    record["defaults"]["max_new_tokens"] = 8
    own.write_text(json.dumps(record))
    return own.parent


@pytest.fixture(scope="session")
def variant(brief_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint rounded to four bits, in the database of another project: known by its path alone."""
    folder = tmp_path_factory.mktemp("variant")
    with Store.open(folder / "runs.db") as elsewhere:
        spec = {"checkpoint": str(brief_checkpoint), "recipe": "int4-minmax", "group": 64, "device": "cpu"}
        return Path(quantize_job.run(spec, Context(elsewhere))["path"])  # type: ignore[arg-type]


def test_baseline_scores_the_truth_and_keeps_what_others_need(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    context = Context(store)
    result = job.run(_spec(brief_checkpoint, *suites), context)  # type: ignore[arg-type]
    questions, drawings = (store.run(run_id) for run_id in result["runs"])
    assert (questions["name"], questions["state"], questions["samples"]) == (
        "lance-tiny_bf16",
        "succeeded",
        3,
    )
    assert (questions["truth"], questions["kl"], questions["exact"]) == (0.0, None, None)
    assert questions["nll"] > 0
    assert drawings["pixel"] in (0.0, 1.0)
    assert manifest.missing(questions["manifest"]) == []
    rows = store.outputs(questions["id"])
    assert [row["sample_key"] for row in rows] == ["0000", "0001", "0002"]
    assert all(row["tokens"] and row["seconds"] > 0 for row in rows)
    assert all(isinstance(row["text"], str) for row in rows)
    assert len(store.media(rows[0]["input_media"])) > 0
    picture = store.outputs(drawings["id"])[0]["output_media"]
    assert store.media(picture).startswith(b"\x89PNG")
    for run, file in ((questions, "likelihood"), (drawings, "trajectory")):
        assert (store.data_dir / "runs" / str(run["id"]) / f"{file}.safetensors").is_file()
    assert context.seen[-1][:2] == (5, 5)


def test_bf16_against_itself_is_the_noise_floor(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    first = job.run(_spec(brief_checkpoint, *suites), Context(store))["runs"]  # type: ignore[arg-type]
    again = job.run(_spec(brief_checkpoint, *suites), Context(store))["runs"]  # type: ignore[arg-type]
    questions, drawings = (store.run(run_id) for run_id in again)
    assert [questions["baseline_run_id"], drawings["baseline_run_id"]] == first
    assert (questions["exact"], questions["levenshtein"], questions["top1"]) == (1.0, 1.0, 1.0)
    assert (questions["kl"], questions["kl_max"], questions["kl_p99"]) == (0.0, 0.0, 0.0)
    assert (drawings["psnr"], drawings["mae"], drawings["velocity"]) == (PSNR_CEILING, 0.0, 0.0)
    assert drawings["cosine"] == pytest.approx(1.0)
    third = store.run(job.run(_spec(brief_checkpoint, suites[0]), Context(store))["runs"][0])  # type: ignore[arg-type]
    assert third["baseline_run_id"] == first[0], "a noise-floor run is no baseline"


def test_a_variant_drifts(
    store: Store, brief_checkpoint: Path, variant: Path, suites: tuple[str, str]
) -> None:
    first = job.run(_spec(brief_checkpoint, *suites), Context(store))["runs"]  # type: ignore[arg-type]
    result = job.run(_spec(variant, *suites), Context(store))  # type: ignore[arg-type]
    assert result["baselines"] == []
    questions, drawings = (store.run(run_id) for run_id in result["runs"])
    assert (questions["name"], questions["checkpoint"]) == ("lance-tiny_int4-minmax-g64", "lance-tiny")
    assert [questions["baseline_run_id"], drawings["baseline_run_id"]] == first
    assert questions["recipe"] == "int4-minmax"
    assert 4.0 < questions["bits"] < 5.0
    assert 0 < questions["size_bytes"] < store.run(first[0])["size_bytes"]
    assert questions["kl"] > 1e-3
    assert questions["kl_p99"] <= questions["kl_max"]
    assert questions["top1_low"] <= questions["top1"] <= questions["top1_high"]
    row, theirs = store.outputs(questions["id"])[0], store.outputs(first[0])[0]
    assert len(row["kl_tokens"]) == len(theirs["tokens"])
    assert row["kl_max"] == pytest.approx(row["kl_tokens"][row["kl_argmax"]], abs=1e-6)
    assert drawings["psnr"] < PSNR_CEILING
    assert drawings["velocity"] > 1e-3
    assert drawings["velocity_se"] > 0
    compared = comparison.compare(store, first[0], questions["id"])
    assert compared.scores["kl"] == questions["kl"]
    assert compared.scores["levenshtein"] == pytest.approx(questions["levenshtein"])
    text = report.markdown(compared)
    assert all(row["text"] in text for row in store.outputs(questions["id"]))
    pictures = comparison.compare(store, first[1], drawings["id"])
    assert pictures.scores["psnr"] == pytest.approx(drawings["psnr"])
    assert json.loads(json.dumps(pictures.as_dict()))["samples"][0]["differs"] is True


def test_missing_baseline_is_run_first_and_said(store: Store, variant: Path, suites: tuple[str, str]) -> None:
    context = Context(store)
    result = job.run(_spec(variant, suites[0], limit=2), context)  # type: ignore[arg-type]
    assert len(result["baselines"]) == 1
    assert any("running lance-tiny_bf16 first" in line for line in context.lines)
    assert context.seen[-1][:2] == (4, 4)
    again = job.run(_spec(variant, suites[0], limit=2), Context(store))  # type: ignore[arg-type]
    assert again["baselines"] == []
    other = job.run(_spec(variant, suites[0], limit=1), Context(store))  # type: ignore[arg-type]
    assert len(other["baselines"]) == 1, "another subset of samples needs its own baseline"
    (store.data_dir / "runs" / str(result["baselines"][0]) / "likelihood.safetensors").unlink()
    with pytest.raises(UsageError, match="leave the baseline on auto"):
        job.run(_spec(variant, suites[0], limit=2, baseline=result["baselines"][0]), context)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="wanted a finished evaluation of a bf16 checkpoint"):
        job.run(_spec(variant, suites[0], limit=2, baseline=again["runs"][0]), context)  # type: ignore[arg-type]


def test_a_source_that_changed_since_is_refused(
    store: Store, brief_checkpoint: Path, variant: Path, suites: tuple[str, str], tmp_path: Path
) -> None:
    shutil.copytree(brief_checkpoint.parent, tmp_path / "moved")
    shutil.copytree(variant, tmp_path / "variant")
    own = tmp_path / "variant" / "lance_workbench.json"
    record = json.loads(own.read_text())
    own.write_text(json.dumps(record | {"source_path": str(tmp_path / "moved" / "Lance_Tiny")}))
    (tmp_path / "moved" / "Lance_Tiny" / "vocab2.json").write_text("{}")
    with pytest.raises(UsageError, match="has changed since lance-tiny_int4-minmax-g64 was made"):
        job.run(_spec(tmp_path / "variant", suites[0]), Context(store))  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"was made from .*which is gone"):
        job.run(_spec(tmp_path / "variant", suites[0]), Context(store))  # type: ignore[arg-type]
    store.register_checkpoint(name="lance-tiny", path=str(brief_checkpoint))
    assert job.run(_spec(tmp_path / "variant", suites[0], limit=1), Context(store))["runs"]  # type: ignore[arg-type]


def test_each_suite_may_have_a_limit_of_its_own(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    limits = {suites[0]: 2, suites[1]: 1}
    made = job.run(_spec(brief_checkpoint, *suites, limit=limits), Context(store))["runs"]  # type: ignore[arg-type]
    assert [store.run(run_id)["samples"] for run_id in made] == [2, 1]


def test_a_baseline_of_other_samples_is_refused(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    first = job.run(_spec(brief_checkpoint, suites[0], limit=1), Context(store))["runs"][0]  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"run 1 had suite .*cannot be compared"):
        job.run(_spec(brief_checkpoint, suites[0], baseline=first), Context(store))  # type: ignore[arg-type]
    assert store.count_runs() == 1


def test_a_damaged_baseline_file_is_named_and_nothing_is_recorded(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    first = job.run(_spec(brief_checkpoint, suites[0], limit=1), Context(store))["runs"][0]  # type: ignore[arg-type]
    file = store.data_dir / "runs" / str(first) / "likelihood.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"likelihood\.safetensors: cannot be read"):
        job.run(_spec(brief_checkpoint, suites[0], limit=1), Context(store))  # type: ignore[arg-type]
    assert store.count_runs() == 1


def test_cancelling_keeps_what_was_made(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str]
) -> None:
    with pytest.raises(Cancelled):
        job.run(_spec(brief_checkpoint, suites[0]), Context(store, stop_after=2))  # type: ignore[arg-type]
    run = store.run(1)
    assert run["state"] == "cancelled"
    assert len(store.outputs(1)) == 2


def test_outputs_that_are_no_numbers_stop_the_run(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Understanding.logits
    monkeypatch.setattr(Understanding, "logits", lambda *given: logits(*given) * float("nan"))
    with pytest.raises(CheckpointError, match="logits that are no numbers"):
        job.run(_spec(brief_checkpoint, suites[0]), Context(store))  # type: ignore[arg-type]
    assert store.run(1)["state"] == "failed"
    assert not (store.data_dir / "runs" / "1").exists()


def test_no_suite_lists_what_there_is(store: Store, brief_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="no suite given"):
        job.run(_spec(brief_checkpoint), Context(store))  # type: ignore[arg-type]


def test_an_unknown_resolution_is_told_before_loading(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_model", lambda *given: pytest.fail("loaded"))
    with pytest.raises(UsageError, match="image_1res: no such resolution; known are image_256res"):
        job.run(_spec(brief_checkpoint, suites[0], resolution="image_1res"), Context(store))  # type: ignore[arg-type]


def test_what_does_not_fit_is_told_before_loading(
    store: Store, brief_checkpoint: Path, suites: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_model", lambda *given: pytest.fail("loaded"))
    monkeypatch.setattr("core.runtime.memory.free_bytes", lambda device: 1_000_000)
    with pytest.raises(WorkbenchError, match=r"lance-tiny: this takes about .* of cpu in float32 \(weights"):
        job.run(_spec(brief_checkpoint, *suites), Context(store))  # type: ignore[arg-type]
    assert store.count_runs() == 0


def test_a_video_suite_wants_a_video_checkpoint(
    store: Store, brief_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "load_model", lambda *given: pytest.fail("loaded"))
    folder = tmp_path / "Lance_Image"
    shutil.copytree(brief_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {POSITION_TABLE: torch.zeros(4096, 1)}, folder / "model.safetensors")
    for name in ("demo-t2v", "demo-i2v", "demo-video-edit", "demo-x2t-video"):
        with pytest.raises(CheckpointError, match="Lance_Image: an image checkpoint"):
            job.run(_spec(folder, name), Context(store))  # type: ignore[arg-type]


def test_every_task_is_scored_against_bf16(
    store: Store, brief_checkpoint: Path, variant: Path, tmp_path: Path
) -> None:
    """The drawn suites, cut to one sample and one step, on a model that was trained for nothing."""
    names = []
    for name in ("demo-x2t-video", "demo-t2v", "demo-i2v", "demo-image-edit", "demo-video-edit"):
        content = json.loads((SUITES / f"{name}.json").read_text())
        content["settings"] |= {"num_steps": 1} if "x2t" not in name else {"max_new_tokens": 4}
        content["samples"] = content["samples"][:1]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        names.append(str(tmp_path / f"{name}.json"))
    result = job.run(_spec(variant, *names), Context(store))  # type: ignore[arg-type]
    runs = [store.run(run_id) for run_id in result["runs"]]
    assert [run["task"] for run in runs] == ["x2t_video", "t2v", "i2v", "image_edit", "video_edit"]
    assert runs[0]["kl"] > 0 and runs[0]["exact"] in (0.0, 1.0) and runs[0]["truth"] is None
    for run, baseline in zip(runs[1:], result["baselines"][1:], strict=True):
        assert run["velocity"] > 1e-3 and 0 < run["psnr"] < PSNR_CEILING, run["task"]
        compared = comparison.compare(store, baseline, run["id"])
        assert compared.scores["psnr"] == pytest.approx(run["psnr"])
        assert f"was not trained for {run['task']}" in report.markdown(compared)
    shown = {run["task"]: Image.open(io.BytesIO(store.media(store.outputs(run["id"])[0]["output_media"])))
             for run in runs[1:]}  # fmt: skip
    assert shown["t2v"].size == (5 * 96, 96), "five frames beside each other"
    assert shown["image_edit"].size == (256, 256)
    inputs = {run["task"]: store.outputs(run["id"])[0]["input_media"] for run in runs}
    assert [task for task, media in inputs.items() if media is None] == ["t2v"]


def test_lances_six_samples_are_evaluated_unchanged(
    store: Store, brief_checkpoint: Path, variant: Path, shared_lance: Path
) -> None:
    suite = str(shared_lance / "x2t_image" / "x2t_image_example.json")
    result = job.run(_spec(variant, suite), Context(store))  # type: ignore[arg-type]
    run = store.run(result["runs"][0])
    assert (run["suite"], run["samples"]) == ("x2t_image_example", 6)
    assert len(store.outputs(run["id"])) == 6
    assert run["kl"] > 0
