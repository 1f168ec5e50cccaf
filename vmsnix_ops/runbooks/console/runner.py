"""The page Run: the list of runbooks, the form, the plan, the progress of a run, and its result."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops import files, outcomes
from vmsnix_ops.display import UNBROKEN
from vmsnix_ops.errors import ArchiveError, VmsnixError
from vmsnix_ops.progress import amount, human_bytes, human_seconds
from vmsnix_ops.records.result import is_dry_run, marked
from vmsnix_ops.region_names import ami_url
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.console import jobs
from vmsnix_ops.runbooks.console.forms import DRY_RUN, EXPECT_PLAN, Form, plan_html
from vmsnix_ops.runbooks.console.jobs import JobReader
from vmsnix_ops.runbooks.console.suggestions import USED, SuggestionCache, immediate, source_of
from vmsnix_ops.runbooks.console.widgets import ActiveHTML, button, row, stack, styled, with_hidden_label
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.runbooks.evidence.runs import open_archive
from vmsnix_ops.runbooks.execution.execute import same_parameters
from vmsnix_ops.runbooks.execution.side_effects import allowed_effects
from vmsnix_ops.runbooks.next_steps import NextStep, next_steps
from vmsnix_ops.templates import fill
from vmsnix_ops.text import link_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from markupsafe import Markup

    from vmsnix_ops.runbooks.catalog import Runbook
    from vmsnix_ops.runbooks.console.backends import Backend, BackendBar
    from vmsnix_ops.runbooks.console.jobs import Job, JobState, StepState
    from vmsnix_ops.runbooks.console.suggestions import Suggestion
    from vmsnix_ops.runbooks.evidence.runs import Archive, ArchivedRun

# Copies of evidence. JupyterLab can open only files below its folder, but the archive is in the state folder
# or on S3. Therefore the console copies the files of a run to the folder of the open notebook. An edited copy
# does not change the evidence.

COPIES_FOLDER = "runs"
MAX_COPIES = 30
"""Maximum number of runs whose copies are kept; older runs are copied again when they are opened."""
COPIED_FILES = (archive.NOTEBOOK, archive.REPORT, archive.LOG)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Copies of the files of a run."""

    location: str = ""  # in the archive: a folder, or an s3:// location
    links: Mapping[str, str] = field(default_factory=dict)  # file name: path relative to the open notebook
    report: str = ""  # the report as HTML; empty if there is none
    values: Mapping[str, Any] = field(default_factory=dict)  # content of result.json
    problem: str = ""  # which files are missing, and why


def copy_evidence(run_id: str, backend: Backend) -> Evidence:
    """Copy the files of a run to the folder of the open notebook."""
    try:
        settings = backend.settings()
        opened = open_archive(settings, environment=backend.environment)
        run = opened.find(run_id)
    except VmsnixError as error:
        return Evidence(problem=str(error))
    folder = Path(os.environ.get("JPY_SESSION_NAME", "")).absolute().parent / COPIES_FOLDER / run_id
    location = f"{settings.archive.rstrip('/')}/{run_id}"
    try:
        files.make_folder(folder)
        problem = _copy_files(opened, run, folder)
        copies = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in copies[MAX_COPIES:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        problem = f"Could not copy the files: {error.strerror}: {error.filename}."
        return Evidence(location, values=run.values, problem=problem)
    names = [
        name for name in (archive.AUDIT_PAGE, *COPIED_FILES, archive.RESULT) if (folder / name).is_file()
    ]
    report = folder / archive.REPORT
    return Evidence(
        location,
        {name: f"{COPIES_FOLDER}/{run_id}/{name}" for name in names},
        report.read_text(encoding="utf-8") if report.is_file() else "",
        run.values,
        problem,
    )


def _copy_files(opened: Archive, run: ArchivedRun, folder: Path) -> str:
    """Copy the files that exist, and return the problems with the others."""
    problems = []
    files.write(folder / archive.RESULT, json.dumps(run.values, indent=2, ensure_ascii=False) + "\n")
    pages = [archive.AUDIT_PAGE] if archive.AUDIT_PAGE in (run.values.get("files") or {}) else []
    for name in (*pages, *COPIED_FILES):
        try:
            files.write(folder / name, opened.read_file(run, name))
        except ArchiveError as error:
            problems.append(f"{error.what} {error.why}".strip())
    return " ".join(problems)


MARKS = {"finished": "✓", "failed": "✗"}
STOPPING = "stopping: the notebook cleans up, and an unfinished publish is undone"
KILL_DELAY_SECONDS = 3.0
"""Time after Cancel until the run can be killed, so that a double click does not kill it."""


class LiveView:
    """Shows the progress of a run: its steps, the last lines of its log, and a button to cancel it.

    `cancel` is called with False to cancel the run, and with True to kill its kernel.
    """

    def __init__(self, cancel: Callable[[bool], None]) -> None:
        self._cancel = cancel
        self._cancelled_at = 0.0
        self._head = ipywidgets.HTML("")
        self._steps = ipywidgets.HTML("")
        self._log = ipywidgets.HTML("")
        # The box scrolls and has the focus. Only its content is replaced, so that its position is kept.
        self._log_box = styled(ipywidgets.VBox([self._log], tabbable=True), "vmsnix-log")
        about = "Interrupt the notebook and undo an unfinished publish"
        self.cancel_button = button("Cancel", self._on_cancel, about, button_style="warning")
        about = "Kill the notebook's kernel; resources that it created may remain"
        self.kill_button = button("Stop at once", self._on_kill, about, button_style="danger")
        top = row("vmsnix-live-head", self._head, self.cancel_button, self.kill_button)
        self._notices = ActiveHTML()
        self._notices.html = _NOTICES
        self.widget = stack("vmsnix-live", top, self._notices, self._steps, self._log_box)
        self.start("")

    def start(self, title: str, backend: str = "") -> None:
        """Show a run that has just started."""
        self._title, self._backend, self._cancelled_at = title, backend, 0.0
        self._steps.value = ""
        self._show_log(())
        self._show_head("starting", "", None)
        self.cancel_button.disabled = False
        self.kill_button.layout.display = "none"

    def show(self, state: JobState) -> None:
        """Show the state of the run."""
        if state.cancelled and not self._cancelled_at:
            self._cancelled_at = time.monotonic()
        self.cancel_button.disabled = state.cancelled
        may_kill = state.cancelled and time.monotonic() - self._cancelled_at > KILL_DELAY_SECONDS
        self.kill_button.layout.display = "" if may_kill else "none"
        cells = f", cell {min(state.cells_done + 1, state.cells)} of {state.cells}" if state.cells else ""
        share = state.cells_done / state.cells if state.cells else None
        status = STOPPING if state.cancelled else "running"
        self._show_head(status, human_seconds(state.seconds) + cells, share)
        self._steps.value = steps_html(state.steps)
        self._show_log(state.log)

    def end(self, text: str) -> None:
        """Let the browser notify the user, if that is allowed."""
        self._notices.notice = text

    def _show_log(self, lines: tuple[str, ...]) -> None:
        self._log.value = log_html(lines)
        self._log_box.layout.display = "" if lines else "none"

    def _show_head(self, status: str, more: str, share: float | None) -> None:
        self._head.value = fill(
            _HEAD, title=self._title, backend=self._backend, status=status, more=more, share=share
        )

    def _on_cancel(self) -> None:
        if not self._cancelled_at:
            self._cancelled_at = time.monotonic()
            self.cancel_button.disabled = True
            self._cancel(False)

    def _on_kill(self) -> None:
        self.kill_button.layout.display = "none"
        self._cancel(True)


def steps_html(steps: tuple[StepState, ...], *, notes: bool = True) -> Markup | str:
    """Return the table of steps: name, bar, amount, rate, time, and the last message."""
    return fill(_STEPS, steps=[_step(step, notes=notes) for step in steps]) if steps else ""


def log_html(lines: tuple[str, ...]) -> Markup | str:
    """Return the last lines of a log."""
    return fill(_LOG, text="\n".join(lines)) if lines else ""


def _step(step: StepState, *, notes: bool) -> dict[str, object]:
    event = step.event
    seconds = event.seconds if step.ended else event.seconds + max(time.time() - step.updated_at, 0.0)
    eta = event.eta if event.kind in ("advanced", "message") else None
    share = 1.0 if event.kind == "finished" else event.fraction
    if share is None and event.kind == "failed":
        share = 0.05  # an empty bar would show no colour
    return {
        "name": event.step,
        "mark": MARKS.get(event.kind, ""),
        "state": event.kind if step.ended else "running",
        "percent": None if share is None else f"{100 * share:.0f}",
        "colour": {"finished": "vmsnix-good", "failed": "vmsnix-bad"}.get(event.kind, ""),
        "amount": amount(event) if event.done or event.total else "",
        "rate": f"{human_bytes(event.rate)}/s" if event.unit == "bytes" and event.rate else "",
        "took": human_seconds(seconds),
        "remaining": human_seconds(eta) if eta else "",
        "note": step.notes[-1] if notes and step.notes and event.kind != "finished" else "",
    }


_HEAD = """\
<h3>{{ title }}{% if backend %} <span class="vmsnix-quiet">{{ backend }}</span>{% endif %}</h3>
<p role="status"><b>{{ status }}</b> {{ more }}</p>
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
<td>{{ step.amount }}</td><td>{{ step.rate }}</td><td>{{ step.took }}</td><td>{{ step.remaining }}</td>
</tr>
{% if step.note %}
<tr class="vmsnix-note"><td></td><td colspan="5">{{ step.note }}</td></tr>
{% endif %}
{% endfor %}
</tbody></table>
"""

_NOTICES = '<p><button class="jupyter-button vmsnix-small" data-notices>Notify me when it ends</button></p>'

_LOG = """\
<pre role="log" aria-label="Log">{{ text }}</pre>
"""


EFFECTS = {
    "read_only": ("vmsnix-good", "read-only"),
    "creates": ("vmsnix-plain", "creates"),
    "changes": ("vmsnix-mixed", "changes"),
    "deletes": ("vmsnix-bad", "deletes"),
}
STATUSES = {
    "done": ("✓", "vmsnix-good", "done"),
    "partial": ("!", "vmsnix-mixed", "partial"),
    "failed": ("✗", "vmsnix-bad", "failed"),
    "cancelled": ("■", "vmsnix-mixed", "cancelled"),
}
SHOWN_VALUES = ("image_name", "channel", "snapshot_id", "instance_id", "region", "account")
NUMBERS = ("amis", "snapshots", "drifted", "unread", "planned", "kept", "changed", "deleted", "failed")
"""Numbers in ``result.json``."""
APPLICABLE = ("done", "partial")
"""Statuses of dry runs whose plan can be applied."""
LINK_TEXTS = {
    archive.AUDIT_PAGE: "Audit page",
    archive.NOTEBOOK: "Executed notebook",
    archive.REPORT: "HTML report",
    archive.RESULT: "result.json",
    archive.LOG: "Log",
}

_SUMMARY = """\
<div class="vmsnix-status {{ style }}" role="status">
<h3>{{ about }}{% if dry %} <span class="vmsnix-chip">dry run: nothing was changed</span>{% endif %}</h3>
{% if error %}<p><b>{{ error }}</b></p>{% endif %}
{% for text in texts %}<p>{{ text }}</p>{% endfor %}
{% for step in slow %}<p>Slow: {{ step.text }}</p>{% endfor %}
{% if undo_problem %}
<p class="vmsnix-error">It could not be undone: {{ undo_problem }}</p>
{% elif undone %}
<p>vmsnix deleted what the run had created:</p>
<ul>{% for one in undone %}<li><code>{{ one }}</code></li>{% endfor %}</ul>
{% elif undone is not none %}
<p>The run had created nothing: there was nothing to undo.</p>
{% endif %}
{% if facts %}
<table>
{% for name, value, link in facts %}
<tr><th>{{ name }}</th><td><code>{{ value }}</code>
{%- if link %} <a href="{{ link }}" target="_blank" rel="noopener noreferrer">AWS console</a>{% endif %}
</td></tr>
{% endfor %}
</table>
{% endif %}
<p class="vmsnix-quiet">run {{ run_id }}{% if fingerprint %}, plan {{ fingerprint }}{% endif %}</p>
</div>
{% for plan in plans %}
<section class="vmsnix-planned">
<h4>Plan: {{ plan.title }}</h4>
<div class="vmsnix-scroll" tabindex="0" role="region" aria-label="Plan">
<table class="vmsnix-table">
<thead><tr>{% for name in plan.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in plan.rows %}
<tr>{% for cell in row %}
<td{% if cell|string|length <= unbroken %} class="vmsnix-whole"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% else %}
<tr><td colspan="{{ plan.columns | length }}">Nothing to do.</td></tr>
{% endfor %}
</tbody></table></div></section>
{% endfor %}
"""

APPLY = "Apply exactly this plan"
_CONFIRM = """\
<p>This deletes or disables resources {{ backend }}. Type <code>{{ phrase }}</code> to confirm.</p>
"""
_MESSAGE = '<span class="{{ kind }}" role="status">{{ text }}</span>'

_LINKS = """\
<div class="vmsnix-files">
{% for file, text in links %}<a data-file="{{ file }}">{{ text }}</a> {% endfor %}
{% if evidence.problem %}<p class="vmsnix-warning">{{ evidence.problem }}</p>{% endif %}
{% if evidence.location %}<p class="vmsnix-quiet">Saved in <code>{{ evidence.location }}</code></p>{% endif %}
</div>
"""

_REPORT = """\
<iframe class="vmsnix-report" title="Report of the run" sandbox="allow-scripts"
 srcdoc="{{ report }}"></iframe>
"""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A dry run whose plan can be applied."""

    runbook: Runbook
    given: Mapping[str, object]  # the parameters of the run that applies exactly this plan
    cwd: Path | None  # its working directory: that of the dry run, if it exists

    @property
    def deletes(self) -> bool:
        """Whether the run deletes or disables resources, so that it must be confirmed."""
        return allowed_effects(self.runbook.side_effects, self.given) == "deletes"


def planned_run(values: Mapping[str, Any]) -> PlannedRun | None:
    """Return the run that applies the plan of a dry run; ``None`` if its plan cannot be applied.

    A `ParameterError` if the parameters of the runbook have changed since the dry run.
    """
    fingerprint, name = values.get("plan_fingerprint"), str(values.get("runbook"))
    status = values.get("status")
    if not (is_dry_run(values) and fingerprint and status in APPLICABLE and name in catalog.names()):
        return None
    runbook, recorded = catalog.find(name), values.get("parameters")
    if not isinstance(recorded, dict) or EXPECT_PLAN not in recorded:
        return None
    given = same_parameters(runbook, recorded, {DRY_RUN: False, EXPECT_PLAN: fingerprint})
    cwd = Path(str(values.get("cwd") or ""))
    return PlannedRun(runbook, given, cwd if cwd.is_absolute() and cwd.is_dir() else None)


class ResultView:
    """Shows the outcome of a run, and of a dry run its plan with a button that applies it.

    `apply` is called when the button is pressed. `target` returns the backend in words, and the account.
    `open_form` opens the form of a runbook that usually comes next, with values.
    """

    def __init__(
        self,
        apply: Callable[[], None],
        target: Callable[[], tuple[str, str]],
        open_form: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self._target, self._open_form = target, open_form
        self.planned: PlannedRun | None = None
        self._summary = ipywidgets.HTML("")
        self._confirm_text = ipywidgets.HTML("")
        self.confirm = ipywidgets.Text(continuous_update=True, description="Confirm")
        self.confirm.observe(lambda _change: self.draw(), "value")
        self._confirmation = stack("vmsnix-confirm", self._confirm_text, self.confirm)
        about = "Run it without dry_run; refuse it if the plan has changed since"
        self.apply_button = button(APPLY, apply, about, disabled=True)
        self._message = ipywidgets.HTML("")
        buttons = row("vmsnix-buttons", self.apply_button, self._message)
        self._apply_box = stack("vmsnix-apply", self._confirmation, buttons)
        self.next = row("vmsnix-buttons")
        self._links = ActiveHTML()
        self.report_button = ipywidgets.ToggleButton(description="Show the report", value=False)
        self.report_button.observe(self._on_report, "value")
        self._report = ipywidgets.HTML("")
        self._text = ""
        self._steps = ipywidgets.HTML("")
        above = (self._summary, self._apply_box, self.next, self._links, self._steps)
        self.widget = stack("vmsnix-result", *above, self.report_button, self._report)
        self.clear()

    def clear(self) -> None:
        """Show nothing."""
        self._summary.value = ""
        self.offer({})
        self._offer_next([])
        self._links.html = ""
        self._set_report("", opened=False)

    def show(
        self,
        values: Mapping[str, Any],
        evidence: Evidence,
        state: JobState | None = None,
        *,
        channels: Sequence[str] = (),
        open_report: bool = False,
    ) -> None:
        """Show a run: the content of ``result.json``, or a row of the history.

        `state` is the last state of a run that the console started, `channels` the setting.
        """
        self._summary.value = summary_html(values)
        self.offer(values)
        self._offer_next(next_steps(values, channels))
        notes = "undone" not in values  # after an undo, a note about continuing is no longer true
        self._steps.value = steps_html(state.steps, notes=notes) if state else ""
        self._links.html = links_html(evidence)
        self._set_report(evidence.report, opened=open_report)

    def offer(self, values: Mapping[str, Any]) -> None:
        """Offer to apply the plan of a run; of no run if `values` is empty."""
        problem = ""
        try:
            self.planned = planned_run(values)
        except VmsnixError as error:
            self.planned, problem = None, f"This plan can no longer be applied. {error}"
        self.confirm.value = ""
        self.draw()
        self.show_message(problem)

    def _offer_next(self, steps: Sequence[NextStep]) -> None:
        """Show a button for each runbook that usually comes next."""
        old, about = self.next.children, "Open its form with these values"
        self.next.children = [
            button(
                f"Next: {one}", partial(self._open_form, one.runbook, one.values), about, icon="arrow-right"
            )
            for one in steps
        ]
        self.next.layout.display = "" if steps else "none"
        for each in old:
            each.close()

    def draw(self) -> None:
        """Update the button and the confirmation, for the current account."""
        planned, (words, account) = self.planned, self._target()
        deletes = planned is not None and planned.deletes
        with self.apply_button.hold_sync():  # in one message: it is never enabled without a confirmation
            self.apply_button.description = f"{APPLY} {words}"
            self.apply_button.button_style = "danger" if deletes else "primary"
            self.apply_button.disabled = planned is None or not self.confirmed
        phrase = self._phrase(account)
        self._confirm_text.value = fill(_CONFIRM, backend=words, phrase=phrase) if deletes else ""
        self._confirmation.layout.display = "" if deletes else "none"
        self.apply_button.layout.display = "" if planned is not None else "none"

    @property
    def confirmed(self) -> bool:
        """Whether the plan may be applied: a plan that deletes needs the typed words."""
        if self.planned is None or not self.planned.deletes:
            return self.planned is not None
        _words, account = self._target()
        return bool(account) and self.confirm.value.strip() == self._phrase(account)

    def _phrase(self, account: str) -> str:
        return f"{self.planned.runbook.name} {account}".strip() if self.planned is not None else ""

    def show_message(self, text: str) -> None:
        """Show why the plan cannot be applied."""
        self._message.value = fill(_MESSAGE, kind="vmsnix-error", text=text) if text else ""
        self._apply_box.layout.display = "" if text or self.planned is not None else "none"

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
    """Return the status, the error with its fix, and the results of a run."""
    status = str(values.get("status") or "failed")
    mark, style, word = STATUSES.get(status, STATUSES["failed"])
    took = values.get("seconds")
    preposition = "in" if status == "done" else "after"
    time = f" {preposition} {human_seconds(took)}" if isinstance(took, int | float) else ""
    error = values.get("failure") or values.get("error") or {}
    if not isinstance(error, dict):
        error = {"what": error}
    # Reason and fix of an error can mention kept resources; after an undo, there are none.
    texts = [] if "undone" in values else [error[part] for part in ("why", "fix") if error.get(part)]
    return fill(
        _SUMMARY,
        style=style,
        about=f"{mark} {values.get('runbook', '')}: {word}{time}",
        dry=is_dry_run(values),
        error=error.get("what") or error.get("type"),
        texts=[*texts, *(values.get("problems") or ())],
        slow=values.get("slow") or (),
        undone=(values["undone"] or ()) if "undone" in values else None,
        undo_problem=values.get("undo_problem"),
        plans=(values.get("tables") or ()) if is_dry_run(values) else (),
        fingerprint=values.get("plan_fingerprint") if is_dry_run(values) else "",
        unbroken=UNBROKEN,
        facts=list(_facts(values)),
        run_id=values.get("run_id", ""),
    )


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Yield what a run found or made: name, value, and the address in the AWS console (not of a sandbox)."""
    amis, region = values.get("amis"), values.get("region")
    by_region = amis if isinstance(amis, dict) and amis else {region: values.get("ami_id")}
    for where, ami_id in by_region.items():
        if ami_id:
            link = ami_url(where or "", ami_id) if values.get("endpoint") == "aws" else ""
            yield f"AMI in {where}" if where else "AMI", marked({**values, "ami_id": ami_id})["ami_id"], link
    yield from ((key.replace("_", " "), values[key], "") for key in SHOWN_VALUES if values.get(key))
    findings = (*outcomes.SEVERITIES, "acknowledged")
    for title, prefix, names in (("result", "", NUMBERS), ("findings", "findings_", findings)):
        known = {name: values[prefix + name] for name in names if isinstance(values.get(prefix + name), int)}
        if known:
            parts = [
                f"{name}: {number:,}".replace("amis", "AMIs") for name, number in known.items() if number
            ]
            yield title, ", ".join(parts) or "none", ""


def links_html(evidence: Evidence) -> Markup:
    """Return links to the copied files, and the location of the evidence."""
    links = [(link_target(path), LINK_TEXTS.get(name, name)) for name, path in evidence.links.items()]
    return fill(_LINKS, links=links, evidence=evidence)


def report_html(report: str) -> Markup:
    """Return a report in a frame of no origin: its scripts, which sort its tables, reach nothing outside."""
    return fill(_REPORT, report=report)


POLL_SECONDS = 0.3

_ABOUT = """\
<h3>{{ book.title }} <span class="vmsnix-badge {{ kind }}">{{ effect }}</span></h3>
<p>{{ book.description }}</p>
"""
_MODIFIED = """\
<p>{{ text }} {{ fix }}</p>
"""


class RunPage:
    """Shows the form of a runbook, the progress of its run, and the result.

    `ended` is called when a run has ended, in the thread that watched it.
    """

    def __init__(self, bar: BackendBar, ended: Callable[[], None]) -> None:
        self._bar, self._ended = bar, ended
        self._forms: dict[str, Form] = {}
        self._backend_known = False
        self._defaults: Mapping[str, str] = {}
        self._lock = threading.RLock()
        self._suggestions = SuggestionCache()
        self.job: Job | None = None  # the current run
        self._new_token()
        books = catalog.runbooks()
        self.pick = ipywidgets.Select(
            options=[
                (f"{book.number:02d}  {book.name}{' (own)' if book.own else ''}", book.name) for book in books
            ],
            rows=max(len(books), 8),
            tooltip="Runbooks, in the order of use",
        )
        with_hidden_label(styled(self.pick, "vmsnix-pick-runbook"), "Runbooks")
        self.pick.observe(self._on_pick, "value")
        self._build()
        self._on_pick()

    def _build(self) -> None:
        self._about = ipywidgets.HTML("")
        self._fields = ipywidgets.VBox([])
        self._plan = ipywidgets.HTML("")
        self._confirm_text = ipywidgets.HTML("")
        self.confirm = ipywidgets.Text(continuous_update=True, description="Confirm")
        self.confirm.observe(self._refresh, "value")
        self._confirmation = stack("vmsnix-confirm", self._confirm_text, self.confirm)
        self._modified_text = ipywidgets.HTML("")
        self.modified = ipywidgets.Checkbox(description="Run the modified notebook", indent=False)
        self.modified.observe(self._refresh, "value")
        self._modified_notebook = stack("vmsnix-modified", self._modified_text, self.modified)
        self.run_button = button("Run", lambda: self._start(dry=False), button_style="primary")
        about = "Run it with dry_run: it shows the plan and changes nothing"
        self.dry_button = button("Dry run", lambda: self._start(dry=True), about)
        self.default_button = button("Defaults", lambda: self._form.fill({}), "Clear the form")
        self._message = ipywidgets.HTML("")
        buttons = (self.run_button, self.dry_button, self.default_button, self._message)
        # Always visible, also below a long form.
        foot = stack(
            "vmsnix-foot", self._modified_notebook, self._confirmation, row("vmsnix-buttons", *buttons)
        )
        self._form_page = stack("vmsnix-page", self._fields, self._plan, foot)
        self.live = LiveView(self._cancel)
        self.result = ResultView(self._apply_plan, lambda: (self._bar.words, self._account), self.open)
        back = partial(self._show_page, self._form_page)
        self.back_button = button("Back to the form", back, icon="arrow-left")
        about = "Open the runbook's form with the parameters of this run"
        self.again_button = button("Fill in its form", lambda: self.open(*self._shown), about)
        self._shown: tuple[str, Mapping[str, object]] = ("", {})  # runbook and parameters of the shown run
        above = row("vmsnix-buttons", self.back_button, self.again_button)
        self._result_page = stack("vmsnix-page", above, self.result.widget)
        self._pages = (self._form_page, styled(self.live.widget, "vmsnix-page"), self._result_page)
        right = stack("vmsnix-main", self._about, *self._pages)
        self.widget = row("vmsnix-run", self.pick, right)
        self._show_page(self._form_page)

    def open(self, runbook: str, values: Mapping[str, object]) -> None:
        """Show the form of a runbook, filled in; values for parameters that no longer exist are ignored."""
        name = catalog.full_name(runbook)
        if name not in catalog.names():
            self._show_message(f"The runbook {runbook} no longer exists.", error=True)
            return
        self.pick.value = name
        if values:
            self._form.fill(values)
        if self.job is None:
            self._show_page(self._form_page)

    def show_run(self, row: Mapping[str, Any]) -> None:
        """Show a past run: a row of the table ``runs``."""
        if self.job is None:
            evidence = copy_evidence(str(row["run_id"]), self._bar.backend)
            values = {**row, **evidence.values}
            given = values.get("parameters") or {}
            given = json.loads(given) if isinstance(given, str) else given
            self._shown = (str(values.get("runbook")), given)
            self.result.show(values, evidence, channels=self._channels(), open_report=True)
            self._show_page(self._result_page)

    def backend_changed(self) -> None:
        """Show the new backend, and the newest run that is running there, if any."""
        self._backend_known = True
        self.result.offer({})  # the plan of a run on the other backend
        self._defaults = parameters.defaults_in_use(self._bar.backend.environment)
        with self._lock:
            for form in self._forms.values():
                form.show_help(self._defaults)
        self.account_changed()
        self._suggest()
        running = jobs.running_jobs(self._bar.backend) if self.job is None else []
        if running:
            self._watch(running[-1])

    def account_changed(self) -> None:
        """Show the account of the backend."""
        self.confirm.value = self.result.confirm.value = ""
        self.result.draw()
        self._refresh()

    @property
    def _form(self) -> Form:
        """The form of the selected runbook, created when it is first needed.

        The thread that reads the account can be the first to need it, between a selection and `_on_pick`.
        """
        name = self.pick.value
        with self._lock:
            if name not in self._forms:
                self._forms[name] = Form(catalog.find(name), self._on_form)
                self._forms[name].show_help(self._defaults)
            return self._forms[name]

    def _on_pick(self, _change: object = None) -> None:
        self.modified.value = False
        self._fields.children = [self._form.widget]
        self._on_form()
        if self.job is None:
            self._show_page(self._form_page)
        self._suggest()

    def _on_form(self) -> None:
        self.confirm.value = ""  # a confirmation is for the values that were shown
        self._refresh()

    def _refresh(self, _change: object = None) -> None:
        """Update everything around the fields."""
        with self._lock:  # the thread that watches a run also calls this
            if self.pick.value in self._forms:
                self._draw()

    def _draw(self) -> None:
        form, book = self._form, self._form.runbook
        if self.job is None:
            kind, effect = EFFECTS[book.side_effects]
            self._about.value = fill(_ABOUT, book=book, kind=kind, effect=effect)
        values = form.confirmed_values(self._account or "ACCOUNT")
        command = parameters.command_line(book, values, sandbox=self._bar.backend.sandbox, yes=form.deletes)
        self._plan.value = plan_html(form, backend=self._bar.words, command=command)
        dry = form.value(DRY_RUN) is True
        busy, invalid = self.job is not None, bool(form.problems)
        refused = self._draw_modified(form)
        with self.run_button.hold_sync():  # in one message: a run that needs a confirmation is never enabled
            self.run_button.description = f"{'Dry run' if dry else 'Run'} {self._bar.words}"
            self.run_button.button_style = "danger" if form.deletes else "primary"
            self.run_button.disabled = busy or invalid or refused or not self._confirmed
        self.dry_button.layout.display = "none" if dry or not form.has_dry_run else ""
        self._confirmation.layout.display = "" if form.deletes else "none"
        self._confirm_text.value = fill(_CONFIRM, backend=self._bar.words, phrase=self._phrase)
        self.dry_button.disabled = busy or invalid
        self._show_message("Correct the marked values." if invalid else "", error=invalid)

    def _draw_modified(self, form: Form) -> bool:
        """Show whether the notebook was modified; return whether it may therefore not run."""
        book, text, needed, refused = form.runbook, "", False, False
        try:
            _, modified = catalog.content(book)
            if modified:
                text = f"{book.path.name} was modified: its cells differ from those of the package."
                needed = form.effect != "read_only" and not self._bar.backend.sandbox
                refused = needed and not self.modified.value
        except VmsnixError as error:
            text, refused = f"{error.what} {error.why}", True
        self._modified_notebook.layout.display = "" if text else "none"
        self._modified_text.value = fill(_MODIFIED, text=text, fix=catalog.restore(book)) if text else ""
        self.modified.layout.display = "" if needed else "none"
        return refused

    @property
    def _account(self) -> str:
        return self._bar.caller.account if self._bar.caller else ""

    @property
    def _phrase(self) -> str:
        return f"{self.pick.value} {self._account}".strip()

    @property
    def _confirmed(self) -> bool:
        if not self._form.deletes:
            return True
        return bool(self._account) and self.confirm.value.strip() == self._phrase

    def _suggest(self) -> None:
        if not self._backend_known:
            return
        form, backend = self._form, self._bar.backend
        wanted = {name: source for name, one in form.fields.items() if (source := source_of(one.parameter))}
        known = {source: immediate(backend, source) for source in wanted.values()}

        def suggest(source: str, found: list[Suggestion], problem: str) -> None:
            if backend is not self._bar.backend:  # it can have been switched meanwhile
                return
            if source == USED:
                for name in form.fields:
                    parameter = f"{form.runbook.name}.{name}"
                    form.suggest(name, USED, [one for one in found if one.parameter == parameter])
            for name in (name for name, of in wanted.items() if of == source):
                form.suggest(name, source, known[source] + found, problem)

        for name, source in wanted.items():
            form.suggest(name, source, known[source])
        for source in dict.fromkeys((USED, *wanted.values())):
            self._suggestions.request(backend, source, partial(suggest, source))

    def _new_token(self) -> None:
        self._token = secrets.token_hex(8)

    def _start(self, *, dry: bool) -> None:
        """Start a run. This uses the token, so that the second click of a double click starts nothing."""
        token, self._token = self._token, ""
        if not token:
            return
        form = self._form
        form.check()
        values = form.values() | {DRY_RUN: True} if dry else form.confirmed_values(self._account)
        try:
            if form.problems:
                form.focus_problem()
                self._new_token()
            elif dry or self._confirmed:
                confirmed = form.deletes and not dry
                job = jobs.start(
                    form.runbook, values, self._bar.backend, confirmed=confirmed, modified=self.modified.value
                )
                self._watch(job)
            else:
                self.confirm.focus()
                self._new_token()
        except VmsnixError as error:
            self._new_token()
            self._show_message(str(error), error=True)

    def _apply_plan(self) -> None:
        """Start the run that applies the plan of the shown dry run; a second click starts nothing."""
        token, self._token = self._token, ""
        planned = self.result.planned
        if not token or planned is None or not self.result.confirmed:
            self._token = token
            return
        try:
            job = jobs.start(
                planned.runbook, planned.given, self._bar.backend, confirmed=planned.deletes, cwd=planned.cwd
            )
        except VmsnixError as error:
            self._new_token()
            self.result.show_message(str(error))
        else:
            self._watch(job)

    def _watch(self, job: Job) -> None:
        """Show the progress of a job until it ends."""
        self.job, self._token = job, ""
        self._bar.lock(locked=True)
        if job.runbook != self.pick.value and job.runbook in catalog.names():
            self.pick.value = job.runbook
        self._about.value = ""
        self.live.start(job.title, self._bar.words)
        self._refresh()
        self._show_page(self.live.widget)
        self.live.cancel_button.focus()
        name = f"watch {job.run_id}"
        threading.Thread(target=self._poll, args=(job,), name=name, daemon=True).start()

    def _poll(self, job: Job) -> None:
        try:
            reader = JobReader(job, self._bar.backend.environment)
            state = reader.read()
            while state.outcome is None:
                self.live.show(state)
                time.sleep(POLL_SECONDS)
                state = reader.read()
            self._end(job, state)
        except Exception as error:  # noqa: BLE001 - an error in a thread would not be shown
            self._allow_next_run()
            self._show_page(self._form_page)
            lost = f"Could not read the progress of the run {job.run_id} ({type(error).__name__}: {error})."
            self._show_message(f"{lost} The run continues; to check it, use `vmsnix runs`.", error=True)

    def _end(self, job: Job, state: JobState) -> None:
        outcome = dict(state.outcome or {})
        evidence = copy_evidence(job.run_id, self._bar.backend)
        values = {"seconds": state.seconds, **evidence.values, **outcome}
        self._shown = (job.runbook, job.given)
        dry = job.given.get(DRY_RUN) is True
        shown = dry and outcome.get("status") == "done" and not values.get("tables")
        self.result.show(values, evidence, state, channels=self._channels(), open_report=shown)
        self._allow_next_run()
        self._show_page(self._result_page)
        self.back_button.focus()
        took = human_seconds(state.seconds)
        self.live.end(f"{job.runbook}: {outcome.get('status', 'failed')} after {took} (run {job.run_id})")
        self._ended()

    def _channels(self) -> tuple[str, ...]:
        try:
            return self._bar.backend.settings().channels
        except VmsnixError:
            return ()

    def _allow_next_run(self) -> None:
        self.job = None
        self._suggestions.clear()
        self._bar.lock(locked=False)
        self._new_token()
        self._refresh()
        self._suggest()

    def _cancel(self, kill: bool) -> None:
        if self.job is not None:
            self.job.cancel(kill=kill)

    def _show_page(self, page: Any) -> None:
        for each in self._pages:
            each.layout.display = "" if each is page else "none"

    def _show_message(self, text: str, *, error: bool) -> None:
        kind = "vmsnix-error" if error else "vmsnix-quiet"
        self._message.value = fill(_MESSAGE, kind=kind, text=text) if text else ""
