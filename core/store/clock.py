"""Times as the database keeps them: UTC text with milliseconds, which sorts as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def now(offset_s: float = 0.0) -> str:
    """The present moment, ``offset_s`` seconds later, as ``2026-11-21T14:02:11.123Z``."""
    moment = datetime.now(UTC) + timedelta(seconds=offset_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def parse(text: str) -> datetime:
    """The moment that ``text``, made by ``now`` or by SQLite's strftime, stands for."""
    return datetime.fromisoformat(text)


def seconds_since(text: str | None) -> float:
    """Seconds from the moment ``text`` until now; infinity if there is none."""
    return float("inf") if text is None else (datetime.now(UTC) - parse(text)).total_seconds()
