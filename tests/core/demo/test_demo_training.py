"""Training, in miniature and on the CPU: it learns, recovers from a broken step, and can go on from what it wrote."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.checkpoints.describe import own_record
from core.demo import CHECKPOINT, build, rescale, training, vae_training
from core.demo.batched import BatchedLance, Captions
from core.demo.export import lance_tensors
from core.demo.feeding import CHUNK, Feed, gallery
from core.demo.monitor import Exam, exam, labels
from core.demo.optimizer import Adam, Optimizer, orthogonalise
from core.demo.sizes import LLM_CONFIG, VISION_CONFIG, lance_config
from core.demo.texts import SEGMENT, Texts
from core.demo.training import Paintings, Plan, Trainer, flow_loss, initialise, question_loss
from core.lance.config import LanceConfig
from core.lance.model import Lance

TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json")


def small_config() -> LanceConfig:
    """A Lance with the demo's layers, a quarter of its width."""
    language = LLM_CONFIG | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 32,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    }
    vision = VISION_CONFIG | {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }
    return LanceConfig.from_dict(language, vision)


@pytest.fixture(scope="module")
def feed() -> Feed:
    """One chunk of drawn pictures."""
    drawn = Feed(CHECKPOINT, workers=1, slots=1, seed=0)
    drawn.open(CHUNK, torch.device("cpu"))
    drawn.pump(wait=True)
    drawn.close()
    return drawn


@pytest.fixture(scope="module")
def paper() -> Exam:
    return exam(CHECKPOINT, 1, 1)


@pytest.fixture
def paintings() -> Paintings:
    pictures = gallery(CHECKPOINT, 8, 1)
    latents = torch.randn(8, 36, 48, generator=torch.Generator().manual_seed(2))
    return Paintings(latents, pictures.ids, pictures.lengths)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look takes a second, so that a run has as many steps on every machine."""
    ticks = itertools.count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))


def trainer(
    feed: Feed, paintings: Paintings, paper: Exam, seconds: float, exam_every: float = 1e9
) -> Trainer:
    model = Lance(small_config())
    initialise(model, 0)
    plan = Plan(seconds, pictures=2, questions=2, captions=4, warmup=5, exam_every=exam_every)
    return Trainer(model, Texts(CHECKPOINT), feed, paintings, None, paper, plan)


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures drawn at the end of a training: a hundred of them take a minute on a CPU."""
    monkeypatch.setattr(training, "recognised", lambda *_arguments: 0.5)


def losses(model: Lance, feed: Feed, works: Paintings) -> tuple[float, float]:
    """Both losses on a batch that is always the same."""
    generator = torch.Generator().manual_seed(77)
    batched = BatchedLance(model, Texts(CHECKPOINT))
    batch = feed.batch(16, 3, generator)
    no = torch.zeros(8, dtype=torch.bool)
    noise = torch.randn(works.latents.shape, generator=generator)
    times = torch.linspace(0.1, 0.9, 8)
    with torch.no_grad():
        asked = question_loss(
            batched, batch.pixels, batch.segments, batch.starts, batch.counts, torch.float32
        )
        flow = flow_loss(
            batched, Captions(works.ids, works.lengths, no, no), works.latents, noise, times, torch.float32
        )
    return asked.item(), flow.item()


def test_a_short_training_lowers_both_losses(
    feed: Feed, paintings: Paintings, paper: Exam, clock: None, unpainted: None
) -> None:
    short = trainer(feed, paintings, paper, seconds=60)
    before = losses(short.model, feed, paintings)
    kept: list[int] = []
    figures = short.run(lambda: kept.append(1))
    after = losses(short.model, feed, paintings)
    assert 20 <= figures.steps <= 40
    assert after[0] < 0.7 * before[0] and after[1] < before[1]
    assert figures.setbacks == 0 and figures.final.keys() >= {"all", "pie-value", "shape-beside"}
    assert kept == [1], "the result is written even if no examination came on the way"


def test_a_step_that_breaks_the_weights_is_undone(
    feed: Feed, paintings: Paintings, paper: Exam, unpainted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = trainer(feed, paintings, paper, seconds=1.0)
    start = [tensor.clone() for tensor in short.optimizer.state()]
    plain_loss, plain_factor = training.flow_loss, short.optimizer.set_factor
    rates: list[float] = []
    back: list[bool] = []

    def loss(*arguments: Any) -> torch.Tensor:
        return plain_loss(*arguments) * (float("nan") if len(rates) == 13 else 1.0)

    def set_factor(factor: float) -> None:
        rates.append(factor)
        state = short.optimizer.state()
        back.append(all(torch.equal(now, then) for now, then in zip(state, start, strict=True)))
        plain_factor(factor)

    monkeypatch.setattr(training, "flow_loss", loss)
    monkeypatch.setattr(short.optimizer, "set_factor", set_factor)
    clock = SimpleNamespace(monotonic=lambda: 0.0 if len(rates) < 24 else 2.0)
    monkeypatch.setattr(training, "time", clock)
    figures = short.run(lambda: None)
    assert (figures.setbacks, figures.steps) == (1, 24)
    # Weights and moments are those of the beginning, then training goes on at a lower rate.
    assert [step for step, same in enumerate(back) if same] == [0, 20]
    assert rates[19] == pytest.approx(1.0) and rates[20:] == pytest.approx([0.7] * 4)
    assert all(tensor.isfinite().all() for tensor in short.optimizer.state())


def test_the_record_is_of_the_weights_that_were_written(
    feed: Feed,
    paintings: Paintings,
    paper: Exam,
    clock: None,
    unpainted: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = trainer(feed, paintings, paper, seconds=34, exam_every=8)
    results = iter([0.25, 0.5, 0.125])
    monkeypatch.setattr(training, "marks", lambda *_arguments: {"all": next(results, 0.375)})
    written: list[dict[str, torch.Tensor]] = []
    figures = short.run(
        lambda: written.append({n: value.clone() for n, value in short.model.state_dict().items()})
    )
    assert [share for _, _, share in figures.exams] == [0.25, 0.5, 0.125]
    assert len(written) == 2
    assert figures.final == {"all": 0.5} and figures.kept == figures.exams[1][1]
    state = short.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in written[-1].items())


def test_questions_of_the_feed_are_whole(feed: Feed) -> None:
    texts = Texts(CHECKPOINT)
    batch = feed.batch(6, 3, torch.Generator().manual_seed(1))
    assert batch.pixels.shape == (6, 224, 224, 3) and batch.segments.shape == (6, 3, SEGMENT)
    wanted = labels(batch.segments, batch.starts, batch.counts)
    ends = wanted.gather(-1, batch.counts[..., None] - 1)
    assert (ends == texts.end).all(), "an answer is learnt up to its end"
    before = batch.segments.gather(-1, batch.starts[..., None] - len(texts.turn))
    assert (before == texts.turn[0]).all()


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 32), (2, 24, 80)])
def test_orthogonalised_matrices_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * 3
    found = orthogonalise(given).float()
    assert found.shape == shape
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    likeness = torch.nn.functional.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert (likeness > 0.95).all()
    sizes = torch.linalg.svdvals(found)
    assert sizes.max() < 1.3
    assert sizes.median() > 0.65


def test_adam_is_adam() -> None:
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own, reference = Adam([mine]), torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.98))
    for step in range(5):
        gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step(torch.tensor(0.01))
        reference.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_every_parameter_is_trained_by_one_part() -> None:
    model = Lance(small_config())
    trained = [parameter for part, _ in Optimizer(model).parts for parameter in part.parameters]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch, unpainted: None) -> Iterator[None]:
    """A build that takes seconds: narrow model and VAE, small batches. Torch's global settings are put back."""
    monkeypatch.setattr(build, "lance_config", small_config)
    for module in (build, vae_training):
        monkeypatch.setattr(module, "VAE_DIM", 4)
    monkeypatch.setattr(vae_training, "_BATCH", 2)
    precision = torch.get_float32_matmul_precision()
    benchmark, fused = torch.backends.cudnn.benchmark, torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cuda.enable_cudnn_sdp(fused)


def run_build(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> dict[str, Any]:
    sizes = "--minutes 1e-9 --vae-minutes 1e-9 --gallery 8 --ring 128 --per-kind 1 --workers 1"
    small = f"{sizes} --pictures 2 --captions 2"
    monkeypatch.setattr(sys, "argv", ["build", "--out", str(out), *small.split(), *more])
    build.main()
    return dict(json.loads((out / "training.json").read_text()))


def test_a_build_goes_on_from_a_rescaled_checkpoint(
    miniature: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for name in TOKENIZER:  # training one has a test of its own
        (first / "Lance_Demo").mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKPOINT / name, first / "Lance_Demo" / name)
    assert run_build(monkeypatch, first)["steps"] == 0
    weights = first / "Lance_Demo" / "model.safetensors"
    even = load_file(weights)
    monkeypatch.setattr(sys, "argv", ["rescale", str(weights.parent)])
    rescale.main()
    assert any(not torch.equal(value, even[name]) for name, value in load_file(weights).items())
    run_build(monkeypatch, second, "--start", str(first))
    # No step was trained: what comes out is what went in, in the geometry it was trained in.
    gone_on = load_file(second / "Lance_Demo" / "model.safetensors")
    assert gone_on.keys() == even.keys()
    assert all(torch.equal(gone_on[name], even[name]) for name in even)
    assert "rescaled" not in own_record(second / "Lance_Demo")
    for name in ("Wan2.2_VAE.safetensors", "Qwen2.5-VL-ViT/vit.safetensors"):
        before, after = load_file(first / name), load_file(second / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[key], before[key]) for key in before), name
    for name in TOKENIZER:
        assert (second / "Lance_Demo" / name).read_bytes() == (CHECKPOINT / name).read_bytes()


def test_shipped_weights_fit_the_model_a_build_goes_on_with() -> None:
    weights = load_file(CHECKPOINT / "model.safetensors")
    sight = load_file(CHECKPOINT.parent / "Qwen2.5-VL-ViT" / "vit.safetensors")
    language, vision = lance_tensors(Lance(lance_config()))
    assert {name: value.shape for name, value in language.items()} == {n: v.shape for n, v in weights.items()}
    assert {name: value.shape for name, value in vision.items()} == {n: v.shape for n, v in sight.items()}


def test_the_vae_trains_and_its_latents_have_the_public_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_training, "VAE_DIM", 4)
    monkeypatch.setattr(vae_training, "_BATCH", 2)
    pixels = gallery(CHECKPOINT, 16, 1).pixels
    pumped: list[int] = []
    autoencoder = vae_training.train_vae(pixels, 1e-9, 0, between=lambda: pumped.append(1))
    assert len(pumped) == 2
    autoencoder.requires_grad_(False)
    latents = vae_training.encode(autoencoder, pixels)
    assert latents.shape == (16, 36, 48)
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-2
    assert (latents.std(dim=(0, 1)) - 1).abs().max() < 0.1
    painted = vae_training.paint(autoencoder, latents)
    assert painted.shape == pixels.shape and painted.dtype == torch.uint8
