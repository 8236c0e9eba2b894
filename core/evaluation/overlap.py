"""Which samples are evaluated on, by content, so that calibration can leave them alone; no torch.

A score on what a variant was calibrated on says less than it seems to. Samples are compared by their words and the
bytes or pixels of what is looked at, wherever the files lie and whatever they are called.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from core.calibration.record import RECORD_FILE, load_record
from core.checkpoints.describe import own_record
from core.demo import SUITES
from core.evaluation import suites
from core.evaluation.samples import Sample, Suite
from core.store import Store

_DIGITS = 16


def _words(sample: Sample) -> str:
    return " ".join((sample.question or sample.prompt).split())


def content(sample: Sample) -> str:
    """Sixteen hexadecimal digits over a sample's question or prompt and what is looked at."""
    seen = sorted(source.digest() for source in (*sample.pictures, *sample.clips))
    return hashlib.sha256(json.dumps([_words(sample), seen]).encode()).hexdigest()[:_DIGITS]


def contents(suite: Suite) -> list[str] | None:
    """What an evaluation of ``suite`` records of its samples; None for a suite that comes along."""
    if suite.path is not None and suite.path.parent == SUITES:
        return None
    return [content(sample) for sample in suite.samples]


def calibrated_on(folder: Path, suite: Suite, store: Store) -> int:
    """How many samples of ``suite`` the variant in ``folder`` was calibrated on, as far as its calibration is here."""
    made_with = own_record(folder).get("calibration") or {}
    row = store.calibration(str(made_with.get("name")))
    if row is None or not (Path(row["path"]) / RECORD_FILE).is_file():
        return 0
    record = load_record(Path(row["path"]))
    if record.fingerprint != made_with.get("fingerprint"):
        return 0
    return len(set(record.contents) & {content(sample) for sample in suite.samples})


class Evaluated:
    """The samples of the suites that come along, and of every evaluation that a store has."""

    def __init__(self, store: Store | None = None) -> None:
        self._known: dict[str, list[tuple[str, Sample]]] = {}
        for name in suites.names():
            for sample in suites.load(name).samples:
                self._known.setdefault(_words(sample), []).append((name, sample))
        self._recorded: dict[str, str] = {}
        for row in store.runs("kind=evaluate") if store is not None else []:
            manifest = store.run(row["id"])["manifest"] if store is not None else {}
            for digest in (manifest or {}).get("contents", []):
                self._recorded[digest] = f"run {row['id']} ({row['suite']})"

    def where(self, sample: Sample) -> str | None:
        """The suite or run that evaluates on ``sample``, or None."""
        # Drawing and reading files costs more than comparing words, which differ nearly always.
        alike = self._known.get(_words(sample), [])
        if not alike and not self._recorded:
            return None
        digest = content(sample)
        found = next((name for name, other in alike if content(other) == digest), None)
        return found or self._recorded.get(digest)
