"""Asking under which name to publish a checkpoint or variant on the Hugging Face Hub, and who may see it there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.strip import Strip
from textual.widget import Widget

from core import jobs
from core.errors import UsageError, WorkbenchError
from core.store import Store
from core.store.columns import size
from workbench import bars, look
from workbench.screens.modal import Modal
from workbench.trouble import of_system
from workbench.widgets.document import Document
from workbench.widgets.lines import Line, Notice
from workbench.widgets.prompt import Prompt
from workbench.widgets.text import Part, strip, visible, wrapped

if TYPE_CHECKING:
    from core.checkpoints.publish_card import Card

LABEL = 14
AROUND = 6
"""Lines of the box beside the list: its frame, the two fields with what the second means, and a blank line."""

PRIVATE, PUBLIC = "private", "public"

LOOKING = "looking at the files …"


def usual(store: Store, name: str) -> str:
    """The repository that ``name`` was published to last; else one of that name, of the owner of the last."""
    told = [
        json.loads(row["spec"])
        for row in store.query("SELECT spec FROM jobs WHERE kind = 'publish' ORDER BY id DESC")
    ]
    same = next((spec["repo"] for spec in told if spec.get("checkpoint") == name), None)
    owner = told[0]["repo"].partition("/")[0] if told else ""
    return str(same or f"{owner}/{name}")


class Publish(Modal[int]):
    """Answers with the number of the job that publishes, or None."""

    DEFAULT_CSS = "Publish Prompt { height: 1; } Publish Document { height: 1; margin-top: 1; }"
    FOOT: ClassVar[str] = "enter publishes · tab who may see it, ↑↓ changes that · esc closes"

    def __init__(self, store: Store, name: str, kind: str) -> None:
        super().__init__()
        self.store = store
        self.subject, self.kind = name, kind
        self.found: tuple[dict[str, int], Card] | None = None
        """Bytes of what would be published by name, and its card."""
        self.wrong = LOOKING
        """Why it cannot be published, as far as its files go; empty where it can."""

    def contents(self) -> Iterable[Widget]:
        repo = usual(self.store, self.subject)
        self.repo = Prompt("repository", "owner/name", repo, width=LABEL)
        # What is missing of the name is typed where it is missing.
        self.repo.input.cursor_position = 0 if repo.startswith("/") else len(repo)
        self.who = Prompt("visibility", f"{PRIVATE} or {PUBLIC}", PRIVATE, width=LABEL)
        self.meaning = Line()
        self.document = Document()
        self.document.can_focus = False
        self.fault = Notice()
        yield self.repo
        yield self.who
        yield self.meaning
        yield self.fault
        yield self.document

    def on_mount(self) -> None:
        self.entitle(f"Publish the {self.kind} {self.subject}")
        self._show_meaning()
        self._fill()
        self.repo.input.focus()
        self.run_worker(self._look, thread=True, group="publish", exit_on_error=False)

    def _look(self) -> None:
        """Look at the files, which may be many, and at their evaluations."""
        from core.checkpoints.publish_card import card, sent, sizes
        from core.checkpoints.publish_contents import contents

        try:
            with Store.open(self.store.path, create=False, readonly=True) as store:
                found = contents(self.subject, store)
                made = card(found, store)
                seen, wrong = (sizes(sent(found, made)), made), ""
        except WorkbenchError as error:
            seen, wrong = None, str(error)
        except OSError as error:
            seen, wrong = None, of_system(error) or str(error)
        self.app.call_from_thread(self._looked, seen, wrong)

    def _looked(self, seen: tuple[dict[str, int], Card] | None, wrong: str) -> None:
        if self.is_attached:
            self.found, self.wrong = seen, wrong
            self._say(wrong)

    def _say(self, wrong: str) -> None:
        self.fault.show(visible(wrong), bad=True) if wrong else self.fault.hide()
        self.call_after_refresh(self._fill)

    def _show_meaning(self) -> None:
        told: dict[str, Part] = {
            PRIVATE: ("only you, and whom you let in, will see it", look.MUTED),
            PUBLIC: ("everybody will see it", look.WARN),
        }
        text, style = told.get(self.who.input.value.strip(), ("", look.PLAIN))
        self.meaning.show([(" " * LABEL + text, style)])

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        """Lay the list out anew, as high as it is or as there is room for."""
        width = max(20, self.document.size.width - 1)
        lines = self._lines(width)
        room = self.app.size.height * 9 // 10 - AROUND - (self.fault.size.height if self.fault.display else 0)
        self.document.styles.height = max(1, min(len(lines), room))
        self.document.show(lines, keep=True)

    def _lines(self, width: int) -> list[Strip]:
        if self.found is None:
            return [strip([(f" {LOOKING}" if self.wrong == LOOKING else "", look.MUTED)])]
        sizes, made = self.found
        runs = f", the scores of runs {' '.join(map(str, made.runs))} on its card" if made.runs else ""
        head: Part = (f" {len(sizes)} files, {size(sum(sizes.values()))}{runs}", look.BOLD)
        lines = [strip([head])]
        for remark in made.remarks:
            for number, line in enumerate(wrapped([(remark, look.PLAIN)], width - 3)):
                lines.append(strip([(" · " if number == 0 else "   ", look.WARN), *line]))
        lines.append(strip([]))
        for name, count in sizes.items():
            right = f"{size(count)} "
            lines.append(
                strip(bars.two_ends([(f" {visible(name)}", look.PLAIN)], [(right, look.MUTED)], width))
            )
        return lines

    def on_key(self, event: events.Key) -> None:
        page = max(1, self.document.size.height - 1)
        steps = {"up": -1, "down": 1, "pageup": -page, "pagedown": page}
        if event.key not in steps:
            return
        event.stop()
        if self.who.input.has_focus and event.key in ("up", "down"):
            self.who.input.value = PRIVATE if self.who.input.value.strip() == PUBLIC else PUBLIC
            self.who.input.cursor_position = len(self.who.input.value)
        else:
            self.document.scroll(steps[event.key])

    def on_input_changed(self) -> None:
        self._show_meaning()
        self._say("" if self.wrong == LOOKING else self.wrong)

    def on_input_submitted(self) -> None:
        from core.checkpoints.publish import check_access, check_target

        repo, visibility = self.repo.input.value.strip(), self.who.input.value.strip()
        if self.found is None:
            self._say(self.wrong)
            return
        try:
            if visibility not in (PRIVATE, PUBLIC):
                raise UsageError(f"visibility {visibility!r}: wanted {PRIVATE} or {PUBLIC}")
            check_target(repo, None)
            check_access(repo)
            self.app.database.check()
            spec = {
                "checkpoint": self.subject,
                "repo": repo,
                "public": visibility == PUBLIC,
                "revision": None,
            }
            self.dismiss(jobs.submit(self.store, "publish", spec | {"device": "cpu"}))
        except WorkbenchError as error:
            self._say(str(error))
        except OSError as error:
            self._say(of_system(error) or str(error))
