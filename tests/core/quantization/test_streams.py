"""Hidden states carried through layers: they are the model's own, and what GPTQ goes by is the quantized model's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from core.calibration.collect import input_sequence
from core.calibration.sequences import InputSequence
from core.errors import CheckpointError
from core.lance import tasks
from core.lance.joint import Stream
from core.lance.layer import LanceLayer
from core.lance.requests import Request
from core.lance.video import Clip
from core.quantization import streams as streams_module
from core.quantization.correction import ErrorMoments, corrected
from core.quantization.losses import Inputs
from core.quantization.streams import Extent, Streams, held

SMALL: dict[str, Any] = {"resolution": "image_256res"}
TIME = 0.625


def seen_by_layers(model: Any, run: Callable[[], Any]) -> list[torch.Tensor]:
    """What comes out of each layer while ``run`` calls the decoder, all calls' rows in order."""
    layers = model.language_model.model.layers
    found: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(lambda module, given, out, index=index: found[index].append(out))
        for index, layer in enumerate(layers)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in found]


def question(pipeline: Any) -> tuple[InputSequence, list[torch.Tensor]]:
    """A question with its answer, und tokens alone, as it is decoded token by token."""
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    answer: list[int] = []
    read: list[Any] = []

    def run() -> None:
        read.append(tasks.understand(pipeline, Request("x2t_image", "What?", (picture,), **SMALL)))
        answer.extend(token for token, _ in read[0].steps(4))

    seen = seen_by_layers(pipeline.model, run)
    stream = Stream(read[0].packed, read[0].features, answer=answer)
    # The last token is chosen and fed to nothing.
    return input_sequence(pipeline.model, "x2t_image", stream), seen


def target(pipeline: Any, request: Request, caption: bool) -> tuple[InputSequence, list[torch.Tensor]]:
    """A target at one time, tokens of both experts, as a branch of guidance runs it behind its context."""
    scenes: list[Any] = []

    def run() -> None:
        scene = tasks.prepare(pipeline, request)
        scenes.append(scene)
        scene.drawing.velocity(scene.start, TIME, caption)

    everything = seen_by_layers(pipeline.model, run)
    drawing, start = scenes[0].drawing, scenes[0].start
    stream = Stream(
        drawing.packed,
        drawing.features,
        drawing.sources,
        latents=start,
        times=drawing.times(TIME),
        caption=caption,
    )
    # Both contexts are filled before the target is run behind one of them.
    block = len(start) + 2
    kept = drawing.conditional.cache.length
    other = drawing.unconditional.cache.length
    rows = list(range(kept)) if caption else list(range(kept, kept + other))
    rows += list(range(kept + other, kept + other + block))
    return input_sequence(pipeline.model, request.task, stream), [part[rows] for part in everything]


def cases(pipeline: Any) -> list[tuple[InputSequence, list[torch.Tensor]]]:
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    clip = Clip([picture, picture.rotate(90)] * 2 + [picture], list(range(5)), 5, 12)
    drawn = Request("t2i", "a cube", height=32, width=48)
    return [
        question(pipeline),
        target(pipeline, drawn, True),
        target(pipeline, drawn, False),
        target(pipeline, Request("i2v", "it turns", (picture,), num_frames=5, **SMALL), True),
        target(pipeline, Request("video_edit", "make it blue", (clip,), **SMALL), True),
        target(pipeline, Request("video_edit", "make it blue", (clip,), **SMALL), False),
    ]


def worth(group: Any, tokens: Any) -> dict[str, float]:
    return {bucket: 1.0 / sum(tokens.values()) for bucket in tokens}


def streams_of(pipeline: Any, sequences: Sequence[InputSequence]) -> Streams:
    config = pipeline.config
    return Streams(LanceLayer(config), config.structure, sequences, worth, torch.device("cpu"))


def layer_weights(model: Any, layer: int) -> dict[str, torch.Tensor]:
    return dict(model.language_model.model.layers[layer].named_parameters())


@torch.inference_mode()
def test_with_rounding_off_both_streams_are_the_models_own_hidden_states(tiny_pipeline: Any) -> None:
    known = cases(tiny_pipeline)
    assert {bool(one.is_gen.any()) for one, _ in known} == {True, False}
    streams = streams_of(tiny_pipeline, [one for one, _ in known])
    for layer in range(tiny_pipeline.config.num_layers):
        weights = layer_weights(tiny_pipeline.model, layer)
        streams.enter(layer, weights, watched=False)
        streams.leave(layer, weights)
        for (sequence, seen), exact, quantized in zip(known, streams.exact, streams.quantized, strict=True):
            rows = len(seen[layer])
            assert rows >= len(sequence) - 1
            torch.testing.assert_close(exact[:rows], seen[layer], rtol=1e-5, atol=1e-5)
            assert torch.equal(exact, quantized)


@torch.inference_mode()
def test_the_moments_are_of_the_rows_that_the_quantized_model_really_feeds_its_linears(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence, _ = target(tiny_pipeline, Request("t2i", "a cube", height=32, width=48), True)
    broken = copy.deepcopy(tiny_pipeline)
    generator = torch.Generator().manual_seed(3)
    for name, weight in broken.model.named_parameters():
        if ".layers.0." in name and "proj" in name:
            weight.data += 0.1 * weight.std() * torch.randn(weight.shape, generator=generator)
    taken: list[tuple[torch.Tensor, torch.Tensor]] = []
    add = ErrorMoments.add

    def keep(self: Any, rows: torch.Tensor, weight: torch.Tensor, error: torch.Tensor) -> None:
        taken.append((rows, error))
        add(self, rows, weight, error)

    monkeypatch.setattr(streams_module.ErrorMoments, "add", keep)
    streams = streams_of(tiny_pipeline, [sequence])
    plain, rounded = (layer_weights(one.model, 0) for one in (tiny_pipeline, broken))
    streams.enter(0, plain, watched=False)
    streams.leave(0, rounded)
    weights = layer_weights(tiny_pipeline.model, 1)
    streams.enter(1, weights, watched=True)
    for group in tiny_pipeline.config.structure.layer_groups(1):
        linears = [tiny_pipeline.model.get_submodule(name) for name in group.linears]
        exact, really = (inputs_of(one, group.linears[0], "a cube") for one in (tiny_pipeline, broken))
        channels = linears[0].weight.shape[1]
        recorded = Inputs(*(torch.ones(2, channels), torch.zeros(2)), *(torch.ones(channels),) * 3,
                          torch.ones(0, channels), torch.ones(0))  # fmt: skip
        own = [linear.weight for linear in linears]
        taken.clear()
        found = streams.correct(group, weights, own, torch.ones(channels), recorded)
        ((rows, error),) = taken
        assert found is not None
        torch.testing.assert_close(rows, really, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(rows, exact, rtol=1e-2, atol=1e-2)
        if group.kind in ("qkv", "gate_up"):
            wanted = (exact - rows) @ torch.cat(own).t()
            torch.testing.assert_close(error, wanted, rtol=1e-3, atol=1e-3)


def inputs_of(pipeline: Any, linear: str, caption: str) -> torch.Tensor:
    """What a linear reads of one picture's prompt and target in a whole model."""
    scene = tasks.prepare(pipeline, Request("t2i", caption, height=32, width=48))
    drawing, rows = scene.drawing, []
    hook = pipeline.model.get_submodule(linear).register_forward_pre_hook(
        lambda _, given: rows.append(given[0])
    )
    context = type(drawing.conditional)(pipeline.model, drawing.packed)
    context.fill(drawing.features, drawing.sources)
    context.velocity(scene.start, drawing.times(TIME), drawing.positions)
    hook.remove()
    return torch.cat(rows)


@torch.inference_mode()
def test_without_rounding_no_group_lacks_anything_to_the_bit(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wanted is in part computed again: it must be what the layer really read, or gave."""
    known = cases(tiny_pipeline)
    streams = streams_of(tiny_pipeline, [one for one, _ in known])
    lacking: list[torch.Tensor] = []
    monkeypatch.setattr(
        streams_module.ErrorMoments, "add", lambda self, rows, weight, error: lacking.append(error)
    )
    monkeypatch.setattr(streams_module, "corrected", lambda weight, halves: (weight, 0.0, halves[0].inputs))
    weights = layer_weights(tiny_pipeline.model, 0)
    streams.enter(0, weights, watched=True)
    for group in tiny_pipeline.config.structure.layer_groups(0):
        own = [weights[streams.below(0, f"{name}.weight")] for name in group.linears]
        channels = own[0].shape[1]
        recorded = Inputs(*(torch.ones(2, channels), torch.zeros(2)), *(torch.ones(channels),) * 3,
                          torch.ones(2, channels), torch.ones(2))  # fmt: skip
        lacking.clear()
        assert streams.correct(group, weights, own, torch.ones(channels), recorded) is not None
        assert lacking and all(not error.any() for error in lacking), group.key


@torch.inference_mode()
def test_two_values_a_channel_of_each_token_wait_on_the_host_while_a_layer_is_watched(
    tiny_pipeline: Any,
) -> None:
    sequences = [one for one, _ in cases(tiny_pipeline)]
    streams = streams_of(tiny_pipeline, sequences)
    channels = streams.exact[0].shape[1]
    tokens = sum(map(len, sequences))

    for layer in range(2):
        streams.enter(layer, layer_weights(tiny_pipeline.model, layer), watched=True)
        kept = [rows for seen in streams._seen for rows in seen.values()]
        assert sum(rows.nbytes for rows in kept) == 2 * 4 * tokens * channels
        # In one place, and nothing beside it: what is foretold.
        assert len({rows.untyped_storage().data_ptr() for rows in kept}) == 1
        assert (
            kept[0].untyped_storage().nbytes()
            == held([(channels, channels)], channels, 16, Extent(tokens)).host
        )
    streams.close()
    assert streams.exact == streams.quantized == streams._seen == [] and streams._host.nbytes == 0


@torch.inference_mode()
def test_hidden_states_that_are_not_finite_stop_it_and_are_named(tiny_pipeline: Any) -> None:
    sequence, _ = question(tiny_pipeline)
    streams = streams_of(tiny_pipeline, [sequence])
    weights = {name: tensor.clone() for name, tensor in layer_weights(tiny_pipeline.model, 0).items()}
    weights["mlp.down_proj.weight"][0] = float("inf")
    with pytest.raises(
        CheckpointError,
        match=r"layer 0 as quantized: the hidden states of sequence 0 \(x2t_image\) become NaN",
    ):
        streams.leave(0, weights)


def halves_of(rows: torch.Tensor, error: torch.Tensor) -> list[ErrorMoments]:
    found = []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        half = ErrorMoments(error.shape[1], rows.shape[1], rows.device)
        half.add(rows[part], torch.ones(len(rows[part])), error[part])
        found.append(half)
    return found


def test_an_error_that_follows_from_the_input_is_made_up_for_and_chance_is_not() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(600, 32, generator=generator)
    weight, wanted = torch.randn(8, 32, generator=generator), 0.1 * torch.randn(8, 32, generator=generator)
    noise = torch.randn(600, 8, generator=generator)
    found, share, moments = corrected(weight, halves_of(rows, rows @ wanted.t() + 0.1 * noise))
    assert share > 0.9 and moments.count == 600
    assert float((found - weight - wanted).norm() / wanted.norm()) < 0.2
    found, share, _ = corrected(weight, halves_of(rows, noise))
    assert share < 0.2
    assert float((found - weight).norm() / weight.norm()) < 0.02
