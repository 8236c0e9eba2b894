from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kernels.config import FOLDER, Config, Entry, nearest, read_tuned, rule, tuned_file, tuned_text
from kernels.linear import linear, path, prepare
from kernels.samples import exact, int4, nvfp4, relative_error

SMALL, LARGE, OTHER = Config("matmul", 8, 32, 4), Config("matmul", 16, 64), Config("expand", chunk=512)
EARLY = Config("early", 32, 64, 4, 4, 1, 4)


def entry(config: Config, m: int, rows: int = 2048, kind: str = "int4-g64", gated: bool = False) -> Entry:
    return Entry(kind, rows, 2048, m, gated, config, 1.0)


def test_results_survive_their_file(tmp_path: Path) -> None:
    entries = (entry(SMALL, 1), entry(OTHER, 1024, 22016, "nvfp4", True), entry(EARLY, 32))
    file = tuned_file("NVIDIA H100 80GB HBM3", tmp_path)
    assert file.name == "NVIDIA_H100_80GB_HBM3.json"
    assert read_tuned(file) == ()
    file.write_text(tuned_text("NVIDIA H100 80GB HBM3", list(entries), {"triton": "3.6"}))
    assert read_tuned(file) == entries


def test_results_written_before_a_parameter_was_thought_of_have_it_at_its_default(tmp_path: Path) -> None:
    config = {
        "kernel": "direct",
        "block_m": 8,
        "block_n": 16,
        "blocks": 16,
        "warps": 4,
        "stages": 1,
        "splits": 2,
    }
    old = {"format": "nvfp4", "rows": 2048, "columns": 2048, "m": 1, "gated": False, "config": config}
    file = tuned_file("Any GPU", tmp_path)
    file.write_text(json.dumps({"device": "Any GPU", "entries": [{**old, "microseconds": 2.5}]}))
    wanted = Config("direct", 8, 16, 16, 4, 1, 2, ahead=None, chunk=0, registers=0)
    assert [found.config for found in read_tuned(file)] == [wanted]


def test_the_next_larger_number_of_rows_and_the_nearest_shape_stand_in() -> None:
    entries = (entry(SMALL, 1), entry(LARGE, 16), entry(OTHER, 4608), entry(SMALL, 16, 22016))
    assert nearest(entries, "int4-g64", 2048, 2048, 1, False) == SMALL
    assert nearest(entries, "int4-g64", 2048, 2048, 9, False) == LARGE
    assert nearest(entries, "int4-g64", 2560, 2048, 16, False) == LARGE
    assert nearest(entries, "int4-g64", 18000, 2048, 16, False) == SMALL
    assert nearest(entries, "int4-g64", 2048, 2048, 9999, False) == OTHER


def test_another_group_stands_in_and_another_kind_of_number_does_not() -> None:
    entries = (entry(SMALL, 1), entry(LARGE, 1, kind="int4-g128"))
    assert nearest(entries, "int4-g128", 2048, 2048, 1, False) == LARGE
    assert nearest(entries, "int4-g32", 2048, 2048, 1, False) == SMALL
    assert nearest(entries, "nvfp4", 2048, 2048, 1, False) is None


def test_a_gated_linear_takes_its_own_results_before_those_of_a_plain_one() -> None:
    plain = entry(LARGE, 1)
    assert nearest((plain,), "int4-g64", 2048, 2048, 1, True) == LARGE
    assert nearest((plain, entry(SMALL, 1, gated=True)), "int4-g64", 2048, 2048, 1, True) == SMALL


@pytest.mark.parametrize("m", [1, 2, 8, 9, 16, 17, 64, 65, 128, 200, 512, 513, 4608])
def test_an_untuned_device_gets_a_tile_that_holds_the_rows(m: int) -> None:
    config = rule(2048, 2048, m, 108)
    if m > 512:
        assert config.kernel == "expand"
    else:
        assert config.block_m >= min(m, 128) and config.block_m < 2 * max(m, 8)
        assert 1 <= config.splits <= 8


def test_tuned_files_of_the_project_can_be_read() -> None:
    for file in FOLDER.glob("*.json"):
        assert read_tuned(file)


@pytest.mark.parametrize("weight", [int4(24, 128, 64, False, 1), nvfp4(24, 128, 2)], ids=["int4", "nvfp4"])
def test_without_a_gpu_the_reference_runs_and_the_record_says_so(
    weight: object, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    prepared = prepare(weight)  # type: ignore[arg-type]
    assert prepared is weight and path(prepared) == "torch-reference:cpu"
    x = torch.randn(3, 128, dtype=torch.float64)
    assert relative_error(linear(x, prepared), exact(x, prepared, None)) < 1e-12
    assert not recwarn.list


def test_a_label_says_what_sets_a_configuration_apart_and_nothing_else() -> None:
    labels = {
        Config("matmul", 8, 32, 1, 2, 4, 8, ahead=2): "matmul 8x32x1 w2 s4 k8 a2",
        Config("direct", 8, 16, 16, 4, 1, 3): "direct 8x16x16 w4 s1 k3",
        Config("direct", 8, 16, 8, 4, 3, registers=128): "direct 8x16x8 w4 s3 k1 r128",
        EARLY: "early 32x64x4 k4",
        Config("hopper", 64, 64, 1, 4, 6, 2): "hopper 64x64 w4 s6 k2",
        Config("expand", chunk=512): "expand 512",
    }
    assert {config: config.label for config in labels} == labels
