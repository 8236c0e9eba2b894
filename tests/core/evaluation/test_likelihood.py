"""Teacher-forced divergence against torch.distributions, and the bound of the partition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from core.errors import DataError
from core.evaluation import likelihood


def _logits(seed: int, rows: int = 40, vocabulary: int = 300) -> torch.Tensor:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    logits[:, -7:] = -torch.inf  # ids that generation masks
    return logits


def _tokens(logits: torch.Tensor) -> list[int]:
    return logits.argmax(-1).tolist()


def test_divergence_matches_torch_distributions() -> None:
    ours, theirs = _logits(0), _logits(1)
    scores = likelihood.score(likelihood.log_probs(ours), theirs, _tokens(ours))
    kept = slice(None), slice(0, -7)
    expected = kl_divergence(
        Categorical(logits=ours[kept].double()), Categorical(logits=theirs[kept].double())
    )
    torch.testing.assert_close(scores.kl, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        scores.nll,
        -Categorical(logits=theirs[kept].double()).log_prob(torch.tensor(_tokens(ours))),
        rtol=1e-5,
        atol=1e-6,
    )
    assert scores.agrees.tolist() == (ours.argmax(-1) == theirs.argmax(-1)).tolist()


@pytest.mark.parametrize("full", [1000, 10])
def test_a_model_against_itself_is_exactly_zero(full: int) -> None:
    logits = _logits(2)
    scores = likelihood.score(likelihood.log_probs(logits, full, top=32), logits, _tokens(logits))
    assert scores.kl.tolist() == [0.0] * 40
    assert bool(scores.agrees.all())


def test_partition_bounds_from_below_and_is_exact_when_it_covers_all() -> None:
    ours, theirs = _logits(3), _logits(4)
    whole = likelihood.score(likelihood.log_probs(ours), theirs, _tokens(ours)).kl
    previous = torch.zeros_like(whole)
    for top in (4, 32, 128):
        part = likelihood.score(likelihood.log_probs(ours, 10, top), theirs, _tokens(ours)).kl
        assert bool((part <= whole + 1e-6).all())
        assert bool((part >= previous - 1e-6).all()), "a finer partition sees more of the divergence"
        previous = part
    covering = likelihood.log_probs(ours, 10, top=300)
    assert covering.ids is not None
    torch.testing.assert_close(
        likelihood.score(covering, theirs, _tokens(ours)).kl, whole, rtol=1e-6, atol=1e-6
    )


def test_partition_is_the_likely_ids_and_anything_else() -> None:
    ours, theirs = _logits(3).double().softmax(-1), _logits(4).double().softmax(-1)
    ids = ours.topk(16).indices

    def merged(probabilities: torch.Tensor) -> Categorical:
        likely = probabilities.gather(-1, ids)
        return Categorical(probs=torch.cat([likely, 1 - likely.sum(-1, keepdim=True)], dim=-1))

    found = likelihood.score(likelihood.log_probs(_logits(3), 10, 16), _logits(4), _tokens(_logits(3))).kl
    torch.testing.assert_close(found, kl_divergence(merged(ours), merged(theirs)), rtol=1e-5, atol=1e-6)


def test_what_the_variant_rules_out_is_infinitely_far() -> None:
    ours = torch.zeros(1, 4)
    theirs = torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])
    assert likelihood.score(likelihood.log_probs(ours), theirs, [0]).kl.item() == torch.inf
    assert torch.isfinite(likelihood.score(likelihood.log_probs(theirs), ours, [0]).kl).all()


def test_aggregate_weighs_samples_equally_and_pools_tokens() -> None:
    def sample(*kl: float) -> likelihood.TokenScores:
        values = torch.tensor(kl, dtype=torch.float64)
        return likelihood.TokenScores(values, values + 1, values < 1)

    result = likelihood.aggregate([sample(0.0, 0.0, 0.0, 0.4), sample(2.0)])
    assert result.kl.value == pytest.approx((0.1 + 2.0) / 2)
    assert result.kl.error == pytest.approx(0.95)
    assert result.kl_max == 2.0
    assert result.kl_p99 == pytest.approx(2.0 - 0.04 * 1.6)
    assert result.top1.value == pytest.approx(4 / 5)
    assert result.nll.value == pytest.approx((1.1 + 3.0) / 2)


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "1" / "likelihood.safetensors"
    whole, part = likelihood.log_probs(_logits(5)), likelihood.log_probs(_logits(6), 10, 16)
    likelihood.save(path, {0: whole, 3: part})
    table = likelihood.LikelihoodFile(path)
    assert torch.equal(table.get(0).values, whole.values)
    assert table.get(0).ids is None
    again = table.get(3)
    assert again.ids is not None and part.ids is not None and torch.equal(again.ids, part.ids)
    with pytest.raises(DataError, match="sample 2 is missing"):
        table.get(2)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"likelihood\.safetensors.*again"):
        likelihood.LikelihoodFile(path)


def test_another_answer_or_vocabulary_is_refused() -> None:
    kept = likelihood.log_probs(_logits(7))
    with pytest.raises(DataError, match="40 token positions"):
        likelihood.score(kept, _logits(7, rows=3), [0, 0, 0])
    with pytest.raises(DataError, match="300 entries"):
        likelihood.score(kept, _logits(7, vocabulary=200), [0] * 40)
