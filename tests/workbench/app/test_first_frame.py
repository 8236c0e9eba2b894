"""The first frame: the app paints the same over it, and it needs no Textual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.segment import Segment

from core.store import Store
from workbench.first_frame import encoded, lines

ROOT = Path(__file__).parents[3]

LOADED = """
import sys
from pathlib import Path
from core.store import Store
import workbench.__main__, workbench.app
from workbench.first_frame import encoded, lines
from rich.console import Console

print(len(encoded(lines(Store.open(Path(sys.argv[1])), 80, 24), Console())))
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""
LATER = (
    "textual", "asyncio", "ssl", "socket", "subprocess", "logging", "platformdirs", "uuid", "shutil", "click",
    "sqlite_utils", "torch", "transformers", "numpy", "PIL", "huggingface_hub", "rich.markdown", "rich.syntax",
    "pygments", "markdown_it", "core.jobs", "workbench.application", "workbench.comparison",
)  # fmt: skip


def looks(segments: list[Segment]) -> list[tuple[str, Any]]:
    """Every cell with its style, however the line is cut into segments."""
    return [(sign, style or None) for text, style, _ in segments for sign in text]


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (61, 9)])
async def test_the_app_paints_over_it_what_is_there(
    open_app: Any, database: Path, size: tuple[int, int]
) -> None:
    async with open_app(database, size=size) as screen:
        with Store.open(database) as store:
            frame = lines(store, *size)
        strips = screen.app.screen._compositor.render_strips()
        assert len(frame) == len(strips) == size[1]
        for drawn, strip in zip(frame, strips, strict=True):
            assert "".join(part.text for part in drawn) == strip.text
        texts = ["".join(part.text for part in drawn) for drawn in frame]
        assert sum("lance-mini_" in text for text in texts[3:-2]) == min(5, size[1] - 5)
        row = screen.app.screen.table.render_line(1)
        assert looks(frame[3]) == looks(list(row))


async def test_an_empty_database_says_how_to_begin(open_app: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    async with open_app(path) as screen:
        with Store.open(path) as store:
            frame = lines(store, 80, 24)
        assert ["".join(part.text for part in line).rstrip() for line in frame] == screen.lines()
        assert "No runs yet" in screen.text()


def test_it_holds_the_newest_of_many_runs(many_runs: Path) -> None:
    with Store.open(many_runs) as store:
        frame = ["".join(part.text for part in line) for line in lines(store, 80, 24)]
    assert "10,000 runs" in frame[1]
    assert len([text for text in frame[3:-2] if "lance-mini" in text]) == 19
    assert frame[-2].startswith(" run 10000 ")


def test_it_sends_the_colours_that_the_terminal_has(database: Path) -> None:
    with Store.open(database) as store:
        frame = lines(store, 80, 24)
    wide = encoded(frame, Console(force_terminal=True, color_system="256", no_color=False))
    plain = encoded(frame, Console(force_terminal=True, color_system="256", no_color=True))
    assert "\x1b[38;5;255;48;5;24m" in wide
    assert "48;5;24" not in plain and "38;5" not in plain
    assert "lance-mini_int4-awq-g64" in plain


def test_it_is_drawn_before_anything_that_it_does_not_need_is_imported(database: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(database), *LATER], cwd=database.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    size, *loaded = done.stdout.split()
    assert int(size) > 1000 and loaded == []
