"""The page that runs things: pick a runbook, fill its form, see the plan, run, watch, look at the result."""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console import copies, jobs, look
from vmsnix_ops.runbooks.console.following import Follower
from vmsnix_ops.runbooks.console.forms import DRY_RUN, Form, command_line, plan_html
from vmsnix_ops.runbooks.console.live import LiveView
from vmsnix_ops.runbooks.console.results import ResultView
from vmsnix_ops.runbooks.console.suggestions import Suggestions, at_once, source_of
from vmsnix_ops.text import html

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmsnix_ops.runbooks.console.bar import PlaceBar
    from vmsnix_ops.runbooks.console.following import Look
    from vmsnix_ops.runbooks.console.jobs import Job
    from vmsnix_ops.runbooks.console.suggestions import Found

EVERY_SECONDS = 0.3
"""Between two looks at a run."""


class RunPage:
    """One runbook at a time: form, run, result.

    Parameters
    ----------
    bar
        Says where runs go.
    ended
        Called when a run has ended, from the thread that followed it.

    Attributes
    ----------
    widget
        The page as it is shown.
    job
        The run that is under way; ``None`` when there is none.
    """

    def __init__(self, bar: PlaceBar, ended: Callable[[], None]) -> None:
        self._bar, self._ended = bar, ended
        self._forms: dict[str, Form] = {}
        self._placed = False
        self._lock = threading.RLock()
        self._suggestions = Suggestions()
        self.job: Job | None = None
        self._token = ""
        self._new_token()
        books = catalog.runbooks()
        self.pick = ipywidgets.Select(
            options=[(f"{book.number:02d}  {book.name}", book.name) for book in books],
            rows=max(len(books), 8),
            tooltip="The runbooks, in the order in which an operator meets them",
        )
        self.pick.add_class("vmsnix-pick-runbook")
        self.pick.observe(self._on_pick, "value")
        self._build()
        self._on_pick()

    def _build(self) -> None:
        self._about = ipywidgets.HTML("")
        self._fields = ipywidgets.VBox([])
        self._plan = ipywidgets.HTML("")
        self._ask = ipywidgets.HTML("")
        self.confirm = ipywidgets.Text(continuous_update=True, description="Confirm")
        self.confirm.observe(self._refresh, "value")
        self._confirmation = ipywidgets.VBox([self._ask, self.confirm])
        self._confirmation.add_class("vmsnix-confirm")
        self.run_button = ipywidgets.Button(description="Run", button_style="primary")
        self.run_button.on_click(lambda _button: self._start(dry=False))
        self.dry_button = ipywidgets.Button(description="Dry run")
        self.dry_button.tooltip = "Run it with dry_run: it looks and tells, and changes nothing"
        self.dry_button.on_click(lambda _button: self._start(dry=True))
        self.default_button = ipywidgets.Button(description="Defaults", tooltip="Empty the form")
        self.default_button.on_click(lambda _button: self._form.fill({}))
        self._message = ipywidgets.HTML("")
        buttons = ipywidgets.HBox([self.run_button, self.dry_button, self.default_button, self._message])
        buttons.add_class("vmsnix-buttons")
        foot = ipywidgets.VBox([self._confirmation, buttons])  # always in sight, however long the form
        foot.add_class("vmsnix-foot")
        self._form_page = ipywidgets.VBox([self._fields, self._plan, foot])
        self.live = LiveView(self._cancel)
        self.result = ResultView()
        self.back_button = ipywidgets.Button(description="Back to the form", icon="arrow-left")
        self.back_button.on_click(lambda _button: self._turn_to(self._form_page))
        self._result_page = ipywidgets.VBox([self.back_button, self.result.widget])
        self._pages = (self._form_page, self.live.widget, self._result_page)
        for page in self._pages:
            page.add_class("vmsnix-page")
        right = ipywidgets.VBox([self._about, *self._pages])
        right.add_class("vmsnix-main")
        self.widget = ipywidgets.HBox([self.pick, right])
        self.widget.add_class("vmsnix-run")
        self._turn_to(self._form_page)

    # What others ask of this page

    def open(self, runbook: str, values: Mapping[str, object]) -> None:
        """Show the form of a runbook, filled in; values that it does not take any more are left out."""
        if runbook not in catalog.names():
            self._say(f"There is no runbook {runbook} any more.", wrong=True)
            return
        self.pick.value = runbook
        if values:
            self._form.fill(values)
        if self.job is None:
            self._turn_to(self._form_page)

    def look_at(self, row: Mapping[str, Any]) -> None:
        """Show what became of an earlier run, a row of the table `runs`."""
        if self.job is None:
            evidence = copies.bring(str(row["run_id"]), self._bar.place)
            self.result.show({**row, **evidence.values}, evidence, open_report=True)
            self._turn_to(self._result_page)

    def place_changed(self) -> None:
        """Show that runs go elsewhere now, and follow the newest that is under way there, if any."""
        self._placed = True
        self.account_known()
        self._suggest()
        running = jobs.unfinished(self._bar.place) if self.job is None else []
        if running:
            self._follow(running[-1])

    def account_known(self) -> None:
        """Show whose account runs go to."""
        self.confirm.value = ""
        self._refresh()

    # The form

    @property
    def _form(self) -> Form:
        return self._forms[self.pick.value]

    def _on_pick(self, _change: object = None) -> None:
        book = catalog.find(self.pick.value)
        if book.name not in self._forms:
            self._forms[book.name] = Form(book, self._on_form)
        self._fields.children = [self._form.widget]
        self._on_form()
        if self.job is None:
            self._turn_to(self._form_page)
        self._suggest()

    def _on_form(self) -> None:
        self.confirm.value = ""  # what was confirmed is another thing now
        self._refresh()

    def _refresh(self, _change: object = None) -> None:
        """Bring everything around the fields up to date with them, and with the place."""
        with self._lock:  # the thread that follows a run does so, too
            if self.pick.value in self._forms:
                self._draw()

    def _draw(self) -> None:
        form, book = self._form, self._form.runbook
        if self.job is None:
            self._about.value = (
                f"<h3>{html(book.title)} {look.effect(book.side_effects)}</h3><p>{html(book.description)}</p>"
            )
        command = command_line(book, form.values(), sandbox=self._bar.place.sandbox)
        self._plan.value = plan_html(form, place=self._bar.words, command=command)
        dry = form.value(DRY_RUN) is True
        self.run_button.description = f"{'Dry run' if dry else 'Run'} {self._bar.words}"
        self.run_button.button_style = "danger" if form.destroys else "primary"
        self.dry_button.layout.display = "none" if dry or not form.has_dry_run else ""
        self._confirmation.layout.display = "" if form.destroys else "none"
        self._ask.value = (
            f"<p>This takes things away {html(self._bar.words)}. Type <code>{self._phrase}</code> "
            "to confirm.</p>"
        )
        busy, wrong = self.job is not None, bool(form.problems)
        self.run_button.disabled = busy or wrong or not self._confirmed
        self.dry_button.disabled = busy or wrong
        self._say("Correct what is marked." if wrong else "", wrong=wrong)

    @property
    def _phrase(self) -> str:
        account = self._bar.who.account if self._bar.who else ""
        return f"{self.pick.value} {account}".strip()

    @property
    def _confirmed(self) -> bool:
        if not self._form.destroys:
            return True
        known = bool(self._bar.who and self._bar.who.account)
        return known and self.confirm.value.strip() == self._phrase

    def _suggest(self) -> None:
        if not self._placed:  # where runs go is not settled yet
            return
        form, place = self._form, self._bar.place
        for name, field in form.fields.items():
            source = source_of(field.parameter)
            if not source:
                continue

            known = at_once(place, source)
            form.suggest(name, source, known)
            self._suggestions.ask(place, source, self._offer_to(form, name, source, known))

    def _offer_to(self, form: Form, name: str, source: str, known: Found) -> Callable[[Found, str], None]:
        place = self._bar.place

        def answered(found: Found, problem: str) -> None:
            if place is self._bar.place:  # the switch may have been pressed in the meantime
                form.suggest(name, source, known + found, problem)

        return answered

    # The run

    def _new_token(self) -> None:
        self._token = secrets.token_hex(8)

    def _start(self, *, dry: bool) -> None:
        """Start the run once: whoever comes second in a double click finds the token taken."""
        token, self._token = self._token, ""
        if not token:
            return
        form = self._form
        form.check()
        values = form.values() | ({DRY_RUN: True} if dry else {})
        try:
            if form.problems:
                form.focus_problem()
                self._new_token()
            elif dry or self._confirmed:
                confirmed = form.destroys and not dry
                self._follow(jobs.start(form.runbook, values, self._bar.place, confirmed=confirmed))
            else:
                self.confirm.focus()
                self._new_token()
        except VmsnixError as error:
            self._new_token()
            self._say(str(error), wrong=True)

    def _follow(self, job: Job) -> None:
        self.job, self._token = job, ""
        self._bar.lock(locked=True)
        if job.runbook != self.pick.value and job.runbook in catalog.names():
            self.pick.value = job.runbook
        self._about.value = ""
        self.live.begin(job.title, self._bar.words)
        self._refresh()
        self._turn_to(self.live.widget)
        self.live.cancel_button.focus()
        threading.Thread(target=self._watch, args=(job,), name=f"follow {job.run_id}", daemon=True).start()

    def _watch(self, job: Job) -> None:
        try:
            follower = Follower(job, self._bar.place.environment)
            seen = follower.look()
            while seen.outcome is None:
                self.live.show(seen)
                time.sleep(EVERY_SECONDS)
                seen = follower.look()
            self._end(job, seen)
        except Exception as error:  # noqa: BLE001 - a thread has nobody above it who could tell
            self._free()
            self._turn_to(self._form_page)
            lost = f"The run {job.run_id} is no longer shown here ({type(error).__name__}: {error})."
            self._say(f"{lost} It goes on; `vmsnix runs` knows it.", wrong=True)

    def _end(self, job: Job, seen: Look) -> None:
        outcome = dict(seen.outcome or {})
        evidence = copies.bring(job.run_id, self._bar.place)
        values = {"seconds": seen.seconds, **evidence.values, **outcome}
        dry = job.given.get(DRY_RUN) is True
        self.result.show(values, evidence, seen, open_report=dry and outcome.get("verdict") == "done")
        self._free()
        self._turn_to(self._result_page)
        self.back_button.focus()
        self._ended()

    def _free(self) -> None:
        """Be ready for another run."""
        self.job = None
        self._suggestions.forget()
        self._bar.lock(locked=False)
        self._new_token()
        self._refresh()

    def _cancel(self, at_once: bool) -> None:
        if self.job is not None:
            self.job.cancel(at_once=at_once)

    def _turn_to(self, page: Any) -> None:
        for each in self._pages:
            each.layout.display = "" if each is page else "none"

    def _say(self, words: str, *, wrong: bool) -> None:
        kind = "vmsnix-error" if wrong else "vmsnix-quiet"
        self._message.value = f'<span class="{kind}" role="status">{html(words)}</span>' if words else ""


__all__ = ["RunPage"]
