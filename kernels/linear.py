"""The quantized linear: which implementation runs where, and the one warning when it is not the fast one."""

from __future__ import annotations

import importlib.util
import os
import warnings

import torch
from torch import Tensor

from kernels import reference
from kernels.config import choose
from kernels.tiles import TiledWeight, tile, unsupported
from kernels.weights import StoredWeight

REFERENCE = "torch-reference"

Weight = StoredWeight | TiledWeight
"""A weight as stored, which the reference runs, or as tiled for the kernels."""

_warned: set[str] = set()


def kernel_path(device: torch.device) -> str:
    """Name of the implementation that ``quantized_linear`` uses on ``device``, for run manifests."""
    return f"{REFERENCE}:{device.type}"


def quantized_linear(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int
) -> Tensor:
    """A linear layer over packed group-quantized weights; shapes and dtypes as in ``kernels.reference``."""
    return reference.quantized_linear(x, packed, scale, zero, bias, bits)


def no_kernels(device: torch.device) -> str | None:
    """Why no kernel can run on ``device``, or None."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None if importlib.util.find_spec("triton") else "the triton package is not installed"
    if device.type != "cuda" or torch.version.hip:
        return f"they are written for NVIDIA GPUs, not for {device.type}"
    if not importlib.util.find_spec("triton"):
        return "the triton package is not installed (pip install 'lance-workbench[triton]')"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return None


def prepare(weight: StoredWeight) -> Weight:
    """``weight`` in the layout of the kernels if they can run it on its device, otherwise as it is.

    The first time a reason is met that a GPU's weight is left to the reference, a warning says so.
    """
    device = weight.packed.device
    reason = no_kernels(device) or unsupported(weight)
    if reason is None:
        return tile(weight)
    if device.type != "cpu" and reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"linear {list(weight.shape)} {weight.label} runs on the slow reference path: no kernel, {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return weight


def path(weight: Weight, m: int | None = None) -> str:
    """The implementation that ``linear`` uses, for records: ``triton:matmul 16x64 ...`` or the reference's
    name.

    Args:
        weight: from ``prepare``.
        m: rows of activations; None leaves out which configuration.
    """
    if not isinstance(weight, TiledWeight):
        return f"{REFERENCE}:{weight.packed.device.type}"
    if m is None:
        return "triton"
    name, processors = _device(weight.device)
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
    return _run(x, weight, bias, out, gated=True)


def _device(device: torch.device) -> tuple[str, int]:
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
        name, processors = _device(weight.device)
        config = choose(name, processors, weight.format, rows, columns, flat.shape[0], gated)
        into = None if out is None else out.view(-1, wanted[-1])
        done = launch(flat, weight, None if bias is None else bias.contiguous(), config, gated, into)
        return done.view(wanted) if out is None else out
    result = torch.nn.functional.linear(x, weight.dense().to(x.dtype), bias)
    if gated:
        left, up = result.chunk(2, dim=-1)
        result = torch.nn.functional.silu(left) * up
    return result if out is None else out.copy_(result)
