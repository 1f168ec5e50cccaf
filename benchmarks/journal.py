"""Measure what the journal of an interactive run costs for each cell.

``python -m benchmarks.journal --cells 200`` executes the same cells in two kernels, which take turns: one has
started a run, and one has not. Every cell has another source and another output, because known texts are not
searched for secrets again. It prints medians of both kernels, and their difference, which is the overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.runbooks.execution.kernel import Kernel, kernel

SOURCES = {
    "a number": "6 * {number}",
    "a table of 20 rows": "frame.head(20).assign(number={number})",
    "a table of 60 rows": "frame.assign(number={number})",
    "40 lines of text": "for n in range(40): print(f'line {{n + {number}}}: ami-0123456789abcdef0')",
    "a table of 1000 rows": "pd.concat([frame] * 20).style.format(escape='html')",
}
PREPARE = """
import pandas as pd
frame = pd.DataFrame({"ami": ["ami-0123456789abcdef0"] * 60, "region": "eu-central-1", "gib": range(60)})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=200, help="cells of each kind")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vmsnix-journal-") as name:
        folder = Path(name)
        with kernel(folder / "plain") as plain, kernel(folder / "recorded") as recorded:
            for one in (plain, recorded):
                one.execute(PREPARE)
            recorded.execute_cells("import-timings", "parameters", "parameter-types")
            figures = {
                kind: measure(plain, recorded, source, options.cells) for kind, source in SOURCES.items()
            }
    for kind, found in figures.items():
        print(
            f"{kind:20} plain {found['plain']:6.2f} ms   recorded {found['recorded']:6.2f} ms   "
            f"overhead {found['overhead']:5.2f} ms   95th percentile {found['recorded_p95']:6.2f} ms"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(plain: Kernel, recorded: Kernel, source: str, cells: int) -> dict[str, float]:
    """Return the times of a cell in both kernels, in milliseconds."""
    taken: dict[str, list[float]] = {"plain": [], "recorded": []}
    for number in range(cells):
        for name, one in (("plain", plain), ("recorded", recorded)):
            started = time.perf_counter()
            assert one.execute(source.format(number=number)) == ""
            taken[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    overhead = medians["recorded"] - medians["plain"]
    p95 = statistics.quantiles(taken["recorded"], n=20)[-1]
    return {**medians, "overhead": overhead, "recorded_p95": p95}


if __name__ == "__main__":
    main()
