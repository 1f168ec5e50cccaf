"""Check what a publish needs: in AWS, on this machine, and in the image.

>>> from vmsnix_ops import preflight
>>> checks = preflight.check(region="eu-central-1", bucket="acme-images", image="result")  # doctest: +SKIP
>>> checks.raise_for_status()  # doctest: +SKIP
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_parameters
from vmsnix_ops.aws import buckets, identity, images, imports, keys, regions, service_role
from vmsnix_ops.aws.checks import CheckResult, checks_frame, raise_for_failure, run_check
from vmsnix_ops.aws.iam import policies
from vmsnix_ops.aws.iam.permissions import needs, needs_of
from vmsnix_ops.aws.iam.simulation import missing_actions
from vmsnix_ops.aws.quotas import check_pending_snapshots, check_public_sharing, check_quotas
from vmsnix_ops.aws.service_role import unknown_caller_check
from vmsnix_ops.aws.session import client, code_of
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.disk.image import GIB
from vmsnix_ops.display import DisplayTable, make_table
from vmsnix_ops.publish.identity import registration_of
from vmsnix_ops.records.result import Result
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import boto3
    import pandas as pd
    from types_boto3_ec2.client import EC2Client
    from types_boto3_iam.client import IAMClient

    from vmsnix_ops.aws.identity import CallerIdentity
    from vmsnix_ops.nix.image import BuiltImage

__all__ = ["PreflightResult", "check", "check_parameters"]


def __dir__() -> list[str]:
    return __all__


# Checks in AWS.


def checks_in_aws(
    session: boto3.Session,
    *,
    region: str,
    bucket: str = "",
    role_name: str = "",
    allowed_accounts: Iterable[str] = (),
    key_prefix: str = "vmsnix/",
    via: str = "import",
    public: bool = False,
    kms_key: str = "",
    thorough: bool = False,
) -> list[CheckResult]:
    """Check credentials, account, region, bucket and service role. Nothing is changed.

    If the region's name or the credentials are invalid, the other checks are omitted. A check that the caller
    is not allowed to do is a warning. The checks of `bucket` and `role_name` are omitted if they are empty;
    any account is allowed if `allowed_accounts` is empty.

    `thorough` checks also quotas, the settings of the bucket, and all permissions of the caller.
    """
    named = run_check("region name", identity.check_region_name, region)
    if named.outcome == "fail":
        return [named]
    known = run_check("credentials", identity.check_credentials, session, region)
    checks = [named, known]
    if known.outcome == "fail":
        return checks
    who: CallerIdentity = known.facts["identity"]
    ec2, iam = client(session, "ec2", region), client(session, "iam", region)
    checks += [
        run_check("clock", identity.check_clock, who),
        run_check("account", identity.check_account, who.account, tuple(allowed_accounts)),
        run_check("region", identity.check_region, ec2, region),
    ]
    place = policies.PolicyScope(
        account=who.account,
        regions=(region,),
        bucket=bucket or "*",
        key_prefix=key_prefix,
        role_name=role_name or "vmimport",
        partition=who.partition,
    )
    key = keys.key_arn(kms_key, region=region, who=who)
    if via == "import" and bucket:
        checks += _bucket(session, place, thorough=thorough)
    if via == "import" and role_name:
        s3 = client(session, "s3", region)
        role = run_check("vmimport role", service_role.check_role, iam, role_name)
        checks.append(role)
        if role.outcome != "fail":
            arn = str(role.facts.get("arn") or place.role_arn)
            if bucket:
                allowed = service_role.check_role_permissions
                checks.append(
                    run_check("vmimport role's permissions", allowed, iam, s3, arn, bucket, key_prefix)
                )
            if key:
                with_key = service_role.check_role_key_permissions
                checks.append(run_check("vmimport role's key", with_key, iam, arn, key, bucket))
            elif bucket and thorough:
                of_bucket = service_role.check_bucket_key_permissions
                checks.append(run_check("bucket's key", of_bucket, iam, s3, arn, bucket))
            checks.append(run_check("pass role", service_role.check_pass_role, iam, who, arn))
    if public or thorough:
        checks.append(run_check("public AMIs", check_public_sharing, ec2, public=public))
    if thorough:
        quotas = client(session, "service-quotas", region)
        checks += [
            run_check("quotas", check_quotas, ec2, quotas, public=public),
            run_check("pending snapshots", check_pending_snapshots, ec2),
            *_permissions(session, who, place, via=via, public=public),
        ]
    return checks


def _bucket(session: boto3.Session, place: policies.PolicyScope, *, thorough: bool) -> list[CheckResult]:
    region, name = place.regions[0], place.bucket
    s3 = client(session, "s3", region)
    checks = [run_check("bucket", buckets.check_bucket, s3, name, region, place.account)]
    if thorough and checks[-1].outcome != "fail":
        checks += [
            run_check("bucket private", buckets.check_bucket_private, s3, name),
            run_check("bucket encrypted", buckets.check_bucket_encrypted, s3, name),
            run_check("bucket TLS only", buckets.check_bucket_tls, s3, name),
            run_check("bucket leftovers", buckets.check_bucket_lifecycle, s3, name, place.key_prefix),
            run_check("bucket versions", buckets.check_bucket_versions, s3, name, place.key_prefix),
        ]
    return checks


def _permissions(
    session: boto3.Session, who: CallerIdentity, place: policies.PolicyScope, *, via: str, public: bool
) -> list[CheckResult]:
    """Check the caller's permissions for the method; those for ``direct`` are only a warning."""
    iam = client(session, "iam", place.regions[0])

    def check(name: str, actions: Iterable[str], command: str) -> CheckResult:
        return run_check(
            name, check_permissions, iam, who, place, name=name, actions=actions, command=command
        )

    may_share = public and via == "direct"
    actions = policies.publisher_actions(via=via, public=may_share)
    command = f"vmsnix iam-policy publisher --via {via}{' --public' if may_share else ''}"
    checks = [check(f"permissions to publish ({via})", actions, command)]
    if public and not may_share:  # the policy of a publisher by import does not allow it
        name, sharing = "permissions to make AMIs public", needs_of(images.make_public)
        checks.append(check(name, sharing, "vmsnix iam-policy promoter --public"))
    if via == "direct":
        return checks
    direct = tuple(action for action in policies.publisher_actions(via="direct") if action.startswith("ebs:"))
    found = check("EBS direct", direct, "vmsnix iam-policy publisher --via direct")
    if found.outcome == "fail":
        found = CheckResult(found.name, "warn", found.found, "Needed only for via=direct. " + found.fix)
    return [*checks, found]


@needs("iam:SimulatePrincipalPolicy")
def check_permissions(
    iam: IAMClient,
    who: CallerIdentity,
    place: policies.PolicyScope,
    *,
    name: str,
    actions: Iterable[str],
    command: str,
) -> CheckResult:
    """Check with IAM's policy simulator whether the caller may use all of these actions.

    `actions` are keys of `vmsnix_ops.aws.iam.permissions.PERMISSIONS`; `command` prints the policy with them.
    """
    if who.is_root:
        return CheckResult(name, "pass", "the root user may do everything")
    missing: dict[str, None] = {}
    try:
        for statement in policies.statements(actions, place):
            # iam:PassRole and iam:SimulatePrincipalPolicy have their own checks.
            checked = [
                action for action in statement["Action"] if not action.startswith(("iam:Pass", "iam:Sim"))
            ]
            if statement["Effect"] == "Allow" and checked:
                resources = [_example(arn) for arn in statement["Resource"]]
                context = {"aws:RequestedRegion": place.regions[0], **_keys(statement.get("Condition", {}))}
                missing |= dict.fromkeys(missing_actions(iam, who.policy_source, checked, resources, context))
    except errors.AwsError as error:
        if code_of(error) != "NoSuchEntity":
            raise
        return unknown_caller_check(name, who)
    if missing:
        raise errors.VmsnixError(
            f"The caller lacks {', '.join(sorted(missing))}.",
            why=f"The policies of {who.policy_source} do not allow it.",
            fix=f"Attach the policy from {command}.",
        )
    return CheckResult(name, "pass", f"{who.policy_source.rpartition('/')[2]} has all permissions")


def _keys(condition: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return condition keys of a request that this condition allows."""
    found = {key: "x" for key, absent in condition.get("Null", {}).items() if absent == "false"}
    for operator, conditions in condition.items():
        if operator == "Null" or "Not" in operator:
            continue
        for key, values in conditions.items():
            value = values if isinstance(values, str) else values[0]
            found[key] = value.replace("?*", "0" * 64).replace("*", "0")
    return found


def _example(arn: str) -> str:
    return f"{arn[:-1]}0123456789abcdef0" if len(arn) > 1 and arn.endswith("*") else arn


# Checks of this machine and of the image.

LITTLE_SPACE_GIB = 10.0  # about the size of a NixOS image and its build
NO_SPACE_GIB = 0.5
NEED_QEMU_IMG = frozenset({"qcow2", "vhdx", "vmdk"})


def check_image(
    given: str, *, flake: str, via: str, system: str = "", boot_mode: str = "", root_device: str = ""
) -> tuple[CheckResult, BuiltImage | None]:
    """Check that the image is readable and has a format that the method supports.

    The built image is ``None`` for an image of a flake, which is evaluated but not built.
    """
    from vmsnix_ops.disk.formats import open_image
    from vmsnix_ops.nix import build as nix
    from vmsnix_ops.nix.image import describe_keys

    if not nix.is_path(given):
        keys = describe_keys(nix.plan_build(given, flake=flake, system=system or None).image.keys)
        return CheckResult("image", "pass", f"{given} would be built", facts={"may log in": keys}), None
    found = nix.resolve_image(given, system=system or None, boot_mode=boot_mode or None)
    with open_image(found.path) as disk:
        kind = f"{disk.format} {disk.subformat}".strip()
        if via == "import":
            imports.check_format(found.path.name, disk)
        registration_of(
            found, name="unknown", disk_bytes=disk.size, root_device=root_device, boot_mode=boot_mode
        )
        size = f"{disk.file_bytes / GIB:.2f} GiB file, {disk.size / GIB:.2f} GiB disk"
    text = f"{found.name} {found.version}, {found.system}: {kind}, {size}"
    return CheckResult("image", "pass", text, facts={"may log in": describe_keys(found.keys)}), found


def check_name_free(
    ec2: EC2Client, built: BuiltImage, *, prefix: str, root_device: str = "", boot_mode: str = ""
) -> CheckResult:
    """Check that no AMI has the name, or that it has the same bytes. This reads the whole image."""
    from vmsnix_ops.disk.formats import open_image
    from vmsnix_ops.disk.survey import survey

    with open_image(built.path) as disk:
        digest, size = survey(disk).identity, disk.size
    name = images.clean_name(f"{prefix}-{built.name}-{built.version}-{built.system}-{digest[:8]}")
    wanted = registration_of(built, name=name, disk_bytes=size, root_device=root_device, boot_mode=boot_mode)
    existing = images.usable_ami(images.find_all_by_name(ec2, name))
    if existing is None:
        return CheckResult("name", "pass", f"{name} is not in use")
    images.check_same_registration(existing, digest=digest, facts=wanted.facts())
    text = f"{name} is {existing.ami_id}, created from the same bytes"
    if existing.deprecated:
        return CheckResult("name", "warn", f"{text}; {images.deprecation_note(existing)}")
    return CheckResult("name", "pass", text)


def check_disk_space(folder: Path, *, enough_gib: float = LITTLE_SPACE_GIB) -> CheckResult:
    """Check the free disk space of a folder, or of its nearest parent that exists."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / GIB
    text = f"{free:.1f} GiB free in {existing}"
    if free >= enough_gib:
        return CheckResult("disk space", "pass", text)
    outcome: Literal["fail", "warn"] = "fail" if free < NO_SPACE_GIB else "warn"
    return CheckResult(
        "disk space", outcome, text, "Free disk space: nix-collect-garbage, or delete old runs."
    )


def check_tool(name: str, *, needed: str, for_what: str) -> CheckResult:
    """Check whether a program is on PATH.

    `needed` is why this job needs it, empty if it does not; `for_what` are the jobs that need it.
    """
    path = shutil.which(name)
    if path is not None:
        return CheckResult(name, "pass", path)
    if needed:
        fix = f"Install {name}, or choose an option that does not need it."
        error = errors.ToolMissingError(f"{name} is not on PATH.", why=needed, fix=fix)
        return CheckResult(name, "fail", f"not on PATH, but {needed}", fix, error)
    return CheckResult(
        name, "warn", f"not on PATH; needed only for {for_what}", f"Install {name} if you need it."
    )


MARKS = {"pass": "✓ pass", "warn": "! warn", "fail": "✗ fail"}


@dataclass(frozen=True, slots=True)
class PreflightResult(Result):
    """The results of all checks."""

    runbook = "preflight"

    region: str
    checks: tuple[CheckResult, ...]

    @property
    def failed(self) -> int:
        """Number of failed checks."""
        return sum(check.outcome == "fail" for check in self.checks)

    @property
    def error(self) -> errors.VmsnixError | None:
        """The error of the first failed check."""
        try:
            raise_for_failure(self.checks)
        except errors.VmsnixError as error:
            return error
        return None

    def frame(self) -> pd.DataFrame:
        """Return the checks as a table: ``check``, ``outcome``, ``found``, ``fix``."""
        return checks_frame(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as ``result.json`` contains it."""
        rows = [
            {"check": one.name, "outcome": one.outcome, "found": one.found, "fix": one.fix}
            for one in self.checks
        ]
        account = next((one.facts["account"] for one in self.checks if "account" in one.facts), None)
        status = "failed" if self.failed else "done"
        return {"status": status, "region": self.region, "account": account, "checks": rows}

    @property
    def title(self) -> str:
        """One line."""
        return f"Preflight in {self.region}"

    def table(self) -> DisplayTable:
        """Return one row for each check."""
        rows = [(MARKS[one.outcome], one.name, one.found, one.fix) for one in self.checks]
        return make_table(("", "check", "found", "fix"), rows)


@check_arguments
def check(
    *,
    region: str = "",
    bucket: str = "",
    role_name: str = "",
    image: str = "",
    prefix: str = "",
    via: str = "import",
    system: str = "",
    boot_mode: str = "",
    root_device: str = "",
    kms_key: str = "",
    public: bool = False,
    session: boto3.Session | None = None,
) -> PreflightResult:
    """Check credentials, account, region, bucket, role, permissions, image and machine. Nothing is changed.

    Parameters
    ----------
    region, bucket, role_name, prefix, via, system, boot_mode, root_device, kms_key, public
        As for `vmsnix_ops.publish.plan`; by default those of the settings.
    image
        As there; empty to omit the checks of the image and of its AMI's name.
    session
        Session with the credentials.

    Raises
    ------
    vmsnix_ops.errors.ParameterError
        No region is given.
    """
    settings, session = load(), session or default_session()
    region = regions.home_region(session, region, settings.region)
    bucket = bucket or settings.bucket or ""
    checks = checks_in_aws(
        session,
        region=region,
        bucket=bucket,
        role_name=role_name or settings.role_name,
        allowed_accounts=settings.allowed_accounts,
        key_prefix=settings.key_prefix,
        via=via,
        public=public,
        kms_key=keys.check_key(kms_key or settings.kms_key),
        thorough=True,
    )
    if bucket and via == "import":
        kept = {"archive": settings.archive, "history": settings.history}
        prefix_check = buckets.check_prefixes
        checks.append(run_check("bucket prefixes", prefix_check, kept, bucket, settings.key_prefix))
    if not bucket and via == "import":
        fix = "Set bucket in vmsnix.toml, or add --bucket NAME; vmsnix bootstrap creates one."
        checks.append(CheckResult("bucket", "warn", "no bucket given", fix))
    checks += _machine(
        session if all(c.outcome != "fail" for c in checks[:2]) else None,
        settings,
        region=region,
        image=image,
        prefix=prefix or settings.prefix,
        via=via,
        options={"boot_mode": boot_mode, "root_device": root_device},
        system=system,
    )
    return PreflightResult(region, tuple(checks))


def _machine(
    session: boto3.Session | None,
    settings: Settings,
    *,
    region: str,
    image: str,
    prefix: str,
    via: str,
    options: dict[str, str],
    system: str,
) -> list[CheckResult]:
    """Check the image and this machine; without a session (invalid credentials) not the AMI's name."""
    from vmsnix_ops.nix import build as nix

    checks: list[CheckResult] = []
    found: list[BuiltImage] = []

    def read_image() -> CheckResult:
        check, built = check_image(image, flake=settings.flake, via=via, system=system, **options)
        found.extend([built] if built is not None else [])
        return check

    if image:
        checks.append(run_check("image", read_image))
    if found and session is not None:
        ec2 = client(session, "ec2", region)
        checks.append(run_check("name", check_name_free, ec2, found[0], prefix=prefix, **options))
    builds = bool(image) and not nix.is_path(image)
    reads = bool(found) and found[0].format in NEED_QEMU_IMG
    return [
        *checks,
        run_check("disk space", check_disk_space, settings.state),
        check_tool("nix", needed="the image must be built" if builds else "", for_what="building images"),
        check_tool(
            "qemu-img",
            needed="needed to read this image's format" if reads else "",
            for_what="qcow2, VHDX and VMDK images",
        ),
    ]
