"""Two stored evaluations side by side: scores, what cannot be compared, and the report to the byte."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.errors import UsageError
from core.evaluation import comparison, documents, report
from core.store import Store

GOLDEN = Path(__file__).with_name("comparison_report.md")
DATE = "2026-11-21T14:02:00.000Z"


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(tmp_path / "runs.db") as opened:
        yield opened


def _run(store: Store, recipe: str, outputs: list[dict[str, Any]], **fields: Any) -> int:
    scores = fields.pop("scores", {})
    run_id = store.start_run(
        **{
            "checkpoint": "tiny",
            "variant": None if recipe == "bf16" else f"tiny_{recipe}",
            "recipe": recipe,
            "suite": "set",
            "task": "x2t_image",
            "samples": len(outputs),
            "device": "cpu",
            "created_at": DATE,
            "manifest": {"versions": {"torch": "2.13.0"}},
        }
        | fields
    )
    for index, output in enumerate(outputs):
        store.add_output(run_id, index, **{"task": fields.get("task", "x2t_image")} | output)
    store.set_scores(run_id, **scores)
    store.finish_run(run_id, "succeeded", 3.0)
    return run_id


def _answer(key: str, text: str, truth: float | None = None, **fields: Any) -> dict[str, Any]:
    return {"sample_key": key, "question": f"What is {key}?", "text": text, "truth": truth} | fields


def _texts(store: Store) -> tuple[int, int]:
    first = _run(
        store,
        "bf16",
        [
            _answer("a", "29%", 1.0, expected="29%"),
            _answer("b", "The plate is BX62."),
            _answer("c", "```py\nx\n```", 1.0),
        ],
        bits=16.0,
        size_bytes=19_800_000,
        scores={"seconds": 0.5, "truth": 1.0, "truth_low": 0.34, "truth_high": 1.0},
    )
    second = _run(
        store,
        "int4",
        [
            _answer("a", "29%", 1.0, kl=0.0, kl_max=0.0, top1=1.0),
            _answer("b", "The plate is BX26.", kl=0.25, kl_max=1.5, top1=0.75),
            _answer("c", "```py\ny\n```", 0.0, kl=0.5, kl_max=2.0, top1=0.5),
        ],
        bits=4.4,
        size_bytes=8_100_000,
        baseline_run_id=first,
        scores={
            "seconds": 0.75, "truth": 0.5, "truth_low": 0.09, "truth_high": 0.91, "kl": 0.25, "kl_se": 0.144,
            "kl_p99": 1.98, "kl_max": 2.0, "top1": 0.8, "top1_low": 0.6, "top1_high": 0.9,
        },
    )  # fmt: skip
    return first, second


def test_scores_of_two_runs(store: Store) -> None:
    compared = comparison.compare(store, *_texts(store))
    assert [pair.differs for pair in compared.pairs] == [False, True, True]
    assert compared.scores["exact"] == pytest.approx(1 / 3)
    assert compared.pairs[1].scores["levenshtein"] == pytest.approx(1 - 2 / 18)
    assert compared.pairs[1].scores["jaccard"] == pytest.approx(3 / 5)
    assert compared.scores["kl"] == 0.25
    assert compared.truth_difference is not None
    assert compared.truth_difference.value == pytest.approx(-0.5)


def test_runs_that_were_not_scored_against_each_other_have_no_likelihood(store: Store) -> None:
    first, second = _texts(store)
    backwards = comparison.compare(store, second, first)
    assert "kl" not in backwards.scores
    assert "kl" not in backwards.pairs[0].scores
    assert backwards.scores["exact"] == pytest.approx(1 / 3)


def test_only_common_samples_are_compared(store: Store) -> None:
    first, _ = _texts(store)
    short = _run(
        store, "int3", [_answer("b", "The plate is BX62.")], baseline_run_id=first, scores={"kl": 9.0}
    )
    assert [pair.key for pair in comparison.compare(store, first, short).pairs] == ["b"]
    other = _run(store, "int3", [_answer("b", "x", question="Another question?")])
    with pytest.raises(UsageError, match="no sample in common"):
        comparison.compare(store, first, other)


def test_what_cannot_be_compared(store: Store) -> None:
    first, _ = _texts(store)
    elsewhere = _run(store, "int4", [], suite="other")
    with pytest.raises(UsageError, match="suite set, run 3 of other: wanted one suite"):
        comparison.compare(store, first, elsewhere)
    made = _run(store, "int4", [], kind="quantize")
    with pytest.raises(UsageError, match="of the kind quantize"):
        comparison.compare(store, first, made)
    with pytest.raises(UsageError, match="run 99"):
        comparison.compare(store, first, 99)


def test_pictures(store: Store, tmp_path: Path) -> None:
    def drawn(colour: str) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), colour).save(buffer, "PNG")
        media = store.add_media(buffer.getvalue(), "image/png", 16, 16)
        return {
            "sample_key": colour,
            "question": "p",
            "output_media": media,
            "pixel": 1.0,
            "text": "red square",
        }

    black, grey = drawn("#000000"), drawn("#0a0a0a")
    first = _run(store, "bf16", [black], task="t2i")
    second = _run(store, "int4", [grey | {"sample_key": "#000000"}], task="t2i")
    compared = comparison.compare(store, first, second)
    assert compared.pairs[0].differs
    assert compared.scores["mae"] == 10.0
    assert compared.scores["mae_se"] is None
    text = report.markdown(compared, {black["output_media"]: "pictures/0.png"}, DATE)
    assert "![picture](pictures/0.png)" in text
    assert "shows red square" in text
    assert not comparison.compare(store, first, first).pairs[0].differs
    out = tmp_path / "reports" / "grey square.md"
    document, *files = documents.write_markdown(store, [compared, compared], out)
    assert document == out
    assert len(files) == 2
    for file in files:
        assert f"![picture](grey%20square.media/{file.name})" in out.read_text()
        with Image.open(file) as image:
            assert image.size == (16, 16)


def test_report_is_golden(store: Store) -> None:
    text = report.markdown(comparison.compare(store, *_texts(store)), date=DATE)
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_a_fence_is_longer_than_any_run_of_backticks() -> None:
    assert report.fenced("plain") == "```\nplain\n```\n"
    assert report.fenced("a ```` b").startswith("`````\n")


@given(st.text(alphabet="ab \n", max_size=30), st.text(alphabet="ab \n", max_size=30))
def test_word_difference_gives_both_texts_back(first: str, second: str) -> None:
    pieces = comparison.words(first, second)
    assert "".join(piece.text for piece in pieces if piece.kind != "added") == first
    assert "".join(piece.text for piece in pieces if piece.kind != "removed") == second


def test_comparison_is_plain_json(store: Store) -> None:
    data = json.loads(json.dumps(comparison.compare(store, *_texts(store)).as_dict()))
    assert [sample["key"] for sample in data["samples"] if sample["differs"]] == ["b", "c"]
    assert data["truth_difference"]["value"] == -0.5
