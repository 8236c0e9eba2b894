"""What is written to runs.db is read back; the run table's filter, order and windows; the invariants of the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import StoreError, UsageError
from core.store import Store, columns, manifest


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(tmp_path / "runs.db") as store:
        yield store


@pytest.fixture
def filled(store: Store) -> Store:
    for variant, recipe, suite, task, kl in (
        ("lance-demo", "bf16", "demo-x2t", "x2t_image", None),
        ("lance-demo_int4-minmax-g128", "int4-minmax", "demo-x2t", "x2t_image", 0.4),
        ("lance-demo_int4-awq-g64", "int4-awq", "demo-x2t", "x2t_image", 0.03),
        ("lance-demo_int4-awq-g64", "int4-awq", "demo-t2i", "t2i", None),
    ):
        run_id = store.start_run(
            checkpoint="lance-demo", variant=variant, recipe=recipe, suite=suite, task=task
        )
        store.set_scores(run_id, kl=kl, exact=1.0 - (kl or 0))
        store.finish_run(run_id)
    store.update_run(2, tags="floor", note="100% of 5_000")
    return store


def _ids(store: Store, text: str, **order: object) -> list[int]:
    return [row["id"] for row in store.runs(text, **order)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [4, 3, 2, 1]),
        ("suite:x2t task:x2t_image awq", [3]),
        ("AWQ", [4, 3]),
        ("-awq", [2, 1]),
        ("-suite:t2i -recipe=bf16", [3, 2]),
        ("recipe=int4", []),
        ("kl<0.1", [3]),
        ("kl>=0.4", [2]),
        ("-kl>0.1", [4, 3, 1]),
        ("id:3", [3]),
        ("_bf16", [1]),
        ("100% floor", [2]),
        ("5_000", [2]),
        ("50000", []),
        ('note:"100% of"', [2]),
        ('"of 5"', [2]),
        ("'; DROP TABLE runs; --", []),
    ],
)
def test_filters(filled: Store, text: str, expected: list[int]) -> None:
    assert _ids(filled, text) == expected
    assert filled.count_runs(text) == len(expected)


@pytest.mark.parametrize(
    ("text", "word"), [("colour:red", "colour"), ("kl<much", "much"), ("exact>", "exact")]
)
def test_a_filter_that_means_nothing_says_so(filled: Store, text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        filled.runs(text)


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_filter_text_reaches_sql(text: str) -> None:
    from core.store.filters import where

    try:
        condition, parameters = where(text)
    except UsageError:
        return
    assert condition.count("?") == len(parameters)


def test_sorting_puts_missing_values_last_both_ways(filled: Store) -> None:
    assert _ids(filled, "", sort="kl", descending=True) == [2, 3, 4, 1]
    assert _ids(filled, "", sort="kl", descending=False) == [3, 2, 1, 4]
    assert _ids(filled, "", sort="name", descending=False)[0] == 1
    with pytest.raises(UsageError, match="sort 'manifest'"):
        filled.runs(sort="manifest")


def test_every_column_of_the_table_can_be_sorted_and_shown(filled: Store) -> None:
    for column in columns.COLUMNS:
        row = filled.runs(sort=column.key)[0]
        assert set(column.interval) <= row.keys()
        assert columns.text(column, row)


def test_windows_tile_the_table(filled: Store) -> None:
    pieces = [_ids(filled, "", sort="kl", limit=1, offset=i) for i in range(5)]
    assert pieces == [[2], [3], [4], [1], []]


def test_the_latest_run_with_given_values(filled: Store) -> None:
    found = filled.latest_run(checkpoint="lance-demo", recipe="bf16", suite="demo-x2t")
    assert found is not None and found["id"] == 1
    again = filled.start_run(checkpoint="lance-demo", variant="lance-demo", recipe="bf16", suite="demo-x2t")
    assert filled.latest_run(recipe="bf16")["id"] == 1  # type: ignore[index]  # the new one has not succeeded
    filled.finish_run(again)
    assert filled.latest_run(recipe="bf16")["id"] == again  # type: ignore[index]
    assert filled.latest_run(recipe="gptq") is None
    assert filled.distinct("suite") == ["demo-t2i", "demo-x2t"]


def test_outputs_media_and_manifest_come_back(store: Store) -> None:
    facts = manifest.collect(device="CPU", kernel_path="torch", seeds={"noise": 1}, checkpoint="abc")
    assert manifest.missing(facts) == []
    run_id = store.start_run(checkpoint="lance-demo", manifest=facts)
    first = store.add_media(b"picture", "image/png", 4, 5)
    assert store.add_media(b"picture", "image/png", 4, 5) == first
    assert store.value("SELECT count(*) FROM media") == 1
    store.add_output(
        run_id, 0, sample_key="a", text="größer\n", tokens=[1, 2], input_media=first, kl_tokens=[0.5]
    )
    store.add_output(run_id, 0, sample_key="a", exact=1.0)
    output = store.output(run_id, 0)
    assert (output["text"], output["tokens"], output["kl_tokens"], output["exact"]) == (
        "größer\n",
        [1, 2],
        [0.5],
        1.0,
    )
    assert store.media(first) == b"picture"
    assert store.run(run_id)["manifest"] == facts
    assert store.output_keys(run_id) == [{"idx": 0, "sample_key": "a", "exact": 1.0}]
    for missing in (lambda: store.output(run_id, 9), lambda: store.run(99)):
        with pytest.raises(UsageError, match="`lance-workbench runs "):
            missing()
    # Nobody asks for a picture by its digest: a row refers to one that is gone.
    with pytest.raises(StoreError, match="doctor"):
        store.media("0" * 64)
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        store.add_output(run_id, 1, sample_key="b", input_media="f" * 64)


@pytest.mark.parametrize("key", manifest.REQUIRED)
def test_a_manifest_without_any_of_its_keys_is_incomplete(key: str) -> None:
    facts = manifest.collect(device="CPU", kernel_path="torch", seeds={}, checkpoint="abc")
    del facts[key]
    assert key in manifest.missing(facts)


def test_scores_not_named_stay(store: Store) -> None:
    run_id = store.start_run(checkpoint="x")
    store.set_scores(run_id, kl=0.5)
    store.set_scores(run_id, exact=0.25)
    row = store.run(run_id)
    assert (row["kl"], row["exact"]) == (0.5, 0.25)


def test_a_run_finishes_in_a_known_state_only(store: Store) -> None:
    run_id = store.start_run(checkpoint="x")
    with pytest.raises(UsageError, match="'done'"):
        store.finish_run(run_id, "done")
    store.finish_run(run_id, "succeeded", 1.5)
    assert store.run(run_id)["duration_s"] == 1.5
    with pytest.raises(UsageError, match="run 77"):
        store.finish_run(77)


def test_registered_paths_move_with_the_database(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Store.open(home / "runs.db") as store:
        store.register_checkpoint(
            name="v", path=home / "runs.data" / "variants" / "v", kind="variant", parent="c"
        )
        store.register_checkpoint(name="c", path=tmp_path / "elsewhere")
        again = store.register_checkpoint(name="v", path=home / "runs.data" / "variants" / "v", bits=4.25)
        store.register_calibration(name="k", checkpoint="c", path="/abs/k", tasks=["t2i"])
        assert again == 1
    home.rename(tmp_path / "moved")
    with Store.open(tmp_path / "moved" / "runs.db") as store:
        assert store.checkpoint_path("v") == tmp_path / "moved" / "runs.data" / "variants" / "v"
        assert store.checkpoint_path("c") == tmp_path / "elsewhere"
        assert store.checkpoint_path("nothing") is None
        assert [row["name"] for row in store.checkpoints()] == ["c", "v"]
        row = store.checkpoint("v")
        assert row is not None and (row["bits"], row["parent"], row["kind"]) == (4.25, "c", "variant")
        assert store.calibrations("c")[0]["tasks"] == ["t2i"]
        assert store.calibration("k") is not None


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.write():
        store.start_run(checkpoint="x")
        raise RuntimeError
    assert store.count_runs() == 0
