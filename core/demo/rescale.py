"""The last, exact step of the embedded checkpoint: channels of very different size, as large models have them.

``python -m core.demo.rescale FOLDER`` changes a checkpoint in place and says so in its ``lance_workbench.json``. A
model this small has no outlier channels, so plain rounding to four bits would hardly hurt it and there would be nothing
to see. Between each norm and the linears that read it, and between up and down projection, every channel gets a factor:
the norm's weight (the up projection's row) is multiplied by it and the columns that read the channel are divided by it.
All factors are powers of two, so every product and sum keeps its exact value and the model's outputs do not change by a
single bit, in float32 and in bfloat16 alike. ``unscale`` takes the factors out again, for training to go on from the
geometry it had: ``core.demo.build --start`` calls it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from core.checkpoints.describe import OWN_FILE, read_json
from core.demo.export import write_tensors
from core.errors import CheckpointError
from core.files import write_text
from core.lance.config import LanceConfig
from core.lance.structure import lance_structure
from core.quantization.groups import LinearGroup

SEED = 20
SPREAD = 1.25
"""Standard deviation of the factors' base-2 logarithm before rounding."""

OUTLIERS = 0.02
"""Share of channels that are larger still, by 2 to the power of 2, 3 or 4."""

LARGEST = 6
"""No factor is larger than two to this power, or smaller than its inverse."""


def factors(channels: int, generator: torch.Generator, spread: float = SPREAD) -> torch.Tensor:
    """Powers of two, float32 [channels]: log-normal with a heavy upper tail."""
    exponents = torch.randn(channels, generator=generator) * spread
    outlier = torch.rand(channels, generator=generator) < OUTLIERS
    exponents += torch.where(outlier, torch.randint(2, 5, (channels,), generator=generator), 0)
    return torch.exp2(exponents.round().clamp(-LARGEST, LARGEST))


def multiplied(
    tensors: dict[str, torch.Tensor],
    groups: Sequence[LinearGroup],
    seed: int = SEED,
    spread: float = SPREAD,
    *,
    undo: bool = False,
) -> dict[str, torch.Tensor]:
    """``tensors`` with the factors of ``seed`` taken from the readers into norms and rows, or with ``undo`` back.

    Args:
        tensors: weights by name, any floating dtype.
        groups: a decoder's linears and what they read.
        seed: of the factors.
        spread: of their base-2 logarithm.
        undo: take the factors out again.

    Raises:
        CheckpointError: a product with a power of two is not exact.
    """
    changed = dict(tensors)
    generator = torch.Generator().manual_seed(seed)

    def multiply(name: str, by: torch.Tensor) -> None:
        before = changed[name]
        after = before * by.to(before.dtype)
        if not torch.equal(after / by.to(before.dtype), before):
            raise CheckpointError(
                f"{name}: cannot be rescaled exactly in {before.dtype}; use a smaller spread"
            )
        changed[name] = after

    for group in groups:
        if group.norm is None and group.rows_of is None:
            continue
        columns = changed[f"{group.linears[0]}.weight"].shape[1]
        scale = factors(columns, generator, spread)
        if undo:
            scale = 1 / scale
        if group.norm is not None:
            multiply(f"{group.norm}.weight", scale)
        else:
            multiply(f"{group.rows_of}.weight", scale[:, None])
        for linear in group.linears:
            multiply(f"{linear}.weight", 1 / scale)
    return changed


def rescale(
    tensors: dict[str, torch.Tensor], num_layers: int, seed: int = SEED, spread: float = SPREAD
) -> dict[str, torch.Tensor]:
    """The same model with rescaled channels.

    Args:
        tensors: the language model's weights by Lance's names, any floating dtype.
        num_layers: decoder layers.
        seed: of the factors.
        spread: of the factors' base-2 logarithm.

    Raises:
        CheckpointError: a weight is so small or so large that its product with a power of two is not exact.
    """
    return multiplied(tensors, lance_structure(num_layers).groups(), seed, spread)


def unscale(
    tensors: dict[str, torch.Tensor], num_layers: int, record: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The weights as they were before ``rescale``, bit for bit.

    Args:
        tensors: the rescaled weights by Lance's names.
        num_layers: decoder layers.
        record: the content of the checkpoint's ``lance_workbench.json``; without a ``rescaled`` in it the weights were
            never rescaled and come back as they are.

    Raises:
        CheckpointError: the record names factors that this code does not draw.
    """
    if "rescaled" not in record:
        return tensors
    rescaled = record["rescaled"]
    known = {"outliers": OUTLIERS, "largest": LARGEST}
    if {name: rescaled.get(name) for name in known} != known or not {"seed", "spread"} <= rescaled.keys():
        raise CheckpointError(
            f"{OWN_FILE}: rescaled with {rescaled}, wanted a seed, a spread and {known}; "
            "undo it with the code that made it"
        )
    groups = lance_structure(num_layers).groups()
    return multiplied(tensors, groups, rescaled["seed"], rescaled["spread"], undo=True)


def main() -> None:
    """Rescale a checkpoint folder in place, once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the model folder")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--spread", type=float, default=SPREAD)
    args = parser.parse_args()
    record_path = args.folder / OWN_FILE
    record = read_json(record_path)
    if "rescaled" in record:
        raise CheckpointError(f"{record_path}: rescaled already, with {record['rescaled']}")
    path = args.folder / "model.safetensors"
    config = LanceConfig.from_folder(args.folder)
    write_tensors(path, rescale(load_file(path), config.num_layers, args.seed, args.spread))
    record["rescaled"] = {"seed": args.seed, "spread": args.spread, "outliers": OUTLIERS, "largest": LARGEST}
    write_text(record_path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
