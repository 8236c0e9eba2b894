"""Export a checkpoint or variant to Core ML: its text decoder as a package that keeps a key/value cache.

Of a Lance that is the understanding expert; a causal LM goes over whole. The source's numbers are not quantized again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.checkpoints.describe import (
    HF_CONFIG_FILE,
    TOKENIZER_CHOICES,
    CheckpointInfo,
    describe,
    own_record,
)
from core.checkpoints.layout import Layout, layout_of, packed_weights
from core.checkpoints.source import TensorSource
from core.errors import CheckpointError
from core.files import replacing_folder
from core.formats.coreml_card import card, features
from core.formats.coreml_convert import annotate, convert, load_coremltools, open_access
from core.formats.coreml_decoder import Sizes
from core.formats.coreml_sizes import causal_sizes, check_known, lance_sizes
from core.formats.coreml_weights import Reader, check_taken
from core.formats.export_request import check_output
from core.formats.exported import GENERATION_FILE, Exported, copy_tokenizer, inventory
from core.formats.understanding import left_behind
from core.formats.variant_folder import write_json
from core.host_memory import return_freed
from core.lance.config import LanceConfig
from core.quantization.groups import Structure
from core.runtime.check import variant_schemes


def export(source: Path, output: Path, say: Callable[[str], None]) -> Exported:
    """Write the checkpoint or variant in ``source`` as the folder ``output`` with a ``.mlpackage`` in it.

    Args:
        source: of a Lance or a causal LM.
        output: does not exist, or is an empty folder.
        say: is told each step.

    Raises:
        CheckpointError: damaged or incomplete files, a decoder that Core ML does not get from here, or numbers outside
            the range of float16; the tensor is named.
        UsageError: ``output`` is taken.
        WorkbenchError: coremltools is missing or fails, or the disk is full.
    """
    check_output(output)
    load_coremltools()
    info = describe(source)
    check_known(info)
    _check_tokenizer(info)
    layout, tensors = layout_of(info.path), TensorSource.open(info.path)
    layout.check(tensors, packed_weights(tensors))
    model, sizes = lance_sizes(info) if info.family == "lance" else causal_sizes(info, layout.structure)
    reader = Reader(tensors, layout.structure, model, variant_schemes(info.path))
    say(f"reading {sizes.layers} layers; a cache of {sizes.context} tokens")
    decoder = reader.decoder(sizes)
    omitted = _left_out(info, layout, reader)
    rounding = [
        f"Weights and biases that became float16: {reader.dense.words}.",
        *([f"Scales: {reader.scales.words}."] if reader.scales.values else []),
    ]
    for line in rounding:
        say(line)
    package = f"{info.name}.mlpackage"
    with replacing_folder(output) as folder:
        say("converting with coremltools")
        runs_on = convert(decoder, folder / package, tables=reader.tables)
        del decoder
        return_freed()
        meaning = features(sizes)
        about = f"{info.name}: text decoder with a key/value cache, made by lance-workbench"
        labels = {"source": info.name, "fingerprint": info.fingerprint, "context": str(sizes.context)}
        annotate(folder / package, about, meaning, labels)
        open_access(folder / package)
        copy_tokenizer(info.path, folder, GENERATION_FILE)
        _write_config(folder, info, layout.structure, sizes, package)
        package_size = _size(folder / package)
        text = card(
            name=info.name,
            package=package,
            family=info.family,
            base=_base(info),
            formats=reader.formats,
            sizes=sizes,
            runs_on=runs_on,
            rounding=rounding,
            left_out=omitted,
            size_bytes=package_size,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        files, size = inventory(folder)
        say(f"{package}: {package_size / 1e6:,.1f} MB, runs on {runs_on} and later")
    return Exported(
        output, size, files, omitted, f'coremltools.models.MLModel("{output / package}"), on a Mac'
    )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _base(info: CheckpointInfo) -> str:
    made_from = own_record(info.path).get("source")
    named = made_from.get("name") if isinstance(made_from, dict) else None
    return str(named or info.name)


def _check_tokenizer(info: CheckpointInfo) -> None:
    if not any((info.path / name).is_file() for name in TOKENIZER_CHOICES):
        raise CheckpointError(
            f"{info.path}: no tokenizer: wanted {' or '.join(TOKENIZER_CHOICES)}; fetch it again"
        )


def _left_out(info: CheckpointInfo, layout: Layout, reader: Reader) -> tuple[str, ...]:
    """What of the source is not in the package; every tensor is in it or meant here."""
    words: list[str] = []
    if info.family == "lance":
        words = left_behind(info.path, reader.source, reader.used, LanceConfig.from_folder(info.path))
    else:
        check_taken(reader.source, layout, reader.used)
    if reader.wide:
        words.append(
            f"the packing of {', '.join(sorted(reader.wide))}: Core ML has integers of 4 and 8 bits, so these codes "
            "take more room; their values are the same"
        )
    return tuple(words)


def _write_config(
    folder: Path, info: CheckpointInfo, structure: Structure, sizes: Sizes, package: str
) -> None:
    """The source's own config, without what describes parts and formats that are not here."""
    config = {k: v for k, v in info.config.items() if k not in ("quantization_config", "vision_config")}
    config["tie_word_embeddings"] = structure.tied
    config["core_ml"] = {
        "package": package,
        "source": info.name,
        "source_fingerprint": info.fingerprint,
        "context": sizes.context,
    }
    write_json(folder / HF_CONFIG_FILE, config)
