"""``export`` from the command line: real jobs for transformers, a stand-in exporter for what a machine may lack."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from command_line import CommandLine

from core.demo import CHECKPOINT
from core.errors import WorkbenchError
from core.formats import export_job, export_request
from core.formats.exported import Exported
from core.store import Store
from workbench.cli.export import _show

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return CommandLine(tmp_path / "place" / "runs.db", capfd)


def test_a_checkpoint_is_exported_beside_the_database(run: CommandLine, tmp_path: Path) -> None:
    done = run.json("export", "huggingface", "lance-demo")
    assert (done["kind"], done["state"]) == ("export", "succeeded")
    result, output = done["result"], tmp_path / "place" / "runs.data" / "exports" / "lance-demo_huggingface"
    assert result["path"] == str(output) and result["checkpoint"] == "lance-demo"
    assert set(result["files"]) == {path.name for path in output.iterdir()}
    assert result["size_bytes"] == sum(path.stat().st_size for path in output.iterdir())
    assert f'from_pretrained("{output}")' in result["loads_with"]
    log = run("jobs", "log", "1")
    assert "writing layer 4 of 4" in log and "left out: the generation expert" in log
    assert "lance-demo · huggingface" in run("jobs", "list", "--all")
    assert f"{output}: a folder that holds something" in run.refused("export", "huggingface", "lance-demo")
    # Its own layout: there is nothing to be done.
    said = run.refused("export", "huggingface", str(output))
    assert f"is a Hugging Face model already; copy {output}" in said and "mlx or coreml" in said

    text = run("export", "huggingface", str(CHECKPOINT), "--output", "mine")
    lines = text.splitlines()
    assert lines[0].split() == ["path", str(tmp_path / "mine")]
    assert lines[1].startswith("size") and lines[1].endswith(" MB")
    assert [line.startswith("left out") for line in lines[4:]] == [True, False, False, False]
    assert "the VAE (Wan2.2_VAE" in lines[-1]

    number = run("export", "huggingface", "lance-demo", "--output", "other", "--detach").strip()
    assert run.json("jobs", "wait", number)["state"] == "succeeded"
    assert (tmp_path / "other" / "config.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huggingface", "nowhere"], "nowhere: no checkpoint or variant of that name and no such folder"),
        (["huggingface", "empty"], "no checkpoint"),
        (
            ["huggingface", "lance-demo", "--output", "taken"],
            "taken: a folder that holds something; remove it",
        ),
        (["huggingface", "lance-demo", "--output", "taken/file"], "taken/file: a file; choose another"),
        (["gguf", "lance-demo"], "No such command 'gguf'; commands are coreml, huggingface, mlx"),
        (["huggingface"], "Missing argument 'SOURCE'"),
    ],
)
def test_what_is_plainly_wrong_is_refused_before_a_job(
    run: CommandLine, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("years of work")
    assert message in run.refused("export", *arguments, code=1 if "empty" in arguments else 2)
    assert (tmp_path / "taken" / "file").read_text() == "years of work"


@pytest.mark.parametrize(("format_", "missing", "extra"), [("mlx", "mlx_lm", "mlx"), ("coreml",) * 3])
def test_a_missing_package_is_named_with_its_extra(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, format_: str, missing: str, extra: str
) -> None:
    absent = {"coreml": "coremltools"}.get(missing, missing)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else real(name))
    said = run.refused("export", format_, "lance-demo", code=1)
    assert f'{absent} is not installed; `pip install "lance-workbench[{extra}]"`' in said


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Exported]], None]:
    """Puts a function in the place of the exporter for MLX."""

    def put(function: Callable[..., Exported]) -> None:
        module = ModuleType("stand_in_export")
        module.export = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "stand_in_export", module)
        changed = export_request.ExportFormat("stand_in_export:export", "For a test.")
        monkeypatch.setitem(export_request.FORMATS, "mlx", changed)

    return put


def test_a_job_hands_over_source_place_and_voice(stand_in: Any, tmp_path: Path, capsys: Any) -> None:
    steps: list[tuple[float, str]] = []
    lines: list[str] = []

    def export(source: Path, output: Path, say: Callable[[str], None]) -> Exported:
        assert source == CHECKPOINT.resolve()
        say("converting")
        output.mkdir(parents=True)
        (output / "weights").write_text("1234")
        return Exported(output, 4, {"weights": "0" * 64}, ("the VAE", "the vision tower"), "mlx_lm.load(…)")

    stand_in(export)
    with Store.open(tmp_path / "runs.db") as store:
        context: Any = SimpleNamespace(
            store=store, progress=lambda done, total, unit, text: steps.append((done, text)), log=lines.append
        )
        result = export_job.run({"checkpoint": "lance-demo", "format": "mlx", "output": None}, context)
        assert result["path"] == str(store.data_dir / "exports" / "lance-demo_mlx")
    assert steps[1:] == [(1, "converting")] and lines[1:] == ["converting", "left out: the VAE",
                                                              "left out: the vision tower"]  # fmt: skip
    assert json.loads(json.dumps(result)) == result
    _show({"result": result})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "size        4 B",
        "files       1",
        "loads with  mlx_lm.load(…)",
        "left out    the VAE",
        "            the vision tower",
    ]


def test_an_exporter_that_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = export_request.ExportFormat("no_such_exporter:export", "For a test.", (), "mlx")
    monkeypatch.setitem(export_request.FORMATS, "mlx", changed)
    with Store.open(tmp_path / "runs.db") as store:
        context: Any = SimpleNamespace(store=store, progress=lambda *_: None, log=lambda text: None)
        with pytest.raises(WorkbenchError, match=r"export as mlx: cannot be imported .*no_such_exporter"):
            export_job.run({"checkpoint": "lance-demo", "format": "mlx"}, context)


def test_help_and_completion_import_nothing_that_computes() -> None:
    code = (
        "import sys; sys.argv[1:] = ['export', 'mlx', '--help']\nfrom workbench.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "SOURCE is a checkpoint or variant" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"torch", "numpy", "transformers", "mlx", "mlx_lm", "coremltools", "textual"}
    environment = {
        **os.environ, "_LANCE_WORKBENCH_COMPLETE": "bash_complete", "COMP_WORDS": "lance-workbench export ",
        "COMP_CWORD": "2",
    }  # fmt: skip
    command = [sys.executable, "-m", "workbench"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,coreml", "plain,huggingface", "plain,mlx"]
