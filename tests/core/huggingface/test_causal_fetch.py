"""A causal LM from the Hub: fetched, registered, verified against what the Hub said, found again offline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_decoders
from fake_hub import REVISION, Hub
from huggingface_hub import constants

from workbench.cli.main import run_command

REPO = "owner/Small-LM"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(["--db", str(tmp_path / "runs.db"), "checkpoints", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    # transformers looks at huggingface_hub when it is imported: that comes first.
    tiny_decoders.write(tmp_path / "hub" / "remote", "qwen2", shards="60KB")
    made = Hub(tmp_path / "hub", monkeypatch)
    made.add("README.md", "pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors")
    return made


def test_a_causal_lm_is_fetched_and_verified(run: Run, hub: Hub, tmp_path: Path) -> None:
    out_folder = tmp_path / "small"
    code, out, err = run("fetch", REPO, "--dry-run", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert (
        planned["model"] == "." and planned["missing_bytes"] == planned["size_bytes"] > 0 and not hub.copied
    )
    code, out, err = run("fetch", REPO, "--out", out_folder, "--json")
    assert code == 0, err
    fields = json.loads(out)
    assert (fields["name"], fields["family"], fields["revision"]) == ("small", "huggingface", REVISION)
    assert "2 layers, one expert" in fields["structure"] and fields["missing"] == []
    assert set(hub.copied) == set(planned["files"])
    assert not {"README.md", "pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors"} & set(
        hub.copied
    )
    record = json.loads((out_folder / "fetched.json").read_text())
    shards = [name for name in record["files"] if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    assert len(shards) > 1 and all(len(record["files"][name]["sha256"]) == 64 for name in shards)
    assert run("verify", "small")[0] == 0
    # One bit of a weight: the same size, the same shapes, and not what the Hub has.
    damaged = out_folder / shards[0]
    content = bytearray(damaged.read_bytes())
    content[-4] ^= 1
    damaged.write_bytes(content)
    code, out, err = run("verify", "small")
    assert code == 1 and "as it was fetched" in out + err and shards[0] in out + err


def test_a_broken_fetch_goes_on_and_the_cache_serves_offline(
    run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fetch", REPO)[0] == 0
    first = hub.copied.copy()
    lost = next(name for name in first if name.endswith(".safetensors"))
    (hub.snapshot() / lost).unlink()
    hub.copied.clear()
    code, out, _ = run("fetch", REPO, "--json")
    assert code == 0 and hub.copied == [lost]
    fields = json.loads(out)
    # In the cache a folder is called by its commit: the checkpoint has the repository's name.
    assert fields["name"] == "Small-LM" and fields["fetched_bytes"] == (hub.remote / lost).stat().st_size
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.failure = AssertionError("asked the network")
    code, out, err = run("fetch", REPO, "--json")
    assert code == 0, err
    assert (json.loads(out)["revision"], json.loads(out)["fetched_bytes"]) == (REVISION, 0)


def test_a_decoder_that_cannot_be_quantized_is_not_registered(run: Run, hub: Hub) -> None:
    config = json.loads((hub.remote / "config.json").read_text())
    (hub.remote / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    code, out, err = run("fetch", REPO)
    assert (code, out) == (1, "") and "2 layers model.layers.N are in the files, wanted 3" in err
    assert "Small-LM" not in run("list")[1]
    code, out, _ = run("fetch", REPO, "--allow", "*.json")
    assert code == 0 and "not registered" in out
