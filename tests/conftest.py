"""Fixtures shared by all tests: the tiny golden model as a checkpoint folder, and its loaded pipeline."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
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
