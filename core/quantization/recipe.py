"""Recipes: how a variant is made, as TOML; no torch.

A recipe has a number ``format``, what it asks of a ``calibration``, and an ordered list of ``steps``.
Reading is strict: an unknown key or step is an error that names the file, the key and what exists.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import UsageError
from core.files import expanded, sha256_text
from core.quantization import widths
from core.quantization.refine import Refine, read_refine
from core.quantization.scheme import CHANNEL, FP8, NVFP4, Scheme
from core.quantization.scheme import KINDS as FORMATS
from core.quantization.tables import Tables
from core.quantization.widths import Mixed, Width

if TYPE_CHECKING:
    from core.quantization.groups import LinearGroup

FOLDER = Path(__file__).parent / "recipes"
"""Where the ready recipes lie."""

FOLDABLE = ("qkv", "gate_up", "down")
"""Groups of linears whose input can be scaled exactly."""

_WIDTHS = re.compile(r"(?ms)^\[widths\].*?(?=^\[|\Z)")
"""The table of widths in a recipe's text."""

_GROUP = re.compile(r"(?ms)^(\[format\].*?^\s*group\s*=\s*)(?:\d+|\"channel\")")

ROLES = ("text", "vit", "answer", "noisy", "clean")
LATENT = ("noisy", "clean")
"""Those of the generation expert."""

OUTER = ("head", "embedding", "time")
"""What a recipe may quantize outside the layers; ``time`` is a Lance's, other models have none."""

TOO_FEW = ("error", "round")
"""What happens to a linear that saw too few tokens: stop, or round it as it is and say so."""


@dataclass(frozen=True)
class AwqStep:
    """Search and fold a scale for each group's input channels."""

    groups: tuple[str, ...] = FOLDABLE
    exponents: int = 20
    """How many exponents in (0, 1] are tried, beside no scaling at all."""
    duo: bool = True
    """Also weigh activations against weights."""


@dataclass(frozen=True)
class ValuesStep:
    """Search and fold one scale of the value channels for both experts' o projections."""

    exponents: int = 10
    """How many exponents in (0, 1] are tried, beside no scaling at all."""


@dataclass(frozen=True)
class RangesStep:
    """Search each group's range for the least error."""

    weighed: bool = True
    """An error counts what its channel carries; otherwise all count alike and no calibration is needed."""


@dataclass(frozen=True)
class GptqStep:
    """Round column by column and let the columns to come make up for the error."""

    damping: float = 0.01
    """What is added to the Hessian's diagonal, as a share of its mean."""
    inputs: str = "original"
    """Whose inputs it goes by: those of the ``original`` model, as they were recorded, or those of the ``quantized``
    one, computed layer by layer, whose earlier errors each group then makes up for as well.
    """


INPUTS = ("original", "quantized")

Step = ValuesStep | AwqStep | RangesStep | GptqStep

KINDS: dict[str, type[Step]] = {"values": ValuesStep, "awq": AwqStep, "ranges": RangesStep, "gptq": GptqStep}
"""Kinds of step by name, in the order in which they are taken."""

_ORDER = tuple(KINDS)


@dataclass(frozen=True)
class Recipe:
    """A recipe as read."""

    name: str
    summary: str
    scheme: Scheme
    steps: tuple[Step, ...]
    min_tokens: int
    """A target linear needs this many tokens in the calibration."""
    too_few: str
    rows: int
    """How many sampled rows of a group's input the search uses at most."""
    role_weights: dict[str, dict[str, float]]
    """Per expert, what each role's tokens count; an expert that is absent counts all roles alike."""
    text: str
    """The TOML it was read from, with the group that was chosen."""
    outer: dict[str, Scheme] = dataclasses.field(default_factory=dict)
    """Formats of those of ``OUTER`` that are quantized too: smaller, but no runtime except the
    workbench's reads it.
    """
    widths: tuple[Width, ...] = ()
    """Groups of linears that have another width than the format's."""
    gen: Scheme | None = None
    """The format of the generation expert's linears, if it is another than ``scheme``; ``widths`` are not for them."""
    mixed: Mixed | None = None
    """What the widths of all groups that ``widths`` leaves open are chosen from."""
    refine: Refine | None = None
    """What is learned once all layers are quantized."""

    def scheme_of(self, group: LinearGroup) -> Scheme:
        """The format of a group of linears.

        Raises:
            UsageError: its linears would get two.
        """
        if self.gen is not None and group.expert == "gen":
            return self.gen
        return widths.scheme_of(group, self.scheme, self.widths, self.name) if self.widths else self.scheme

    @property
    def label(self) -> str:
        """Its formats in a word, with every width that a mixed recipe chooses from."""
        bits = self.mixed.bits if self.mixed else (self.scheme.bits,)
        found = [dataclasses.replace(self.scheme, bits=width) for width in bits]
        return widths.label(found if self.gen is None else [*found, self.gen])

    @property
    def needs_calibration(self) -> bool:
        """Whether a step looks at activations, or anything at the samples."""
        later = (self.mixed, self.refine)
        return any(part is not None for part in later) or any(
            not isinstance(step, RangesStep) or step.weighed for step in self.steps
        )

    def step_of(self, group: str) -> AwqStep | None:
        """The step that scales this kind of group, if one does."""
        return next((s for s in self.steps if isinstance(s, AwqStep) and group in s.groups), None)

    @property
    def values(self) -> ValuesStep | None:
        """The step that scales the value channels, if there is one."""
        return next((step for step in self.steps if isinstance(step, ValuesStep)), None)

    @property
    def ranges(self) -> RangesStep | None:
        """The step that searches ranges, if there is one."""
        return next((step for step in self.steps if isinstance(step, RangesStep)), None)

    @property
    def gptq(self) -> GptqStep | None:
        """The step that compensates errors, if there is one."""
        return next((step for step in self.steps if isinstance(step, GptqStep)), None)

    @property
    def follows(self) -> bool:
        """Whether each layer is fitted to what it sees once those before it are quantized."""
        return self.gptq is not None and self.gptq.inputs == "quantized"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the text."""
        return sha256_text(self.text)

    @property
    def variant_suffix(self) -> str:
        """``int4-awq-g64``: what a variant's name adds to the checkpoint's."""
        return f"{self.name}-{self.scheme.group_label}"

    def with_group(self, group: int | Literal["channel"] | None) -> Recipe:
        """The same with another group size, or one scale a row; None keeps the recipe's own.

        Raises:
            UsageError: the group is not positive, or not 16 for NVFP4.
        """
        size = CHANNEL if group == "channel" else group
        if size is None or size == self.scheme.group_size:
            return self
        scheme = dataclasses.replace(self.scheme, group_size=size)
        text = _GROUP.sub(rf"\g<1>{json.dumps(group)}", self.text, count=1)
        return dataclasses.replace(self, scheme=scheme, text=text)

    def with_widths(self, chosen: Mapping[str, int]) -> Recipe:
        """The same with widths for the groups of these keys; its text has them, and so leaves nothing to choose."""
        kept = (*self.widths, *(Width(key, bits) for key, bits in chosen.items()))
        lines = "".join(f'"{width.pattern}" = {width.bits}\n' for width in kept)
        text = f"{_WIDTHS.sub('', self.text).rstrip()}\n\n[widths]\n{lines}"
        return dataclasses.replace(self, widths=kept, text=text)

    def to_json(self) -> dict[str, Any]:
        """As plain data, for records and ``recipes show --json``."""
        return {
            "name": self.name,
            "summary": self.summary,
            "format": self.scheme.to_json(),
            "gen": None if self.gen is None else self.gen.to_json(),
            "outer": {name: scheme.to_json() for name, scheme in self.outer.items()},
            "widths": {width.pattern: width.bits for width in self.widths},
            "mixed": None if self.mixed is None else dataclasses.asdict(self.mixed),
            "refine": None if self.refine is None else dataclasses.asdict(self.refine),
            "steps": [{"kind": _kind(step)} | dataclasses.asdict(step) for step in self.steps],
            "calibration": {
                "min_tokens": self.min_tokens,
                "too_few": self.too_few,
                "rows": self.rows,
                "weights": self.role_weights,
            },
            "fingerprint": self.fingerprint,
        }


def _kind(step: Step) -> str:
    return next(kind for kind, wanted in KINDS.items() if isinstance(step, wanted))


def names() -> list[str]:
    """The recipes that come with the workbench."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """The recipe of that name, or the one in the TOML file of that path.

    Raises:
        UsageError: no such recipe or file, or something in it that is not understood.
    """
    path = FOLDER / f"{name}.toml" if name in names() else expanded(name)
    if not path.is_file():
        raise UsageError(f"{name}: no such recipe and no such file; recipes are {', '.join(names())}")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: no TOML ({error})") from error
    return _Reader(path).recipe(content, text)


class _Reader(Tables):
    """Turns a parsed recipe into data, naming file and key of whatever does not fit."""

    def recipe(self, content: dict[str, Any], text: str) -> Recipe:
        known = (
            "name",
            "summary",
            "format",
            "gen",
            *OUTER,
            "mixed",
            "widths",
            "calibration",
            "steps",
            "refine",
        )
        top = self.table(content, "", known)
        outer = {
            key: self.integers(self.table(top[key], key, ("bits", "group", "symmetric")), key)
            for key in OUTER
            if key in top
        }
        if "embedding" in outer and not outer["embedding"].symmetric:
            raise UsageError(
                f"{self.path}: embedding.symmetric is false, wanted true: its rows are read one by one"
            )
        use = self.table(
            top.get("calibration", {}), "calibration", ("min_tokens", "too_few", "rows", "weights")
        )
        too_few = self.value(use, "calibration.too_few", str, "error")
        self.known("calibration.too_few", (too_few,), TOO_FEW)
        scheme = self.scheme(top.get("format"), "format", tuple(kind for kind in FORMATS if kind != "fp8"))
        gen = self.scheme(top["gen"], "gen", FORMATS) if "gen" in top else None
        schemes = [scheme] if gen is None else [scheme, gen]
        if gen is not None and "mixed" in top:
            raise UsageError(
                f"{self.path}: has both gen and mixed, which chooses for both experts; leave one out"
            )
        steps = top.get("steps", [])
        if not isinstance(steps, list):
            raise UsageError(f"{self.path}: steps is no list; write [[steps]] for each step")
        read = tuple(self.step(step, f"steps[{index}]") for index, step in enumerate(steps))
        self.check_order(read)
        name = self.value(top, "name", str)
        if not name or any(not (c.isalnum() or c in ".-") for c in name):
            raise UsageError(f"{self.path}: name {name!r}: wanted letters, digits, dots and hyphens")
        return Recipe(
            name=name,
            summary=self.value(top, "summary", str, ""),
            scheme=scheme,
            steps=read,
            min_tokens=self.value(use, "calibration.min_tokens", int, 256),
            too_few=too_few,
            rows=self.value(use, "calibration.rows", int, 512),
            role_weights=self.weights(use.get("weights", {})),
            text=text,
            outer=outer,
            widths=widths.read_widths(self, top.get("widths", {}), scheme),
            gen=gen,
            mixed=widths.read_mixed(self, top["mixed"], scheme) if "mixed" in top else None,
            refine=read_refine(self, top["refine"], schemes) if "refine" in top else None,
        )

    def scheme(self, content: Any, key: str, kinds: Sequence[str]) -> Scheme:
        """A format of one of these ``kinds``; FP8, which rounds activations too, only pays for many rows."""
        form = self.table(content, key, ("type", "bits", "group", "symmetric"))
        kind = self.value(form, f"{key}.type", str, "int")
        self.known(f"{key}.type", (kind,), tuple(kinds))
        if kind == "int":
            return self.integers(form, key)
        self.table(form, f"{key} of type {kind}", ("type",))
        return NVFP4 if kind == "nvfp4" else FP8

    def integers(self, form: dict[str, Any], key: str) -> Scheme:
        try:
            return Scheme(
                self.value(form, f"{key}.bits", int),
                CHANNEL if form.get("group") == "channel" else self.group(form, f"{key}.group"),
                self.value(form, f"{key}.symmetric", bool),
            )
        except UsageError as error:
            if str(self.path) in str(error):
                raise
            raise UsageError(f"{self.path}: {key}: {error}") from None

    def group(self, form: dict[str, Any], key: str) -> int:
        size: int = self.value(form, key, int)
        if size < 1:
            raise UsageError(f"{self.path}: {key} is {size}, wanted a number of columns or 'channel'")
        return size

    def check_order(self, steps: tuple[Step, ...]) -> None:
        scaled = [group for step in steps if isinstance(step, AwqStep) for group in step.groups]
        if twice := sorted({group for group in scaled if scaled.count(group) > 1}):
            raise UsageError(f"{self.path}: {twice[0]} is scaled by two steps; leave it to one of them")
        kinds = [_kind(step) for step in steps]
        for before, after in itertools.pairwise(kinds):
            if before == after != "awq":
                raise UsageError(f"{self.path}: {after} is asked for twice; once is enough")
            if _ORDER.index(before) > _ORDER.index(after):
                raise UsageError(
                    f"{self.path}: {after} comes after {before}; steps are taken in the order {', '.join(KINDS)}"
                )

    def step(self, content: Any, key: str) -> Step:
        if not isinstance(content, dict) or "kind" not in content:
            raise UsageError(f"{self.path}: {key} has no kind; kinds are {', '.join(KINDS)}")
        self.known(f"{key}.kind", (content["kind"],), _ORDER)
        kind = KINDS[content["kind"]]
        table = self.table(content, key, ("kind", *(field.name for field in dataclasses.fields(kind))))
        if kind is AwqStep:
            return self.awq(table, key)
        if kind is ValuesStep:
            return ValuesStep(self.exponents(table, key, ValuesStep.exponents))
        if kind is GptqStep:
            damping = self.value(table, f"{key}.damping", float, 0.01)
            if not 0 < damping < 1:
                raise UsageError(
                    f"{self.path}: {key}.damping is {damping}, wanted more than 0 and less than 1"
                )
            inputs = self.value(table, f"{key}.inputs", str, GptqStep.inputs)
            self.known(f"{key}.inputs", (inputs,), INPUTS)
            return GptqStep(damping, inputs)
        return RangesStep(self.value(table, f"{key}.weighed", bool, True))

    def awq(self, table: dict[str, Any], key: str) -> AwqStep:
        groups = self.value(table, f"{key}.groups", list, list(FOLDABLE))
        self.known(f"{key}.groups", groups, FOLDABLE)
        exponents = self.exponents(table, key, AwqStep.exponents)
        return AwqStep(tuple(groups), exponents, self.value(table, f"{key}.duo", bool, True))

    def exponents(self, table: dict[str, Any], key: str, default: int) -> int:
        found: int = self.value(table, f"{key}.exponents", int, default)
        if found < 1:
            raise UsageError(f"{self.path}: {key}.exponents is {found}, wanted at least 1")
        return found

    def weights(self, content: Any) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for expert, roles in self.table(content, "calibration.weights", ("und", "gen")).items():
            key = f"calibration.weights.{expert}"
            found[expert] = {}
            for role, weight in self.table(roles, key, ROLES).items():
                if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
                    raise UsageError(f"{self.path}: {key}.{role} is {weight!r}, wanted a number from 0 on")
                found[expert][role] = float(weight)
        return found
