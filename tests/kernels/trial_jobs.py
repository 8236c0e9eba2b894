"""A job for the processes of test_trial: imports nothing, so that they start at once."""

from __future__ import annotations

import time


def behave(job: str) -> str | None:
    if job == "hangs":
        time.sleep(600)
    if job == "raises":
        raise RuntimeError("out of resource\nand a long story")
    return "a relative error of 0.5" if job == "wrong" else None
