"""Questions to ten million steps: the table in memory (pandas) against the same table through Dask.

``just bench-tables`` (``python -m benchmarks.tables``) makes the table once, in the state folder of the
benchmark, and asks each question both ways in the same run, each in a fresh process; both answers are
compared. Seconds and peak memory are those of the whole process, imports included.

*sums*     rows and bytes by step and region, over all years
*week*     the mean of one step in one week: files that cannot hold it are not opened
*summary*  `vmsnix_ops.records.timings.summary` of one region: exact percentiles, what was slow
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
FILE_ROWS = 500_000
IMAGES = ("ecs-node", "gc-fwd", "actions-runner", "bastion")
REGIONS = ("eu-central-1", "us-east-1", "us-west-2", "ap-southeast-2")
STEPS = {"build": 300.0, "digest": 20.0, "upload": 90.0, "import": 600.0, "register": 30.0, "finish": 5.0}
START = 1_600_000_000  # seconds since 1970 of the first step
EVERY = 12  # seconds between two steps
WEEK = 7 * 86400


def fill(place: Path, rows: int) -> None:
    """Write a table of plausible steps, oldest first, as appends and compactions leave one."""
    import deltalake
    import numpy as np
    import pyarrow as pa

    from vmsnix_ops.records import schemas

    arrow = schemas.STEPS.arrow()
    names, usual = list(STEPS), np.array(list(STEPS.values()))
    for first in range(0, rows, FILE_ROWS):
        rng, count = np.random.default_rng(first), min(FILE_ROWS, rows - first)
        step, at = (
            rng.integers(0, len(names), count),
            (START + EVERY * np.arange(first, first + count)) * 10**6,
        )
        seconds = usual[step] * rng.lognormal(0, 0.3, count)
        moved = pa.array(rng.integers(2**28, 2**34, count), mask=~np.isin(step, (2, 3)))
        columns = {
            "run_id": pa.array(
                [f"{number:012x}" for number in range(first // 6, (first + count) // 6 + 1)]
            ).take(pa.array(np.arange(count) // 6)),
            "step": pa.array(names).take(pa.array(step)),
            "status": pa.array(["finished", "failed", "reused"]).take(
                pa.array(rng.choice(3, count, p=[0.9, 0.02, 0.08]))
            ),
            "started_at": pa.array(at).cast(arrow.field("started_at").type),
            "finished_at": pa.array(at + (seconds * 1e6).astype("int64")).cast(
                arrow.field("finished_at").type
            ),
            "seconds": pa.array(seconds),
            "bytes": moved,
            "image": pa.array(IMAGES).take(pa.array(rng.integers(0, len(IMAGES), count))),
            "region": pa.array(REGIONS).take(pa.array(rng.integers(0, len(REGIONS), count))),
            "via": pa.array(["import", "direct"]).take(pa.array(rng.integers(0, 2, count))),
        }
        empty = pa.nulls(count, pa.string())
        table = pa.Table.from_arrays([columns.get(name, empty) for name in arrow.names], schema=arrow)
        deltalake.write_deltalake(str(place / "steps"), table, mode="append")


def ask(question: str, way: str, place: str, rows: int) -> Any:
    """Answer one question one way; the answer is plain numbers."""
    from datetime import UTC, datetime

    from vmsnix_ops.records import dask_tables, timings
    from vmsnix_ops.records.tables import Tables

    tables, lazy = Tables(place), way == "dask"
    read: Any = (lambda *a, **k: dask_tables.read(tables, *a, **k)) if lazy else tables.read
    middle = datetime.fromtimestamp(START + EVERY * rows // 2, UTC)
    end = datetime.fromtimestamp(START + EVERY * rows // 2 + WEEK, UTC)
    if question == "sums":
        frame = read("steps", columns=["step", "region", "bytes"])
        found = frame.groupby(["step", "region"])["bytes"].agg(["count", "sum"])
        found = (found.compute() if lazy else found).sort_index()
        return [[str(index), int(row["count"]), int(row["sum"])] for index, row in found.iterrows()]
    if question == "week":
        where = [("started_at", ">=", middle), ("started_at", "<", end), ("step", "==", "import")]
        mean = read("steps", columns=["seconds", "started_at", "step"], where=where)["seconds"].mean()
        return round(float(mean.compute() if lazy else mean), 6)
    columns = [*timings.GROUP, "status", "seconds", "bytes", "items", "started_at"]
    frame = read("steps", columns=columns, where=[("region", "==", REGIONS[0])])
    found = dask_tables.summary(frame) if lazy else timings.summary(frame)
    return json.loads(found.sort_values(list(timings.GROUP)).to_json(orient="values", double_precision=6))


def work(question: str, way: str, place: str, rows: int) -> None:
    """Answer in this process and print what it took."""
    started = time.monotonic()
    answer = ask(question, way, place, rows)
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in usage),
        "peak_mib": _peak_mib(),
        "answer": answer,
    }
    print(json.dumps(found))


def _peak_mib() -> float:
    """Return the most memory that this process had; `getrusage` would count that of whoever started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--place", type=Path, help="keep the table here, and use it when it is there")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--work", nargs=2, metavar=("QUESTION", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(*options.work, str(options.place), options.rows)
        return 0
    figures, wrong = [], 0
    with tempfile.TemporaryDirectory(prefix="vmsnix-tables-") as folder:
        place = options.place or Path(folder)
        if not (place / "steps").exists():
            fill(place, options.rows)
        size = sum(path.stat().st_size for path in (place / "steps").glob("*.parquet"))
        print(f"{options.rows:,} rows, {size / 2**20:,.0f} MiB of Parquet, {os.cpu_count()} cores\n")
        print("| question | way | s | CPU s | peak MiB |\n|---|---|---:|---:|---:|")
        for question in ("sums", "week", "summary"):
            answers = []
            for way in ("pandas", "dask"):
                words = [sys.executable, "-m", "benchmarks.tables", "--work", question, way]
                words += ["--place", str(place), "--rows", str(options.rows)]
                done = subprocess.run(words, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                answers.append(found.pop("answer"))
                figures.append({"question": question, "way": way, **found})
                row = f"{found['seconds']:.1f} | {found['cpu_seconds']:.1f} | {found['peak_mib']:,.0f}"
                print(f"| {question} | {way} | {row} |", flush=True)
            if answers[0] != answers[1]:
                wrong += 1
                print(f"The answers to {question} differ.", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "figures": figures}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
