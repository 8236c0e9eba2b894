"""The quantized linear: which implementation runs where, and the one warning when it is not the fast one."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor

from kernels import int8, reference, tiles
from kernels.capability import capability
from kernels.config import choose
from kernels.decoder_ops import swiglu
from kernels.int8 import Int8Weight
from kernels.tiles import TiledWeight, tile
from kernels.weights import StoredWeight

REFERENCE = "torch-reference"

Weight = StoredWeight | Int8Weight | TiledWeight
"""A weight as stored, which the reference runs (and, of eight bits, a kernel), or as tiled for the kernels."""

MOST_GATED_ROWS = 16
"""Up to so many rows of activations SwiGLU runs inside the product; above, tiles of gate and up in one program
cost more registers than a pass over the result costs time."""

LEAST_WIDE_ROWS = 512
"""From so many on it may again: in ``wide_matmul`` a thread that has a row of gate has its row of up as it is."""

_warned: set[str] = set()


def quantized_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int
) -> Tensor:
    """A linear layer over packed group-quantized weights; shapes and dtypes as in ``kernels.reference``."""
    return reference.quantized_linear(x, packed, scale, zero, bias, bits)


def no_kernels(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, or None."""
    return _no_kernels(device, os.environ.get("TRITON_INTERPRET") == "1")


@functools.cache
def _no_kernels(device: torch.device, interpreted: bool) -> str | None:
    if device.type == "cpu" and interpreted:
        return None if importlib.util.find_spec("triton") else "the triton package is not installed"
    if device.type != "cuda" or torch.version.hip:
        return f"they are written for NVIDIA GPUs, not for {device.type}"
    if not importlib.util.find_spec("triton"):
        return "the triton package is not installed (pip install 'lance-workbench[triton]')"
    if capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def warn_once(device: torch.device, what: str, reason: str) -> None:
    """Warn that ``what`` is left to the reference on a device that is not a CPU, once for each reason."""
    if device.type != "cpu" and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"{what} runs on the slow reference path: no kernel, {reason}", RuntimeWarning, stacklevel=3
        )


def why_not(weight: StoredWeight | Int8Weight) -> str | None:
    """Why no kernel can run ``weight`` where it is, or None."""
    blocked = no_kernels(weight.packed.device)
    if blocked is not None:
        return blocked
    return int8.unsupported(weight) if isinstance(weight, Int8Weight) else tiles.unsupported(weight)


def prepare(weight: StoredWeight | Int8Weight) -> Weight:
    """``weight`` in the layout of the kernels if they can run it on its device, otherwise as it is.

    Eight bits stay as they are. The first time a reason is met that a GPU's weight is left to the reference, a
    warning says so.
    """
    reason = why_not(weight)
    if reason is not None:
        warn_once(weight.packed.device, f"linear {list(weight.shape)} {weight.label}", reason)
        return weight
    return weight if isinstance(weight, Int8Weight) else tile(weight)


def path(weight: Weight, m: int | None = None) -> str:
    """The implementation that ``linear`` uses, for records: ``triton:matmul 16x64 ...`` or the reference's
    name.

    Args:
        weight: from ``prepare``.
        m: rows of activations; None leaves out which configuration.
    """
    if not isinstance(weight, TiledWeight):
        runs = isinstance(weight, Int8Weight) and why_not(weight) is None
        return "triton" if runs else f"{REFERENCE}:{weight.packed.device.type}"
    if m is None:
        return "triton"
    name, processors = device_of(weight.device)
    config = choose(name, processors, weight.format, weight.rows, weight.columns, m, False)
    return f"triton:{config.label}"


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``x W^T + bias``: [..., K] to [..., N] in ``x``'s dtype, written to ``out`` if it is given.

    Weights from ``prepare`` run in a kernel if ``x`` is bfloat16 or float16; everything else, in pure torch.

    Raises:
        ValueError: ``x``, ``weight`` and ``out`` do not fit.
    """
    return _run(x, weight, bias, out, gated=False)


def linear_swiglu(x: Tensor, weight: Weight, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """``silu(x G^T) * (x U^T)`` of a fused weight whose rows are those of gate G, then of up U: [..., N/2].

    Raises:
        ValueError: ``x``, ``weight`` and ``out`` do not fit, or N is odd.
    """
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if isinstance(weight, TiledWeight) and weight.rows % 2 == 0 and not gates(weight, rows):
        both = _run(x, weight, bias, None, gated=False)
        halves = x.new_empty(*x.shape[:-1], weight.rows // 2) if out is None else out
        swiglu(both.view(-1, weight.rows), halves.view(-1, weight.rows // 2))
        return halves
    return _run(x, weight, bias, out, gated=True)


def gates(weight: TiledWeight, m: int) -> bool:
    """Whether ``linear_swiglu`` of ``m`` rows of activations runs SwiGLU inside the product."""
    if m < LEAST_WIDE_ROWS:
        return m <= MOST_GATED_ROWS
    return choose(*device_of(weight.device), weight.format, weight.rows, weight.columns, m, True).wide


def linear_rows(x: Tensor, weight: TiledWeight, first: int, count: int, bias: Tensor | None = None) -> Tensor:
    """As ``linear`` with rows ``first`` .. ``first + count`` of a fused weight: [..., K] to [..., count].

    Decodes them into scratch memory for each call, unless they are all there are.

    Args:
        x: [..., K].
        weight: rows of different NVFP4 parts cannot be asked for together.
        first: the first row.
        count: how many.
        bias: [count].
    """
    if count == weight.rows:
        return linear(x, weight, bias)
    if x.dtype not in (torch.bfloat16, torch.float16) or not x.numel():
        dense = weight.dense()[first : first + count].to(x.dtype)
        return torch.nn.functional.linear(x, dense, None if bias is None else bias.to(x.dtype))
    from kernels.arguments import rest
    from kernels.launch import decode_rows

    dense = decode_rows(weight, first, count, x)
    alpha, start = 1.0, 0
    for rows, factor in weight.parts:
        if start <= first < start + rows:
            alpha = factor * rest(weight, x.dtype)
        start += rows
    flat = x.reshape(-1, weight.columns)
    addend = x.new_empty(count) if bias is None else bias.to(x.dtype)
    found = torch.addmm(addend, flat, dense.t(), beta=0 if bias is None else 1, alpha=alpha)
    return found.view(*x.shape[:-1], count)


def device_of(device: torch.device) -> tuple[str, int]:
    """Name and number of multiprocessors."""
    if device.type != "cuda":
        return device.type, 1
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.multi_processor_count


def _run(x: Tensor, weight: Weight, bias: Tensor | None, out: Tensor | None, gated: bool) -> Tensor:
    rows, columns = (weight.rows, weight.columns) if isinstance(weight, TiledWeight) else weight.shape
    if x.shape[-1] != columns or (gated and rows % 2):
        raise ValueError(
            f"activations {list(x.shape)} do not fit a weight {[rows, columns]}: wanted [..., {columns}]"
            + (" and an even number of rows, gate's and up's" if gated else "")
        )
    wanted = (*x.shape[:-1], rows // 2 if gated else rows)
    if out is not None and (out.shape != wanted or out.dtype != x.dtype or out.stride(-1) != 1):
        raise ValueError(
            f"out is {list(out.shape)} {out.dtype}, wanted {list(wanted)} {x.dtype} with contiguous columns"
        )
    bias = None if bias is None else bias.to(x.dtype)
    if isinstance(weight, TiledWeight) and x.dtype in (torch.bfloat16, torch.float16) and x.numel():
        from kernels.launch import launch

        flat = x.reshape(-1, columns)
        flat = flat if flat.stride(1) == 1 else flat.contiguous()
        name, processors = device_of(weight.device)
        config = choose(name, processors, weight.format, rows, columns, flat.shape[0], gated)
        into = None if out is None else out.view(-1, wanted[-1])
        done = launch(flat, weight, None if bias is None else bias.contiguous(), config, gated, into)
        return done.view(wanted) if out is None else out
    if isinstance(weight, Int8Weight) and not gated and x.numel() and why_not(weight) is None:
        target = x.new_empty(wanted) if out is None else out
        int8.linear(x.reshape(-1, columns).contiguous(), weight, bias, target.view(-1, rows))
        return target
    result = torch.nn.functional.linear(x, weight.dense().to(x.dtype), bias)
    if gated:
        left, up = result.chunk(2, dim=-1)
        result = torch.nn.functional.silu(left) * up
    return result if out is None else out.copy_(result)
