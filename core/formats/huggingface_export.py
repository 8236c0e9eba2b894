"""Export for transformers: the understanding expert of a Lance as a plain causal LM, without code of its own.

Lance's decoder with one expert is a Qwen2 with biases on q, k and v *and* a norm on each head of queries and keys.
transformers' Qwen3 with ``attention_bias`` has both; it then also has a bias on o, which is written as zeros. Lance's
three-dimensional rotary positions (SPEC 6) give text the same number three times, so its angles are those of plain
rope, as long as no picture stands before the text: that is what this export is for.

Upstream rounds the rotary frequencies to bfloat16 (SPEC 15.1) and the released weights were trained so; for a
checkpoint that says so, they are written as the factors of a ``longrope``, which divides each frequency by a number.

Codes of a variant are carried as they are stored (``core.formats.compressed_tensors``), never quantized again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoints.describe import (
    HF_CONFIG_FILE,
    CheckpointInfo,
    describe,
)
from core.checkpoints.layout import layout_of, packed_weights
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.files import check_room, disk_errors, replacing_folder
from core.formats.compressed_tensors import quantization_config
from core.formats.export_request import check_lance, check_output
from core.formats.exported import GENERATION_FILE, Exported, by_scheme, copy_tokenizer, inventory
from core.formats.huggingface_card import export_card
from core.formats.understanding import Part, Stored, left_behind, qwen3_sizes, rounds_rotary, title, units
from core.formats.variant_folder import ShardWriter, write_json
from core.huggingface.loading import load_tokenizer as load_auto_tokenizer
from core.lance.config import LanceConfig
from core.lance.generation import MAX_NEW_TOKENS
from core.lance.loading import load_tokenizer
from core.lance.prompts import IM_END
from core.lance.rotary import inverse_frequencies
from core.quantization.layer import store_plain
from core.quantization.scheme import Scheme
from core.runtime.check import variant_schemes
from core.runtime.embedding import QuantizedEmbedding
from core.runtime.linear import QuantizedLinear
from core.runtime.loading import quantized_factory

ARCHITECTURE = "Qwen3ForCausalLM"
DTYPE = torch.bfloat16
ROWS = 1 << 14
"""Rows of a quantized embedding that are decoded together."""

_PROBE = f"<|im_start|>user\nWhat is 12 × 7? ünïcode 你好{IM_END}\n<|im_start|>assistant\n"
"""What both tokenizers must read alike: template, digits, words in other scripts."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the weights that a variant stores as codes."""

    carried: dict[str, Scheme]
    """Part -> its format: its codes are copied."""
    dense: dict[str, Scheme]
    """Part -> its format in the variant: written as bfloat16, the values that the workbench computes with."""

    def config(self, linears: list[str]) -> dict[str, Any] | None:
        """The ``quantization_config``, or None where nothing is quantized; ``linears`` are all there are."""
        if not self.carried:
            return None
        first = next(iter(self.carried.values()))
        ignore = [name for name in linears if name not in self.carried]
        found = quantization_config(first, ignore, linears=self.carried)
        # As for any variant of a causal LM (``variant_folder.write_companions``).
        return found | {"dequantize": len(found["config_groups"]) == 1}


def export(source: Path, output: Path, say: Callable[[str], None]) -> Exported:
    """Write the understanding expert of a Lance so that ``AutoModelForCausalLM.from_pretrained(output)`` loads it.

    Every key of the source is written, or belongs to what is left out and named. What was written is held against
    transformers' own model, by names and shapes, before it takes its name.

    Args:
        source: a Lance's checkpoint or variant folder.
        output: the folder to make: not there yet, or empty.
        say: told each step.

    Returns:
        What was written.

    Raises:
        UsageError: the source is no Lance, or something is at ``output``.
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor, named; a tokenizer that cannot be read.
        WorkbenchError: the disk is full, or the place cannot be written.
    """
    info = describe(source)
    check_lance(info)
    check_output(output)
    config, files = LanceConfig.from_folder(info.path), TensorSource.open(info.path)
    stored = Stored(files, variant_schemes(info.path))
    groups = units(config)
    parts = [part for group in groups for part in group]
    for part in parts:
        stored.check(part)
    taken = {key for part in parts for key in stored.keys(part)}
    left_out = left_behind(info.path, files, taken, config)
    tokenizer = load_tokenizer(info.path)
    plan = _plan(stored, parts)
    left_out += _rewritten(info, stored, parts, plan)
    check_room(output, _size(stored, parts, plan))
    with replacing_folder(output) as partial:
        writer = ShardWriter(partial)
        for number, group in enumerate(groups):
            say(f"writing {title(number, len(groups))}")
            unit: dict[str, Tensor] = {}
            for part in group:
                unit |= _tensors(stored, part, plan)
            writer.add(unit)
        written = writer.finish()
        linears = [part.own for part in parts if part.name in _linear_names(config)]
        _companions(partial, info, config, tokenizer, plan.config(linears))
        card = export_card(info, plan.carried, left_out, rounded=rounds_rotary(info))
        (partial / "README.md").write_text(card, encoding="utf-8")
        say("holding names and shapes against transformers' model")
        _check(partial, info.path, tokenizer)
        check_output(output)
        hashes, size = inventory(partial, written.files)
    needs = " (needs compressed-tensors)" if plan.carried else ""
    loads = f'transformers.AutoModelForCausalLM.from_pretrained("{output}"){needs}'
    return Exported(output, size, hashes, tuple(left_out), loads)


def _linear_names(config: LanceConfig) -> set[str]:
    structure = config.structure
    return {
        *(name for group in structure.groups() if group.expert == "und" for name in group.linears),
        structure.head,
    }


def _plan(stored: Stored, parts: list[Part]) -> Plan:
    """Which codes transformers can read.

    It reads linears of several formats where none has zeros; where some have, it reads one format beside linears that
    are dense. Head and embedding are dense for it.
    """
    schemes = {part: scheme for part in parts if (scheme := stored.scheme(part)) is not None}
    layers = {part: scheme for part, scheme in schemes.items() if ".layers." in part.name}
    weights: Counter[Scheme] = Counter()
    for part, scheme in layers.items():
        weights[scheme] += part.shape[0] * part.shape[1]
    readable = set(weights)
    if any(scheme.kind != "int" or not scheme.symmetric for scheme in weights):
        readable = {scheme for scheme, _ in weights.most_common(1)}
    carried = {part.own: scheme for part, scheme in layers.items() if scheme in readable}
    return Plan(carried, {part.own: s for part, s in schemes.items() if part.own not in carried})


def _rewritten(info: CheckpointInfo, stored: Stored, parts: list[Part], plan: Plan) -> list[str]:
    """What is written otherwise than it is stored, each in words."""
    said = [
        f"the {label} of {which}, which transformers does not read here: written as bfloat16, the same values"
        for label, which in by_scheme(plan.dense, "linears")
    ]
    if wide := stored.wide(parts):
        said.append(f"the precision of {' and '.join(wide)}: rounded to bfloat16, as Lance runs")
    if (info.path / GENERATION_FILE).is_file():
        said.append(
            f"the checkpoint's {GENERATION_FILE}, which Lance does not read: greedy decoding is written instead"
        )
    return said


def _size(stored: Stored, parts: list[Part], plan: Plan) -> int:
    """Bytes of what will be written."""
    total = 0
    for part in parts:
        if part.own in plan.carried:
            keys = [key for key in stored.keys(part) if not key.endswith(".bias")]
            total += sum(stored.files.entry(key).nbytes for key in keys)
        else:
            total += math.prod(part.shape) * DTYPE.itemsize
        total += part.shape[0] * DTYPE.itemsize * part.bias
    return total


def _tensors(stored: Stored, part: Part, plan: Plan) -> dict[str, Tensor]:
    """What stands for a part in the export, by its name there."""
    files, found = stored.files, {}
    if stored.scheme(part) is None:
        key = f"{part.name}.weight"
        found[f"{part.own}.weight"] = store_plain(key, files.get(key, finite=True))
    elif part.own in plan.carried:
        _module(stored, part)  # which checks its shapes and values
        keys = [key for key in stored.keys(part) if not key.endswith(".bias")]
        found = {key.replace(part.name, part.own, 1): files.get(key) for key in keys}
    else:
        found[f"{part.own}.weight"] = _dense(_module(stored, part))
    if part.bias:
        key = f"{part.name}.bias"
        found[f"{part.own}.bias"] = store_plain(key, files.get(key, finite=True))
    elif part.own.endswith(".o_proj"):
        found[f"{part.own}.bias"] = torch.zeros(part.shape[0], dtype=DTYPE)
    return found


def _module(stored: Stored, part: Part) -> nn.Module:
    """The runtime's module of a part that is stored as codes.

    Raises:
        CheckpointError: a tensor is missing, mis-shaped or not finite.
    """
    assert stored.schemes is not None
    with torch.device("meta"):
        rows, columns = part.shape
        empty: nn.Linear | nn.Embedding = nn.Linear(columns, rows, bias=part.bias)
        if part.name.endswith("embed_tokens"):
            empty = nn.Embedding(rows, columns)
    made = quantized_factory(stored.schemes, torch.device("cpu"), DTYPE)(part.name, empty, stored.files)
    if made is None:
        raise CheckpointError(f"{stored.files.place}: {part.name} is not stored as codes")
    return made[0]


def _dense(module: nn.Module) -> Tensor:
    """The weight that a quantized module computes with, bfloat16."""
    if isinstance(module, QuantizedEmbedding):
        rows = torch.arange(module.weight_packed.shape[0])
        return torch.cat([module(piece) for piece in rows.split(ROWS)])
    assert isinstance(module, QuantizedLinear)
    return module.weight().to(DTYPE)


def _companions(
    folder: Path,
    info: CheckpointInfo,
    config: LanceConfig,
    tokenizer: Any,
    quantization: Mapping[str, Any] | None,
) -> None:
    """Write tokenizer, config.json and generation_config.json."""
    stop, pad = tokenizer.convert_tokens_to_ids(IM_END), tokenizer.pad_token_id
    sizes = qwen3_sizes(info, config)
    if stop is None:
        raise CheckpointError(
            f"{info.path}: its tokenizer has no {IM_END}, which ends an answer; fetch it again"
        )
    with disk_errors(folder):
        copy_tokenizer(info.path, folder)
        body: dict[str, Any] = {
            "architectures": [ARCHITECTURE],
            **sizes,
            **_rope(info, config, sizes["max_position_embeddings"]),
            "attention_bias": True,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": stop,
            "pad_token_id": pad,
            "torch_dtype": "bfloat16",
        }
        if quantization is not None:
            body["quantization_config"] = dict(quantization)
        write_json(folder / HF_CONFIG_FILE, body)
        generation: dict[str, Any] = {
            "do_sample": False,
            "max_new_tokens": MAX_NEW_TOKENS,
            "eos_token_id": stop,
            "pad_token_id": pad,
        }
        if unused := list(range(len(tokenizer), config.vocab_size)):
            # Rows of the head behind the last token were never trained; Lance does not choose them either.
            generation["suppress_tokens"] = unused
        write_json(folder / GENERATION_FILE, generation)


def _rope(info: CheckpointInfo, config: LanceConfig, positions: int) -> dict[str, Any]:
    """The rotary keys of config.json, in the older spelling, which every version of transformers reads."""
    if not rounds_rotary(info):
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    exact = inverse_frequencies(config.head_dim, config.rope_theta, rounded=False).double()
    run = inverse_frequencies(config.head_dim, config.rope_theta, rounded=True).double()
    factors = (exact / run).tolist()
    scaling = {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": positions,
    }
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}


def _check(folder: Path, source: Path, tokenizer: Any) -> None:
    """Hold what was written against transformers' model, and its tokenizer against the source's own.

    Raises:
        CheckpointError: it has another parameter, shape or token.
    """
    files = TensorSource.open(folder)
    layout_of(folder).check(files, packed_weights(files))
    written = load_auto_tokenizer(folder)(_PROBE, add_special_tokens=False)["input_ids"]
    wanted = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    if written != wanted:
        raise CheckpointError(
            f"{source}: transformers' AutoTokenizer reads its tokenizer otherwise than Lance does: {written[:8]}…, "
            f"wanted {wanted[:8]}…"
        )
