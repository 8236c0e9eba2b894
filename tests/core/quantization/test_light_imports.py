"""What the app and the list commands import of these packages comes without torch."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "core.quantization.recipe",
    "core.quantization.scheme",
    "core.calibration.record",
    "core.formats.compressed_tensors",
    "workbench.cli.recipes",
    "workbench.cli.variants",
    "workbench.cli.calibrations",
)


def test_recipes_records_and_their_commands_import_no_torch() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([m for m in ('torch', 'numpy', 'textual') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
