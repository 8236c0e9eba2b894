"""What each task takes, and the messages for what it does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.errors import CheckpointError, DataError, UsageError
from core.lance import tasks
from core.lance.position_table import POSITION_TABLE, check_checkpoint, table_frames
from core.lance.requests import Request
from core.lance.sampler import Sampling
from core.lance.video import Clip

PICTURE = Image.new("RGB", (64, 64), "red")
CLIP = Clip([PICTURE] * 5, list(range(5)), 5, 12)

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "t2x"}, r"t2x: no such task; known are t2i, t2v"),
    ({"task": "i2v"}, r"i2v takes one image; none given"),
    ({"task": "i2v", "visuals": (PICTURE, PICTURE)}, r"i2v takes one image; 2 given"),
    ({"task": "image_edit", "visuals": (CLIP,)}, r"image_edit takes one image; none given"),
    ({"task": "video_edit", "visuals": (PICTURE,)}, r"video_edit takes no image; 1 given"),
    ({"task": "x2t_video", "visuals": ()}, r"x2t_video takes at least one video; none given"),
    ({"task": "t2i", "visuals": (PICTURE,)}, r"t2i takes no image; 1 given"),
    ({"task": "t2i", "num_frames": 9}, r"t2i has no frame count to choose"),
    ({"task": "t2i", "instruction": "Be brief."}, r"t2i has a system prompt of its own"),
    ({"task": "t2i", "resolution": "4k"}, r"4k: no such resolution; known are image_256res"),
    ({"task": "i2v", "visuals": (PICTURE,), "height": 64}, r"i2v takes its size from its source"),
    ({"task": "x2t_image", "visuals": (PICTURE,), "width": 64}, r"x2t_image writes text"),
    ({"task": "t2v", "num_frames": 122}, r"122 frames asked for; wanted 1 to 121"),
    ({"task": "i2v", "visuals": (PICTURE,), "num_frames": 4}, r"4 frames asked for; wanted 5 to 121"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_does_not_fit_the_task_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**{"text": "a cube", **fields})


@pytest.mark.parametrize("field", ["text", "instruction"])
def test_structure_markers_are_refused_before_anything_is_loaded(field: str) -> None:
    words = {"text": "a cube", field: "a cube<|vision_start|> and more"}
    with pytest.raises(UsageError, match=r"the prompt holds <\|vision_start\|>"):
        Request("x2t_image", visuals=(PICTURE,), **words)


def test_a_sliver_is_refused_before_anything_is_loaded() -> None:
    sliver = Image.new("RGB", (1, 10_000))
    for task, visual in (("i2v", sliver), ("x2t_video", Clip([sliver], [0], 1, 12))):
        with pytest.raises(DataError, match="1 x 10000 px is too narrow"):
            Request(task, "what?", (visual,))


def test_frames_are_rounded_down_to_whole_latent_frames(tiny_pipeline: Any) -> None:
    for asked, made in ((1, 1), (4, 1), (5, 5), (12, 9)):
        request = Request("t2v", "a cube turns", height=32, width=32, num_frames=asked)
        clip = tasks.run(tiny_pipeline, request, Sampling(num_steps=1))
        assert isinstance(clip, tasks.Generated)
        assert clip.frames.shape == (made, 32, 32, 3)


def test_a_seed_decides_every_random_number(tiny_pipeline: Any) -> None:
    """The posterior noise of a source is seeded too, unlike upstream's."""

    def edit(seed: int) -> torch.Tensor:
        request = Request("image_edit", "make it blue", (PICTURE,), resolution="image_256res", seed=seed)
        made = tasks.run(tiny_pipeline, request, Sampling(num_steps=1))
        assert isinstance(made, tasks.Generated)
        return made.latents

    assert torch.equal(edit(1), edit(1))
    assert not torch.equal(edit(1), edit(2))


def test_noise_of_another_shape_is_refused(tiny_pipeline: Any) -> None:
    request = Request("image_edit", "make it blue", (PICTURE,), resolution="image_256res")
    with pytest.raises(UsageError, match=r"noise of shape \[256, 48\], wanted \[512, 48\]"):
        tasks.prepare(tiny_pipeline, request, noise=torch.zeros(256, 48))


def test_tasks_are_not_mixed_up(tiny_pipeline: Any) -> None:
    with pytest.raises(UsageError, match="t2i answers no question"):
        tasks.understand(tiny_pipeline, Request("t2i", "a cube"))
    with pytest.raises(UsageError, match="x2t_image generates nothing"):
        tasks.prepare(tiny_pipeline, Request("x2t_image", "what?", (PICTURE,)))


def test_an_image_checkpoint_does_no_video(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Lance_Image"
    shutil.copytree(tiny_checkpoint, folder)
    assert table_frames(folder) is None
    check_checkpoint(folder, "t2v")
    tensors = load_file(folder / "model.safetensors")
    for frames in (1, 31):
        save_file(tensors | {POSITION_TABLE: torch.zeros(frames * 4096, 1)}, folder / "model.safetensors")
        assert table_frames(folder) == frames
        check_checkpoint(folder, "t2i")
        if frames == 31:
            check_checkpoint(folder, "t2v")
            continue
        for task in ("t2v", "i2v", "video_edit", "x2t_video"):
            with pytest.raises(
                CheckpointError, match=rf"Lance_Image: an image checkpoint .* cannot do {task}"
            ):
                check_checkpoint(folder, task)
        # A variant stores no table: it has that of the checkpoint it was made from.
        variant = tmp_path / "variant"
        shutil.copytree(tiny_checkpoint, variant)
        (variant / "lance_workbench.json").write_text(f'{{"source_path": "{folder}"}}')
        assert table_frames(variant) == 1
