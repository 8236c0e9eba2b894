"""The app on a real terminal: signals, exit codes, restored modes, what is sent, what is imported."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from core.store import SCHEMA_VERSION, Store

ROOT = Path(__file__).parents[3]
RESTORED = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1003l")
TAKEN_OVER = b"\x1b[?2004h"
"""Sent by Textual when it takes the terminal over, which shows the first frame by then."""
LIMIT_S = 60.0


class Terminal:
    """The app as a child on a pseudo-terminal of 80 x 24."""

    def __init__(self, database: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            environment = os.environ | {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
            arguments = [sys.executable, "-m", "workbench", "--db", str(database)]
            os.execvpe(sys.executable, arguments, environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.sent = b""

    def read(self, seconds: float) -> bytes:
        """What is sent within some seconds."""
        chunk, end = b"", time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                try:
                    data = os.read(self.fd, 1 << 20)
                except OSError:
                    break
                if not data:
                    break
                chunk += data
        self.sent += chunk
        return chunk

    def wait_for(self, text: bytes) -> None:
        """Read until ``text`` was sent."""
        end = time.monotonic() + LIMIT_S
        while text not in self.sent:
            assert time.monotonic() < end, self.sent[-2000:]
            self.read(0.05)

    def wait_for_app(self) -> None:
        """Read until the app has painted over the first frame and is at rest."""
        self.wait_for(TAKEN_OVER)
        while b"lance-workbench" not in self.sent.split(TAKEN_OVER)[1]:
            self.read(0.05)
        self.settle()

    def settle(self) -> None:
        """Read until nothing was sent for a while."""
        while self.read(0.7):
            pass

    def exit_code(self) -> int:
        """The exit code, after reading what is left."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.read(0.05)
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the app did not end")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_end_the_app_with_the_terminal_restored(database: Path, number: signal.Signals) -> None:
    terminal = Terminal(database)
    terminal.wait_for_app()
    os.kill(terminal.pid, number)
    assert terminal.exit_code() == 128 + number
    for mode in RESTORED:
        assert mode in terminal.sent


def test_the_first_frame_shows_the_runs_before_the_app_takes_over_and_nothing_clears_it(
    database: Path,
) -> None:
    terminal = Terminal(database)
    terminal.wait_for_app()
    first = terminal.sent.split(TAKEN_OVER)[0]
    assert all(word in first for word in (b"lance-workbench", b"5 runs", b"lance-mini_int4-awq-g64", b"help"))
    assert terminal.sent.count(b"\x1b[?1049h") == 1 and b"\x1b[2J" not in terminal.sent


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_during_the_first_frame_restore_the_terminal(database: Path, number: signal.Signals) -> None:
    terminal = Terminal(database)
    before = termios.tcgetattr(terminal.fd)
    terminal.wait_for(b"lance-workbench")
    assert termios.tcgetattr(terminal.fd)[3] & termios.ECHO == 0
    os.kill(terminal.pid, number)
    assert terminal.exit_code() == 128 + number
    assert terminal.sent.rindex(b"\x1b[?1049l") > terminal.sent.rindex(b"lance-workbench")
    assert b"\x1b[?25h" in terminal.sent
    assert termios.tcgetattr(terminal.fd)[3] == before[3]


def test_keys_pressed_during_the_first_frame_reach_the_app(database: Path) -> None:
    terminal = Terminal(database)
    before = termios.tcgetattr(terminal.fd)
    # Its last line: the first may come by itself.
    terminal.wait_for(b"run 5 ")
    os.write(terminal.fd, b"jj")
    terminal.wait_for(b"run 3 ")
    os.write(terminal.fd, b"q")
    assert terminal.exit_code() == 0
    assert termios.tcgetattr(terminal.fd)[3] == before[3]


def test_a_dropped_connection_ends_the_app(database: Path) -> None:
    terminal = Terminal(database)
    terminal.wait_for_app()
    os.close(terminal.fd)
    end = time.monotonic() + LIMIT_S
    while os.waitpid(terminal.pid, os.WNOHANG)[0] == 0:
        assert time.monotonic() < end, "the app outlived its terminal"
        time.sleep(0.05)


def test_quitting_says_what_keeps_running_and_little_is_sent(database: Path) -> None:
    terminal = Terminal(database)
    terminal.wait_for_app()
    assert len(terminal.sent) <= 34_000
    os.write(terminal.fd, b"j")
    moved = terminal.read(1.0)
    assert 0 < len(moved) <= 400, moved
    assert terminal.read(1.5) == b""
    os.write(terminal.fd, b"q")
    assert terminal.exit_code() == 0
    assert b"1 job keeps running" in terminal.sent.split(RESTORED[0])[-1]


def started(database: Path, **environment: str) -> tuple[int, bytes]:
    """Exit code and output of the app on a terminal, for a database that it cannot open."""
    terminal = Terminal(database)
    return terminal.exit_code(), terminal.sent


def test_a_newer_database_is_one_line_before_the_screen_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    code, output = started(path)
    assert code == 1 and output.count(b"\n") == 1 and b"schema version" in output and b"\x1b[" not in output


def test_a_file_that_is_no_database_is_one_line_before_the_screen_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 40)
    code, output = started(path)
    assert code == 1 and output.count(b"\n") == 1 and b"runs.db" in output and b"\x1b[" not in output


def test_without_a_terminal_the_app_points_to_the_commands(database: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "--db", str(database)], cwd=ROOT, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2 and "use the commands" in done.stderr and done.stdout == ""


HEAVY = (
    "torch", "transformers", "diffusers", "numpy", "PIL", "sqlite_utils", "click", "huggingface_hub", "httpx",
    "pygments", "markdown_it", "rich.markdown", "rich.syntax", "core.jobs", "workbench.comparison",
    "workbench.screens.compare",
)  # fmt: skip

PROBE = """
import asyncio, sys
from pathlib import Path
from core.store import Store
from workbench.application import WorkbenchApp

async def main(keys):
    app = WorkbenchApp(Store.open(Path(sys.argv[1])))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()

asyncio.run(main(sys.argv[2].split()))
print(*(name for name in sys.argv[3:] if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("keys", "unwanted"),
    [
        ("", HEAVY),
        ("2 3 4 5", ("torch", "transformers", "diffusers", "sqlite_utils", "click")),
        ("n shift+tab x ctrl+s", ("torch", "transformers", "diffusers")),
    ],
    ids=["first screen", "every area", "form with a wrong device"],
)
def test_the_app_imports_nothing_that_computes(database: Path, keys: str, unwanted: tuple[str, ...]) -> None:
    with Store.open(database) as store:
        store.execute("UPDATE jobs SET state = 'succeeded'")  # so that no process is started for them
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(database), keys, *unwanted], cwd=database.parent, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []
