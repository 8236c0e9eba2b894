"""Rebuild the embedded checkpoint: ``python -m core.demo.build --minutes 15 --out FOLDER``.

Draws the world, trains the tokenizer, the VAE and the model on one accelerator and writes a checkpoint in upstream's
layout with ``training.json`` beside it. ``core.demo.rescale`` and ``core.demo.suites`` do the last steps. With
``--start core/demo/checkpoint`` training goes on from a checkpoint: its tokenizer and VAE are taken over, its rescaled
channels set right first, and the optimizer begins anew, so lower ``--peak``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from core.checkpoints.describe import own_record
from core.demo import tokenizer
from core.demo.export import write_checkpoint
from core.demo.feeding import Feed, gallery
from core.demo.monitor import exam
from core.demo.rescale import unscale
from core.demo.sizes import VAE_DIM, lance_config
from core.demo.texts import Texts
from core.demo.training import Paintings, Plan, Trainer, initialise
from core.demo.vae_training import encode, flatten_convolutions, train_vae, wan_tensors
from core.files import write_text
from core.lance.model import Lance
from core.lance.vae import build_autoencoder, diffusers_name


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    options.add_argument("--minutes", type=float, default=15.0, help="wall clock of the model's training")
    options.add_argument("--vae-minutes", type=float, default=1.25, help="wall clock of the VAE's training")
    options.add_argument(
        "--start", type=Path, help="folder of a checkpoint to go on from: model, VAE and tokenizer"
    )
    options.add_argument("--vae", type=Path, help="a trained Wan2.2_VAE.safetensors, instead of training one")
    options.add_argument("--peak", type=float, default=1.0, help="factor on all learning rates")
    options.add_argument("--pictures", type=int, default=160, help="pictures in a batch")
    options.add_argument("--captions", type=int, default=96, help="captions in a batch")
    options.add_argument("--gallery", type=int, default=60_000, help="captioned pictures to draw")
    options.add_argument("--ring", type=int, default=240_000, help="question pictures held on the device")
    options.add_argument("--per-kind", type=int, default=60, help="held-out questions of each kind")
    options.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="drawing processes"
    )
    options.add_argument("--seed", type=int, default=0)
    return options


def main() -> None:
    """Run the whole build."""
    args = parser().parse_args()
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begun:.0f} s] {what}", flush=True)

    out: Path = args.out
    words = (args.start or out) / "Lance_Demo"
    if not (words / "vocab.json").exists():
        tokenizer.write(words)
        say("tokenizer trained")
    # Everything that forks comes before CUDA is touched.
    cores = os.cpu_count() or 2
    pictures = gallery(words, args.gallery, cores)
    paper = exam(words, args.per_kind, cores)
    feed = Feed(words, args.workers, slots=6 * args.workers, seed=args.seed + (1 if args.start else 0))
    say(f"{args.gallery} captioned pictures and {len(paper.kinds)} held-out questions drawn")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("high")
    feed.open(args.ring, device)
    pixels = pictures.pixels.to(device)
    model = Lance(lance_config()).to(device)
    initialise(model, args.seed)
    if args.start:
        weights = load_file(words / "model.safetensors")
        weights = unscale(weights, model.config.num_layers, own_record(words))
        sight = load_file(args.start / "Qwen2.5-VL-ViT" / "vit.safetensors")
        model.load_state_dict(weights | {f"vit_model.{name}": value for name, value in sight.items()})
    vae_file = args.start / "Wan2.2_VAE.safetensors" if args.start else args.vae
    if vae_file:
        autoencoder = flatten_convolutions(build_autoencoder(VAE_DIM, VAE_DIM)).to(device)
        stored = load_file(vae_file)
        autoencoder.load_state_dict({diffusers_name(name): value.float() for name, value in stored.items()})
    else:
        autoencoder = train_vae(pixels, 60 * args.vae_minutes, args.seed, between=feed.pump)
    autoencoder.requires_grad_(False)
    latents = encode(autoencoder, pixels)
    del pixels
    works = Paintings(latents, pictures.ids.to(device), pictures.lengths.to(device))
    while feed.ready < min(4096, args.ring):
        feed.pump(wait=True)
    say(
        f"latents: mean {latents.mean():.3f}, deviation {latents.std():.3f}; {feed.drawn} question pictures drawn"
    )
    plan = Plan(
        60 * args.minutes, pictures=args.pictures, captions=args.captions, peak=args.peak, seed=args.seed,
        exam_every=min(60.0, 20 * args.minutes),
    )  # fmt: skip
    texts = Texts(words)
    trainer = Trainer(model, texts, feed, works, autoencoder, paper, plan)
    vae = wan_tensors(autoencoder)
    figures = trainer.run(lambda: write_checkpoint(out, model, vae))
    feed.close()
    if args.start is not None:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            write_text(out / "Lance_Demo" / name, (words / name).read_text(encoding="utf-8"))
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    record = {"device": device_name, "plan": dataclasses.asdict(plan), **dataclasses.asdict(figures)}
    write_text(out / "training.json", json.dumps(record, indent=1) + "\n")
    say(f"held out: {json.dumps({k: round(v, 3) for k, v in figures.final.items()})}")
    say(
        f"recognised {figures.recognised:.2f}; {figures.steps} steps; {figures.pictures_drawn} pictures drawn"
    )


if __name__ == "__main__":
    main()
