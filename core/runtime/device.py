"""From a device or dtype in words to one that torch can use, and how many threads of a CPU."""

from __future__ import annotations

import os

import torch

from core.errors import UsageError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

SMALL = 64_000_000
"""Bytes of a model's weights up to which one thread is faster than several."""


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {name!r} cannot be used here ({reason}); give auto, cpu or cuda") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16, except on a CPU, which computes it more slowly than float32.

    Raises:
        UsageError: another name than auto, bfloat16 or float32.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r}: wanted auto, {' or '.join(DTYPES)}")
    return DTYPES[name]


def suit_threads(nbytes: int, device: torch.device) -> None:
    """Let torch compute in one thread on a CPU if a model's weights are no more than ``SMALL`` bytes.

    Its operations are so short that sharing one out takes longer than doing it, and far longer where a thread has to
    wait for one that other processes keep from running. For the process of a job; what the user set in
    OMP_NUM_THREADS stays.
    """
    if device.type == "cpu" and nbytes <= SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
