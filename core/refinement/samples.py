"""The samples of a calibration, drawn again: what a refinement learns from.

A calibration's record says how they were chosen; that they are the same is proved by its fingerprint of them. Samples
that are evaluated on are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from core.calibration import prose, texts
from core.calibration.record import CalibrationRecord
from core.calibration.samples import MIXED, SampleSet, sample_set
from core.calibration.texts import Piece
from core.checkpoints.describe import CheckpointInfo
from core.errors import UsageError
from core.evaluation import suites
from core.evaluation.overlap import Evaluated
from core.evaluation.samples import ANSWERING, PERPLEXITY, Sample, Settings
from core.huggingface.loading import CausalLM, empty_model, load_tokenizer
from core.huggingface.structure import read_structure
from core.store import Store


@dataclass(frozen=True)
class LanceSamples:
    """Samples of a Lance, with their settings by task."""

    samples: Sequence[Sample]
    settings: Mapping[str, Settings]


Drawn = LanceSamples | list[Piece]
"""Samples of a Lance, or texts of a causal LM."""


def draw_again(record: CalibrationRecord, info: CheckpointInfo, store: Store) -> Drawn:
    """What the calibration ``record`` of the checkpoint ``info`` was taken from: samples, or a causal LM's texts.

    Raises:
        UsageError: it was merged from others, its files are gone or have changed, a sample is evaluated on, or there
            are too few to hold two out, whose gain has a standard error.
        DataError: a file cannot be read.
    """
    if record.merged_from:
        raise UsageError(
            f"calibration {record.name}: was merged from {len(record.merged_from)} others, refine wants one whose "
            "samples can be drawn again; calibrate all tasks in one go"
        )
    for name in record.files:
        if name not in suites.names() and not Path(name).is_file():
            raise UsageError(
                f"calibration {record.name}: {name}, which its samples are from, is gone, and refine learns from them; "
                "put it back, or calibrate again"
            )
    known = Evaluated(store)
    drawn = _texts(record, info, known) if info.family == "huggingface" else _samples(record, info, known)
    for kind, count in _kinds(drawn).items():
        if 0 < count < 3:
            raise UsageError(
                f"calibration {record.name}: its samples of {kind} are {count}, refine wants 3 or more, two of them to "
                "hold out; calibrate with more samples"
            )
    return drawn


def _kinds(drawn: Drawn) -> dict[str, int]:
    """How many samples there are of each kind that is learned from."""
    if not isinstance(drawn, LanceSamples):
        return {"text": len(drawn)}
    answers = sum(sample.task in ANSWERING for sample in drawn.samples)
    return {"answers": answers, "pictures or clips": len(drawn.samples) - answers}


def _samples(record: CalibrationRecord, info: CheckpointInfo, known: Evaluated) -> LanceSamples:
    own = [key.partition("/")[0] for key in record.samples]
    tasks = [*dict.fromkeys(own), *([MIXED] if MIXED in record.tasks else [])]
    count = max(Counter(own).values())
    try:
        chosen = sample_set(
            info.name, tasks, count, record.files, record.seed, evaluated=known, force=bool(record.files)
        )
    except UsageError as error:
        raise _changed(record, str(error)) from error
    if chosen.fingerprint(record.settings) != record.data_fingerprint:
        raise _changed(record, "they are others now")
    for sample in chosen.samples:
        if (place := known.where(sample)) is not None:
            raise UsageError(
                f"calibration {record.name}: sample {sample.key} is evaluated on, in {place}; a variant that learned "
                "from it could not be judged by it. Calibrate without it"
            )
    return LanceSamples(chosen.samples, _settings(record, chosen))


def _settings(record: CalibrationRecord, chosen: SampleSet) -> dict[str, Settings]:
    by_task = all(isinstance(value, dict) for value in record.settings.values())
    return {
        task: Settings(**(record.settings[task] if by_task else record.settings))
        for task in chosen.tasks
        if task != MIXED
    }


def _texts(record: CalibrationRecord, info: CheckpointInfo, known: Evaluated) -> list[Piece]:
    _, documents = prose.documents(next(iter(record.files), None))
    for number, document in enumerate(documents, 1):
        if (place := known.where(Sample(f"{number:03d}", PERPLEXITY, prompt=document))) is not None:
            raise UsageError(
                f"calibration {record.name}: document {number} of its text is evaluated on, in {place}; a variant "
                "that learned from it could not be judged by it. Calibrate on another text"
            )
    # Names and shapes are enough to cut texts into pieces.
    reader = CausalLM(
        empty_model(info.path),
        read_structure(info.path),
        load_tokenizer(info.path),
        info.path,
        torch.bfloat16,
        [],
    )
    found = texts.pieces(reader, documents, len(record.samples), record.seed)
    if texts.fingerprint(found) != record.data_fingerprint:
        raise _changed(record, "they are others now")
    return found


def _changed(record: CalibrationRecord, why: str) -> UsageError:
    places = ", ".join(record.files) or "what it names"
    return UsageError(
        f"calibration {record.name}: its samples cannot be drawn again from {places} ({why}), and refine learns from "
        "them; calibrate again"
    )
