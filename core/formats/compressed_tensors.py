"""The layouts of compressed-tensors: tensor names, shapes and the ``quantization_config``.

For a linear ``name`` [N, K] of ``bits`` bits and groups of g columns (compressed-tensors,
``compressors/pack_quantized``):

========================== ======================== ====================================================
``name.weight_packed``      int32 [N, K*bits/32]     codes, see ``kernels.packing``
``name.weight_scale``       bfloat16 [N, K/g]        weight = (code - zero) * scale
``name.weight_zero_point``  int32 [N*bits/32, K/g]   zeros packed along the rows; asymmetric only
``name.weight_shape``       int64 [2]                N, K
``name.bias``               bfloat16 [N]             unchanged, where there is one
========================== ======================== ====================================================

As NVFP4 (``compressors/nvfp4``, format ``nvfp4-pack-quantized``):

============================ ======================== ==================================================
``name.weight_packed``        uint8 [N, K/2]           E2M1 codes, the even column in the low nibble
``name.weight_scale``         float8_e4m3fn [N, K/16]  weight = code * scale / global scale
``name.weight_global_scale``  float32 [1]              the same for linears that runtimes fuse
============================ ======================== ==================================================

As FP8 (format ``float-quantized``), whose activations are rounded
row by row as they come (``input_activations``: dynamic, by token):

========================== ======================== ====================================================
``name.weight``             float8_e4m3fn [N, K]     codes
``name.weight_scale``       float32 [N, 1]           weight = code * scale
========================== ======================== ====================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.errors import CheckpointError
from core.quantization.scheme import CHANNEL, FP8, NVFP4, Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from core.quantization.rounding import Quantized

FORMATS = {"int": "pack-quantized", "nvfp4": "nvfp4-pack-quantized", "fp8": "float-quantized"}
"""Name of the layout by kind of scheme."""

SEVERAL = "mixed-precision"
"""Name of the layout of a variant whose groups have several."""

_TYPES = {"int": "int", "nvfp4": "float", "fp8": "float"}
_STRATEGIES = {"int": "group", "nvfp4": "tensor_group", "fp8": "channel"}
_BY_TOKEN = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "strategy": "token",
    "group_size": None,
    "dynamic": True,
}
"""FP8's activations."""

_FOR_GENERATION = "this version runs that for the linears of a Lance's generation expert only"

CODES = "weight"
"""FP8's codes, under the name of the weight that they stand for."""

PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
GLOBAL_SCALE = "weight_global_scale"

_OWN_WAY = re.compile(r"(.*\.)?(lm_head|embed_tokens|time_embedder\.mlp\.[02]|[a-z]+_proj(_moe_gen)?)")
"""Names of modules that may be quantized in a way of their own."""


def tensor_keys(name: str, scheme: Scheme) -> list[str]:
    """The keys that stand for ``name.weight``."""
    if scheme.kind == "nvfp4":
        return [f"{name}.{leaf}" for leaf in (PACKED, SCALE, GLOBAL_SCALE)]
    if scheme.kind == "fp8":
        return [f"{name}.{leaf}" for leaf in (CODES, SCALE)]
    leaves = [PACKED, SCALE, SHAPE] if scheme.symmetric else [PACKED, SCALE, ZERO, SHAPE]
    return [f"{name}.{leaf}" for leaf in leaves]


def to_tensors(name: str, weight: Quantized) -> dict[str, Tensor]:
    """The tensors that are stored for a quantized linear, on the CPU."""
    import torch

    from core.quantization.fp8 import Fp8Quantized
    from core.quantization.nvfp4 import Nvfp4Quantized
    from kernels.packing import pack

    if isinstance(weight, Nvfp4Quantized):
        return {
            f"{name}.{PACKED}": weight.packed.contiguous().cpu(),
            f"{name}.{SCALE}": weight.scale.contiguous().cpu(),
            f"{name}.{GLOBAL_SCALE}": weight.global_scale.cpu().clone(),
        }
    if isinstance(weight, Fp8Quantized):
        return {
            f"{name}.{CODES}": weight.codes.contiguous().cpu(),
            f"{name}.{SCALE}": weight.scale.contiguous().cpu(),
        }
    bits = weight.scheme.bits
    tensors = {
        f"{name}.{PACKED}": pack(weight.codes, bits).cpu(),
        f"{name}.{SCALE}": weight.scale.contiguous().cpu(),
        f"{name}.{SHAPE}": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero is not None:
        tensors[f"{name}.{ZERO}"] = pack(weight.zero, bits, dim=0).cpu()
    return tensors


def quantization_config(
    scheme: Scheme,
    ignore: list[str],
    outer: Mapping[str, Scheme] | None = None,
    linears: Mapping[str, Scheme] | None = None,
) -> dict[str, Any]:
    """The ``quantization_config`` of config.json: all linears but ``ignore`` are of ``scheme``, and the modules
    of ``outer`` (by name) of their own. Where ``linears`` (target linears by name) have several schemes, each group
    names its linears and none is meant by its type.
    """
    targets: dict[Scheme, list[str]] = {}
    for name, own in (linears or {}).items():
        targets.setdefault(own, []).append(name)
    parts = list(targets.items()) if len(targets) > 1 else [(scheme, ["Linear"])]
    parts += [(own, [name]) for name, own in (outer or {}).items()]
    groups = {f"group_{number}": _group(names, own) for number, (own, names) in enumerate(parts)}
    layouts = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": layouts.pop() if len(layouts) == 1 else SEVERAL,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [name for name in ignore if name not in (outer or {})],
        "kv_cache_scheme": None,
    }


def _group(targets: list[str], scheme: Scheme) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": _TYPES[scheme.kind],
        "symmetric": scheme.symmetric,
        "strategy": _strategy(scheme),
        "group_size": None if scheme.group_size == CHANNEL else scheme.group_size,
        "dynamic": False,
    }
    if scheme.kind == "nvfp4":
        weights["scale_dtype"] = "torch.float8_e4m3fn"
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": dict(_BY_TOKEN) if scheme.kind == "fp8" else None,
        "output_activations": None,
        "format": FORMATS[scheme.kind],
    }


def _strategy(scheme: Scheme) -> str:
    return "channel" if scheme.group_size == CHANNEL else _STRATEGIES[scheme.kind]


def schemes_of(config: dict[str, Any], place: str) -> tuple[Scheme, dict[str, Scheme]]:
    """The scheme of all target linears and those of modules by name that have their own, as a
    ``quantization_config`` has them; ``place`` names its file in errors.

    Raises:
        CheckpointError: another method or layout than ours, or one that the runtime cannot run.
    """
    try:
        if config["quant_method"] != "compressed-tensors":
            raise CheckpointError(
                f"{place}: quant_method is {config['quant_method']!r}, this version runs 'compressed-tensors'"
            )
        groups = list(config["config_groups"].values())
        whole = config["format"]
        layouts = [group.get("format") or whole for group in groups]
        if whole != SEVERAL:
            layouts[0] = whole
        schemes = [_scheme(group, layout, place) for group, layout in zip(groups, layouts, strict=True)]
        own: dict[str, Scheme] = {}
        for number, (group, scheme) in enumerate(zip(groups, schemes, strict=True)):
            if number == 0 and group["targets"] == ["Linear"]:
                continue
            for name in group["targets"]:
                if not _OWN_WAY.fullmatch(name):
                    raise CheckpointError(
                        f"{place}: quantizes {name} in a way of its own, this version cannot run that"
                    )
                if scheme == FP8 and "_moe_gen" not in name:
                    raise CheckpointError(f"{place}: {name} is float-quantized, {_FOR_GENERATION}")
                if own.setdefault(name, scheme) != scheme:
                    raise CheckpointError(f"{place}: quantizes {name} in two ways, wanted one")
        if schemes[0] == FP8 and groups[0]["targets"] == ["Linear"]:
            raise CheckpointError(f"{place}: all linears are float-quantized, {_FOR_GENERATION}")
        return schemes[0], own
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{place}: quantization_config is damaged ({error!r})") from error


def _scheme(group: dict[str, Any], layout: str, place: str) -> Scheme:
    kinds = {name: kind for kind, name in FORMATS.items()}
    kind, weights = kinds.get(layout), group["weights"]
    wanted: dict[str, tuple[Any, Any]] = {
        "format": (layout, layout if kind else " or ".join(kinds)),
        "weights.type": (weights["type"], _TYPES.get(kind or "", "int")),
    }
    channel = weights["strategy"] == "channel" and kind == "int"
    if not channel:
        wanted["weights.strategy"] = (weights["strategy"], _STRATEGIES.get(kind or "", "group"))
    for key, (value, right) in wanted.items():
        if value != right:
            raise CheckpointError(f"{place}: {key} is {value!r}, this version runs {right!r}")
    inputs, outputs = group.get("input_activations"), group.get("output_activations")
    if kind == "fp8" and not outputs:
        if not inputs or any(inputs.get(key) != value for key, value in _BY_TOKEN.items()):
            raise CheckpointError(
                f"{place}: quantizes inputs of float-quantized weights as {inputs}, this version rounds them to 8 bits "
                "by token as they come"
            )
        found = (weights["num_bits"], weights["symmetric"])
        if found != (8, True):
            raise CheckpointError(
                f"{place}: float-quantized has (num_bits, symmetric) of {found}, wanted (8, True)"
            )
        return FP8
    if inputs or outputs:
        raise CheckpointError(f"{place}: activations are quantized, this version runs weights only")
    if kind == "nvfp4":
        return NVFP4
    size = CHANNEL if channel else int(weights["group_size"])
    return Scheme(int(weights["num_bits"]), size, bool(weights["symmetric"]))
