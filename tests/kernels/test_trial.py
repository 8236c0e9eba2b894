from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("triton") is None:
    pytest.skip("needs the extra 'triton'", allow_module_level=True)

from trial_jobs import behave

from kernels.trial import failures


def test_what_hangs_raises_or_is_wrong_is_named_and_the_rest_is_not() -> None:
    found = failures(behave, ["right", "hangs", "raises", "wrong", "right too"], 2, 5)
    assert found == {
        "hangs": "no end within 5 s",
        "raises": "out of resource",
        "wrong": "a relative error of 0.5",
    }
