"""Calibrating causal LMs on texts and evaluating them and their variants on others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.calibration import job as calibrate
from core.calibration import prose, texts
from core.calibration.record import STATISTICS_FILE, load_record
from core.calibration.statistics import StatisticsFile
from core.checkpoints.describe import OWN_FILE
from core.errors import DataError, UsageError
from core.evaluation import job as evaluation
from core.evaluation.prose import documents_of
from core.huggingface.loading import load_causal_lm

DOCUMENTS = ["It was a dark night, and the rain fell.", "The cat sat on the mat; the dog did not."]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps({'text': DOCUMENTS[0], 'id': 3})}\n{json.dumps(DOCUMENTS[1])}\n\n")
    return path


def test_a_variant_is_scored_against_the_checkpoint_it_was_made_from(hf_world: Any, lines: Path) -> None:
    done = hf_world.variant("qwen2", hf_world.recipes["all"])
    spec = {"checkpoint": done["variant"], "suites": [f"text:{lines}"], "device": "cpu", "dtype": "float32"}
    found = evaluation.run(spec, hf_world.context)
    store = hf_world.context.store
    (run,), (plain,) = ([store.run(number) for number in found[key]] for key in ("runs", "baselines"))
    assert (plain["checkpoint"], plain["recipe"], plain["task"]) == ("qwen2", "bf16", "perplexity")
    assert run["baseline_run_id"] == plain["id"] and run["variant"] == done["variant"]
    assert 0 < run["kl"] < 0.05 and 0.5 < run["top1"] <= 1 and abs(run["nll"] - plain["nll"]) < 0.1
    assert run["manifest"]["enforcement"]["swapped"] == 14
    assert [row["text"] for row in store.outputs(run["id"])] == DOCUMENTS
    exact = {"checkpoint": str(hf_world.folder("qwen2")), "baseline": plain["id"]}
    again = store.run(evaluation.run(spec | exact, hf_world.context)["runs"][0])
    assert again["kl"] == pytest.approx(0, abs=1e-9) and again["top1"] == 1


def test_a_quantized_model_of_unknown_origin_is_scored_by_itself(
    hf_world: Any, lines: Path, tmp_path: Path
) -> None:
    done = hf_world.variant("qwen2", hf_world.recipes["all"])
    foreign = shutil.copytree(done["path"], tmp_path / "foreign")
    (foreign / OWN_FILE).unlink()
    spec = {"suites": [f"text:{lines}"], "device": "cpu", "dtype": "float32"}
    refused = r"foreign: does not say which checkpoint it was made from.*--baseline none"
    with pytest.raises(UsageError, match=refused):
        evaluation.run(spec | {"checkpoint": str(foreign)}, hf_world.context)
    store, figures = hf_world.context.store, []
    for checkpoint in (str(foreign), done["variant"]):
        found = evaluation.run(spec | {"checkpoint": checkpoint, "baseline": None}, hf_world.context)
        assert not found["baselines"]
        figures.append(store.run(found["runs"][0]))
    assert [run["variant"] for run in figures] == ["foreign", done["variant"]]
    assert figures[0]["kl"] is None and figures[0]["nll"] == figures[1]["nll"]


def test_what_only_a_lance_does_is_refused(hf_world: Any) -> None:
    folder = str(hf_world.folder("llama"))
    with pytest.raises(UsageError, match=r"llama: is no Lance and is evaluated on running text"):
        evaluation.run({"checkpoint": folder, "suites": ["demo-t2i"], "device": "cpu"}, hf_world.context)
    with pytest.raises(UsageError, match=r"llama: is no Lance and is calibrated on text, not on t2i"):
        calibrate.run({"checkpoint": folder, "tasks": ["t2i"], "device": "cpu"}, hf_world.context)


def test_statistics_are_those_of_what_the_linears_read(hf_world: Any, lines: Path) -> None:
    spec = {"checkpoint": str(hf_world.folder("llama")), "suite": str(lines), "device": "cpu"}
    done = calibrate.run(spec | {"dtype": "float32", "name": "two"}, hf_world.context)
    model = load_causal_lm(hf_world.folder("llama"), "cpu", torch.float32)
    encoded = [model.encode(document)[0] for document in DOCUMENTS]
    rows = sum(map(len, encoded))
    record = load_record(Path(done["path"]))
    assert set(record.tokens) == set(model.structure.target_linears())
    assert all(counts == {"text/text": rows} for counts in record.tokens.values())
    assert done["tokens"] == rows and len(record.samples) == 2
    seen: list[torch.Tensor] = []
    linear = model.model.get_submodule("model.layers.1.mlp.down_proj")
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        for tokens in encoded:
            model.model(torch.tensor([tokens]))
    moments = StatisticsFile(Path(done["path"]) / STATISTICS_FILE).moments("layers.1.und.down", "text/text")
    assert moments.count == rows
    assert torch.allclose(moments.sum_sq, torch.cat(seen).double().square().sum(0), rtol=1e-5)


def test_sequences_fit_the_model_and_begin_as_the_tokenizer_begins(hf_world: Any) -> None:
    model = load_causal_lm(hf_world.folder("llama"), "cpu", torch.float32)
    documents = documents_of(prose.SHIPPED)
    assert len(documents) == 5
    chosen = texts.pieces(model, documents[:1], 6, seed=1)
    assert len(chosen) == 6 and all(piece.tokens[0] == 0 for piece in chosen)
    assert max(len(piece.tokens) for piece in chosen) == model.positions == 256
    assert texts.fingerprint(chosen) == texts.fingerprint(texts.pieces(model, documents[:1], 6, seed=1))
    assert texts.fingerprint(chosen) != texts.fingerprint(texts.pieces(model, documents[:1], 6, seed=2))


def test_files_that_hold_no_texts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for content, wanted in (
        ('"fine"\n{"words": 3}\n', r"bad\.jsonl: line 2 is no text"),
        ('"fine"\nnot json\n', r"bad\.jsonl: line 2 is no JSON"),
        ("\n", r"bad\.jsonl: holds no words"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=wanted):
            documents_of(path)


def test_describing_a_causal_lm_imports_neither_torch_nor_transformers(hf_world: Any) -> None:
    code = (
        "import sys; from pathlib import Path; from core.checkpoints import describe; "
        "from core.checkpoints.layout import structure_of, words; place = Path(sys.argv[1]); "
        "print(describe(place).family, words(structure_of(place))); "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(hf_world.folder("qwen3"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "huggingface 2 layers, one expert; no biases; head norms"
