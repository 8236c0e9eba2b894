"""The filter line of the run table: ``suite:x2t task:x2t_image kl<0.1 -minmax awq``.

Terms are joined by and. ``key:text`` is a substring of that column, ``key=text`` all of it, ``key<number``
(``<=``, ``>``, ``>=``) compares, a bare word is a substring of any text column, ``-`` in front of a term
denies it, and double quotes keep spaces together.
"""

from __future__ import annotations

import re

from core.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TEXT_KEYS = (
    "name", "checkpoint", "variant", "recipe", "suite", "task", "state", "kind", "device", "tags", "note",
    "created_at",
)  # fmt: skip
NUMBER_KEYS = (
    "id", "bits", "size_bytes", "samples", "duration_s", "baseline_run_id", "job_id",
    "exact", "truth", "levenshtein", "ratio", "jaccard", "kl", "kl_p99", "kl_max", "top1", "nll",
    "psnr", "mae", "cosine", "velocity", "pixel", "seconds",
)  # fmt: skip
_WORDS = "(" + " || ' ' || ".join(f"coalesce({key}, '')" for key in (
    "name", "recipe", "suite", "task", "state", "kind", "tags", "note",
)) + ")"  # fmt: skip
_TERM = re.compile(r"([a-z_][a-z0-9_]*)(:|<=|>=|<|>|=)(.*)", re.DOTALL)
_SPLIT = re.compile(r'(?:"[^"]*"?|[^\s"])+')


def _like(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _condition(term: str) -> tuple[str, Any]:
    match = _TERM.fullmatch(term)
    if match is None:
        return f"{_WORDS} LIKE ? ESCAPE '\\'", _like(term)
    key, operator, text = match.groups()
    if key in TEXT_KEYS:
        if operator == ":":
            return f"coalesce({key}, '') LIKE ? ESCAPE '\\'", _like(text)
        return f"coalesce({key}, '') {operator} ?", text
    if key not in NUMBER_KEYS:
        raise UsageError(
            f"filter {term!r}: unknown column {key!r}; known are {', '.join((*TEXT_KEYS, *NUMBER_KEYS))}"
        )
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"filter {term!r}: {text!r} is not a number; write for example {key}<0.5") from None
    return f"{key} {'=' if operator == ':' else operator} ?", number


def where(text: str) -> tuple[str, list[Any]]:
    """The SQL condition over the view ``run_table`` that the filter line ``text`` stands for, and its
    parameters.

    Raises:
        UsageError: an unknown column, or no number where one is compared.
    """
    conditions: list[str] = []
    parameters: list[Any] = []
    for raw in _SPLIT.findall(text):
        denied = raw.startswith("-") and len(raw) > 1
        term = raw[denied:].replace('"', "")
        if not term:
            continue
        condition, parameter = _condition(term)
        conditions.append(f"NOT coalesce({condition}, 0)" if denied else condition)
        parameters.append(parameter)
    return " AND ".join(conditions) or "1", parameters
