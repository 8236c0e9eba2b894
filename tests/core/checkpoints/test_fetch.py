"""Fetching: what is chosen, what is checked before the first byte, and one line for every way it can fail.

The Hub is a folder on disk; there is no network.
"""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import REVISION, Hub
from huggingface_hub import constants, errors

from core.checkpoints.fetch import fetch
from core.checkpoints.listing import Listing, RemoteFile, choose
from core.errors import CheckpointError, RetryLater, UsageError, WorkbenchError

MODEL_FILES = ("model.safetensors", "llm_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
NAMES = [
    ".gitattributes", "README.md", "config.json", "Wan2.2_VAE.pth",
    "Qwen2.5-VL-ViT/config.json", "Qwen2.5-VL-ViT/vit.safetensors",
    *(f"Lance_3B/{name}" for name in MODEL_FILES), *(f"Lance_3B_Video/{name}" for name in MODEL_FILES),
]  # fmt: skip
COMPANIONS = {"Wan2.2_VAE.pth", "Qwen2.5-VL-ViT/config.json", "Qwen2.5-VL-ViT/vit.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub", monkeypatch)
    made.add(*NAMES)
    return made


def test_a_model_comes_with_its_companions_and_without_its_sister(hub: Hub) -> None:
    got = fetch(model="Lance_3B")
    assert set(hub.copied) == {f"Lance_3B/{name}" for name in MODEL_FILES} | COMPANIONS
    assert got.folder == hub.snapshot() / "Lance_3B" and got.revision == REVISION
    assert got.loaded == got.nbytes == sum((hub.remote / name).stat().st_size for name in hub.copied)


def test_what_is_there_is_not_loaded_again(hub: Hub) -> None:
    fetch(model="Lance_3B")
    (hub.snapshot() / "Wan2.2_VAE.pth").unlink()
    hub.copied.clear()
    again = fetch(model="Lance_3B")
    assert hub.copied == ["Wan2.2_VAE.pth"]
    assert again.loaded == (hub.remote / "Wan2.2_VAE.pth").stat().st_size < again.nbytes


def test_a_folder_of_ones_own_says_where_it_came_from(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "downloads"
    got = fetch(model="Lance_3B_Video", out=out)
    assert got.folder == out / "Lance_3B_Video" and not hub.snapshot().exists()
    record = json.loads((out / "fetched.json").read_text())
    assert (record["repo"], record["revision"]) == ("bytedance-research/Lance", REVISION)
    assert set(record["files"]) == set(hub.copied)
    assert fetch(model="Lance_3B_Video", out=out).loaded == 0


def test_patterns_narrow_the_choice(hub: Hub) -> None:
    fetch(model="Lance_3B", patterns=["Lance_3B/*.json", "*.pth"])
    assert set(hub.copied) == {
        "Lance_3B/llm_config.json", "Lance_3B/vocab.json", "Lance_3B/tokenizer_config.json", "Wan2.2_VAE.pth"
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"no file matches \*\.gguf"):
        fetch(model="Lance_3B", patterns=["*.gguf"])


def test_the_model_must_be_clear(hub: Hub) -> None:
    with pytest.raises(UsageError, match="holds Lance_3B, Lance_3B_Video; name one with --model"):
        fetch()
    with pytest.raises(UsageError, match="holds no checkpoint Lance_7B; known are Lance_3B, Lance_3B_Video"):
        fetch(model="Lance_7B")
    assert hub.copied == []
    listing = Listing("someone/else", REVISION, {"readme.md": RemoteFile(3, None)})
    with pytest.raises(
        UsageError, match=r"holds no checkpoint: neither llm_config\.json \(a Lance\) nor config"
    ):
        choose(listing)


def test_a_repository_that_is_one_checkpoint_needs_no_name() -> None:
    names = ["model.safetensors", "llm_config.json", "vocab.json", ".gitattributes", "README.md"]
    model, chosen = choose(Listing("me/variant", REVISION, {name: RemoteFile(1, None) for name in names}))
    assert model == "."
    assert chosen == ["README.md", "llm_config.json", "model.safetensors", "vocab.json"]


LM = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
]
NOISE = [
    "README.md",
    "LICENSE",
    ".gitattributes",
    "pytorch_model.bin",
    "onnx/model.onnx",
    "original/params.json",
]


@pytest.mark.parametrize(
    ("weights", "other"),
    [
        (["model.safetensors"], ["consolidated.safetensors", "model.fp16.safetensors"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            ["consolidated.safetensors", "model.safetensors", "old/model-00001-of-00002.safetensors"],
        ),
        (["lm-a.safetensors", "lm-b.safetensors", "model.safetensors.index.json"], ["old/lm-a.safetensors"]),
    ],
)
def test_of_a_causal_lm_only_what_it_needs(weights: list[str], other: list[str]) -> None:
    names = [*LM, *NOISE, *weights, *other]
    listing = Listing("Qwen/Qwen2.5", REVISION, {name: RemoteFile(1, None) for name in names})
    assert choose(listing) == (".", sorted([*LM, *weights]))


def test_a_causal_lm_without_safetensors_or_in_a_folder() -> None:
    files = {name: RemoteFile(1, None) for name in ("config.json", "pytorch_model.bin", "tokenizer.json")}
    with pytest.raises(
        UsageError, match=r"me/old: holds config\.json but no weights in safetensors beside it"
    ):
        choose(Listing("me/old", REVISION, files))
    below = [f"{size}/{name}" for size in ("large", "small") for name in ("config.json", "model.safetensors")]
    listing = Listing("me/two", REVISION, {name: RemoteFile(1, None) for name in below})
    with pytest.raises(UsageError, match="holds large, small; name one with --model"):
        choose(listing)
    assert choose(listing, "small") == ("small", ["small/config.json", "small/model.safetensors"])


def test_room_is_checked_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("core.files.shutil.disk_usage", lambda place: usage(10, 10, 100))
    with pytest.raises(WorkbenchError, match=r"0\.0 GB needed, 0\.0 GB free; free some space"):
        fetch(model="Lance_3B")
    assert hub.copied == []


def test_a_file_that_arrived_short_is_named(hub: Hub) -> None:
    hub.cut = "Lance_3B/model.safetensors"
    with pytest.raises(
        CheckpointError, match=r"Lance_3B/model\.safetensors: 3 bytes arrived, wanted \d+; fetch"
    ):
        fetch(model="Lance_3B")


def test_offline_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    online = fetch(model="Lance_3B")
    fetch(model="Lance_3B", out=tmp_path / "own")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.failure = AssertionError("asked the network")
    offline = fetch(model="Lance_3B")
    assert (offline.folder, offline.revision, offline.loaded) == (online.folder, REVISION, 0)
    # Only one of the two models was fetched, so it need not be named.
    assert fetch().folder == online.folder
    assert fetch(out=tmp_path / "own").revision == REVISION
    with pytest.raises(RetryLater, match="nothing was fetched there yet"):
        fetch(out=tmp_path / "nowhere")
    shutil.rmtree(hub.cache)
    with pytest.raises(RetryLater, match="not in the cache, and the Hub cannot be reached"):
        fetch(model="Lance_3B")


def answered(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "refused\nby the server")
    error.response = SimpleNamespace(status_code=status)
    return error


class HTTPTimeoutError(Exception):
    """Stands in for an error of the HTTP client."""

    __module__ = "httpx"


FAILURES: list[tuple[Callable[[], Exception], type[WorkbenchError], str]] = [
    (
        lambda: answered(errors.RepositoryNotFoundError, 404),
        UsageError,
        "no such repository, or it is private",
    ),
    (lambda: answered(errors.GatedRepoError, 403), UsageError, "access must be granted first"),
    (lambda: answered(errors.RevisionNotFoundError, 404), UsageError, "no such revision"),
    (lambda: answered(errors.HfHubHTTPError, 503), RetryLater, "the Hub answered 503; try again later"),
    (lambda: errors.HFValidationError("bad"), UsageError, "no name of a repository"),
    (lambda: errors.OfflineModeIsEnabled("offline"), RetryLater, "the Hub cannot be reached"),
    (
        lambda: HTTPTimeoutError("slow"),
        RetryLater,
        r"the Hub cannot be reached \(HTTPTimeoutError\); try again",
    ),
    (lambda: ConnectionResetError(104, "Connection reset by peer"), RetryLater, "Connection reset by peer"),
    (lambda: OSError(28, "No space left on device"), WorkbenchError, "no space left on the device"),
]


@pytest.mark.parametrize(("make", "kind", "message"), FAILURES, ids=[message for _, _, message in FAILURES])
def test_failures_are_one_line(
    make: Callable[[], Exception], kind: type[WorkbenchError], message: str, hub: Hub
) -> None:
    hub.failure = make()
    with pytest.raises(kind, match=rf"^bytedance-research/Lance: .*{message}") as error:
        fetch(model="Lance_3B")
    assert "\n" not in str(error.value)


def test_a_fault_of_our_own_is_not_called_a_network_error(hub: Hub) -> None:
    hub.failure = KeyError("bug")
    with pytest.raises(KeyError):
        fetch(model="Lance_3B")
