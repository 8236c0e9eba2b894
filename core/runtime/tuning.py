"""Finding the fastest kernel configurations of a GPU that none are shipped for: once, in the background.

``python -m core.runtime.tuning`` does it in this process, for the device torch would use. Meanwhile the results of the
nearest shipped device serve, or a rule; processes that start later use what was found.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import torch

from core.files import write_text
from kernels import config
from kernels.linear import no_kernels

FORMATS = ("int4-g64", "nvfp4")
SECONDS = 900.0
"""After this time no further linear is begun; what was found by then is kept."""


CONTEXT_BYTES = 600 << 20
"""What each of the processes that compile candidates, one a core, takes of the device's memory."""


def needs_tuning(device: torch.device) -> bool:
    """Whether the kernels run on ``device`` and nothing is known of it."""
    if device.type != "cuda" or no_kernels(device):
        return False
    return not config.known(torch.cuda.get_device_name(device))


def has_room(device: torch.device) -> bool:
    """Whether tuning takes no memory that what runs now may want: it may have half of what is free."""
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * ((os.cpu_count() or 1) + 2) * CONTEXT_BYTES <= free


def lock_file(name: str) -> Path:
    """What the one process that tunes the device called ``name`` locks."""
    return config.tuned_file(name, config.user_folder()).with_suffix(".lock")


def tune_in_background(device: torch.device) -> subprocess.Popen[bytes] | None:
    """Start tuning ``device`` in a process of its own, of the lowest priority and independent of this one, unless
    it is known or short of memory; the process, or None.
    """
    if not needs_tuning(device) or not has_room(device):
        return None
    log = lock_file(torch.cuda.get_device_name(device)).with_suffix(".log")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "core.runtime.tuning", str(device.index or 0)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
    except OSError:
        return None  # a home that cannot be written to: the rule serves on


def tune(name: str) -> Path | None:
    """Tune the current device, called ``name``, and keep the results in the user's cache, whole or not at all.

    Returns:
        the file; None if another process is at it.
    """
    from kernels.tune import tune as find

    final = config.tuned_file(name, config.user_folder())
    final.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        partial = final.with_suffix(".partial")
        try:
            find(list(FORMATS), partial, SECONDS)
            write_text(final, partial.read_text())
        finally:
            partial.unlink(missing_ok=True)
    return final


def main() -> int:
    """Tune the device with the given number, 0 by default."""
    os.nice(19)
    torch.cuda.set_device(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    path = tune(torch.cuda.get_device_name())
    print(f"written {path}" if path else "another process is tuning this device", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
