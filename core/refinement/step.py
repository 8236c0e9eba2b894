"""Refining an unfinished variant in place: its files read, gains learned, the tensors that they change written again.

The original is loaded first and asked; then it goes, and the variant is loaded, its codes as they are stored. Nothing
is kept of a refinement that was killed: it begins again from the finished layers, by the same steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.checkpoints.describe import CheckpointInfo
from core.errors import WorkbenchError
from core.formats.variant_folder import replace_tensors
from core.huggingface.loading import load_causal_lm
from core.lance.loading import load_lance
from core.quantization.groups import Structure
from core.quantization.refine import Refine
from core.refinement import objectives
from core.refinement.gains import attach, stored
from core.refinement.learning import Learner, Verdict, divide
from core.refinement.objectives import LanceObjective, TextObjective
from core.refinement.samples import Drawn, LanceSamples
from core.runtime import load_model
from core.runtime.causal_lm import load_text_model
from core.runtime.check import variant_schemes
from core.runtime.device import pick_dtype
from core.runtime.loading import quantized_factory

Progress = Callable[[int, int, str], None]
"""Called with (done, in all, what is being done)."""

PASS_TOKENS = {"cpu": 512, "cuda": 4096}
"""Tokens that go through the model at once: attention is computed over all of them, so few are best on a CPU."""


def refine(
    folder: Path,
    info: CheckpointInfo,
    structure: Structure,
    settings: Refine,
    drawn: Drawn,
    device: torch.device,
    progress: Progress,
) -> tuple[list[Verdict], dict[str, str]]:
    """Refine the variant of ``info`` in ``folder``, which nobody else reads yet.

    Returns:
        A verdict on each expert that there are samples for, and the SHA-256 of every file that was written again.

    Raises:
        WorkbenchError: a loss that is not finite; the step is named.
    """
    dtype = pick_dtype("auto", device)
    objective = _ask(info, drawn, device, dtype, progress)
    divided = divide(objective.items, settings)
    _free(device)
    schemes = variant_schemes(folder)
    assert schemes is not None, "a variant says what it is quantized as"
    factory = quantized_factory(schemes, device, dtype)
    model: Any  # a Pipeline or a CausalLM, as the objective takes it
    if isinstance(objective, LanceObjective):
        model = load_lance(folder, device, dtype, factory)
    else:
        model = load_causal_lm(folder, device, dtype, factory)
    gains = attach(model.model, structure, settings.learn)
    ask: Any = objective.losses
    learner = Learner(
        objective.items,
        partial(ask, model),
        divided,
        settings,
        PASS_TOKENS.get(device.type, PASS_TOKENS["cuda"]),
        progress,
    )
    found = [learner.run(expert, own) for expert, own in gains.items()]
    verdicts = [verdict for verdict in found if verdict is not None]
    tensors: dict[str, torch.Tensor] = {}
    for verdict in verdicts:
        if verdict.kept:
            tensors |= stored(model.model, gains[verdict.expert])
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise WorkbenchError(f"refine: {name} became infinite; lower refine.rate in the recipe")
    del model, learner, gains
    _free(device)
    return verdicts, replace_tensors(folder, tensors)


def _ask(
    info: CheckpointInfo,
    drawn: Drawn,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> LanceObjective | TextObjective:
    """What the original says; it is not held any more afterwards."""

    def asked(done: int, total: int) -> None:
        progress(done, total, "asking the original")

    if isinstance(drawn, LanceSamples):
        pipeline = load_model(info.path, device, dtype, observed=True)
        return objectives.of_lance(pipeline, drawn.samples, drawn.settings, asked)
    return objectives.of_text(load_text_model(info.path, device, dtype), drawn, asked)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
