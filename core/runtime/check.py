"""Proof that a loaded variant really runs quantized: what was swapped, and the bytes it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.describe import read_json
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import schemes_of
from core.lance.decoder import target_names
from core.lance.loading import Pipeline
from core.quantization.scheme import Scheme
from core.runtime.linear import QuantizedLinear
from kernels.linear import kernel_path


@dataclass(frozen=True)
class Enforcement:
    """What runs; it goes into run manifests."""

    scheme: str
    """``bf16`` where nothing is quantized."""
    swapped: int
    targets: int
    """Target linears of the model: 504 at full size."""
    bytes_held: int
    """Bytes of the quantized linears in memory."""
    bytes_stored: int
    """Bytes of the same tensors in the files."""
    kernel_path: str

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def variant_schemes(folder: Path) -> tuple[Scheme, dict[str, Scheme]] | None:
    """The scheme of a variant folder's target linears and those of its other quantized modules by name; None for
    a plain checkpoint.

    Raises:
        CheckpointError: quantized in a way the runtime cannot run.
    """
    path = folder / "config.json"
    config = read_json(path).get("quantization_config") if path.is_file() else None
    return None if config is None else schemes_of(config, str(path))


def enforcement(pipeline: Pipeline) -> Enforcement:
    """Check that all target linears of a variant are quantized (none of a plain checkpoint), and that they
    hold what the files store.

    Raises:
        CheckpointError: a linear was left unswapped, was swapped in a plain checkpoint, or holds other bytes
            than its files; it is named.
    """
    model, source = pipeline.model, TensorSource.open(pipeline.folder)
    quantized = variant_schemes(pipeline.folder) is not None
    names = target_names(model.config.num_layers)
    modules = {name: model.get_submodule(name) for name in names}
    swapped = {name: m for name, m in modules.items() if isinstance(m, QuantizedLinear)}
    held = stored = 0
    for name, module in modules.items():
        if (name in swapped) != quantized:
            state = "is still a plain linear" if quantized else "is quantized"
            raise CheckpointError(
                f"{source.place}: {name} {state}: {len(swapped)} of {len(names)} target linears are "
                "quantized; quantize the checkpoint again"
            )
        if not isinstance(module, QuantizedLinear):
            continue
        mine = sum(
            source.entry(f"{name}.{key}").nbytes
            for key, buffer in module.named_buffers(recurse=False)
            if key != "bias" and buffer is not None
        )
        kept = module.nbytes - (0 if module.bias is None else module.bias.nbytes)
        if kept != mine:
            raise CheckpointError(f"{name} holds {kept} bytes, its files {mine}: it is not kept as stored")
        held, stored = held + kept, stored + mine
    scheme = next(iter(swapped.values())).scheme.label if swapped else "bf16"
    path = kernel_path(model.device) if swapped else f"torch:{model.device.type}"
    if any(module.held is not None for module in swapped.values()):
        path += ":held"
    return Enforcement(scheme, len(swapped), len(names), held, stored, path)
