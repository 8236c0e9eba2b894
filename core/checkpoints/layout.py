"""What the files of a checkpoint must hold, by its family: its decoder's structure, and every tensor's shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.checkpoints.describe import CONFIG_FILE, HF_CONFIG_FILE, family_of
from core.checkpoints.source import FLOAT8, FLOATS, TensorSource
from core.errors import CheckpointError
from core.quantization.groups import LINEARS, Structure


@dataclass(frozen=True)
class Layout:
    """The tensors of a checkpoint by name, and what its decoder looks like."""

    structure: Structure
    shapes: dict[str, tuple[int, ...]]
    """Of every parameter of the model."""
    optional: re.Pattern[str]
    """Parameters that may lie elsewhere; if one that matches is in the files, all have to be."""
    ignored: re.Pattern[str]
    """Tensors that are no parameters and that the model computes anew."""
    config_file: str
    """Where the sizes come from, for errors."""

    def problems(self, source: TensorSource, packed: Collection[str] = ()) -> Iterator[str]:
        """What is wrong with the names and shapes of ``source``, each in a line.

        Args:
            source: the files.
            packed: weights that are stored as codes. Those under names of their own are not looked at.
        """
        bundled = any(self.optional.match(name) for name in source.keys())  # noqa: SIM118 - not a dict
        for name, shape in self.shapes.items():
            if name not in source:
                if name not in packed and (bundled or not self.optional.match(name)):
                    yield f"{source.place}: {name} is missing"
            elif source.shape(name) != shape:
                yield (
                    f"{source.entry(name).file}: {name} has shape {list(source.shape(name))}, "
                    f"wanted {list(shape)} by {self.config_file}"
                )
            elif source.dtype(name) not in FLOATS and name not in packed:
                yield (
                    f"{source.entry(name).file}: {name} is stored as {source.dtype(name)}, "
                    f"wanted {', '.join(FLOATS)}; fetch it again"
                )
        for name in source.keys():  # noqa: SIM118
            known = name in self.shapes or f"{name.rpartition('.')[0]}.weight" in packed
            if not known and not self.ignored.match(name):
                kind = "Lance" if self.structure.family == "lance" else "model of its config.json"
                yield f"{source.entry(name).file}: {name} is no tensor of a {kind}; remove it"

    def check(self, source: TensorSource, packed: Collection[str] = ()) -> None:
        """Compare names and shapes with the files; arguments as ``problems`` has them.

        Raises:
            CheckpointError: a missing, unknown or mis-shaped tensor; it is named.
        """
        for problem in self.problems(source, packed):
            raise CheckpointError(problem)


def packed_weights(source: TensorSource) -> set[str]:
    """The weights that a variant stores as codes."""
    names = list(source.keys())
    packed = {name.removesuffix("_packed") for name in names if name.endswith(".weight_packed")}
    return packed | {name for name in names if source.dtype(name) == FLOAT8 and f"{name}_scale" in source}


def structure_of(folder: Path) -> Structure:
    """The decoder of the checkpoint or variant in ``folder``, from its headers and JSON files; no torch.

    Raises:
        CheckpointError: it is no checkpoint, or its layers are not of a structure that is known here.
    """
    if family_of(folder) == "lance":
        from core.lance.config import LanceConfig

        return LanceConfig.from_folder(folder).structure
    from core.huggingface.structure import read_structure

    return read_structure(folder)


def words(structure: Structure) -> str:
    """A decoder for people: ``2 layers, one expert; biases on q, k, v; head norms; head tied to the embedding``."""
    parts = [f"{structure.layers} layers, {'one expert' if len(structure.experts) == 1 else 'two experts'}"]
    biased = [linear for linear in LINEARS if linear in structure.biases]
    named = [linear.rpartition(".")[2].removesuffix("_proj") for linear in biased]
    parts.append(f"biases on {', '.join(named)}" if named else "no biases")
    parts += ["head norms"] if structure.head_norms else []
    parts += ["head tied to the embedding"] if structure.tied else []
    return "; ".join(parts)


def layout_of(folder: Path) -> Layout:
    """The layout of the checkpoint or variant in ``folder``.

    Raises:
        CheckpointError: it is no checkpoint, or its layers are not of a structure that is known here.
    """
    if family_of(folder) == "lance":
        return _lance(folder)
    return _huggingface(folder)


def _lance(folder: Path) -> Layout:
    from core.lance.config import LanceConfig
    from core.lance.loading import IGNORED, VISION_PREFIX, empty_lance

    config = LanceConfig.from_folder(folder)
    return Layout(
        config.structure,
        {name: tuple(p.shape) for name, p in empty_lance(config).named_parameters()},
        re.compile(re.escape(VISION_PREFIX)),
        re.compile("|".join(re.escape(name) + "$" for name in IGNORED)),
        CONFIG_FILE,
    )


def _huggingface(folder: Path) -> Layout:
    from core.huggingface.loading import empty_model
    from core.huggingface.structure import COMPUTED, read_structure

    structure = read_structure(folder)
    model = empty_model(folder)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    twice = f"{structure.head}.weight"
    return Layout(
        structure,
        shapes,
        re.compile(re.escape(twice) + "$" if structure.tied else r"(?!)"),
        COMPUTED,
        HF_CONFIG_FILE,
    )
