"""Loading a checkpoint or a variant, whichever a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from core.checkpoints.source import FLOAT8, TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import (
    CODES,
    GLOBAL_SCALE,
    PACKED,
    SCALE,
    SHAPE,
    ZERO,
    tensor_keys,
)
from core.lance.loading import LinearFactory, Pipeline, load_lance
from core.quantization.scheme import Scheme
from core.runtime.check import enforcement, variant_schemes
from core.runtime.embedding import QuantizedEmbedding
from core.runtime.engine import Engine, accelerated
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from core.runtime.tuning import tune_in_background

HOLD_LIMIT = 1 << 30
"""On a CPU, dequantized weights are kept beside the packed ones up to this many bytes: the reference path
unpacks them in every call otherwise, which takes ten times the matrix product of a single token."""


def read_codes(
    source: TensorSource, name: str, keys: list[str], scheme: Scheme, rows: int, columns: int
) -> dict[str, Tensor]:
    """The tensors ``keys`` of a module whose weight [``rows``, ``columns``] is stored as codes, by their last names.

    Raises:
        CheckpointError: one is missing, mis-shaped or not finite; it is named.
    """
    found = {key.rpartition(".")[2]: source.get(key, finite=True) for key in keys}
    shape = found.pop(SHAPE).tolist() if SHAPE in found else [rows, columns]
    if shape != [rows, columns]:
        raise CheckpointError(
            f"{source.entry(keys[0]).file}: {name}.{SHAPE} is {shape}, wanted {[rows, columns]} by its config"
        )
    shapes = {leaf: tuple(tensor.shape) for leaf, tensor in found.items()}
    QuantizedLinear.check_shapes(name, scheme, rows, columns, shapes)
    if scheme.kind == "fp8":
        _check_codes(source, name, found)
    return found


def _check_codes(source: TensorSource, name: str, found: dict[str, Tensor]) -> None:
    """Check that codes and scales of FP8 are of its dtypes.

    Raises:
        CheckpointError: one is not; it is named.
    """
    for leaf, wanted in ((CODES, torch.float8_e4m3fn), (SCALE, torch.float32)):
        if found[leaf].dtype != wanted:
            key = f"{name}.{leaf}"
            raise CheckpointError(
                f"{source.entry(key).file}: {key} is stored as {source.dtype(key)}, wanted {wanted} for fp8"
            )


def quantized_factory(
    schemes: tuple[Scheme, dict[str, Scheme]], device: torch.device, dtype: torch.dtype
) -> LinearFactory:
    """A factory for ``load_lance`` that puts a ``QuantizedLinear``, ``Fp8Linear`` or ``QuantizedEmbedding`` wherever
    codes are stored.
    """

    def make(
        name: str, module: nn.Linear | nn.Embedding, source: TensorSource
    ) -> tuple[nn.Module, set[str]] | None:
        scheme = schemes[1].get(name, schemes[0])
        if scheme.kind == "fp8":
            coded = f"{name}.{SCALE}" in source or source.dtype(f"{name}.{CODES}") == FLOAT8
        else:
            coded = f"{name}.{PACKED}" in source
        if not coded:
            return None
        rows, columns = module.weight.shape
        keys = tensor_keys(name, scheme)
        if isinstance(module, nn.Linear) and module.bias is not None:
            keys.append(f"{name}.bias")
        found = read_codes(source, name, keys, scheme, rows, columns)
        placed = {key: tensor.to(device) for key, tensor in found.items()}
        bias = placed.get("bias")
        if isinstance(module, nn.Embedding):
            return QuantizedEmbedding(scheme, placed[PACKED], placed[SCALE], dtype), set(keys)
        bias = None if bias is None else bias.to(dtype)
        if scheme.kind == "fp8":
            return Fp8Linear(placed[CODES], placed[SCALE], bias), set(keys)
        quantized = QuantizedLinear(
            scheme,
            placed[PACKED],
            placed[SCALE],
            placed.get(ZERO),
            bias,
            placed.get(GLOBAL_SCALE),
        )
        return quantized, set(keys)

    return make


def load_model(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    *,
    observed: bool = False,
) -> Pipeline:
    """Load the checkpoint or variant in ``folder``; ``enforcement`` says of the result what runs.

    On a GPU the decoder runs through an ``Engine`` unless ``observed``: hooks on the linears see only their
    modules.

    Raises:
        CheckpointError: damaged or incomplete files, or quantization that is not in force.
    """
    place = torch.device(device)
    schemes = variant_schemes(folder)
    factory = None if schemes is None else quantized_factory(schemes, place, dtype)
    pipeline = load_lance(folder, place, dtype, factory)
    if not observed and accelerated(place):
        # First the engine, which fuses linears that share an input; what it leaves is laid out by itself.
        pipeline.engine = Engine(pipeline.model)
    settle(pipeline.model, place, dtype)
    enforcement(pipeline)
    return pipeline


def settle(model: nn.Module, place: torch.device, dtype: torch.dtype) -> None:
    """Let a loaded model's quantized linears keep their weights in the form that runs fastest on ``place``."""
    quantized = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    rounding = [m for m in model.modules() if isinstance(m, Fp8Linear)]
    weights = sum(m.in_features * m.out_features for m in quantized) * dtype.itemsize
    weights += sum(m.in_features * m.out_features for m in rounding) * 4
    if place.type == "cpu":
        for module in quantized:
            if weights <= HOLD_LIMIT:
                module.hold(dtype)
            elif dtype == torch.bfloat16:
                module.pack_for_cpu()
        for linear in rounding if weights <= HOLD_LIMIT else ():
            linear.hold()
    if place.type != "cpu":
        both: list[QuantizedLinear | Fp8Linear] = [*quantized, *rounding]
        for one in both:
            one.lay_out()
    if place.type == "cuda":
        torch.cuda.empty_cache()  # of the stored weights, each in pieces of its own
        if quantized:
            tune_in_background(place)
