"""A program that appends to a table: ``python writer.py LOCATION WRITER COUNT``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from vmsnix_ops.records.tables import Tables


def main(location: str, writer: str, count: int) -> None:
    tables = Tables(location)
    for number in range(count):
        tables.append(
            "steps",
            [
                {
                    "run_id": writer,
                    "step": f"step-{number}",
                    "status": "created",
                    "started_at": datetime.now(UTC),
                    "seconds": number,
                }
            ],
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
