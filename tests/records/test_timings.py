"""What the steps cost in time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from vmsnix_ops.records import timings
from vmsnix_ops.records.frames import to_arrow, to_frame
from vmsnix_ops.records.schemas import schema

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START = pd.Timestamp("2026-11-01", tz="UTC")


def steps(*rows: dict[str, object]) -> pd.DataFrame:
    whole = [
        {
            "run_id": f"r{n}",
            "step": "import",
            "status": "finished",
            "started_at": START + pd.Timedelta(n, "h"),
        }
        | row
        for n, row in enumerate(rows)
    ]
    return to_frame(to_arrow(schema("steps"), whole))


def test_percentiles_largest_and_last_are_of_finished_steps() -> None:
    frame = steps(
        *({"seconds": seconds} for seconds in (10, 20, 30, 40, 50)),
        {"seconds": 999, "status": "failed"},
        {"seconds": 0.1, "status": "reused"},
    )
    (row,) = timings.summary(frame.sample(frac=1, random_state=1)).to_dict("records")
    assert (row["count"], row["failed"], row["reused"]) == (5, 1, 1)
    assert (row["p50_seconds"], row["p90_seconds"]) == (30, pytest.approx(46))
    assert (row["max_seconds"], row["last_seconds"]) == (50, 50)


def test_rates_are_of_steps_that_tell_their_bytes() -> None:
    frame = steps(
        {"seconds": 10, "bytes": 2**30},
        {"seconds": 30, "bytes": 3 * 2**30},
        {"seconds": 100},
        {"seconds": 5, "bytes": 0},
    )
    (row,) = timings.summary(frame).to_dict("records")
    assert row["seconds_per_gib"] == pytest.approx(10)
    assert row["mib_per_second"] == pytest.approx(102.4)
    assert row["bytes"] == 0


def test_each_step_path_and_image_has_its_row_in_the_order_of_a_run() -> None:
    frame = steps(
        {"step": "upload", "via": "import", "image": "a", "seconds": 1},
        {"step": "import", "via": "import", "image": "a", "seconds": 2},
        {"step": "import", "via": "direct", "image": "a", "seconds": 3},
        {"step": "build", "seconds": 4},
    )
    summary = timings.summary(frame)
    assert list(summary["step"]) == ["upload", "import", "import", "build"]
    assert list(summary["last_seconds"]) == [1, 2, 3, 4]
    assert summary["via"].isna().tolist() == [False, False, False, True]


def test_a_step_that_never_finished_is_there_without_figures() -> None:
    (row,) = timings.summary(steps({"seconds": 3, "status": "failed"})).to_dict("records")
    assert (row["count"], row["failed"]) == (0, 1)
    assert pd.isna(row["p50_seconds"])
    assert row["slow"] is False


def test_no_steps_give_an_empty_summary_with_its_columns() -> None:
    summary = timings.summary(steps())
    assert summary.empty
    assert {"p90_seconds", "seconds_per_gib", "slow"} <= set(summary.columns)
    assert timings.slow(steps()).empty


def test_a_step_is_slow_against_its_own_history() -> None:
    usual = [{"seconds": seconds} for seconds in (10, 10, 10, 10, 12)]
    assert timings.summary(steps(*usual, {"seconds": 18})).loc[0, "slow"]
    assert not timings.summary(steps(*usual, {"seconds": 16})).loc[0, "slow"]
    # Four are too few to tell, and another path's history is not its own.
    assert not timings.summary(steps(*usual[1:], {"seconds": 100})).loc[0, "slow"]
    assert not timings.summary(steps(*usual, {"seconds": 100, "via": "direct"}))["slow"].any()


def test_slow_steps_are_found_where_they_were_though_later_ones_are_fast() -> None:
    rows = [{"seconds": 10}] * 6 + [{"seconds": 100}] + [{"seconds": 10}] * 3
    late = timings.slow(steps(*rows))
    assert list(late["run_id"]) == ["r6"]
    assert list(late["usual_seconds"]) == [10]
    assert not timings.summary(steps(*rows)).loc[0, "slow"]


def drawn(figure: Figure) -> int:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return len(file.getvalue())


def test_the_picture_has_axes_with_units_and_a_ring_around_the_slow() -> None:
    rows = [{"seconds": 10, "via": "import"}] * 6 + [{"seconds": 100, "via": "import"}]
    figure = timings.plot(steps(*rows, {"seconds": 4, "via": "direct"}, {"step": "build", "seconds": 0.01}))
    usual, trend = figure.axes
    assert "seconds" in usual.get_xlabel()
    assert "seconds" in trend.get_ylabel()
    assert "UTC" in trend.get_xlabel()
    assert [label.get_text() for label in usual.get_yticklabels()] == ["import", "build"]
    legend = trend.get_legend()
    assert legend is not None
    assert "slow" in [text.get_text() for text in legend.get_texts()]
    assert drawn(figure) > 5_000


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_picture_is_drawn_of_little_or_nothing(count: int) -> None:
    assert drawn(timings.plot(steps(*[{"seconds": 0.0}, {"seconds": 3.0}][:count]))) > 500


def test_the_picture_leaves_no_global_state() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from vmsnix_ops.records import timings, frames, schemas;"
        "timings.plot(frames.to_frame(schemas.schema('steps').arrow().empty_table()));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_kernel_shows_the_picture_without_pyplot() -> None:
    from IPython.core.formatters import DisplayFormatter

    from vmsnix_ops.records.figures import new_figure

    assert "image/png" in DisplayFormatter().format(new_figure())[0]
