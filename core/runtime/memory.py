"""Whether a checkpoint fits, from its headers, before anything is loaded; and what a loaded one holds."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from core.checkpoints.describe import CheckpointInfo
from core.checkpoints.resolve import VISION_FOLDER, companion
from core.checkpoints.source import FLOATS, TensorSource
from core.errors import WorkbenchError
from core.lance.loading import IGNORED, VISION_PREFIX
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear

_MEMINFO = Path("/proc/meminfo")


def weight_bytes(info: CheckpointInfo, dtype: torch.dtype) -> int:
    """Bytes that decoder and vision tower of a checkpoint or variant take once loaded.

    Floating point weights are cast to ``dtype``, packed codes stay as they are, the position table is not kept. The VAE
    is loaded when it is needed and not counted.
    """
    source = TensorSource.open(info.path)
    entries = dict(source.entries)
    tower = companion(info.path, f"{VISION_FOLDER}/vit.safetensors")
    if tower is not None and not any(name.startswith(VISION_PREFIX) for name in entries):
        entries |= {VISION_PREFIX + name: entry for name, entry in TensorSource.open(tower).entries.items()}
    total = 0
    for name, entry in entries.items():
        if name in IGNORED:
            continue
        total += math.prod(entry.shape) * dtype.itemsize if entry.dtype in FLOATS else entry.nbytes
    return total


def held_bytes(model: nn.Module) -> int:
    """Bytes that the weights of a loaded model take, each counted once however many modules share it; those of
    a vision tower that is not read yet take none.
    """
    # A vision tower that was not needed yet is not held.
    tensors: list[Tensor] = [t for t in (*model.parameters(), *model.buffers()) if not t.is_meta]
    for module in model.modules():
        if isinstance(module, Fp8Linear) and module.wide is not None:
            tensors.append(module.wide)
        if isinstance(module, QuantizedLinear):
            if module.held is not None:
                tensors.append(module.held)
            if module.for_cpu is not None:
                tensors += [module.for_cpu.packed, module.for_cpu.factors]
            if module.laid_out is not None:
                weight = module.laid_out.weight
                tensors += [weight.codes, weight.scales, weight.tickets]
                tensors += [] if weight.factors is None else [weight.factors]
    storages = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on ``device``; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu" and _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def check_memory(info: CheckpointInfo, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the weights of a checkpoint or variant fit on ``device``; what a run adds comes on top.

    Raises:
        WorkbenchError: they do not.
    """
    needed, free = weight_bytes(info, dtype), free_bytes(device)
    if free is not None and needed > free:
        kind = str(dtype).removeprefix("torch.")
        other = "a quantized variant" if dtype == torch.bfloat16 else "--dtype bfloat16, a quantized variant"
        raise WorkbenchError(
            f"{info.name}: its weights take {needed / 1e9:.1f} GB in {kind}, {device} has {free / 1e9:.1f} GB free; "
            f"use {other} or another device"
        )
