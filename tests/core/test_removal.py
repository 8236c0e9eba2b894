"""Removing variants and calibrations: whole or not at all, not while a job needs them, and never anything else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import jobs, removal
from core.errors import RetryLater, UsageError, WorkbenchError
from core.jobs.processes import take_lock
from core.jobs.table import transition
from core.store import Store, export
from core.store.columns import COLUMNS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "runs.db") as store:
        for kind, folder, files in (
            ("variant", "variants", ("recipe.toml", "model.safetensors")),
            ("calibration", "calibrations", ("calibration.json", "statistics.safetensors")),
        ):
            for name in (f"{kind}-a", f"{kind}-b"):
                place = store.data_dir / folder / name
                place.mkdir(parents=True)
                for file in files:
                    (place / file).write_text("0123456789")
                if kind == "variant":
                    store.register_checkpoint(name=name, path=str(place), kind=kind, parent="demo")
                else:
                    store.register_calibration(name=name, path=str(place), checkpoint="demo")
        run = store.start_run(
            checkpoint="demo", variant="variant-a", suite="demo-x2t", manifest={"seeds": {}}
        )
        store.add_output(run, 0, sample_key="s", text="41 %")
        store.finish_run(run)
        yield store


def take(store: Store, kind: removal.Kind, name: str) -> None:
    removal.remove(store, removal.find(store, kind, name))


def test_what_is_removed_is_gone_and_what_was_measured_stays(store: Store) -> None:
    assert removal.find(store, "variant", "variant-a").size_bytes == 20
    take(store, "variant", "variant-a")
    take(store, "calibration", "calibration-a")
    assert [row["name"] for row in store.checkpoints()] == ["variant-b"]
    assert [row["name"] for row in store.calibrations()] == ["calibration-b"]
    assert [path.name for path in (store.data_dir / "variants").iterdir()] == ["variant-b"]
    assert [path.name for path in (store.data_dir / "calibrations").iterdir()] == ["calibration-b"]
    assert store.run(1)["name"] == "variant-a" and store.outputs(1)[0]["text"] == "41 %"
    assert "variant-a" in export.table(store.runs(), list(COLUMNS), "markdown", {})
    with pytest.raises(UsageError, match="variant-a: no variant of that name; `variants list` shows them"):
        take(store, "variant", "variant-a")


@pytest.mark.parametrize(
    ("kind", "name", "job", "spec"),
    [
        ("variant", "variant-a", "evaluate", {"checkpoint": "variant-a"}),
        ("variant", "variant-a", "evaluate", {"checkpoint": "runs.data/variants/variant-a"}),
        ("variant", "variant-a", "bench", {"checkpoints": ["variant-b", "variant-a"]}),
        ("calibration", "calibration-a", "quantize", {"checkpoint": "demo", "calibration": "calibration-a"}),
    ],
)
def test_a_job_that_has_not_ended_keeps_what_it_uses(
    store: Store, kind: Any, name: str, job: str, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    number = jobs.submit(store, job, spec)
    with pytest.raises(RetryLater, match=f"{name}: job {number} .* uses it; .*`jobs cancel {number}`"):
        take(store, kind, name)
    assert removal.find(store, kind, name).size_bytes == 20
    jobs.cancel(store, number)
    take(store, kind, name)


def test_a_variant_that_is_being_made_anew_stays(store: Store) -> None:
    lock = take_lock(store.data_dir / "variants" / ".variant-a.work" / "lock")
    assert lock is not None
    with pytest.raises(RetryLater, match="variant-a: a job is making it"):
        take(store, "variant", "variant-a")
    os.close(lock)
    take(store, "variant", "variant-a")


def test_nothing_else_is_ever_deleted(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    store.register_checkpoint(name="odd", path=str(mine), kind="variant")
    store.register_checkpoint(name="source", path=str(mine), kind="checkpoint")
    with pytest.raises(
        UsageError, match=r"mine: holds no recipe\.toml, so it is no variant that was made here"
    ):
        take(store, "variant", "odd")
    with pytest.raises(UsageError, match="source: a checkpoint, not a variant; its files are never touched"):
        take(store, "variant", "source")
    assert (mine / "thesis.tex").is_file()
    (mine / "thesis.tex").unlink()
    mine.rmdir()
    take(store, "variant", "odd")  # what is gone can be forgotten
    assert store.checkpoint("odd") is None


def test_what_cannot_be_recorded_is_put_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise WorkbenchError("no space left")

    monkeypatch.setattr(store, "forget", fail)
    with pytest.raises(WorkbenchError, match="no space left"):
        take(store, "variant", "variant-a")
    assert removal.find(store, "variant", "variant-a").size_bytes == 20


KILLED = """
import os, signal, sys
from core import removal
from core.store import Store
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
store = Store.open(sys.argv[1])
if sys.argv[2] == "forget":
    store.forget = die
else:
    removal.discard = die
removal.remove(store, removal.find(store, "variant", "variant-a"))
"""


@pytest.mark.parametrize("moment", ["forget", "discard"])
def test_a_kill_leaves_nothing_half_removed_under_its_name(store: Store, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.path), moment], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    place = store.data_dir / "variants"
    assert not (place / "variant-a").exists()
    assert len(list(place.iterdir())) == 2
    if moment == "forget":
        take(store, "variant", "variant-a")
    else:
        take(store, "variant", "variant-b")
    assert not any(path.name.startswith(".variant-a") for path in place.iterdir())
    assert store.checkpoint("variant-a") is None


def begun(place: Path, name: str) -> Path:
    """The work folder that a killed job leaves beside the variant ``name``: two layers of ten bytes, and a lock."""
    work = place / f".{name}.work"
    work.mkdir(parents=True)
    for file in ("layer-00000.json", "layer-00001.json"):
        (work / file).write_text("0123456789")
    (work / "lock").touch()
    return work


def test_what_a_killed_job_left_beside_a_variant_goes_with_it(store: Store) -> None:
    place = store.data_dir / "variants"
    work = begun(place, "variant-a")
    (place / ".variant-a.partial-999999999").mkdir()
    (place / ".variant-a.partial-999999999" / "model.safetensors").write_text("0123456789")
    others = [begun(place, "variant-b"), begun(place, "variant-a-g64")]
    found = removal.find(store, "variant", "variant-a")
    assert (found.size_bytes, found.finished, found.layers) == (50, True, 2)
    removal.remove(store, found)
    assert not work.exists()
    assert sorted(path.name for path in place.iterdir()) == sorted(
        ["variant-b", *(path.name for path in others)]
    )


def test_what_a_killed_calibration_left_goes_with_it_but_not_while_it_is_written(store: Store) -> None:
    place = store.data_dir / "calibrations"
    (place / f".calibration-a.partial-{os.getppid()}").mkdir()
    with pytest.raises(RetryLater, match=f"process {os.getppid()} is writing it"):
        take(store, "calibration", "calibration-a")
    (place / f".calibration-a.partial-{os.getppid()}").rename(place / ".calibration-a.partial-999999999")
    take(store, "calibration", "calibration-a")
    assert [path.name for path in place.iterdir()] == ["calibration-b"]


def test_a_variant_that_was_never_finished_can_be_removed(store: Store, tmp_path: Path) -> None:
    work = begun(store.data_dir / "variants", "demo_int4-g64")
    found = removal.find(store, "variant", "demo_int4-g64")
    assert (found.size_bytes, found.finished, found.layers, found.places) == (20, False, 2, (work,))
    removal.remove(store, found)
    assert not work.exists()
    # Also where its job was told to put it.
    elsewhere = begun(tmp_path / "big disk", "mine")
    number = jobs.submit(
        store, "quantize", {"checkpoint": "demo", "output": str(tmp_path / "big disk" / "mine")}
    )
    store.start_run(kind="quantize", checkpoint="demo", variant="demo_int4-g64", job_id=number)
    with pytest.raises(RetryLater, match=rf"job {number} \(queued\) makes it"):
        take(store, "variant", "demo_int4-g64")
    jobs.cancel(store, number)
    take(store, "variant", "demo_int4-g64")
    assert not elsewhere.exists()
    for name in ("demo_int4-g64", "../variants/demo_int4-g64", ".", "..", "variant-*", ""):
        with pytest.raises(UsageError, match="no variant of that name"):
            removal.find(store, "variant", name)
    assert store.checkpoint("variant-a") is not None


@pytest.mark.parametrize("state", ["queued", "running"])
def test_what_a_job_makes_or_will_go_on_with_stays(store: Store, state: str) -> None:
    """The job holds the lock only once it has begun to round."""
    from core.demo import NAME

    recipe = {"checkpoint": NAME, "recipe": "int4-minmax", "group": 32}
    name = f"{NAME}_int4-minmax-g32"
    work = begun(store.data_dir / "variants", name)
    number = jobs.submit(store, "quantize", recipe | {"dry_run": True})
    number = jobs.submit(store, "quantize", recipe)
    if state == "running":
        for since, to in (("queued", "starting"), ("starting", "running")):
            # Of another machine, so that nobody here takes it for lost.
            assert transition(store, number, to, since=(since,), host="elsewhere")
    with pytest.raises(
        RetryLater, match=rf"{name}: job {number} \({state}\) makes it; .*`jobs cancel {number}`"
    ):
        take(store, "variant", name)
    assert (work / "layer-00001.json").is_file()
    transition(store, number, "cancelled", since=(state,))
    take(store, "variant", name)
    assert not work.exists()


def test_the_lock_of_a_job_at_work_keeps_what_it_has_done(store: Store) -> None:
    work = begun(store.data_dir / "variants", "demo_int4-g64")
    lock = take_lock(work / "lock")
    assert lock is not None
    with pytest.raises(RetryLater, match="demo_int4-g64: a job is making it"):
        take(store, "variant", "demo_int4-g64")
    assert (work / "layer-00001.json").is_file()
    os.close(lock)
    take(store, "variant", "demo_int4-g64")


def test_what_cannot_be_recorded_is_all_put_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(store.data_dir / "variants", "variant-a")

    def fail(*_: Any) -> None:
        raise WorkbenchError("no space left")

    monkeypatch.setattr(store, "forget", fail)
    with pytest.raises(WorkbenchError, match="no space left"):
        take(store, "variant", "variant-a")
    assert removal.find(store, "variant", "variant-a").size_bytes == 40
