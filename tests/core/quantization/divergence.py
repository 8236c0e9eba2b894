"""How far a Lance with other weights is from the original: KL of its next tokens, error of its velocities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.lance.generation import answer, drawing, start_noise, teacher_forced
from core.runtime import load_model


def with_weights(folder: Path, weights: dict[str, Tensor]) -> Any:
    """The checkpoint in ``folder`` in float32, some of its tensors replaced."""
    pipeline = load_model(folder, "cpu", torch.float32)
    for name, tensor in weights.items():
        pipeline.model.get_parameter(name).data = tensor.float()
    return pipeline


class Reference:
    """The original's own answers and velocities on some samples."""

    def __init__(
        self, pipeline: Any, questions: Sequence[Any], prompts: Sequence[Any], limit: int = 48
    ) -> None:
        self.settings = pipeline.defaults
        self.questions, self.prompts = questions, prompts
        self.answers = [
            answer(
                pipeline, q.visuals(), q.question, q.instruction, limit, self.settings["resolution"]
            ).tokens
            for q in questions
        ]
        self.logits = self._logits(pipeline)
        self.velocities = self._velocities(pipeline)

    @torch.inference_mode()
    def _logits(self, pipeline: Any) -> Tensor:
        parts = [
            teacher_forced(
                pipeline, q.visuals(), q.question, q.instruction, tokens, self.settings["resolution"]
            )
            for q, tokens in zip(self.questions, self.answers, strict=True)
        ]
        return torch.log_softmax(torch.cat(parts).double(), -1)

    @torch.inference_mode()
    def _velocities(self, pipeline: Any) -> Tensor:
        found = []
        for number, prompt in enumerate(self.prompts):
            reader = drawing(pipeline, prompt, self.settings["height"], self.settings["width"])
            tokens = self.settings["height"] * self.settings["width"] // 256
            noise = start_noise(tokens, number).to(pipeline.device)
            found += [reader.velocity(noise * time, time).flatten() for time in (1.0, 0.8, 0.5, 0.2)]
        return torch.stack(found)

    def kl(self, pipeline: Any) -> Tensor:
        """KL of every answer token, float64 [tokens]."""
        mine = self._logits(pipeline)
        known = self.logits[0].isfinite()
        reference = self.logits[:, known]
        return (reference.exp() * (reference - mine[:, known])).sum(-1)

    def velocity_error(self, pipeline: Any) -> float:
        """Mean relative error of the velocity at fixed noise and times."""
        mine = self._velocities(pipeline)
        return float(((mine - self.velocities).norm(dim=1) / self.velocities.norm(dim=1)).mean())
