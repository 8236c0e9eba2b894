"""Loading a causal LM: transformers' own model, built without memory and filled tensor by tensor with a cast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.checkpoints.describe import HF_CONFIG_FILE, TOKENIZER_CHOICES
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.huggingface.structure import COMPUTED, architecture, read_structure
from core.quantization.groups import NORMS, Structure

LinearFactory = Callable[[str, nn.Linear | nn.Embedding, TensorSource], "tuple[nn.Module, set[str]] | None"]
"""As ``core.lance.loading.LinearFactory``: the module to put in a linear's place, and the keys it took."""


@dataclass
class CausalLM:
    """A loaded model with its tokenizer."""

    model: Any
    """transformers' model, in evaluation mode."""
    structure: Structure
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    swapped: list[str]
    """Modules a linear factory replaced."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return torch.device(self.model.device)

    @property
    def positions(self) -> int:
        """Tokens it was made to read at once."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2048)

    def encode(self, text: str) -> tuple[list[int], int]:
        """Token ids of ``text``, and how many in front of them are special tokens that the tokenizer begins with."""
        plain = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        whole = list(self.tokenizer(text, verbose=False)["input_ids"])
        given = next((n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain), 0)
        return [*whole[:given], *plain], given

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], first: int) -> torch.Tensor:
        """Logits float32 [len(tokens) - first, vocabulary] that predict ``tokens[first:]`` from those before."""
        ids = torch.tensor([list(tokens[:-1])], device=self.device)
        found: torch.Tensor = self.model(
            input_ids=ids, use_cache=False, logits_to_keep=len(tokens) - first
        ).logits[0]
        return found.float()


def empty_model(folder: Path) -> Any:
    """transformers' model of ``folder`` on the meta device: names and shapes, no memory.

    Raises:
        CheckpointError: transformers does not know it, or its norms do not multiply by their weight alone.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = str(error).strip().splitlines()
        raise CheckpointError(
            f"{folder / HF_CONFIG_FILE}: transformers cannot build its model ({words[0] if words else error!r})"
        ) from error
    model.eval().requires_grad_(False)
    _check_norms(model, folder)
    return model


def _check_norms(model: Any, folder: Path) -> None:
    """Scales are folded into a norm's weight, so its output must be proportional to it (Gemma's adds one to it)."""
    for name in NORMS.values():
        try:
            norm = copy.deepcopy(model.get_submodule(f"model.layers.0.{name}")).to_empty(device="cpu")
        except AttributeError:
            raise CheckpointError(
                f"{folder}: {architecture(model.config.to_dict())}: its model has no model.layers.0.{name}"
            ) from None
        rows = torch.linspace(-1, 2, norm.weight.shape[0])[None]
        norm.weight.data.fill_(0.5)
        half = norm(rows)
        norm.weight.data.fill_(2.0)
        if not torch.allclose(norm(rows), 4 * half, rtol=1e-4, atol=1e-6):
            raise CheckpointError(
                f"{folder}: {architecture(model.config.to_dict())}: {type(norm).__name__} does not multiply by its "
                "weight alone, so no scale can be folded into it; such decoders cannot be quantized"
            )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        CheckpointError: its files are missing or unreadable.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER_CHOICES):
        raise CheckpointError(f"{folder}: no tokenizer: wanted {' or '.join(TOKENIZER_CHOICES)}")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise CheckpointError(f"{folder}: the tokenizer's files cannot be read ({error})") from error


def load_causal_lm(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    linear_factory: LinearFactory | None = None,
) -> CausalLM:
    """Load the checkpoint in ``folder``, one tensor at a time, cast to ``dtype`` on ``device``.

    ``linear_factory`` may replace target linears, head and embedding, for variants.

    Raises:
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor, named; missing files; an unknown
            structure.
    """
    source = TensorSource.open(folder)
    structure = read_structure(folder)
    model = empty_model(folder)
    waiting = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    used: set[str] = set()
    swapped: list[str] = []
    for name in [*structure.target_linears(), structure.head, structure.embedding] if linear_factory else ():
        assert linear_factory is not None
        module = model.get_submodule(name)
        made = linear_factory(name, module, source)
        if made is None:
            continue
        new, keys = made
        _set(model, name, new)
        used |= keys
        swapped.append(name)
        for parameter, _ in module.named_parameters():
            waiting.pop(f"{name}.{parameter}")
    head, embedding = f"{structure.head}.weight", f"{structure.embedding}.weight"
    for name, shape in waiting.items():
        key = embedding if name == head and structure.tied else name
        if key not in source:
            raise CheckpointError(f"{source.place}: {key} is missing; fetch the checkpoint again")
        if source.shape(key) != shape:
            raise CheckpointError(
                f"{source.entry(key).file}: {key} has shape {list(source.shape(key))}, "
                f"wanted {list(shape)} by {HF_CONFIG_FILE}"
            )
        used.add(key)
        if name != key:
            continue
        tensor = source.get(key, finite=True).to(device=device, dtype=dtype)
        _set(model, name, nn.Parameter(tensor, requires_grad=False))
    if head in waiting and structure.tied:
        _set(model, head, model.get_parameter(embedding))
        used.add(head)
    for key in source.keys():  # noqa: SIM118 - not a dict
        if key not in used and not COMPUTED.match(key):
            raise CheckpointError(f"{source.entry(key).file}: {key} is no tensor of its model; remove it")
    _fill_buffers(model, torch.device(device), folder)
    return CausalLM(model, structure, load_tokenizer(folder), folder, dtype, swapped)


def _set(model: nn.Module, name: str, value: nn.Module | nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, value)


def _fill_buffers(model: Any, device: torch.device, folder: Path) -> None:
    """Build the modules that hold computed tables (rotary frequencies) anew, with memory."""
    for name, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        try:
            fresh = type(module)(config=model.config).to(device)
        except TypeError as error:
            raise CheckpointError(
                f"{folder}: {architecture(model.config.to_dict())}: {name} holds tables that cannot be "
                f"computed ({error})"
            ) from error
        _set(model, name, fresh.eval())
