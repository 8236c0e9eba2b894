"""What is wrong with the values of a new-job form, by the checks that the commands and the jobs make; no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core.errors import UsageError, WorkbenchError
from core.store import Store
from workbench.job_form import KINDS, SAMPLES, group_of
from workbench.places import DEVICE, DEVICES
from workbench.trouble import of_system

if TYPE_CHECKING:
    from core.checkpoints import CheckpointInfo
    from core.quantization.recipe import Recipe

_COUNT = re.compile("[0-9]{1,7}")

MOST = 1_000_000
"""Samples, or weights of a group, that can be asked for: as many samples as can be drawn."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one field."""

    key: str
    message: str


def faults(store: Store, values: Mapping[str, str], only: str | None = None) -> list[Fault]:
    """What is wrong with the values of the fields that are asked, one message a field.

    Args:
        store: the database.
        values: by field; only the fields that this kind of job asks.
        only: look at this field alone.
    """
    checks = _Checks(store, values)
    return list(checks.faults([only] if only else values))


class _Checks:
    """The checks of one form, which share what they look up. Where another field is at fault, that one says so."""

    def __init__(self, store: Store, values: Mapping[str, str]) -> None:
        self.store = store
        self.values = {key: value.strip() for key, value in values.items()}

    def faults(self, keys: Iterable[str]) -> Iterable[Fault]:
        checks: dict[str, Callable[[], Any]] = {
            "kind": lambda: _one_of("what", self.values["kind"], KINDS),
            "checkpoint": self.checkpoint,
            "recipe": lambda: self.recipe,
            "group": self.group,
            "calibration": self.calibration,
            "tasks": self.tasks,
            "files": self.files,
            "calibrate_samples": lambda: self.number("calibrate_samples", "samples each"),
            "suites": self.suites,
            "measured_on": self.measured_on,
            "limit": lambda: self.number("limit", "samples"),
            "format": self.format,
            "output": self.output,
            "device": self.device,
        }
        # Which fields there are depends on the kind.
        for key in keys if self.values["kind"] in KINDS else ["kind"]:
            try:
                checks[key]()
            except _Elsewhere:
                continue
            except WorkbenchError as error:
                yield Fault(key, str(error))
            except OSError as error:
                yield Fault(key, of_system(error) or str(error))

    @cached_property
    def info(self) -> CheckpointInfo:
        """The chosen checkpoint or variant."""
        from core.checkpoints import describe, resolve

        return describe(resolve(self.values["checkpoint"], self.store))

    @cached_property
    def recipe(self) -> Recipe:
        """The chosen recipe, with its own group."""
        from core.quantization import recipe

        return recipe.load(self.values["recipe"])

    def looked_up(self) -> CheckpointInfo:
        """The checkpoint, for the checks of other fields."""
        try:
            return self.info
        except WorkbenchError as error:
            raise _Elsewhere from error

    def settled(self) -> Recipe:
        """The recipe with the chosen group, for the checks of other fields."""
        try:
            _check_group(self.values["group"])
            return self.recipe.with_group(group_of(self.values["group"]))
        except WorkbenchError as error:
            raise _Elsewhere from error

    def number(self, key: str, title: str) -> int | None:
        text = self.values.get(key, "")
        if not text:
            return None
        if not _is_count(text):
            raise UsageError(f"{title}: {text!r} found, wanted a whole number from 1 to {MOST:,}")
        return int(text)

    def count(self, key: str) -> int | None:
        """The number in a field, for the checks of others."""
        try:
            return self.number(key, key)
        except UsageError as error:
            raise _Elsewhere from error

    def checkpoint(self) -> None:
        from core.calibration import record
        from core.quantization import fit

        if self.values["kind"] in ("quantize", "sensitivity"):
            fit.check_source(self.info)
        elif self.values["kind"] == "export":
            _ = self.info
        elif self.values["kind"] != "evaluate":
            record.check_source(self.info)

    def group(self) -> None:
        from core.checkpoints.layout import structure_of
        from core.checkpoints.source import TensorSource
        from core.quantization.fit import check_formats

        _check_group(self.values["group"])
        info = self.looked_up()
        try:
            chosen = self.recipe
        except WorkbenchError as error:
            raise _Elsewhere from error
        if info.kind == "checkpoint":
            source = TensorSource.open(info.path)
            check_formats(
                structure_of(info.path), chosen.with_group(group_of(self.values["group"])), source.shape
            )

    def calibration(self) -> None:
        from core.calibration.record import find_calibration, load_record
        from core.checkpoints.layout import structure_of
        from core.quantization.fit import check_calibration, check_rows

        name = self.values["calibration"]
        info, recipe = self.looked_up(), self.settled()
        if self.values["kind"] == "sensitivity":
            check_rows(recipe, info, bool(name))
        record = load_record(find_calibration(self.store, name)) if name else None
        if info.kind == "checkpoint":
            check_calibration(recipe, info, structure_of(info.path), record)

    def tasks(self) -> None:
        from core.calibration import prose
        from core.calibration.samples import MIXED
        from core.evaluation import samples

        tasks = self.values["tasks"].split()
        known = (*samples.TASKS, MIXED)
        if not tasks:
            raise UsageError(f"calibrate on: empty, wanted some of {', '.join(known)}")
        info = self.looked_up()
        if info.family == "huggingface":
            prose.check_tasks(info, tasks)
            return
        for task in tasks:
            _one_of("calibrate on", task, known)
            self.made_for(info, task)

    def files(self) -> None:
        """The samples of a calibration, found as the job will find them."""
        from core.calibration import prose
        from core.evaluation.samples import TEXT

        info, names = self.looked_up(), self.values["files"].split()
        if info.family == "huggingface":
            prose.documents(prose.one_file(info, names))
            return
        from core.calibration.samples import sample_set
        from core.evaluation.overlap import Evaluated

        try:
            self.tasks()
        except WorkbenchError as error:
            raise _Elsewhere from error
        tasks, count = self.values["tasks"].split(), self.count("calibrate_samples") or SAMPLES
        # Drawn ones need not all be drawn to know that they can be.
        count = count if names or TEXT in tasks else 1
        sample_set(info.name, tasks, count, names, 0, evaluated=Evaluated(self.store))

    def suites(self) -> None:
        from core.evaluation import suites
        from core.evaluation.subject import check_suite, open_subjects

        names = self.values["suites"].split()
        if not names:
            raise UsageError(
                f"suites: empty, wanted some of {', '.join([*suites.names(), suites.PROSE])} or a path"
            )
        info = self.looked_up()
        source = open_subjects(str(info.path), self.store)[2] if info.kind == "variant" else info
        for name in names:
            suite = suites.load(name)
            check_suite(source, suite)
            self.made_for(source, suite.task)

    def measured_on(self) -> None:
        from core.quantization.sensitivity_samples import chosen

        info = self.looked_up()
        for suite in chosen(info, self.values["measured_on"].split(), None):
            self.made_for(info, suite.task)

    def made_for(self, info: CheckpointInfo, task: str) -> None:
        """Check that a Lance was made for a task of Lance's."""
        from core.lance.position_table import check_checkpoint
        from core.lance.prompts import TASKS

        if task in TASKS:
            check_checkpoint(info.path, task)

    def format(self) -> None:
        from core.formats.export_request import FORMATS, check_format

        _one_of("format", self.values["format"], tuple(FORMATS))
        check_format(self.values["format"], self.looked_up())

    def output(self) -> None:
        from core.formats.export_request import check_output, place_of

        check_output(
            place_of(self.store, self.values["format"], self.looked_up(), self.values["output"] or None)
        )

    def device(self) -> None:
        if not DEVICE.fullmatch(self.values["device"]):
            raise UsageError(f"device: {self.values['device']!r} found, wanted {DEVICES}")


class _Elsewhere(Exception):  # noqa: N818 - not an error: it ends a check quietly
    """Another field is at fault, and its own check says so."""


def _is_count(text: str) -> bool:
    return _COUNT.fullmatch(text) is not None and 1 <= int(text) <= MOST


def _check_group(text: str) -> None:
    if text and text != "channel" and not _is_count(text):
        raise UsageError(f"group: {text!r} found, wanted a whole number from 1 to {MOST:,}, or channel")


def _one_of(title: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{title}: {value!r} found, wanted one of {', '.join(known)}")
