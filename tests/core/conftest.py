"""The tiny model, calibrated and quantized, for tests of what comes after."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.store import Store


class StubContext:
    """A job context whose job nobody queued: keeps what it is told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.job_id: int | None = None
        self.data_dir: Path = store.data_dir
        self.lines: list[str] = []
        self.steps: list[tuple[float, float | None]] = []

    def progress(self, done: float, total: float | None, unit: str = "", message: str = "") -> None:
        self.steps.append((done, total))

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[StubContext]:
    with Store.open(tmp_path / "runs.db") as store:
        yield StubContext(store)


def write_suites(folder: Path, golden: Path) -> dict[str, Path]:
    """A suite file of each task in Lance's own format, on the synthetic pictures."""
    questions = {
        f"{number:04d}": {
            "interleave_array": [str(golden / "media" / f"img{number}.png"), ["Look at it.", text, "yes"]],
            "element_dtype_array": ["image", "text"],
            "istarget_in_interleave": [0, 1],
        }
        for number, text in ((1, "What is it?"), (3, "Which colour has the table?"))
    }
    prompts = {"000000.png": "A red cube on a blue table, soft light.", "000001.png": "A green ball."}
    paths = {"x2t_image": folder / "questions.json", "t2i": folder / "prompts.json"}
    paths["x2t_image"].write_text(json.dumps(questions))
    paths["t2i"].write_text(json.dumps(prompts))
    return paths


@pytest.fixture(scope="session")
def tiny_world(tiny_checkpoint: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with the tiny model calibrated on both tasks (merged) and quantized by min-max and AWQ at g32.

    Returns:
        An object with ``context``, ``calibration`` (folder), ``parts`` (folders) and ``variants`` (by
        recipe).
    """
    from types import SimpleNamespace

    from core.calibration import job as calibrate
    from core.quantization import job as quantize

    place = tmp_path_factory.mktemp("world")
    store = Store.open(place / "runs.db")
    context: Any = StubContext(store)
    base: dict[str, Any] = {"checkpoint": str(tiny_checkpoint), "samples": 2, "device": "cpu"}
    base |= {"dtype": "float32", "resolution": "image_256res"}
    parts = []
    for task, path in write_suites(place, golden).items():
        done = calibrate.run(base | {"tasks": [task], "suite": str(path), "name": task}, context)
        parts.append(Path(done["path"]))
    merged = calibrate.merge_registered(store, parts, "both")
    variants = {}
    for recipe in ("int4-minmax", "int4-awq"):
        spec = {"checkpoint": str(tiny_checkpoint), "recipe": recipe, "group": 32, "device": "cpu"}
        variants[recipe] = quantize.run(spec | {"calibration": "both"}, context)
    yield SimpleNamespace(
        context=context, calibration=Path(merged["path"]), parts=parts, merged=merged, variants=variants
    )
    store.close()
