"""Runs a saved Core ML package in numpy: the operations of a text decoder, as MIL's documentation defines them.

Core ML itself runs on Apple's systems only. This reads the package back from disk, so what it computes is what was
written: the graph, its states and its compressed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"fp16": np.float16, "fp32": np.float32}


def load_program(package: Path) -> Any:
    """The main function of a package, with its weights."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(package))
    weights = package / "Data" / "com.apple.CoreML" / "weights"
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights))
    return program.functions["main"]


def operations(function: Any, kind: str) -> list[Any]:
    """Its operations of a kind, in order."""
    return [op for op in function.operations if op.op_type == kind]


class Runner:
    """One conversation with a package: its states live here."""

    def __init__(self, package: Path) -> None:
        self.function = load_program(package)
        self.states = {
            name: np.zeros(var.shape, np.float16)
            for name, var in self.function.inputs.items()
            if "Cache" in name
        }
        self.weights: dict[str, np.ndarray] = {}

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What ``MLModel.predict`` returns for the same inputs and state."""
        known: dict[str, Any] = dict(inputs)

        def value(var: Any) -> Any:
            if isinstance(var, list | tuple):
                return [value(each) for each in var]
            if var is None:
                return None
            return known.get(var.name, var.val)

        for op in self.function.operations:
            if op.op_type == "const":
                continue
            if op.op_type.startswith("constexpr_"):
                name = op.outputs[0].name
                if name not in self.weights:
                    self.weights[name] = op.materialized_val_inference()
                known[name] = self.weights[name]
                continue
            if op.op_type == "read_state":
                known[op.outputs[0].name] = self.states[op.input.name]
                continue
            given = {name: value(var) for name, var in op.inputs.items() if name != "state"}
            if op.op_type == "coreml_update_state":
                made = self.states[op.state.name] = given["value"]
            else:
                made = OPERATIONS[op.op_type](**given)
            for var, result in zip(op.outputs, made if op.op_type == "split" else [made], strict=True):
                known[var.name] = result
        return {var.name: known[var.name] for var in self.function.outputs}


def _slices(
    x: np.ndarray, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any
) -> tuple[Any, ...]:
    off = [False] * x.ndim
    parts = zip(
        begin,
        end,
        [1] * x.ndim if stride is None else stride,
        off if begin_mask is None else begin_mask,
        off if end_mask is None else end_mask,
        strict=True,
    )
    return tuple(slice(None if bm else b, None if em else e, s) for b, e, s, bm, em in parts)


def _slice(
    x: np.ndarray, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None,
    squeeze_mask: Any = None,
) -> np.ndarray:  # fmt: skip
    squeezed = [False] * x.ndim if squeeze_mask is None else squeeze_mask
    whole = [False] * x.ndim if end_mask is None else end_mask
    # A squeezed axis is one element, wherever its end is said to be.
    ends = [b + 1 if s else e for b, e, s in zip(begin, end, squeezed, strict=True)]
    masks = [bool(m) and not s for m, s in zip(whole, squeezed, strict=True)]
    found = x[_slices(x, begin, ends, stride, begin_mask, masks)]
    return found.squeeze(tuple(axis for axis, s in enumerate(squeezed) if s))


def _update(
    x: np.ndarray, update: np.ndarray, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None,
    end_mask: Any = None, squeeze_mask: Any = None,
) -> np.ndarray:  # fmt: skip
    squeezed = [False] * x.ndim if squeeze_mask is None else squeeze_mask
    ends = [b + 1 if s else e for b, e, s in zip(begin, end, squeezed, strict=True)]
    masks = [
        bool(m) and not s
        for m, s in zip([False] * x.ndim if end_mask is None else end_mask, squeezed, strict=True)
    ]
    place = _slices(x, begin, ends, stride, begin_mask, masks)
    made = x.copy()
    made[place] = update.reshape(made[place].shape)
    return made


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, attn_mask: np.ndarray) -> np.ndarray:
    q, k, v, mask = (x.astype(np.float32) for x in (query, key, value, attn_mask))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(q.shape[-1])) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return ((weights / weights.sum(-1, keepdims=True)) @ v).astype(query.dtype)


def _linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    made = x.astype(np.float32) @ weight.astype(np.float32).T
    return (made if bias is None else made + bias.astype(np.float32)).astype(x.dtype)


def _cast(x: Any, dtype: str) -> Any:
    return np.asarray(x).astype(DTYPES.get(dtype, dtype))


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "cast": _cast,
    "concat": lambda values, axis, interleave=False: np.concatenate([np.atleast_1d(v) for v in values], axis),
    "cos": lambda x: np.cos(x),
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "gather": lambda x, indices, axis, batch_dims, validate_indices: np.take(x, indices, axis),
    "linear": _linear,
    "mul": lambda x, y: x * y,
    "pow": lambda x, y: x**y,
    "range_1d": lambda end, start, step: np.arange(start, end, step, dtype=np.int32),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), keepdims=bool(keep_dims)),
    "reshape": lambda x, shape: x.reshape(shape),
    "rsqrt": lambda x, epsilon: 1 / np.sqrt(x + epsilon),
    "scaled_dot_product_attention": _attention,
    "shape": lambda x: np.array(x.shape, np.int32),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sin": lambda x: np.sin(x),
    "slice_by_index": _slice,
    "slice_update": _update,
    "split": lambda x, split_sizes, axis: np.split(x, np.cumsum(split_sizes)[:-1], axis),
    "sub": lambda x, y: x - y,
    "tile": lambda x, reps: np.tile(x, reps),
    "transpose": lambda x, perm: x.transpose(perm),
}
"""By MIL's names; arguments are named as the operation names them."""
