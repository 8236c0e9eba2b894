"""A Hub that is a folder on disk; there is no network."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from core.files import sha256_file

REVISION = "4" * 40


class Hub:
    """Stands in for huggingface_hub: serves one repository, the folder ``remote``, and counts what it copies."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.remote, self.cache = root / "remote", root / "models--owner--Small-LM"
        self.copied: list[str] = []
        self.failure: Exception | None = None
        self.cut: str | None = None
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.cached)

    @property
    def names(self) -> list[str]:
        """All files of the repository."""
        files = (path for path in self.remote.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.remote).as_posix() for path in files)

    def add(self, *names: str) -> None:
        """Put files of some content into the repository."""
        for name in names:
            (self.remote / name).parent.mkdir(parents=True, exist_ok=True)
            (self.remote / name).write_text(f"content of {name}")

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> Any:
        if self.failure:
            raise self.failure
        siblings = []
        for name in self.names:
            path = self.remote / name
            large = SimpleNamespace(sha256=sha256_file(path)) if path.suffix == ".safetensors" else None
            siblings.append(SimpleNamespace(rfilename=name, size=path.stat().st_size, lfs=large))
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
        for name in self.names:
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
