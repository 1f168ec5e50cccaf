"""Findings can be acknowledged with a reason until a time, and exported."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from tests.audit.account import DIGEST, FOREIGN_ACCOUNT, OTHER_ACCOUNT, REGION, Owner
from tests.pages import Page
from vmsnix_ops import audit, errors
from vmsnix_ops.audit.reports import AuditResult
from vmsnix_ops.cli import main
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from pathlib import Path

REASON = "test account, deleted in March"


@pytest.fixture
def public(own: Owner) -> str:
    """A public AMI."""
    ami = own.ami(tags=DIGEST)
    own.share(ami, "all")
    return ami


def audited(own: Owner) -> AuditResult:
    """Audit the account as a new run, and store the result."""
    scanned = own.scan(regions=[REGION])
    run = replace(scanned.run, run_id=f"run-{scanned.scanned_at:%H%M%S%f}")
    found = AuditResult.of(replace(scanned, run=run))
    found.save()
    return found


def id_of(found: AuditResult, rule: str, resource: str) -> str:
    (finding,) = found.findings.query("rule == @rule and resource_id == @resource")["finding_id"]
    return str(finding)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["findings", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_finding_has_the_same_identity_in_every_audit(own: Owner, public: str) -> None:
    first = audited(own)
    own.aws.clock.advance(40 * 86_400)
    second = audited(own)
    assert id_of(first, "public", public) == id_of(second, "public", public)
    assert re.fullmatch("[0-9a-f]{16}", id_of(first, "public", public))
    assert second.findings["finding_id"].is_unique
    stored = open_tables(load()).read("findings")
    assert set(stored["finding_id"]) == {*first.findings["finding_id"], *second.findings["finding_id"]}


@pytest.mark.long(seconds=4)
def test_another_subject_is_another_finding(own: Owner) -> None:
    ami = own.ami(tags=DIGEST)
    own.share(ami, OTHER_ACCOUNT)
    before = id_of(audited(own), "shared-with-unknown", ami)
    own.share(ami, FOREIGN_ACCOUNT)
    assert id_of(audited(own), "shared-with-unknown", ami) != before


def test_an_acknowledged_finding_is_shown_apart_and_does_not_fail_the_audit(own: Owner, public: str) -> None:
    first = audited(own)
    finding = id_of(first, "public", public)
    assert isinstance(replace(first, fail_on="high").error, errors.AuditError)
    audit.acknowledge(finding, reason=REASON, until="90D")

    found = replace(audited(own), fail_on="high")
    assert found.error is None
    values = json.loads((found.save()).read_text())
    assert (values["status"], values["findings_high"], values["findings_acknowledged"]) == ("done", 0, 1)
    assert f"{len(found.findings) - 1} findings, 1 acknowledged" == values["tables"][0]["title"]
    (row,) = found.summary().query("rule == 'public'").to_dict("records")
    assert (row["findings"], row["acknowledged"]) == (0, 1)

    shown = found.show_findings("high")
    assert finding not in str(shown)
    assert "1 acknowledged finding not listed" in str(shown)
    folded = re.search(r"<details>.*</details>", shown._repr_html_(), re.DOTALL)
    assert folded is not None
    assert REASON in folded[0]
    text = (found.run.folder / "audit.html").read_text()
    (row,) = Page(text).rows("Acknowledged findings")
    assert (row["rule"], row["acknowledged_reason"]) == ("public", REASON)
    assert "public" not in {row["rule"] for row in Page(text).rows("Findings")}
    assert "<summary>1 acknowledged</summary>" in text
    stored = open_tables(load()).read("findings", where=[("run_id", "==", found.run_id)])
    assert list(stored.query("acknowledged")["finding_id"]) == [finding]


def test_an_acknowledgement_ends_when_it_expires_or_is_withdrawn(own: Owner, public: str) -> None:
    first = audited(own)
    finding = id_of(first, "public", public)
    rows = audit.acknowledge([finding], reason=REASON, until=timedelta(days=30))
    # As if it had been acknowledged 31 days ago.
    earlier = {
        "recorded_at": rows["recorded_at"] - timedelta(days=31),
        "until": rows["until"] - timedelta(days=31),
    }
    expired = rows.assign(finding_id="0" * 16, **earlier)
    open_tables(load()).append("acknowledgements", expired)
    listed = audit.list_acknowledgements().set_index("finding_id")["expired"]
    assert listed.to_dict() == {finding: False, "0" * 16: True}
    assert (
        pd.isna(AuditResult.of(first.inventory).findings["acknowledged_until"]).sum()
        == len(first.findings) - 1
    )

    audit.withdraw(finding)
    assert AuditResult.of(first.inventory).findings["acknowledged_until"].isna().all()
    assert finding not in set(audit.list_acknowledgements()["finding_id"])
    with pytest.raises(errors.ParameterError, match="is not acknowledged"):
        audit.withdraw(finding)


def test_an_expired_acknowledgement_does_not_cover_its_finding(own: Owner, public: str) -> None:
    first = audited(own)
    rows = audit.acknowledge(id_of(first, "public", public), reason=REASON, until="30D")
    now = datetime.now(UTC)
    ended = rows.assign(recorded_at=now, until=now - timedelta(seconds=1))
    ended["until"] = ended["until"].astype("datetime64[us, UTC]")
    open_tables(load()).append("acknowledgements", ended)
    assert AuditResult.of(first.inventory).findings["acknowledged_until"].isna().all()


@pytest.mark.long(seconds=4)
def test_an_acknowledgement_does_not_cover_a_higher_severity(own: Owner) -> None:
    ami = own.ami(tags=DIGEST)
    instance = own.launch(ami)
    own.client("ec2").disable_image(ImageId=ami)
    first = audited(own)
    finding = id_of(first, "disabled-in-use", ami)
    assert instance
    assert set(first.findings.query("finding_id == @finding")["severity"]) == {"low"}
    audit.acknowledge(finding, reason=REASON, until="30D")
    own.client("ec2").enable_image(ImageId=ami)
    own.template(ami)
    own.client("ec2").disable_image(ImageId=ami)
    (row,) = audited(own).findings.query("finding_id == @finding").to_dict("records")
    assert row["severity"] == "critical"
    assert pd.isna(row["acknowledged_until"])


def test_unknown_findings_and_invalid_times_are_refused(own: Owner, public: str) -> None:
    finding = id_of(audited(own), "public", public)
    wrong = finding[:-1] + ("0" if finding[-1] != "0" else "1")
    with pytest.raises(errors.ParameterError, match=f"Unknown finding '{wrong}'. Did you mean '{finding}'"):
        audit.acknowledge([finding, wrong], reason=REASON, until="90D")
    for until, why in (("2020-01-01", "in the past"), ("soon", "neither a duration"), ("", "needs a time")):
        with pytest.raises(errors.ParameterError, match=why):
            audit.acknowledge(finding, reason=REASON, until=until)
    with pytest.raises(errors.ParameterError, match="No reason given"):
        audit.acknowledge(finding, reason=" ", until="90D")
    assert audit.list_acknowledgements().empty


def test_a_damaged_table_of_acknowledgements_hides_no_finding(
    own: Owner, public: str, tmp_path: Path
) -> None:
    first = audited(own)
    audit.acknowledge(id_of(first, "public", public), reason=REASON, until="90D")
    (tmp_path / "state/history/acknowledgements/_delta_log/00000000000000000000.json").write_text("{")
    found = AuditResult.of(first.inventory)
    assert public in set(found.show_findings("high").frame["resource_id"])
    assert any("Acknowledged findings are listed with the others" in text for text in found.problems)


def test_the_command_lists_acknowledges_and_withdraws(
    own: Owner, public: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "list")[0] == 2
    finding = id_of(audited(own), "public", public)
    assert finding in run(capsys, "list", "--severity", "high")[1]
    assert run(capsys, "list", "--acknowledged")[1] == "No acknowledged findings.\n"
    code, out, _ = run(capsys, "ack", finding, "--reason", REASON, "--until", "2099-06-30")
    assert (code, out) == (0, f"{finding}  public {public}: acknowledged until 2099-06-30 23:59 UTC\n")
    assert finding not in run(capsys, "list")[1]
    assert "1 acknowledged finding not listed" in run(capsys, "list")[1]
    assert run(capsys, "list", "--rule", "failed")[1].startswith("No matching findings.\n")
    code, _, err = run(capsys, "list", "--rule", "publik")
    assert code == 2
    assert "Did you mean 'public'?" in err
    listed = run(capsys, "list", "--acknowledged")[1]
    assert finding in listed
    assert REASON in listed
    assert run(capsys, "withdraw", finding)[1] == f"{finding}  public {public}: no longer acknowledged\n"
    code, _, err = run(capsys, "ack", "f" * 16, "--reason", REASON, "--until", "90D")
    assert code == 2
    assert "Unknown finding" in err


def test_csv_json_and_sarif_have_all_findings(
    own: Owner, public: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.ami(Name="@SUM(A1)")
    found = audited(own)
    finding = id_of(found, "public", public)
    audit.acknowledge(finding, reason=REASON, until="2099-06-30")
    exported = {kind: run(capsys, "export", "--format", kind)[1] for kind in ("csv", "json", "sarif")}
    rows = list(csv.DictReader(io.StringIO(exported["csv"])))
    ids = sorted(found.findings["finding_id"])
    assert sorted(row["finding_id"] for row in rows) == ids
    assert "'@SUM(A1)" in {row["name"] for row in rows}
    values = {row["finding_id"]: row for row in json.loads(exported["json"])}
    assert sorted(values) == ids
    assert values[finding]["acknowledged_reason"] == REASON
    assert {key for key, row in values.items() if row["acknowledged"]} == {finding}
    check_sarif(json.loads(exported["sarif"]), found.findings, finding)
    target = tmp_path / "findings.sarif"
    assert run(capsys, "export", "--format", "sarif", "--output", str(target)) == (0, "", "")
    assert target.read_text() == exported["sarif"]


def check_sarif(log: dict[str, Any], findings: pd.DataFrame, acknowledged: str) -> None:
    """Check a log as SARIF 2.1.0 requires it (sections 3.13, 3.14, 3.18, 3.19, 3.27 and 3.49)."""
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (one,) = log["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert one["tool"]["driver"]["name"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert {rule["id"] for rule in rules} == set(findings["rule"])
    assert all(rule["shortDescription"]["text"] for rule in rules)
    by_id = findings.set_index("finding_id")
    assert sorted(result["partialFingerprints"]["findingId/v1"] for result in one["results"]) == sorted(
        by_id.index
    )
    for result in one["results"]:
        row = by_id.loc[result["partialFingerprints"]["findingId/v1"]]
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == row["rule"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"].startswith(row["reason"])
        (place,) = result["locations"]
        assert re.fullmatch(r"[\w/.%~-]+", place["physicalLocation"]["artifactLocation"]["uri"])
        assert place["logicalLocations"][0]["fullyQualifiedName"].endswith(row["resource_id"])
        suppressions = result.get("suppressions", [])
        assert [one["kind"] for one in suppressions] == (["external"] if row.name == acknowledged else [])
        assert all(one["status"] == "accepted" and REASON in one["justification"] for one in suppressions)
