"""Perplexity: the likelihood a model gives to running text, token by token, in strided windows.

A document is read in windows of ``conditions.CONTEXT`` tokens that advance by half of that, and each window scores the
tokens no window before it has scored: every token is scored once, with at least half a window of text before it but at
a document's beginning. The first token of a document, which nothing precedes, is not scored, nor are special tokens
that a tokenizer puts in front of it.

Errors are clustered: tokens of one document depend on each other, so documents are what is counted, or windows where
there are fewer than ``MIN_DOCUMENTS`` of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from core.errors import CheckpointError, DataError
from core.evaluation import likelihood, statistics
from core.evaluation.baseline import LIKELIHOOD, Baseline
from core.evaluation.likelihood import LogProbs, TokenScores
from core.evaluation.samples import Sample

KEPT = 256
"""Likeliest ids that a baseline keeps of every position; the rest of the mass is kept as one figure. A text has many
times the tokens of a suite's answers, so fewer are kept of each."""

MIN_DOCUMENTS = 20
"""From so many documents on, errors are taken over documents."""


class Reader(Protocol):
    """A loaded model as something that reads text."""

    context: int
    """Tokens it can read at once."""

    def encode(self, text: str) -> tuple[list[int], int]:
        """Token ids of ``text``, and how many in front of them are no part of it."""
        ...

    def logits(self, tokens: Sequence[int], first: int) -> Tensor:
        """Logits float32 [len(tokens) - first, vocabulary] that predict ``tokens[first:]`` from those before."""
        ...


@dataclass(frozen=True)
class Window:
    """A stretch of a document: it reads tokens ``start`` to ``stop`` and scores those from ``first`` on."""

    start: int
    first: int
    stop: int


def windows(tokens: int, given: int, context: int) -> Iterator[Window]:
    """The windows over a document of ``tokens`` tokens, the first ``given`` of which are not scored."""
    first = max(1, given)
    stop = min(context, tokens)
    while first < stop:
        yield Window(max(0, stop - context), first, stop)
        first, stop = stop, min(stop + context // 2, tokens)


class TextExaminer:
    """Reads the documents of a suite one after the other and gathers their scores.

    Without a baseline the text alone is scored, and the log-probabilities of every position are kept for others to be
    scored against.
    """

    def __init__(self, reader: Reader, place: Path, baseline: Baseline | None, *, keep: bool) -> None:
        self.reader = reader
        self.place = place
        self.baseline = baseline
        self.reference = likelihood.LikelihoodFile(baseline.artifact) if baseline else None
        self.keep = keep
        self.kept: dict[int, LogProbs] = {}
        self.documents: list[list[TokenScores]] = []
        """Per document, the scores of each window."""
        self.seconds: list[float] = []

    @torch.inference_mode()
    def examine(self, index: int, sample: Sample) -> dict[str, Any]:
        """Read and score one document; the columns of its output."""
        started = time.perf_counter()
        tokens, given = self.reader.encode(sample.prompt)
        first = max(1, given)
        scored = tokens[first:]
        if not scored:
            raise DataError(f"document {sample.key} has {len(tokens)} tokens, wanted at least {first + 1}")
        reference = None
        if self.baseline is not None and self.reference is not None:
            if self.baseline.output(index, sample)["tokens"] != scored:
                raise DataError(
                    f"document {sample.key}: run {self.baseline.run['id']} read it as other tokens; "
                    "run the baseline evaluation again"
                )
            reference = self.reference.get(index)
        parts, kept = [], []
        for window in windows(len(tokens), given, self.reader.context):
            logits = self._logits(tokens[window.start : window.stop], window.first - window.start)
            rows = slice(window.first - first, window.stop - first)
            own = _rows(reference, rows) if reference else likelihood.log_probs(logits, KEPT, KEPT)
            parts.append(likelihood.score(own, logits, tokens[window.first : window.stop]))
            if self.keep and reference is None:
                kept.append(own)
        if kept:
            self.kept[index] = _joined(kept)
        self.documents.append(parts)
        seconds = time.perf_counter() - started
        self.seconds.append(seconds)
        whole = _together(parts)
        fields = {
            "question": sample.prompt.partition("\n")[0],
            "text": sample.prompt,
            "tokens": scored,
            "seconds": seconds,
            "nll": float(whole.nll.mean()),
        }
        if reference is not None:
            worst = int(whole.kl.argmax())
            fields |= {
                "kl": float(whole.kl.mean()),
                "kl_max": float(whole.kl[worst]),
                "kl_argmax": worst,
                "kl_tokens": [round(value, 6) for value in whole.kl.tolist()],
                "top1": float(whole.agrees.double().mean()),
            }
        return fields

    def _logits(self, tokens: Sequence[int], first: int) -> Tensor:
        logits = self.reader.logits(tokens, first)
        if logits.isnan().any():
            raise CheckpointError(f"{self.place}: gives logits that are no numbers; verify it")
        return logits

    def scores(self) -> dict[str, float | None]:
        """The run's aggregate scores, means over tokens, with their clustered errors."""
        clusters = [_together(parts) for parts in self.documents]
        if len(clusters) < MIN_DOCUMENTS:
            clusters = [part for parts in self.documents for part in parts]
        counts = [len(cluster.nll) for cluster in clusters]
        nll = statistics.clustered_mean([float(cluster.nll.sum()) for cluster in clusters], counts)
        result: dict[str, float | None] = {
            "seconds": statistics.mean(self.seconds).value,
            "nll": nll.value,
            "nll_se": nll.error,
        }
        if self.reference is not None:
            kl = statistics.clustered_mean([float(cluster.kl.sum()) for cluster in clusters], counts)
            every = torch.cat([cluster.kl for cluster in clusters]).tolist()
            top1 = statistics.clustered_proportion(
                [int(cluster.agrees.sum()) for cluster in clusters], counts
            )
            result |= {
                "kl": kl.value,
                "kl_se": kl.error,
                "kl_p99": statistics.quantile(every, 0.99),
                "kl_max": max(every),
                "top1": top1.value,
                "top1_low": top1.low,
                "top1_high": top1.high,
            }
        return result

    def save(self, folder: Path) -> None:
        """Keep what others are scored against in ``folder``."""
        if self.keep:
            likelihood.save(folder / LIKELIHOOD, self.kept)


def _rows(kept: LogProbs, rows: slice) -> LogProbs:
    if kept.ids is None or kept.rest is None:
        return LogProbs(kept.values[rows])
    return LogProbs(kept.values[rows], kept.ids[rows], kept.rest[rows])


def _joined(parts: Sequence[LogProbs]) -> LogProbs:
    values = torch.cat([part.values for part in parts])
    ids = [part.ids for part in parts if part.ids is not None]
    rest = [part.rest for part in parts if part.rest is not None]
    return LogProbs(values, torch.cat(ids), torch.cat(rest)) if ids and rest else LogProbs(values)


def _together(parts: Sequence[TokenScores]) -> TokenScores:
    columns = ([part.kl for part in parts], [part.nll for part in parts], [part.agrees for part in parts])
    return TokenScores(*(torch.cat(column) for column in columns))
