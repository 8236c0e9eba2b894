"""Layers that are done of a variant that is not: what a killed job goes on from.

They lie in a hidden folder beside the variant, ``.NAME.work``: per layer a safetensors file, and a JSON file that
is written after it and so says that it is whole. A fingerprint says what they were made from and by; layers of
anything else are thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from core.errors import Cancelled, RetryLater
from core.files import disk_errors, replacing, sha256_text, write_text
from core.formats.safetensors_file import save_tensors
from core.jobs.processes import take_lock
from core.quantization.layer import LayerResult, LinearRecord

_CODE = ("core/quantization", "core/refinement", "core/formats", "core/lance", "core/huggingface", "kernels")
_ROOT = Path(__file__).parents[2]


def code_fingerprint() -> str:
    """SHA-256 over the sources that decide what a variant's bytes are, and torch's version."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in _CODE:
        for file in sorted((_ROOT / folder).glob("*.py")):
            digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def job_fingerprint(*parts: str | None) -> str:
    """What layers are made from (fingerprints of checkpoint, recipe, calibration; the device) and by (the code)."""
    return sha256_text("\n".join([*map(str, parts), code_fingerprint()]))


class Unfinished:
    """The finished layers of one job; ``pipeline.quantize`` asks for them and adds to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.resumed = 0
        """Layers that were found done."""

    def load(self, layer: int) -> LayerResult | None:
        """A layer that was done before, or None."""
        record = self.folder / f"layer-{layer:05d}.json"
        if not record.is_file():
            return None
        body = json.loads(record.read_text(encoding="utf-8"))
        self.resumed += 1
        return LayerResult(
            load_file(record.with_suffix(".safetensors")),
            [LinearRecord(**fields) for fields in body["records"]],
            set(body["quantized"]),
            set(body["folded"]),
            set(body["passed"]),
        )

    def keep(self, layer: int, result: LayerResult) -> None:
        """Commit a layer to disk.

        Raises:
            WorkbenchError: the disk is full, or the folder cannot be written.
        """
        record = self.folder / f"layer-{layer:05d}.json"
        with replacing(record.with_suffix(".safetensors")) as partial:
            save_tensors(result.tensors, partial)
        body = {
            "records": [found.to_json() for found in result.records],
            "quantized": sorted(result.quantized),
            "folded": sorted(result.folded),
            "passed": sorted(result.passed),
        }
        write_text(record, json.dumps(body))


def sweep(output: Path) -> None:
    """Remove what killed jobs left beside ``output`` (which nobody else may be writing), and bring back a variant
    that was moved aside and never replaced.
    """
    for retired in output.parent.glob(f".{output.name}.retired-*"):
        if output.exists():
            shutil.rmtree(retired)
        else:
            retired.replace(output)
    for partial in output.parent.glob(f".{output.name}.partial-*"):
        shutil.rmtree(partial)


@contextlib.contextmanager
def unfinished(output: Path, fingerprint: str) -> Iterator[Unfinished]:
    """The work folder of the variant at ``output``, held by this process alone.

    It stays if the process is killed or the job is cancelled, so that the next one goes on; it goes once the
    variant is whole, and if the job fails.

    Raises:
        RetryLater: another process is making this variant.
        WorkbenchError: the folder cannot be written.
    """
    folder = output.with_name(f".{output.name}.work")
    with disk_errors(folder):
        lock = take_lock(folder / "lock")
        if lock is None:
            raise RetryLater(
                f"{output}: another job is making this variant; wait for it, or choose another --output"
            )
        sweep(output)
        label = folder / "fingerprint"
        if not label.is_file() or label.read_text(encoding="utf-8") != fingerprint:
            for file in folder.iterdir():
                if file.name != "lock":
                    file.unlink()
            write_text(label, fingerprint)
    try:
        yield Unfinished(folder)
    except Cancelled:
        raise
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder)
    finally:
        os.close(lock)
