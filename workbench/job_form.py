"""What the new-job form asks, checks and submits; draws nothing, imports nothing that computes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import jobs
from core.errors import UsageError, WorkbenchError
from core.store import Store

KINDS = ("chain", "calibrate", "quantize", "evaluate")
TASKS = ("x2t_image", "t2i")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class Field:
    """One line of the form."""

    key: str
    title: str
    kinds: tuple[str, ...]
    """The kinds of job that ask it."""
    meaning: str
    default: str
    known: Sequence[str] = ()
    """Values to step through with the arrow keys; others may be typed."""


def fields(store: Store, subject: str | None) -> list[Field]:
    """The form's fields with their defaults; ``subject`` is the checkpoint or variant it was opened on."""
    from core.demo import NAME
    from core.evaluation import suites
    from core.quantization import recipe

    rows = store.checkpoints()
    names = list(dict.fromkeys([NAME, *(row["name"] for row in rows)]))
    variants = {row["name"] for row in rows if row["kind"] == "variant"}
    chosen = subject if subject is not None and subject in names else NAME
    recipes, known_suites = recipe.names(), suites.names()
    calibrations = [row["name"] for row in store.calibrations()]
    suite = "demo-x2t" if "demo-x2t" in known_suites else "".join(known_suites[:1])
    if len(known_suites) > 1:
        known_suites.append(" ".join(known_suites))
    making, measuring = ("chain", "quantize"), ("chain", "evaluate")
    return [
        Field("kind", "what", KINDS, "chain: calibrate, then quantize, then evaluate",
              "evaluate" if chosen in variants else "chain", KINDS),
        Field("checkpoint", "checkpoint", KINDS, "a name, or the path of a folder", chosen, names),
        Field("recipe", "recipe", making, "a name, or the path of a TOML file",
              "int4-awq" if "int4-awq" in recipes else recipes[0], recipes),
        Field("group", "group", making, "weights that share a scale; empty: as in the recipe", "", ("128", "64", "32")),
        Field("calibration", "calibration", ("quantize",), "whose statistics to use; empty: none",
              calibrations[0] if calibrations else "", calibrations),
        Field("tasks", "calibrate on", ("chain", "calibrate"), "tasks, separated by blanks", " ".join(TASKS),
              (" ".join(TASKS), *TASKS)),
        Field("calibrate_samples", "samples each", ("chain", "calibrate"), "samples of each task to calibrate on", "16",
              ("16", "48", "128")),
        Field("suites", "suites", measuring, "names or JSON files, separated by blanks", suite, known_suites),
        Field("limit", "samples", measuring, "the first so many of each suite; empty: all", "", ("24", "50", "200")),
        Field("device", "device", KINDS, "auto takes a GPU where there is one", "auto", ("auto", "cpu", "cuda:0")),
    ]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What is wrong with one field."""

    key: str
    message: str


def _number(values: Mapping[str, str], key: str, title: str) -> int | None:
    text = values.get(key, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UsageError(f"{title}: {text!r} found, wanted a whole number of at least 1")
    return int(text)


def faults(store: Store, values: Mapping[str, str]) -> list[Fault]:
    """What is wrong with the values of the fields that are asked, one message a field."""
    checks: dict[str, Callable[[], Any]] = {
        "kind": lambda: _one_of("what", values["kind"], KINDS),
        "checkpoint": lambda: _check_checkpoint(store, values),
        "recipe": lambda: _check_recipe(values),
        "group": lambda: _number(values, "group", "group"),
        "calibration": lambda: _check_calibration(store, values),
        "tasks": lambda: _check_tasks(values["tasks"]),
        "calibrate_samples": lambda: _number(values, "calibrate_samples", "samples each"),
        "suites": lambda: _check_suites(values["suites"]),
        "limit": lambda: _number(values, "limit", "samples"),
        "device": lambda: _check_device(values["device"]),
    }
    found = []
    for key in values:
        try:
            checks[key]()
        except WorkbenchError as error:
            found.append(Fault(key, str(error)))
    return found


def _one_of(title: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{title}: {value!r} found, wanted one of {', '.join(known)}")


def _check_checkpoint(store: Store, values: Mapping[str, str]) -> None:
    from core.checkpoints import describe, resolve

    info = describe(resolve(values["checkpoint"].strip(), store))
    if info.kind == "variant" and values["kind"] != "evaluate":
        raise UsageError(f"{info.name}: a variant; choose the checkpoint it was made from, or evaluate")


def _check_recipe(values: Mapping[str, str]) -> None:
    from core.quantization import recipe

    recipe.load(values["recipe"].strip())


def _check_calibration(store: Store, values: Mapping[str, str]) -> None:
    from core.quantization import recipe

    name = values["calibration"].strip()
    known = [row["name"] for row in store.calibrations()]
    if name and name not in known:
        raise UsageError(f"calibration: {name!r} is not known; known are {', '.join(known) or 'none'}")
    try:
        needed = recipe.load(values["recipe"].strip()).needs_calibration
    except UsageError:
        return  # said at the recipe
    if needed and not name:
        raise UsageError(
            f"calibration: recipe {values['recipe']} needs one; run a calibration first, or the chain"
        )


def _check_tasks(text: str) -> None:
    from core.calibration.samples import MIXED
    from core.evaluation import samples

    known = (*samples.TASKS, MIXED)
    if not text.split():
        raise UsageError(f"calibrate on: empty, wanted some of {', '.join(known)}")
    for task in text.split():
        _one_of("calibrate on", task, known)


def _check_suites(text: str) -> None:
    from core.evaluation import suites

    if not text.split():
        raise UsageError(f"suites: empty, wanted some of {', '.join(suites.names())} or a path")
    for name in text.split():
        suites.load(name)


def _check_device(text: str) -> None:
    if not _DEVICE.fullmatch(text.strip()):
        raise UsageError(f"device: {text!r} found, wanted auto, cpu, mps, cuda or cuda:0")


def specs(store: Store, values: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """The jobs that the values stand for, each as kind and spec; every one needs the one before it.

    Raises:
        WorkbenchError: the values were not checked.
    """
    kind = values["kind"]
    checkpoint, device = values["checkpoint"].strip(), values["device"].strip()
    calibrate: dict[str, Any] = {}
    made: list[tuple[str, dict[str, Any]]] = []
    if kind in ("chain", "calibrate"):
        calibrate = {
            "checkpoint": checkpoint,
            "tasks": values["tasks"].split(),
            "samples": _number(values, "calibrate_samples", "samples each") or 16,
            "seed": 0,
            "device": device,
        }
    group = _number(values, "group", "group")
    quantize = {
        "checkpoint": checkpoint,
        "recipe": values.get("recipe", "").strip(),
        "group": group,
        "device": device,
    }
    limit = _number(values, "limit", "samples")
    evaluate = {
        "checkpoint": checkpoint,
        "suites": values.get("suites", "").split(),
        "limit": limit,
        "device": device,
    }
    if kind == "calibrate":
        made.append(("calibrate", calibrate))
    elif kind == "quantize":
        made.append(("quantize", quantize | {"calibration": values["calibration"].strip() or None}))
    elif kind == "evaluate":
        made.append(("evaluate", evaluate | {"baseline": "auto"}))
    else:
        from core.checkpoints import describe, resolve
        from core.quantization import recipe

        chosen = recipe.load(values["recipe"].strip()).with_group(group)
        base = describe(resolve(checkpoint, store)).name
        name = None
        if chosen.needs_calibration:
            name = f"{base}_{'+'.join(calibrate['tasks'])}-n{calibrate['samples']}"
            made.append(("calibrate", calibrate | {"name": name}))
        made.append(("quantize", quantize | {"calibration": name}))
        made.append(
            ("evaluate", evaluate | {"checkpoint": f"{base}_{chosen.variant_suffix}", "baseline": "auto"})
        )
    return made


def start(store: Store, values: Mapping[str, str]) -> list[int]:
    """Queue the jobs; their ids."""
    ids: list[int] = []
    for kind, spec in specs(store, values):
        ids.append(jobs.submit(store, kind, spec, depends_on=ids[-1:]))
    return ids
