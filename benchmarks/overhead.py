"""What a run costs beyond plain papermill, and how fast the command line answers.

``python -m benchmarks.overhead --repeat 5 --json FILE``. Every program is started anew for each measurement,
the programs in turns, so that a busy minute strikes all of them. Seconds are medians; `cpu` counts the
program and all that it started, kernels included, and is the figure to trust on a busy machine.
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
    "the tab key": ["-m", "vmsnix_ops"],
}
PAPERMILL = """
from papermill.execute import execute_notebook
notebook, out = "{folder}/10-empty-book.ipynb", "{folder}/out.ipynb"
execute_notebook(notebook, out, kernel_name="python3", progress_bar=False)
"""
RUN = """
from pathlib import Path
from vmsnix_ops.runbooks.execution.execute import run
assert run("empty-book", folder=Path("{folder}"), record={record}).verdict == "done"
"""


@dataclass(frozen=True)
class Took:
    """One program, once."""

    seconds: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmsnix-overhead-") as name:
        folder = Path(name)
        (folder / "10-empty-book.ipynb").write_text(json.dumps(notebook("1")))
        figures = measure(folder, options.repeat)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """Return median seconds and CPU seconds of every program."""
    place = {"folder": str(folder), "record": False}
    programs = {
        **START_UP,
        "papermill": ["-c", PAPERMILL.format(**place)],
        "run": ["-c", RUN.format(**place)],
        "run, with its row in the history": ["-c", RUN.format(**{**place, "record": True})],
    }
    taken: dict[str, list[Took]] = {name: [] for name in programs}
    for _ in range(repeat + 1):
        for name, words in programs.items():
            taken[name].append(once(words, folder, tab=name == "the tab key"))
    return {
        name: {
            "seconds": statistics.median(took.seconds for took in some[1:]),  # the first one warms the disk
            "cpu": statistics.median(took.cpu for took in some[1:]),
        }
        for name, some in taken.items()
    }


def once(words: list[str], folder: Path, *, tab: bool) -> Took:
    """Run a program and measure it."""
    environment = {**os.environ, "VMSNIX_STATE": str(folder / "state"), "PYTHONPATH": str(ROOT)}
    if tab:
        environment |= {"_VMSNIX_COMPLETE": "bash_complete", "COMP_WORDS": "vmsnix run p", "COMP_CWORD": "2"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run([sys.executable, *words], env=environment, cwd=folder, check=True, capture_output=True)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def show(figures: dict[str, dict[str, float]]) -> None:
    """Print a table: each program, and how many times as long as its yardstick it takes."""
    print(f"{'':<34}{'seconds':>9}{'cpu':>9}  compared")
    for name, took in figures.items():
        yardstick = "papermill" if name.startswith("run") else "click"
        more = took["cpu"] / figures[yardstick]["cpu"]
        shown = "" if name in ("python", "click", "papermill") else f"{more:.2f} x {yardstick} (cpu)"
        print(f"{name:<34}{took['seconds']:>9.3f}{took['cpu']:>9.3f}  {shown}")


if __name__ == "__main__":
    main()
