"""Fetching: what is chosen, what is checked before the first byte, and one line for every way it can fail.

The Hub is a folder on disk; there is no network.
"""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from core.checkpoints.fetch import Listing, RemoteFile, choose, fetch
from core.errors import CheckpointError, RetryLater, UsageError, WorkbenchError

REVISION = "4" * 40
MODEL_FILES = ("model.safetensors", "llm_config.json", "vocab.json", "merges.txt", "tokenizer_config.json")
NAMES = [
    ".gitattributes", "README.md", "config.json", "Wan2.2_VAE.pth",
    "Qwen2.5-VL-ViT/config.json", "Qwen2.5-VL-ViT/vit.safetensors",
    *(f"Lance_3B/{name}" for name in MODEL_FILES), *(f"Lance_3B_Video/{name}" for name in MODEL_FILES),
]  # fmt: skip
COMPANIONS = {"Wan2.2_VAE.pth", "Qwen2.5-VL-ViT/config.json", "Qwen2.5-VL-ViT/vit.safetensors"}


class Hub:
    """Stands in for huggingface_hub: serves a folder, counts what it copies."""

    def __init__(self, root: Path) -> None:
        self.remote, self.cache = root / "remote", root / "cache"
        for name in NAMES:
            (self.remote / name).parent.mkdir(parents=True, exist_ok=True)
            (self.remote / name).write_text(f"content of {name}")
        self.copied: list[str] = []
        self.failure: Exception | None = None
        self.cut: str | None = None

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> Any:
        if self.failure:
            raise self.failure
        siblings = [
            SimpleNamespace(rfilename=name, size=(self.remote / name).stat().st_size, lfs=None)
            for name in NAMES
        ]
        return SimpleNamespace(sha=REVISION, siblings=siblings)

    def snapshot(self) -> Path:
        return self.cache / "snapshots" / REVISION

    def download(
        self,
        repo: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        local_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> str:
        place = local_dir or self.snapshot()
        if local_files_only:
            if not place.is_dir():
                raise errors.LocalEntryNotFoundError("nothing cached")
            return str(place)
        assert revision == REVISION
        for name in NAMES:
            if any(fnmatch.fnmatch(name, wanted) for wanted in allow_patterns or ["*"]):
                if (place / name).is_file():
                    continue
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.remote / name, place / name)
                self.copied.append(name)
        if self.cut:
            (place / self.cut).write_text("cut")
        return str(place)

    def cached(self, repo: str, name: str, revision: str) -> str | None:
        path = self.snapshot() / name
        return str(path) if path.is_file() else None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", made.cached)
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
    listing = Listing("someone/else", REVISION, {"config.json": RemoteFile(3, None)})
    with pytest.raises(UsageError, match=r"someone/else: holds no Lance checkpoint: no llm_config\.json"):
        choose(listing)


def test_a_repository_that_is_one_checkpoint_needs_no_name() -> None:
    names = ["model.safetensors", "llm_config.json", "vocab.json", ".gitattributes", "README.md"]
    model, chosen = choose(Listing("me/variant", REVISION, {name: RemoteFile(1, None) for name in names}))
    assert model == "."
    assert chosen == ["README.md", "llm_config.json", "model.safetensors", "vocab.json"]


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
