"""A reference run and the variants set against it, sample by sample; reads the store, draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import UsageError
from core.store import Store

Row = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One sample: where it stands among all, the reference's output, and each variant's that has one."""

    position: int
    total: int
    mismatch: int | None
    """Which of the samples that differ it is, from 0; None where it does not differ."""
    mismatches: int
    reference: Row
    variants: dict[int, Row]
    """Outputs by run id."""


def siblings(store: Store, baseline: int) -> list[Row]:
    """The newest evaluation of each variant against a bf16 run, in the order in which they were first made."""
    rows = store.runs(f"baseline_run_id={baseline} kind=evaluate", sort="id", descending=False)
    newest: dict[str, Row] = {}
    for row in rows:
        if row["id"] != baseline:
            newest[row["name"]] = row
    return list(newest.values())


def latest(store: Store) -> Row | None:
    """The newest evaluation that is set against a bf16 run."""
    rows = store.runs("kind=evaluate state=succeeded baseline_run_id>0", limit=1)
    return rows[0] if rows else None


class Comparison:
    """Which runs are compared, which variant is looked at, and which sample."""

    def __init__(
        self, store: Store, reference: Row, variants: Sequence[Row], current: int, shown: int
    ) -> None:
        self.store = store
        self.reference = reference
        self.variants = list(variants)
        self.current = current
        self.shown = shown
        """How many variants were asked for side by side."""
        self.only_mismatches = False
        self.key: str | None = None
        self.pictures = False
        """Whether the answers are pictures."""
        self._reference_keys: dict[str, Row] = {}
        self._keys: list[Row] = []
        self.reload()

    @classmethod
    def of_runs(cls, store: Store, ids: Sequence[int]) -> Comparison:
        """Set runs against the bf16 run that they were scored against; one run alone brings its siblings along.

        Raises:
            UsageError: nothing to set against, or runs of different suites.
        """
        rows = [store.run(run_id) for run_id in ids]
        for row in rows:
            if row["kind"] != "evaluate":
                raise UsageError(
                    f"run {row['id']}: {row['kind']}, no evaluation; only evaluations can be compared"
                )
        suites = {(row["suite"], row["task"]) for row in rows}
        if len(suites) > 1:
            names = " and ".join(sorted(str(suite) for suite, _ in suites))
            raise UsageError(f"marked runs are of different suites ({names}); mark runs of one suite")
        variants = [row for row in rows if row["baseline_run_id"] not in (None, row["id"])]
        references = [row for row in rows if row not in variants]
        baselines = {row["baseline_run_id"] for row in variants}
        if len(baselines) > 1:
            raise UsageError(
                f"marked runs were scored against different bf16 runs ({', '.join(map(str, sorted(baselines)))}); "
                "mark runs with the same one"
            )
        baseline = baselines.pop() if baselines else references[0]["id"]
        if len(rows) == 1 or not variants:
            family = siblings(store, baseline)
            if not family:
                raise UsageError(
                    f"run {baseline}: nothing was evaluated against it yet; n starts an evaluation of a variant"
                )
            chosen = variants[0]["id"] if variants else family[0]["id"]
            if chosen not in {row["id"] for row in family}:
                family.append(variants[0])
            current = next(index for index, row in enumerate(family) if row["id"] == chosen)
            return cls(store, store.run(baseline), family, current, 1)
        return cls(store, store.run(baseline), variants, 0, len(variants))

    @property
    def variant(self) -> Row:
        """The run looked at."""
        return self.variants[self.current]

    def short(self, row: Row) -> str:
        """A variant's name without the checkpoint's: ``int4-awq-g64``."""
        return str(row["name"]).removeprefix(f"{self.reference['checkpoint']}_")

    def reload(self) -> None:
        """Read again which samples there are; the sample looked at stays where it still exists."""
        columns = ("exact", "mae", "pixel", "output_media")
        self._reference_keys = {
            row["sample_key"]: row for row in self.store.output_keys(self.reference["id"], columns)
        }
        self.pictures = any(row["output_media"] for row in self._reference_keys.values())
        keys = self.store.output_keys(self.variant["id"], columns)
        self._keys = [row for row in keys if row["sample_key"] in self._reference_keys]
        if self.key not in {row["sample_key"] for row in self._keys}:
            self.key = self._keys[0]["sample_key"] if self._keys else None

    def _differs(self, row: Row) -> bool:
        if row["exact"] is not None:
            return bool(row["exact"] < 1)
        reference = self._reference_keys[row["sample_key"]]
        if row["pixel"] is not None and reference["pixel"] is not None:
            return bool(row["pixel"] != reference["pixel"])
        return bool(row["mae"])

    @property
    def position(self) -> int:
        """Where the sample stands among the variant's, from 0."""
        return next((i for i, row in enumerate(self._keys) if row["sample_key"] == self.key), 0)

    def mismatches(self) -> list[int]:
        """The positions at which the variant differs from the reference."""
        return [i for i, row in enumerate(self._keys) if self._differs(row)]

    def step(self, amount: int, *, mismatch: bool = False) -> bool:
        """Go to the next (1) or previous (-1) sample, or the next that differs; whether there was one."""
        here = self.position
        places = self.mismatches() if mismatch or self.only_mismatches else range(len(self._keys))
        ahead = [i for i in places if (i > here if amount > 0 else i < here)]
        if not ahead:
            return False
        self.key = self._keys[ahead[0] if amount > 0 else ahead[-1]]["sample_key"]
        return True

    def switch(self, amount: int) -> None:
        """Look at another variant, on the same sample."""
        self.current = (self.current + amount) % len(self.variants)
        self.reload()

    def side_by_side(self, room: int) -> list[Row]:
        """The variants to draw: as many as were asked for and there is room for, the current one among them."""
        count = max(1, min(self.shown, room))
        first = (
            max(0, min(self.current - count + 1, len(self.variants) - count)) if count > 1 else self.current
        )
        return self.variants[first : first + count]

    def sample(self) -> Sample | None:
        """The sample looked at, with its outputs; None where the runs have none in common."""
        if self.key is None:
            return None
        mismatches = self.mismatches()
        here = self.position
        return Sample(
            position=here,
            total=len(self._keys),
            mismatch=mismatches.index(here) if here in mismatches else None,
            mismatches=len(mismatches),
            reference=self._output(self.reference["id"]),
            variants={row["id"]: output for row in self.variants if (output := self._output(row["id"]))},
        )

    def _output(self, run_id: int) -> Row:
        if run_id == self.reference["id"]:
            index = self._reference_keys[str(self.key)]["idx"]
            return self.store.output(run_id, index)
        found = self.store.value(
            "SELECT idx FROM outputs WHERE run_id = ? AND sample_key = ?", (run_id, self.key)
        )
        return {} if found is None else self.store.output(run_id, found)
