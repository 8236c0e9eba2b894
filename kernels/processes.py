"""Try things where they can do no harm: in processes of their own, for a limited time. No torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

Job = TypeVar("Job")


def failures(
    function: Callable[[Job], str | None], jobs: Sequence[Job], workers: int, seconds: float
) -> dict[Job, str]:
    """What ``function`` finds wrong with each of ``jobs``, in ``workers`` processes; the others are left out.

    A job that raises has failed as well. Once ``seconds`` have passed in which none came to an end, the rest have too,
    and their processes are ended.
    """
    found: dict[Job, str] = {}
    open_jobs = dict.fromkeys(jobs)
    with multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(jobs)))) as pool:
        answers = pool.imap_unordered(partial(_guarded, function), list(open_jobs))
        while open_jobs:
            try:
                job, wrong = answers.next(seconds)
            except multiprocessing.TimeoutError:
                return found | dict.fromkeys(open_jobs, f"no end within {seconds:.0f} s")
            del open_jobs[job]
            if wrong is not None:
                found[job] = wrong
    return found


def _guarded(function: Callable[[Job], str | None], job: Job) -> tuple[Job, str | None]:
    try:
        return job, function(job)
    except Exception as error:
        return job, str(error).splitlines()[0] if str(error) else type(error).__name__
