"""Compare: one sample at a time, the bf16 answer beside those of one or more variants."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from textual.widget import Widget

from core.errors import WorkbenchError
from workbench import look
from workbench.comparison import Comparison, Sample, latest
from workbench.screens.base import AreaScreen, bindings
from workbench.screens.compare_body import Options, body, scores
from workbench.widgets.document import Document
from workbench.widgets.lines import Line
from workbench.widgets.text import Part, centred, strip, visible

LAYOUTS = ("automatic", "split", "unified")

EMPTY = """Nothing to compare yet

It takes two evaluations of one suite: bf16's and a variant's.

n   start them: calibrate, quantize and evaluate in one chain
1   go to the runs, mark some with space, then c

Without the app:  lance-workbench demo"""


class CompareScreen(AreaScreen):
    """The comparison of a variant with bf16; opens on the newest one when none was chosen."""

    AREA: ClassVar[str] = "compare"
    BINDINGS: ClassVar = bindings("compare")
    AUTO_FOCUS: ClassVar[str] = "Document"

    def __init__(self) -> None:
        super().__init__()
        self.comparison: Comparison | None = None
        self.layout_choice = 0
        self.options = Options()

    def body(self) -> Iterable[Widget]:
        self.heading = Line()
        self.document = Document()
        self.scores = Line()
        self.remarks = Line()
        yield self.heading
        yield self.document
        yield self.scores
        yield self.remarks

    def on_mount(self) -> None:
        with self.app.guarded():
            self._find()
            self.refresh_data()

    def _find(self) -> None:
        if self.comparison is None and (newest := latest(self.app.store)) is not None:
            self.comparison = Comparison.of_runs(self.app.store, [newest["id"]])

    def show_comparison(self, comparison: Comparison) -> None:
        """Compare these runs from now on."""
        self.comparison = comparison
        self._draw()

    def refresh_data(self) -> None:
        super().refresh_data()
        self._find()
        if self.comparison is not None:
            self.comparison.reload()
        self._draw(keep=True)

    def subject(self) -> str | None:
        return None if self.comparison is None else str(self.comparison.reference["checkpoint"])

    def on_resize(self) -> None:
        self._draw(keep=True)

    # --- drawing --------------------------------------------------------------------------------------------------

    def _draw(self, *, keep: bool = False) -> None:
        width = self.document.size.width
        if not width:
            return
        if self.comparison is None:
            self._draw_empty(EMPTY)
            return
        sample = self.comparison.sample()
        if sample is None:
            self._draw_empty(
                "No sample in common\n\nThe run has no outputs yet, or they are of other samples."
            )
            return
        self.options.layout = LAYOUTS[self.layout_choice]
        try:
            lines, marks = body(self.comparison, sample, width - 1, self.document.size.height, self.options)
        except WorkbenchError as error:
            lines, marks = [strip([(str(error), look.BAD)])], set()
        self.document.show(lines, frozenset(marks), keep=keep)
        self._draw_heading(sample)
        first, second = scores(self.comparison, sample)
        self.scores.show(first)
        self.remarks.show(second)

    def _draw_empty(self, text: str) -> None:
        size = self.document.size
        self.document.show([strip(line) for line in centred(text, size.width, size.height)])
        for line in (self.heading, self.scores, self.remarks):
            line.show([])

    def _draw_heading(self, sample: Sample) -> None:
        comparison = self._comparing()
        word = "check differs" if comparison.pictures else "mismatch"
        place = f"sample {sample.position + 1} of {sample.total}"
        if sample.mismatch is not None:
            mismatch: Part = (f"{word} {sample.mismatch + 1} of {sample.mismatches}", look.WARN)
        else:
            mismatch = (f"{sample.mismatches} {word}{'es' if word == 'mismatch' and sample.mismatches != 1 else ''}",
                        look.MUTED)  # fmt: skip
        left: list[Part] = [
            (f" {visible(str(comparison.reference['suite']))} ", look.BOLD),
            (f" {place} · ", look.MUTED),
            mismatch,
        ]
        if comparison.only_mismatches:
            left.append((" · only these", look.MUTED))
        count = len(comparison.variants)
        right: list[Part] = [
            (visible(comparison.short(comparison.variant)), look.BOLD),
            (f" [{comparison.current + 1} of {count}] " if count > 1 else " ", look.MUTED),
        ]
        self.heading.show(left, right)

    def _comparing(self) -> Comparison:
        """The comparison, where an action needs one.

        Raises:
            WorkbenchError: there is none yet.
        """
        if self.comparison is None:
            raise WorkbenchError("nothing to compare yet; evaluate a variant first (key 1, then n)")
        return self.comparison

    # --- actions --------------------------------------------------------------------------------------------------

    def _step(self, amount: int, *, mismatch: bool = False) -> None:
        comparison = self._comparing()
        if comparison.step(amount, mismatch=mismatch):
            self.notice.hide()
            self._draw()
        else:
            what = "sample that differs" if mismatch or comparison.only_mismatches else "sample"
            self.show_notice(f"this is the {'last' if amount > 0 else 'first'} {what}")

    def action_next(self) -> None:
        self._step(1)

    def action_previous(self) -> None:
        self._step(-1)

    def action_next_mismatch(self) -> None:
        self._step(1, mismatch=True)

    def action_previous_mismatch(self) -> None:
        self._step(-1, mismatch=True)

    def _switch(self, amount: int) -> None:
        comparison = self._comparing()
        if len(comparison.variants) == 1:
            self.show_notice("this is the only variant; mark several runs and press c to compare them")
            return
        comparison.switch(amount)
        self._draw(keep=True)

    def action_previous_variant(self) -> None:
        self._switch(-1)

    def action_next_variant(self) -> None:
        self._switch(1)

    def action_layout(self) -> None:
        self.layout_choice = (self.layout_choice + 1) % len(LAYOUTS)
        self._draw(keep=True)
        self.show_notice(f"layout: {LAYOUTS[self.layout_choice]}")

    def _toggle(self, option: str) -> None:
        setattr(self.options, option, not getattr(self.options, option))
        self._draw(keep=True)

    def action_wrap(self) -> None:
        self._toggle("wrap")

    def action_expected(self) -> None:
        self._toggle("expected")

    def action_picture(self) -> None:
        self._toggle("picture")

    def action_likelihood(self) -> None:
        if self._comparing().pictures:
            self.show_notice("pictures have no tokens to shade; their scores stand below them")
            return
        self._toggle("likelihood")

    def action_mismatches(self) -> None:
        comparison = self._comparing()
        comparison.only_mismatches = not comparison.only_mismatches
        here = comparison.mismatches()
        moved = comparison.only_mismatches and here and comparison.position not in here
        if moved and not comparison.step(1):
            comparison.step(-1)
        self._draw(keep=not moved)

    def action_export(self) -> None:
        from core.evaluation.comparison import compare
        from core.evaluation.report import markdown
        from core.files import write_text
        from workbench.exports import stamped

        comparison = self._comparing()
        report = markdown(compare(self.app.store, comparison.reference["id"], comparison.variant["id"]))
        path = stamped(f"comparison-{comparison.reference['id']}-{comparison.variant['id']}", ".md")
        write_text(path, report)
        self.app.say(f"written {path.resolve()}")

    def action_write(self) -> None:
        from core.files import write_bytes
        from workbench.exports import stamped
        from workbench.widgets.picture import beside, opened

        comparison = self._comparing()
        sample = comparison.sample()
        outputs: list[Any] = (
            [] if sample is None else [sample.reference, sample.variants.get(comparison.variant["id"], {})]
        )
        keys = [output.get("output_media") for output in outputs]
        if not comparison.pictures or not all(keys):
            self.show_notice(
                "only two pictures can be written beside each other; e writes the report of texts"
            )
            return
        left, right = (opened(self.app.store.media(key), f"picture {key[:12]}") for key in keys)
        path = stamped(
            f"pictures-{comparison.reference['id']}-{comparison.variant['id']}-{comparison.position + 1}",
            ".png",
        )
        write_bytes(path, beside(left, right))
        self.app.say(f"written {path.resolve()}")

    def action_copy(self) -> None:
        comparison = self._comparing()
        sample = comparison.sample()
        if sample is not None:
            variant = sample.variants.get(comparison.variant["id"], {})
            text = f"{sample.reference['question'] or ''}\n\nbf16: {sample.reference['text'] or ''}\n"
            self.app.copy(
                f"{text}{comparison.short(comparison.variant)}: {variant.get('text') or ''}\n", "both answers"
            )

    async def action_back(self) -> None:
        await self.app.go_to("runs")
