"""Loading a Lance: built without memory, then filled tensor by tensor with a cast, every key accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from core.checkpoints.describe import DEFAULTS, TOKENIZER_FILES, own_record
from core.checkpoints.resolve import VAE_FILES, VISION_FOLDER, companion
from core.checkpoints.source import FLOATS, TensorSource
from core.errors import CheckpointError
from core.lance.cache import KVCache
from core.lance.config import LanceConfig
from core.lance.decoder import target_names
from core.lance.model import Lance
from core.lance.sampler import Sampling
from core.lance.staging import Staging
from core.lance.structure import TIME
from core.lance.vae import VAE
from core.quantization.groups import Structure

if TYPE_CHECKING:
    from core.lance.generation import Drawing

IGNORED = frozenset({"latent_pos_embed.pos_embed"})
"""Stored by upstream and dropped by it when loading: the table is recomputed."""

VISION_PREFIX = "vit_model."

LinearFactory = Callable[[str, nn.Linear | nn.Embedding, TensorSource], "tuple[nn.Module, set[str]] | None"]
"""(module name, the module on the meta device, the checkpoint) -> the module to put in its place, the keys it took."""

OUTER = ("language_model.lm_head", "language_model.model.embed_tokens", *TIME)
"""Modules outside the layers that a variant may quantize too."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every key of the files read."""

    loaded: list[str]
    swapped: list[str]
    """Modules a linear factory replaced."""
    ignored: list[str]


class Engine(Protocol):
    """A faster way to run the decoder, which ``core.runtime`` hands to a pipeline; without one the modules run."""

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache with room for ``rows`` rows that ``decode`` can go on from."""
        ...

    def decode(
        self, cache: KVCache, token: int, position: int, vocabulary: int
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Greedy (token, logits [vocab]) behind a filled cache; ids from ``vocabulary`` on are never chosen."""
        ...

    def velocities(
        self, drawing: Drawing
    ) -> Callable[[torch.Tensor, float, bool], tuple[torch.Tensor, torch.Tensor | None]]:
        """What ``Drawing.velocities`` computes."""
        ...


@dataclass
class Pipeline:
    """A model with its tokenizer, its VAE (read when first needed) and its generation defaults."""

    model: Lance
    tokenizer: Any
    folder: Path
    dtype: torch.dtype
    defaults: dict[str, Any]
    report: LoadReport
    vae_dtype: torch.dtype = field(default=torch.float32)
    engine: Engine | None = None

    @property
    def config(self) -> LanceConfig:
        """Sizes of the model."""
        return self.model.config

    @property
    def structure(self) -> Structure:
        """The decoder as data."""
        return self.config.structure

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def sampling(self) -> Sampling:
        """The checkpoint's default sampler settings."""
        return Sampling(
            num_steps=int(self.defaults["num_steps"]),
            timestep_shift=float(self.defaults["timestep_shift"]),
            cfg_text_scale=float(self.defaults["cfg_text_scale"]),
        )

    @cached_property
    def vae(self) -> VAE:
        """The VAE beside the checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = next((p for name in VAE_FILES if (p := companion(self.folder, name)) is not None), None)
        if path is None:
            raise CheckpointError(
                f"{self.folder}: no {VAE_FILES[0]} in it, beside it or beside its source; fetch it"
            )
        return VAE.load(path, self.device, self.vae_dtype)


def load_tokenizer(folder: Path) -> Any:
    """The byte-level BPE tokenizer in a folder, with offsets.

    Raises:
        CheckpointError: one of its files is missing or unreadable.
    """
    from transformers import Qwen2TokenizerFast

    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: the tokenizer's {name} is missing; fetch it again")
    try:
        return Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: the tokenizer's files cannot be read ({error})") from error


def empty_lance(config: LanceConfig, *, rounded: bool = False) -> Lance:
    """A Lance on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Lance(config, rounded=rounded).eval().requires_grad_(False)


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace the parameter called ``name`` by ``tensor`` (not trainable)."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def load_lance(
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    linear_factory: LinearFactory | None = None,
) -> Pipeline:
    """Load the checkpoint in ``folder``, one tensor at a time, cast to ``dtype`` on ``device``.

    The vision tower comes from ``Qwen2.5-VL-ViT/vit.safetensors`` in or beside the folder unless the checkpoint bundles
    it (upstream lets bundled values win). A tower in its own file is checked now and read when it is first needed: what
    generates from words alone never needs it. ``linear_factory`` may replace target linears, head and embedding, for
    variants.

    Raises:
        CheckpointError: a missing, unknown, mis-shaped or non-finite tensor, named; missing files.
    """
    source = TensorSource.open(folder)
    config = LanceConfig.from_folder(folder)
    defaults = DEFAULTS | dict(own_record(folder).get("defaults", {}))
    model = empty_lance(config, rounded=defaults["rounding"] == "upstream" and dtype == torch.bfloat16)
    waiting = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    used: set[str] = set()
    swapped: list[str] = []
    if linear_factory is not None:
        for name in [*target_names(config.num_layers), *OUTER]:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear | nn.Embedding)
            made = linear_factory(name, linear, source)
            if made is None:
                continue
            module, keys = made
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, module)
            used |= keys
            swapped.append(name)
            for parameter, _ in linear.named_parameters():
                waiting.pop(f"{name}.{parameter}")
    places = _locate(waiting, source, folder)
    for name, (place, key) in places.items():
        found = place.shape(key)
        if found != waiting[name]:
            raise CheckpointError(
                f"{place.entry(key).file}: {key} has shape {list(found)}, "
                f"wanted {list(waiting[name])} by llm_config.json"
            )
        if place.dtype(key) not in FLOATS:
            raise CheckpointError(
                f"{place.entry(key).file}: {key} is stored as {place.dtype(key)}, wanted {', '.join(FLOATS)}; fetch it "
                "again"
            )
        if place is source:
            used.add(key)
    together = [tuple(f"{name}.weight" for name in group.linears) for group in config.structure.groups()]
    own = {name: at for name, at in places.items() if at[0] is source}
    _fill(model, own, device, dtype, [names for names in together if len(names) > 1])
    tower = {name: at for name, at in places.items() if at[0] is not source}
    if tower:
        model.vit_model.postpone(lambda: _fill(model, tower, device, dtype))
    ignored = sorted(IGNORED & set(source.keys()))
    unknown = [key for key in source.keys() if key not in used and key not in IGNORED]  # noqa: SIM118
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CheckpointError(
            f"{source.entry(unknown[0]).file}: {unknown[0]}{more} is no tensor of a Lance; remove it"
        )
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            path, _, leaf = name.rpartition(".")
            fresh = torch.empty(buffer.shape, dtype=torch.float32, device=device)
            model.get_submodule(path).register_buffer(leaf, fresh, persistent=False)
    model.reset_buffers()
    report = LoadReport(sorted(waiting), swapped, ignored)
    return Pipeline(model, load_tokenizer(folder), folder, dtype, defaults, report)


def _fill(
    model: nn.Module,
    places: dict[str, tuple[TensorSource, str]],
    device: str | torch.device,
    dtype: torch.dtype,
    together: Sequence[tuple[str, ...]] = (),
) -> None:
    """Read parameters from where they are stored; those of each of ``together`` are laid side by side if they can be.

    Raises:
        CheckpointError: one of them is not finite; it is named.
    """
    staging = Staging(torch.device(device), dtype)
    rooms: dict[str, torch.Tensor | None] = {}
    for names in together:
        if all(name in places for name in names):
            shapes = [places[name][0].shape(places[name][1]) for name in names]
            rooms |= dict(zip(names, staging.beside(shapes), strict=True))
    for name, (place, key) in places.items():
        put(model, name, staging.place(name, place.get(key), rooms.get(name)))
    damaged = staging.not_finite()
    if damaged is not None:
        place, key = places[damaged]
        place.get(key, finite=True)


def _locate(
    wanted: dict[str, tuple[int, ...]], source: TensorSource, folder: Path
) -> dict[str, tuple[TensorSource, str]]:
    """Where each parameter is stored: the checkpoint itself or the vision tower's own file.

    Raises:
        CheckpointError: a parameter is in neither.
    """
    vision: TensorSource | None = None
    if not any(key.startswith(VISION_PREFIX) for key in source.keys()):  # noqa: SIM118
        path = companion(folder, f"{VISION_FOLDER}/vit.safetensors")
        if path is None:
            raise CheckpointError(
                f"{folder}: no vision tower: wanted {VISION_FOLDER}/vit.safetensors in or beside it; fetch it"
            )
        vision = TensorSource.open(path)
        for key in vision.keys():  # noqa: SIM118
            if VISION_PREFIX + key not in wanted:
                raise CheckpointError(f"{path}: {key} is no tensor of the vision tower; fetch it again")
    places: dict[str, tuple[TensorSource, str]] = {}
    for name in wanted:
        if vision is not None and name.startswith(VISION_PREFIX):
            place, key = vision, name.removeprefix(VISION_PREFIX)
        else:
            place, key = source, name
        if key not in place:
            raise CheckpointError(f"{place.place}: {key} is missing; fetch the checkpoint again")
        places[name] = (place, key)
    return places
