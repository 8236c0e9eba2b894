"""What Triton 3.6 and 3.9 know by different names in their Gluon dialect."""

from __future__ import annotations

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
"""All warps of a program meet."""

copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
"""The copy engine brings a tile into shared memory: descriptor, coordinates, barrier, destination."""

send = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
"""The copy engine brings a tile out of shared memory: descriptor, coordinates, source."""
