from __future__ import annotations

from trial_jobs import behave

from kernels.processes import failures


def test_what_hangs_raises_or_is_wrong_is_named_and_the_rest_is_not() -> None:
    found = failures(behave, ["right", "hangs", "raises", "wrong", "right too"], 2, 8)
    assert found == {
        "hangs": "no end within 8 s",
        "raises": "out of resource",
        "wrong": "a relative error of 0.5",
    }
