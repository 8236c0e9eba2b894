"""Upstream's recorded runs as requests of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from core.lance import preprocess, tasks
from core.lance.preprocess import read_image
from core.lance.requests import Request
from core.lance.sampler import Sampling
from core.lance.video import Clip

SIDES = {
    "x2t_image_1": (128, 176),
    "x2t_image_2_eos": (128, 176),
    "x2t_image_3_two_images": (128, 128),
    "image_edit_1": (128, 176),
}
"""Sides of the VAE's and the vision tower's squares that the fixtures were made with, which no preset has; (80, 128)
for the rest, (64, 64) for all of hd128."""


class Run:
    """One recorded run and the request that asks for the same."""

    def __init__(self, golden: Path, name: str, monkeypatch: pytest.MonkeyPatch, family: str = ".") -> None:
        """Read run ``name`` of the model family in the folder ``family`` below the fixtures."""
        folder = golden / family / "tasks" / name
        self.tensors = load_file(folder / "tensors.safetensors")
        self.meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        self.task = self.meta["task"]
        vae, vit = (64, 64) if family == "hd128" else SIDES.get(name, (80, 128))
        monkeypatch.setitem(preprocess.VAE_SIDE, "fixture", vae)
        monkeypatch.setitem(preprocess.VIT_SIDE, "fixture", vit)
        self.request = Request(self.task, resolution="fixture", **self._fields(golden))
        self.sampling = Sampling(num_steps=self.meta.get("num_timesteps", 1))

    def _fields(self, golden: Path) -> dict[str, Any]:
        if self.task in ("t2i", "t2v"):
            (text,) = self.meta["data"].values()
            size = {"height": self.meta["H"], "width": self.meta["W"]}
            return (
                size
                | {"text": text}
                | ({"num_frames": self.meta["num_frames"]} if self.task == "t2v" else {})
            )
        if self.task.startswith("x2t"):
            *media, (instruction, question, _) = self.meta["sample"]["interleave_array"]
            words: dict[str, Any] = {"text": question, "instruction": instruction}
        else:
            text, *media = self.meta["data"]["0001"]["interleave_array"]
            words = {"text": text} | ({"num_frames": self.meta["num_frames"]} if self.task == "i2v" else {})
        if "data.video_frames_uint8" in self.tensors:
            frames = [Image.fromarray(f.numpy()) for f in self.tensors["data.video_frames_uint8"]]
            video = self.meta["video"]
            return words | {"visuals": (Clip(frames, video["idx"], video["total"], int(video["fps"])),)}
        return words | {"visuals": tuple(read_image(golden / name) for name in media)}

    def scene(self, pipeline: Any) -> tasks.Scene:
        eps = next((t for name, t in self.tensors.items() if name.startswith("vae.posterior_eps")), None)
        return tasks.prepare(
            pipeline, self.request, noise=self.tensors["noise"], eps=None if eps is None else eps[0]
        )
