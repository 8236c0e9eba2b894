from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UsageError
from core.store import Store
from core.store.measurements import KEY, chosen, document, figure, number, plain_rows

DATE = "2026-01-02T03:04:05.000Z"


def bench(store: Store, figures: list[dict[str, Any]], **fields: Any) -> int:
    record = {KEY: figures, "command_line": ["lance-workbench", "bench"], "versions": {"torch": "2.11.0"}}
    run_id = store.start_run(kind="bench", device="a GPU", manifest=record, **fields)
    store.finish_run(run_id)
    return run_id


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "runs.db") as opened:
        yield opened


def test_the_document_has_the_device_the_command_and_every_figure(store: Store) -> None:
    gate = figure(
        "gate_up", "int4-g64", 13.239, "us", "matmul 8", rows=1, gigabytes=1915.2, share=0.624, against=2.93
    )
    run_id = bench(store, [gate, figure("decode", "bf16", 315.5, "tokens/s")], checkpoint="kernels")
    text = document(chosen(store, [run_id]), "markdown", DATE)
    lines = text.splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "1", "kernels", "a GPU", "gate_up", "1", "int4-g64", "13.24", "us", "1,915", "62 %", "2.93x", "matmul 8",
    ]  # fmt: skip
    assert "Device: a GPU." in text and "torch 2.11.0" in text and "    lance-workbench bench\n" in text
    assert "Wilson" not in text
    assert json.loads(document(chosen(store, [run_id]), "json", DATE))[0]["against"] == 2.93
    rows = list(csv.DictReader(io.StringIO(document(chosen(store, [run_id]), "csv", DATE))))
    assert [row["value"] for row in rows] == ["13.239", "315.5"]


def test_without_names_the_runs_of_the_latest_benchmark_are_meant(store: Store) -> None:
    for job in (1, 2):
        store.execute(
            "INSERT INTO jobs (id, kind, spec, spec_hash, created_at) VALUES (?, 'bench', '{}', '', ?)",
            (job, DATE),
        )
    bench(store, [figure("decode", "bf16", 1.0, "tokens/s")], checkpoint="old", job_id=1)
    for name in ("first", "second"):
        bench(store, [figure("decode", name, 2.0, "tokens/s")], checkpoint=name, job_id=2)
    assert [row[1] for row in plain_rows(chosen(store, []))] == ["first", "second"]


def test_what_is_no_benchmark_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="no benchmark is recorded"):
        chosen(store, [])
    run_id = store.start_run(kind="evaluate", checkpoint="a")
    with pytest.raises(UsageError, match=f"run {run_id}: is no benchmark but of kind evaluate"):
        chosen(store, [run_id])
    with pytest.raises(UsageError, match="no figures to export"):
        document([store.run(bench(store, [], checkpoint="a"))], "markdown", DATE)


def test_numbers_have_four_significant_digits() -> None:
    assert [number(x) for x in (0.02627, 0.1436, 4.85, 38.82, 315.5, 1565.0, 0.0)] == [
        "0.02627", "0.1436", "4.850", "38.82", "315.5", "1,565", "0.000",
    ]  # fmt: skip
