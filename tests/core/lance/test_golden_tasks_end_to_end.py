"""All seven tasks from pictures, clips and words to text and pixels, against upstream's numbers.

The small fixtures ship with the tests; those of clips and edits are read from beside a development checkout.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_runs import Run

from core.lance import tasks
from core.lance.decoder import Routing
from core.lance.generation import Answer, imagine
from core.lance.latents import latent_position_ids, latent_position_rows
from core.lance.packing import CAPTION, Split, visibility
from core.lance.requests import Request
from core.lance.sampler import Sampling, sample
from core.runtime.engine import Engine


@pytest.fixture
def generation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    name: str = request.param
    if name == "t2i_1":
        folder: Path = request.getfixturevalue("golden")
    else:
        folder = request.getfixturevalue("shared_lance") / "golden"
    return Run(folder, name, monkeypatch)


NAMES = ["t2i_1", "t2v_1", "i2v_1", "image_edit_1", "video_edit_1"]


@pytest.mark.parametrize("generation", NAMES, indirect=True)
def test_generations(generation: Run, tiny_pipeline: Any) -> None:
    """From files to pixels: crop, patches, encoding, prompt, noise rows, sampling, decoding, rounding."""
    recorded = generation.tensors
    scene = generation.scene(tiny_pipeline)
    assert scene.drawing.packed.ids.tolist() == recorded["data.packed_text_ids"].tolist()
    if "vae.cond_latent_frame0" in recorded:
        first = recorded["vae.cond_latent_frame0"].flatten(0, 2)
        assert (scene.start[: len(first)] - first).abs().max() < 2e-5
    told: list[tuple[int, int, str]] = []
    made = tasks.generate(
        tiny_pipeline,
        scene,
        generation.sampling,
        trace=True,
        progress=lambda done, total, message: told.append((done, total, message)),
    )
    assert (made.latents - recorded["out.latents"]).abs().max() < 1e-3
    assert made.trace is not None
    velocity = torch.stack(made.trace.conditional)
    assert (velocity - recorded["steps.v_cond"]).abs().max() < 2e-4
    difference = (made.frames.int() - recorded["out.uint8_thwc"].int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
    if "vae.decoded" in recorded:
        decoded = tiny_pipeline.vae.decode(made.latents)
        assert (decoded - recorded["vae.decoded"]).abs().max() < 2e-3
    steps = generation.sampling.num_steps
    assert [done for done, _, _ in told] == [*range(1, steps + 1), steps]
    assert told[-1][2].startswith("decoding ")


@pytest.mark.parametrize("generation", NAMES, indirect=True)
def test_generations_through_the_engine(
    generation: Run, tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batched pass of a GPU gives the same latents, with a first frame that stays and with sources too."""
    monkeypatch.setattr(tiny_pipeline, "engine", Engine(tiny_pipeline.model))
    made = tasks.generate(tiny_pipeline, generation.scene(tiny_pipeline), generation.sampling)
    assert (made.latents - generation.tensors["out.latents"]).abs().max() < 1e-3


@pytest.mark.parametrize("generation", ["image_edit_1", "video_edit_1", "i2v_1"], indirect=True)
def test_sources_are_cropped_as_upstream_does(generation: Run, tiny_pipeline: Any) -> None:
    recorded, visual = generation.tensors, generation.request.visuals[0]
    pixels = tasks.vae_stream(visual, "fixture")
    assert (pixels - recorded["vae.input"]).abs().max() <= 1 / 255 / 0.5 + 1e-6
    assert ((pixels - recorded["vae.input"]).abs() > 1e-6).float().mean() < 1e-3
    if "data.vit_patches" in recorded:
        patches, _ = tasks.vit_stream(visual, "fixture")
        assert (patches - recorded["data.vit_patches"]).abs().max() <= 1 / 255 / 0.26 + 1e-6
        features, _ = tasks.vision_features(tiny_pipeline, [visual], "fixture")
        assert (features[0] - recorded["vit.features"]).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["x2t_image_1", "x2t_image_2_eos", "x2t_image_3_two_images", "x2t_video_1"])
def test_questions(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Any
) -> None:
    shipped = name.startswith("x2t_image")
    folder: Path = request.getfixturevalue("golden" if shipped else "shared_lance")
    case = Run(folder if shipped else folder / "golden", name, monkeypatch)
    told: list[int] = []
    got = tasks.run(
        tiny_pipeline,
        case.request,
        max_new_tokens=case.meta["max_length"],
        progress=lambda done, total, message: told.append(done),
    )
    assert isinstance(got, Answer)
    assert got.tokens == case.tensors["out.tokens"].tolist()
    assert got.prompt_tokens == int(case.tensors["data.ce_loss_indexes"][0]) + 1
    assert told == list(range(1, len(got.tokens) + 1))


@torch.inference_mode()
@pytest.mark.parametrize("generation", NAMES, indirect=True)
def test_the_uncached_path_of_upstream(generation: Run, tiny_pipeline: Any) -> None:
    """The whole sequence at every step under a dense mask, unconditional positions throughout (SPEC section 10).

    Not how the released model is used; it checks visibility, positions and experts by a second way.
    """
    recorded, model = generation.tensors, tiny_pipeline.model
    scene = generation.scene(tiny_pipeline)
    packed = scene.drawing.packed
    rows = latent_position_rows(latent_position_ids(scene.grid), model.config.hidden_size, rounded=False)

    def embed(latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return model.vae2llm(latents) + model.time_embedder(times) + rows

    given = {"full": recorded.get("vit.features")}
    if "vae.cond_latent" in recorded:
        clean = recorded["vae.cond_latent"].flatten(0, 2)
        given["full_noise"] = embed(clean, torch.zeros(len(clean)))

    def velocity(x: torch.Tensor, time: float, conditional: bool) -> torch.Tensor:
        splits = [split for split in packed.splits if conditional or split.modality != CAPTION]
        times = torch.full((len(x),), time)
        if scene.drawing.fixed is not None:
            times[scene.drawing.fixed] = 0.0
        noisy = embed(x, times)
        parts, gen = [], []
        for split in splits:
            embedded = model.embed_text(packed.ids[split.start : split.stop])
            content = noisy if split.mode == "noise" else given.get(split.mode)
            parts.append(embedded if content is None else torch.cat([embedded[:1], content, embedded[-1:]]))
            gen.append(packed.is_gen(split))
        is_gen = torch.cat(gen)
        routing = Routing.of(is_gen, torch.zeros(len(is_gen), dtype=torch.int8))
        cos, sin = model.rotary(packed.positions if conditional else packed.uncond_positions)
        moved: list[Split] = []
        for split in splits:
            moved.append(dataclasses.replace(split, start=moved[-1].stop if moved else 0))
        hidden = model.language_model.model(torch.cat(parts), cos, sin, routing, mask=visibility(moved))
        target = next(split for split in moved if split.mode == "noise")
        return model.velocity(hidden[target.start + 1 : target.stop - 1])

    def velocities(x: torch.Tensor, time: float, guided: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        updated = None if scene.drawing.fixed is None else ~scene.drawing.fixed
        cond, uncond = velocity(x, time, True), velocity(x, time, False) if guided else None
        if updated is not None:
            # Here upstream's norms are over the updated tokens only: the fixed ones are left out of both.
            cond[~updated] = 0.0
            if uncond is not None:
                uncond[~updated] = 0.0
        return cond, uncond

    final = sample(scene.start, velocities, generation.sampling, fixed=scene.drawing.fixed)
    assert (final.view_as(recorded["uncached.latents"]) - recorded["uncached.latents"]).abs().max() < 1e-3


def test_a_picture_is_the_one_imagine_draws(tiny_pipeline: Any) -> None:
    sampling = Sampling(num_steps=2)
    request = Request("t2i", "a red cube", height=32, width=48, seed=7)
    made = tasks.run(tiny_pipeline, request, sampling)
    assert isinstance(made, tasks.Generated)
    drawn = imagine(tiny_pipeline, "a red cube", 32, 48, sampling, seed=7)
    assert torch.equal(made.latents, drawn.latents)
    assert made.images()[0].tobytes() == drawn.image.tobytes()
