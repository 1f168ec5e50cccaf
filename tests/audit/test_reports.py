"""The report of an audit: files, page and result."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.audit.account import DIGEST, REGION, Owner
from tests.pages import Page
from vmsnix_ops import errors
from vmsnix_ops.audit import check, reports, views
from vmsnix_ops.audit.findings import AuditCriteria
from vmsnix_ops.audit.page import past_audits
from vmsnix_ops.audit.reports import AuditResult
from vmsnix_ops.audit.rules import evaluate
from vmsnix_ops.audit.sync import sync
from vmsnix_ops.records.result import places
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.runbooks.evidence.github import summary
from vmsnix_ops.settings import load

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def audit(own: Owner) -> AuditResult:
    """An account with a public AMI, a used one, and a snapshot whose name is a script."""
    own.share(own.ami(tags=DIGEST), "all")
    own.template(own.ami(tags={"owner": "x"}))
    own.snapshot(tags={"Name": NASTY, **DIGEST})
    return AuditResult.of(own.scan(regions=[REGION], orphan_days=1))


def test_every_file_format_has_the_same_rows(audit: AuditResult, tmp_path: Path) -> None:
    paths = reports.write(audit, tmp_path)
    assert set(paths) == {
        *(f"{name}.{form}" for name in ("inventory", "findings", "changes") for form in ("csv", "parquet")),
        "audit.json",
        "audit.html",
    }
    ids = list(audit.findings["resource_id"])
    assert list(pd.read_csv(paths["findings.csv"])["resource_id"]) == ids
    assert list(pd.read_parquet(paths["findings.parquet"])["resource_id"]) == ids
    whole = json.loads(paths["audit.json"].read_text())
    assert [one["resource_id"] for one in whole["findings"]] == ids
    for name, frame in (("inventory", audit.inventory.frame), ("changes", audit.changes.frame)):
        assert [one["resource_id"] for one in whole[name]] == list(frame["resource_id"])
        assert whole[name] == [] or list(whole[name][0]) == list(frame.columns)
    assert whole["totals"] == views.totals(audit.inventory)
    kept = pd.read_parquet(paths["inventory.parquet"])
    assert list(kept["resource_id"]) == list(audit.inventory.frame["resource_id"])
    assert str(kept["created_at"].dtype).endswith("UTC]")


@pytest.mark.parametrize("word", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
@pytest.mark.variants
def test_csv_files_contain_no_formulas(own: Owner, tmp_path: Path, word: str) -> None:
    snapshot = own.snapshot(tags={"Name": word, **DIGEST})
    audit = AuditResult.of(own.scan(regions=[REGION], orphan_days=1))
    paths = reports.write(audit, tmp_path)
    for name in ("inventory", "findings"):
        shown = pd.read_csv(paths[f"{name}.csv"], dtype=str).set_index("resource_id")["name"]
        exact = pd.read_parquet(paths[f"{name}.parquet"]).set_index("resource_id")["name"]
        visible = word.replace("\t", "\\t")  # a tab can start a formula, too
        assert (shown[snapshot], exact[snapshot]) == (f"'{visible}", word)
    shown = json.loads(paths["audit.json"].read_text())["inventory"]
    assert [one["name"] for one in shown if one["resource_id"] == snapshot] == [word]


def test_json_is_written_in_parts(own: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "ROWS_AT_ONCE", 2)
    amis = {own.ami(tags=DIGEST) for _ in range(3)}
    audit = AuditResult.of(own.scan(regions=[REGION]))
    whole = json.loads(reports.write(audit, tmp_path)["audit.json"].read_text())
    assert {one["resource_id"] for one in whole["inventory"] if one["kind"] == "ami"} == amis


def test_the_page_loads_nothing_and_runs_only_its_own_script(audit: AuditResult, tmp_path: Path) -> None:
    text = reports.write(audit, tmp_path)["audit.html"].read_text()
    page = Page(text)
    assert not {"link", "img", "iframe", "object"} & page.tags
    assert not {"src", "style"} & page.attributes.keys()
    assert all(target.startswith("#") for target in page.attributes["href"])
    assert "unsafe" not in page.policy
    assert NASTY not in text
    assert "&lt;script&gt;" in text  # without JavaScript
    assert NASTY in {row["name"] for row in page.rows("Snapshots")}


def test_the_page_has_all_rows(audit: AuditResult, tmp_path: Path) -> None:
    page = Page(reports.write(audit, tmp_path)["audit.html"].read_text())
    for title, frame in (("AMIs", audit.inventory.amis), ("Snapshots", audit.inventory.snapshots)):
        shown = {row["resource_id"]: row for row in page.rows(title)}
        assert list(shown) == list(frame["resource_id"])
        cost = frame.set_index("resource_id")["monthly_usd"].round(3)
        assert {name: row["monthly_usd"] for name, row in shown.items()} == cost.to_dict()
    found = page.rows("Findings")
    assert [row["resource_id"] for row in found] == list(audit.findings["resource_id"])
    (public,) = [row for row in found if row["rule"] == "public"]
    assert "--launch-permission" in public["remediation"]
    (used,) = [row for row in page.rows("AMIs") if row["use"] == "used"]
    assert used["users"].startswith("launch-template lt-")


def test_the_page_shows_the_trend_of_complete_audits_of_the_same_regions(own: Owner, tmp_path: Path) -> None:
    own.ami(tags=DIGEST)
    first = AuditResult.of(own.scan(regions=[REGION]))
    assert "audits</span>" not in reports.write(first, tmp_path)["audit.html"].read_text()
    first.save()
    AuditResult.of(own.scan(regions=[REGION, "eu-west-1"])).save()
    own.share(own.ami(tags=DIGEST), "all")
    later = datetime.now(UTC) + timedelta(hours=1)
    scanned = own.scan(regions=[REGION])
    run = replace(scanned.run, run_id="20990101T000000000Z-audit-inventory-abcdef")
    now = AuditResult.of(replace(scanned, scanned_at=later, run=run))
    past = past_audits(now.inventory, open_tables(load()))
    cost = views.totals(first.inventory)["monthly_usd"]
    (found,) = past.round({"monthly_usd": 2}).to_dict("records")
    assert (found["amis"], found["snapshots"], found["monthly_usd"], found["urgent"]) == (1, 1, cost, 0)
    text = reports.write(now, tmp_path)["audit.html"].read_text()
    assert text.count("2 audits</span>") == 4
    assert "<b>2</b><span>AMIs</span>" in text


def test_the_page_shows_the_cost_of_each_image_by_age(audit: AuditResult, tmp_path: Path) -> None:
    frame, now = audit.inventory.frame, audit.inventory.scanned_at
    created = [now - timedelta(days=days) for days in range(len(frame))]  # the AMIs come first
    frame = frame.assign(monthly_usd=2.5, image="web", created_at=pd.Series(created, frame.index))
    inventory = replace(audit.inventory, frame=frame.sort_values("kind", ignore_index=True))
    text = reports.write(replace(audit, inventory=inventory), tmp_path)["audit.html"].read_text()
    assert "No earlier scan to compare with." in text
    assert "No changes." not in text  # without an earlier scan, that is not known
    assert re.search(r">\$7.50, [\d.]+ GiB, median \d day", text)
    assert '<rect x="0.00%" width="100.00%" height="100%" class="part-1">' in text
    assert "<title>1 week: 7.50 USD per month</title>" in text


def test_result_json_and_the_job_summary_list_the_findings(audit: AuditResult) -> None:
    audit.save()
    result = json.loads((audit.inventory.run.folder / "result.json").read_text())
    assert (result["status"], result["amis"], result["findings_high"]) == ("done", 2, 1)
    assert (result["account"], result["regions"]) == (audit.inventory.frame["account"].iloc[0], 1)
    assert places(result) == {"account": audit.inventory.frame["account"].iloc[0], "region": REGION}
    text = summary(result)
    assert "| high | public | 1 |" in text
    assert f"### {len(audit.findings)} findings" in text


def test_fail_on_fails_the_run_from_a_severity(audit: AuditResult) -> None:
    audit.raise_for_status()
    replace(audit, fail_on="critical").raise_for_status()
    with pytest.raises(errors.AuditError, match="1 finding with severity critical or high"):
        replace(audit, fail_on="high").raise_for_status()


def test_an_audit_with_unread_sources_is_partial(own: Owner) -> None:
    own.fail("autoscaling:*", "AccessDenied")
    audit = AuditResult.of(own.scan(regions=[REGION]))
    audit.save()
    result = json.loads((audit.inventory.run.folder / "result.json").read_text())
    assert result["status"] == "partial"
    with pytest.raises(errors.PartialError, match=r"The audit is partial.*Auto Scaling groups of"):
        audit.raise_for_status()


@pytest.mark.parametrize("table", ["amis", "promotions", "retirements", "packages", "proofs", "inventory"])
@pytest.mark.variants
def test_an_audit_with_a_damaged_table_is_partial(own: Owner, table: str) -> None:
    """The resources are listed, and a rule that needs the table finds nothing instead of something wrong."""
    ami = own.ami(tags=DIGEST)
    tables = open_tables(load())
    sync(regions=[REGION], tables=tables, session=own.aws.session())
    own.share(ami, "all")
    scanned = own.scan(regions=[REGION])
    assert "drifted" in set(evaluate(scanned, tables=tables)["rule"])
    log = Path(tables.location, table, "_delta_log")
    log.mkdir(parents=True, exist_ok=True)
    (log / f"{len([*log.glob('*.json')]):020}.json").write_text("{")
    audit = AuditResult.of(scanned, AuditCriteria.of(old_days=365, known_accounts=[], packages=["openssl<3"]))
    audit.save()
    result = json.loads((audit.inventory.run.folder / "result.json").read_text())
    assert result["status"] == "partial"
    (problem, *_) = result["problems"]
    assert str(log.parent) in problem
    first = "No earlier scan to compare with."
    assert result["changes"] == str(audit.show_changes())
    assert (result["changes"] == first) is (table != "inventory")
    assert ami in set(audit.findings.query("rule == 'public'")["resource_id"])
    assert ("drifted" in set(audit.findings["rule"])) is (table not in ("amis", "promotions", "retirements"))
    assert ("contents-unknown" in set(audit.findings["rule"])) is (table != "packages")
    with pytest.raises(errors.PartialError, match="with the tables"):
        audit.raise_for_status()


def test_an_unread_source_does_not_count_for_fail_on(own: Owner) -> None:
    own.fail("autoscaling:*", "AccessDenied")
    own.template(own.ami(tags=DIGEST))
    audit = AuditResult.of(own.scan(regions=[REGION]))
    assert set(audit.findings.query("severity in ['critical', 'high']")["rule"]) == {"unread"}
    with pytest.raises(errors.PartialError):
        replace(audit, fail_on="high").raise_for_status()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fail_on": "hgih"}, "high"),
        ({"known_accounts": ["12"]}, "12 digits"),
        ({"packages": ["openssl<<3"]}, "openssl"),
        ({"old_days": -1}, "days"),
    ],
)
def test_invalid_parameters_are_refused_before_the_scan(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ParameterError, match=message):
        check("all", **parameters)  # the regions need no name, as in a scan


def test_the_second_audit_lists_what_changed(own: Owner, audit: AuditResult) -> None:
    audit.save()
    fresh = own.ami(tags=DIGEST)
    again = AuditResult.of(own.scan(regions=[REGION]))
    assert fresh in set(again.changes.frame["resource_id"])
    assert again.changes.count("added") == 2


def test_findings_are_shown_with_their_fix(audit: AuditResult) -> None:
    shown: Any = audit.show_findings("high")
    assert list(shown.frame["rule"]) == ["public"]
    severity, reason, fix = repr(shown).splitlines()
    assert severity.startswith("high public us-east-1 ami-")
    assert "may launch it" in reason
    assert fix.strip().startswith("aws ec2 modify-image-attribute")
    assert "aws ec2 modify-image-attribute" in shown._repr_html_()
    assert NASTY not in audit.show_findings()._repr_html_()


def test_only_some_findings_of_each_rule_are_shown(audit: AuditResult) -> None:
    shown = audit.show_findings(most=1)
    assert shown.frame.groupby("rule").size().max() == 1
    assert f"{len(audit.findings) - len(shown.frame)} more in findings.csv" in repr(shown)
    assert repr(audit.show_findings("critical")) == "No findings with severity critical."


def test_the_inventory_has_the_time_of_the_last_proof_of_each_ami(own: Owner) -> None:
    proven, changed, never = (own.ami(tags=DIGEST) for _ in range(3))
    first, second = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 2, tzinfo=UTC)
    rows = [
        (proven, "proven", first),
        (proven, "proven", second),
        (proven, "not provable", datetime(2026, 11, 3, tzinfo=UTC)),
        (changed, "proven", first),
        (changed, "differs", second),
    ]
    tables = open_tables(load())
    for number, (ami, verdict, moment) in enumerate(rows):
        row = {"run_id": f"run-{number}", "proved_at": moment, "region": REGION, "ami_id": ami}
        tables.append("proofs", [{**row, "verdict": verdict, "extent": "whole"}])
    audit = AuditResult.of(own.scan(regions=[REGION]))
    audit.save()
    proven_at = audit.inventory.amis.set_index("resource_id")["proven_at"]
    assert proven_at[proven] == second
    assert proven_at[[changed, never]].isna().all()
    assert "2026-11-02 00:00" in str(audit.show_inventory("ami"))
    assert pd.notna(tables.read("inventory").set_index("resource_id")["proven_at"][proven])
