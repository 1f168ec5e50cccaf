"""What became of a run: the verdict, what it made, the files of its evidence, and its report in the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

from vmsnix_ops.progress import human_seconds
from vmsnix_ops.runbooks.console.live import steps_html
from vmsnix_ops.runbooks.evidence import archive
from vmsnix_ops.text import html, html_link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.console.copies import Evidence
    from vmsnix_ops.runbooks.console.following import Look

VERDICTS = {
    "done": ("✓", "vmsnix-good", "done"),
    "partly": ("!", "vmsnix-mixed", "partly done"),
    "failed": ("✗", "vmsnix-bad", "failed"),
    "interrupted": ("■", "vmsnix-mixed", "interrupted"),
}
MADE = ("ami_id", "image_name", "snapshot_id", "region", "account")
WORDS = {
    archive.NOTEBOOK: "Executed notebook",
    archive.REPORT: "HTML report",
    archive.RESULT: "result.json",
    archive.LOG: "Log",
}


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


def summary_html(values: Mapping[str, Any]) -> str:
    """Return the verdict, the error with its cure, and what the run made."""
    verdict = str(values.get("verdict") or values.get("status") or "failed")
    mark, style, word = VERDICTS.get(verdict, VERDICTS["failed"])
    took = values.get("seconds")
    between = "in" if verdict == "done" else "after"
    time = f" {between} {human_seconds(took)}" if isinstance(took, int | float) else ""
    about = f"{values.get('runbook', '')}: {word}{time}"
    dry = ' <span class="vmsnix-chip">dry run: nothing was changed</span>' if _dry(values) else ""
    made = [(key, values[key]) for key in MADE if values.get(key)]
    rows = "".join(
        f"<tr><th>{key.replace('_', ' ')}</th><td><code>{html(str(value))}</code></td></tr>"
        for key, value in made
    )
    table = f"<table>{rows}</table>" if rows else ""
    undone = _undone(values)
    error = _error(values.get("failure") or values.get("error"), undone="undone" in values)
    problems = "".join(f"<p>{html(str(problem))}</p>" for problem in values.get("problems") or ())
    slow = "".join(f"<p>Slow: {html(str(step['text']))}</p>" for step in values.get("slow") or ())
    return (
        f'<div class="vmsnix-verdict {style}" role="status"><h3>{mark} {html(about)}{dry}</h3>'
        f"{error}{problems}{slow}{undone}{table}"
        f'<p class="vmsnix-quiet">run {html(str(values.get("run_id", "")))}</p></div>'
    )


def links_html(evidence: Evidence) -> str:
    """Return links to the files, which JupyterLab opens in tabs of its own, and where the archive is."""
    links = " ".join(
        f'<a href="{html_link(path)}">{html(WORDS.get(name, name))}</a>'
        for name, path in evidence.links.items()
    )
    problem = f'<p class="vmsnix-warning">{html(evidence.problem)}</p>' if evidence.problem else ""
    place = (
        f'<p class="vmsnix-quiet">Kept in <code>{html(evidence.place)}</code></p>' if evidence.place else ""
    )
    return f'<div class="vmsnix-files">{links}{problem}{place}</div>'


def report_html(report: str) -> str:
    """Return a report in a frame of its own, in which nothing runs."""
    return (
        f'<iframe class="vmsnix-report" title="Report of the run" sandbox="" srcdoc="{html(report)}">'
        "</iframe>"
    )


def _undone(values: Mapping[str, Any]) -> str:
    """Return what a cancelled publish had begun and what became of it."""
    if values.get("undo_problem"):
        words = f"It could not be undone: {values['undo_problem']}"
        return f'<p class="vmsnix-error">{html(words)}</p>'
    if "undone" not in values:
        return ""
    if not values["undone"]:
        return "<p>It had made nothing yet: there was nothing to undo.</p>"
    rows = "".join(f"<li><code>{html(str(one))}</code></li>" for one in values["undone"])
    return f"<p>What it had begun was removed:</p><ul>{rows}</ul>"


def _dry(values: Mapping[str, Any]) -> bool:
    given = values.get("parameters")
    return isinstance(given, dict) and given.get("dry_run") is True and values.get("status") == "done"


def _error(error: object, *, undone: bool) -> str:
    if not error:
        return ""
    if not isinstance(error, dict):
        return f"<p><b>{html(str(error))}</b></p>"
    parts = [f"<p><b>{html(str(error.get('what') or error.get('type')))}</b></p>"]
    if not undone:  # otherwise they tell what was kept, and it was not
        parts += [f"<p>{html(str(error[part]))}</p>" for part in ("why", "cure") if error.get(part)]
    return "".join(parts)
