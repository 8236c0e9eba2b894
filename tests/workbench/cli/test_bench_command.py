"""``bench`` as a person types it: a real job on a processor, then its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.store import Store
from workbench.cli.main import run_command


@pytest.fixture
def run(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LANCE_WORKBENCH_DB", str(tmp_path / "runs.db"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_command([*map(str, words)])
        out, err = capfd.readouterr()
        return code, out, err

    return run


def test_a_checkpoint_end_to_end_and_its_figures(run: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    code, out, err = run("bench", "--what", "end-to-end", "--checkpoint", tiny_checkpoint, "--device", "cpu")
    assert code == 0, err
    assert out.startswith("on ") and "lance-tiny_bf16" in out
    assert [line.split()[2] for line in out.splitlines()[2:]] == ["load", "weights", "decode", "t2i"]
    code, shown, _ = run("bench", "show")
    assert (code, shown) == (0, out)
    code, out, _ = run("bench", "show", "--json")
    (found,) = json.loads(out)
    assert found["command"][:4] == ["lance-workbench", "bench", "--what", "end-to-end"]
    assert [item["unit"] for item in found["figures"]] == ["s", "GB", "tokens/s", "s"]
    code, out, _ = run("bench", "export", "--output", tmp_path / "new" / "figures.csv")
    assert code == 0 and (tmp_path / "new" / "figures.csv").read_text().startswith("run,name,device,subject")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rows", "1,many"), "rows '1,many': wanted whole numbers from 1 to 65536"),
        (("--checkpoint", "nowhere"), "nowhere"),
        (("--what", "speed"), "'speed' is not one of"),
    ],
)
def test_what_is_mistyped_is_said_at_once(run: Any, words: tuple[str, ...], message: str) -> None:
    code, out, err = run("bench", *words)
    assert (code, out) == (2, "") and message in err


def test_showing_before_anything_was_measured(run: Any, tmp_path: Path) -> None:
    Store.open(tmp_path / "runs.db").close()
    code, out, err = run("bench", "show")
    assert (code, out) == (2, "")
    assert err == "error: no benchmark is recorded; `lance-workbench bench` makes one\n"
