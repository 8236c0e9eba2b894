"""The shipped copy of a database keeps what was measured and nothing of the machine it was measured on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from core import jobs
from core.demo.reference import publish
from core.errors import StoreError
from core.store import Store, manifest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    with Store.open(path) as store:
        job = jobs.submit(store, "evaluate", {"checkpoint": str(tmp_path / "private")})
        store.execute("UPDATE jobs SET state = 'succeeded' WHERE id = ?", (job,))
        fields = manifest.collect(device="cpu", kernel_path="torch", seeds={"noise": 1})
        run = store.start_run(
            kind="evaluate",
            checkpoint="lance-demo",
            recipe="bf16",
            suite="demo-x2t",
            job_id=job,
            manifest=fields,
        )
        store.add_output(run, 0, sample_key="000", text="The ring is red.")
        store.set_scores(run, truth=0.5)
        store.finish_run(run, "succeeded", 1.0)
        store.register_checkpoint(name="v", path=str(tmp_path / "private"), kind="variant")
    return path


def test_copy_keeps_results_and_forgets_the_machine(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "runs.db"
    assert publish(source, target) == 1
    content = target.read_bytes()
    for private in (str(tmp_path), os.getcwd(), socket.gethostname() + '"'):  # noqa: PTH109 - as text
        assert private.encode() not in content
    assert [path.name for path in target.parent.iterdir()] == ["runs.db"]
    with Store.open(target, create=False, readonly=True) as store:
        row = store.run(1)
        assert (
            row["truth"] == 0.5 and row["manifest"]["versions"] and row["manifest"]["seeds"] == {"noise": 1}
        )
        assert store.output(1, 0)["text"] == "The ring is red."
        assert store.integrity_errors() == []
    with Store.open(source, create=False, readonly=True) as store:
        assert jobs.job(store, 1)["state"] == "succeeded", "the source stays as it was"


def test_running_jobs_are_waited_for(source: Path, tmp_path: Path) -> None:
    with Store.open(source) as store:
        store.execute("UPDATE jobs SET state = 'running'")
    with pytest.raises(StoreError, match="wait for them"):
        publish(source, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
