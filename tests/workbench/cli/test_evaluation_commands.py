"""``evaluate``, ``compare`` and ``generate`` as a person types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.store import Store
from workbench.cli.main import run_command


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on the test's own database: (exit code, stdout, stderr)."""
    monkeypatch.setenv("LANCE_WORKBENCH_DB", str(tmp_path / "runs.db"))

    def run(*words: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command([*map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def stored(tmp_path: Path) -> tuple[int, int]:
    """A bf16 run and a variant's, one of three answers changed."""
    with Store.open(tmp_path / "runs.db") as store:
        ids = []
        for recipe, answers in (("bf16", ["1", "2", "three"]), ("int4", ["1", "2", "tree"])):
            variant = None if recipe == "bf16" else "demo_int4-g64"
            run_id = store.start_run(
                checkpoint="demo", variant=variant, recipe=recipe, suite="set", task="x2t_image", samples=3,
                baseline_run_id=ids[0] if ids else None,
            )  # fmt: skip
            for index, text in enumerate(answers):
                store.add_output(run_id, index, sample_key=f"s{index}", task="x2t_image", text=text)
            store.set_scores(run_id, kl=0.25, kl_se=0.125)
            store.finish_run(run_id, "succeeded", 1.0)
            ids.append(run_id)
    return ids[0], ids[1]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    sample = {
        "interleave_array": ["red.png", ["Look.", "Which colour?", "red"]],
        "element_dtype_array": ["image", "text"],
        "istarget_in_interleave": [0, 1],
    }
    (tmp_path / "questions.json").write_text(json.dumps({"0": sample}))
    return tmp_path / "questions.json"


def test_compare_on_the_terminal(run: Any, stored: tuple[int, int]) -> None:
    code, out, _ = run("compare", "demo", "demo_int4-g64")
    assert code == 0
    assert out.startswith("run 2 demo_int4-g64 beside run 1 demo_bf16 on set: 1 of 3 outputs differ\n")
    assert "0.2500 ±0.1250" in out
    assert [line.split()[:2] for line in out.splitlines()[-3:]] == [["s0", "="], ["s1", "="], ["s2", "≠"]]


def test_compare_as_json_and_markdown(run: Any, stored: tuple[int, int], tmp_path: Path) -> None:
    code, out, _ = run("compare", "2", "--json")
    assert code == 0
    assert [sample["differs"] for sample in json.loads(out)[0]["samples"]] == [False, False, True]
    code, out, _ = run("compare", "1", "2", "--format", "markdown")
    assert code == 0
    assert "[-three-]{+tree+}" in out
    code, out, err = run("compare", "1", "2", "--out", tmp_path / "report.md")
    assert (code, out) == (0, "")
    assert "report.md written" in err
    assert "[-three-]{+tree+}" in (tmp_path / "report.md").read_text()
    run("compare", "1", "2", "--out", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())[0]["first"]["id"] == 1


def test_gates_that_hold_and_gates_that_fail(run: Any, stored: tuple[int, int], tmp_path: Path) -> None:
    code, out, err = run("compare", "demo", "demo_int4-g64", "--gate", "kl=0.25, exact=0.5")
    assert (code, err) == (0, "")
    assert [line.split()[-1] for line in out.splitlines()[-2:]] == ["pass", "pass"]
    code, out, err = run("compare", "1", "2", "--gate", "kl=0.05,exact=0.5", "--json")
    assert code == 1
    assert err == "error: 1 of 2 gates failed: kl on set is 0.25, wanted at most 0.05\n"
    kl, exact = json.loads(out)[0]["gates"]
    assert kl == {
        "suite": "set", "score": "kl", "value": 0.25, "interval": {"kl_se": 0.125}, "relation": "at most",
        "limit": 0.05, "passed": False,
    }  # fmt: skip
    assert (exact["relation"], exact["passed"]) == ("at least", True)
    # A report is written in either case, and standard output stays a document of its own.
    code, out, err = run("compare", "1", "2", "--gate", "exact=0.9", "--out", tmp_path / "report.md")
    assert code == 1
    assert "FAIL" in out
    assert (tmp_path / "report.md").is_file()
    code, out, err = run("compare", "1", "2", "--gate", "exact=0.9", "--format", "markdown")
    assert code == 1
    assert "FAIL" in err
    assert "FAIL" not in out


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("kl", "gate 'kl': wanted score=limit, for example kl=0.05,top1=0.97"),
        ("speed=1", "gate 'speed=1': no score 'speed'; scores are exact, truth,"),
        ("kl=low", "gate 'kl=low': the limit is 'low', wanted a number"),
        ("kl=nan", "gate 'kl=nan': the limit is 'nan', wanted a number"),
        ("top1=97", "gate 'top1=97': top1 is a share, wanted a limit from 0 to 1"),
        ("kl=1,kl=2", "gate 'kl=2': kl has a limit already"),
        (
            "top1=0.9",
            "gate top1: not known of run 2 against run 1, as it was not scored against its samples;",
        ),
        ("psnr=30", "gate psnr: set measures no psnr; compare another suite"),
        ("truth=0.9", "gate truth: run 2 has none, the truth of set is not known"),
    ],
)
def test_gates_that_cannot_be_judged(run: Any, stored: tuple[int, int], gate: str, message: str) -> None:
    code, out, err = run("compare", "1", "2", "--gate", gate)
    assert (code, out) == (2, "")
    assert message in err


def test_a_gate_asks_for_no_baseline_that_would_be_refused(
    run: Any, stored: tuple[int, int], tmp_path: Path
) -> None:
    _, _, err = run("compare", "1", "2", "--gate", "top1=0.9")
    assert "evaluate demo_int4-g64 with --baseline 1" in err
    with Store.open(tmp_path / "runs.db") as store:
        other = store.start_run(checkpoint="other", recipe="bf16", suite="set", task="x2t_image", samples=3)
        for index in range(3):
            store.add_output(other, index, sample_key=f"s{index}", task="x2t_image", text="1")
        store.finish_run(other, "succeeded", 1.0)
    code, _, err = run("compare", str(other), "2", "--gate", "top1=0.9")
    assert code == 2
    assert "--baseline" not in err
    assert "only a bf16 run of demo can be its baseline" in err


def test_compare_mistakes(run: Any, stored: tuple[int, int]) -> None:
    code, out, err = run("compare", "demo", "demo_int5")
    assert (code, out) == (2, "")
    assert err == (
        "error: demo_int5: no finished evaluation; evaluated are demo_bf16, demo_int4-g64; "
        "`evaluate demo_int5` runs one\n"
    )
    assert run("compare", "1", "99")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no checkpoint or variant"),
        (["lance-demo", "--suite", "nothing"], "nothing: no such suite"),
        (["lance-demo", "--suite", "text:nothing.txt"], "nothing.txt: cannot be read"),
        (["lance-demo", "--suite", "QUESTIONS", "--baseline", "x"], "baseline 'x': wanted auto, none or"),
        (["lance-demo", "--suite", "QUESTIONS", "--baseline", "²"], "baseline '²': wanted auto, none or"),
        (["lance-demo", "--suite", "QUESTIONS", "--baseline", "9" * 5000], "wanted auto, none or"),
        (["lance-demo", "--suite", "QUESTIONS", "--baseline", "99"], "run 99: not in "),
        (
            ["lance-demo", "--suite", "QUESTIONS", "--resolution", "huge"],
            "huge: no such resolution; known are",
        ),
    ],
)
def test_evaluate_mistakes_queue_no_job(
    run: Any, questions: Path, tmp_path: Path, tiny_checkpoint: Path, words: list[str], message: str
) -> None:
    places = {"QUESTIONS": str(questions), "lance-demo": str(tiny_checkpoint)}
    code, out, err = run("evaluate", *(places.get(word, word) for word in words))
    assert (code, out) == (1 if "cannot be read" in message else 2, "")
    assert message in err
    assert err.count("\n") == 1
    with Store.open(tmp_path / "runs.db") as store:
        assert store.value("SELECT count(*) FROM jobs") == 0


@pytest.fixture
def bf16_run(tmp_path: Path, questions: Path, tiny_checkpoint: Path) -> Callable[..., int]:
    """Records a finished bf16 evaluation of the tiny checkpoint on ``questions``, with what is said otherwise."""
    from core.checkpoints import describe
    from core.evaluation import baseline, conditions, suites

    def record(
        kept: bool = True,
        evaluation: Mapping[str, Any] | None = None,
        limit: int | None = None,
        **fields: Any,
    ) -> int:
        info, suite = describe(tiny_checkpoint), suites.load(str(questions), limit)
        same = conditions.shared(suite, conditions.settings_of(info, suite, None), info.fingerprint)
        usual = {"kind": "evaluate", "recipe": "bf16", "suite": suite.name, "task": suite.task, "samples": 1}
        with Store.open(tmp_path / "runs.db") as store:
            manifest = {"evaluation": same | dict(evaluation or {})}
            run_id = store.start_run(checkpoint="lance-tiny", manifest=manifest, **usual | fields)
            store.finish_run(run_id)
            file = baseline.run_folder(store, run_id) / baseline.LIKELIHOOD
        if kept:
            file.parent.mkdir(parents=True)
            file.touch()
        return run_id

    return record


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"variant": "lance-tiny_int4", "recipe": "int4"},
            "run 1 is succeeded, of lance-tiny_int4: wanted a finished",
        ),
        ({"kind": "calibrate"}, "wanted a finished evaluation of a bf16 checkpoint"),
        (
            {"evaluation": {"suite": "5a17"}, "suite": "demo-x2t", "samples": 200},
            "run 1 had suite demo-x2t of 200 samples, this evaluation has suite questions of 1 samples",
        ),
        (
            {"evaluation": {"suite": "5a17"}},
            "run 1 had suite questions of 1 samples of other content, this evaluation",
        ),
        (
            {"evaluation": {"settings": {"height": 64}}},
            "run 1 had settings {'height': 64}, this evaluation has {",
        ),
        (
            {"evaluation": {"source": "5a17"}},
            "run 1 is of lance-tiny_bf16, not of the checkpoint evaluated here",
        ),
        ({"kept": False}, "likelihood.safetensors: gone, so run 1 cannot be scored against"),
    ],
)
def test_a_run_that_cannot_be_a_baseline_queues_no_job(
    run: Any,
    bf16_run: Callable[..., int],
    questions: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    message: str,
) -> None:
    number = bf16_run(**fields)
    code, out, err = run("evaluate", tiny_checkpoint, "--suite", questions, "--baseline", number)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    with Store.open(tmp_path / "runs.db") as store:
        assert store.value("SELECT count(*) FROM jobs") == 0


def test_a_run_that_was_scored_itself_names_the_one_to_score_against(
    run: Any, bf16_run: Callable[..., int], questions: Path, tiny_checkpoint: Path
) -> None:
    first = bf16_run()
    floor = bf16_run(baseline_run_id=first)
    code, _, err = run("evaluate", tiny_checkpoint, "--suite", questions, "--baseline", floor)
    assert code == 2 and "run 2 was scored against run 1 itself" in err and "give --baseline 1" in err


def test_a_run_that_can_be_a_baseline_is_queued_with_its_job(
    run: Any,
    bf16_run: Callable[..., int],
    questions: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("core.jobs.ensure_supervisor", lambda store: None)
    number = bf16_run()
    code, _, err = run("evaluate", tiny_checkpoint, "--suite", questions, "--baseline", number, "--detach")
    assert code == 0, err
    with Store.open(tmp_path / "runs.db") as store:
        assert json.loads(store.value("SELECT spec FROM jobs"))["baseline"] == number


def test_evaluate_then_compare(run: Any, questions: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "tiny")
    own = tmp_path / "tiny" / "Lance_Tiny" / "lance_workbench.json"
    record = json.loads(own.read_text())
    record["defaults"]["max_new_tokens"] = 4
    own.write_text(json.dumps(record))
    code, out, err = run("evaluate", own.parent, "--suite", questions, "--device", "cpu")
    assert code == 0, err
    assert "lance-tiny_bf16" in out
    assert "1/1 samples" in err
    code, out, _ = run("compare", "1", "1")
    assert (code, out.splitlines()[0].split(": ")[1]) == (0, "0 of 1 outputs differ")
    code, out, _ = run("jobs", "show", "1", "--json")
    assert json.loads(out)["result"] == {"runs": [1], "baselines": []}


def test_generate_answers_and_draws(run: Any, tiny_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    picture = questions.with_name("red.png")
    common = ["generate", "--checkpoint", tiny_checkpoint, "--device", "cpu"]
    code, out, err = run(*common, "--task", "x2t_image", "--image", picture, "--prompt", "What?", "--max-new-tokens", 3,
                         "--json")  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    assert answer["task"] == "x2t_image" and 1 <= len(answer["tokens"]) <= 3
    assert "loading lance-tiny on cpu" in err
    code, out, _ = run(*common, "--task", "t2i", "--prompt", "a cube", "--out", tmp_path / "cube.png", "--height", 32,
                       "--width", 32, "--steps", 2)  # fmt: skip
    assert (code, out) == (0, f"{tmp_path / 'cube.png'}\n")
    assert not (tmp_path / "runs.db").exists(), "asking records nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "x2t_image", "--image", "NOTE"], "note.txt: not an image that can be read"),
        (["--task", "x2t_image"], "x2t_image needs --image FILE"),
        (["--task", "t2i"], "t2i needs --out FILE.png"),
        (["--task", "t2i", "--out", "a.png", "--image", "NOTE"], "--image: not an option of the task t2i"),
        (["--task", "t2i", "--out", "a.png", "--height", "50"], "the nearest is 48"),
        (["--task", "t2i", "--out", "a.png", "--checkpoint", "nowhere"], "nowhere: no checkpoint or variant"),
    ],
)
def test_generate_mistakes(
    run: Any,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("no picture")
    if "--checkpoint" not in words:
        words = [*words, "--checkpoint", str(tiny_checkpoint)]
    code, out, err = run(
        "generate", "--prompt", "What?", *(str(tmp_path / "note.txt") if w == "NOTE" else w for w in words)
    )
    assert code in (1, 2)
    assert out == ""
    assert message in err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "words", ["'compare', '1', '2'", "'compare', '--help'", "'evaluate', '--help'", "'generate', '--help'"]
)
def test_no_torch_without_need(stored: tuple[int, int], tmp_path: Path, words: str) -> None:
    code = (
        "import sys; from workbench.cli.main import run_command; "
        f"run_command(['--db', {str(tmp_path / 'runs.db')!r}, {words}]); "
        "sys.exit('torch' in sys.modules or 'textual' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
