"""The command line as a whole: exit codes, what is imported, what is printed where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.store import Store
from workbench.__main__ import _app_options
from workbench.cli.main import NOUNS, root, run_command

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "textual", "numpy", "transformers", "huggingface_hub")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    with Store.open(tmp_path / "runs.db") as store:
        for variant in ("lance-demo_int4-minmax-g128", "lance-demo_int4-awq-g64"):
            run_id = store.start_run(checkpoint="lance-demo", variant=variant, suite="demo-x2t", device="CPU")
            store.set_scores(run_id, kl=0.1 * run_id, exact=0.5, exact_low=0.4, exact_high=0.6)
            store.finish_run(run_id)
        store.register_calibration(name="two", checkpoint="lance-demo", path=str(tmp_path / "two"))
    return tmp_path / "runs.db"


def _imported(statement: str, *arguments: str) -> set[str]:
    code = (
        f"import sys; sys.argv[1:] = {list(arguments)!r}\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


COMMAND = "from workbench.__main__ import main; main()"


@pytest.mark.parametrize(
    ("arguments", "forbidden"),
    [
        (["--help"], (*HEAVY, "sqlite_utils", "sqlite3")),
        (["--version"], (*HEAVY, "sqlite_utils", "sqlite3", "click")),
        (["runs", "list"], (*HEAVY, "sqlite_utils")),
        (["runs", "export", "--format", "csv"], (*HEAVY, "sqlite_utils")),
        (["jobs", "list"], (*HEAVY, "sqlite_utils")),
        (["checkpoints", "list"], (*HEAVY, "sqlite_utils")),
        (["doctor"], (*HEAVY, "sqlite_utils")),
    ],
)
def test_what_commands_leave_alone(arguments: list[str], forbidden: tuple[str, ...], db: Path) -> None:
    place = [] if arguments[0].startswith("-") else ["--db", str(db)]
    assert _imported(COMMAND, *place, *arguments) & set(forbidden) == set()


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import core.store", (*HEAVY, "sqlite_utils", "click", "hashlib")),
        ("import core.jobs", (*HEAVY, "sqlite_utils", "click")),
        ("import core.store.export, core.store.manifest", (*HEAVY, "sqlite_utils")),
    ],
)
def test_what_the_store_and_the_jobs_leave_alone(statement: str, forbidden: tuple[str, ...]) -> None:
    assert _imported(statement) & set(forbidden) == set()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["runs", "list"], 0, ""),
        (["runs", "show", "77"], 2, "error: run 77: not in"),
        (["runs", "tag", "77", "--tags", "x"], 2, "`lance-workbench runs list` shows what is"),
        (
            ["calibrations", "show", "mine"],
            2,
            "mine: no such calibration and no such folder; `calibrations show` lists two",
        ),
        (
            ["calibrations", "show", "two"],
            2,
            "which is gone; `calibrations run` makes it again, `calibrations remove two` forgets it",
        ),
        (["bench", "show", "77"], 2, "error: run 77: not in"),
        (["bench", "show", "1"], 2, "`lance-workbench runs list kind=bench` shows those that are"),
        (["compare", "77", "78"], 2, "error: run 77: not in"),
        (["jobs", "show", "77"], 2, "error: job 77: not in"),
        (["runs", "list", "--sort", "colour"], 2, "error: sort 'colour': unknown column"),
        (["runs", "list", "colour:red"], 2, "unknown column 'colour'"),
        (["runs", "export", "--columns", "id,colour"], 2, "column 'colour': unknown"),
        (["runs", "list", "--limit", "none"], 2, "is not a valid integer"),
        (["runs", "tag", "1"], 2, "give --tags"),
        (["paint"], 2, "no command 'paint'"),
        (["runs"], 2, "Usage"),
        (["completion", "tcsh"], 2, "tcsh"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, words: str, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["--db", str(db), *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    if code:
        assert captured.out == "" or arguments == ["runs"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["calibrations", "list"],
            "error: No such command 'list'; commands are merge, remove, run, show; "
            "see `lance-workbench calibrations --help`",
        ),
        (
            ["runs", "show", "first"],
            "error: Invalid value for 'RUN': 'first' is not a valid integer; "
            "see `lance-workbench runs show --help`",
        ),
        (
            ["checkpoints", "show", "lance-dem"],
            "error: lance-dem: no checkpoint or variant of that name and no such folder; did you mean lance-demo? "
            "`checkpoints list` shows them",
        ),
        (
            ["checkpoints", "show", "a" * 300],
            f"error: {'a' * 300}: no checkpoint or variant of that name and no such folder; "
            "`checkpoints list` shows them",
        ),
        (
            ["checkpoints", "show", os.fsdecode(b"ck\xff")],
            "error: ck\\xff: is no UTF-8; rename the file, or give it a link with another name",
        ),
        (
            ["checkpoints", "show", "a\x1b[31mb"],
            "error: ab: no checkpoint or variant of that name and no such folder; `checkpoints list` shows them",
        ),
    ],
)
def test_wrong_usage_is_one_line_with_the_next_step(
    arguments: list[str], said: str, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["--db", str(db), *arguments]) == 2
    assert capsys.readouterr() == ("", f"{said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["calibrations", "show", "mine"],
            "mine: no such calibration and no such folder; `calibrations run CHECKPOINT` makes one",
        ),
        (
            ["calibrations", "merge", "mine", "--name", "both"],
            "mine: no such calibration and no such folder; `calibrations run CHECKPOINT` makes one",
        ),
        (
            ["variants", "show", "mine"],
            "mine: no checkpoint or variant of that name and no such folder; `checkpoints list` shows them",
        ),
        (
            ["variants", "sensitivities", "mine"],
            "mine: no such sensitivity; `variants sensitivity CHECKPOINT --calibration NAME` measures one",
        ),
        (["compare", "mine"], "mine: no finished evaluation; `evaluate mine` runs one"),
        (
            ["bench", "show"],
            "no benchmark is recorded; `lance-workbench bench` makes one",
        ),
        (
            ["checkpoints", "add", "/no/such"],
            "/no/such: no such folder; give one that holds a checkpoint, or fetch one: `checkpoints fetch`",
        ),
    ],
)
def test_what_is_not_in_an_empty_database_is_said_with_what_makes_it(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.open(tmp_path / "runs.db").close()
    assert run_command(["--db", str(tmp_path / "runs.db"), *arguments]) == 2
    assert capsys.readouterr() == ("", f"error: {said}\n")


@pytest.mark.parametrize(
    "arguments",
    [["runs", "list", "--columns", "note"], ["runs", "export", "--columns", "note"], ["runs", "show", "1"]],
)
def test_what_was_recorded_cannot_steer_the_terminal(
    arguments: list[str], db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(db) as store:
        store.update_run(1, note="so\x1b]0;title\x07 \x1b[31mred\x1b[0m\x08")
    assert run_command(["--db", str(db), *arguments]) == 0
    out = capsys.readouterr().out
    assert "so red\u2408" in out and "\x1b" not in out and "\x08" not in out


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments", [["recipes", "show", LONG], ["variants", "show", LONG], ["--db", LONG, "runs", "list"]]
)
def test_a_name_longer_than_a_file_can_have_is_one_line(
    arguments: list[str], db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["--db", str(db), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.endswith(f"{LONG}: File name too long\n")
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_trouble_with_the_database_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.db"
    bad.write_text("no database " * 100)
    assert run_command(["--db", str(bad), "runs", "list"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and str(bad) in captured.err
    assert run_command(["--db", str(tmp_path / "none.db"), "runs", "list"]) == 1
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["checkpoints", "show", "~nobody-of-that-name/x"], 2),
        (["evaluate", "lance-demo", "--suite", "~nobody-of-that-name/x"], 2),
        (["evaluate", "lance-demo", "--suite", "text:~nobody-of-that-name/x"], 1),
        (["evaluate", "~nobody-of-that-name/x"], 2),
        (["variants", "quantize", "~nobody-of-that-name/x"], 2),
        (["variants", "quantize", "lance-demo", "--recipe", "~nobody-of-that-name/x"], 2),
        (["variants", "show", "~nobody-of-that-name/x"], 2),
        (["calibrations", "show", "~nobody-of-that-name/x"], 2),
        (["checkpoints", "add", "~nobody-of-that-name/x"], 2),
        (["--db", "~nobody-of-that-name/runs.db", "runs", "list"], 1),
    ],
)
def test_a_home_of_nobody_is_a_place_that_is_not_there(
    arguments: list[str],
    code: int,
    db: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(db.parent)
    assert run_command([*(() if "--db" in arguments else ("--db", str(db))), *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and "~nobody-of-that-name" in err and "fault" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "show", "N"],
        ["runs", "tag", "N", "--tags", "x"],
        ["runs", "list", "--limit", "N"],
        ["runs", "export", "--limit", "N"],
        ["jobs", "show", "N"],
        ["jobs", "log", "N"],
        ["jobs", "cancel", "N"],
        ["jobs", "retry", "N"],
        ["jobs", "wait", "N"],
        ["bench", "show", "N"],
        ["bench", "--rows", "N"],
        ["compare", "1", "N"],
        ["compare", "N"],
        ["evaluate", "lance-demo", "--baseline", "N"],
        ["calibrations", "run", "lance-demo", "--samples", "N"],
        ["calibrations", "run", "lance-demo", "--seed", "N"],
        ["checkpoints", "random", "x", "--size", "tiny", "--seed", "N"],
        ["generate", "--task", "t2i", "--prompt", "x", "--out", "x.png", "--seed", "N"],
        ["generate", "--task", "t2i", "--prompt", "x", "--out", "x.png", "--cfg", "nan"],
        ["generate", "--task", "t2i", "--prompt", "x", "--out", "x.png", "--shift", "inf"],
    ],
)
@pytest.mark.parametrize("number", ["9" * 25, "9" * 5000, "²"])
def test_a_number_that_cannot_be_is_one_line(
    arguments: list[str],
    number: str,
    db: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(db.parent)
    words = [number if word == "N" else word for word in arguments]
    assert run_command(["--db", str(db), *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["variants", "quantize", "lance-demo", "--recipe", "int9"],
        ["variants", "quantize", "lance-demo", "--calibration", "gone"],
        ["variants", "quantize", "nowhere"],
        ["variants", "import", ".", "--checkpoint", "lance-demo"],
        ["variants", "sensitivity", "nowhere", "--calibration", "gone"],
        ["variants", "sensitivity", "lance-demo", "--calibration", "gone"],
        ["calibrations", "run", "nowhere"],
        ["calibrations", "run", "lance-demo", "--suite", "gone.json"],
        ["evaluate", "nowhere"],
        ["evaluate", "lance-demo", "--suite", "gone"],
        ["evaluate", "lance-demo", "--baseline", "best"],
        ["bench", "--checkpoint", "nowhere"],
        ["bench", "--rows", "many"],
        ["checkpoints", "add", "."],
        ["checkpoints", "add", "/no/such"],
        ["checkpoints", "random", "x", "--name", "lance-demo", "--size", "tiny"],
        ["checkpoints", "random", "x", "--name", "../x", "--size", "tiny"],
    ],
)
def test_a_command_that_is_refused_makes_no_database(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["--db", str(tmp_path / "new" / "runs.db"), *arguments]) in (1, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_database_says_try_again_later(
    db: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.store.database.BUSY_TIMEOUT_S", 0.05)
    with Store.open(db) as store, store.write():
        assert run_command(["--db", str(db), "runs", "tag", "1", "--tags", "x"]) == 3
    assert "try again in a moment" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(db: Path) -> None:
    with Store.open(db) as store, store.write():
        for _ in range(3000):
            store.start_run(checkpoint="lance-demo", note="x" * 50)
    command = [
        sys.executable,
        "-m",
        "workbench",
        "--db",
        str(db),
        "runs",
        "list",
        "--limit",
        "5000",
        "--json",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_ctrl_c_exits_with_130(db: Path) -> None:
    with Store.open(db) as store:
        store.execute(
            "INSERT INTO jobs (kind, spec, spec_hash, state, host, created_at) "
            "VALUES ('evaluate', '{}', '', 'running', 'elsewhere', '2026-01-01T00:00:00.000Z')"
        )
    command = [sys.executable, "-m", "workbench", "--db", str(db), "jobs", "wait", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "running" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read().strip() == "interrupted"
    process.stderr.close()


def test_no_arguments_and_the_apps_options_open_the_app() -> None:
    assert _app_options([]) == {"db_path": None}
    assert _app_options(["--db", "x.db", "--no-mouse"]) == {"db_path": Path("x.db"), "mouse": False}
    assert _app_options(["--db=x.db"]) == {"db_path": Path("x.db")}
    assert _app_options(["--db", "x.db", "runs", "list"]) is None
    assert _app_options(["--help"]) is None


def test_help_names_every_noun_without_importing_any(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(noun in text for noun in NOUNS)
    assert list(root.list_commands(root.make_context("x", [], resilient_parsing=True))) == list(NOUNS)


def test_completion_knows_nouns_and_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["completion", "zsh"]) == 0
    assert "_LANCE_WORKBENCH_COMPLETE" in capsys.readouterr().out
    environment = {
        **os.environ,
        "_LANCE_WORKBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": "lance-workbench runs ",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "workbench"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["plain,export", "plain,list", "plain,show", "plain,tag"]


def test_doctor_finds_incomplete_manifests(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--db", str(db), "doctor", "--json"]) == 1
    checks = {check["subject"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["integrity"] == {"subject": "integrity", "state": "ok", "text": "sound"}
    assert checks["manifests"]["state"] == "error" and "run 2 lacks" in checks["manifests"]["text"]
    assert checks["torch"]["state"] == "ok"
    db.write_bytes(db.read_bytes()[:5000])
    run_command(["--db", str(db), "doctor"])
    assert "truncated" in capsys.readouterr().out
