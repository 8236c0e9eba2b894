"""A variant as quantizing leaves it, a job that publishes it, and a Hub of this process that takes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, serving

from core.checkpoints import publish_job
from core.errors import Cancelled
from core.store import Store

REPO = "me/small"


class Publisher:
    """The context of a job that publishes; keeps what it is told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.job_id = None
        self.data_dir = store.data_dir
        self.lines: list[str] = []
        self.messages: list[str] = []
        self.flushed: list[str] = []
        self.stop_at = ""

    def publish(self, source: Path | str, **options: Any) -> dict[str, Any]:
        """What the job does with that spec."""
        context: Any = self
        return publish_job.run({"checkpoint": str(source), "repo": REPO, **options}, context)

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, done: float, total: float | None, unit: str = "", message: str = "") -> None:
        self.messages.append(message)
        if self.stop_at and self.stop_at in message:
            raise Cancelled("job 1: cancelled")

    def flush(self) -> None:
        self.flushed.append(self.messages[-1])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving(monkeypatch) as made:
        yield made


@pytest.fixture(scope="session")
def made_variant(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant as quantizing leaves it."""
    from core.quantization import job as quantize  # torch: not for tests that need none

    with Store.open(tmp_path_factory.mktemp("made") / "runs.db") as store:
        context: Any = Publisher(store)
        spec = {"checkpoint": str(tiny_checkpoint), "recipe": "int4-minmax", "group": 32, "device": "cpu"}
        return Path(quantize.run(spec, context)["path"])


@pytest.fixture
def variant(made_variant: Path, tmp_path: Path) -> Path:
    """A variant in a folder of its own."""
    return shutil.copytree(made_variant, tmp_path / "mine")


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    with Store.open(tmp_path / "runs.db") as store:
        yield Publisher(store)
