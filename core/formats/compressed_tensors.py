"""The ``pack-quantized`` layout of compressed-tensors: tensor names, shapes and the ``quantization_config``.

For a linear ``name`` [N, K] of ``bits`` bits and groups of g columns (compressed-tensors,
``compressors/pack_quantized``):

========================== ======================== ====================================================
``name.weight_packed``      int32 [N, K*bits/32]     codes, see ``kernels.packing``
``name.weight_scale``       bfloat16 [N, K/g]        weight = (code - zero) * scale
``name.weight_zero_point``  int32 [N*bits/32, K/g]   zeros packed along the rows; asymmetric only
``name.weight_shape``       int64 [2]                N, K
``name.bias``               bfloat16 [N]             unchanged, where there is one
========================== ======================== ====================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError
from core.quantization.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from core.quantization.integer import Quantized

FORMAT = "pack-quantized"
PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def tensor_keys(name: str, scheme: Scheme) -> list[str]:
    """The keys that stand for ``name.weight``."""
    leaves = [PACKED, SCALE, SHAPE] if scheme.symmetric else [PACKED, SCALE, ZERO, SHAPE]
    return [f"{name}.{leaf}" for leaf in leaves]


def to_tensors(name: str, weight: Quantized) -> dict[str, Tensor]:
    """The tensors that are stored for a quantized linear, on the CPU."""
    import torch

    from kernels.packing import pack

    bits = weight.scheme.bits
    tensors = {
        f"{name}.{PACKED}": pack(weight.codes, bits).cpu(),
        f"{name}.{SCALE}": weight.scale.contiguous().cpu(),
        f"{name}.{SHAPE}": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero is not None:
        tensors[f"{name}.{ZERO}"] = pack(weight.zero, bits, dim=0).cpu()
    return tensors


def quantization_config(scheme: Scheme, ignore: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of config.json: all linears but ``ignore`` are of ``scheme``."""
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": scheme.bits,
                    "type": "int",
                    "symmetric": scheme.symmetric,
                    "strategy": "group",
                    "group_size": scheme.group_size,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ignore,
        "kv_cache_scheme": None,
    }


def scheme_of(config: dict[str, Any], place: str) -> Scheme:
    """The scheme that a ``quantization_config`` describes; ``place`` names its file in errors.

    Raises:
        CheckpointError: another method or layout than ours, or one that the runtime cannot run.
    """
    try:
        method, layout = config["quant_method"], config["format"]
        groups = list(config["config_groups"].values())
        weights = groups[0]["weights"]
        found = {
            "quant_method": (method, "compressed-tensors"),
            "format": (layout, FORMAT),
            "number of config_groups": (len(groups), 1),
            "weights.type": (weights["type"], "int"),
            "weights.strategy": (weights["strategy"], "group"),
        }
        for key, (value, wanted) in found.items():
            if value != wanted:
                raise CheckpointError(f"{place}: {key} is {value!r}, this version runs {wanted!r}")
        return Scheme(int(weights["num_bits"]), int(weights["group_size"]), bool(weights["symmetric"]))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{place}: quantization_config is damaged ({error!r})") from error
