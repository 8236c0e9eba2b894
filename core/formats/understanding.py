"""The understanding expert of a Lance by itself: which tensors of the files it is, and what stays behind without it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.checkpoints.describe import CheckpointInfo
from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER, companion
from core.checkpoints.source import FLOATS, TensorSource
from core.errors import CheckpointError
from core.formats.compressed_tensors import PACKED, tensor_keys
from core.lance.config import LanceConfig
from core.lance.loading import IGNORED, VISION_PREFIX
from core.quantization.groups import HEAD_NORMS, LINEARS, NORMS
from core.quantization.scheme import Scheme

PREFIX = "language_model."
"""Before the names of what transformers calls a causal LM."""

_LATENT_SIDE = ("time_embedder.mlp.0", "time_embedder.mlp.2", "vae2llm", "llm2vae")


@dataclass(frozen=True)
class Part:
    """A module of the expert: a linear, the embedding (neither has a bias unless it says so), or a norm."""

    name: str
    """In Lance's files."""
    shape: tuple[int, ...]
    """Of its weight."""
    bias: bool = False

    @property
    def own(self) -> str:
        """Its name in a causal LM."""
        return self.name.removeprefix(PREFIX)


@dataclass(frozen=True)
class Stored:
    """How a checkpoint or variant stores its parts."""

    files: TensorSource
    schemes: tuple[Scheme, dict[str, Scheme]] | None
    """Of a variant: that of all target linears, and those of modules that have their own."""

    def scheme(self, part: Part) -> Scheme | None:
        """The format of a part's codes; None where its weight is stored as it is."""
        if self.schemes is None or f"{part.name}.{PACKED}" not in self.files:
            return None
        return self.schemes[1].get(part.name, self.schemes[0])

    def keys(self, part: Part) -> list[str]:
        """The keys of a part."""
        scheme = self.scheme(part)
        keys = [f"{part.name}.weight"] if scheme is None else tensor_keys(part.name, scheme)
        return [*keys, f"{part.name}.bias"] if part.bias else keys

    def wide(self, parts: Iterable[Part]) -> list[str]:
        """The dtypes, other than bfloat16, of what is stored as it is."""
        keys = (key for part in parts for key in self.keys(part))
        return sorted(
            {self.files.dtype(key) for key in keys if key.endswith((".weight", ".bias"))} - {"BF16"}
        )

    def check(self, part: Part) -> None:
        """Check the names, shapes and dtypes of a part that is stored as it is, and the bias of any.

        Raises:
            CheckpointError: one is missing or wrong; it is named.
        """
        wanted = {f"{part.name}.weight": part.shape} if self.scheme(part) is None else {}
        if part.bias:
            wanted[f"{part.name}.bias"] = part.shape[:1]
        for key, shape in wanted.items():
            entry = self.files.entry(key)
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.file}: {key} has shape {list(entry.shape)}, wanted {list(shape)} by llm_config.json"
                )
            if entry.dtype not in FLOATS:
                raise CheckpointError(
                    f"{entry.file}: {key} is stored as {entry.dtype}, wanted {', '.join(FLOATS)}; fetch it again"
                )


def units(config: LanceConfig) -> list[list[Part]]:
    """The parts of the expert: embedding, layer by layer, then final norm and head."""
    structure, hidden, wide = config.structure, config.hidden_size, config.num_heads * config.head_dim
    narrow, middle = config.num_kv_heads * config.head_dim, config.intermediate_size
    shapes = {
        "self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide), "mlp.gate_proj": (middle, hidden), "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }  # fmt: skip
    table = (config.vocab_size, hidden)
    found = [[Part(structure.embedding, table)]]
    for layer in range(config.num_layers):
        linears = [
            Part(structure.module(layer, path), shapes[path], path in structure.biases) for path in LINEARS
        ]
        norms = [Part(structure.module(layer, path), (hidden,)) for path in NORMS.values()]
        heads = [Part(structure.module(layer, path), (config.head_dim,)) for path in HEAD_NORMS]
        found.append([*linears, *norms, *heads])
    found.append([Part(f"{PREFIX}model.norm", (hidden,)), Part(structure.head, table)])
    return found


def title(number: int, count: int) -> str:
    """What the unit ``number`` of ``count`` is, in words."""
    if number == 0:
        return "the embedding"
    return "final norm and head" if number == count - 1 else f"layer {number} of {count - 2}"


def rounds_rotary(info: CheckpointInfo) -> bool:
    """Whether a Lance runs with rotary frequencies rounded to bfloat16, as upstream's (SPEC 15.1)."""
    return bool(info.defaults.get("rounding") == "upstream")


def qwen3_sizes(info: CheckpointInfo, config: LanceConfig) -> dict[str, Any]:
    """The sizes of the expert as config.json of a Qwen3 has them."""
    return {
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.structure.activation,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": int(info.config.get("max_position_embeddings") or 128000),
    }


def left_behind(folder: Path, files: TensorSource, taken: Iterable[str], config: LanceConfig) -> list[str]:
    """What of a Lance is not in its understanding expert, each in words; every key that was not taken is of it.

    Raises:
        CheckpointError: a tensor that no Lance has; it is named.
    """
    structure = config.structure
    paths = (*LINEARS, *NORMS.values(), *HEAD_NORMS)
    expert = {
        structure.module(layer, path, "gen") for layer in range(config.num_layers) for path in paths
    } | {f"{PREFIX}model.norm_moe_gen"}
    sizes = {"expert": 0, "vision": 0, "latents": 0}
    for key in set(files.keys()) - set(taken):
        module = key.rpartition(".")[0]
        if module in expert:
            kind = "expert"
        elif key.startswith(VISION_PREFIX):
            kind = "vision"
        elif module in _LATENT_SIDE or key in IGNORED:
            kind = "latents"
        else:
            raise CheckpointError(f"{files.entry(key).file}: {key} is no tensor of a Lance; remove it")
        sizes[kind] += files.entry(key).nbytes

    def megabytes(kind: str) -> str:
        return f"{sizes[kind] / 1e6:,.1f} MB"

    linears = len(LINEARS) * config.num_layers
    said = [
        f"the generation expert ({linears} linears with their norms, {megabytes('expert')}): it draws nothing",
        f"what joins it to latents (time_embedder, vae2llm, llm2vae and a table of positions, {megabytes('latents')})",
    ]
    tower = f"bundled, {megabytes('vision')}"
    if not sizes["vision"]:
        beside = companion(folder, f"{VISION_FOLDER}/vit.safetensors")
        tower = "not in the folder" if beside is None else f"{VISION_FOLDER}, beside the checkpoint"
    said.append(
        f"the vision tower ({tower}) and the positions of pictures in height, width and time: it sees nothing"
    )
    vae = next((name for name in VAE_FILES if companion(folder, name) is not None), None)
    said.append(f"the VAE ({'not in the folder' if vae is None else f'{vae}, beside the checkpoint'})")
    return said
