"""A queue of the test's own kinds of job, cleaned of every process when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from job_queue import Queue


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    monkeypatch.setenv("LANCE_WORKBENCH_HANDLERS", "sample_handlers")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    queue = Queue(tmp_path / "runs.db")
    yield queue
    queue.close()
