"""From a torch decoder to a Core ML package: traced, converted, its codes put in as compressed constants.

coremltools is imported by the functions, not by the module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from core.errors import WorkbenchError
from core.formats.coreml_decoder import EXPAND, TextDecoder
from core.host_memory import return_freed

IDS, MASK, LOGITS, STATES = "inputIds", "causalMask", "logits", ("keyCache", "valueCache")
"""The names that Apple's examples of language models use."""

HIDDEN = -3e4
"""What the mask holds where a row does not see a key."""

_FLOAT16 = frozenset({"slice_by_index", "slice_update", "tile", "shape"})
"""Operations that move numbers of the caches and the mask. The converter takes both for float32; so that no cache is
ever cast, these run in float16. Everything else computes in the dtype it has in torch.
"""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings (of an untried torch, of missing Apple libraries) and progress bars off the terminal."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[None]:
    """Have temporary files in ``place``: coremltools writes all weights to one first, and the system's folder for them
    is often small.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=place) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def load_coremltools() -> Any:
    """The package coremltools, with what turns ``EXPAND`` into compressed constants registered.

    Raises:
        WorkbenchError: it is not installed or cannot be imported.
    """
    try:
        with _quiet():
            import coremltools
            from coremltools.converters.mil import register_torch_op
    except ImportError as error:
        raise WorkbenchError(
            f"export as coreml: coremltools cannot be imported ({error}); "
            '`pip install "lance-workbench[coreml]"` brings it'
        ) from error
    register_torch_op(_lower_expand, torch_alias=[EXPAND], override=True)
    return coremltools


def _lower_expand(context: Any, node: Any) -> None:
    """``(code - zero) * scale`` as ``constexpr_blockwise_shift_scale``, of a table's values where there is one."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    codes, scale, zero, table, bits = (context[name] for name in node.inputs)

    def narrow(values: Any, kind: str) -> Any:
        return values.astype(types.nptype_from_builtin(types.string_to_builtin(f"{kind}{bits.val}")))

    if table is None:
        data: Any = narrow(codes.val, "int")
    else:
        name = f"{node.name}_values"
        shaped = table.val.reshape(1, 1, -1, 1)
        data = Builder.constexpr_lut_to_dense(indices=narrow(codes.val, "uint"), lut=shaped, name=name)
    offset = None if zero is None else narrow(zero.val, "int")
    context.add(
        Builder.constexpr_blockwise_shift_scale(data=data, scale=scale.val, offset=offset, name=node.name)
    )


def convert(decoder: TextDecoder, package: Path, *, tables: bool) -> str:
    """Write ``decoder`` as the package ``package`` (``.mlpackage``), which must not exist.

    Args:
        decoder: in float16.
        package: where to.
        tables: some codes stand for the values of a table. Before macOS 26 Core ML reads a table's values only scaled
            already, and so would need a table for every group; such a package asks for macOS 26 or iOS 26.

    Returns:
        What the package runs on, in words.

    Raises:
        WorkbenchError: coremltools is missing or cannot convert it.
    """
    tools = load_coremltools()
    import numpy

    sizes = decoder.sizes
    ids = torch.zeros(1, 2, dtype=torch.int32)
    mask = torch.zeros(1, 1, 2, 5, dtype=decoder.keyCache.dtype)
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace(decoder, (ids, mask), check_trace=False)
    rows, end = (tools.RangeDim(1, sizes.context, default=1) for _ in range(2))
    shape = tuple(decoder.keyCache.shape)
    half = numpy.float16
    try:
        with _quiet(), contextlib.redirect_stderr(io.StringIO()), _scratch(package.parent):
            tools.convert(
                traced,
                inputs=[
                    tools.TensorType(name=IDS, shape=(1, rows), dtype=numpy.int32),
                    tools.TensorType(name=MASK, shape=(1, 1, rows, end), dtype=half),
                ],
                outputs=[tools.TensorType(name=LOGITS, dtype=half)],
                states=[
                    tools.StateType(name=name, wrapped_type=tools.TensorType(shape=shape, dtype=half))
                    for name in STATES
                ],
                minimum_deployment_target=tools.target.iOS26 if tables else tools.target.iOS18,
                compute_precision=tools.transform.FP16ComputePrecision(
                    op_selector=lambda op: op.op_type in _FLOAT16
                ),
                compute_units=tools.ComputeUnit.CPU_AND_GPU,
                skip_model_load=True,
                package_dir=str(package),
            )
    except (MemoryError, OSError):
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or repr(error)
        raise WorkbenchError(
            f"{package.name}: coremltools {tools.__version__} cannot convert the decoder ({words[:600]}); "
            "please report it with the versions that `doctor` prints"
        ) from error
    finally:
        del traced
        return_freed()
    return "macOS 26 or iOS 26" if tables else "macOS 15 or iOS 18"


def annotate(package: Path, about: str, features: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """Write into a package what it is, what its inputs, states and outputs mean, and ``labels`` of one's own."""
    tools = load_coremltools()
    with _quiet():
        spec = tools.utils.load_spec(str(package))
    described = spec.description
    described.metadata.shortDescription = about
    for key, value in labels.items():
        described.metadata.userDefined[key] = value
    for feature in (*described.input, *described.output, *described.state):
        feature.shortDescription = features[feature.name]
    model = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.write_bytes(spec.SerializeToString())


def open_access(package: Path) -> None:
    """Give the package the access that its folder has; coremltools makes some of it for its owner alone."""
    mode = package.parent.stat().st_mode
    for path in (package, *package.rglob("*")):
        path.chmod(mode & (0o777 if path.is_dir() else 0o666))
