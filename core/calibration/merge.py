"""Several calibrations of one checkpoint as one: exact for counts and sums, uniform for row samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from core.calibration.record import (
    RECORD_FILE,
    SEQUENCES_FILE,
    STATISTICS_FILE,
    CalibrationRecord,
    load_record,
    verify_statistics,
)
from core.calibration.sequences import Sequences, load_sequences, merge_sequences
from core.calibration.statistics import Statistics, StatisticsFile, merge_moments
from core.errors import UsageError
from core.files import replacing_folder, sha256_file, sha256_text


def write_calibration(
    folder: Path, statistics: Statistics, sequences: Sequences, record: CalibrationRecord
) -> CalibrationRecord:
    """Write a calibration folder whole; returns the record with the digests of its files."""
    with replacing_folder(folder) as partial:
        statistics.save(partial / STATISTICS_FILE)
        done = dataclasses.replace(record, statistics_sha256=sha256_file(partial / STATISTICS_FILE))
        if sequences.chosen():
            sequences.save(partial / SEQUENCES_FILE)
            done = dataclasses.replace(
                done,
                sequences_sha256=sha256_file(partial / SEQUENCES_FILE),
                sequence_tokens=sequences.tokens(),
                longest_sequence=max(map(len, sequences.chosen())),
            )
        (partial / RECORD_FILE).write_text(done.to_json(), encoding="utf-8")
    return done


def merge(folders: Sequence[Path], output: Path, name: str) -> CalibrationRecord:
    """Merge the calibrations in ``folders`` into ``output``.

    Raises:
        UsageError: fewer than two, the same twice, or of different checkpoints or dtypes.
        CheckpointError: one is damaged.
    """
    records = [load_record(folder) for folder in folders]
    if len(records) < 2:
        raise UsageError(f"{len(records)} calibrations given, at least two can be merged")
    first = records[0]
    seen: dict[str, str] = {}
    for folder, record in zip(folders, records, strict=True):
        verify_statistics(folder, record)
        if record.checkpoint_fingerprint != first.checkpoint_fingerprint:
            raise UsageError(
                f"{record.name} is of {record.checkpoint}, {first.name} of {first.checkpoint}: only "
                "calibrations of one checkpoint can be merged"
            )
        if record.dtype != first.dtype:
            raise UsageError(
                f"{record.name} ran in {record.dtype}, {first.name} in {first.dtype}; run both alike"
            )
        if record.statistics_sha256 in seen:
            raise UsageError(f"{record.name} and {seen[record.statistics_sha256]} are the same calibration")
        seen[record.statistics_sha256] = record.name
    capacity = min(record.rows_per_bucket for record in records)
    files = [StatisticsFile(folder / STATISTICS_FILE) for folder in folders]
    sequences = merge_sequences(
        load_sequences(folder / SEQUENCES_FILE)
        for folder, record in zip(folders, records, strict=True)
        if record.sequences_sha256
    )
    statistics = merge_moments(files, capacity, [record.tokens for record in records])
    timesteps: dict[str, dict[str, int]] = {}
    for record in records:
        for task, counts in record.timesteps.items():
            mine = timesteps.setdefault(task, {})
            for time, rows in counts.items():
                mine[time] = mine.get(time, 0) + rows
    return write_calibration(
        output,
        statistics,
        sequences,
        dataclasses.replace(
            first,
            name=name,
            tasks=sorted({task for record in records for task in record.tasks}),
            samples=[key for record in records for key in record.samples],
            data_fingerprint=sha256_text("\n".join(record.data_fingerprint for record in records)),
            rows_per_bucket=capacity,
            tokens=statistics.tokens,
            timesteps=timesteps,
            settings={},
            merged_from=[record.fingerprint for record in records],
            evaluated=[key for record in records for key in record.evaluated],
            contents=[each for record in records for each in record.contents],
            sequences_sha256="",
            files=[],
            sequence_tokens={},
            longest_sequence=0,
        ),
    )
