"""``variants remove`` and ``calibrations remove``: what is asked, and what is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from core.store import Store
from workbench.cli.main import run_command


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    with Store.open(tmp_path / "runs.db") as store:
        for name in ("one", "two"):
            folder = store.data_dir / "variants" / name
            folder.mkdir(parents=True)
            (folder / "recipe.toml").write_bytes(b" " * 1500)
            store.register_checkpoint(name=name, path=str(folder), kind="variant", parent="demo")
        store.register_calibration(name="rows", path=str(tmp_path / "rows"), checkpoint="demo")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_command(["--db", str(tmp_path / "runs.db"), *arguments])
        return code, *capsys.readouterr()

    return call


class Terminal(io.StringIO):
    """A keyboard on which something has been typed."""

    def isatty(self) -> bool:
        return True


def test_removing_without_a_question(call: Any) -> None:
    assert call("variants", "remove", "one", "two", "one", "--yes") == (
        0,
        "one removed, 1.5 kB freed\ntwo removed, 1.5 kB freed\n",
        "",
    )
    assert json.loads(call("variants", "list", "--json")[1]) == []
    code, out, _ = call("calibrations", "remove", "rows", "--yes", "--json")
    assert code == 0 and json.loads(out)[0]["name"] == "rows"
    assert json.loads(call("calibrations", "show", "--json")[1]) == []


def test_where_nobody_can_be_asked_yes_is_wanted(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, out, err = call("variants", "remove", "one")
    assert (code, out) == (2, "")
    assert err == "error: one: nobody can be asked here whether to remove it; give --yes\n"
    assert len(json.loads(call("variants", "list", "--json")[1])) == 2


@pytest.mark.parametrize(("typed", "code", "left"), [("n\n", 130, 2), ("\n", 130, 2), ("y\n", 0, 1)])
def test_a_person_is_asked(
    call: Any, monkeypatch: pytest.MonkeyPatch, typed: str, code: int, left: int
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    found, _, err = call("variants", "remove", "one")
    assert found == code
    assert "1.5 kB" in err and "one: no run of it\n" in err and "Remove for good? [y/N]" in err
    assert ("nothing was removed" in err) == (left == 2)
    assert len(json.loads(call("variants", "list", "--json")[1])) == left


def test_one_unknown_name_removes_nothing(call: Any) -> None:
    code, _, err = call("variants", "remove", "one", "three", "--yes")
    assert (code, err) == (2, "error: three: no variant of that name; `variants list` shows them\n")
    assert len(json.loads(call("variants", "list", "--json")[1])) == 2
    assert call("calibrations", "remove", "one", "--yes")[0] == 2


def test_what_a_killed_job_left_is_named_and_counted(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "runs.data" / "variants"
    for name in ("one", "begun"):
        work = place / f".{name}.work"
        work.mkdir()
        (work / "layer-00000.json").write_bytes(b" " * 1000)
    with Store.open(tmp_path / "runs.db") as store:
        for _ in range(2):
            store.start_run(checkpoint="demo", variant="one")
    out, err = call("variants", "list")[1:]
    assert "begun" not in out and err == (
        "begun: never finished; 1 layer of it done, 1.0 kB; quantizing it again goes on with it, "
        "`variants remove begun` removes it\n"
    )
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    code, out, err = call("variants", "remove", "one", "begun")
    assert code == 0
    assert str(place / ".one.work") in err and "2 runs of it stay, with every output" in err
    assert "begun: never finished; 1 layer of it done; no run of it" in err
    assert out.splitlines() == [
        "one removed (with what a killed job left beside it), 2.5 kB freed",
        "begun removed (never finished; 1 layer of it done), 1.0 kB freed",
    ]
    assert [path.name for path in place.iterdir()] == ["two"]
    code, _, err = call("variants", "remove", "begun", "--yes")
    assert (code, err) == (2, "error: begun: no variant of that name; `variants list` shows them\n")


def test_variants_made_with_a_calibration_are_named(call: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with Store.open(tmp_path / "runs.db") as store:
        store.register_checkpoint(name="two", path="two", kind="variant", details={"calibration": "rows"})
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, _, err = call("calibrations", "remove", "rows")
    assert code == 130 and "rows: two was made with it and stays" in err
