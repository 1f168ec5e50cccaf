"""Tables for people."""

from __future__ import annotations

import pandas as pd

from vmsnix_ops.display import of_frame


def test_a_frame_is_shown_as_people_write_numbers() -> None:
    frame = pd.DataFrame(
        {
            "ami_id": ["ami-1", None],
            "size_gib": pd.array([4, pd.NA], dtype="Int64"),
            "monthly_usd": [1234.5, float("nan")],
            "since": [pd.Timestamp("2026-11-25T21:05:59Z"), pd.NaT],
            "public": [True, False],
        }
    )
    table = of_frame(frame, title="AMIs")
    assert table.columns == ("ami id", "size gib", "monthly usd", "since", "public")
    assert table.right == {"size gib", "monthly usd"}
    assert table.rows == (
        ("ami-1", "4", "1,234.50", "2026-11-25 21:05", "yes"),
        ("-", "-", "-", "-", "no"),
    )
    assert str(of_frame(frame.iloc[:0], title="AMIs")) == "AMIs\nThere are none."
