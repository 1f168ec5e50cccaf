"""Write the result of a run to the step outputs and the summary of a GitHub Actions job.

The variables ``GITHUB_OUTPUT`` and ``GITHUB_STEP_SUMMARY`` contain the paths of these files. Outside of
GitHub Actions, nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.display import make_table, steps_table
from vmsnix_ops.errors import RunError
from vmsnix_ops.progress import human_seconds
from vmsnix_ops.records.result import is_dry_run, marked
from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.text import github_value, markdown, markdown_code

if TYPE_CHECKING:
    from collections.abc import Mapping

SYMBOLS = {"done": "✅", "failed": "❌", "partial": "⚠️", "cancelled": "⏹️"}
FACTS = (
    "ami_id",
    "image_name",
    "region",
    "account",
    "snapshot_id",
    "digest",
    "seconds",
    "plan_fingerprint",
    "run_id",
    "notebook",
    "report",
)
SUMMARY_BYTES = 900_000  # GitHub drops a step's summary of more than 1 MiB


def write(values: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Append a run's result to the job's outputs and summary; do nothing outside of GitHub Actions."""
    for variable, text in (("GITHUB_OUTPUT", outputs(values)), ("GITHUB_STEP_SUMMARY", summary(values))):
        path = environment.get(variable)
        if not path:
            continue
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(Redactor(secret_values(environment)).text(text))
        except OSError as error:
            raise RunError(
                f"Could not write to {variable}: {path}.",
                why=f"{error.strerror}.",
                fix="Run inside a GitHub Actions step, or unset the variable.",
            ) from error


def outputs(values: Mapping[str, Any]) -> str:
    """Return the texts and numbers of a result in the format of ``GITHUB_OUTPUT``, without its tables."""
    return "".join(
        github_value(str(key), json.dumps(value) if isinstance(value, bool) else value)
        for key, value in values.items()
        if value is not None and not isinstance(value, dict | list)
    )


def summary(values: Mapping[str, Any]) -> str:
    """Return a run's result as Markdown for the job's summary page."""
    status = str(values["status"])
    note = " (dry run: nothing was changed)" if is_dry_run(values) else ""
    note += " (sandbox)" if values.get("sandbox") else ""
    note += " (modified notebook)" if values.get("modified") else ""
    symbol = SYMBOLS.get(status, "")
    if status == "partial" and not values.get("failure"):
        note = f", evidence incomplete{note}"
    lines = [f"## {symbol} {markdown(values['runbook'])}: {markdown(status)}{note}", ""]
    error = values.get("failure")
    if error:
        lines += [f"**{markdown(error['what'])}**", ""]
        lines += [f"{markdown(error[part])}  " for part in ("why", "fix") if error.get(part)]
        lines.append("")
    shown = marked(values)
    facts = [(key, shown[key]) for key in FACTS if shown.get(key) not in (None, "")]
    rows = [(markdown(key), _fact(key, value)) for key, value in facts]
    # The values are code, so this is not a table of `display`.
    lines += [f"| {' | '.join(cells)} |" for cells in (("", ""), ("---", "---"), *rows)]
    steps = values.get("steps")
    if isinstance(steps, list) and steps:
        lines += ["", steps_table(step for step in steps if isinstance(step, dict))._repr_markdown_()]
    for step in values.get("slow") or []:
        lines += ["", f"> Slow: {markdown(step['text'])}"]
    for table in values.get("tables") or []:
        lines += ["", f"### {markdown(table['title'])}", ""]
        lines.append(make_table(table["columns"], table["rows"])._repr_markdown_())
    for problem in values.get("problems") or []:
        lines += ["", f"> {markdown(problem)}"]
    text = "\n".join(lines) + "\n"
    if len(text.encode()) <= SUMMARY_BYTES:
        return text
    return text[: SUMMARY_BYTES // 4].rpartition("\n")[0] + "\n\n(cut)\n"


def _fact(key: str, value: object) -> str:
    if key == "seconds" and isinstance(value, int | float):
        return human_seconds(value)
    return markdown_code(value)
