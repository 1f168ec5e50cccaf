"""What a run tells the GitHub Actions job that it is part of: step outputs and the job's summary.

Both are files that the job names by ``$GITHUB_OUTPUT`` and ``$GITHUB_STEP_SUMMARY``; elsewhere nothing is
written.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import RunError
from vmsnix_ops.progress import human_bytes, human_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYMBOLS = {"done": "✅", "failed": "❌", "partly": "⚠️", "interrupted": "⏹️"}
FACTS = (
    "ami_id",
    "image_name",
    "region",
    "account",
    "snapshot_id",
    "digest",
    "seconds",
    "run_id",
    "notebook",
    "report",
)
SUMMARY_BYTES = 900_000  # GitHub drops a step's summary of more than 1 MiB


def tell(values: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Append a run's result to the job's outputs and summary, where there is a job.

    Parameters
    ----------
    values
        Content of ``result.json``.
    environment
        Variables of the run.

    Raises
    ------
    RunError
        When a file that the job names cannot be written.
    """
    for variable, text in (("GITHUB_OUTPUT", outputs(values)), ("GITHUB_STEP_SUMMARY", summary(values))):
        place = environment.get(variable)
        if not place:
            continue
        try:
            with Path(place).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RunError(
                f"{variable} cannot be written: {place}.",
                why=f"{error.strerror}.",
                cure="Run inside a GitHub Actions step, or unset the variable.",
            ) from error


def outputs(values: Mapping[str, Any]) -> str:
    """Return a run's plain results in the form of ``$GITHUB_OUTPUT``: one output a key, tables left out.

    A value with several lines goes between two lines of a random word, which the value cannot hold by design.
    """
    lines = []
    for key, value in values.items():
        if isinstance(value, dict | list) or value is None:
            continue
        text = json.dumps(value) if isinstance(value, bool) else str(value)
        if "\n" in text or "\r" in text:
            word = f"end_{secrets.token_hex(16)}"
            lines += [f"{key}<<{word}", text, word]
        else:
            lines.append(f"{key}={text}")
    return "\n".join(lines) + "\n"


def summary(values: Mapping[str, Any]) -> str:
    """Return a run's result as Markdown for the job's summary page."""
    status = str(values["status"])
    stage = " (sandbox)" if values.get("sandbox") else ""
    lines = [f"## {SYMBOLS.get(status, '')} {values['runbook']}: {status}{stage}", ""]
    error = values.get("failure")
    if error:
        lines += [f"**{_cell(error['what'])}**", ""]
        lines += [f"{_cell(error[part])}  " for part in ("why", "cure") if error.get(part)]
        lines.append("")
    facts = [(key, values[key]) for key in FACTS if values.get(key) not in (None, "")]
    lines += _table(("", ""), [(key, _fact(key, value)) for key, value in facts])
    steps = values.get("steps")
    if isinstance(steps, list) and steps:
        rows = [
            (
                step.get("step", step.get("name", "")),
                step.get("status", ""),
                human_seconds(float(step.get("seconds") or 0)),
                human_bytes(float(step["bytes"])) if step.get("bytes") else "",
            )
            for step in steps
            if isinstance(step, dict)
        ]
        lines += ["", *_table(("step", "status", "time", "bytes"), rows)]
    for step in values.get("slow") or []:
        lines += ["", f"> Slow: {_cell(step['text'])}"]
    for table in values.get("tables") or []:
        lines += ["", f"### {_cell(table['title'])}", "", *_table(table["columns"], table["rows"])]
    for problem in values.get("problems") or []:
        lines += ["", f"> {_cell(problem)}"]
    text = "\n".join(lines) + "\n"
    return text if len(text.encode()) <= SUMMARY_BYTES else text[: SUMMARY_BYTES // 4] + "\n\n(cut)\n"


def _fact(key: str, value: object) -> str:
    if key == "seconds" and isinstance(value, int | float):
        return human_seconds(value)
    return f"`{value}`"


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> list[str]:
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def _cell(value: object) -> str:
    """Return a value as one line that cannot break out of a Markdown table or become HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
