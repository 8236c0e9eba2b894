"""Examining understanding: a sample answered, and scored against bf16's answer and the expected one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from core.errors import CheckpointError
from core.evaluation import likelihood, media, requests, statistics, text_scores
from core.evaluation.baseline import LIKELIHOOD, Baseline
from core.evaluation.samples import Sample, Settings
from core.lance.generation import Understanding, decode_text
from core.lance.loading import Pipeline
from core.store import Store


class AnswerExaminer:
    """Runs samples of a task that answers one after the other and gathers their scores.

    Without a baseline only the truth is scored, and the log-probabilities of the given answers are kept for
    others to be scored against.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, store: Store, baseline: Baseline | None, *, keep: bool
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self.store = store
        self.baseline = baseline
        self.reference = likelihood.LikelihoodFile(baseline.artifact) if baseline else None
        self.keep = keep
        self.kept: dict[int, likelihood.LogProbs] = {}
        self.tokens: list[likelihood.TokenScores] = []
        self.texts: list[text_scores.TextScores] = []
        self.right: list[bool] = []
        self.seconds: list[float] = []

    @torch.inference_mode()
    def examine(self, index: int, sample: Sample) -> dict[str, Any]:
        """Answer and score one sample; the columns of its output."""
        asked = requests.request(sample, self.settings)
        started = time.perf_counter()
        read = requests.question(self.pipeline, sample, asked)
        prompt_rows = read.context.cache.length
        tokens = [token for token, _ in read.steps(self.settings.max_new_tokens)]
        text = decode_text(self.pipeline, tokens)
        seconds = time.perf_counter() - started
        self.seconds.append(seconds)
        # The prompt stays in the cache; the answer just given goes, so that answers can be scored after it.
        read.context.cache.length = prompt_rows
        fields: dict[str, Any] = {
            "question": sample.question,
            "instruction": sample.instruction,
            "expected": sample.expected,
            "input_media": media.add_preview(self.store, asked.visuals if asked else []),
            "text": text,
            "tokens": tokens,
            "seconds": seconds,
        }
        if sample.expected is not None:
            right = text_scores.cut(sample.expected) == text_scores.cut(text)
            self.right.append(right)
            fields["truth"] = float(right)
        if self.baseline is not None and self.reference is not None:
            theirs = self.baseline.output(index, sample)
            fields |= self._against(theirs, self.reference.get(index), read, text)
        elif self.keep:
            logits = self._logits(read, tokens)
            self.kept[index] = likelihood.log_probs(logits)
            scores = likelihood.score(self.kept[index], logits, tokens)
            self.tokens.append(scores)
            fields["nll"] = float(scores.nll.mean())
        return fields

    def _logits(self, read: Understanding, tokens: list[int]) -> torch.Tensor:
        """Logits that predict each of ``tokens``, known to be numbers."""
        logits = read.logits(tokens)
        if logits.isnan().any():
            raise CheckpointError(f"{self.pipeline.folder}: gives logits that are no numbers; verify it")
        return logits

    def _against(
        self, theirs: dict[str, Any], reference: likelihood.LogProbs, read: Understanding, text: str
    ) -> dict[str, Any]:
        """Scores of ``text`` against the baseline's answer and of this model on the baseline's tokens."""
        similar = text_scores.score(theirs["text"], text)
        self.texts.append(similar)
        scores = likelihood.score(reference, self._logits(read, theirs["tokens"]), theirs["tokens"])
        self.tokens.append(scores)
        worst = int(scores.kl.argmax())
        return {
            "exact": similar.exact,
            "levenshtein": similar.levenshtein,
            "ratio": similar.ratio,
            "jaccard": similar.jaccard,
            "kl": float(scores.kl.mean()),
            "kl_max": float(scores.kl[worst]),
            "kl_argmax": worst,
            "kl_tokens": [round(value, 6) for value in scores.kl.tolist()],
            "top1": float(scores.agrees.double().mean()),
            "nll": float(scores.nll.mean()),
        }

    def scores(self) -> dict[str, float | None]:
        """The run's aggregate scores with their intervals."""
        result: dict[str, float | None] = {"seconds": statistics.mean(self.seconds).value}
        if self.right:
            truth = statistics.wilson(sum(self.right), len(self.right))
            result |= {"truth": truth.value, "truth_low": truth.low, "truth_high": truth.high}
        if self.tokens:
            tokens = likelihood.aggregate(self.tokens)
            result |= {"nll": tokens.nll.value, "nll_se": tokens.nll.error}
        if self.texts:
            same = statistics.wilson(sum(text.exact == 1.0 for text in self.texts), len(self.texts))
            result |= {
                "exact": same.value,
                "exact_low": same.low,
                "exact_high": same.high,
                "levenshtein": statistics.mean([text.levenshtein for text in self.texts]).value,
                "ratio": statistics.mean([text.ratio for text in self.texts]).value,
                "jaccard": statistics.mean([text.jaccard for text in self.texts]).value,
                "kl": tokens.kl.value,
                "kl_se": tokens.kl.error,
                "kl_p99": tokens.kl_p99,
                "kl_max": tokens.kl_max,
                "top1": tokens.top1.value,
                "top1_low": tokens.top1.low,
                "top1_high": tokens.top1.high,
            }
        return result

    def save(self, folder: Path) -> None:
        """Keep what others are scored against in ``folder``."""
        if self.keep:
            likelihood.save(folder / LIKELIHOOD, self.kept)
