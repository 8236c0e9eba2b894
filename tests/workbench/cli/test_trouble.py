"""Errors that nothing foresaw: a person gets one line, and the traceback lies in a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench.cli import main
from workbench.trouble import of_system, unexpected

ROOT = Path(__file__).parents[3]


def test_a_fault_of_our_own_is_one_line_that_names_the_file_of_the_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a key\nnobody has")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(main.root, "main", fail)
    assert main.run_command(["runs", "list"]) == 1
    out, err = capsys.readouterr()
    assert (
        out == "" and err.startswith("error: KeyError: ") and err.count("\n") == 1 and "Traceback" not in err
    )
    kept = Path(re.findall(r"reported with (\S+)", err)[0])
    assert kept.parent == tmp_path and "in fail\n" in kept.read_text() and "KeyError" in kept.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert unexpected(ValueError("x")) == "ValueError: x; this is a fault of lance-workbench's own"


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    code = (
        f"import os; os.chdir({str(here)!r}); os.rmdir({str(here)!r}); from workbench.cli.main import run_command; "
        f"raise SystemExit(run_command(['--db', 'runs.db', 'runs', 'list']))"
    )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the current folder is gone; change to another\n"


def test_what_the_system_refuses_names_the_file() -> None:
    assert of_system(PermissionError(13, "Permission denied", "/closed/x")) == "/closed/x: Permission denied"
    assert of_system(OSError(28, "No space left on device")) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "lance-demo", "--device", "gpu"], "'gpu', wanted auto, cpu, mps, cuda or cuda:N"),
        (["demo", "--device", "cuda:²"], "wanted auto, cpu, mps, cuda or cuda:N"),
        (["variants", "quantize", "lance-demo", "--device", ""], "wanted auto, cpu, mps, cuda or cuda:N"),
        (["bench", "--device", "cuda:0:1"], "wanted auto, cpu, mps, cuda or cuda:N"),
        (["evaluate", "lance-demo", "--dtype", "int8"], "'int8' is not one of 'auto', 'bfloat16', 'float32'"),
    ],
)
def test_a_device_that_cannot_be_makes_no_job(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run_command(["--db", str(tmp_path / "runs.db"), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_something_is_imported_is_no_traceback() -> None:
    code = (
        "import os, signal, sys, importlib.abc\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'click': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv[1:] = ['runs', 'list']\n"
        "from workbench.__main__ import main\n"
        "raise SystemExit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
