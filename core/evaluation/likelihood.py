"""Teacher-forced likelihood: how next-token distributions differ from bf16's, on bf16's own answers.

The baseline keeps, for every answer token it gave, the log-probabilities it gave them with (``LogProbs``). A
variant is fed the same prompt and the same answer and scored position by position, so one early slip does not
spoil the rest.

A vocabulary of at most FULL_VOCABULARY entries is kept whole. A larger one is kept as its TOP most likely ids
and the log of the mass of all others together; the divergence is then taken over that partition (TOP ids and
"anything else"), which by the log-sum inequality is never above the divergence over the whole vocabulary: a
lower bound, exact where the two models spread the remaining mass alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import DataError
from core.evaluation import statistics
from core.evaluation.artifact import ArtifactFile, save_artifact

FULL_VOCABULARY = 16384
TOP = 2048
# Rows worked on at once: float64 of 32 x 151,936 entries is 39 MB a copy.
_ROWS = 32


@dataclass(frozen=True)
class LogProbs:
    """Next-token log-probabilities (nats) of one answer of T tokens.

    Attributes:
        values: float32 [T, V], or [T, TOP] of the most likely ids, descending.
        ids: None when the vocabulary is whole, else int32 [T, TOP], the id of each value.
        rest: None when the vocabulary is whole, else float32 [T], log of the mass of all other ids.
    """

    values: torch.Tensor
    ids: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    def most_likely(self) -> torch.Tensor:
        """The most likely id at each position, int64 [T]."""
        return self.values.argmax(-1) if self.ids is None else self.ids[:, 0].long()


@dataclass(frozen=True)
class TokenScores:
    """One answer scored token by token: ``kl`` and ``nll`` float64 [T] in nats, ``agrees`` bool [T]."""

    kl: torch.Tensor
    nll: torch.Tensor
    agrees: torch.Tensor


@dataclass(frozen=True)
class Aggregate:
    """Means of per-sample means with errors across samples; p99, maximum and agreement over all tokens."""

    kl: statistics.Mean
    kl_p99: float
    kl_max: float
    top1: statistics.Proportion
    nll: statistics.Mean


def log_probs(logits: torch.Tensor, full_vocabulary: int = FULL_VOCABULARY, top: int = TOP) -> LogProbs:
    """Log-probabilities to keep of ``logits`` float32 [T, V] (masked ids are -inf)."""
    values = torch.log_softmax(logits.float(), dim=-1)
    vocabulary = values.shape[-1]
    if vocabulary <= full_vocabulary:
        return LogProbs(values.cpu())
    best = values.topk(min(top, vocabulary), dim=-1)
    return LogProbs(
        best.values.cpu(), best.indices.to(torch.int32).cpu(), _rest(values, best.indices).float().cpu()
    )


def _rest(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log of the mass outside ``ids``, float64 [T]; summed over the others, so tiny masses keep digits."""
    return torch.cat(
        [
            rows.double().scatter(-1, own.long(), -torch.inf).logsumexp(-1)
            for rows, own in zip(values.split(_ROWS), ids.split(_ROWS), strict=True)
        ]
    )


def divergence(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    """KL(reference || candidate) in nats per row of two log-probability tables [T, C], as float64 [T].

    Computed as sum of p log(p/q) - p + q, equal to KL for distributions that sum to one, but with every term
    at least 0: rounding in the stored float32 values cannot make it negative. Infinite where the candidate
    rules out what the reference allows.
    """
    log_p, log_q = reference.double(), candidate.double()
    p, q = log_p.exp(), log_q.exp()
    gap = torch.where(log_p == -torch.inf, 0.0, log_p - log_q)
    return (p * gap - p + q).sum(-1).clamp_min(0.0)


def score(reference: LogProbs, logits: torch.Tensor, tokens: Sequence[int]) -> TokenScores:
    """Score ``logits`` float32 [T, V], predicting ``tokens``, against the baseline's log-probabilities.

    Raises:
        DataError: they differ in length or vocabulary: not the same answer or not the same checkpoint.
    """
    values = torch.log_softmax(logits.float(), dim=-1)
    rows, vocabulary = values.shape
    if reference.values.shape[0] != rows or len(tokens) != rows:
        kept_rows = reference.values.shape[0]
        raise DataError(
            f"the baseline kept {kept_rows} token positions, {len(tokens)} tokens give {rows}; "
            "run the baseline evaluation again"
        )
    if reference.ids is None and reference.values.shape[1] != vocabulary:
        raise DataError(
            f"the baseline's vocabulary has {reference.values.shape[1]} entries, this model's {vocabulary}: "
            "the two are no variants of one checkpoint"
        )
    device = values.device
    kl = []
    rest = _rest(values, reference.ids.to(device)) if reference.ids is not None else None
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        kept, mine = reference.values[part].to(device).double(), values[part].double()
        if reference.ids is not None and reference.rest is not None and rest is not None:
            kept = torch.cat([kept, reference.rest[part, None].to(device).double()], dim=-1)
            own = mine.gather(-1, reference.ids[part].to(device).long())
            mine = torch.cat([own, rest[part, None].float().double()], dim=-1)
        kl.append(divergence(kept, mine))
    chosen = torch.tensor(list(tokens), dtype=torch.long, device=device)
    nll = -values.gather(-1, chosen[:, None])[:, 0].double()
    agrees = values.argmax(-1) == reference.most_likely().to(device)
    return TokenScores(torch.cat(kl).cpu(), nll.cpu(), agrees.cpu())


def aggregate(samples: Sequence[TokenScores]) -> Aggregate:
    """Aggregate of at least one sample. Tokens of one answer depend on each other: top-1 looks too sure."""
    kl = torch.cat([sample.kl for sample in samples]).tolist()
    agrees = torch.cat([sample.agrees for sample in samples])
    return Aggregate(
        kl=statistics.mean([float(sample.kl.mean()) for sample in samples]),
        kl_p99=statistics.quantile(kl, 0.99),
        kl_max=max(kl),
        top1=statistics.wilson(int(agrees.sum()), len(kl)),
        nll=statistics.mean([float(sample.nll.mean()) for sample in samples]),
    )


def save(path: Path, answers: dict[int, LogProbs]) -> None:
    """Write log-probabilities by sample index: ``<index>.values`` and, if partial, ``.ids`` and ``.rest``."""
    tensors: dict[str, torch.Tensor] = {}
    for index, kept in answers.items():
        tensors[f"{index}.values"] = kept.values.contiguous()
        if kept.ids is not None and kept.rest is not None:
            tensors[f"{index}.ids"] = kept.ids.contiguous()
            tensors[f"{index}.rest"] = kept.rest.contiguous()
    save_artifact(path, "likelihood", tensors, answers)


class LikelihoodFile(ArtifactFile):
    """A written table of log-probabilities, read one sample at a time.

    Raises:
        DataError: the file is missing, truncated or of another format or version.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "likelihood")

    def get(self, index: int) -> LogProbs:
        """The log-probabilities of sample ``index``."""
        values = self.tensor(index, "values")
        if f"{index}.ids" not in self:
            return LogProbs(values)
        return LogProbs(*(self.tensor(index, part) for part in ("values", "ids", "rest")))
