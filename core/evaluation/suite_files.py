"""Reading suite files: Lance's example JSON and JSON lines, or the workbench's own format.

Lance's is an object of samples by name, or one ``{"index": ..., "data": ...}`` a line; a ``.txt`` file has a
question about nothing to be seen on every line. Which sample is which: ``lance_samples``. Ours: ``own_samples``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.errors import DataError
from core.evaluation.lance_samples import kind_of, read_sample
from core.evaluation.own_samples import read_own
from core.evaluation.samples import TEXT, Sample, Suite


def read(path: Path, task: str | None = None) -> Suite:
    """The suite in ``path``; ``task`` decides where Lance's format leaves it open.

    Raises:
        DataError: no JSON, or of another shape (file, key, found and wanted are named); a picture or clip is missing
            or none.
        UsageError: an unknown task, or samples that may be of either of two.
    """
    content = _parse(path)
    if isinstance(content, dict) and "samples" in content and "task" in content:
        return read_own(path, content)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {kind_of(content)}, wanted an object of samples by name")
    if not content:
        raise DataError(f"{path}: holds no samples")
    samples: list[Sample] = []
    seen: set[str] = set()
    for name, value in content.items():
        sample = read_sample(path, name, value, TEXT if path.suffix == ".txt" else task)
        if samples and sample.task != samples[0].task:
            raise DataError(
                f"{path}: {name} is a {sample.task} sample, {samples[0].key} a {samples[0].task} one; "
                "wanted one task a file"
            )
        if sample.key in seen:
            raise DataError(f"{path}: {name}: the key {sample.key} occurs twice")
        seen.add(sample.key)
        samples.append(sample)
    return Suite(path.stem, samples[0].task, tuple(samples), {}, path)


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8; wanted JSON or JSON lines") from error
    if path.suffix == ".txt":
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        return {f"{number:06}": line for number, line in enumerate(lines)}
    if path.suffix == ".jsonl":
        return _parse_lines(path, text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); JSON lines want the ending .jsonl") from error


def _parse_lines(path: Path, text: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(entry, dict) or "index" not in entry or "data" not in entry:
            raise DataError(f'{path}: line {number} is no {{"index": ..., "data": ...}}')
        name = str(entry["index"])
        if name in content:
            raise DataError(f"{path}: line {number}: the index {name} occurs twice")
        content[name] = entry["data"]
    return content
