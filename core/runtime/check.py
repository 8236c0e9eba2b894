"""Proof that a loaded variant really runs quantized: what was swapped, and the bytes it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.describe import read_json
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import schemes_of
from core.huggingface.loading import CausalLM
from core.lance.loading import Pipeline
from core.quantization.scheme import Scheme
from core.quantization.widths import label
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from kernels.tiles import BLOCK

SMALL = 1 << 15
"""Bytes that a weight laid out for the kernels may hold beside its layout: what they count split sums with."""


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


def enforcement(pipeline: Pipeline | CausalLM) -> Enforcement:
    """Check that all target linears of a variant are quantized (none of a plain checkpoint), and that they
    hold what the files store, in the files' form or in the kernels'.

    Raises:
        CheckpointError: a linear was left unswapped, was swapped in a plain checkpoint, or holds other bytes
            than its files; it is named.
    """
    model, source = pipeline.model, TensorSource.open(pipeline.folder)
    quantized = variant_schemes(pipeline.folder) is not None
    names = pipeline.structure.target_linears()
    modules = ((name, model.get_submodule(name)) for name in names)
    swapped = {name: m for name, m in modules if isinstance(m, QuantizedLinear | Fp8Linear)}
    held = stored = 0
    for name in names:
        if (name in swapped) != quantized:
            state = "is still a plain linear" if quantized else "is quantized"
            raise CheckpointError(
                f"{source.place}: {name} {state}: {len(swapped)} of {len(names)} target linears are "
                "quantized; quantize the checkpoint again"
            )
    for name, module in swapped.items():
        mine = sum(source.entry(f"{name}.{key}").nbytes for key in module.stored_names)
        kept = module.nbytes - (0 if module.bias is None else module.bias.nbytes)
        # The kernels' layout has whole blocks of columns, and scale and zero of an integer's group in one word.
        blocks = -(-module.in_features // BLOCK) * BLOCK / module.in_features
        as_stored = isinstance(module, Fp8Linear) or module.laid_out is None
        most = mine if as_stored else mine * 7 / 6 * blocks + SMALL
        if kept > most or module.stored_bytes != mine or (as_stored and kept != mine):
            raise CheckpointError(f"{name} holds {kept} bytes, its files {mine}: it is not kept as stored")
        held, stored = held + kept, stored + mine
    scheme = label(module.scheme for module in swapped.values()) if swapped else "bf16"
    paths = {module.path for module in swapped.values()} or {f"torch:{pipeline.device.type}"}
    path = " + ".join(sorted(paths))
    return Enforcement(scheme, len(swapped), len(names), held, stored, path)
