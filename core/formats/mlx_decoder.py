"""The architecture of an export that is more than mlx-lm's own: this file lies beside its weights and mlx-lm runs it.

It builds the decoder of mlx-lm that ``lance_workbench.decoder`` in config.json names and gives it what that lacks:
biases on more linears, rotary frequencies that no theta yields, the global scale of NVFP4, and an end of the
vocabulary. The workbench copies it (``core.formats.mlx_export``) and does not import it. It stands alone, and mlx-lm
runs it without entering it in ``sys.modules``, where postponed annotations would be looked up.
"""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path


class ModelArgs:
    """config.json, and what of it mlx-lm's decoder asks for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.own: dict[str, Any] = config["lance_workbench"]
        self.formats: dict[str, Any] = config.get("quantization") or {}
        self.decoder = importlib.import_module(f"mlx_lm.models.{self.own['decoder']}")
        self.inner = self.decoder.ModelArgs.from_dict(config)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """From the content of config.json."""
        return cls(config)


class Rope(nn.Module):
    """Rotary positions with given inverse frequencies, first and second half of a head paired."""

    def __init__(self, inverse: list[float]) -> None:
        super().__init__()
        self._frequencies = 1.0 / mx.array(inverse, dtype=mx.float32)

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        """Rotate heads [batch, heads, n, head_dim], the first of which are at position ``offset``."""
        return mx.fast.rope(
            x, x.shape[-1], traditional=False, base=None, scale=1.0, offset=offset, freqs=self._frequencies
        )


class ScaledQuantizedLinear(nn.QuantizedLinear):
    """A quantized linear whose products are multiplied by ``output_scale`` before the bias is added."""

    def __call__(self, x: mx.array) -> mx.array:
        """``x`` [..., in] to [..., out], in its dtype."""
        products = mx.quantized_matmul(
            x,
            self["weight"],
            scales=self["scales"],
            biases=self.get("biases"),
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        scaled = (products.astype(mx.float32) * self["output_scale"]).astype(x.dtype)
        return scaled + self["bias"] if "bias" in self else scaled


class ScaledLinear(nn.Linear):
    """What becomes a ``ScaledQuantizedLinear`` when mlx-lm quantizes it as config.json says."""

    def to_quantized(self, group_size: int, bits: int, mode: str) -> ScaledQuantizedLinear:
        """The module that the stored codes are loaded into."""
        made = ScaledQuantizedLinear.from_linear(self, group_size, bits, mode)
        made.output_scale = mx.ones((1,), dtype=mx.float32)
        return made


def Model(args: ModelArgs) -> nn.Module:  # noqa: N802 - mlx-lm calls it by this name
    """The decoder, with what config.json asks for beyond mlx-lm's own; its weights are not loaded yet."""
    base: Any = args.decoder.Model
    known = args.own.get("vocabulary")

    class Decoder(base):
        def __call__(self, *inputs: Any, **options: Any) -> mx.array:
            logits = super().__call__(*inputs, **options)
            if known is None or known >= logits.shape[-1]:
                return logits
            # Rows of the head that no token stands behind were not trained.
            nothing = mx.array(float("-inf"), dtype=logits.dtype)
            return mx.where(mx.arange(logits.shape[-1]) < known, logits, nothing)

    model = Decoder(args.inner)
    biases = tuple(args.own.get("biases") or ())

    def rebuilt(path: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.Linear):
            return module
        rows, columns = module.weight.shape
        kind = ScaledLinear if args.formats.get(path, {}).get("mode") == "nvfp4" else nn.Linear
        return kind(columns, rows, bias="bias" in module or path.endswith(biases))

    model.update_modules(tree_map_with_path(rebuilt, model.leaf_modules(), is_leaf=nn.Module.is_module))
    if inverse := args.own.get("rope_inverse_frequencies"):
        for layer in model.layers:
            layer.self_attn.rope = Rope(inverse)
    return model
