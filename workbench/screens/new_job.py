"""The form for a new job: every field has a default; enter goes on, ctrl+s starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.widget import Widget
from textual.widgets import Input

from core.errors import WorkbenchError
from core.store import Store
from workbench import job_form, look
from workbench.job_faults import Fault, faults
from workbench.screens.base import bindings
from workbench.screens.modal import Modal
from workbench.trouble import of_system
from workbench.widgets.lines import Line, Notice
from workbench.widgets.prompt import Prompt
from workbench.widgets.text import visible

LABEL = 16


class NewJob(Modal[list[int]]):
    """Answers with the ids of the jobs that were started, or None."""

    BOX_TITLE: ClassVar[str] = "New job"
    FOOT: ClassVar[str] = "enter next · ↑↓ known values · ctrl+s start · esc close"
    BINDINGS: ClassVar = bindings("form")

    def __init__(self, store: Store, subject: str | None) -> None:
        super().__init__()
        self.store = store
        self.name_now = job_form.chosen(store, subject)
        self.about = job_form.look_at(store, self.name_now)
        self.fields = job_form.fields(store, self.name_now, self.about)
        self.prompts: dict[str, Prompt] = {}

    def contents(self) -> Iterable[Widget]:
        for field in self.fields:
            prompt = Prompt(field.title, field.empty, field.default, width=LABEL)
            self.prompts[field.key] = prompt
            yield prompt
        self.meaning = Line(id="meaning")
        self.steps = Line()
        self.fault = Notice()
        yield self.meaning
        yield self.steps
        yield self.fault

    def on_mount(self) -> None:
        self.prompts["kind"].input.focus()
        self._show_fields()

    def values(self) -> dict[str, str]:
        """What is in the fields that this kind of job asks."""
        kind = self.prompts["kind"].input.value.strip()
        return {
            field.key: self.prompts[field.key].input.value.strip()
            for field in self.fields
            if kind in field.kinds or field.key == "kind"
        }

    def _show_fields(self) -> None:
        asked = self.values()
        if asked["kind"] in job_form.KINDS:
            for key, prompt in self.prompts.items():
                prompt.display = key in asked
        self._show_steps()

    def _show_steps(self) -> None:
        """Which jobs the form would start, in words."""
        steps = {"chain": "calibrate → quantize → evaluate"}
        kind = self.values()["kind"]
        self.steps.show([(" starts: ", look.MUTED), (steps.get(kind, kind), look.PLAIN)])

    def _field(self) -> job_form.Field | None:
        for field in self.fields:
            if self.prompts[field.key].input is self.focused:
                return field
        return None

    def on_descendant_focus(self) -> None:
        field = self._field()
        if field is not None:
            arrows = f"  ↑↓ {len(field.known)} known" if len(field.known) > 1 else ""
            self.meaning.show([(f" {field.meaning}{arrows}", look.MUTED)])

    def on_input_changed(self, message: Input.Changed) -> None:
        self.fault.hide()
        if message.input is self.prompts["checkpoint"].input:
            self._suit(message.value.strip())
        elif message.input is self.prompts["recipe"].input:
            self._offer_groups()
        self._show_fields()

    def _suit(self, name: str) -> None:
        """Offer what suits another checkpoint; what was typed stays, what was only offered for the one before not."""
        about = job_form.look_at(self.store, name) if name != self.name_now else None
        if about is None:
            return
        self.name_now, self.about = name, about
        before = {field.key: field for field in self.fields}
        self.fields = job_form.fields(self.store, name, about)
        for field in self.fields:
            prompt, old = self.prompts[field.key], before[field.key]
            prompt.rename(field.title)
            prompt.input.placeholder = field.empty
            value = prompt.input.value
            gone = value in old.known and value not in field.known
            if field.key not in ("kind", "checkpoint") and (value == old.default or gone):
                prompt.input.value = field.default
        self._offer_groups()

    def _offer_groups(self) -> None:
        """Offer the groups that the recipe can have."""
        known = job_form.groups(self.about, self.prompts["recipe"].input.value.strip())
        self.fields = [
            replace(field, known=known) if field.key == "group" else field for field in self.fields
        ]

    def on_input_submitted(self) -> None:
        field = self._field()
        if field is None:
            return
        if found := faults(self.store, self.values(), field.key):
            self._show_fault(found[0])
        else:
            self.focus_next(Input)

    def on_key(self, event: events.Key) -> None:
        field = self._field()
        if field is None or event.key not in ("up", "down"):
            return
        event.stop()
        if not field.known:
            return
        entry = self.prompts[field.key].input
        step = 1 if event.key == "down" else -1
        here = field.known.index(entry.value) if entry.value in field.known else (-1 if step > 0 else 0)
        entry.value = field.known[(here + step) % len(field.known)]
        entry.cursor_position = len(entry.value)

    def _show_fault(self, fault: Fault) -> None:
        self.fault.show(visible(fault.message), bad=True)
        self.prompts[fault.key].input.focus()

    def action_start(self) -> None:
        if found := faults(self.store, self.values()):
            self._show_fault(found[0])
            return
        try:
            self.app.database.check()
            self.dismiss(job_form.start(self.store, self.values()))
        except WorkbenchError as error:
            self.fault.show(visible(str(error)), bad=True)
        except OSError as error:
            self.fault.show(visible(of_system(error) or str(error)), bad=True)

    def action_close(self) -> None:
        self.dismiss(None)
