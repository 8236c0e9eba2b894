"""Our best recipes on a trained causal LM against the algorithm of the toolkit this project began from, by KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trained_decoder

from core.calibration import job as calibrate
from core.calibration.record import STATISTICS_FILE
from core.calibration.statistics import StatisticsFile
from core.checkpoints.source import TensorSource
from core.evaluation.perplexity import windows
from core.evaluation.prose import SHIPPED, documents_of
from core.huggingface.loading import CausalLM
from core.quantization import job as quantize
from core.runtime.causal_lm import load_text_model
from tests.core.quantization.seed_algorithm import Format, int4, nvfp4_without_global_scale, seed_weights


class Divergence:
    """KL of next tokens from the original's, on a text that it was not trained on."""

    def __init__(self, original: CausalLM) -> None:
        tokens, given = original.encode(documents_of(SHIPPED)[0][:6000])
        self.windows = [
            (tokens[w.start : w.stop], w.first - w.start) for w in windows(len(tokens), given, 256)
        ]
        self.reference = self._log_probs(original)

    def _log_probs(self, model: CausalLM) -> torch.Tensor:
        parts = [
            torch.log_softmax(model.logits(tokens, first).double(), -1) for tokens, first in self.windows
        ]
        return torch.cat(parts)

    def __call__(self, model: CausalLM) -> float:
        return float((self.reference.exp() * (self.reference - self._log_probs(model))).sum(-1).mean())

    @property
    def entropy(self) -> float:
        """Of the original's own next tokens, in nats."""
        return float(-(self.reference.exp() * self.reference).sum(-1).mean())


def with_weights(folder: Path, weights: dict[str, torch.Tensor]) -> CausalLM:
    """The checkpoint in ``folder`` in float32, some of its tensors replaced."""
    model = load_text_model(folder, "cpu", torch.float32)
    for name, tensor in weights.items():
        model.model.get_parameter(name).data = tensor.float()
    return model


@pytest.mark.slow
def test_on_a_trained_decoder_the_bars_hold(context: Any, tmp_path: Path) -> None:
    folder = trained_decoder.write(tmp_path / "trained", steps=300)
    calibration = Path(calibrate.run({"checkpoint": str(folder), "device": "cpu"}, context)["path"])
    original = load_text_model(folder, "cpu", torch.float32)
    divergence = Divergence(original)
    assert divergence.entropy < 4.0, "it has learned something: all 512 tokens alike would be 6.2"
    source, statistics = TensorSource.open(folder), StatisticsFile(calibration / STATISTICS_FILE)
    forms: tuple[tuple[str, Format, Format | None, float], ...] = (
        ("int4-best", int4(64), int4(64, searching=True), 0.35),
        ("nvfp4-best", nvfp4_without_global_scale, None, 0.5),
    )
    for recipe, form, scored, bar in forms:
        spec = {"checkpoint": str(folder), "recipe": recipe, "calibration": str(calibration), "device": "cpu"}
        ours = load_text_model(Path(quantize.run(spec, context)["path"]), "cpu", torch.float32)
        seed = with_weights(
            folder, seed_weights(source, statistics, original.structure.groups(), form, scored)
        )
        kl = [divergence(model) for model in (ours, seed)]
        print(f"{recipe}: KL {kl[0]:.5f}, seed's {kl[1]:.5f}: {kl[0] / kl[1]:.3f} of it")
        assert kl[0] <= bar * kl[1]
