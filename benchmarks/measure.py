"""Run a case in a child process and measure time, CPU and memory of its process tree."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Measured:
    """The figures of one case.

    The child measures `seconds` and `cpu_seconds` itself. `peak_mib` is the memory of its process tree; a
    shared page counts in each process. `wire_bytes` are all bytes on the loopback device in that time, also
    those of other programs.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    sent_blocks: int
    wire_bytes: int


def measure(name: str, options: dict[str, Any], environment: dict[str, str]) -> Measured:
    """Run ``benchmarks.work`` once."""
    bytes_before = _loopback_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.work", name, json.dumps(options)],
        cwd=FOLDER,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], _resident(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    output, _ = process.communicate()
    over.set()
    thread.join()
    if process.returncode:
        raise SystemExit(f"{name} failed.")
    wire, found = _loopback_bytes() - bytes_before, json.loads(output.splitlines()[-1])
    return Measured(found["seconds"], found["cpu_seconds"], peak[0] / 2**20, found["sent"], wire)


def _loopback_bytes() -> int:
    """Return the bytes that the loopback device has received since the machine started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    raise SystemExit("There is no loopback device.")


def _resident(root: int) -> float:
    """Return the memory of a process and its descendants in bytes; a shared page counts in each."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(entry.name)], sizes[int(entry.name)] = int(fields[1]), int(fields[21]) * PAGE
    total = 0
    for process, size in sizes.items():
        at = process
        while at > 1 and at != root:
            at = parents.get(at, 0)
        total += size if at == root else 0
    return float(total)
