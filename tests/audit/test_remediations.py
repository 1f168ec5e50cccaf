"""Cause every finding, paste its fix into a shell, and check that the next scan does not find it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.account import DIGEST, FOREIGN_ACCOUNT, OTHER_ACCOUNT, REGION, Owner
from tests.fast_aws import fast_aws
from tests.support import require
from vmsnix_ops.audit import policies
from vmsnix_ops.audit.findings import RULES, AuditCriteria, as_text
from vmsnix_ops.audit.rules import evaluate
from vmsnix_ops.aws.iam.policies import PolicyScope, policy_document
from vmsnix_ops.cli import COMMANDS
from vmsnix_ops.nix.versions import parse_condition
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.sandbox import Sandbox, sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

TAGS = {"owner": "platform", **DIGEST}
FOREIGN = {"owner": "platform"}
UNIT = "arn:aws:organizations::123456789012:ou/o-abcdefghij/ou-ab12-11111111"
BUCKET = "vmsnix-images"
PARTNER = "999900001111"

FIXED = {
    "public": "public",
    "public-snapshot": "public-snapshot",
    "shared": "shared-with-unknown",
    "no-imdsv2": "no-imdsv2",
    "unused, of others": "unreferenced",
    "deprecated": "deprecated-in-use",
    "disabled": "disabled-in-use",
    "old": "old",
    "orphan": "orphan-snapshot",
    "half": "missing-snapshot",
    "failed copy": "failed",
    "direct upload": "unfinished-upload",
    "object": "s3-leftover",
    "multipart upload": "s3-leftover",
    "running import": "import-tasks",
    "untagged": "untagged",
    "unknown to the history": "not-published-by-us",
    "parameter": "reference-to-missing",
    "template": "reference-to-missing",
    "newest of a template": "reference-to-missing",
    "old version": "reference-to-missing",
    "no id": "reference-to-missing",
    "alias of nothing": "reference-to-missing",
    "alias of what is gone": "reference-to-missing",
    "launch configuration": "reference-to-missing",
    "group by configuration": "reference-to-missing",
    "group by template": "reference-to-missing",
    "group that is pinned": "reference-to-missing",
    "not shared": "reference-to-missing",
}
"""Problems and the rules that find them; their fixes end them."""

CHANNELS = {"channel": "reference-to-missing", "channel that is gone": "reference-to-missing"}
"""What our own runbooks fix. They wait for Parameter Store, and have tests of their own: here, that they
take such a command."""

DECIDED = {
    "unencrypted": "unencrypted",
    "unused, of ours": "retirement-due",
    "orphan of ours": "retirement-due",
    "old and used": "old",
    "use unknown": "use-unknown",
    "half and used": "missing-snapshot",
    "failed import": "import-tasks",
    "of others": "not-published-by-us",
    "note": "reference-to-missing",
    "instance": "reference-to-missing",
    "configuration of a group": "reference-to-missing",
    "template of a group": "reference-to-missing",
    "of another account": "reference-to-foreign",
    "package": "contains-package",
    "contents": "contents-unknown",
    "changed": "proof-differs",
}
"""Problems that a person has to decide about; their commands, if they have one, work."""

ELSEWHERE = {"drifted", "unread", "not-read-one-by-one"}
"""Rules whose fixes are tested in `test_findings`, or are not commands."""


RUN = ("aws ", "vmsnix history ")
PLACEHOLDERS = {"<AMI>": "", "<TEAM>": "web", "<TEMPLATE>": "good", "<NAME>": "a-copy"}


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    quick = fast_aws(tmp_path_factory.mktemp("aws"), require("aws"))
    with sandbox(speed=0.001) as aws, pytest.MonkeyPatch.context() as patch, quick as programs:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        patch.setenv("VMSNIX_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("VMSNIX_PROGRESS", "silent")
        patch.setenv("VMSNIX_BUCKET", BUCKET)
        patch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.chdir(tmp_path_factory.mktemp("work"))
        yield Scenario(aws)


class Scenario:
    """One account with every problem, before and after all fixes."""

    def __init__(self, aws: Sandbox) -> None:
        aws.prepare(bucket=BUCKET)
        self.own, self.member = Owner(aws), Owner(aws, aws.other_account(OTHER_ACCOUNT))
        self.ids: dict[str, str] = {}
        self.good = self.own.ami(tags=FOREIGN)
        self.own.template(self.good, "good")
        trust(self.member, self.own.account)
        self.leave_behind()
        self.expose_and_age()
        self.reference()
        self.run_an_import()
        self.before = self.evaluated()
        fixes = {name: self.found(name, self.before).get("remediation", "") for name in {**FIXED, **DECIDED}}
        aws.calls.clear()
        self.refused = {name: shell(fix) for name, fix in fixes.items() if "<" in fix}
        self.changed = [name for name in aws.calls.names() if not name.startswith(("ec2:Describe", "sts:"))]
        # A command of several findings is pasted once.
        texts = sorted({fix for fix in fixes.values() if fix.startswith(RUN)})
        with ThreadPoolExecutor(2) as pool:
            done = dict(zip(texts, pool.map(lambda fix: shell(self.filled(fix)), texts), strict=True))
        self.pasted = {name: done.get(fix) for name, fix in fixes.items()}
        aws.clock.advance(3600)
        self.after = self.evaluated()

    def filled(self, fix: str) -> str:
        """Return a fix as a person would complete it."""
        for placeholder, word in PLACEHOLDERS.items():
            fix = fix.replace(placeholder, word or self.good)
        return fix

    def evaluated(self) -> pd.DataFrame:
        """Return all findings of a scan of both accounts."""
        found = self.own.scan(regions=[REGION], accounts=[self.own.account, OTHER_ACCOUNT])
        criteria = AuditCriteria(
            unfinished_hours=0,
            known_accounts=frozenset({PARTNER}),
            packages=(parse_condition("openssl<3.0.15"),),
        )
        return as_text(evaluate(found, criteria=criteria, tables=open_tables(load())))

    def found(self, name: str, findings: pd.DataFrame) -> dict[str, Any]:
        """Return the finding about a problem; empty if there is none."""
        rule = {**FIXED, **CHANNELS, **DECIDED}[name]
        rows = findings[(findings["rule"] == rule) & (findings["resource_id"] == self.ids[name])]
        return {str(key): value for key, value in rows.iloc[0].items()} if len(rows) else {}

    def leave_behind(self) -> None:
        """Create unfinished, failed and incomplete resources."""
        own, ids = self.own, self.ids
        tables = own.aws.state.tables
        images, snapshots = (tables.table(own.account, REGION, kind) for kind in ("images", "snapshots"))
        ec2, s3 = own.client("ec2"), own.client("s3")
        ids["failed import"] = own.import_object("vmsnix/failed.vhd", BUCKET)
        for _ in range(2):
            ec2.describe_import_snapshot_tasks()
            own.aws.clock.advance(3600)
        words = "Copied for DestinationAmi ami-0123456789abcdef0 from SourceAmi ami-0aaaaaaaaaaaaaaaa"
        copied = ec2.copy_snapshot(SourceRegion=REGION, SourceSnapshotId=own.snapshot(), Description=words)
        ids["orphan"] = copied["SnapshotId"]
        ids["orphan of ours"] = own.snapshot(tags=TAGS)
        for name in ("orphan", "orphan of ours"):
            snapshots[ids[name]].started -= timedelta(days=30)
        for name in ("half", "half and used"):
            ids[name] = own.ami(tags=FOREIGN)
            del snapshots[images[ids[name]].snapshot_ids()[0]]
        own.template(ids["half and used"], "half")
        copy = ec2.copy_image(SourceRegion=REGION, SourceImageId=self.good, Name="copy")["ImageId"]
        images[copy].failure = snapshots[images[copy].snapshot_ids()[0]].failure = "Given key is not there"
        ids["failed copy"] = copy
        own.aws.clock.advance(3600)
        ids["direct upload"] = own.client("ebs").start_snapshot(VolumeSize=1)["SnapshotId"]
        ids["object"] = "vmsnix/it's $(old).vhd"
        s3.put_object(Bucket=BUCKET, Key=ids["object"], Body=b"12345")
        with pytest.MonkeyPatch.context() as patch:  # one ID in 64 starts with a dash, like an option
            patch.setattr(secrets, "token_urlsafe", lambda size: "-" + "x" * size)
            upload = s3.create_multipart_upload(Bucket=BUCKET, Key="vmsnix/an upload.vhd")
        ids["multipart upload"] = upload["UploadId"]

    def expose_and_age(self) -> None:
        """Create AMIs that are shared too widely, too old, or without an owner."""
        own, ids = self.own, self.ids
        images = own.table("images")
        ec2, now = own.client("ec2"), datetime.now(UTC)
        for name in ("public", "shared", "no-imdsv2", "deprecated", "disabled", "old", "use unknown"):
            ids[name] = own.ami(tags=FOREIGN)
        for name in ("unused, of others", "of others"):
            ids[name] = own.ami(tags=FOREIGN)
        for name in ("unused, of ours", "unknown to the history"):
            ids[name] = own.ami(tags=TAGS)
        ids["untagged"] = own.ami()
        ids["unencrypted"] = own.ami(tags=FOREIGN, Name="n" * 128)
        own.share(ids["public"], "all")
        own.share(ids["shared"], FOREIGN_ACCOUNT, "777788889999")
        unit = {"Add": [{"OrganizationalUnitArn": UNIT}]}
        ec2.modify_image_attribute(ImageId=ids["shared"], LaunchPermission=unit)
        own.share(ids["use unknown"], PARTNER)
        images[ids["no-imdsv2"]].imds = ""
        for name in ("deprecated", "disabled", "old and used"):
            ids.setdefault(name, own.ami(tags={**TAGS, "vmsnix:flake": "github:us/nix#web"}))
            own.template(ids[name], name.replace(" ", "-"))
        images[ids["deprecated"]].deprecate_at = now - timedelta(days=3)
        ec2.disable_image(ImageId=ids["disabled"])
        for name in ("old", "old and used"):
            images[ids[name]].created = now - timedelta(days=400)
        images[ids["unused, of ours"]].created = now - timedelta(days=60)
        ids["public-snapshot"] = own.snapshot(tags=FOREIGN)
        ec2.modify_snapshot_attribute(
            SnapshotId=ids["public-snapshot"],
            Attribute="createVolumePermission",
            OperationType="add",
            GroupNames=["all"],
        )
        ids["package"] = own.ami(
            tags={**TAGS, "vmsnix:digest": "a" * 64, "vmsnix:flake": "github:us/nix#web"}
        )
        ids["contents"] = own.ami(tags=FOREIGN)
        openssl = {"name": "openssl", "version": "3.0.9", "store_path": "/nix/store/a-openssl-3.0.9"}
        row = {"digest": "a" * 64, "bytes": 1, "recorded_at": now, **openssl}
        open_tables(load()).append("packages", [row])
        known = {"ami_id": ids["package"], "name": "x", "region": REGION, "recorded_at": now}
        open_tables(load()).append("amis", [{**known, "source": "publish"}])
        ids["changed"] = own.ami(tags=TAGS)
        proof = {"run_id": "a-run", "proved_at": now, "region": REGION, "ami_id": ids["changed"]}
        open_tables(load()).append("proofs", [{**proof, "verdict": "differs", "extent": "whole"}])

    def reference(self) -> None:
        """Create every kind of reference to an AMI, and deregister it."""
        own, ids = self.own, self.ids
        ec2, ssm, scaling = own.client("ec2"), own.client("ssm"), own.client("autoscaling")
        deregistered = own.ami()
        image = {"Type": "String", "DataType": "aws:ec2:image"}
        for number in (1, 2):
            ours = {"Name": f"altf4llc-api-{number}-x86_64-linux-cccccccc"}
            ours |= {"vmsnix:image": "api", "vmsnix:digest": "c" * 64, "vmsnix:version": f"{number}"}
            published = own.ami(tags=ours)
        ssm.put_parameter(Name="/vmsnix/api/stable", Value=published, **image)
        own.aws.clock.advance(300)
        for name in ("/app/ami", "/app/alias", "/app/lost", "/vmsnix/api/stable", "/vmsnix/api/candidate"):
            ssm.put_parameter(Name=name, Value=deregistered, Overwrite=name == "/vmsnix/api/stable", **image)
        own.aws.clock.advance(300)  # a parameter with an image is checked before it is valid
        ssm.put_parameter(Name="/app/note", Type="StringList", Value=f"region={REGION},ami={deregistered}")
        ids["parameter"], ids["note"] = "/app/ami", "/app/note"
        ids["template"] = own.template(deregistered, "by-default")
        ids["newest of a template"] = own.versions("newest", self.good, deregistered)
        ids["old version"] = own.versions("old-version", deregistered, self.good, default=2)
        ids["template of a group"] = own.versions("pinned", deregistered, self.good, default=2)
        ids["no id"] = own.template("AMI", "no-id")
        ids["channel"] = "/vmsnix/api/stable"
        ids["channel that is gone"] = own.template("resolve:ssm:/vmsnix/api/candidate", "channel")
        ids["alias of nothing"] = own.template("resolve:ssm:/app/lost", "alias-of-nothing")
        ids["alias of what is gone"] = own.template("resolve:ssm:/app/alias", "alias-of-gone")
        for name in ("launch configuration", "configuration of a group"):
            ids[name] = f"the {name}"
            scaling.create_launch_configuration(
                LaunchConfigurationName=ids[name], ImageId=deregistered, InstanceType="t3.micro"
            )
        ways: dict[str, dict[str, Any]] = {
            "group by configuration": {"LaunchConfigurationName": "the configuration of a group"},
            "group by template": {"LaunchTemplate": {"LaunchTemplateName": "by-default"}},
            "group that is pinned": {"LaunchTemplate": {"LaunchTemplateName": "pinned", "Version": "1"}},
        }
        for name, way in ways.items():
            ids[name] = f"the {name}"
            scaling.create_auto_scaling_group(
                AutoScalingGroupName=ids[name], MinSize=0, MaxSize=1, AvailabilityZones=[f"{REGION}a"], **way
            )
        ids["instance"] = own.launch(deregistered)
        ec2.deregister_image(ImageId=deregistered)
        ssm.delete_parameters(Names=["/app/lost", "/vmsnix/api/candidate"])
        ids["not shared"] = self.member.template(self.good, "not-shared")
        other = Owner(own.aws, own.aws.other_account(FOREIGN_ACCOUNT))
        theirs = other.ami()
        other.share(theirs, own.account)
        (snapshot,) = other.table("images")[theirs].snapshot_ids()
        other.client("ec2").modify_snapshot_attribute(
            SnapshotId=snapshot,
            Attribute="createVolumePermission",
            OperationType="add",
            UserIds=[own.account],
        )
        ids["of another account"] = own.template(theirs, "theirs")

    def run_an_import(self) -> None:
        """Start an import, last, so that no time passes while it runs."""
        self.ids["running import"] = self.own.import_object("vmsnix/running.vhd", BUCKET)


def trust(other: Owner, account: str) -> None:
    """Let an account read another one."""
    iam = other.client("iam")
    policy = json.dumps(policies.member_trust(PolicyScope(account=account)))
    iam.create_role(RoleName="vmsnix-auditor", AssumeRolePolicyDocument=policy)
    document = json.dumps(policy_document(policies.member_actions(), PolicyScope(account=other.account)))
    iam.put_role_policy(RoleName="vmsnix-auditor", PolicyName="read", PolicyDocument=document)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Paste a command into a shell."""
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)


def complaint(fix: str) -> str:
    """Return why a vmsnix command is invalid; empty if it is valid."""
    name, *words = [word for word in shlex.split(fix)[1:] if word != "run"]
    if name in COMMANDS:
        return ""
    name = catalog.full_name(name)
    if name not in catalog.names():
        return f"vmsnix has no {name}"
    known = {f"--{one.name.replace('_', '-')}" for one in catalog.find(name).parameters}
    given = {word for word in words if word.startswith("--")}
    answers = {f"--no-{flag[2:]}" for flag in known}
    loose = {
        value
        for flag, value in pairwise(["", *words])
        if "--" not in value and (flag[:2] != "--" or flag in answers)
    }
    return " ".join(sorted((given - known - answers) | loose))


@pytest.mark.parametrize("name", FIXED)
def test_a_fix_ends_its_finding(scenario: Scenario, name: str) -> None:
    before = scenario.found(name, scenario.before)
    assert before, "it was not found"
    done = scenario.pasted[name]
    assert done is not None, "there is no command"
    assert done.returncode == 0, f"{before['fix']}\n{done.stderr}"
    assert scenario.found(name, scenario.after) == {}, before["remediation"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("channel", f"rollback --image api --channel stable --region {REGION} --regions {REGION}"),
        ("channel that is gone", f"promote --image api --channel candidate --region {REGION}"),
    ],
)
def test_a_channel_is_fixed_by_rollback_or_promote(scenario: Scenario, name: str, fix: str) -> None:
    found = scenario.found(name, scenario.before)
    assert found["remediation"] == f"vmsnix {fix} --no-dry-run"
    assert complaint(found["remediation"]) == ""
    assert complaint(f"vmsnix {fix} --no-dry-run no") == "no"


@pytest.mark.parametrize("name", DECIDED)
def test_the_reason_of_a_finding_without_a_complete_fix_has_the_decision(
    scenario: Scenario, name: str
) -> None:
    before = scenario.found(name, scenario.before)
    assert re.search("[Dd]ecide|confirm it|remains until then|fix the group first", before["reason"])
    done, fix = scenario.pasted[name], before["remediation"]
    if fix.startswith("vmsnix "):
        assert complaint(fix) == ""
    elif fix:
        assert done is not None
        assert done.returncode == 0, f"{fix}\n{done.stderr}"


def test_no_shell_accepts_a_placeholder(scenario: Scenario) -> None:
    assert len(scenario.refused) > 8
    assert [name for name, done in scenario.refused.items() if done.returncode == 0] == []
    assert scenario.changed == []


def test_every_rule_is_tested() -> None:
    assert {*FIXED.values(), *DECIDED.values()} | ELSEWHERE == set(RULES)


def test_only_broken_launches_and_changed_amis_are_critical(scenario: Scenario) -> None:
    critical = scenario.before[scenario.before["severity"] == "critical"]["resource_id"]
    names = {name for name, resource in scenario.ids.items() if resource in set(critical)}
    assert names == {
        *("channel", "channel that is gone"),
        *("changed", "disabled", "parameter", "template", "newest of a template", "no id", "not shared"),
        *("alias of nothing", "alias of what is gone", "template of a group", "configuration of a group"),
        *("group by configuration", "group by template", "group that is pinned"),
    }


def test_fixes_change_nothing_else(scenario: Scenario) -> None:
    """For example a parameter that contains more than an AMI ID."""
    value = scenario.own.client("ssm").get_parameter(Name="/app/note")["Parameter"]["Value"]
    assert value.startswith(f"region={REGION},ami=ami-")
    assert "vmsnix/running.vhd" not in set(scenario.before["resource_id"])


def test_a_copy_keeps_its_tags(scenario: Scenario) -> None:
    images = scenario.own.client("ec2").describe_images(Owners=["self"])["Images"]
    (copy,) = [one for one in images if one["Name"] == "n" * 118 + "-encrypted"]
    assert {tag["Key"]: tag["Value"] for tag in copy["Tags"]} == FOREIGN
