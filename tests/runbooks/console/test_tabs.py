"""A grid can be searched, filtered and sorted."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd

from vmsnix_ops.runbooks.console.tabs import MAX_ROWS, Grid, TabColumn

COLUMNS = (
    TabColumn("started_at", "started", "time"),
    TabColumn("runbook"),
    TabColumn("status", "", "badge"),
    TabColumn("seconds", "took", "seconds"),
    TabColumn("public"),
    TabColumn("missing"),
)


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "started_at": [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 3, 2)],
            "runbook": ["publish-ami", "preflight", "publish-ami"],
            "status": ["done", "failed", "<b>done</b>"],
            "seconds": [75.0, float("nan"), 2.0],
            "public": pd.array([True, None, False], dtype="boolean"),
        }
    )


def grid() -> Grid:
    made = Grid(COLUMNS, filter_by="runbook", sort="-started_at", empty="None yet.")
    made.show(frame())
    return made


def order(made: Grid) -> list[int]:
    rows = made.rows()
    assert rows is not None
    return list(rows.index)


def test_a_grid_formats_times_durations_and_missing_values() -> None:
    shown = grid()._table.value
    assert "2026-11-03 00:00" in shown
    assert "1 min 15 s" in shown
    assert "nan" not in shown.lower()
    assert "missing" not in shown
    assert "&lt;b&gt;done" in shown


def test_a_row_matches_if_it_contains_all_words_of_the_search() -> None:
    made = grid()
    made.search.value = "PUBLISH 2026-11-01"
    assert order(made) == [0]
    assert "1 of 3" in made._count.value
    made.search.value = "nothing like it ["
    assert order(made) == []
    assert "No row matches" in made._table.value


def test_a_grid_is_filtered_and_sorted() -> None:
    made = grid()
    assert order(made) == [1, 2, 0]
    made.filter.value = "publish-ami"
    assert order(made) == [2, 0]
    made.sort.value = "-seconds"
    assert order(made) == [0, 2]


def test_a_new_frame_keeps_the_order_and_resets_a_filter_that_matches_nothing() -> None:
    made = grid()
    made.filter.value = "preflight"
    made.sort.value = "seconds"
    made.show(frame().query("runbook == 'publish-ami'"))
    assert made.filter.value == ""
    assert made.sort.value == "seconds"
    assert order(made) == [2, 0]


def test_an_empty_grid_shows_a_text_and_a_long_one_its_limit() -> None:
    made = grid()
    made.show(frame().head(0))
    assert "None yet." in made._table.value
    assert made._bar.layout.display == "none"
    made.show(pd.concat([frame()] * 100, ignore_index=True))
    assert f"300 of 300, the first {MAX_ROWS} are shown" in made._count.value
    assert made._table.value.count("<tr>") == MAX_ROWS + 1
