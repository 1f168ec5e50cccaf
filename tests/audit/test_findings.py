"""Each rule finds its problem and nothing else, and its remediation is a command."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.account import DIGEST, FOREIGN_ACCOUNT, OTHER_ACCOUNT, REGION, Owner
from vmsnix_ops import errors
from vmsnix_ops.audit import findings
from vmsnix_ops.audit.findings import RULES, AuditCriteria, Command
from vmsnix_ops.audit.reports import AuditResult
from vmsnix_ops.audit.rules import evaluate
from vmsnix_ops.audit.sync import sync
from vmsnix_ops.channels import verify
from vmsnix_ops.nix.versions import parse_condition
from vmsnix_ops.outcomes import SEVERITIES
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from vmsnix_ops.audit.inventory import Inventory

TAGS = {"owner": "platform", **DIGEST}
FOREIGN = {"owner": "platform"}


@dataclass
class Found:
    """The inventory and the findings of an audit."""

    inventory: Inventory
    frame: pd.DataFrame

    def by(self, rule: str) -> dict[str, dict[str, Any]]:
        """Return the findings of one rule by resource."""
        rows = self.frame[self.frame["rule"] == rule].to_dict("records")
        return {str(row["resource_id"]): {str(name): row[name] for name in row} for row in rows}


@pytest.fixture
def audit(own: Owner, tmp_path: Path) -> Callable[..., Found]:
    def run(regions: list[str] | None = None, **criteria: Any) -> Found:
        scanned = own.scan(regions=regions or [REGION])
        judged = evaluate(scanned, criteria=AuditCriteria(**criteria), tables=Tables(tmp_path / "history"))
        for rule, severities in judged.groupby("rule")["severity"]:
            assert set(severities) <= set(RULES[str(rule)].severities)
        return Found(scanned, judged)

    return run


def record(tmp_path: Path, ami: str, **row: Any) -> None:
    """Write a row of the table ``amis`` as a publish would."""
    now = datetime.now(UTC)
    whole = {"ami_id": ami, "name": "x", "region": REGION, "recorded_at": now, "source": "publish", **row}
    Tables(tmp_path / "history").append("amis", [whole])


def test_a_normal_ami_is_only_reported_as_unencrypted(own: Owner, audit: Any) -> None:
    ami = own.ami(tags=TAGS)
    found = audit()
    about = found.frame[found.frame["resource_id"] == ami]
    assert sorted(about["rule"]) == ["unencrypted"]
    assert list(found.frame.columns) == list(findings.COLUMNS)


def test_an_empty_account_has_no_findings(audit: Any) -> None:
    found = audit()
    assert (len(found.frame), list(found.frame.columns)) == (0, list(findings.COLUMNS))
    assert len(AuditResult.of(found.inventory).summary()) == 0


def test_public_and_shared_amis_are_reported(own: Owner, audit: Any) -> None:
    public, known, unrecorded = own.ami(tags=TAGS), own.ami(tags=TAGS), own.ami(tags=TAGS)
    own.share(public, "all")
    own.share(known, OTHER_ACCOUNT)
    own.share(unrecorded, OTHER_ACCOUNT, FOREIGN_ACCOUNT)
    found = audit(known_accounts=frozenset({OTHER_ACCOUNT}))
    assert set(found.by("public")) == {public}
    assert found.by("public")[public]["severity"] == "high"
    assert set(found.by("shared-with-unknown")) == {unrecorded}
    one = found.by("shared-with-unknown")[unrecorded]
    assert FOREIGN_ACCOUNT in one["reason"]
    assert OTHER_ACCOUNT not in one["reason"]
    assert "Remove=[{UserId=" + FOREIGN_ACCOUNT + "}]" in one["remediation"].argv
    assert set(found.by("use-unknown")) == {public, known, unrecorded}


def test_missing_imdsv2_tags_and_old_age_are_reported(
    own: Owner, audit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose, bare = own.ami(tags=TAGS, ImdsSupport="v2.0"), own.ami()
    image = own.table("images")[loose]
    image.imds, image.created = "", datetime.now(UTC) - timedelta(days=400)
    found = audit()
    assert set(found.by("no-imdsv2")) == {loose}
    assert set(found.by("old")) == {loose}
    assert "400 days old" in found.by("old")[loose]["reason"]
    assert bare in found.by("untagged")
    assert loose not in found.by("untagged")


def test_unused_and_deprecated_amis_are_reported(own: Owner, audit: Any) -> None:
    used, unused, ours = own.ami(tags=FOREIGN), own.ami(tags=FOREIGN), own.ami(tags=TAGS)
    own.template(used)
    image = own.table("images")[used]
    image.deprecate_at = datetime.now(UTC) - timedelta(days=3)
    found = audit()
    assert set(found.by("unreferenced")) == {unused}
    assert ours in set(found.inventory.amis["resource_id"])
    assert set(found.by("deprecated-in-use")) == {used}
    assert "launch-template" in found.by("deprecated-in-use")[used]["evidence"]


def test_the_usage_of_a_young_ami_is_unknown(own: Owner, audit: Any) -> None:
    """AWS reports launches a day late, and a scan lists snapshots before AMIs."""
    ami, settled = own.ami(tags=FOREIGN), own.ami(tags=FOREIGN)
    images = own.table("images")
    images[ami].created = datetime.now(UTC)
    snapshots = own.table("snapshots")
    for one in (ami, settled):
        del snapshots[images[one].snapshot_ids()[0]]
    found = audit()
    assert set(found.by("unreferenced")) == set(found.by("missing-snapshot")) == {settled}
    assert found.by("use-unknown")[ami]["evidence"].startswith("younger than two days")


def test_deprecated_and_disabled_amis_are_not_reported_as_old(own: Owner, audit: Any) -> None:
    dated, disabled, old = own.ami(tags=TAGS), own.ami(tags=TAGS), own.ami(tags=TAGS)
    images = own.table("images")
    for one in (dated, disabled, old):
        images[one].created = datetime.now(UTC) - timedelta(days=400)
    images[dated].deprecate_at = datetime.now(UTC) + timedelta(days=30)
    own.client("ec2").disable_image(ImageId=disabled)
    assert set(audit().by("old")) == {old}


def test_a_used_ami_has_no_command_that_deregisters_it(own: Owner, audit: Any) -> None:
    half = own.ami(tags=TAGS)
    own.launch(half)
    (lost,) = own.table("images")[half].snapshot_ids()
    del own.table("snapshots")[lost]
    assert audit().by("missing-snapshot")[half]["remediation"] is None


def test_a_disabled_ami_is_not_reported_as_unused(own: Owner, audit: Any) -> None:
    ami = own.ami(tags=FOREIGN)
    own.client("ec2").disable_image(ImageId=ami)
    assert audit().by("unreferenced") == {}


def test_orphans_are_snapshots_of_images_and_not_backups(own: Owner, audit: Any) -> None:
    backup, ours = own.snapshot(), own.snapshot(tags=TAGS)
    copied = own.client("ec2").copy_snapshot(
        SourceRegion=REGION,
        SourceSnapshotId=backup,
        Description="Copied for DestinationAmi ami-0123456789abcdef0 from SourceAmi ami-0aaaaaaaaaaaaaaaa",
    )["SnapshotId"]
    own.aws.clock.advance(600)
    ami, data = own.ami(tags=TAGS), own.snapshot(tags=TAGS)
    disk = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": data}}]
    own.client("ec2").create_launch_template(
        LaunchTemplateName="database", LaunchTemplateData={"ImageId": ami, "BlockDeviceMappings": disk}
    )
    snapshots = own.table("snapshots")
    for one in (backup, ours, copied):
        snapshots[one].started -= timedelta(days=9)
    young = own.snapshot(tags=TAGS)  # an unfinished publish may need it
    found = audit()
    assert set(found.by("orphan-snapshot")) == {copied}
    assert set(found.by("retirement-due")) == {ours}
    assert young in set(found.inventory.frame["resource_id"])
    assert ami in set(found.inventory.amis["resource_id"])


def test_an_ami_whose_snapshot_is_missing_is_reported(own: Owner, audit: Any) -> None:
    whole, half = own.ami(tags=TAGS), own.ami(tags=TAGS)
    snapshots = own.table("snapshots")
    (lost,) = own.table("images")[half].snapshot_ids()
    del snapshots[lost]
    found = audit()
    assert set(found.by("missing-snapshot")) == {half}
    assert lost in found.by("missing-snapshot")[half]["reason"]
    assert whole not in found.by("missing-snapshot")


def test_a_failed_copy_is_reported_with_its_reason(own: Owner, audit: Any) -> None:
    source = own.ami(tags=TAGS)
    copy = own.client("ec2").copy_image(SourceRegion=REGION, SourceImageId=source, Name="copy")["ImageId"]
    images = own.table("images")
    snapshots = own.table("snapshots")
    images[copy].failure = "Copy failed"
    snapshots[images[copy].snapshot_ids()[0]].failure = "Given key ID is not accessible"
    own.aws.clock.advance(3600)
    found = audit()
    assert copy in found.by("failed")
    assert "Given key ID is not accessible" in found.by("failed")[copy]["reason"]
    assert source not in found.by("failed")


def test_leftovers_of_uploads_are_reported(own: Owner, audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own.aws.prepare(bucket="vmsnix-images")
    monkeypatch.setenv("VMSNIX_BUCKET", "vmsnix-images")
    key = "vmsnix/it's $(x).vhd"
    s3 = own.client("s3")
    s3.put_object(Bucket="vmsnix-images", Key=key, Body=b"12345")
    upload = s3.create_multipart_upload(Bucket="vmsnix-images", Key=key)["UploadId"]
    direct = own.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
    assert audit().by("s3-leftover") == audit().by("unfinished-upload") == {}
    found = audit(unfinished_hours=0)
    assert set(found.by("s3-leftover")) == {key, upload}
    assert set(found.by("unfinished-upload")) == {direct}
    assert f"--key={key}" in found.by("s3-leftover")[upload]["remediation"].argv


def test_failed_and_running_imports_are_reported(own: Owner, audit: Any) -> None:
    own.aws.prepare(bucket="vmsnix-images")
    own.client("s3").put_object(Bucket="vmsnix-images", Key="vmsnix/a.vhd", Body=b"no disk")
    container = {"Format": "VHD", "UserBucket": {"S3Bucket": "vmsnix-images", "S3Key": "vmsnix/a.vhd"}}
    task = own.client("ec2").import_snapshot(DiskContainer=container)["ImportTaskId"]
    assert audit().by("import-tasks")[task]["severity"] == "info"
    own.aws.clock.advance(3600)
    audit()
    own.aws.clock.advance(3600)
    one = audit().by("import-tasks")[task]
    assert (one["severity"], "Disk validation failed" in one["reason"]) == ("low", True)


def test_references_to_missing_and_foreign_amis_are_reported(own: Owner, audit: Any) -> None:
    other = Owner(own.aws, own.aws.other_account(FOREIGN_ACCOUNT))
    deregistered, theirs = own.ami(), other.ami()
    other.share(theirs, own.account)
    own.client("ssm").put_parameter(Name="/app/ami", Type="String", Value=deregistered)
    template, foreign = own.template(deregistered, "old"), own.template(theirs, "foreign")
    instance = own.launch(deregistered)
    own.client("ec2").deregister_image(ImageId=deregistered)
    found = audit()
    missing = found.by("reference-to-missing")
    assert {one: row["severity"] for one, row in missing.items()} == {
        "/app/ami": "low",
        template: "critical",
        instance: "info",
    }
    assert set(found.by("reference-to-foreign")) == {foreign}
    assert FOREIGN_ACCOUNT in found.by("reference-to-foreign")[foreign]["reason"]


def test_amis_that_vmsnix_did_not_publish_are_reported(own: Owner, audit: Any, tmp_path: Path) -> None:
    foreign, known, lost = own.ami(tags={"owner": "x"}), own.ami(tags=TAGS), own.ami(tags=TAGS)
    bare = own.ami()
    assert set(audit().by("not-published-by-us")) == {foreign, bare}
    record(tmp_path, known)
    found = audit().by("not-published-by-us")
    assert set(found) == {foreign, bare, lost}
    assert str(found[lost]["remediation"]) == f"vmsnix history sync --region {REGION}"


def test_drift_is_reported_by_field(own: Owner, audit: Any, tmp_path: Path) -> None:
    same, other = own.ami(tags=TAGS, Name="same"), own.ami(tags=TAGS, Name="other")
    facts = {"state": "available", "public": False, "size_gib": 3, "digest": "d" * 64}
    facts |= {"boot_mode": "uefi", "root_device": "/dev/sda1"}
    record(tmp_path, same, **facts | {"name": "same"})
    record(tmp_path, other, **facts | {"name": "other"})
    assert audit().by("drifted") == {}
    own.share(other, "all")
    found = audit().by("drifted")
    assert set(found) == {other}
    assert "public was False, is True" in found[other]["reason"]


def test_drift_is_the_same_as_in_a_verification_and_remains_after_a_sync(
    own: Owner, audit: Any, tmp_path: Path
) -> None:
    ami, tables = own.ami(tags=TAGS, Name="web"), Tables(tmp_path / "history")
    facts = {"name": "web", "state": "available", "digest": "d" * 64, "tags": json.dumps(TAGS)}
    record(tmp_path, ami, **facts, public=False, account=own.account)

    def differing() -> set[str]:
        drift = verify.check(regions=[REGION], tables=tables, session=own.aws.session()).drift
        reason = audit().by("drifted").get(ami, {}).get("reason", "record: . The")
        shown = reason.partition("record: ")[2].partition(". The")[0]
        assert {word.partition(" was ")[0] for word in shown.split("; ") if word} == set(drift["field"])
        return set(drift["field"])

    own.share(ami, "all")
    assert differing() == {"public"}
    sync(regions=[REGION], tables=tables, session=own.aws.session())
    assert differing() == {"public"}
    row = {"ami_id": ami, "region": REGION, "promoted_at": datetime.now(UTC), "how": "promote"}
    row |= {"run_id": "r", "account": own.account, "public": True, "protected": False}
    tables.append("promotions", [row])
    assert differing() == set()
    own.client("ec2").delete_tags(Resources=[ami], Tags=[{"Key": "vmsnix:image"}])
    assert differing() == {"tag vmsnix:image"}


def test_amis_with_unwanted_packages_are_reported(own: Owner, audit: Any, tmp_path: Path) -> None:
    old, new, none = (own.ami(tags={**TAGS, "vmsnix:digest": letter * 64}) for letter in ("a", "b", "c"))
    unknown, now = own.ami(tags={**TAGS, "vmsnix:digest": "e" * 64}), datetime.now(UTC)
    foreign = own.ami(tags={"owner": "x"})
    rows = [
        {"digest": letter * 64, "name": name, "version": version, "recorded_at": now, "bytes": 1,
         "store_path": f"/nix/store/{letter}-{name}-{version}"}
        for letter, name, version in (
            ("a", "openssl", "3.0.9"), ("a", "openssl", "1.1.1w"), ("a", "xz", "5.6.0"),
            ("b", "openssl", "3.0.15"), ("c", "openssl-doc", "1.0"),
        )
    ]  # fmt: skip
    Tables(tmp_path / "history").append("packages", rows)
    found = audit(
        packages=(parse_condition("openssl<3.0.15"), parse_condition("xz=5.6.0"), parse_condition("absent"))
    )
    reasons = list(found.frame[found.frame["rule"] == "contains-package"]["reason"])
    assert sorted(reason.split(". ")[0] for reason in reasons) == [
        "It contains openssl 1.1.1w, 3.0.9 (packages: openssl<3.0.15)",
        "It contains xz 5.6.0 (packages: xz=5.6.0)",
    ]
    assert set(found.by("contains-package")) == {old}
    assert set(found.by("contents-unknown")) == {unknown, foreign}
    assert {new, none} <= set(found.inventory.amis["resource_id"])
    assert audit().by("contents-unknown") == {}


def test_an_ami_whose_newest_proof_differs_is_critical(own: Owner, audit: Any, tmp_path: Path) -> None:
    changed, restored, disabled = (own.ami(tags=TAGS) for _ in range(3))
    own.template(disabled)
    own.template(changed, "deprecated")
    own.table("images")[changed].deprecate_at = datetime.now(UTC) - timedelta(days=3)
    own.client("ec2").disable_image(ImageId=disabled)
    days = [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2, 3)]
    rows = [
        *((changed, "proven", days[0]), (changed, "differs", days[1]), (changed, "not provable", days[2])),
        *((restored, "differs", days[0]), (restored, "proven", days[1]), (disabled, "differs", days[0])),
    ]
    for number, (ami, verdict, moment) in enumerate(rows):
        row = {"run_id": f"run-{number}", "proved_at": moment, "region": REGION, "ami_id": ami}
        row |= {"verdict": verdict, "extent": "whole", "digest": "b" * 64, "reason": "content"}
        Tables(tmp_path / "history").append("proofs", [row])
    found = audit().by("proof-differs")
    assert {one["severity"] for one in found.values()} == {"critical"}
    assert set(found) == {changed, disabled}
    assert "on 2026-11-02, found that it does not contain" in found[changed]["reason"]
    assert found[changed]["evidence"] == f"table proofs: content, expected identity {'b' * 64}"
    assert found[changed]["remediation"] == Command.of(
        "aws ec2 disable-image --region {region} --image-id {resource_id}", region=REGION, resource_id=changed
    )
    assert found[disabled]["remediation"] is None  # disabled already
    for rule, ami in (("disabled-in-use", disabled), ("deprecated-in-use", changed)):
        in_use = audit().by(rule)[ami]
        assert in_use["remediation"] is None  # it must not be used again
        assert "its content was changed" in in_use["reason"]


def test_a_sample_that_missed_a_change_does_not_end_the_finding(
    own: Owner, audit: Any, tmp_path: Path
) -> None:
    changed, mistaken, restored = (own.ami(tags=TAGS) for _ in range(3))
    rows = [
        *((changed, "differs", "whole", "b"), (changed, "proven", "sample", "b")),
        # The operator gave the identity of another image at first.
        *((mistaken, "differs", "sample", "c"), (mistaken, "proven", "sample", "b")),
        *((restored, "differs", "sample", "b"), (restored, "proven", "whole", "b")),
        (restored, "proven", "sample", "b"),
    ]
    for day, (ami, verdict, extent, digit) in enumerate(rows, 1):
        moment = datetime(2026, 11, day, tzinfo=UTC)
        row = {"run_id": f"run-{day}", "proved_at": moment, "region": REGION, "ami_id": ami}
        row |= {"verdict": verdict, "extent": extent, "digest": digit * 64, "reason": "content"}
        Tables(tmp_path / "history").append("proofs", [row])
    assert set(audit().by("proof-differs")) == {changed}


def test_a_source_that_cannot_be_read_is_a_finding_with_a_fix(own: Owner, audit: Any) -> None:
    own.ami(tags=TAGS)
    message = "User: x is not authorized to perform: ssm:DescribeParameters on resource: *"
    own.fail("ssm:DescribeParameters", "AccessDeniedException", 400, message=message)
    found = audit()
    (one,) = found.by("unread").values()
    assert (one["severity"], one["region"], one["resource_id"]) == ("high", REGION, "parameters")
    assert "ssm:DescribeParameters" in one["reason"]
    assert found.by("unreferenced") == {}


def test_a_region_that_was_not_read_one_by_one_is_reported(own: Owner, tmp_path: Path) -> None:
    own.ami(tags=TAGS)
    found = evaluate(own.scan(regions=[REGION], one_by_one="no"), rules=["not-read-one-by-one"])
    assert list(found["resource_id"]) == [REGION]
    assert "1 AMI:" in found["reason"].iloc[0]


def test_findings_are_sorted_by_severity_and_rules_chosen_by_name(own: Owner, audit: Any) -> None:
    own.share(own.ami(), "all")
    found = audit()
    order = [SEVERITIES.index(one) for one in found.frame["severity"]]
    urgent = found.frame[found.frame["severity"] >= "high"]
    assert set(urgent["severity"]) == set(found.frame["severity"]) & {"high", "critical"} != set()
    assert order == sorted(order)
    assert set(evaluate(found.inventory, rules=["public"])["rule"]) == {"public"}
    with pytest.raises(errors.ParameterError, match="Did you mean 'public'"):
        evaluate(found.inventory, rules=["publik"])


def test_names_are_quoted_for_the_shell(own: Owner, audit: Any) -> None:
    ami = own.ami(tags=TAGS, Name="it's (x) [y] 'z'")
    fix = audit().by("unencrypted")[ami]["remediation"]
    assert "it's (x) [y] 'z'-encrypted" in fix.argv
    assert shlex.split(str(fix)) == list(fix.argv)


def test_every_rule_has_severities_and_a_description() -> None:
    for name, rule in RULES.items():
        assert set(rule.severities) <= set(SEVERITIES), name
        assert rule.severities, name
        assert rule.description.startswith("Find "), name


def test_a_rule_without_rows_finds_nothing(own: Owner, audit: Any) -> None:
    ami = own.ami(tags=TAGS)
    found = audit()
    assert found.by("orphan-snapshot") == {}
    assert set(found.frame["resource_id"]) == {ami}
    assert set(found.frame["account"]) == {own.account}


def test_the_documentation_lists_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/findings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| ([a-z, ]+) \| (.*) \|$", page, re.MULTILINE)
    shown = {name: (severity, text) for name, severity, text in rows}
    code = {
        name: (", ".join(rule.severities), rule.description.removeprefix("Find ").rstrip("."))
        for name, rule in RULES.items()
    }
    assert shown == code


def test_a_command_quotes_its_words_and_leaves_placeholders_to_the_shell() -> None:
    make = Command.of("aws make --name {name} --output text ImageId=<AMI>", name="it's mine")
    whole = Command.of(
        "aws use V=$x,Version={version}", version=make, then=Command.of("rm --key={k}", k="a b")
    )
    assert str(make) == "aws make --name 'it'\"'\"'s mine' --output text ImageId=<AMI>"
    assert str(whole) == f"aws use 'V=$x,Version='\"$({make})\" && rm '--key=a b'"
    assert make.argv == ("aws", "make", "--name", "it's mine", "--output", "text", "ImageId=<AMI>")
    assert str(Command.of("set --prefix {prefix}", prefix="")) == "set --prefix ''"


def test_findings_of_one_rule_share_the_words_of_their_commands(own: Owner, audit: Any) -> None:
    for _ in range(2):
        own.ami()
    first, second = [one["remediation"] for one in audit().by("untagged").values()][:2]
    assert first.words is second.words
    assert first.values != second.values
