"""What the new-job form asks, what it offers for a checkpoint, and the jobs it submits; draws and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from core import jobs
from core.errors import WorkbenchError
from core.files import expanded
from core.store import Store

if TYPE_CHECKING:
    from core.checkpoints import CheckpointInfo, TensorSource
    from core.quantization.groups import Structure
    from core.quantization.recipe import Recipe

KINDS = ("chain", "calibrate", "quantize", "export", "sensitivity", "evaluate")
GROUPS = ("128", "64", "32", "channel")
SAMPLES = 16


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
    empty: str = "none"
    """What an empty field stands for."""


@dataclass(frozen=True)
class Subject:
    """The checkpoint or variant that the form is about."""

    info: CheckpointInfo
    structure: Structure

    @property
    def causal(self) -> bool:
        """Whether it is a causal LM, and no Lance."""
        return self.info.family == "huggingface"

    @cached_property
    def source(self) -> TensorSource:
        """Its tensors' shapes."""
        from core.checkpoints.source import TensorSource

        return TensorSource.open(self.info.path)

    def fits(self, recipe: Recipe) -> bool:
        """Whether its linears can be cut into the groups of ``recipe``."""
        from core.quantization.fit import check_formats

        # All layers are of the same shapes; only widths are asked for by layer.
        structure = self.structure if recipe.widths else replace(self.structure, layers=1)
        try:
            check_formats(structure, recipe, self.source.shape)
        except WorkbenchError:
            return False
        return True

    def tasks(self) -> list[str]:
        """The tasks of Lance's that it was made for."""
        from core.evaluation.samples import TASKS, TEXT
        from core.lance.position_table import check_checkpoint

        found = []
        for task in TASKS:
            try:
                if task != TEXT:
                    check_checkpoint(self.info.path, task)
            except WorkbenchError:
                continue
            found.append(task)
        return found


def look_at(store: Store, name: str) -> Subject | None:
    """The checkpoint or variant of that name or path; None where there is none that can be read."""
    from core.checkpoints import describe, resolve
    from core.checkpoints.layout import structure_of

    try:
        info = describe(resolve(name.strip(), store))
        return Subject(info, structure_of(info.path))
    except (WorkbenchError, OSError):
        return None


def chosen(store: Store, subject: str | None) -> str:
    """The checkpoint or variant that a form opened on ``subject`` is about: the embedded one where it is not known."""
    from core.demo import NAME

    known = {row["path"]: row["name"] for row in store.checkpoints()}
    # A job that was started by a command may name its checkpoint by its folder.
    name = known.get(subject, subject)
    return str(name) if name in known.values() else NAME


def fields(store: Store, name: str, about: Subject | None) -> list[Field]:
    """The form's fields with the defaults and offers that suit the checkpoint ``name``, which ``look_at`` found."""
    from core.demo import NAME
    from core.formats.export_request import FORMATS
    from core.quantization import recipe as known_recipes

    rows = store.checkpoints()
    names = list(dict.fromkeys([NAME, *(row["name"] for row in rows)]))
    variant = (
        about.info.kind == "variant" if about else name in {r["name"] for r in store.checkpoints("variant")}
    )
    recipes = known_recipes.names()
    if about is not None and not variant:
        recipes = [name for name in recipes if about.fits(known_recipes.load(name))] or recipes
    preferred = "int4-awq" if "int4-awq" in recipes else recipes[0]
    base = None if about is None else about.info.name
    calibrations = [row["name"] for row in store.calibrations(base)]
    making, measuring = ("chain", "quantize", "sensitivity"), ("chain", "evaluate")
    from_calibration = ("quantize", "sensitivity")
    computing = tuple(kind for kind in KINDS if kind != "export")
    return [
        Field("kind", "what", KINDS, "chain: calibrate, quantize, evaluate; sensitivity: where a recipe hurts",
              "evaluate" if variant else "chain", KINDS),
        Field("checkpoint", "checkpoint", KINDS, "a name, or the path of a folder", name, names),
        Field("recipe", "recipe", making, "a name, or the path of a TOML file", preferred, recipes),
        Field("group", "group", making, "weights that share a scale, or channel: all of a row", "",
              groups(about, preferred), "as in the recipe"),
        Field("calibration", "calibration", from_calibration, "whose statistics to use; empty: none",
              calibrations[0] if calibrations else "", calibrations),
        *(_of_causal_lm() if about is not None and about.causal else _of_lance(about)),
        Field("limit", "samples", (*measuring, "sensitivity"), "the first so many of each suite; empty: all", "",
              ("24", "50", "200"), "all"),
        Field("format", "format", ("export",), "who is to read it", next(iter(FORMATS)), tuple(FORMATS)),
        Field("output", "output", ("export",), "a folder that is not there yet; empty: beside the database", "", (),
              "beside the database"),
        Field("device", "device", computing, "auto takes a GPU where there is one", "auto", ("auto", "cpu", "cuda:0")),
    ]  # fmt: skip


_CALIBRATING, _MEASURING = ("chain", "calibrate"), ("chain", "evaluate")


def _of_lance(about: Subject | None) -> list[Field]:
    """What samples a Lance is calibrated and measured on."""
    from core.evaluation import samples, suites

    tasks = list(samples.TASKS) if about is None else about.tasks()
    usual = " ".join(samples.DEFAULT_TASKS)
    own = [suite for suite, task in suites.tasks().items() if task in tasks]
    default = "demo-x2t" if "demo-x2t" in own else "".join(own[:1])
    both = " ".join(suites.DEFAULT_SUITES)
    return [
        Field("tasks", "calibrate on", _CALIBRATING, "tasks, separated by blanks", usual, (usual, *tasks, "mixed")),
        Field("files", "samples from", _CALIBRATING, "files in Lance's format; empty: drawn, for the embedded one", "",
              (), "drawn"),
        Field("calibrate_samples", "samples each", _CALIBRATING, "samples of each task to calibrate on", str(SAMPLES),
              ("16", "48", "128")),
        Field("suites", "suites", _MEASURING, "names or JSON files, separated by blanks; text: perplexity", default,
              [*own, both, suites.PROSE]),
        Field("measured_on", "suites", ("sensitivity",), "names or JSON files; empty: drawn, for the embedded one", "",
              ["", *own, both], "drawn"),
    ]  # fmt: skip


def _of_causal_lm() -> list[Field]:
    """What text a causal LM is calibrated and measured on."""
    from core.calibration import prose
    from core.evaluation import suites

    text = "text, or text:FILE for one of yours"
    return [
        Field("tasks", "calibrate on", _CALIBRATING, "a causal LM is calibrated on running text", prose.TASK,
              (prose.TASK,)),
        Field("files", "text from", _CALIBRATING, "a file of texts (.txt, .jsonl); empty: the one that comes along", "",
              (), "the text that comes along"),
        Field("calibrate_samples", "sequences", _CALIBRATING, "sequences of text to calibrate on",
              str(prose.DEFAULT_SEQUENCES), ("32", "128", "512")),
        Field("suites", "suites", _MEASURING, text, suites.PROSE, (suites.PROSE,)),
        Field("measured_on", "suites", ("sensitivity",), text, suites.PROSE, (suites.PROSE,)),
    ]  # fmt: skip


def groups(about: Subject | None, recipe: str) -> list[str]:
    """The groups that the recipe can have on this checkpoint, beside its own."""
    from core.quantization import recipe as recipes

    try:
        chosen = recipes.load(recipe)
    except WorkbenchError:
        return ["", *GROUPS]
    found = [""]
    for group in GROUPS:
        try:
            changed = chosen.with_group("channel" if group == "channel" else int(group))
        except WorkbenchError:
            continue
        if about is None or about.fits(changed):
            found.append(group)
    return found


def group_of(text: str) -> Any:
    """A group as a recipe takes it: a number of weights, ``channel``, or None for its own."""
    return int(text) if text.isdecimal() else text or None


def specs(store: Store, values: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """The jobs that the values stand for, each as kind and spec; every one needs the one before it.

    Raises:
        WorkbenchError: the values were not checked.
    """
    from core.calibration.prose import DEFAULT_SEQUENCES
    from core.checkpoints import describe, resolve
    from core.quantization import recipe as recipes
    from workbench.places import absolute, absolute_suite

    def words(key: str) -> list[str]:
        return [absolute_suite(name) for name in values.get(key, "").split()]

    kind, device = values["kind"], values.get("device", "").strip()
    checkpoint = values["checkpoint"].strip()
    info = describe(resolve(checkpoint, store))
    checkpoint = checkpoint if store.checkpoint(checkpoint) or checkpoint == info.name else str(info.path)
    if kind == "export":
        output = values["output"].strip()
        place = str(expanded(output).resolve()) if output else None
        return [("export", {"checkpoint": checkpoint, "format": values["format"].strip(), "output": place})]
    samples, limit = values.get("calibrate_samples", "").strip(), values.get("limit", "").strip()
    files = words("files")
    calibrate: dict[str, Any] = {
        "checkpoint": checkpoint,
        "tasks": values.get("tasks", "").split(),
        "samples": int(samples) if samples else None,
        "seed": 0,
        "device": device,
    }
    usual = SAMPLES
    if info.family == "huggingface":
        calibrate["suite"], usual = next(iter(files), None), DEFAULT_SEQUENCES
    else:
        calibrate["suites"] = files
    recipe = values.get("recipe", "").strip()
    quantize = {
        "checkpoint": checkpoint,
        "recipe": recipe if recipe in recipes.names() else absolute(recipe),
        "group": group_of(values.get("group", "").strip()),
        "device": device,
    }
    calibration = absolute(values.get("calibration", "").strip()) or None
    measured = {"limit": int(limit) if limit else None, "device": device}
    evaluate = {"checkpoint": checkpoint, "suites": words("suites"), "baseline": "auto", **measured}
    if kind == "calibrate":
        return [("calibrate", calibrate)]
    if kind == "quantize":
        return [("quantize", quantize | {"calibration": calibration})]
    if kind == "sensitivity":
        suites = {"suites": words("measured_on"), **measured}
        return [("sensitivity", quantize | {"calibration": calibration} | suites)]
    if kind == "evaluate":
        return [("evaluate", evaluate)]
    made_by = recipes.load(quantize["recipe"]).with_group(quantize["group"])
    made: list[tuple[str, dict[str, Any]]] = []
    called = None
    if made_by.needs_calibration:
        called = f"{info.name}_{'+'.join(calibrate['tasks'])}-n{samples or usual}"
        made.append(("calibrate", calibrate | {"name": called}))
    made.append(("quantize", quantize | {"calibration": called}))
    made.append(("evaluate", evaluate | {"checkpoint": f"{info.name}_{made_by.variant_suffix}"}))
    return made


def start(store: Store, values: Mapping[str, str]) -> list[int]:
    """Queue the jobs; their ids."""
    ids: list[int] = []
    for kind, spec in specs(store, values):
        ids.append(jobs.submit(store, kind, spec, depends_on=ids[-1:]))
    return ids
