"""The pictures of a report: when the steps of a run ran, and which AMI a channel served when."""

from __future__ import annotations

import itertools
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files
from vmsnix_ops.display import moment
from vmsnix_ops.errors import RecordsError
from vmsnix_ops.outcomes import WORKED
from vmsnix_ops.pages import Lane, Lanes, Segment
from vmsnix_ops.progress import counted, human_seconds
from vmsnix_ops.records import run_tables
from vmsnix_ops.records.recorded_amis import plain_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vmsnix_ops.records.tables import Tables

MAX_LANES = 60
"""Steps of a picture; of more, the longest ones are drawn."""
MAX_VALUES = 100
"""Values of a channel's timeline in a region; the newest ones."""

Row = dict[str, Any]


def draw(folder: Path, tables: Tables) -> list[Lanes]:
    """Return the pictures of a run: its steps, and each channel that it set; none without rows."""
    rows: dict[str, list[Row]] = {"steps": [], "promotions": []}
    with suppress(OSError):  # a run without rows has no such file
        for line in run_tables.lines_of(files.read(folder / run_tables.FILE_NAME)):
            rows.setdefault(line["table"], []).extend(run_tables.rows_from(line))
    found = [draw_steps(rows["steps"])] if rows["steps"] else []
    set_channels = [row for row in rows["promotions"] if row.get("channel")]
    for key, some in itertools.groupby(sorted(set_channels, key=_channel), _channel):
        found.append(draw_channel(key[0], key[1], list(some), tables))
    return found


def _channel(row: Row) -> tuple[str, str]:
    return row.get("image") or "", row["channel"]


def draw_steps(steps: Sequence[Row]) -> Lanes:
    """Return one lane for each step, at its place in the time of the run."""
    spans = [(row, *_span(row)) for row in steps]
    first, last = min(begin for _, begin, _ in spans), max(end for _, _, end in spans)
    drawn = sorted(spans, key=lambda span: span[1] - span[2])[:MAX_LANES]
    several = len({row.get("region") for row in steps}) > 1
    lanes = []
    for row, begin, end in sorted(drawn, key=lambda span: span[1]):
        status, took = row["status"], human_seconds((end - begin).total_seconds())
        place = f", {row['region']}" if several and row.get("region") else ""
        colour = "failed" if status == "failed" else "3" if status in WORKED else "soft"
        segment = _segment(first, last, begin, end, colour, f"{row['step']}: {moment(begin)} UTC")
        lanes.append(Lane(f"{row['step']}{place}", [segment], f"{took}, {status}"))
    left = len(spans) - len(drawn)
    note = f"From {moment(first)} to {moment(last)} UTC."
    return Lanes("Steps", lanes, note=f"{note} {counted(left, 'shorter step')} not shown." if left else note)


def _span(row: Row) -> tuple[datetime, datetime]:
    begin: datetime = row["started_at"]
    return begin, max(begin, row.get("finished_at") or begin)


def draw_channel(image: str, channel: str, rows: Sequence[Row], tables: Tables) -> Lanes:
    """Return one lane for each region of a channel: the AMIs that it served, from the tables.

    If the tables cannot be read, the lanes have only the rows of the run.
    """
    known = list(rows)
    with suppress(RecordsError):
        where = [("image", "==", image), ("channel", "==", channel)]
        columns = ["promoted_at", "how", "ami_id", "region", "account", "endpoint", "name"]
        stored: list[Row] = plain_rows(tables.read("promotions", columns=columns, where=where))
        same = {(row.get("account"), row.get("endpoint")) for row in rows}
        known = [row for row in stored if (row.get("account"), row.get("endpoint")) in same] or known
    known.sort(key=lambda row: row["promoted_at"])
    now = datetime.now(UTC)
    first = min(row["promoted_at"] for row in known)
    regions = sorted({row["region"] for row in known})
    lanes = [Lane(region, *_timeline(known, region, first, now)) for region in regions]
    legend = {"3": "promoted", "1": "promoted, the one after it", "4": "rolled back to"}
    return Lanes(f"Channel {image}/{channel}", lanes, legend, f"From {moment(first)} to {moment(now)} UTC.")


def _timeline(
    rows: Sequence[Mapping[str, Any]], region: str, first: datetime, now: datetime
) -> tuple[list[Segment], str]:
    own = [row for row in rows if row["region"] == region][-MAX_VALUES:]
    ends = [*(row["promoted_at"] for row in own[1:]), now]
    segments = []
    for number, (row, end) in enumerate(zip(own, ends, strict=True)):
        colour = "4" if row["how"] == "roll back" else "31"[number % 2]
        title = f"{row['ami_id']} {row.get('name') or ''} from {moment(row['promoted_at'])} UTC"
        segments.append(_segment(first, now, row["promoted_at"], end, colour, title))
    return segments, f"{own[-1]['ami_id']} since {moment(own[-1]['promoted_at'])}"


def _segment(
    first: datetime, last: datetime, begin: datetime, end: datetime, colour: str, title: str
) -> Segment:
    whole = (last - first).total_seconds() or 1.0
    start, length = (begin - first).total_seconds(), (end - begin).total_seconds()
    return Segment(start / whole, length / whole, colour, title)
