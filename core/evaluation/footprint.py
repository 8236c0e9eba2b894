"""How much memory a run will take, from the checkpoint's headers and its samples' extents, before anything is loaded.

Weights, caches and statistics are counted; what lives for a moment (activations) is estimated from the widest call of
each kind: a split of the prompt or the target block through a decoder layer, the patches through the vision tower, four
frames through the VAE. The estimate leaves allocators' own overhead out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from core.checkpoints.describe import CheckpointInfo
from core.checkpoints.resolve import VAE_FILES, companion
from core.checkpoints.source import TensorSource
from core.errors import WorkbenchError
from core.evaluation.extent import Extent
from core.lance.config import SPATIAL_STRIDE, LanceConfig
from core.lance.context import ANSWER_ROOM
from core.lance.prompts import Grid
from core.lance.roles import Role
from core.runtime import memory

VAE_ITEM = 4
"""Bytes of a value in the VAE, which computes in float32."""

_WAN = (160, 256)
"""Channels of Wan2.2's encoder and decoder where they are widest in pixels."""

_ENCODING, _DECODING = 7, 11
"""Feature maps of that many channels at full size that are alive at once, as measured on a CPU at Wan2.2's widths
(encoding 3 of a clip's to 12 of a picture's, decoding 11 of either).
"""

_WIDE = 8
"""Bytes of float64, in which an observer sums."""


@dataclass(frozen=True)
class Footprint:
    """Bytes a run takes at its peak. ``rows`` and ``sequences`` are on the host, the others where the model is."""

    weights: int
    vae: int
    cache: int
    activations: int
    sums: int = 0
    rows: int = 0
    sequences: int = 0

    @property
    def device(self) -> int:
        """What the model's device has to hold."""
        return self.weights + self.vae + self.cache + self.activations + self.sums

    @property
    def kept(self) -> int:
        """What a calibration keeps, on the host."""
        return self.rows + self.sequences

    def parts(self) -> dict[str, int]:
        """The parts that are not zero, by name."""
        return {name: size for name, size in dataclasses.asdict(self).items() if size}


def footprint(
    info: CheckpointInfo,
    extents: Iterable[Extent],
    device: torch.device,
    dtype: torch.dtype,
    *,
    decode: bool = True,
    together: int = 0,
    buckets: Mapping[str, Mapping[str, int]] | None = None,
    capacity: int = 0,
) -> Footprint:
    """What running samples of these extents one after the other takes.

    Args:
        decode: what is generated is decoded, as it is when it is evaluated but not when it is calibrated on.
        together: tokens of the longest sequence that packs several samples.
        buckets: tokens by expert and bucket that a calibration will see; none if nothing is observed.
        capacity: rows that it keeps of each input at most.

    Raises:
        CheckpointError: damaged or incomplete files.
    """
    config = LanceConfig.from_folder(info.path)
    extents = list(extents)
    observed = buckets is not None
    peaks = [_cache(config, each, device, dtype) for each in extents]
    moments = [_activations(config, each, device, dtype, observed=observed) for each in extents]
    moments += [_decoder(config, together, together, device, dtype, observed=observed)] if together else []
    uses_vae = any(each.source or (decode and each.target) for each in extents)
    vae, widths = _vae_file(info) if uses_vae else (0, _WAN)
    if uses_vae:
        moments += [_vae(each, widths, decode=decode) for each in extents]
    sums = rows = 0
    for expert_buckets in (buckets or {}).values():
        for tokens in expert_buckets.values():
            for width in _widths(config):
                sums += config.num_layers * 2 * _WIDE * width
                kept = min(tokens, _rows_kept(capacity, width))
                # Twice: they are put in order when they are written.
                rows += config.num_layers * 2 * kept * width * dtype.itemsize
    return Footprint(
        weights=memory.weight_bytes(info, dtype),
        vae=vae,
        cache=max(peaks, default=0),
        activations=max(moments, default=0),
        sums=sums,
        rows=rows,
    )


def check_fit(info: CheckpointInfo, needed: Footprint, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a run that will not fit.

    Raises:
        WorkbenchError: the model's device, or the host, has less free; the parts and what bounds them are named.
    """
    kind = str(dtype).removeprefix("torch.")
    host = torch.device("cpu")
    on_device = needed.device + (needed.kept if device.type == "cpu" else 0)
    places = [(device, on_device)] + ([(host, needed.kept)] if device.type != "cpu" else [])
    for place, size in places:
        free = memory.free_bytes(place)
        if free is None or size <= free:
            continue
        parts = ", ".join(f"{name} {gigabytes(part)}" for name, part in needed.parts().items())
        raise WorkbenchError(
            f"{info.name}: this takes about {gigabytes(size)} of {place} in {kind} ({parts}), {gigabytes(free)} are "
            "free; ask for a smaller resolution, size or frame count, bfloat16, a quantized variant, or another device"
        )


def gigabytes(size: int) -> str:
    """A size in words, decimal."""
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def _widths(config: LanceConfig) -> tuple[int, ...]:
    """Channels of the inputs that the linears of one layer and expert share: qkv, o, gate and up, down."""
    attention = config.num_heads * config.head_dim
    return config.hidden_size, attention, config.hidden_size, config.intermediate_size


def _rows_kept(capacity: int, channels: int) -> int:
    from core.calibration.statistics import rows_kept

    return rows_kept(capacity, channels)


def _cache(config: LanceConfig, extent: Extent, device: torch.device, dtype: torch.dtype) -> int:
    row = config.num_layers * 2 * config.num_kv_heads * config.head_dim * dtype.itemsize
    contexts = 1 if extent.target is None else 2
    # On a GPU both contexts are copied beside each other, to be run at once.
    copies = 2 if extent.target is not None and device.type == "cuda" else 1
    return contexts * copies * (extent.rows + ANSWER_ROOM) * row


def _activations(
    config: LanceConfig, extent: Extent, device: torch.device, dtype: torch.dtype, *, observed: bool
) -> int:
    context = sum(extent.context.values())
    seen = extent.context.get(Role.VIT, 0), extent.context.get(Role.CLEAN, 0)
    text = context - sum(seen)
    guided = 2 if device.type == "cuda" and not observed else 1
    block = guided * (extent.block + 2) if extent.target else 0
    return max(
        _decoder(config, text, context, device, dtype, observed=observed),
        _decoder(config, max(seen), 0, device, dtype, observed=observed),
        _decoder(config, block, 0, device, dtype, observed=False),
        _vision(config, extent.patches, dtype),
    )


def _decoder(
    config: LanceConfig,
    rows: int,
    masked: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    observed: bool,
) -> int:
    """A call of ``rows`` tokens; ``masked``: how many keys a mask is laid over, 0 for none."""
    item = dtype.itemsize
    attention = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    stream = 4 * config.hidden_size * item + 2 * config.hidden_size * 4
    size = rows * (stream + 2 * attention * item + 3 * config.intermediate_size * item)
    if observed:
        size += rows * 2 * _WIDE * config.intermediate_size
    if masked:
        # A GPU's fast kernels take no mask where heads share keys; then scores are written out.
        scores = config.num_heads * (item + 4) if device.type == "cuda" else item
        size += rows * masked * (1 + scores)
    return size


def _vision(config: LanceConfig, patches: int, dtype: torch.dtype) -> int:
    vision = config.vision
    hidden, inner = int(vision.get("hidden_size", 1280)), int(vision.get("intermediate_size", 3420))
    pixels = 3 * 2 * 14 * 14
    item = dtype.itemsize
    return patches * (pixels * (4 + item) + (8 * hidden + 3 * inner) * item + 2 * hidden * 4)


def _vae(extent: Extent, widths: tuple[int, int], *, decode: bool) -> int:
    encoder, decoder = widths
    encoding = _pixels(extent.source) * encoder * VAE_ITEM * _ENCODING
    decoding = _pixels(extent.target) * decoder * VAE_ITEM * _DECODING if decode else 0
    frames = 0
    if decode and extent.target is not None:
        t, h, w = extent.target
        frames = 2 * (4 * (t - 1) + 1) * h * w * SPATIAL_STRIDE**2 * 3 * VAE_ITEM
    return max(encoding, decoding + frames)


def _pixels(grid: Grid | None) -> int:
    """Pixels that go through the VAE at once: one frame, or four of a clip."""
    if grid is None:
        return 0
    t, h, w = grid
    return (4 if t > 1 else 1) * h * w * SPATIAL_STRIDE**2


def _vae_file(info: CheckpointInfo) -> tuple[int, tuple[int, int]]:
    """Bytes of the VAE's weights, and the widths of its encoder and decoder."""
    path = next((p for name in VAE_FILES if (p := companion(info.path, name)) is not None), None)
    if path is None:
        return 0, _WAN
    if path.suffix != ".safetensors":
        return path.stat().st_size, _WAN
    source = TensorSource.open(path)
    size = sum(math.prod(entry.shape) * VAE_ITEM for entry in source.entries.values())
    return size, (source.shape("encoder.conv1.weight")[0], source.shape("decoder.conv1.weight")[0] // 4)
