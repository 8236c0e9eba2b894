"""A Lance of random weights made on the device, plain or quantized: speed does not depend on their values."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from core.checkpoints.describe import DEFAULTS
from core.demo import CHECKPOINT
from core.lance.config import LanceConfig
from core.lance.decoder import target_names
from core.lance.loading import OUTER, LoadReport, Pipeline, empty_lance, load_tokenizer, put
from core.quantization.scheme import Scheme
from core.runtime.fp8_linear import Fp8Linear
from core.runtime.linear import QuantizedLinear
from kernels.fp8 import quantize_weight
from kernels.packing import packed_words

STD = 0.02
"""Of the weights, as they are initialised in models of this size."""

RELEASED = LanceConfig(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_layers=36,
    num_heads=16,
    num_kv_heads=2,
    head_dim=128,
    mrope_section=(16, 24, 24),
    vision={
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_channels": 3,
        "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    },
)  # fmt: skip
"""Sizes of the released Lance_3B."""


def random_linear(
    scheme: Scheme, rows: int, columns: int, bias: torch.Tensor | None, generator: torch.Generator
) -> QuantizedLinear | Fp8Linear:
    """A quantized linear of random codes, zeros and scales on the generator's device, as it would be stored."""
    device, groups = generator.device, columns // scheme.width(columns)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(
            -(2**31), 2**31, shape, dtype=torch.int32, device=device, generator=generator
        )  # fmt: skip

    spread = 0.5 + torch.rand(rows, groups, device=device, generator=generator)
    if scheme.kind == "nvfp4":
        packed = words(rows, columns // 8).view(torch.uint8)
        # E2M1 codes have a root mean square of 2.7; scales of 8 to 24 use the range of E4M3.
        scale = (16 * spread).to(torch.float8_e4m3fn)
        divisor = torch.full((1,), 16 * 2.7 / STD, device=device)
        return QuantizedLinear(scheme, packed, scale, None, bias, divisor)
    if scheme.kind == "fp8":
        weight = torch.randn(rows, columns, device=device, generator=generator) * STD
        found = quantize_weight(weight)
        return Fp8Linear(found.codes, found.scale.unsqueeze(1), bias)
    packed = words(rows, packed_words(columns, scheme.bits))
    zero = None if scheme.symmetric else words(packed_words(rows, scheme.bits), groups)
    # Uniform codes spread by 2**bits / sqrt(12), and as much again where a uniform zero is taken from them.
    size = (1 << scheme.bits) / 12**0.5 * (1.0 if scheme.symmetric else 2**0.5)
    return QuantizedLinear(scheme, packed, (STD / size * spread).bfloat16(), zero, bias)


def random_pipeline(
    config: LanceConfig,
    device: torch.device,
    dtype: torch.dtype,
    scheme: Scheme | None = None,
    head: Scheme | None = None,
    gen: Scheme | None = None,
    seed: int = 0,
) -> Pipeline:
    """A Lance of random weights, with the embedded checkpoint's tokenizer and no engine.

    Args:
        config: its sizes.
        device: where its weights are made.
        dtype: of what is not quantized, and of the activations.
        scheme: of the target linears; None leaves them plain.
        head: of the head; None leaves it plain.
        gen: of the generation expert's target linears, if it is another than ``scheme``.
        seed: of the weights.
    """
    model = empty_lance(config)
    generator = torch.Generator(device).manual_seed(seed)
    schemes = {} if scheme is None else dict.fromkeys(target_names(config.num_layers), scheme)
    if gen is not None:
        drawing = [group for group in config.structure.groups() if group.expert == "gen"]
        schemes |= {name: gen for group in drawing for name in group.linears}
    if head is not None:
        schemes[OUTER[0]] = head
    for name, chosen in schemes.items():
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        bias = None if plain.bias is None else torch.zeros(plain.out_features, device=device, dtype=dtype)
        made = random_linear(chosen, plain.out_features, plain.in_features, bias, generator)
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, made)
    for name, parameter in list(model.named_parameters()):
        tensor = torch.empty(parameter.shape, device=device, dtype=dtype)
        if "norm" in name:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, STD, generator=generator)
        put(model, name, tensor)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            path, _, leaf = name.rpartition(".")
            fresh = torch.empty(buffer.shape, dtype=torch.float32, device=device)
            model.get_submodule(path).register_buffer(leaf, fresh, persistent=False)
    model.reset_buffers()
    tokenizer = load_tokenizer(CHECKPOINT)
    return Pipeline(model, tokenizer, Path("random"), dtype, dict(DEFAULTS), LoadReport([], [], []))
