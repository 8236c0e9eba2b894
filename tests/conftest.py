"""Fixtures shared by all tests: the tiny golden model as a checkpoint folder, and its loaded pipeline."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Before torch is imported: as many threads in each of several processes as there are cores only wait for another.
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts a job in the background; the processes that tests interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared" / "lance"
"""Upstream's material beside a development checkout; tests that read it skip where it is absent."""


@pytest.fixture(scope="session")
def golden() -> Path:
    """Upstream's numbers for the tiny model."""
    return DATA / "golden"


@pytest.fixture(scope="session")
def shared_lance() -> Path:
    """Upstream's material that is not part of the project; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(
            "needs ../shared/lance: Lance's own images, tokenizer and further fixtures are not shipped"
        )
    return SHARED


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def interpreted() -> Callable[[Path], None]:
    """Runs the tests of a file on Triton's interpreter, in a process of its own: Triton reads TRITON_INTERPRET once,
    where its functions are defined. Skips where there is no Triton, and where a GPU runs the kernels themselves.
    """
    import torch

    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs the extra 'triton'")
    if torch.cuda.is_available():
        pytest.skip("the tests marked gpu cover machines with a GPU")

    def run(file: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
            env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    return run


def write_tiny_checkpoint(golden: Path, folder: Path) -> Path:
    """Lay the tiny model out as upstream lays out its downloads; returns the model folder inside ``folder``."""
    model = folder / "Lance_Tiny"
    model.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(golden / "tokenizer_tiny" / name, model / name)
    shutil.copy(golden / "llm_config.json", model / "llm_config.json")
    shutil.copy(golden / "weights" / "model.safetensors", model / "model.safetensors")
    shutil.copy(golden / "weights" / "vae.safetensors", folder / "Wan2.2_VAE.safetensors")
    (folder / "Qwen2.5-VL-ViT").mkdir()
    shutil.copy(golden / "vit_config.json", folder / "Qwen2.5-VL-ViT" / "config.json")
    defaults = {"resolution": "image_256res", "height": 96, "width": 128, "num_steps": 8, "rounding": "plain"}
    (model / "lance_workbench.json").write_text(json.dumps({"name": "lance-tiny", "defaults": defaults}))
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a checkpoint folder, vision tower bundled. Read only: copy it to change it."""
    return write_tiny_checkpoint(golden, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_checkpoint: Path) -> Any:
    """The tiny model loaded in float32 on the CPU."""
    import torch

    from core.lance.loading import load_lance

    return load_lance(tiny_checkpoint, "cpu", torch.float32)
