"""Whole sequences that a calibration keeps: how many, of what, and that files give them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from core.calibration.collect import place
from core.calibration.record import SEQUENCES_FILE, load_record
from core.calibration.sequences import InputSequence, Sequences, load_sequences, merge_sequences, most_bytes
from core.checkpoints.source import read_header
from core.errors import CheckpointError, WorkbenchError
from core.lance.roles import Role

CHANNELS, HEAD = 24, 8


def sequence(task: str, length: int, seed: int) -> InputSequence:
    generator = torch.Generator().manual_seed(seed)
    roles = torch.randint(0, 5, (length,), generator=generator).to(torch.int8)
    tables = torch.randn(2, length, HEAD, generator=generator)
    hidden = torch.randn(length, CHANNELS, generator=generator).bfloat16()
    visible = torch.arange(1, length + 1, dtype=torch.int32)
    return InputSequence(task, hidden, tables[0], tables[1], visible, roles)


def test_a_file_gives_back_what_was_kept(tmp_path: Path) -> None:
    kept = Sequences()
    wanted = [sequence("x2t_image", 5, 1), sequence("t2i", 7, 0), sequence("t2i", 9, 2)]
    for one in wanted:
        kept.add(one)
    kept.save(tmp_path / "file")
    assert [one.task for one in kept.chosen()] == ["x2t_image", "t2i", "t2i"]
    for one, other in zip(load_sequences(tmp_path / "file"), wanted, strict=True):
        assert one.task == other.task
        for part in ("hidden", "cos", "sin", "visible", "roles"):
            assert torch.equal(getattr(one, part), getattr(other, part)), part
    assert sum(kept.tokens().values()) == 21


@pytest.mark.parametrize("capacity", [100, 1000])
def test_however_much_is_run_a_file_stays_within_its_bound(tmp_path: Path, capacity: int) -> None:
    kept = Sequences(capacity)
    for index in range(300):
        for task, length in (("t2i", 40), ("x2t_image", 25), ("i2v", 999)):
            kept.add(sequence(task, length, index))
    kept.save(tmp_path / "file")
    held = sum(entry.nbytes for entry in read_header(tmp_path / "file").values())
    assert 0.8 * most_bytes(CHANNELS, HEAD, 2, capacity) < held <= most_bytes(CHANNELS, HEAD, 2, capacity)
    tasks = [one.task for one in kept.chosen()]
    assert tasks[:3] == ["x2t_image", "t2i", "x2t_image"], "a long clip does not take the room of all others"


def test_merging_shares_the_room_among_tasks() -> None:
    parts = [[sequence(task, 10, index) for index in range(5)] for task in ("t2i", "x2t_image")]
    assert [one.task for one in merge_sequences(parts).chosen()] == ["t2i", "x2t_image"] * 5


def test_what_is_not_finite_is_not_kept_and_damage_is_noticed(tmp_path: Path) -> None:
    broken = Sequences()
    one = sequence("t2i", 5, 0)
    one.hidden[2, 3] = float("nan")
    broken.add(one)
    with pytest.raises(WorkbenchError, match="t2i: the embeddings of a sequence hold NaN"):
        broken.save(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"\x00" * 64)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sequences(tmp_path / "file")


def test_any_number_of_targets_is_spread_over_the_schedule() -> None:
    assert [place(index, 4) for index in range(4)] == [0.125, 0.375, 0.625, 0.875]
    for count in (3, 7, 15):
        found = sorted(place(index, 0) for index in range(count))
        assert found == [(index + 1) / (count + 1) for index in range(count)]


def test_a_calibration_keeps_both_branches_of_pictures_and_whole_answers(tiny_world: Any) -> None:
    known = load_sequences(tiny_world.calibration / SEQUENCES_FILE)
    record = load_record(tiny_world.calibration)
    drawn = [one for one in known if one.task == "t2i"]
    assert len(drawn) == 4 and len(known) == 6
    for with_caption, without in zip(drawn[::2], drawn[1::2], strict=True):
        latents = [one.hidden[one.is_gen] for one in (with_caption, without)]
        assert torch.equal(*latents) and len(with_caption) > len(without)
        assert int(without.visible[-1]) == len(without)
    answers = [one for one in known if one.task == "x2t_image"]
    seen = sum(int((one.roles == int(Role.ANSWER)).sum()) for one in answers)
    # The last token of an answer is fed to nothing when it is decoded.
    assert seen == record.by_role()["x2t_image"]["answer"] + len(answers)
    assert record.sequence_tokens == merge_sequences([known]).tokens()
