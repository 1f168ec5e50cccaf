"""The page that runs things: pick a runbook, fill its form, see the plan, run, watch, look at the result."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import files
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.progress import counted, human_bytes, human_seconds
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console import jobs
from vmsnix_ops.runbooks.console.bar import effect
from vmsnix_ops.runbooks.console.forms import DRY_RUN, Form, command_line, plan_html
from vmsnix_ops.runbooks.console.jobs import Follower
from vmsnix_ops.runbooks.console.suggestions import Suggestions, at_once, source_of
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.runs import open_archive
from vmsnix_ops.templates import fill
from vmsnix_ops.text import link_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from markupsafe import Markup

    from vmsnix_ops.progress import Event
    from vmsnix_ops.runbooks.console.bar import PlaceBar
    from vmsnix_ops.runbooks.console.jobs import Job, Look, StepState
    from vmsnix_ops.runbooks.console.places import Place
    from vmsnix_ops.runbooks.console.suggestions import Found
    from vmsnix_ops.runbooks.evidence.runs import Archive, Entry


# The evidence of a run where JupyterLab can open it: copied below the folder of the notebook that is open.
#
# The archive lies in the state folder or on S3, outside of what a Jupyter server shows. What is opened here
# is a copy: whoever edits it leaves the evidence as it was.

FOLDER = "runs"
KEPT = 30
"""Runs whose copies are kept; older ones are copied again when somebody asks."""

FILES = (archive.NOTEBOOK, archive.REPORT, archive.LOG)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The files of a run.

    Attributes
    ----------
    place
        Folder or ``s3://`` location of the archive.
    links
        File name to its path relative to the notebook that is open: what JupyterLab can open.
    report
        The report as HTML text; empty when there is none.
    values
        Content of ``result.json``.
    problem
        What is missing, and why.
    """

    place: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    report: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def bring(run_id: str, place: Place) -> Evidence:
    """Copy the files of a run below the folder of the notebook that is open, and return where they are."""
    try:
        settings = place.settings()
        shelf = open_archive(settings, environment=place.environment)
        entry = shelf.find(run_id)
    except VmsnixError as error:
        return Evidence(problem=str(error))
    folder = Path(os.environ.get("JPY_SESSION_NAME", "")).absolute().parent / FOLDER / run_id
    where = f"{settings.archive.rstrip('/')}/{run_id}"
    try:
        files.make_folder(folder)
        problem = _copy(shelf, entry, folder)
        _clear(folder.parent)
    except OSError as error:
        problem = f"Could not copy the files: {error.strerror}: {error.filename}."
        return Evidence(where, values=entry.values, problem=problem)
    names = [name for name in (*FILES, archive.RESULT) if (folder / name).is_file()]
    report = folder / archive.REPORT
    return Evidence(
        where,
        {name: f"{FOLDER}/{run_id}/{name}" for name in names},
        report.read_text(encoding="utf-8") if report.is_file() else "",
        entry.values,
        problem,
    )


def _copy(shelf: Archive, entry: Entry, folder: Path) -> str:
    """Copy what there is; return what is wrong with the rest."""
    problems = []
    files.write(folder / archive.RESULT, json.dumps(entry.values, indent=2, ensure_ascii=False) + "\n")
    for name in FILES:
        try:
            files.write(folder / name, shelf.fetch(entry, name))
        except ArchiveError as error:
            problems.append(f"{error.what} {error.why}".strip())
    return " ".join(problems)


def _clear(copies: Path) -> None:
    """Remove the copies that were made longest ago."""
    ordered = sorted(copies.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in ordered[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


# A run while it happens: a bar a step with rate and remaining time, the last lines of the log, Cancel.
#
# Pages are made here as HTML text, from what `jobs.Follower` saw; all of it is escaped.

MARKS = {"finished": "✓", "failed": "✗"}
STOPPING = "stopping: the notebook cleans up, and an unfinished publish is undone"
INSIST_SECONDS = 3.0
"""How long after the first wish to stop the second can be pressed: a double click must not kill."""


class LiveView:
    """Shows how far a run is.

    Parameters
    ----------
    cancel
        Called with False to stop it, with True to stop it at once.

    Attributes
    ----------
    widget
        The view as it is shown.
    """

    def __init__(self, cancel: Callable[[bool], None]) -> None:
        self._ask = cancel
        self._asked_at = 0.0
        self._head = ipywidgets.HTML("")
        self._steps = ipywidgets.HTML("")
        self._log = ipywidgets.HTML("")
        self.cancel_button = ipywidgets.Button(description="Cancel", button_style="warning")
        self.cancel_button.tooltip = "Interrupt the notebook and undo an unfinished publish"
        self.cancel_button.on_click(self._on_cancel)
        self.insist_button = ipywidgets.Button(description="Stop at once", button_style="danger")
        self.insist_button.tooltip = "Kill the notebook's kernel; resources that it created may remain"
        self.insist_button.on_click(self._on_insist)
        top = ipywidgets.HBox([self._head, self.cancel_button, self.insist_button])
        top.add_class("vmsnix-live-head")
        self.widget = ipywidgets.VBox([top, self._steps, self._log])
        self.widget.add_class("vmsnix-live")
        self.begin("")

    def begin(self, title: str, place: str = "") -> None:
        """Show a run that has just begun."""
        self._title, self._place, self._asked_at = title, place, 0.0
        self._steps.value = self._log.value = ""
        self._head.value = _head(title, place, "starting", "") + whole_bar(None)
        self.cancel_button.disabled = False
        self.insist_button.layout.display = "none"

    def show(self, look: Look) -> None:
        """Show how far the run is."""
        if look.cancelled and not self._asked_at:
            self._asked_at = time.monotonic()
        self.cancel_button.disabled = look.cancelled
        patience = time.monotonic() - self._asked_at > INSIST_SECONDS
        self.insist_button.layout.display = "" if look.cancelled and patience else "none"
        state = STOPPING if look.cancelled else "running"
        cells = f"cell {min(look.cells_done + 1, look.cells)} of {look.cells}" if look.cells else ""
        parts = [human_seconds(look.seconds), *([cells] if cells else [])]
        share = look.cells_done / look.cells if look.cells else None
        self._head.value = _head(self._title, self._place, state, ", ".join(parts)) + whole_bar(share)
        self._steps.value = steps_html(look.steps)
        self._log.value = log_html(look.tail)

    def _on_cancel(self, _button: object) -> None:
        if not self._asked_at:
            self._asked_at = time.monotonic()
            self.cancel_button.disabled = True
            self._ask(False)

    def _on_insist(self, _button: object) -> None:
        self.insist_button.layout.display = "none"
        self._ask(True)


def steps_html(steps: tuple[StepState, ...], *, notes: bool = True) -> Markup | str:
    """Return the table of steps: name, bar, how far, how fast, how long, and what each said last."""
    return fill(_STEPS, steps=[_step(step, notes=notes) for step in steps]) if steps else ""


def whole_bar(share: float | None) -> Markup:
    """Return a thin bar for the notebook as a whole: the share of its cells that ran, if that is known."""
    return fill(_WHOLE_BAR, share=share)


def log_html(lines: tuple[str, ...]) -> Markup | str:
    """Return the last lines of a log; the newest is in view (the box grows from its bottom)."""
    return fill(_LOG, text="\n".join(lines)) if lines else ""


def _head(title: str, place: str, state: str, more: str) -> Markup:
    return fill(_HEAD, title=title, place=place, state=state, more=more)


def _step(step: StepState, *, notes: bool) -> dict[str, object]:
    event = step.event
    seconds = event.seconds if step.ended else event.seconds + max(time.time() - step.heard_at, 0.0)
    share = _share(event)
    return {
        "name": event.step,
        "mark": MARKS.get(event.kind, ""),
        "state": event.kind if step.ended else "running",
        "percent": None if share is None else f"{100 * share:.0f}",
        "colour": {"finished": "vmsnix-good", "failed": "vmsnix-bad"}.get(event.kind, ""),
        "amount": _amount(event),
        "rate": _rate(event),
        "took": human_seconds(seconds),
        "to_go": _to_go(event),
        "note": step.notes[-1] if notes and step.notes and event.kind != "finished" else "",
    }


def _share(event: Event) -> float | None:
    """Return how much is done, from 0 to 1; ``None`` while nobody knows."""
    if event.kind == "finished":
        return 1.0
    if event.total:
        return min(max(event.done / event.total, 0.0), 1.0)
    return 0.05 if event.kind == "failed" else None


def _amount(event: Event) -> str:
    if event.unit == "percent":
        return f"{event.done:.0f} %"
    if event.unit == "bytes":
        done = human_bytes(event.done)
        return f"{done} of {human_bytes(event.total)}" if event.total else (done if event.done else "")
    if event.total:
        return f"{event.done:g} of {counted(int(event.total), event.unit.removesuffix('s'))}"
    return f"{event.done:g} {event.unit}" if event.done else ""


def _rate(event: Event) -> str:
    return f"{human_bytes(event.rate)}/s" if event.unit == "bytes" and event.rate else ""


def _to_go(event: Event) -> str:
    eta = event.eta if event.kind in ("advanced", "message") else None
    return human_seconds(eta) if eta else ""


_HEAD = """\
<h3>{{ title }}{% if place %} <span class="vmsnix-quiet">{{ place }}</span>{% endif %}</h3>
<p role="status"><b>{{ state }}</b> {{ more }}</p>
"""

_WHOLE_BAR = """\
<div class="vmsnix-bar vmsnix-whole {{ "vmsnix-unknown" if share is none else "" }}">
<div style="{% if share is not none %}width: {{ "%.0f" % (100 * share) }}%{% endif %}"></div></div>
"""

_STEPS = """\
<table class="vmsnix-steps">
<thead><tr><th>step</th><th></th><th>done</th><th>rate</th><th>time</th><th>left</th></tr></thead>
<tbody>
{% for step in steps %}
<tr class="vmsnix-step-{{ step.state }}">
<th>{{ step.mark }} {{ step.name }}</th>
<td>
{% if step.percent is none %}
<div class="vmsnix-bar vmsnix-unknown" role="progressbar" aria-label="{{ step.name }}"><div></div></div>
{% else %}
<div class="vmsnix-bar {{ step.colour }}" role="progressbar" aria-label="{{ step.name }}"
 aria-valuenow="{{ step.percent }}" aria-valuemin="0" aria-valuemax="100">
<div style="width: {{ step.percent }}%"></div></div>
{% endif %}
</td>
<td>{{ step.amount }}</td><td>{{ step.rate }}</td><td>{{ step.took }}</td><td>{{ step.to_go }}</td>
</tr>
{% if step.note %}
<tr class="vmsnix-note"><td></td><td colspan="5">{{ step.note }}</td></tr>
{% endif %}
{% endfor %}
</tbody></table>
"""

_LOG = """\
<div class="vmsnix-log" tabindex="0" role="log" aria-label="Log"><pre>{{ text }}</pre></div>
"""


__all__ = ["LiveView", "log_html", "steps_html"]


# What became of a run: the verdict, what it made, the files of its evidence, and its report in the page.


VERDICTS = {
    "done": ("✓", "vmsnix-good", "done"),
    "partial": ("!", "vmsnix-mixed", "partial"),
    "failed": ("✗", "vmsnix-bad", "failed"),
    "cancelled": ("■", "vmsnix-mixed", "cancelled"),
}
MADE = ("ami_id", "image_name", "snapshot_id", "region", "account")
WORDS = {
    archive.NOTEBOOK: "Executed notebook",
    archive.REPORT: "HTML report",
    archive.RESULT: "result.json",
    archive.LOG: "Log",
}


_SUMMARY = """\
<div class="vmsnix-verdict {{ style }}" role="status">
<h3>{{ about }}{% if dry %} <span class="vmsnix-chip">dry run: nothing was changed</span>{% endif %}</h3>
{% if error %}<p><b>{{ error }}</b></p>{% endif %}
{% for words in told %}<p>{{ words }}</p>{% endfor %}
{% for step in slow %}<p>Slow: {{ step.text }}</p>{% endfor %}
{% if undo_problem %}
<p class="vmsnix-error">It could not be undone: {{ undo_problem }}</p>
{% elif undone %}
<p>vmsnix deleted what the run had created:</p>
<ul>{% for one in undone %}<li><code>{{ one }}</code></li>{% endfor %}</ul>
{% elif undone is not none %}
<p>The run had created nothing: there was nothing to undo.</p>
{% endif %}
{% if made %}
<table>
{% for name, value in made %}<tr><th>{{ name }}</th><td><code>{{ value }}</code></td></tr>{% endfor %}
</table>
{% endif %}
<p class="vmsnix-quiet">run {{ run_id }}</p>
</div>
"""

_LINKS = """\
<div class="vmsnix-files">
{% for target, words in links %}<a href="{{ target }}">{{ words }}</a> {% endfor %}
{% if evidence.problem %}<p class="vmsnix-warning">{{ evidence.problem }}</p>{% endif %}
{% if evidence.place %}<p class="vmsnix-quiet">Saved in <code>{{ evidence.place }}</code></p>{% endif %}
</div>
"""

_REPORT = """\
<iframe class="vmsnix-report" title="Report of the run" sandbox="" srcdoc="{{ report }}"></iframe>
"""


class ResultView:
    """Shows one run that is over.

    Attributes
    ----------
    widget
        The view as it is shown.
    """

    def __init__(self) -> None:
        self._summary = ipywidgets.HTML("")
        # Only what goes through JupyterLab's own renderers has its links opened by JupyterLab.
        self._links = ipywidgets.Output()
        self._links.add_class("vmsnix-links")
        self.report_button = ipywidgets.ToggleButton(description="Show the report", value=False)
        self.report_button.observe(self._on_report, "value")
        self._report = ipywidgets.HTML("")
        self._text = ""
        self._steps = ipywidgets.HTML("")
        self.widget = ipywidgets.VBox(
            [self._summary, self._links, self._steps, self.report_button, self._report]
        )
        self.widget.add_class("vmsnix-result")
        self.clear()

    def clear(self) -> None:
        """Show nothing."""
        self._summary.value = ""
        self._links.outputs = ()
        self._set_report("", opened=False)

    def show(
        self,
        values: Mapping[str, Any],
        evidence: Evidence,
        seen: Look | None = None,
        *,
        open_report: bool = False,
    ) -> None:
        """Show a run.

        Parameters
        ----------
        values
            As ``result.json`` has them, or a row of the history.
        evidence
            Its files.
        seen
            How it went, for a run that was followed to its end.
        open_report
            Show its report at once.
        """
        self._summary.value = summary_html(values)
        undone = "undone" in values  # then what the step says of going on is no longer true
        self._steps.value = steps_html(seen.steps, notes=not undone) if seen else ""
        self._links.outputs = (
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"text/html": links_html(evidence), "text/plain": ""},
            },
        )
        self._set_report(evidence.report, opened=open_report)

    def _set_report(self, text: str, *, opened: bool) -> None:
        self._text = text
        self.report_button.layout.display = "" if text else "none"
        self.report_button.value = bool(text) and opened
        self._on_report()

    def _on_report(self, _change: object = None) -> None:
        shown = self.report_button.value and self._text
        self.report_button.description = "Hide the report" if shown else "Show the report"
        self._report.value = report_html(self._text) if shown else ""


def summary_html(values: Mapping[str, Any]) -> Markup:
    """Return the verdict, the error with its fix, and what the run made."""
    verdict = str(values.get("verdict") or values.get("status") or "failed")
    mark, style, word = VERDICTS.get(verdict, VERDICTS["failed"])
    took = values.get("seconds")
    between = "in" if verdict == "done" else "after"
    time = f" {between} {human_seconds(took)}" if isinstance(took, int | float) else ""
    error = values.get("failure") or values.get("error") or {}
    if not isinstance(error, dict):
        error = {"what": error}
    # Why it failed and its fix tell what was kept; after an undo nothing was.
    told = [] if "undone" in values else [error[part] for part in ("why", "fix") if error.get(part)]
    return fill(
        _SUMMARY,
        style=style,
        about=f"{mark} {values.get('runbook', '')}: {word}{time}",
        dry=_dry(values),
        error=error.get("what") or error.get("type"),
        told=[*told, *(values.get("problems") or ())],
        slow=values.get("slow") or (),
        undone=(values["undone"] or ()) if "undone" in values else None,
        undo_problem=values.get("undo_problem"),
        made=[(key.replace("_", " "), values[key]) for key in MADE if values.get(key)],
        run_id=values.get("run_id", ""),
    )


def links_html(evidence: Evidence) -> Markup:
    """Return links to the files, which JupyterLab opens in tabs of its own, and where the archive is."""
    links = [(link_target(path), WORDS.get(name, name)) for name, path in evidence.links.items()]
    return fill(_LINKS, links=links, evidence=evidence)


def report_html(report: str) -> Markup:
    """Return a report in a frame of its own, in which nothing runs."""
    return fill(_REPORT, report=report)


def _dry(values: Mapping[str, Any]) -> bool:
    given = values.get("parameters")
    return isinstance(given, dict) and given.get("dry_run") is True and values.get("status") == "done"


EVERY_SECONDS = 0.3
"""Between two looks at a run."""

_ABOUT = "<h3>{{ book.title }} {{ effect }}</h3><p>{{ book.description }}</p>"
_ASK = "<p>This deletes or disables resources {{ place }}. Type <code>{{ phrase }}</code> to confirm.</p>"
_MESSAGE = '<span class="{{ kind }}" role="status">{{ words }}</span>'


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
            tooltip="Runbooks, in the order of use",
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
        self.dry_button.tooltip = "Run it with dry_run: it shows the plan and changes nothing"
        self.dry_button.on_click(lambda _button: self._start(dry=True))
        self.default_button = ipywidgets.Button(description="Defaults", tooltip="Clear the form")
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
        name = catalog.full_name(runbook)
        if name not in catalog.names():
            self._say(f"The runbook {runbook} no longer exists.", wrong=True)
            return
        self.pick.value = name
        if values:
            self._form.fill(values)
        if self.job is None:
            self._turn_to(self._form_page)

    def look_at(self, row: Mapping[str, Any]) -> None:
        """Show what became of an earlier run, a row of the table `runs`."""
        if self.job is None:
            evidence = bring(str(row["run_id"]), self._bar.place)
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
        """The form of the runbook that is picked, made when it is first needed.

        The thread that finds out the account can be the first, between a pick and `_on_pick`.
        """
        name = self.pick.value
        with self._lock:
            if name not in self._forms:
                self._forms[name] = Form(catalog.find(name), self._on_form)
            return self._forms[name]

    def _on_pick(self, _change: object = None) -> None:
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
            self._about.value = fill(_ABOUT, book=book, effect=effect(book.side_effects))
        command = command_line(book, form.values(), sandbox=self._bar.place.sandbox)
        self._plan.value = plan_html(form, place=self._bar.words, command=command)
        dry = form.value(DRY_RUN) is True
        self.run_button.description = f"{'Dry run' if dry else 'Run'} {self._bar.words}"
        self.run_button.button_style = "danger" if form.destroys else "primary"
        self.dry_button.layout.display = "none" if dry or not form.has_dry_run else ""
        self._confirmation.layout.display = "" if form.destroys else "none"
        self._ask.value = fill(_ASK, place=self._bar.words, phrase=self._phrase)
        busy, wrong = self.job is not None, bool(form.problems)
        self.run_button.disabled = busy or wrong or not self._confirmed
        self.dry_button.disabled = busy or wrong
        self._say("Correct the marked values." if wrong else "", wrong=wrong)

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
        for name, one in form.fields.items():
            source = source_of(one.parameter)
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
            lost = f"The console lost the run {job.run_id} ({type(error).__name__}: {error})."
            self._say(f"{lost} The run continues; to check it, use `vmsnix runs`.", wrong=True)

    def _end(self, job: Job, seen: Look) -> None:
        outcome = dict(seen.outcome or {})
        evidence = bring(job.run_id, self._bar.place)
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
        self._message.value = fill(_MESSAGE, kind=kind, words=words) if words else ""


__all__ = ["RunPage"]
