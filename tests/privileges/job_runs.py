"""Runs of each job of `vmsnix_ops.cli.policies`, to test it with more or fewer permissions.

A run does the whole job, so it needs every action of the job's policy, and raises the job's errors. An action
that is needed only in a special case has its own run in `only_when`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.audit.account import DIGEST, Owner
from tests.aws.account import make_ami
from tests.privileges.account import BUCKET, REGION, Account
from tests.support import finish
from vmsnix_ops import errors
from vmsnix_ops.audit import inventory, retirement
from vmsnix_ops.audit import policies as audit_policies
from vmsnix_ops.audit.retirement.decisions import RetirementRules
from vmsnix_ops.aws import bootstrap, images, imports
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.channels import promote, rollback, verify
from vmsnix_ops.cli.policies import JOBS
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import identity, preflight, prove, smoke
from vmsnix_ops.records.run_context import new_run_id
from vmsnix_ops.runbooks.evidence import archive, index, runs
from vmsnix_ops.runbooks.execution import notices
from vmsnix_ops.settings import load

Actions = tuple[str, ...]
Run = Callable[[Account, Actions], Any]
Report = Callable[[Account, Actions], str]


@dataclass(frozen=True)
class JobRun:
    """How the tests run a job.

    Attributes
    ----------
    run
        Does the job as a user with these actions.
    only_when
        Runs that need an action which `run` does not need, by action.
    reported
        Runs that succeed without an action and return the reported lack, by action.
    more_than
        A job whose actions this job also has; the tests remove those from that job only.
    """

    run: Run
    only_when: Mapping[str, Run] = field(default_factory=dict)
    reported: Mapping[str, Report] = field(default_factory=dict)
    more_than: str = ""


# Publish


def publish_by(**changes: Any) -> Run:
    """Publish with these arguments; all checks pass."""

    def run(account: Account, actions: Actions) -> None:
        plan = account.plan(actions, **changes)
        assert plan.apply().ami_id
        assert {check.outcome for check in plan.checks} == {"pass"}

    return run


def warnings_of(**changes: Any) -> Report:
    """Publish with these arguments, and return the warnings of the checks, which alone need the action."""

    def report(account: Account, actions: Actions) -> str:
        plan = account.plan(actions, **changes)
        assert plan.apply().ami_id
        return " ".join(check.fix for check in plan.checks if check.outcome == "warn")

    return report


def continue_one_of_two_uploads(account: Account, actions: Actions) -> None:
    """Publish while the image's key has two unfinished uploads: one is continued, the other aborted."""
    plan = account.plan(policies.publisher_actions())
    key = identity.key(plan, plan.build())
    for _ in range(2):
        account.aws.client("s3").create_multipart_upload(
            Bucket=BUCKET, Key=key, ChecksumAlgorithm="SHA256", ChecksumType="COMPOSITE"
        )
    account.plan(actions).apply()


class Stop:
    """A step that raises an interrupt at the first progress."""

    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


def interrupt_the_import(account: Account, actions: Actions) -> None:
    """Publish, and interrupt the running import."""
    account.aws.clock.speed = 1.0
    plan = account.plan(actions)
    source = plan.upload(plan.build())
    where = imports.Source(BUCKET, source.url.partition(f"{BUCKET}/")[2], "vhd", "vmimport")
    digest = source.built.digest
    with pytest.raises(KeyboardInterrupt):
        imports.import_snapshot(
            plan.ec2,
            where,
            digest=digest,
            tags={tagging.DIGEST: digest},
            step=Stop(),  # type: ignore[arg-type]
        )
    assert imports.cancel_imports(plan.ec2, digest)


def lose_the_name(**changes: Any) -> Run:
    """Create a snapshot; another AMI takes the name before the registration."""

    def run(account: Account, actions: Actions) -> None:
        plan = account.plan(actions, **changes)
        snapshot = plan.import_snapshot(plan.upload(plan.build()))
        ec2 = account.aws.client("ec2")
        ec2.register_image(
            Name=snapshot.built.ami_name,
            RootDeviceName="/dev/sda1",
            BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": {"SnapshotId": account.snapshot()}}],
            VirtualizationType="hvm",
        )
        with pytest.raises(errors.NameTakenError) as caught:
            plan.register(snapshot)
        there = [one["SnapshotId"] for one in ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]]
        if snapshot.snapshot_id in there:
            raise caught.value

    return run


def publish_the_next_version(account: Account, actions: Actions) -> str:
    """Publish the next version via direct; return why the upload was not incremental."""
    account.plan(JOBS["direct"].actions(), via="direct").apply()
    newer = make_sample_image(account.image.parent / "newer", seed="newer")
    plan = account.plan(actions, via="direct", image=str(newer))
    sent = plan.upload(plan.build())
    assert plan.apply().ami_id
    assert sent.direct is not None
    return sent.direct.why_full


def why_all_blocks_are_sent(*, encrypted: bool = False) -> Report:
    """Publish the next version, and return why all blocks were sent."""

    def report(account: Account, actions: Actions) -> str:
        if encrypted:
            account.aws.client("ec2").enable_ebs_encryption_by_default()
        return publish_the_next_version(account, actions)

    return report


def compare_what_was_imported(account: Account, actions: Actions) -> Any:
    """Compare an image with a snapshot that another user imported; change nothing."""
    account.plan(policies.publisher_actions()).apply()
    plan = account.plan(actions, via="direct", verify="whole", dry_run=True)
    before = account.aws.client("ec2").describe_images(Owners=["self"])["Images"]
    plan.apply()
    assert "read back" in plan.import_snapshot(plan.upload(plan.build())).verified
    assert account.aws.client("ec2").describe_images(Owners=["self"])["Images"] == before
    return plan


def warnings_of_a_comparison(account: Account, actions: Actions) -> str:
    plan = compare_what_was_imported(account, actions)
    return " ".join(check.fix for check in plan.checks if check.outcome == "warn")


# Promote and roll back


def promote_by(**changes: Any) -> Run:
    """Promote two AMIs to two regions with all options, and roll back."""

    def run(account: Account, actions: Actions) -> None:
        session = account.session(actions, regions=(REGION, "eu-west-1"))
        for version in ("26.11", "26.12"):
            ami = make_ami(account.aws, version=version)
            wanted = _all_options(account, session, ami) | _filled(account, changes)
            promote.plan(**wanted).apply().raise_for_status()
        promote.plan(**wanted | {"protect": False, "unprotect": True}).apply().raise_for_status()
        back = {"channel": "stable", "dry_run": False, "progress": silent(), "session": session}
        rollback.plan(image="ecs-node", regions=[REGION, "eu-west-1"], **back).apply().raise_for_status()

    return run


def _all_options(account: Account, session: Any, ami: str) -> dict[str, Any]:
    return {
        "ami": ami,
        "channel": "stable",
        "regions": ["eu-west-1"],
        "share_with": ["210987654321"],
        "revoke_from": ["109876543210"],
        "deprecate_days": 365,
        "protect": True,
        "dry_run": False,
        "progress": silent(),
        "session": session,
    }


def _filled(account: Account, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes with the account's ID and a topic."""
    filled = dict(changes)
    if filled.get("public"):
        filled["confirm_public"] = account.aws.account
    if filled.get("topic"):
        filled["topic"] = account.aws.client("sns").create_topic(Name="images")["TopicArn"]
    return filled


def promote_warnings(**changes: Any) -> Report:
    """Plan a promotion, and return the text of the plan."""

    def report(account: Account, actions: Actions) -> str:
        session = account.session(actions, regions=(REGION, "eu-west-1"))
        wanted = _all_options(account, session, make_ami(account.aws)) | _filled(account, changes)
        return str(promote.plan(**wanted))

    return report


def promote_encrypted_copies(account: Account, actions: Actions) -> None:
    """Promote to a region that encrypts by default with a customer key."""
    ec2 = account.aws.client("ec2", "eu-west-1")
    ec2.enable_ebs_encryption_by_default()
    key = "arn:aws:kms:eu-west-1:012345678901:key/0123abcd-0123-0123-0123-0123456789ab"
    ec2.modify_ebs_default_kms_key_id(KmsKeyId=key)
    session = account.session(actions, regions=(REGION, "eu-west-1"))
    promote.plan(**_all_options(account, session, make_ami(account.aws))).apply().raise_for_status()


def promote_again_with_another_tag(account: Account, actions: Actions) -> None:
    """Promote an AMI, and again after it got another tag."""
    session, ami = account.session(actions, regions=(REGION, "eu-west-1")), make_ami(account.aws)
    promote.plan(**_all_options(account, session, ami)).apply().raise_for_status()
    account.aws.client("ec2").create_tags(Resources=[ami], Tags=[{"Key": "team", "Value": "web"}])
    promote.plan(**_all_options(account, session, ami)).apply().raise_for_status()
    copies = account.aws.client("ec2", "eu-west-1").describe_images(Owners=["self"])["Images"]
    assert {"Key": "team", "Value": "web"} in copies[0]["Tags"]


def promote_an_ami_that_is_retired_meanwhile(account: Account, actions: Actions) -> None:
    """Promote an AMI to a new channel while another job retires it."""
    session = account.session(actions, regions=(REGION, "eu-west-1"), new=True)
    ec2 = account.aws.client("ec2")
    ami = make_ami(account.aws)

    def mark(**_: Any) -> None:
        ec2.create_tags(Resources=[ami], Tags=[{"Key": tagging.RETIRED, "Value": "2026-11-28T00:00:00Z"}])

    session.events.register("after-call.ssm.PutParameter", mark)
    wanted = {"ami": ami, "channel": "stable", "dry_run": False, "progress": silent(), "session": session}
    (row,) = [one for one in promote.plan(**wanted).apply().rows if one.step == "set channel"]
    assert row.error is not None
    if "was deleted again" not in row.why:
        raise row.error


def rollback_notes(account: Account, actions: Actions) -> str:
    """Plan a rollback, and return the text of the plan."""
    for version in ("26.11", "26.12"):
        ami = make_ami(account.aws, version=version)
        promote.plan(**_all_options(account, account.aws.session(), ami)).apply().raise_for_status()
    back = {"channel": "stable", "progress": silent(), "session": account.session(actions)}
    return str(rollback.plan(image="ecs-node", regions=[REGION], **back))


def first_spot_test(account: Account, actions: Actions) -> None:
    """Test an AMI on the account's first spot instance."""
    smoke_test(account, actions, spot=True)


def smoke_test(account: Account, actions: Actions, *, spot: bool = False) -> None:
    """Test the AMI of a channel."""
    ami = make_ami(account.aws)
    boots = {"op": "ec2:RunInstances", "do": "outcome", "outcome": {"console": "Welcome to NixOS"}}
    account.aws.faults.add(boots)
    plan = smoke.plan(ami="candidate", image="ecs-node", spot=spot, **_tester(account, ami, actions))
    finish(plan.apply())


def _tester(account: Account, ami: str, actions: Actions) -> dict[str, Any]:
    account.aws.client("ssm").put_parameter(Name="/vmsnix/ecs-node/candidate", Value=ami, Type="String")
    return {"session": account.session(actions), "progress": silent()}


def verify_what_was_promoted(account: Account, actions: Actions) -> None:
    """Verify an AMI that another user promoted."""
    ami = make_ami(account.aws)
    promote.plan(
        **_all_options(account, account.aws.session(), ami) | {"regions": []}
    ).apply().raise_for_status()
    finish(verify.check(session=account.session(actions)))


def smoke_warnings(account: Account, actions: Actions) -> str:
    """Plan a test, and return the text of the plan."""
    plan = smoke.plan(ami=make_ami(account.aws), session=account.session(actions), progress=silent())
    return str(plan)


# Prove


def published_by_another(account: Account) -> tuple[str, str]:
    """Publish an AMI as another user; return its ID and its identity."""
    result = account.plan(JOBS["direct"].actions(), via="direct").apply()
    return result.ami_id, result.digest


def prove_an_ami(account: Account, actions: Actions) -> None:
    ami, identity = published_by_another(account)
    for word in (ami, f"{ami}-is-no-name"):
        plan = prove.plan(amis=[word], identity=identity, progress=silent(), session=account.session(actions))
        finish_proof(plan.apply(), expected="proven" if word == ami else "not provable")


def finish_proof(result: prove.ProofResult, *, expected: str) -> None:
    """Check the verdict; raise the error if AWS refused a call."""
    if result.verdict != expected or any(one.reason == "unreadable" for one in result.proofs):
        result.raise_for_status()
    assert result.verdict == expected


def put_result(account: Account, ami: str, identity: str) -> str:
    """Archive the result of a publish; return its URL."""
    values = {"runbook": "publish-ami", "status": "done", "ami_id": ami, "digest": identity, "via": "direct"}
    key = "vmsnix/archive/result.json"
    account.aws.client("s3").put_object(Bucket=BUCKET, Key=key, Body=json.dumps(values).encode())
    return f"s3://{BUCKET}/{key}"


def prove_by_an_archive(account: Account, actions: Actions) -> None:
    ami, identity = published_by_another(account)
    place = put_result(account, ami, identity)
    plan = prove.plan(amis=[ami], result=place, progress=silent(), session=account.session(actions))
    finish_proof(plan.apply(), expected="proven")


def an_archived_result_is_missing(account: Account, actions: Actions) -> None:
    place = f"s3://{BUCKET}/vmsnix/archive/missing.json"
    with pytest.raises(errors.ParameterError, match="Could not find"):
        prove.plan(amis=["ami-1"], result=place, session=account.session(actions))


# Audit and preflight


MEMBER = "111122223333"


def audit_two_accounts(account: Account, actions: Actions, *, regions: Any = (REGION,)) -> str:
    """Audit this account with these actions, and a member account; return the errors of unread sources."""
    owner = Owner(account.aws)
    owner.ami(tags=DIGEST)
    owner.template(owner.ami())
    for name in ("/app/ami", "/vmsnix/web/stable"):
        owner.client("ssm").put_parameter(Name=name, Type="String", Value=owner.ami())
    account.aws.client("s3").create_multipart_upload(Bucket=BUCKET, Key="vmsnix/left.vhd")
    _add_member(account, audit_policies.member_actions())
    policy_regions = () if regions == ["all"] else (REGION,)
    found = inventory.scan(
        RetirementRules(keep_last=0, min_age_days=0),
        regions=regions,
        accounts=[account.aws.account, MEMBER],
        buckets=[BUCKET],
        session=account.session(actions, regions=policy_regions),
    )
    return " ".join(str(one.error) for one in found.unread)


def audit_all_regions(account: Account, actions: Actions) -> str:
    return audit_two_accounts(account, actions, regions=["all"])


def audit(account: Account, actions: Actions) -> None:
    assert audit_two_accounts(account, actions) == ""


def _add_member(account: Account, actions: Actions) -> Owner:
    """Create the role of an auditor with these actions in a member account."""
    other = Owner(account.aws, account.aws.other_account(MEMBER))
    iam = other.client("iam")
    trust = audit_policies.member_trust(policies.PolicyScope(account=account.aws.account))
    iam.create_role(RoleName="vmsnix-auditor", AssumeRolePolicyDocument=json.dumps(trust))
    document = policies.policy_document(actions, policies.PolicyScope(account=MEMBER))
    iam.put_role_policy(RoleName="vmsnix-auditor", PolicyName="look", PolicyDocument=json.dumps(document))
    return other


def audit_a_member(account: Account, actions: Actions, *, regions: Any = (REGION,)) -> str:
    """Audit a member account whose role has these actions; return the errors of unread sources."""
    other = _add_member(account, actions)
    other.ami(tags=DIGEST)
    other.template(other.ami())
    for name in ("/app/ami", "/vmsnix/web/stable"):
        other.client("ssm").put_parameter(Name=name, Type="String", Value=other.ami())
    found = inventory.scan(
        RetirementRules(keep_last=0, min_age_days=0),
        regions=regions,
        accounts=[MEMBER],
        session=account.session(audit_policies.auditor_actions()),
    )
    return " ".join(str(one.error) for one in found.unread)


def audit_all_regions_of_a_member(account: Account, actions: Actions) -> str:
    return audit_a_member(account, actions, regions=["all"])


def audit_a_member_completely(account: Account, actions: Actions) -> None:
    assert audit_a_member(account, actions) == ""


def checklist(account: Account, actions: Actions) -> str:
    """Return the texts of the checks that did not pass."""
    session = account.session(actions)
    found = preflight.check(region=REGION, bucket=BUCKET, session=session).checks
    return " ".join(f"{check.found} {check.fix}" for check in found if check.outcome != "pass")


def preflight_of_a_publisher(account: Account, actions: Actions) -> str:
    """Return the texts of the checks for a publisher without the actions that are missing here."""
    missing = set(policies.thorough_actions()) - set(actions)
    return checklist(account, tuple({*actions, *policies.publisher_actions()} - missing))


def preflight_alone(account: Account, actions: Actions) -> None:
    texts = checklist(account, actions)
    assert "not checked" not in texts, texts


# Bootstrap


def bootstrap_twice(account: Account, actions: Actions) -> None:
    """Bootstrap an empty account, change role and policy, and bootstrap again."""
    iam, s3, scope = account.aws.client("iam"), account.aws.client("s3"), account.scope()
    iam.delete_role_policy(RoleName="vmimport", PolicyName="vmimport")
    iam.delete_role(RoleName="vmimport")
    s3.delete_bucket(Bucket=BUCKET)
    session = account.session(actions)
    _apply_all(session, scope)
    trust = policies.import_role_trust_policy()
    del trust["Statement"][0]["Condition"]
    iam.update_assume_role_policy(RoleName="vmimport", PolicyDocument=json.dumps(trust))
    arn = f"arn:aws:iam::{account.aws.account}:policy/{scope.policy_name}"
    old = json.dumps(policies.policy_document(["ec2:DescribeImages"], scope))
    for _ in range(bootstrap.MOST_VERSIONS - 1):
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=old, SetAsDefault=True)
    _apply_all(session, scope)
    assert {part.action for part in bootstrap.plan_parts(session, scope)} == {"keep"}


def _apply_all(session: Any, scope: policies.PolicyScope) -> None:
    for part in bootstrap.plan_parts(session, scope):
        bootstrap.apply_part(session, scope, part)


# Retire


def retire_by(session: Any, **changes: Any) -> None:
    """Apply a plan of this user, and raise its error."""
    request = {
        "regions": [REGION],
        "keep_last": 0,
        "min_age_days": 0,
        "retention_days": 0,
        "allow_shared": True,
    }
    plan = retirement.plan(
        **{**request, **changes},
        dry_run=False,
        confirm="012345678901",
        progress=silent(),
        session=session,
    )
    finish(plan.apply())


def an_old_ami(account: Account) -> str:
    """Register a shared AMI, and another that a channel and a launch template reference."""
    friend, ec2 = "210987654321", account.aws.client("ec2")
    ami_id, needed = make_ami(account.aws, version="1"), make_ami(account.aws, version="2")
    (snapshot,) = images.describe_ami(ec2, ami_id).snapshot_ids
    ec2.modify_image_attribute(ImageId=ami_id, LaunchPermission={"Add": [{"UserId": friend}]})
    ec2.modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=[friend]
    )
    account.aws.client("ssm").put_parameter(Name="/vmsnix/ecs-node/stable", Value=needed, Type="String")
    ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData={"ImageId": needed})
    return ami_id


def retire_and_delete(account: Account, actions: Actions) -> None:
    session, ami_id = account.session(actions), an_old_ami(account)
    retire_by(session)
    retire_by(session)
    left = account.aws.client("ec2").describe_images(Owners=["self"], IncludeDisabled=True)["Images"]
    assert ami_id not in [image["ImageId"] for image in left]


def retire_and_restore(account: Account, actions: Actions) -> None:
    session, ami_id = account.session(actions), an_old_ami(account)
    retire_by(session)
    retire_by(session, action="restore")
    (image,) = account.aws.client("ec2").describe_images(ImageIds=[ami_id])["Images"]
    assert image["State"] == "available"


def retire_in_every_region(account: Account, actions: Actions) -> None:
    retire_by(account.session(actions, regions=()), regions=["all"])


IN_CHECKS = ("ec2:DescribeRegions", "iam:GetRole", "iam:SimulatePrincipalPolicy")
PUBLIC_IN_CHECKS = ("ec2:GetImageBlockPublicAccessState", "ec2:GetEbsEncryptionByDefault")

# Evidence


def _variables(account: Account, actions: Actions) -> dict[str, str]:
    keys = account.session(actions).get_credentials().get_frozen_credentials()
    return {
        "AWS_ENDPOINT_URL": account.aws.url,
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_REGION": REGION,
    }


def send_a_notice(account: Account, actions: Actions) -> None:
    """Send the notice of a failed run to a topic."""
    topic = account.aws.client("sns").create_topic(Name="images")["TopicArn"]
    settings = replace(load(), notify_topic=topic)
    values = {"runbook": "audit-inventory", "status": "failed"}
    problems = notices.send(values, settings, _variables(account, actions))
    assert not problems, problems


def keep_and_read_evidence(account: Account, actions: Actions) -> None:
    """Archive a run, then find it, list it and read its report."""
    environment = _variables(account, actions)
    work, run_id = account.image.parent / "runs", new_run_id("publish-ami")
    shelf = runs.Archive(f"s3://{BUCKET}/vmsnix/archive", work, environment)
    entry: dict[str, object] = {"run_id": run_id, "runbook": "publish-ami", "status": "running"}
    folder = archive.open_folder(shelf.location, run_id, entry, work=work, environment=environment)
    folder.path(archive.REPORT).write_text("the page")
    kept = folder.store(archive.REPORT)
    assert kept is not None
    files = {archive.REPORT: kept}
    folder.write_json(archive.RESULT, {**entry, "status": "done", "files": files})
    folder.close(done=True)
    for _ in range(2):
        assert index.rebuild(shelf) == f"{shelf.location}/index.html"
    assert shelf.read_file(shelf.find(run_id), archive.REPORT) == b"the page"


JOB_RUNS: dict[str, JobRun] = {
    "evidence": JobRun(keep_and_read_evidence),
    "notices": JobRun(send_a_notice),
    "import": JobRun(
        publish_by(),
        only_when={
            "s3:AbortMultipartUpload": continue_one_of_two_uploads,
            "ec2:CancelImportTask": interrupt_the_import,
            "ec2:CreateTags of our resources": publish_by(tags={"team": "web"}),
        },
        reported=dict.fromkeys(IN_CHECKS, warnings_of()),
    ),
    "direct": JobRun(
        publish_by(via="direct"),
        only_when={"ec2:DeleteSnapshot": lose_the_name(via="direct")},
        reported={"ec2:DescribeRegions": warnings_of(via="direct")},
    ),
    "incremental": JobRun(
        publish_the_next_version,
        reported={
            **dict.fromkeys(
                (
                    "ec2:GetEbsEncryptionByDefault",
                    "ebs:ListSnapshotBlocks",
                    "ebs:StartSnapshot with a parent",
                ),
                why_all_blocks_are_sent(),
            ),
            "ec2:GetEbsDefaultKmsKeyId": why_all_blocks_are_sent(encrypted=True),
        },
        more_than="direct",
    ),
    "public": JobRun(
        publish_by(via="direct", public=True),
        reported=dict.fromkeys(PUBLIC_IN_CHECKS, warnings_of(via="direct", public=True)),
        more_than="direct",
    ),
    "verify": JobRun(publish_by(via="direct", verify="whole"), more_than="direct"),
    "audit": JobRun(
        audit,
        reported=dict.fromkeys(audit_policies.auditor_actions(), audit_two_accounts)
        | {"ec2:DescribeRegions": audit_all_regions},
    ),
    "audit member": JobRun(
        audit_a_member_completely,
        reported=dict.fromkeys(audit_policies.member_actions(), audit_a_member)
        | {"ec2:DescribeRegions": audit_all_regions_of_a_member},
    ),
    "retire": JobRun(
        retire_and_delete,
        only_when={
            "ec2:DescribeRegions": retire_in_every_region,
            **dict.fromkeys(
                ("ec2:EnableImage", "ec2:DisableImageDeprecation", "ec2:DeleteTags"), retire_and_restore
            ),
        },
    ),
    "promote": JobRun(
        promote_by(),
        reported={"ec2:DescribeRegions": promote_warnings(), "ec2:DescribeInstances": rollback_notes},
        only_when={
            "ec2:GetEbsDefaultKmsKeyId": promote_encrypted_copies,
            "ec2:CreateTags of our resources": promote_again_with_another_tag,
            "ssm:DeleteParameter": promote_an_ami_that_is_retired_meanwhile,
        },
    ),
    "smoke test": JobRun(smoke_test, reported={"ec2:DescribeRegions": smoke_warnings}),
    "first spot test": JobRun(first_spot_test, more_than="smoke test"),
    "verify AMIs": JobRun(verify_what_was_promoted),
    "verify blocks": JobRun(
        compare_what_was_imported,
        reported={"ec2:DescribeRegions": warnings_of_a_comparison},
        more_than="verify AMIs",
    ),
    "prove": JobRun(prove_an_ami),
    "prove from an archive": JobRun(
        prove_by_an_archive,
        only_when={"s3:ListBucket": an_archived_result_is_missing},
        more_than="prove",
    ),
    "public promotion": JobRun(
        promote_by(public=True),
        reported={"servicequotas:GetServiceQuota": promote_warnings(public=True)},
        more_than="promote",
    ),
    "announced promotion": JobRun(
        promote_by(topic="images"),
        reported={"sns:GetTopicAttributes": promote_warnings(topic="images")},
        more_than="promote",
    ),
    "preflight": JobRun(
        preflight_alone, reported=dict.fromkeys(policies.thorough_actions(), preflight_of_a_publisher)
    ),
    "bootstrap": JobRun(bootstrap_twice),
}


def job_run(job: str) -> JobRun:
    """Return how to run a job; fail if nothing runs it."""
    if job not in JOB_RUNS:
        pytest.fail(f"the job {job!r} has no run: add one to tests/privileges/job_runs.py")
    return JOB_RUNS[job]


def removals() -> list[tuple[str, str]]:
    """Return every job with every action that is to be taken away from it."""
    found = []
    for name, job in JOBS.items():
        more_than = JOB_RUNS[name].more_than if name in JOB_RUNS else ""
        known = JOBS[more_than].actions() if more_than else ()
        found += [(name, action) for action in job.actions() if action not in known]
    return found
