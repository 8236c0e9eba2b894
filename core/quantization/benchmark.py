"""How long quantizing the released sizes takes and what it holds: ``python -m core.quantization.benchmark``.

A checkpoint of random weights and a calibration of random rows (correlated channels, some far louder) are written
first, in the real formats; then the pipeline runs as a job runs it, layer commits and shards included. With fewer
layers than the released 36 the seconds of all of them are the measured fixed part and 36 times a later layer's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from core.calibration.record import SEQUENCES_FILE, STATISTICS_FILE
from core.calibration.sequences import CAPACITY, InputSequence, Sequences
from core.calibration.statistics import DEFAULT_ROWS, rows_kept
from core.checkpoints.describe import CONFIG_FILE
from core.checkpoints.layout import Layout, layout_of
from core.checkpoints.resolve import VISION_FOLDER
from core.checkpoints.sizes import SIZES, Sizes
from core.checkpoints.source import TensorSource
from core.checkpoints.stream import Slot, write_stream
from core.files import write_text
from core.formats.variant_folder import MAX_SHARD_BYTES, ShardWriter
from core.host_memory import HostMemory
from core.lance.loading import VISION_PREFIX
from core.lance.roles import Role
from core.quantization import recipe as recipes
from core.quantization.fit import formats
from core.quantization.inputs import CalibrationInputs, open_streams
from core.quantization.pipeline import plan, quantize
from core.quantization.recipe import Recipe
from core.quantization.streams import Extent
from core.quantization.unfinished import Unfinished

LAYERS = 36
"""Of the released sizes."""

BUCKETS = {
    "und": ("x2t_image/answer", "x2t_image/text", "x2t_image/vit"),
    "gen": ("t2i/noisy", "t2i/clean"),
}
"""Buckets of a calibration on both kinds of task."""

TOKENS = 100_000
"""Tokens that each bucket claims to have seen."""

FACTORS = 64
"""Independent sources that the channels of a random input mix."""

LENGTH = 1024
"""Tokens of a random sequence."""

_DTYPES = {torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def write_checkpoint(folder: Path, sizes: Sizes, device: torch.device) -> Layout:
    """A random decoder in bfloat16 in Lance's layout, without vision tower and VAE."""
    model = folder / "Lance_Random"
    for place, content in (
        (model / CONFIG_FILE, sizes.llm),
        (folder / VISION_FOLDER / "config.json", sizes.vision),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(content))
    layout = layout_of(model)
    generator = torch.Generator(device).manual_seed(0)

    def pieces(slot: Slot) -> Iterator[bytes]:
        values = torch.randn(slot.shape, device=device, dtype=torch.bfloat16, generator=generator)
        if len(slot.shape) == 1 and slot.name.endswith("weight"):
            values = 1 + 0.05 * values
        else:
            values *= 0.02
        yield _bytes(values)

    slots = [
        Slot(name, "BF16", shape)
        for name, shape in layout.shapes.items()
        if not name.startswith(VISION_PREFIX)
    ]
    write_stream(model / "model.safetensors", slots, pieces)
    return layout


def write_statistics(path: Path, layout: Layout, rows: int, device: torch.device) -> None:
    """Random statistics of every input of ``layout``, at most ``rows`` sampled rows a bucket."""
    generator = torch.Generator(device).manual_seed(1)
    slots: list[Slot] = []
    kept: dict[str, int] = {}
    for group in layout.structure.groups():
        channels = layout.shapes[f"{group.linears[0]}.weight"][1]
        for bucket in BUCKETS[group.expert]:
            place = f"{group.key}/{bucket}"
            kept[place] = rows_kept(rows, channels)
            slots += [
                Slot(f"{place}/rows", "BF16", (kept[place], channels)),
                Slot(f"{place}/sum_abs", "F64", (channels,)),
                Slot(f"{place}/sum_sq", "F64", (channels,)),
                Slot(f"{place}/priority", "F64", (kept[place],)),
                Slot(f"{place}/count", "I64", (1,)),
            ]
    drawn: dict[str, torch.Tensor] = {}

    def pieces(slot: Slot) -> Iterator[bytes]:
        leaf = slot.name.rpartition("/")[2]
        if leaf == "rows":
            count, channels = slot.shape

            def draw(*shape: int) -> torch.Tensor:
                return torch.randn(shape, device=device, generator=generator)

            mixed = draw(count, FACTORS) @ draw(FACTORS, channels) / FACTORS**0.5 + 0.5 * draw(
                count, channels
            )
            x = (mixed * torch.exp(draw(channels))).bfloat16()
            wide = x.double()
            drawn["rows"] = x
            drawn["sum_abs"], drawn["sum_sq"] = (
                part.mean(0) * TOKENS for part in (wide.abs(), wide.square_())
            )
            drawn["priority"] = torch.linspace(0, 0.1, count, dtype=torch.float64)
            drawn["count"] = torch.tensor([TOKENS])
        yield _bytes(drawn[leaf])

    write_stream(path, slots, pieces)


def write_sequences(path: Path, layout: Layout) -> None:
    """Random sequences, as many tokens as a calibration keeps: questions with their answers, pictures with a prompt."""
    generator = torch.Generator().manual_seed(2)
    channels = layout.shapes[f"{layout.structure.embedding}.weight"][1]
    angles = torch.arange(LENGTH)[:, None] * torch.linspace(1, 1e-4, layout.structure.head_dim // 2)
    angles = torch.cat([angles, angles], dim=-1)
    sequences = Sequences()
    for index in range(CAPACITY // LENGTH):
        task = "t2i" if index % 2 else "x2t_image"
        roles = torch.full((LENGTH,), int(Role.TEXT), dtype=torch.int8)
        visible = torch.arange(1, LENGTH + 1, dtype=torch.int32)
        if index % 2:
            roles[64:], visible[64:] = int(Role.NOISY), LENGTH
        hidden = torch.randn(LENGTH, channels, generator=generator).bfloat16()
        sequences.add(InputSequence(task, hidden, angles.cos(), angles.sin(), visible, roles))
    sequences.save(path)


@dataclass(frozen=True)
class Measured:
    """One recipe's run. Seconds and bytes."""

    recipe: str
    device: str
    layers: int
    seconds: float
    """In all: reading (from the page cache), computing, writing, hashing."""
    first_layer: float
    """With what is set up once: libraries, kernels."""
    layer: float
    """Median of the others."""
    rest: float
    """Outside the layers, and the files' digests."""
    seconds_of_all: float
    """Of the released number of layers: as measured, or first + 35 more + rest."""
    device_peak: int
    device_reserved: int
    host_peak: int
    """Anonymous memory, the interpreter's and its libraries' included."""
    host_before: int
    predicted_device_peak: int
    predicted_host_peak: int
    size: int
    """Of the written variant."""
    size_of_all: int
    """With the released number of layers, from shapes."""


def measure(folder: Path, output: Path, recipe: Recipe, device: torch.device, rows: int) -> Measured:
    """Quantize the checkpoint of ``write_checkpoint`` with the statistics beside it, of ``rows`` rows a bucket."""
    model = folder / "Lance_Random"
    layout, source = layout_of(model), TensorSource.open(model)
    find = CalibrationInputs(folder, recipe, [], device) if recipe.steps else None
    stamps: list[float] = []
    output.mkdir()
    unfinished = Unfinished(output / "work")
    unfinished.folder.mkdir()
    (output / "variant").mkdir()
    writer = ShardWriter(output / "variant")
    if device.type == "cuda":
        # What writing the files or another recipe left reserved is none of this one's.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with HostMemory() as memory:
        start = time.perf_counter()
        quantize(
            source,
            layout,
            recipe,
            find or (lambda group: None),
            None,
            writer.add,
            device,
            lambda done, total, message: stamps.append(time.perf_counter()),
            unfinished,
            open_streams(model, folder, recipe, find, device) if find else None,
        )
        written = writer.finish()
        end = time.perf_counter()
    layers = layout.structure.layers
    spent = [after - before for before, after in itertools.pairwise(stamps[: layers + 1])]
    later = median(spent[1:] or spent)
    rest = end - start - sum(spent)
    cuda = device.type == "cuda"
    extent = Extent(CAPACITY, LENGTH, max(map(len, BUCKETS.values())), rows)
    predicted = plan(source, layout, recipe, MAX_SHARD_BYTES, extent)
    per_layer = _layer_bytes(source, layout, recipe)
    return Measured(
        recipe=recipe.variant_suffix,
        device=torch.cuda.get_device_name(device) if cuda else device.type,
        layers=layers,
        seconds=end - start,
        first_layer=spent[0],
        layer=later,
        rest=rest,
        seconds_of_all=end - start if layers == LAYERS else spent[0] + (LAYERS - 1) * later + rest,
        device_peak=torch.cuda.max_memory_allocated(device) if cuda else 0,
        device_reserved=torch.cuda.max_memory_reserved(device) if cuda else 0,
        host_peak=memory.peak,
        host_before=memory.start,
        predicted_device_peak=predicted.device_peak_bytes,
        predicted_host_peak=predicted.host_peak_bytes,
        size=written.size_bytes,
        size_of_all=written.size_bytes + (LAYERS - layers) * per_layer,
    )


def _layer_bytes(source: TensorSource, layout: Layout, recipe: Recipe) -> int:
    """Stored bytes of one layer."""
    total = 0
    schemes = {f"{name}.weight": scheme for name, scheme in formats(layout.structure, recipe).items()}
    for name, entry in source.entries.items():
        if layout.structure.layer_of(name) == 0:
            rows, columns = (*entry.shape, 1)[:2]
            total += schemes[name].nbytes((rows, columns)) if name in schemes else 2 * rows * columns
    return total


def report(measured: Iterable[Measured]) -> str:
    """The figures as a table."""
    lines = [
        "recipe                layers  total s  first s  layer s  rest s  s of 36   GPU GB  host GB  size GB of 36"
    ]
    for m in measured:
        lines.append(
            f"{m.recipe:<22}{m.layers:>6}{m.seconds:>9.1f}{m.first_layer:>9.1f}{m.layer:>9.2f}{m.rest:>8.1f}"
            f"{m.seconds_of_all:>9.1f}{m.device_peak / 1e9:>9.2f}{m.host_peak / 1e9:>9.2f}{m.size_of_all / 1e9:>14.3f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Write, run, print a table; ``--json`` keeps the figures."""
    parser = argparse.ArgumentParser(prog="core.quantization.benchmark", description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["int4-awq", "int4-best", "nvfp4-best"])
    parser.add_argument("--layers", type=int, default=3, help=f"decoder layers, {LAYERS} are all")
    parser.add_argument("--size", choices=sorted(SIZES), default="3b")
    parser.add_argument("--group", type=int, default=None, help="another group size for integer formats")
    parser.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="sampled rows a bucket")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write; needs 0.4 GB and more a layer"
    )
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="quantization-") as place:
        folder = Path(place)
        start = time.perf_counter()
        layout = write_checkpoint(folder, SIZES[given.size].with_layers(given.layers), device)
        middle = time.perf_counter()
        write_statistics(folder / STATISTICS_FILE, layout, given.rows, device)
        write_sequences(folder / SEQUENCES_FILE, layout)
        print(
            f"checkpoint written in {middle - start:.1f} s, statistics in {time.perf_counter() - middle:.1f} s"
        )
        for name in given.recipes:
            recipe = recipes.load(name)
            if recipe.scheme.kind == "int":
                recipe = recipe.with_group(given.group)
            output = folder / recipe.variant_suffix
            found.append(measure(folder, output, recipe, device, given.rows))
            shutil.rmtree(output)
            print(json.dumps(asdict(found[-1])), flush=True)
            if given.json is not None:
                rows: list[dict[str, Any]] = [asdict(m) for m in found]
                write_text(given.json, json.dumps(rows, indent=1) + "\n")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
