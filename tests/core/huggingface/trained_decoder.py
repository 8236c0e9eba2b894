"""A small Llama that really learned something, with outlier channels as large models have them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from core.calibration.prose import SHIPPED
from core.demo.rescale import multiplied
from core.huggingface.structure import read_structure

VOCABULARY, LENGTH, BATCH = 512, 64, 16


def write(folder: Path, steps: int, kind: str = "llama") -> Path:
    """Train a decoder of ``kind`` on the text that calibrations read, rescale its channels exactly, and save it."""
    import tiny_decoders

    tokenizer = tiny_decoders.tokenizer(VOCABULARY)
    model = tiny_decoders.build(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        head_dim=32,
        max_position_embeddings=512,
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        elif name.endswith("bias"):
            parameter.data.zero_()
        else:
            parameter.data.normal_(0, 0.03)
    tokens = torch.tensor(tokenizer(SHIPPED.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "model.safetensors"
    even = load_file(path)
    save_file(multiplied(even, read_structure(folder).groups()), path, metadata={"format": "pt"})
    return folder
