from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.calibration.statistics import Statistics, StatisticsFile, merge_moments, rows_kept
from core.errors import CheckpointError, WorkbenchError


def _fill(statistics: Statistics, rows: torch.Tensor, pieces: int) -> None:
    for piece in rows.tensor_split(pieces):
        statistics.add("layers.0.und.qkv", "x2t_image/text", piece)
        statistics.count("q", "x2t_image/text", len(piece))


@pytest.mark.parametrize("pieces", [1, 17, 1000])
def test_sums_equal_a_direct_computation_and_rows_are_real_rows(tmp_path: Path, pieces: int) -> None:
    rows = torch.randn(1000, 24, generator=torch.Generator().manual_seed(0)) * 30
    statistics = Statistics(capacity=64, seed=1)
    _fill(statistics, rows, pieces)
    statistics.save(tmp_path / "s.safetensors")
    found = StatisticsFile(tmp_path / "s.safetensors").moments("layers.0.und.qkv", "x2t_image/text")
    assert found.count == 1000 and statistics.tokens == {"q": {"x2t_image/text": 1000}}
    assert torch.allclose(found.sum_abs, rows.double().abs().sum(0), rtol=1e-12)
    assert torch.allclose(found.sum_sq, rows.double().square().sum(0), rtol=1e-12)
    assert found.rows.shape == (64, 24)
    known = {tuple(row.tolist()) for row in rows}
    assert len({tuple(row.tolist()) for row in found.rows} & known) == 64


def test_part_of_a_sample_is_read_and_wide_inputs_keep_fewer_rows(tmp_path: Path) -> None:
    statistics = Statistics(capacity=64)
    _fill(statistics, torch.randn(100, 24), 3)
    statistics.save(tmp_path / "s.safetensors")
    file = StatisticsFile(tmp_path / "s.safetensors")
    whole, part = (file.moments("layers.0.und.qkv", "x2t_image/text", rows) for rows in (None, 10))
    assert torch.equal(part.rows, whole.rows[:10]) and torch.equal(part.priority, whole.priority[:10])
    assert (part.count, whole.count, len(whole.rows)) == (100, 100, 64)
    assert [rows_kept(2048, channels) for channels in (256, 2048, 11008, 1 << 20)] == [2048, 2048, 1524, 256]


def test_every_row_is_equally_likely_to_be_kept() -> None:
    """200 samples of 10 of 100 rows, fed in uneven pieces: early, middle and late rows occur alike."""
    rows = torch.arange(100.0).view(100, 1)
    counts = torch.zeros(100)
    for seed in range(200):
        statistics = Statistics(capacity=10, seed=seed)
        for piece in rows.split([1, 2, 50, 40, 7]):
            statistics.add("k", "t/text", piece)
        counts[statistics.moments["k"]["t/text"].rows.long().flatten()] += 1
    thirds = torch.stack([part.sum() for part in counts.split([33, 34, 33])])
    # Each third expects about 667 of 2000; six standard deviations are about 125.
    assert bool(((thirds - 2000 / 3).abs() < 125).all()), thirds


def test_merging_parts_equals_observing_the_whole(tmp_path: Path) -> None:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    whole = Statistics(capacity=50, seed=0)
    _fill(whole, rows, 3)
    files, tokens = [], []
    for index, part in enumerate(rows.split([100, 200])):
        statistics = Statistics(capacity=50, seed=0, salt=str(index))
        _fill(statistics, part, 4)
        statistics.save(tmp_path / f"{index}.safetensors")
        files.append(StatisticsFile(tmp_path / f"{index}.safetensors"))
        tokens.append(statistics.tokens)
    merged = merge_moments(files, 50, tokens)
    found = merged.moments["layers.0.und.qkv"]["x2t_image/text"]
    wanted = whole.moments["layers.0.und.qkv"]["x2t_image/text"]
    assert found.count == wanted.count == 300
    assert merged.tokens == whole.tokens
    assert torch.allclose(found.sum_abs, wanted.sum_abs, rtol=1e-14)
    assert torch.allclose(found.sum_sq, wanted.sum_sq, rtol=1e-14)
    assert found.rows.shape == (50, 8)
    merged.save(tmp_path / "merged.safetensors")
    stored = StatisticsFile(tmp_path / "merged.safetensors").moments("layers.0.und.qkv", "x2t_image/text")
    assert bool((stored.priority.diff() >= 0).all())
    union = torch.cat([f.moments("layers.0.und.qkv", "x2t_image/text").priority for f in files])
    assert torch.equal(stored.priority, union.sort().values[:50])


def test_inputs_that_are_not_finite_are_named(tmp_path: Path) -> None:
    statistics = Statistics()
    statistics.add("layers.2.gen.down", "t2i/noisy", torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(WorkbenchError, match=r"layers\.2\.gen\.down: t2i/noisy"):
        statistics.save(tmp_path / "s.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    statistics = Statistics()
    statistics.add("k", "t/text", torch.ones(4, 4))
    path = tmp_path / "s.safetensors"
    statistics.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"s\.safetensors: cannot be read"):
        StatisticsFile(path)
