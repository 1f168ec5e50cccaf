"""A grid can be searched, filtered and sorted; a row of a channel opens forms."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from vmsnix_ops.channels import overview
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.console.tabs import MAX_ROWS, ChannelGrid, Grid, TabColumn, channel_actions

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


def test_a_click_on_a_row_picks_it_by_its_key() -> None:
    picked: list[object] = []
    made = Grid(COLUMNS, sort="-started_at", key="run_id", picked=lambda row: picked.append(row["run_id"]))
    made.show(frame().assign(run_id=["a", "b:<c>", "d"]))
    assert 'data-do="row:b:&lt;c&gt;"' in made.table.html
    for key in ("b:<c>", "unknown"):
        made.table.click(f"row:{key}")
    assert picked == ["b:<c>"]


@pytest.mark.parametrize(
    ("word", "style"),
    [("done", "good"), ("partial", "mixed"), ("failed", "bad"), ("medium", "mixed"), ("low", "plain")],
)
def test_badges_of_different_weight_have_different_colours(word: str, style: str) -> None:
    made = grid()
    made.show(frame().assign(status=word))
    assert f'<span class="vmsnix-badge vmsnix-{style}">{word}</span>' in made.table.html


def grid() -> Grid:
    made = Grid(COLUMNS, filter_by="runbook", sort="-started_at", empty="None yet.")
    made.show(frame())
    return made


def order(made: Grid) -> list[int]:
    rows = made.rows()
    assert rows is not None
    return list(rows.index)


def test_a_grid_formats_times_durations_and_missing_values() -> None:
    shown = grid().table.html
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
    assert "No row matches" in made.table.html


def test_a_grid_is_filtered_and_sorted() -> None:
    made = grid()
    assert order(made) == [1, 2, 0]
    made.filter.value = "publish-ami"
    assert order(made) == [2, 0]
    made.table.click("sort:seconds")
    assert order(made) == [0, 2]
    assert 'aria-sort="descending"' in made.table.html
    made.table.click("sort:seconds")
    assert order(made) == [2, 0]
    assert 'aria-sort="ascending"' in made.table.html
    made.table.click("sort:runbook")
    assert made.sort == "runbook"


def test_a_new_frame_keeps_the_order_and_resets_a_filter_that_matches_nothing() -> None:
    made = grid()
    made.filter.value = "preflight"
    made.sort = "seconds"
    made.show(frame().query("runbook == 'publish-ami'"))
    assert made.filter.value == ""
    assert made.sort == "seconds"
    assert order(made) == [2, 0]


def test_an_empty_grid_shows_a_text_and_a_long_one_its_limit() -> None:
    made = grid()
    made.show(frame().head(0))
    assert "None yet." in made.table.html
    assert made._bar.layout.display == "none"
    made.show(pd.concat([frame()] * 100, ignore_index=True))
    assert f"300 of 300, the first {MAX_ROWS} are shown" in made._count.value
    assert made.table.html.count("<tr>") == MAX_ROWS + 1


CHANNELS = ("candidate", "stable")
HERE = {"image": "web", "channel": "candidate", "region": "eu-west-1", "ami_id": "ami-0123456789abcdef0"}
AMI = {"image": "web", "region": "eu-west-1", "ami": "ami-0123456789abcdef0"}


@pytest.mark.parametrize(
    ("channel", "promoted_to"), [("candidate", "stable"), ("stable", "stable"), ("nightly", "nightly")]
)
def test_the_forms_of_a_channel_are_filled_in(channel: str, promoted_to: str) -> None:
    found = channel_actions({**HERE, "channel": channel}, CHANNELS)
    regions = {"regions": ["eu-west-1"]}
    assert found == {
        "promote": ("promote-ami", {**AMI, "channel": promoted_to}),
        "roll back": ("rollback", {"image": "web", "channel": channel, "region": "eu-west-1", **regions}),
        "verify": ("verify-amis", {"image": "web", **regions}),
        "smoke-test": ("smoke-test", AMI),
    }
    for name, values in found.values():
        assert parameters.check(catalog.find(name), values)


def test_a_channel_without_an_ami_cannot_be_tested_and_an_unread_region_offers_nothing() -> None:
    assert list(channel_actions({**HERE, "ami_id": ""}, CHANNELS)) == ["promote", "verify"]
    assert channel_actions({**HERE, "channel": ""}, CHANNELS) == {}


def channel_frame(number: int = 1) -> pd.DataFrame:
    texts = {**dict.fromkeys(overview.COLUMNS, ""), **HERE, "name": "<web>", "state": "available"}
    rows = [{**texts, "region": f"r-{place}", "drifted": True, "drift": "public"} for place in range(number)]
    rows.append({**texts, "channel": "", "state": "unknown", "problem": "Access <denied>."})
    times = dict.fromkeys(("created_at", "since", "proven_at"), pd.NaT)
    return pd.DataFrame(rows).assign(age_days=3.2, instances=pd.NA, older_instances=7, **times)


def test_a_row_of_a_channel_has_its_facts_and_buttons_that_open_a_form() -> None:
    opened: list[tuple[str, object]] = []
    made = ChannelGrid(lambda name, values: opened.append((name, values)))
    made.channels = CHANNELS
    made.show(channel_frame(100))
    assert made.table.html.count('class="vmsnix-channel"') == 101
    made.table.click("sort:drift")
    assert '>checks\n<span aria-hidden="true">▲</span>' in made.table.html
    made.search.value = "denied"
    assert "Access &lt;denied&gt;." in made.table.html
    assert "act:" not in made.table.html
    made.search.value = "r-7"
    for words in (
        "&lt;web&gt;",
        "drift: public",
        "vmsnix-bad",
        "unknown run it",
        "7 run an older AMI",
        "3 days old",
    ):
        assert words in made.table.html
    for _ in range(2):
        made.table.click("act:7:smoke-test")
    assert opened == [("smoke-test", {**AMI, "region": "r-7"})] * 2
    made.show(channel_frame().head(0))
    made.table.click("act:7:smoke-test")  # of the earlier frame
    assert len(opened) == 2
