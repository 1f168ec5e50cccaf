"""Runs a job of a workflow as GitHub's runner does, as far as our workflows use it: its `run` steps."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


def workflow(name: str) -> dict[Any, Any]:
    """Return a workflow; YAML takes its key ``on`` for the word true."""
    read: dict[Any, Any] = yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))
    read["on"] = read.pop(True)
    return read


@dataclass
class Job:
    """A job that runs in a folder.

    `context` has the contexts of expressions: ``vars``, ``matrix``, ``inputs``.
    """

    described: dict[str, Any]
    folder: Path
    context: dict[str, dict[str, str]]
    environment: dict[str, str]
    skip: tuple[str, ...] = ()
    printed: str = ""
    ran: list[str] = field(default_factory=list)

    def run(self) -> int:
        """Run the steps; return the exit code of the first that failed, 0 when none did."""
        self.context.setdefault("steps", {})
        failed = 0
        for step in self.described["steps"]:
            wanted = self.truth(step["if"]) if "if" in step else not failed
            if "run" not in step or step.get("name") in self.skip or not wanted:
                continue
            self.ran.append(step.get("name", ""))
            failed = self._step(step) or failed
        return failed

    @property
    def summary(self) -> str:
        """The text of the job's summary page."""
        path = self.folder / "summary.md"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def outputs(self, step: str) -> dict[str, str]:
        """Return the outputs of a step."""
        path = self.folder / f"outputs-{step}"
        return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)

    def truth(self, text: str) -> bool:
        """Return whether the condition of an ``if`` is true."""
        condition = EXPRESSION.sub(r"\1", text)
        if condition == "always()":
            return True
        name, unequal, other = condition.partition(" != ")
        assert unequal, f"this runner does not know {text!r}"
        return self.value(name) != other.strip("'")

    def text(self, text: object) -> str:
        """Return a text with its expressions replaced."""
        return EXPRESSION.sub(lambda match: self.value(match[1]), str(text))

    def value(self, expression: str) -> str:
        """Return the first part of ``a || b`` that is not empty."""
        for part in expression.split(" || "):
            found = part.strip("'") if part.startswith("'") or part == "false" else self._named(part)
            if found not in ("", "false"):
                return found
        return found

    def _named(self, name: str) -> str:
        room, _, rest = name.partition(".")
        if room == "steps":
            step, _, output = rest.partition(".outputs.")
            return self.outputs(step).get(output, "")
        return self.context[room].get(rest, "")

    def _step(self, step: dict[str, Any]) -> int:
        given = {**self.described.get("env", {}), **step.get("env", {})}
        environment = {
            **self.environment,
            **{name: self.text(value) for name, value in given.items()},
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(self.folder / f"outputs-{step.get('id', 'unnamed')}"),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
        }
        Path(environment["GITHUB_OUTPUT"]).touch()
        assert "${{" not in step["run"], "a template in a script is how strangers inject commands"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
        )
        self.printed += done.stdout + done.stderr
        return done.returncode


def clean_environment() -> dict[str, str]:
    """Return this process's variables without those of AWS, GitHub and vmsnix."""
    foreign = ("AWS_", "GITHUB_", "VMSNIX_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
