"""Which kind of filesystem a folder lies on, as far as SQLite minds. The standard library only."""

from __future__ import annotations

import os
from pathlib import Path

# f_type of statfs(2) where SQLite's WAL, which needs shared memory between all readers, cannot be trusted.
_NETWORK_FILESYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x01021997: "9p",
    0x65735546: "FUSE",
}


def network_filesystem(folder: Path) -> str | None:
    """The kind of network filesystem ``folder`` lies on, or None where it is local or cannot be told."""
    import ctypes

    try:
        statfs = ctypes.CDLL(None, use_errno=True).statfs
    except (OSError, AttributeError):
        return None
    if not os.path.exists("/proc/self"):  # noqa: PTH110 - another kernel lays struct statfs out differently
        return None
    buffer = (ctypes.c_long * 64)()
    if statfs(os.fsencode(folder), buffer) != 0:
        return None
    return _NETWORK_FILESYSTEMS.get(buffer[0] & 0xFFFFFFFF)
