"""Files appear whole or not at all, also when the disk fills up or the process is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import WorkbenchError
from core.files import expanded, replacing, replacing_folder, sha256_file, write_bytes, write_text


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "variant.bin"
    target.write_text("old")
    with pytest.raises(WorkbenchError, match="no space left") as caught, replacing(target) as partial:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(target) in str(caught.value) and "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["variant.bin"]


def test_folder_replaces_folder(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    for text in ("first", "second"):
        with replacing_folder(target) as partial:
            write_text(partial / "deep" / "config.json", text)
    assert (target / "deep" / "config.json").read_text() == "second"
    with pytest.raises(RuntimeError), replacing_folder(target) as partial:
        (partial / "config.json").write_text("third")
        raise RuntimeError("worker failed")
    assert [path.name for path in tmp_path.iterdir()] == ["variant"]
    assert (target / "deep" / "config.json").read_text() == "second"


def test_a_folder_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("years of work")
    with (
        pytest.raises(WorkbenchError, match="mine: a file, wanted a place"),
        replacing_folder(tmp_path / "mine"),
    ):
        raise AssertionError("nothing may be made for it")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "years of work"


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkbenchError, match="file/below"):
        write_bytes(tmp_path / "file" / "below", b"x")


def test_kill_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "variant"
    with replacing_folder(target) as partial:
        (partial / "a").write_text("old")
    script = (
        "import sys, time, pathlib\n"
        "from core.files import replacing_folder\n"
        "with replacing_folder(pathlib.Path(sys.argv[1])) as partial:\n"
        "    (partial / 'a').write_text('new'); print('half', flush=True); time.sleep(60)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert worker.stdout is not None and worker.stdout.readline() == b"half\n"
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    time.sleep(0.05)
    assert (target / "a").read_text() == "old"


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_home_that_there_is_not_is_a_path_that_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/x") == Path("/somewhere/x") and expanded(Path("a/~")) == Path("a/~")
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
