"""Perplexity: every token scored once with enough text before it, errors that know which tokens belong together."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import DataError, UsageError
from core.evaluation import comparison, gate, job, prose, report, statistics, suites
from core.evaluation.perplexity import TextExaminer, windows
from core.evaluation.readers import LanceReader


@pytest.mark.parametrize(("tokens", "given"), [(2, 0), (7, 0), (8, 1), (9, 0), (50, 2), (64, 0)])
def test_windows_score_every_token_once_behind_half_a_window(tokens: int, given: int) -> None:
    scored: list[int] = []
    for window in windows(tokens, given, context=8):
        assert window.stop - window.start <= 8
        assert window.start == 0 or window.first - window.start >= 4
        scored += range(window.first, window.stop)
    assert scored == list(range(max(1, given), tokens))


class Counting:
    """A reader of letters a to d that expects each letter to be followed by the next, with a known likelihood."""

    context = 8

    def __init__(self, sure: float = 4.0) -> None:
        self.sure = sure
        self.widest = 0

    def encode(self, text: str) -> tuple[list[int], int]:
        return [0, *("abcd".index(letter) + 1 for letter in text)], 1

    def logits(self, tokens: list[int], first: int) -> torch.Tensor:
        self.widest = max(self.widest, len(tokens))
        rows = torch.zeros(len(tokens) - first, 5)
        for row, before in zip(rows, tokens[first - 1 : -1], strict=True):
            row[before % 4 + 1] = self.sure
        return rows


def suite(tmp_path: Path, *documents: str) -> Any:
    path = tmp_path / "letters.txt"
    path.write_text("\n\f\n".join(documents))
    return prose.read(path)


def test_nll_is_the_mean_over_all_tokens_and_its_error_that_of_windows(tmp_path: Path) -> None:
    texts = suite(tmp_path, "abcdabcdabcd", "abcdabcdabcdabcdabcbb")
    reader = Counting()
    examiner = TextExaminer(reader, tmp_path, None, keep=True)
    rows = [examiner.examine(index, sample) for index, sample in enumerate(texts.samples)]
    right = math.log(4 + math.e**4) - 4
    assert rows[0]["nll"] == pytest.approx(right, rel=1e-5)
    # Two letters of the second document are not the expected ones.
    scores = examiner.scores()
    assert scores["nll"] == pytest.approx((33 * right + 2 * 4) / 33, rel=1e-5)
    assert scores["nll_se"] is not None
    assert scores["nll_se"] > 0
    assert reader.widest == 8
    assert rows[1]["tokens"] == reader.encode("abcdabcdabcdabcdabcbb")[0][1:]


def test_against_itself_nothing_diverges_and_a_surer_model_does(tmp_path: Path) -> None:
    texts = suite(tmp_path, "abcdabcdabcdab", "bbbbb")
    kept = TextExaminer(Counting(), tmp_path, None, keep=True)
    rows = [kept.examine(index, sample) for index, sample in enumerate(texts.samples)]
    kept.save(tmp_path)

    class Stored:
        artifact = tmp_path / "likelihood.safetensors"
        run = {"id": 1}  # noqa: RUF012

        def output(self, index: int, sample: Any) -> dict[str, Any]:
            return rows[index]

    for sure, apart in ((4.0, 0.0), (5.0, 0.01)):
        examiner: Any = TextExaminer(Counting(sure), tmp_path, Stored(), keep=False)  # type: ignore[arg-type]
        found = [examiner.examine(index, sample) for index, sample in enumerate(texts.samples)]
        scores = examiner.scores()
        p = torch.log_softmax(torch.tensor([4.0, 0, 0, 0, 0]), 0)
        q = torch.log_softmax(torch.tensor([sure, 0, 0, 0, 0]), 0)
        assert scores["kl"] == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-6)
        assert scores["kl"] >= apart
        assert scores["top1"] == 1.0
        assert len(found[0]["kl_tokens"]) == len(found[0]["tokens"]) == 14
    rows[1]["tokens"] = rows[1]["tokens"][:-1]
    with pytest.raises(DataError, match="document 002: run 1 read it as other tokens"):
        examiner.examine(1, texts.samples[1])


def test_clustered_errors() -> None:
    # Clusters of one token each: the ordinary standard error.
    values = [1.0, 2.0, 4.0, 4.0]
    assert statistics.clustered_mean(values, [1] * 4).error == pytest.approx(statistics.mean(values).error)
    # Copies of a token in its cluster add no certainty.
    twice = statistics.clustered_mean([2 * value for value in values], [2] * 4)
    assert twice.error == pytest.approx(statistics.mean(values).error)
    assert statistics.clustered_mean([3.0], [2]).error is None
    alike = statistics.clustered_proportion([10, 0, 10, 0], [10] * 4)
    apart = statistics.clustered_proportion([5, 5, 5, 5], [10] * 4)
    assert alike.value == apart.value == 0.5
    assert alike.high - alike.low > 2 * (apart.high - apart.low)
    assert apart == statistics.wilson(20, 40)


def test_text_files_are_documents(tmp_path: Path) -> None:
    found = suite(tmp_path, "One.\n\nStill one.", "", "Two.")
    assert (found.name, found.task) == ("letters", "perplexity")
    assert [sample.prompt for sample in found.samples] == ["One.\n\nStill one.", "Two."]
    shipped = suites.load("text")
    assert shipped.name == "text"
    assert len(shipped.samples) == 4
    assert shipped.samples[0].prompt.startswith("Down the Rabbit-Hole\n\nAlice was beginning")
    (tmp_path / "empty.txt").write_text(" \f \n")
    with pytest.raises(DataError, match=r"empty\.txt: holds no words"):
        prose.read(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("Café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not a text file in UTF-8 \(byte 3\)"):
        prose.read(tmp_path / "latin.txt")


def test_lance_reads_text_as_its_own_decoder_does(tiny_pipeline: Any) -> None:
    reader = LanceReader(tiny_pipeline)
    tokens, given = reader.encode("A table of <|im_end|> and chairs.")
    assert given == 0
    assert tiny_pipeline.tokenizer.convert_tokens_to_ids("<|im_end|>") not in tokens
    whole = reader.logits(tokens, 1)
    assert whole.shape[0] == len(tokens) - 1
    # Causal: what comes later changes nothing, and a window scores what the whole does.
    assert torch.allclose(reader.logits(tokens[:5], 3), whole[2:4], atol=1e-5)
    changed = [*tokens[:-1], tokens[0]]
    assert torch.allclose(reader.logits(changed, 1), whole, atol=1e-5)


def test_a_variant_is_scored_against_bf16_on_a_users_text(
    tiny_world: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    store = tiny_world.context.store
    path = tmp_path / "mine.txt"
    path.write_text(
        "The table is red and the chair is blue. " * 30 + "\f" + "A green ball lies under it. " * 20
    )
    spec = {"suites": [f"text:{path}"], "device": "cpu", "dtype": "float32"}
    name = tiny_world.variants["int4-minmax"]["variant"]
    done = job.run(spec | {"checkpoint": name}, tiny_world.context)
    first, second = store.run(done["baselines"][0]), store.run(done["runs"][0])
    assert (first["task"], first["suite"], first["samples"]) == ("perplexity", "mine", 2)
    assert first["kl"] is None
    assert first["nll_se"] > 0
    assert second["kl"] > 0
    assert 0 < second["top1"] < 1
    outputs = store.outputs(second["id"])
    assert len(outputs[0]["kl_tokens"]) == len(outputs[0]["tokens"])
    compared = comparison.compare(store, first["id"], second["id"])
    assert "exact" not in compared.scores
    assert [pair.differs for pair in compared.pairs] == [True, True]
    text = report.markdown(compared)
    wanted = prose.perplexity(second)["perplexity"]
    assert wanted == pytest.approx(math.exp(second["nll"]))
    assert re.search(rf"\| perplexity +\| +{wanted:.2f} ± ", text)
    assert gate.judge(gate.parse("kl=100"), [compared])[0].passed
    with pytest.raises(UsageError, match="mine measures no exact"):
        gate.judge(gate.parse("exact=1"), [compared])
    # The same text again is scored against the same run, however the file is called.
    again = tmp_path / "again.txt"
    again.write_text(path.read_text())
    repeated = job.run(spec | {"checkpoint": name, "suites": [f"text:{again}"]}, tiny_world.context)
    assert repeated["baselines"] == []
    assert store.run(repeated["runs"][0])["kl"] == second["kl"]
