"""A small database made through the store, and the app over it under a pilot."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from textual.pilot import Pilot

from core import jobs
from core.jobs.table import transition
from core.store import Store
from workbench.application import WorkbenchApp

VOCABULARY = {"No": 0, ",": 1, "Ġit": 2, "Ġis": 3, "Ġ41": 4, "Ġ44": 5, ".": 6}
LONG = "\n".join(f"Line {number} of a long answer that nobody may cut." for number in range(60))
SAMPLES = 6


class Screen:
    """The app as a person sees it."""

    def __init__(self, app: WorkbenchApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    def lines(self) -> list[str]:
        """The screen's lines as text."""
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    def text(self) -> str:
        """The whole screen as text."""
        return "\n".join(self.lines())

    async def press(self, *keys: str) -> str:
        """Press keys, wait until nothing is left to do, and return what is on screen then."""
        await self.pilot.press(*keys)
        return await self.settle()

    async def settle(self) -> str:
        """Wait for workers and pending paints; what is on screen then."""
        await self.app.workers.wait_for_complete()
        await self.pilot.pause()
        await self.pilot.pause()
        return self.text()

    async def until(self, text: str, seconds: float = 10.0) -> str:
        """Wait until ``text`` is on screen, in one line or broken into several."""
        for _ in range(int(seconds / 0.05)):
            if " ".join(text.split()) in " ".join((shown := await self.settle()).split()):
                return shown
            await self.pilot.pause(0.05)
        raise AssertionError(f"{text!r} did not appear in\n{self.text()}")


Opener = Callable[..., AbstractAsyncContextManager[Screen]]


@pytest.fixture
def open_app() -> Opener:
    """``async with open_app(path, size=(80, 24)) as screen``."""

    @contextlib.asynccontextmanager
    async def opened(path: Path, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Screen]:
        store = Store.open(path)
        app = WorkbenchApp(store)
        async with app.run_test(size=size) as pilot:
            screen = Screen(app, pilot)
            await screen.settle()
            yield screen
        store.close()

    return opened


def picture(colour: str) -> bytes:
    """A 16 x 16 picture of one colour as PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def add_run(
    store: Store, recipe: str, baseline: int | None, *, suite: str = "demo-x2t", **scores: Any
) -> int:
    """A finished evaluation of lance-mini or of a variant of it."""
    variant = None if recipe == "bf16" else f"lance-mini_{recipe}-g64"
    run_id = store.start_run(
        kind="evaluate", checkpoint="lance-mini", variant=variant, recipe=recipe, bits=16 if variant is None else 4.4,
        size_bytes=19_800_000 if variant is None else 8_100_000, suite=suite,
        task="t2i" if suite == "demo-t2i" else "x2t_image", samples=SAMPLES, baseline_run_id=baseline, device="cpu",
        manifest={"versions": {"lance-workbench": "0.1.0", "torch": "2.11.0"}},
    )  # fmt: skip
    store.set_scores(run_id, seconds=0.3, **scores)
    store.finish_run(run_id, "succeeded", 72.0)
    return run_id


def _answers(store: Store, run_id: int, texts: list[str], reference: list[str] | None) -> None:
    media = store.add_media(picture("red"), "image/png", 16, 16)
    for index, text in enumerate(texts):
        same = reference is None or text == reference[index]
        scores: dict[str, Any] = {"truth": float(index != 1), "tokens": [0, 1, 2, 3, 4 if same else 5, 6]}
        if reference is not None:
            scores |= {
                "exact": float(same), "levenshtein": 1.0 if same else 0.97, "ratio": 1.0 if same else 0.96,
                "jaccard": 1.0 if same else 0.86, "kl": 0.002 if same else 0.21, "kl_max": 0.01 if same else 1.9,
                "kl_argmax": 4, "kl_tokens": [0, 0, 0, 0.02, 1.9, 0], "top1": 0.95, "nll": 0.3,
            }  # fmt: skip
        store.add_output(
            run_id, index, sample_key=f"sample-{index}", task="x2t_image", question=f"Question {index}: which one?",
            instruction="Answer in a few words.", expected=f"Expected {index}.", input_media=media, text=text, **scores,
        )  # fmt: skip


def fill(store: Store, checkpoint: Path) -> None:
    """bf16 and two variants on questions, bf16 and one variant on pictures, and a chain of jobs."""
    store.register_checkpoint(name="lance-mini", path=str(checkpoint), kind="checkpoint", family="lance", bits=16.0,
                              size_bytes=19_800_000)  # fmt: skip
    for recipe in ("int4-minmax", "int4-awq"):
        name = f"lance-mini_{recipe}-g64"
        store.register_checkpoint(name=name, path=str(checkpoint.parent / name), kind="variant", family="lance",
                                  parent="lance-mini", recipe=recipe, bits=4.4, size_bytes=8_100_000)  # fmt: skip
    bf16 = [f"Answer {number}: No, it is 41." for number in range(SAMPLES - 1)] + [LONG]
    minmax = [text.replace("41", "44") if number in (1, 4) else text for number, text in enumerate(bf16)]
    awq = [text.replace("41", "44") if number == 3 else text for number, text in enumerate(bf16)]
    base = add_run(store, "bf16", None, truth=0.9, truth_low=0.8, truth_high=0.95)
    _answers(store, base, bf16, None)
    first = add_run(
        store, "int4-minmax", base, exact=0.667, exact_low=0.5, exact_high=0.8, kl=0.412, kl_se=0.021
    )
    _answers(store, first, minmax, bf16)
    second = add_run(
        store, "int4-awq", base, exact=0.833, exact_low=0.7, exact_high=0.9, kl=0.031, kl_se=0.002
    )
    _answers(store, second, awq, bf16)
    drawn = add_run(store, "bf16", None, suite="demo-t2i", pixel=0.9, pixel_low=0.8, pixel_high=0.95)
    drifted = add_run(
        store, "int4-awq", drawn, suite="demo-t2i", psnr=24.1, psnr_se=0.4, mae=0.031, mae_se=0.002
    )
    for index in range(3):
        scores = {"psnr": 24.1, "mae": 0.031, "cosine": 0.981, "velocity": 0.12}
        for run_id, colour, extra in ((drawn, "green", {}), (drifted, "blue", scores)):
            media = store.add_media(picture(colour), "image/png", 16, 16)
            store.add_output(run_id, index, sample_key=f"prompt-{index}", task="t2i", question=f"A {colour} square.",
                             output_media=media, text=f"{colour} square", pixel=float(colour == "green" or index != 1),
                             **extra)  # fmt: skip
    calibrate = jobs.submit(
        store, "calibrate", {"checkpoint": "lance-mini", "tasks": ["x2t_image"], "device": "cpu"}
    )
    quantize = jobs.submit(store, "quantize", {"checkpoint": "lance-mini", "recipe": "int4-awq", "device": "nowhere"},
                           depends_on=calibrate)  # fmt: skip
    transition(store, calibrate, "starting", since=("queued",))
    transition(store, calibrate, "running", since=("starting",))
    transition(store, calibrate, "succeeded", since=("running",))
    transition(store, quantize, "starting", since=("queued",))
    transition(
        store, quantize, "running", since=("starting",), progress_done=2, progress_total=4, unit="layers"
    )
    log = jobs.log_path(store, quantize)
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"layer {number} done\n" for number in range(200)))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs.db``, its data and a checkpoint that has a vocabulary."""
    folder = tmp_path_factory.mktemp("filled")
    checkpoint = folder / "Lance_Demo"
    checkpoint.mkdir()
    (checkpoint / "vocab.json").write_text(json.dumps(VOCABULARY))
    (checkpoint / "tokenizer_config.json").write_text("{}")
    with Store.open(folder / "runs.db") as store:
        fill(store, checkpoint)
    return folder


@pytest.fixture
def database(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small database in a folder of its own, which is the current one."""
    shutil.copytree(filled, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work" / "runs.db"


@pytest.fixture(autouse=True)
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Databases for which a supervisor was asked for, instead of starting one."""
    asked: list[Path] = []
    monkeypatch.setattr(jobs, "ensure_supervisor", lambda store: asked.append(store.path))
    return asked


@pytest.fixture(scope="session")
def many_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with 10,000 runs."""
    path = tmp_path_factory.mktemp("many") / "runs.db"
    with Store.open(path) as store, store.write() as connection:
        recipes = ("bf16", "int4-minmax", "int4-awq", "nvfp4")
        connection.executemany(
            "INSERT INTO runs "
            "(id, checkpoint, variant, recipe, bits, size_bytes, suite, task, state, created_at) VALUES "
            "(?, 'lance-mini', ?, ?, 4.4, ?, 'demo-x2t', 'x2t_image', 'succeeded', '2026-01-01T00:00:00.000Z')",
            [
                (number, f"lance-mini_{recipe}-g64" if number % 4 else None, recipe, number)
                for number, recipe in ((number, recipes[number % 4]) for number in range(1, 10_001))
            ],
        )
        connection.executemany(
            "INSERT INTO scores (run_id, exact, kl) VALUES (?, ?, ?)",
            [(number, number % 997 / 997, number % 991 / 991) for number in range(1, 10_001) if number % 4],
        )
    return path
