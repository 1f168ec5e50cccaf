"""Reading runs, steps and AMIs from the tables."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from vmsnix_ops.errors import ParameterError
from vmsnix_ops.records import history, schemas
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks import history as public

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path / "history")


def run(run_id: str, hours: float, **more: object) -> dict[str, object]:
    row = {"run_id": run_id, "runbook": "publish-ami", "status": "done", "started_at": NOON + hours * HOUR}
    return row | more


def step(run_id: str, name: str, hours: float, **more: object) -> dict[str, object]:
    row = {"run_id": run_id, "step": name, "status": "created", "started_at": NOON + hours * HOUR}
    return row | more


def ami(ami_id: str, hours: float, **more: object) -> dict[str, object]:
    row = {"ami_id": ami_id, "name": f"name-of-{ami_id}", "region": "eu-west-1", "source": "publish"}
    return row | {"recorded_at": NOON + hours * HOUR} | more


def test_runs_come_newest_first(tables: Tables) -> None:
    tables.append("runs", [run("middle", 1), run("old", 0)])
    tables.append("runs", [run("new", 2)])
    assert list(history.runs(tables)["run_id"]) == ["new", "middle", "old"]
    assert list(history.runs(tables).index) == [0, 1, 2]


def test_runs_are_filtered(tables: Tables) -> None:
    tables.append(
        "runs",
        [
            run("a", 0, region="eu-west-1", image="ecs-node", status="failed"),
            run("b", 1, region="us-east-1", image="ecs-node"),
            run("c", 2, region="us-east-1", image="nat", runbook="preflight"),
        ],
    )
    assert list(history.runs(tables, image="ecs-node")["run_id"]) == ["b", "a"]
    assert list(history.runs(tables, region="us-east-1", image="nat")["run_id"]) == ["c"]
    assert list(history.runs(tables, status="failed")["run_id"]) == ["a"]
    assert list(history.runs(tables, runbook="preflight")["run_id"]) == ["c"]
    assert list(history.runs(tables, run_id="b")["run_id"]) == ["b"]
    assert list(history.runs(tables, last=2)["run_id"]) == ["c", "b"]
    assert list(history.runs(tables, since=NOON + HOUR)["run_id"]) == ["c", "b"]
    assert history.runs(tables, last=0).empty


def test_since_may_be_a_duration(tables: Tables) -> None:
    now = datetime.now(UTC)
    tables.append(
        "runs", [run("old", 0) | {"started_at": now - 3 * HOUR}, run("new", 0) | {"started_at": now}]
    )
    assert list(history.runs(tables, since=2 * HOUR)["run_id"]) == ["new"]


def test_a_state_that_no_ami_has_is_no_typing_mistake(tables: Tables) -> None:
    tables.append("amis", [ami("ami-1", 0, state="available", system="x86_64-linux")])
    assert public.amis(tables, state="disabled", system="aarch64-linux").empty
    assert len(public.amis(tables, state=["available", "disabled"])) == 1


def test_a_filter_takes_one_value_or_a_list(tables: Tables) -> None:
    rows = [run(name, hours, status=name) for hours, name in enumerate(("done", "partial", "failed"))]
    tables.append("runs", rows)
    wanted = ["failed", "partial"]
    for some in (wanted, tuple(wanted), set(wanted), iter(wanted), pd.Series(wanted), pd.Index(wanted)):
        assert list(history.runs(tables, status=some)["run_id"]) == wanted
    assert list(history.runs(tables, status="done", image="")["run_id"]) == ["done"]
    assert history.runs(tables, run_id=[]).empty


def test_every_text_count_and_flag_of_a_table_is_a_filter(tables: Tables) -> None:
    tables.append(
        "amis", [ami("ami-1", 0, public=True, size_gib=3), ami("ami-2", 1, public=False, size_gib=4)]
    )
    assert list(history.amis(tables, public=True)["ami_id"]) == ["ami-1"]
    assert list(history.amis(tables, size_gib=[4])["ami_id"]) == ["ami-2"]
    for name in ("inventory", "findings", "packages", "promotions", "proofs", "retirements"):
        frame = getattr(history, name)(tables, since="1W")
        assert (len(frame), tuple(frame.columns)) == (0, schemas.schema(name).names)


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ({"since": "90min"}, ["new"]),
        ({"since": "3D"}, ["new", "hours", "days"]),
        ({"since": "1.5 weeks"}, ["new", "hours", "days"]),
        ({"since": timedelta(days=1)}, ["new", "hours"]),
        ({"older_than": "1D"}, ["days", "months"]),
        ({"older_than": timedelta(hours=5)}, ["days", "months"]),
        ({"since": "30D", "until": timedelta(hours=5)}, ["days"]),
    ],
)
def test_times_are_durations(tables: Tables, edges: dict[str, Any], found: list[str]) -> None:
    ages = {"new": HOUR, "hours": 4 * HOUR, "days": 50 * HOUR, "months": 2000 * HOUR}
    now = datetime.now(UTC)
    tables.append("runs", [run(name, 0, started_at=now - age) for name, age in ages.items()])
    assert list(history.runs(tables, **edges)["run_id"]) == found


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ({"since": "2026-11-22"}, ["c", "b"]),
        ({"since": date(2026, 11, 23)}, ["c"]),
        ({"until": "2026-11-22"}, ["b", "a"]),  # with the whole day
        ({"older_than": "2026-11-22"}, ["a"]),
        ({"since": NOON, "until": NOON}, ["b"]),
        ({"since": pd.Timestamp(NOON)}, ["c", "b"]),
        ({"since": "2026-11-22T12:00:00Z", "until": "2026-11-22T13:00:00+01:00"}, ["b"]),
    ],
)
def test_times_are_dates(tables: Tables, edges: dict[str, Any], found: list[str]) -> None:
    tables.append("runs", [run("a", -24), run("b", 0), run("c", 24)])
    assert list(history.runs(tables, **edges)["run_id"]) == found


def test_the_age_of_an_ami_is_that_in_aws_and_not_of_its_record(tables: Tables) -> None:
    now = datetime.now(UTC)
    old, new = now - timedelta(days=100), now - timedelta(days=1)
    tables.append(
        "amis",
        [
            ami("old", 0, created_at=old, recorded_at=now, image="ecs-node"),  # recorded by a sync
            ami("new", 0, created_at=new, recorded_at=now, image="ecs-node"),
            ami("unknown", 0, recorded_at=old, image="ecs-node"),
        ],
    )
    assert set(history.amis(tables, image="ecs-node", older_than="90D")["ami_id"]) == {"old", "unknown"}
    assert list(history.amis(tables, since="2D")["ami_id"]) == ["new"]


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        (lambda t: history.runs(t, status="faild"), ["Invalid status 'faild'", "'failed'"]),
        (lambda t: history.runs(t, status=["done", "bad"]), ["done, partial, failed, cancelled"]),
        (lambda t: history.runs(t, image="ecs-nod"), ["'ecs-nod'", "Did you mean 'ecs-node'?"]),
        (lambda t: history.runs(t, runbook=["publihs-ami"]), ["Did you mean 'publish-ami'?"]),
        (lambda t: history.runs(t, region="eu-wset-1"), ["Did you mean 'eu-west-1'?"]),
        (
            lambda t: history.runs(t, statuss="done"),
            ["no filter 'statuss'", "Did you mean 'status'?", "since"],
        ),
        (lambda t: history.steps(t, method="direct"), ["Did you mean 'via'?"]),
        (lambda t: history.steps(t, limit=5), ["Did you mean 'last'?"]),
        (lambda t: history.runs(t, parameters="x"), ["history.unpack(frame, 'parameters')"]),
        (lambda t: history.runs(t, started_at="x"), ["Use since, until or older_than"]),
        (lambda t: history.runs(t, image=5), ["Invalid image 5", "Use a text"]),
        (lambda t: history.runs(t, image={"a": 1}), ["It is a mapping"]),
        (lambda t: history.runs("ecs-node"), ["'ecs-node' has no name", "image='ecs-node'", "status"]),
        (lambda t: history.runs(t, "ecs-node"), ["too many positional", "run_id, runbook"]),
        (lambda t: history.timings(t, bye="step"), ["Did you mean 'by'?", "percentiles"]),
        (lambda t: history.timings(t, by="stepp"), ["Did you mean 'step'?"]),
        (lambda t: history.read(tables=t, sinse="1D"), ["Did you mean 'since'?"]),
        (lambda t: history.runs(t, since="3M"), ["Invalid since '3M'", "Months", '"30D"']),
        (lambda t: history.runs(t, since="1 year"), ["years have different lengths"]),
        (lambda t: history.promotions(t, channel="stabel"), ["Did you mean 'stable'?", "Recorded: none"]),
        (lambda t: public.findings(t, rule="public-snapsot"), ["'public-snapshot'"]),
        (lambda t: public.amis(t, state="avalable"), ["No state 'avalable'", "Did you mean 'available'?"]),
        (lambda t: public.packages(t, system="x86-64-linux"), ["Did you mean 'x86_64-linux'?"]),
        (lambda t: public.runs("publish"), ["'publish' has no name", "runbook='publish'"]),
        (lambda t: history.runs(t, since=30), ["Invalid since 30", '"30D"']),
        (lambda t: history.runs(t, until="soon"), ["neither a duration nor a date"]),
        (lambda t: history.runs(t, since="999999999999D"), ["neither a duration nor a date"]),
        (lambda t: history.runs(t, since=pd.NaT), ["Invalid since NaT"]),
        (lambda t: history.runs(t, since=-HOUR), ["Invalid since"]),
        (lambda t: history.runs(t, since="1D", until="2D"), ["since '1D' is after until '2D'"]),
        (lambda t: history.runs(t, since=NOON.replace(tzinfo=None)), ["has no time zone", "+00:00"]),
        (lambda t: history.runs(t, endpoint="sandbx"), ["Did you mean 'sandbox'?"]),
        (lambda t: history.steps(t, last=-1), ["negative"]),
        (lambda t: history.steps(t, last="3"), ["last='3'"]),
    ],
)
def test_a_wrong_argument_is_explained(
    tables: Tables, call: Callable[[Any], object], texts: list[str]
) -> None:
    tables.append("runs", [run("a", 0, image="ecs-node", region="eu-west-1")])
    with pytest.raises(ParameterError) as caught:
        call(tables)
    message = str(caught.value)
    for text in texts:
        assert text in message
    assert "rebuild" not in message
    assert "damaged" not in message


def test_a_value_without_a_similar_one_finds_nothing(tables: Tables) -> None:
    tables.append("runs", [run("a", 0, image="ecs-node")])
    assert history.runs(tables, image="zzz", runbook="publish-ami", region="us-west-2").empty


def test_a_value_that_exists_but_is_not_recorded_finds_nothing(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nix").mkdir()
    (tmp_path / "nix" / "flake.nix").write_text("nixosConfigurations.node-2 = system;")
    tables.append("runs", [run("a", 0, image="node-1", runbook="promote-ami"), run("b", 1, image="node-4")])
    tables.append("amis", [ami("ami-1", 0, image="node-1")])
    change = {"run_id": "a", "promoted_at": NOON, "how": "promote", "ami_id": "ami-1", "image": "node-1"}
    change |= {"region": "eu-west-1"}
    tables.append("promotions", [change | {"channel": "candidates"}])
    assert history.amis(tables, image="node-2").empty  # of the flake
    assert history.amis(tables, image="node-4").empty  # of a run that published nothing
    assert history.promotions(tables, image="node-2", channel="candidate").empty  # a channel of the settings
    assert public.runs(tables, runbook="prove-ami").empty
    assert list(public.runs(tables, runbook="promote")["run_id"]) == ["a"]  # the short name
    for call in (history.amis, history.runs, history.promotions):
        with pytest.raises(ParameterError, match=r"No image 'node-3' is recorded. Did you mean 'node-"):
            call(tables, image="node-3")


def test_status_and_severity_have_an_order(tables: Tables) -> None:
    tables.append("runs", [run("a", 0), run("b", 1, status="failed"), run("c", 2, status="partial")])
    runs = history.runs(tables)
    assert list(runs[runs["status"] > "done"]["run_id"]) == ["c", "b"]
    tables.append("steps", [step("a", "upload", 0), step("a", "import", 1, status="failed")])
    steps = history.steps(tables)
    assert list(steps[steps["status"] >= "skipped"]["step"]) == ["import"]
    found = {"run_id": "a", "scanned_at": NOON, "rule": "public"}
    tables.append("findings", [found | {"severity": one} for one in ("low", "critical", "high")])
    findings = history.findings(tables)
    assert sorted(findings[findings["severity"] >= "high"]["severity"]) == ["critical", "high"]
    assert list(findings.sort_values("severity")["severity"]) == ["low", "high", "critical"]


def test_rows_of_a_sandbox_are_shown_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMSNIX_STATE", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://ec2.eu-west-1.amazonaws.com")
    main, own = Tables(tmp_path / "history"), Tables(tmp_path / "sandbox" / "history")
    main.append("runs", [run("real", 0), run("exported", 1, endpoint="sandbox")])
    own.append("runs", [run("demo", 2, endpoint="sandbox")])
    assert list(history.runs()["run_id"]) == list(history.runs(endpoint="aws")["run_id"]) == ["real"]
    assert list(history.runs(endpoint="sandbox")["run_id"]) == ["demo", "exported"]
    assert list(history.runs(endpoint="all", last=2)["run_id"]) == ["demo", "exported"]
    assert len(history.runs(endpoint="all")) == 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # a shell that uses a sandbox
    assert list(history.runs()["run_id"]) == ["demo", "exported"]  # as with endpoint="sandbox"
    main.append("steps", [step("a", "upload", 0, seconds=5, endpoint="sandbox"), step("b", "upload", 1)])
    assert len(history.timings(endpoint="aws")) == 0
    assert list(history.timings(by="step")["count"]) == [2]


def test_json_becomes_columns_or_rows(tables: Tables) -> None:
    given = [{"image": "web", "regions": ["a", "b"]}, {"image": "db"}]
    tables.append("runs", [run("a", 0, parameters=given[0]), run("b", 1, parameters=given[1]), run("c", 2)])
    wide = history.unpack(history.runs(tables), "parameters")
    assert list(wide["parameters.image"].fillna("")) == ["", "db", "web"]
    assert wide["parameters.regions"][2] == ["a", "b"]
    assert "parameters" not in wide
    frame = pd.DataFrame(
        {
            "ami": ["x", "y", "z", "n"],
            "references": [
                '[{"kind": "instance", "id": "i"}, {"kind": "parameter"}]',
                "[]",
                None,
                "[1, 0.5]",
            ],
        }
    )
    long = history.unpack(frame.head(3), "references")
    assert list(long["ami"]) == ["x", "x", "y", "z"]
    assert list(long["references.kind"].fillna("")) == ["instance", "parameter", "", ""]
    assert list(long.index) == [0, 0, 1, 2]
    assert list(history.unpack(frame.tail(1), "references")["references"]) == [1, 0.5]
    with pytest.raises(ParameterError, match="Did you mean 'references'"):
        history.unpack(frame, "reference")
    with pytest.raises(ParameterError, match="does not contain JSON"):
        history.unpack(frame, "ami")


def test_an_empty_history_has_its_columns(tables: Tables) -> None:
    for frame in (history.runs(tables), history.steps(tables, via="direct"), history.amis(tables, last=3)):
        assert frame.empty
        assert "region" in frame.columns


def test_steps_are_filtered(tables: Tables) -> None:
    tables.append(
        "steps", [step("a", "upload", 0, via="import"), step("a", "register", 1), step("b", "upload", 2)]
    )
    assert list(history.steps(tables, run_id="a")["step"]) == ["register", "upload"]
    assert list(history.steps(tables, step="upload")["run_id"]) == ["b", "a"]
    assert list(history.steps(tables, via="import")["run_id"]) == ["a"]


def test_the_latest_row_of_an_ami_and_region_counts(tables: Tables) -> None:
    tables.append("amis", [ami("ami-1", 0, state="available"), ami("ami-2", 1)])
    tables.append("amis", [ami("ami-1", 2, state="disabled"), ami("ami-1", 0.5, region="us-east-1")])
    frame = history.amis(tables)
    assert list(zip(frame["ami_id"], frame["region"], strict=True)) == [
        ("ami-1", "eu-west-1"),
        ("ami-2", "eu-west-1"),
        ("ami-1", "us-east-1"),
    ]
    assert frame.loc[0, "state"] == "disabled"
    assert len(history.amis(tables, all_rows=True)) == 4


def test_a_filter_does_not_return_outdated_rows(tables: Tables) -> None:
    tables.append(
        "amis", [ami("ami-1", 0, run_id="first", image="old"), ami("ami-1", 1, run_id="second", image="new")]
    )
    assert history.amis(tables, run_id="first").empty
    assert history.amis(tables, image="old").empty
    assert len(history.amis(tables, run_id="first", all_rows=True)) == 1
    assert list(history.amis(tables, image="new", ami_id="ami-1")["run_id"]) == ["second"]


def test_amis_are_filtered(tables: Tables) -> None:
    tables.append(
        "amis", [ami("ami-1", 0, digest="aa"), ami("ami-2", 1, region="us-east-1"), ami("ami-3", 2)]
    )
    assert list(history.amis(tables, digest="aa")["ami_id"]) == ["ami-1"]
    assert list(history.amis(tables, region="us-east-1")["ami_id"]) == ["ami-2"]
    assert list(history.amis(tables, name="name-of-ami-3")["ami_id"]) == ["ami-3"]
    assert list(history.amis(tables, since=NOON + HOUR, last=1)["ami_id"]) == ["ami-3"]
