"""The queue without any process: claims, compare-and-swap, dependencies, retries, places."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from job_queue import Queue

from core import jobs
from core.errors import UsageError
from core.jobs import kinds, supervisor, table
from core.jobs.slots import Slot, slots
from core.store.clock import now

CLAIMER = """
import json, sys
from core.jobs import table
from core.store import Store
store, mine = Store.open(sys.argv[1]), []
while (row := table.claim(store, "slot", ["auto"])) or table.unfinished(store):
    if row:
        mine.append(row["id"])
        assert table.transition(store, row["id"], "succeeded", since=("starting",), attempt=1)
print(json.dumps(mine))
"""


def _claim(queue: Queue) -> dict | None:
    return table.claim(queue.store, "cpu", ["auto", "cpu"])


def test_many_claimers_get_every_job_exactly_once(queue: Queue) -> None:
    submitted = [queue.submit("nap") for _ in range(60)]
    root = Path(__file__).parents[3]
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(queue.store.path)], cwd=root, stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    claimed = [json.loads(claimer.communicate()[0]) for claimer in claimers]
    assert sorted(job_id for mine in claimed for job_id in mine) == submitted
    states = [event["to_state"] for event in jobs.events(queue.store, submitted[0])]
    assert states == ["queued", "starting", "succeeded"]


def test_one_job_at_a_time_on_a_slot_and_the_urgent_one_first(queue: Queue) -> None:
    first, second = queue.submit("nap"), queue.submit("nap")
    urgent = jobs.submit(queue.store, "nap", {}, priority=1)
    elsewhere = jobs.submit(queue.store, "nap", {"device": "cuda:0"})
    claimed = _claim(queue)
    assert claimed is not None and claimed["id"] == urgent and claimed["attempt"] == 1
    assert _claim(queue) is None
    assert table.claim(queue.store, "GPU-1", ["cuda:0"])["id"] == elsewhere  # type: ignore[index]
    table.transition(queue.store, urgent, "succeeded", since=("starting",))
    assert _claim(queue)["id"] == first  # type: ignore[index]
    assert queue.job(second)["state"] == "queued"


def test_only_one_of_two_changes_wins(queue: Queue) -> None:
    job_id = queue.submit("nap")
    _claim(queue)
    assert table.transition(queue.store, job_id, "running", since=("starting",), attempt=1)
    assert not table.transition(queue.store, job_id, "lost", since=("starting",))
    assert not table.transition(queue.store, job_id, "failed", since=("running",), attempt=2)
    assert queue.job(job_id)["state"] == "running"


@pytest.mark.parametrize("end", ["failed", "lost", "cancelled"])
def test_what_needs_a_job_that_did_not_succeed_is_cancelled_with_a_reason(queue: Queue, end: str) -> None:
    first = queue.submit("nap")
    second = jobs.submit(queue.store, "nap", {}, depends_on=first)
    third = jobs.submit(queue.store, "nap", {}, depends_on=[second, first])
    free = queue.submit("nap")
    _claim(queue)
    table.transition(queue.store, first, end, since=("starting",))
    assert [queue.job(i)["state"] for i in (second, third, free)] == ["cancelled", "cancelled", "queued"]
    assert queue.job(second)["message"] == f"needs job {first}, which {'was ' * (end != 'failed')}{end}"
    late = jobs.submit(queue.store, "nap", {}, depends_on=second)
    assert queue.job(late)["state"] == "cancelled"

    with pytest.raises(UsageError, match=f"retry job {first} first"):
        jobs.retry(queue.store, second)
    jobs.retry(queue.store, first)
    assert {queue.job(i)["state"] for i in (first, second, third, late)} == {"queued"}
    assert queue.job(second)["message"] is None
    assert _claim(queue)["attempt"] == 2  # type: ignore[index]


def test_a_job_waits_for_all_it_needs(queue: Queue) -> None:
    one, two = queue.submit("nap"), queue.submit("nap")
    both = jobs.submit(queue.store, "nap", {}, depends_on=[one, two])
    assert queue.job(both)["depends_on"] == [one, two]
    for expected in (one, two, both):
        assert _claim(queue)["id"] == expected  # type: ignore[index]
        table.transition(queue.store, expected, "succeeded", since=("starting",))


def test_a_job_that_ends_closes_its_open_runs(queue: Queue) -> None:
    job_id = queue.submit("nap")
    _claim(queue)
    done = queue.store.start_run(checkpoint="x", job_id=job_id)
    queue.store.finish_run(done)
    left_open = queue.store.start_run(checkpoint="x", job_id=job_id)
    other = queue.store.start_run(checkpoint="x")
    table.transition(queue.store, job_id, "lost", since=("starting",))
    assert [queue.store.run(i)["state"] for i in (done, left_open, other)] == ["succeeded", "lost", "running"]


def test_mistakes_are_named(queue: Queue) -> None:
    with pytest.raises(
        UsageError, match="'paint': unknown; known are calibrate, quantize, sensitivity, evaluate, bench"
    ):
        queue.submit("paint")
    with pytest.raises(UsageError, match="job 9: not in"):
        jobs.submit(queue.store, "nap", {}, depends_on=9)
    job_id = queue.submit("nap")
    with pytest.raises(UsageError, match="queued; only"):
        jobs.retry(queue.store, job_id)
    assert jobs.cancel(queue.store, job_id) == "cancelled"
    with pytest.raises(UsageError, match="already cancelled"):
        jobs.cancel(queue.store, job_id)


def test_time_left_follows_from_progress(queue: Queue) -> None:
    job_id = queue.submit("nap")
    _claim(queue)
    table.transition(
        queue.store, job_id, "running", since=("starting",),
        started_at=now(-10), progress_done=20, progress_total=60, progress_at=now(),
    )  # fmt: skip
    row = queue.job(job_id)
    assert jobs.rate(row) == pytest.approx(2.0, rel=0.1)
    assert jobs.seconds_left(row) == pytest.approx(20.0, rel=0.1)


def test_jobs_go_where_they_ask_to(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu, alone = Slot("GPU-a", 1), Slot("cpu"), Slot("cpu", alone=True)
    devices = ("auto", "cpu", "cuda", "cuda:1", "cuda:0", "mps")
    assert [device for device in devices if gpu.accepts(device)] == ["auto", "cuda", "cuda:1"]
    assert [device for device in devices if cpu.accepts(device)] == ["cpu"]
    assert all(alone.accepts(device) for device in devices)
    assert gpu.environment() == {"CUDA_VISIBLE_DEVICES": "GPU-a"}

    two = [{"index": "0", "uuid": "GPU-a"}, {"index": "1", "uuid": "GPU-b"}]
    monkeypatch.setattr("core.store.manifest.gpus", lambda: two)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [slot.name for slot in slots()] == ["GPU-a", "GPU-b", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot.name for slot in slots()] == ["GPU-b", "cpu"]


def test_a_device_that_is_not_there_fails_at_once(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "slots", lambda: [Slot("GPU-a", 0), Slot("cpu")])
    job_id = jobs.submit(queue.store, "nap", {"device": "cuda:7"})
    supervisor.Supervisor(queue.store).step()
    row = queue.job(job_id)
    assert (row["state"], row["message"]) == (
        "failed",
        "device cuda:7: not on this machine, which has cuda:0, cpu",
    )


def test_a_job_in_words() -> None:
    spec = {"checkpoint": "lance-demo", "recipe": "int4-awq", "group": 64}
    assert kinds.what("quantize", spec) == "lance-demo · int4-awq · g64"
    assert kinds.what("evaluate", {"checkpoint": "v", "suites": ["a", "b"]}) == "v · a b"
    assert kinds.what("export", {"checkpoint": "v", "format": "mlx", "output": None}) == "v · mlx"
