"""Measure the overhead of a run over plain papermill, and the time that the command line needs.

``python -m benchmarks.overhead --repeat 5 --json FILE`` starts each program anew for each measurement. The
programs take turns, so that a busy minute affects all of them. All figures are medians. `cpu` is the CPU time
of the program and of everything that it started, including kernels: use it on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.runbooks.shelf import notebook

ROOT = Path(__file__).parents[1]
START_UP = {
    "python": ["-c", "pass"],
    "click": ["-c", "import click"],
    "vmsnix --help": ["-m", "vmsnix_ops", "--help"],
    "vmsnix publish --help": ["-m", "vmsnix_ops", "publish", "--help"],
    "vmsnix runs": ["-m", "vmsnix_ops", "runs"],
    "completion": ["-m", "vmsnix_ops"],
}
REFUSED = {
    "a refused call": ["-m", "vmsnix_ops", "publish", "--image", "./missing", "--region", "us-esat-1"],
    "a refused fleet": ["-m", "vmsnix_ops", "fleet", "fleet.toml"],
}
"""Calls with mistakes, which must be listed in less than a second; they end with the exit code 2."""
FLEET = """
[[entry]]
runbook = "publish-ami"
images = ["./missing", "./absent"]
regions = ["us-esat-1", "eu-west-1"]
"""
PAPERMILL = """
from papermill.execute import execute_notebook
notebook, out = "{folder}/10-empty-book.ipynb", "{folder}/out.ipynb"
execute_notebook(notebook, out, kernel_name="python3", progress_bar=False)
"""
RUN = """
from pathlib import Path
from vmsnix_ops.runbooks.execution.execute import run
assert run("empty-book", folder=Path("{folder}"), record={record}).status == "done"
"""


@dataclass(frozen=True)
class Took:
    """The figures of one start of a program."""

    seconds: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=5, help="number of measurements")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmsnix-overhead-") as name:
        folder = Path(name)
        (folder / "10-empty-book.ipynb").write_text(json.dumps(notebook("1")))
        (folder / "fleet.toml").write_text(FLEET)
        figures = measure(folder, options.repeat)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """Return median seconds and CPU seconds of every program."""
    programs = {
        **START_UP,
        **REFUSED,
        "papermill": ["-c", PAPERMILL.format(folder=folder)],
        "run": ["-c", RUN.format(folder=folder, record=False)],
        "run, with its row in the history": ["-c", RUN.format(folder=folder, record=True)],
    }
    taken: dict[str, list[Took]] = {name: [] for name in programs}
    for _ in range(repeat + 1):
        for name, words in programs.items():
            code = 2 if name in REFUSED else 0
            taken[name].append(once(words, folder, code=code, completion=name == "completion"))
    return {
        name: {
            "seconds": statistics.median(one.seconds for one in measured),
            "cpu": statistics.median(one.cpu for one in measured),
        }
        for name, (_fills_the_page_cache, *measured) in taken.items()
    }


def once(words: list[str], folder: Path, *, code: int, completion: bool) -> Took:
    """Run a program that ends with an exit code, and measure it."""
    environment = {**os.environ, "VMSNIX_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    if completion:
        environment |= {"_VMSNIX_COMPLETE": "bash_complete", "COMP_WORDS": "vmsnix run p", "COMP_CWORD": "2"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True
    )
    seconds = time.monotonic() - started
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}, not {code}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print the figures of each program, and its CPU time compared with a baseline."""
    print(f"{'':<34}{'seconds':>9}{'cpu':>9}  compared")
    for name, took in figures.items():
        baseline = "papermill" if name.startswith("run") else "click"
        more = took["cpu"] / figures[baseline]["cpu"]
        shown = "" if name in ("python", "click", "papermill") else f"{more:.2f} x {baseline} (cpu)"
        print(f"{name:<34}{took['seconds']:>9.3f}{took['cpu']:>9.3f}  {shown}")


if __name__ == "__main__":
    main()
