"""What an evaluation runs under, as plain data: what two of them share if they can be compared. Imports no torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from core.evaluation.samples import PERPLEXITY, Settings, Suite, check_resolution
from core.files import sha256_text

if TYPE_CHECKING:
    from core.checkpoints.describe import CheckpointInfo

CONTEXT = 1024
"""Tokens of a window of running text; fewer where a model has fewer positions."""


def settings_of(info: CheckpointInfo, suite: Suite, resolution: str | None) -> Settings | None:
    """How the samples of a suite are run on a checkpoint (a variant's source); None of running text.

    Args:
        info: the checkpoint, whose defaults give way to what the suite says.
        suite: the samples.
        resolution: the size preset that a user named, if any.

    Raises:
        UsageError: settings that Lance has not.
    """
    if suite.task == PERPLEXITY:
        return None
    settings = Settings.combine(info.defaults, suite.settings, {"resolution": resolution})
    check_resolution(settings.resolution)
    return settings


def shared(suite: Suite, settings: Settings | None, fingerprint: str) -> dict[str, Any]:
    """What an evaluation and its baseline have in common; ``fingerprint`` is the source checkpoint's."""
    return {
        "task": suite.task,
        "suite": suite.fingerprint,
        "samples": len(suite.samples),
        "settings": {"context": CONTEXT} if settings is None else settings.recorded([suite.task]),
        "source": fingerprint,
    }


def describe_evaluation(
    suite: Suite, settings: Settings | None, fingerprint: str, device: str, dtype: str
) -> dict[str, Any]:
    """``shared``, and what it runs on: recorded in the manifest, and what a baseline is looked for by."""
    return shared(suite, settings, fingerprint) | {"device": device.partition(":")[0], "dtype": dtype}


def spec_hash(evaluation: dict[str, Any]) -> str:
    """The hash a baseline is found by."""
    return sha256_text(json.dumps(evaluation, sort_keys=True))
