"""Durations of steps, and their plots."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.records.synthetic import history
from vmsnix_ops import display, errors
from vmsnix_ops.records import figures, timing_plots, timings
from vmsnix_ops.records import history as recorded
from vmsnix_ops.records.frames import to_arrow, to_frame
from vmsnix_ops.records.schemas import schema
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmsnix_ops.display import DisplayTable

START = pd.Timestamp("2026-11-01", tz="UTC")


def steps(*rows: dict[str, object]) -> pd.DataFrame:
    whole = [
        {
            "run_id": f"r{n}",
            "step": "import",
            "status": "created",
            "started_at": START + pd.Timedelta(n, "h"),
        }
        | row
        for n, row in enumerate(rows)
    ]
    return to_frame(to_arrow(schema("steps"), whole))


@pytest.fixture(scope="module")
def team() -> pd.DataFrame:
    """Four months of a team."""
    return history()


def test_percentiles_largest_and_last_are_of_finished_steps() -> None:
    frame = steps(
        *({"seconds": seconds} for seconds in (10, 20, 30, 40, 50)),
        {"seconds": 999, "status": "failed"},
        {"seconds": 0.1, "status": "reused"},
    )
    (row,) = timings.summary(frame.sample(frac=1, random_state=1)).to_dict("records")
    assert (row["count"], row["failed"], row["reused"]) == (5, 1, 1)
    assert (row["p50_seconds"], row["p90_seconds"]) == (30, pytest.approx(46))
    assert row["p99_seconds"] == pytest.approx(49.6)
    assert (row["max_seconds"], row["last_seconds"]) == (50, 50)


def test_rates_are_of_steps_with_bytes() -> None:
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


def test_each_step_method_and_image_has_a_row_in_the_order_of_a_run() -> None:
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


def test_an_unfinished_step_has_a_row_without_durations() -> None:
    (row,) = timings.summary(steps({"seconds": 3, "status": "failed"})).to_dict("records")
    assert (row["count"], row["failed"]) == (0, 1)
    assert pd.isna(row["p50_seconds"])
    assert (row["slow"], row["last_slow"]) == (0, False)


def test_no_steps_give_an_empty_summary_with_its_columns() -> None:
    summary = timings.summary(steps())
    assert summary.empty
    assert {"p99_seconds", "seconds_per_gib", "slow"} <= set(summary.columns)
    assert timings.slow(steps()).empty
    assert timings.trend(steps()).empty
    assert timings.compare(steps()).empty


USUAL = [10.0, 10.4, 9.8, 10.1, 9.9, 10.2, 10.0, 9.7]


def test_a_step_is_slow_by_comparison_with_its_history() -> None:
    usual = [{"seconds": seconds} for seconds in USUAL]
    assert timings.summary(steps(*usual, {"seconds": 16})).loc[0, "last_slow"]
    assert not timings.summary(steps(*usual, {"seconds": 14})).loc[0, "last_slow"]
    # Seven steps are too few, and steps of another method, image or region do not count.
    assert timings.slow(steps(*usual[1:], {"seconds": 100})).empty
    for other in ({"via": "direct"}, {"image": "other"}, {"region": "eu-west-1"}):
        assert timings.slow(steps(*usual, {"seconds": 100, **other})).empty


def test_the_limit_is_that_of_the_documentation() -> None:
    (row,) = timings.slow(steps(*({"seconds": s} for s in USUAL), {"seconds": 100})).to_dict("records")
    assert (row["usual_seconds"], row["earlier"]) == (pytest.approx(10.0, rel=0.01), 8)
    assert row["limit_seconds"] == pytest.approx(15.0, rel=0.01)  # 1.5 times the median: the spread is small


def test_a_wide_spread_raises_the_limit() -> None:
    wide = [{"seconds": seconds} for seconds in (5, 8, 12, 20, 6, 15, 9, 11)]
    assert timings.slow(steps(*wide, {"seconds": 30})).empty
    assert len(timings.slow(steps(*wide, {"seconds": 300}))) == 1


def test_an_outlier_does_not_hide_a_later_one() -> None:
    rows = [*USUAL, 100.0, *USUAL, 100.0]
    assert list(timings.slow(steps(*({"seconds": s} for s in rows)))["run_id"]) == ["r17", "r8"]


def test_a_frequent_long_duration_is_not_slow() -> None:
    rows = [{"seconds": 40.0 if n % 4 == 3 else 10.0} for n in range(40)]
    assert timings.slow(steps(*rows)).empty


def test_only_the_latest_fifty_steps_are_the_history() -> None:
    became_faster = [{"seconds": 100.0}] * 60 + [{"seconds": 10.0}] * timings.WINDOW
    late = timings.slow(steps(*became_faster, {"seconds": 40.0}))
    assert list(late["run_id"]) == [f"r{60 + timings.WINDOW}"]


def test_more_bytes_raise_the_limit() -> None:
    usual = [{"seconds": seconds, "bytes": 2**30} for seconds in USUAL]
    assert timings.slow(steps(*usual, {"seconds": 35, "bytes": 3 * 2**30})).empty
    assert len(timings.slow(steps(*usual, {"seconds": 60, "bytes": 3 * 2**30}))) == 1
    assert len(timings.slow(steps(*usual, {"seconds": 35, "bytes": 2**20}))) == 1
    assert len(timings.slow(steps(*usual, {"seconds": 35}))) == 1
    untold = [{"seconds": seconds} for seconds in USUAL]
    assert len(timings.slow(steps(*untold, {"seconds": 35, "bytes": 2**30}))) == 1


def test_builds_without_a_cache_are_compared_with_each_other() -> None:
    warm = [{"step": "build", "seconds": seconds, "items": 31 + n} for n, seconds in enumerate(USUAL)]
    cold = [{"step": "build", "seconds": 30 * seconds, "items": 900 - n} for n, seconds in enumerate(USUAL)]
    one_warm, one_cold = {"step": "build", "items": 40}, {"step": "build", "items": 880}
    # Neither the first nor the ninth build without a cache is slow. Slow builds of both kinds are found.
    assert timings.slow(steps(*warm, one_cold | {"seconds": 300.0})).empty
    assert timings.slow(steps(*warm, *cold, one_cold | {"seconds": 310.0})).empty
    late = timings.slow(steps(*cold, *warm, one_warm | {"seconds": 100.0}, one_cold | {"seconds": 600.0}))
    assert list(late["usual_seconds"].round()) == [300, 10]


@pytest.mark.parametrize(
    ("items", "digits"), [(None, -1), (0, 0), (1, 1), (9, 1), (10, 2), (999, 3), (1000, 4)]
)
def test_steps_are_grouped_by_the_magnitude_of_their_items(items: int | None, digits: int) -> None:
    assert timings._magnitude(steps({"items": items})).tolist() == [digits]
    assert timings._magnitude(steps({}).drop(columns="items")).tolist() == [-1]


def test_builds_without_a_cache_are_not_slow_in_four_months_of_a_team(team: pd.DataFrame) -> None:
    builds = team[(team["step"] == "build") & (team["status"] == "created")]
    assert (builds["items"] >= 100).sum() > 20
    assert not (timings.slow(team)["step"] == "build").any()
    # Without `items` many would be slow.
    assert len(timings.slow(team.assign(items=None))) > 10


BAD_BY: list[tuple[Callable[..., pd.DataFrame], Any, str]] = [
    (timings.summary, ["stepp"], "Did you mean 'step'"),
    (timings.summary, ["seconds"], "Set by to some of step, via, image, region"),
    (timings.summary, [], "by is empty"),
    (timings.trend, ["regoin"], "Did you mean 'region'"),
    (timings.compare, ["via"], "Set by to some of image, region"),
]


@pytest.mark.parametrize(("table", "by", "words"), BAD_BY)
def test_unknown_grouping_columns_are_refused(
    table: Callable[..., pd.DataFrame], by: Any, words: str, team: pd.DataFrame
) -> None:
    with pytest.raises(errors.ParameterError, match=words):
        table(team, by=by)


def test_one_grouping_column_may_be_a_text(team: pd.DataFrame) -> None:
    assert len(timings.summary(team, by="region")) == 2


def test_an_invalid_period_is_refused(team: pd.DataFrame) -> None:
    with pytest.raises(errors.ParameterError, match=r"Invalid length of time 'fortnight'"):
        timings.trend(team, every="fortnight")


@pytest.fixture
def kept(tmp_path: Path) -> Tables:
    tables = Tables(tmp_path)
    common = {"run_id": "r", "step": "import", "status": "created", "started_at": START, "via": "import"}
    tables.append("steps", [common | {"image": "ecs-node", "region": "eu-central-1"}] * 2)
    tables.append("steps", [common | {"image": "gc-fwd", "region": "us-east-1", "run_id": "q"}])
    return tables


def test_the_result_shows_its_number_of_steps(kept: Tables) -> None:
    assert str(recorded.read(tables=kept)) == "3 steps of 2 runs."
    some = recorded.read(tables=kept, image="ecs-node", region="eu-central-1", via="import")
    assert len(some.steps) == 2
    assert str(some) == "2 steps of 1 run of image 'ecs-node', region 'eu-central-1', method 'import'."


def test_an_image_without_steps_suggests_a_similar_one(kept: Tables) -> None:
    found = recorded.read(tables=kept, image="ecs-nod")
    assert found.steps.empty
    assert "No steps of image 'ecs-nod'. Did you mean 'ecs-node'?" in str(found)
    assert "Recorded images: ecs-node, gc-fwd." in found._repr_html_()


def test_a_region_without_steps_is_reported_and_an_unknown_one_refused(kept: Tables) -> None:
    assert "Recorded regions: eu-central-1, us-east-1." in str(recorded.read(tables=kept, region="sa-east-1"))
    with pytest.raises(errors.ParameterError, match="Did you mean 'eu-central-1'") as caught:
        recorded.read(tables=kept, region="eu-centrall-1")
    assert caught.value.exit_code == 2


def test_an_unknown_method_is_refused(kept: Tables) -> None:
    with pytest.raises(errors.ParameterError, match="Did you mean 'direct'"):
        recorded.read(tables=kept, via="dirct")


def test_a_combination_without_steps_is_reported(kept: Tables) -> None:
    found = recorded.read(tables=kept, image="ecs-node", region="us-east-1")
    assert str(found) == "No steps of image 'ecs-node', region 'us-east-1'."


def test_an_empty_table_suggests_a_publish(tmp_path: Path) -> None:
    assert "Publish an image first" in str(recorded.read(tables=Tables(tmp_path), image="ecs-node"))


def test_a_difference_below_a_second_is_never_slow() -> None:
    assert timings.slow(steps(*[{"seconds": 0.1}] * 9, {"seconds": 0.9})).empty


def test_earlier_slow_steps_are_found_after_later_fast_ones() -> None:
    rows = [{"seconds": 10}] * 9 + [{"seconds": 100}] + [{"seconds": 10}] * 3
    assert list(timings.slow(steps(*rows))["run_id"]) == ["r9"]
    summary = timings.summary(steps(*rows))
    assert (summary.loc[0, "slow"], summary.loc[0, "last_slow"]) == (1, False)


def test_the_change_compares_the_last_ten_steps_with_earlier_ones() -> None:
    rows = [{"seconds": 10}] * 8 + [{"seconds": 15}] * 10
    assert timings.summary(steps(*rows)).loc[0, "change"] == pytest.approx(0.5)
    assert pd.isna(timings.summary(steps(*rows[1:])).loc[0, "change"])


def test_the_trend_is_by_week() -> None:
    rows = [{"seconds": n, "started_at": START + pd.Timedelta(n, "D")} for n in range(1, 11)]
    table = timings.trend(steps(*rows))
    # 1 November 2026 is a Sunday; its week is empty.
    assert [str(day.date()) for day in table["period"]] == ["2026-11-02", "2026-11-09"]
    assert list(table["count"]) == [7, 3]
    assert list(table["p50_seconds"]) == [4, 9]


def test_the_trend_separates_images_regions_and_methods(team: pd.DataFrame) -> None:
    table = timings.trend(team, every="MS")
    assert not table.duplicated([*timings.GROUP, "period"]).any()
    assert len(table[["image", "region"]].drop_duplicates()) == 6
    means = table[table["step"] == "upload"].groupby(["image", "region", "via"])["p50_seconds"]
    assert (means.max() / means.min()).max() < 1.8


def test_direct_and_import_are_compared(team: pd.DataFrame) -> None:
    table = timings.compare(team).set_index(["image", "region"])
    made = timings.snapshots(team)
    some = made[(made["image"] == "gc-fwd") & (made["region"] == "us-east-1")]
    row = table.loc[("gc-fwd", "us-east-1")]
    for via in ("import", "direct"):
        rows = some[some["via"] == via]
        assert row[f"{via}_count"] == len(rows) > 0
        assert row[f"{via}_p50_seconds"] == pytest.approx(rows["seconds"].median())
        assert row[f"{via}_seconds_per_gib"] == pytest.approx(rows["seconds_per_gib"].median())
    rates = row["import_seconds_per_gib"], row["direct_seconds_per_gib"]
    assert row["times_as_fast"] == pytest.approx(rates[0] / rates[1])
    assert (table["times_as_fast"] > 5).all()
    assert (table["direct_sent_bytes"] < table["import_sent_bytes"] / 5).all()


def test_the_methods_are_compared_by_the_seconds_for_a_gib_although_images_grew() -> None:
    kinds = [("a", "import", 2**30, 100.0), ("b", "direct", 10 * 2**30, 200.0)]
    frame = steps(
        *(
            {"run_id": run, "step": step, "seconds": seconds / 2, "bytes": size, "via": via, "image": "x"}
            for run, via, size, seconds in kinds
            for step in ("upload", "import")
        )
    )
    (row,) = timings.compare(frame).to_dict("records")
    assert (row["import_seconds_per_gib"], row["direct_seconds_per_gib"]) == (100, 20)
    assert row["times_as_fast"] == 5  # although the larger image took twice as long
    assert (row["import_image_bytes"], row["direct_image_bytes"]) == (2**30, 10 * 2**30)
    assert "20 s/GiB (3 min 20 s for an image)" in words(timing_plots.plot_compare(frame))


def test_any_percentiles_and_columns_can_be_chosen() -> None:
    frame = steps(*({"seconds": float(n), "region": "eu-west-1"} for n in range(101)))
    (row,) = timings.summary(frame, by="region", percentiles=[0.5, 0.95]).to_dict("records")
    assert (row["region"], row["p50_seconds"], row["p95_seconds"]) == ("eu-west-1", 50, 95)
    assert "p90_seconds" not in row
    with pytest.raises(errors.ParameterError, match=r"Use 0\.95 for the percentile 95"):
        timings.summary(frame, percentiles=[95])


def test_a_run_that_reused_its_upload_is_not_compared() -> None:
    frame = steps(
        {"run_id": "a", "step": "upload", "status": "reused", "seconds": 0.1, "via": "import", "image": "x"},
        {"run_id": "a", "step": "import", "seconds": 100, "bytes": 2**30, "via": "import", "image": "x"},
        {"run_id": "b", "step": "upload", "seconds": 20, "bytes": 2**30, "via": "import", "image": "x"},
        {"run_id": "b", "step": "import", "seconds": 100, "bytes": 2**30, "via": "import", "image": "x"},
    )
    (row,) = timings.compare(frame).to_dict("records")
    assert (row["import_count"], row["import_p50_seconds"]) == (1, 120)
    assert row["import_seconds_per_gib"] == pytest.approx(120)
    assert pd.isna(row["times_as_fast"])


def test_the_slow_day_of_four_months_is_found(team: pd.DataFrame) -> None:
    late = timings.slow(team)
    imports = late[late["step"] == "import"]
    assert list(imports["image"]) == ["actions-runner"]
    assert str(imports["started_at"].iloc[0].date()) == "2026-10-24"


def tables_for_people(frame: pd.DataFrame) -> list[DisplayTable]:
    return [
        timings.show_summary(timings.summary(frame)),
        timings.show_slow(timings.slow(frame)),
        timings.show_compare(timings.compare(frame)),
        timings.show_steps(frame),
    ]


NOT_FOR_PEOPLE = re.compile(r"\b(nan|nat|none|na|<NA>)\b|\d\.\d{3,}|\be[+-]\d", re.IGNORECASE)


def test_tables_show_no_nan_and_no_six_decimals(team: pd.DataFrame) -> None:
    some = steps({"seconds": 3, "status": "failed"}, {"step": "build", "seconds": 1.23456})
    for frame in (team, some):
        for table in tables_for_people(frame):
            assert not NOT_FOR_PEOPLE.search(f"{table}{table._repr_html_()}"), table
    assert "4 min" in str(timings.show_summary(timings.summary(team)))


def test_an_empty_history_has_a_message() -> None:
    for table in tables_for_people(steps()):
        assert not len(table)
        assert str(table).endswith(".")
        assert "<table" not in table._repr_html_()


PLOTS = [timing_plots.plot_usual, timing_plots.plot_trend, timing_plots.plot_compare]


def drawn(figure: Figure) -> int:
    return len(figure._repr_png_())  # type: ignore[attr-defined]


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.variants(seconds=4)
def test_the_pictures_have_axes_with_units_and_no_warning(
    plot: Callable[[pd.DataFrame], Figure], team: pd.DataFrame
) -> None:
    figure = plot(team)
    assert drawn(figure) > 20_000
    for axes in figure.axes[:1]:
        labels = [axes.get_xlabel(), axes.get_ylabel(), *(tick.get_text() for tick in axes.get_yticklabels())]
        assert "time" in " ".join(labels)
        assert re.search(r"\b(s|min)\b", " ".join(labels))
    assert {"import", "direct"} <= set(words(figure).split())


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.variants
def test_a_plot_is_drawn_into_given_axes(plot: Callable[..., Figure], team: pd.DataFrame) -> None:
    one = team[(team["image"] == "gc-fwd") & (team["region"] == "us-east-1") & (team["step"] == "import")]
    one = pd.concat([one, team[team["run_id"].isin(one["run_id"]) & (team["step"] == "upload")]])
    for frame in (one, team, team.head(0)):
        figure = Figure(layout="constrained", figsize=(16, 6))
        left, right = figure.subplots(1, 2)
        left.set_title("ours")
        assert plot(frame, ax=right) is figure
        figure.draw_without_rendering()
        assert left.get_title() == "ours"
        assert not left.has_data()
        inside = [axes for axes in figure.axes if axes is not left]
        assert frame.empty or any(axes.has_data() for axes in inside)
        assert all(axes.get_position().x0 > left.get_position().x1 - 0.01 for axes in inside)
    alone = Figure()
    assert plot(team, ax=alone.add_axes((0.2, 0.2, 0.6, 0.6))) is alone
    alone.draw_without_rendering()


def test_slow_steps_have_a_ring(team: pd.DataFrame) -> None:
    assert "slower than usual" in words(timing_plots.plot_trend(team))
    assert "slow" not in words(timing_plots.plot_trend(steps({"seconds": 4})))


def test_the_trend_has_readable_dates_and_only_steps_that_matter(team: pd.DataFrame) -> None:
    figure = timing_plots.plot_trend(team)
    figure.draw_without_rendering()
    assert [axes.get_title(loc="left") for axes in figure.axes[:3]] == [
        "gc-fwd",
        "ecs-node",
        "actions-runner",
    ]
    named = [axes.get_ylabel() for axes in figure.axes[::3]]
    assert named == [f"{step} time, log scale" for step in ("build", "upload", "import")]
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == ["Aug", "Sep", "Oct", "Nov"]
    assert figure.get_supxlabel() == "started (UTC)"


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.variants
def test_the_plots_are_readable_on_any_background(
    plot: Callable[[pd.DataFrame], Figure], team: pd.DataFrame
) -> None:
    figure = plot(team)
    figure.draw_without_rendering()
    ground = figure.get_facecolor()
    assert to_rgba(ground)[3] == 1
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            assert contrast(text.get_color(), ground) >= 3.5, text.get_text()


@pytest.mark.long(seconds=3)
def test_no_two_texts_of_a_plot_overlap(team: pd.DataFrame) -> None:
    one_run = team[team["run_id"] == team["run_id"].iloc[0]]
    for frame in (team, one_run):
        for plot in PLOTS:
            assert not collisions(plot(frame)), plot.__name__


def collisions(figure: Figure) -> list[tuple[str, str]]:
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (one, other)
        for n, (one, box) in enumerate(boxes)
        for other, beside in boxes[n + 1 :]
        if box.padded(-1).overlaps(beside.padded(-1))
    ]


@pytest.mark.parametrize("days", [0.05, 0.12, 2.9, 20, 45, 92, 200, 790, 1080, 4000])
@pytest.mark.parametrize("most", [4, 5, 8])
def test_dates_of_any_span_have_labels(days: float, most: int) -> None:
    axes = figures.new_figure().subplots()
    figures.format_dates(axes, most=most)
    axes.set_xlim(20_000.3, 20_000.3 + days)
    ticks = [tick for tick in axes.xaxis.get_major_locator()() if 20_000.3 <= tick <= 20_000.3 + days]
    assert 1 <= len(ticks) <= most


def test_a_line_of_the_trend_has_one_image_region_and_method(team: pd.DataFrame) -> None:
    figure = timing_plots.plot_trend(team)
    done = team[(team["status"] == "created") & (team["step"] == "upload")]
    for axes, image in zip(figure.axes[3:6], ("gc-fwd", "ecs-node", "actions-runner"), strict=True):
        lines = [line for line in axes.lines if line.get_linestyle() in ("-", "--")]
        kinds = {(line.get_linestyle(), line.get_color()) for line in lines}
        assert len(kinds) == len(lines) == 4
        rows = done[done["image"] == image]
        drawn_rows = sorted(len(line.get_xdata()) for line in lines)
        assert drawn_rows == sorted(rows.groupby(["region", "via"]).size())


def test_the_trend_s_lines_jump_no_more_than_one_region_s_medians(team: pd.DataFrame) -> None:
    for axes in timing_plots.plot_trend(team).axes[3:6]:
        for line in axes.lines:
            heights = pd.Series(line.get_ydata()).dropna()
            if line.get_linestyle() in ("-", "--") and len(heights) > timing_plots.SMOOTH:
                assert heights.max() / heights.min() < 1.3


def test_the_usual_duration_is_shown_for_each_image_and_region(team: pd.DataFrame) -> None:
    figure = timing_plots.plot_usual(team)
    (panel,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "gc-fwd, us-east-1"]
    table = timings.summary(team).set_index(["image", "region", "step", "via"])
    row = table.loc[("gc-fwd", "us-east-1", "import", "import")]
    texts = [text.get_text() for text in panel.texts]
    assert texts[:2] == ["median", "p90"]
    assert [display.seconds(row[f"p{n}_seconds"]) for n in (50, 90)] in [
        texts[n : n + 2] for n in range(len(texts))
    ]


def test_the_plots_name_omitted_images_and_regions(team: pd.DataFrame) -> None:
    many = pd.concat(
        [
            team.assign(region=f"{n}-east", image=team["image"] + f"-{n}", run_id=team["run_id"] + f"-{n}")
            for n in range(5)
        ]
    )
    for plot in (timing_plots.plot_usual, timing_plots.plot_trend):
        assert "not shown: 12 images" in words(plot(many))
        assert "not shown" not in words(plot(team))


@pytest.mark.parametrize("colour", [*figures.METHOD_COLOURS.values(), figures.ALARM])
@pytest.mark.parametrize("ground", [figures.GROUND, "#111111"])
def test_colours_are_visible_on_light_and_dark_backgrounds(colour: str, ground: str) -> None:
    assert contrast(colour, ground) >= 3


@pytest.mark.parametrize("seconds", [[], [0.0], [8.4, 8.5], [2, 2400], [0.01, 10**6]])
def test_an_axis_of_durations_has_round_labels_with_units(seconds: list[float]) -> None:
    axes = figures.new_figure().subplots()
    figures.duration_scale(axes, seconds)
    low, high = axes.get_ylim()
    assert high / low >= figures.LEAST_RANGE
    assert all(low < max(value, 0.01) < high for value in seconds)
    assert 1 <= len(axes.get_yticks()) <= 5
    assert all(re.fullmatch(r"[\d.]+ (s|min|h|d)", tick.get_text()) for tick in axes.get_yticklabels())


def contrast(one: Any, other: Any) -> float:
    """Return the WCAG contrast of two colours."""
    low, high = sorted(luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: Any) -> float:
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_plots_work_with_few_or_no_steps(plot: Callable[[pd.DataFrame], Figure], count: int) -> None:
    rows: list[dict[str, object]] = [
        {"run_id": "a", "step": "upload", "seconds": 0.0},
        {"run_id": "a", "seconds": 3.0},
    ]
    assert drawn(plot(steps(*rows[:count]))) > 500


def test_the_plots_change_no_global_state() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from vmsnix_ops.records import timing_plots, frames, schemas;"
        "timing_plots.plot_usual(frames.to_frame(schemas.schema('steps').arrow().empty_table()));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_kernel_shows_the_picture_without_pyplot() -> None:
    from IPython.core.formatters import DisplayFormatter

    from vmsnix_ops.records.figures import new_figure

    assert "image/png" in DisplayFormatter().format(new_figure())[0]


def test_a_hundred_thousand_steps_are_summed_up() -> None:
    count = 100_000
    frame = pd.concat([history()] * (count // 1900), ignore_index=True).head(count)
    frame["image"] = [f"image-{n % 40}" for n in range(len(frame))]
    assert timings.summary(frame)["count"].sum() > 90_000
