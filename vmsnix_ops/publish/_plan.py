"""The plan of a publish: its checked parameters, and its steps as methods.

::

plan = publish.plan(image=image, region=region, bucket=bucket)
built = plan.build()
source = plan.upload(built)
snapshot = plan.import_snapshot(source)
ami = plan.register(snapshot)
plan.finish(ami)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.arguments import check_arguments, check_form
from vmsnix_ops.aws import keys, regions
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.checks import raise_for_failure
from vmsnix_ops.aws.ebs_direct.reading import VERIFIES
from vmsnix_ops.aws.session import session as default_session
from vmsnix_ops.boot.run import check_options as check_boot
from vmsnix_ops.display import Displayed, DisplayTable, frame_table, make_table
from vmsnix_ops.interrupts import stopping
from vmsnix_ops.nix.image import BOOT_MODES, SYSTEMS
from vmsnix_ops.progress import Progress, current
from vmsnix_ops.publish import pipeline
from vmsnix_ops.publish.boot_test import boot_test as run_boot_test
from vmsnix_ops.publish.identity import ROOT_DEVICE
from vmsnix_ops.publish.journal import StepJournal
from vmsnix_ops.publish.parameters import PublishParameters, Via, check_public
from vmsnix_ops.publish.preflight import check_image, checks_in_aws
from vmsnix_ops.records.fingerprints import check_plan, record_plan
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.records.run_tables import RunTables
from vmsnix_ops.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    import boto3
    import pandas as pd

    from vmsnix_ops.publish.boot_test import BootStep
    from vmsnix_ops.publish.values import Built, PublishResult, RegisteredAmi, SnapshotStep, UploadStep

VIAS: tuple[Via, ...] = ("import", "direct")


@dataclass(frozen=True, slots=True)
class PublishPlan(Displayed, PublishParameters):
    """A checked publish that has not started. Make it with `plan`.

    Its attributes are those of `vmsnix_ops.publish.parameters.PublishParameters`.
    """

    def build(self) -> Built:
        """Build the image, or find the built image; see `vmsnix_ops.publish.pipeline.build`."""
        return pipeline.build(self)

    def boot(self, built: Built) -> BootStep:
        """Boot the image in QEMU if requested; see `vmsnix_ops.publish.boot_test.boot_test`."""
        return run_boot_test(self, built)

    def upload(self, built: Built) -> UploadStep:
        """Upload the image; see `vmsnix_ops.publish.pipeline.upload`.

        Raises
        ------
        vmsnix_ops.errors.StalePlanError
            It is not the expected plan; nothing was uploaded.
        """
        facts, journal = pipeline.content(self, built), self.journal
        check_plan(facts, self.expect_plan, journal.tables)
        if self.dry_run and built.digest:
            record_plan(facts, journal.tables, runbook=journal.run.runbook, run_id=self.run_id)
        return pipeline.upload(self, built)

    def import_snapshot(self, source: UploadStep) -> SnapshotStep:
        """Create the snapshot; see `vmsnix_ops.publish.pipeline.import_snapshot`."""
        return pipeline.import_snapshot(self, source)

    def register(self, snapshot: SnapshotStep) -> RegisteredAmi:
        """Register the AMI; see `vmsnix_ops.publish.pipeline.register`."""
        return pipeline.register(self, snapshot)

    def finish(self, ami: RegisteredAmi) -> PublishResult:
        """Clean up and write ``result.json``; see `vmsnix_ops.publish.pipeline.finish`."""
        return pipeline.finish(self, ami, planned=tuple(self.facts()))

    def apply(self) -> PublishResult:
        """Run all steps, from `build` to `finish`. Safe to run twice, as each step.

        The first SIGINT or SIGTERM ends the run after its clean-up, the second one ends it at once.
        """
        with stopping():
            built = self.build()
            self.boot(built)
            return self.finish(self.register(self.import_snapshot(self.upload(built))))

    def history(self, last: int = 10) -> pd.DataFrame:
        """Return the newest AMIs of all images in the tables."""
        from vmsnix_ops.records import history

        columns = ["created_at", "image", "name", "ami_id", "region", "snapshot_id", "size_gib", "state"]
        return history.amis(self.journal.tables).head(last)[columns]

    def show_history(self) -> DisplayTable:
        """Return `history` for people. A table that cannot be read does not fail a publish that is done."""
        try:
            return frame_table(self.history())
        except errors.RecordsError as error:
            return make_table((), (), nothing=str(error))

    @property
    def title(self) -> str:
        """One line."""
        return f"Publish {self.image} to {self.region}, account {self.account}"

    def facts(self) -> list[tuple[str, str]]:
        """Return what each step will do, and the results of the checks."""
        # The name of the image is not known from its path.
        image = "IMAGE" if Path(self.image).exists() else self.image.split("#")[-1]
        name = f"{self.prefix}-{image}-VERSION-SYSTEM-DIGEST"
        who = "everybody" if self.public else f"account {self.account}"
        lines = [("build", f"build {self.image}; use it unchanged if it is a file, a directory or a result")]
        if self.boot_test:
            lines.append(("boot", "boot it in QEMU, and stop if the boot fails"))
        if self.via == "direct":
            what = (
                ("the blocks that differ from the image's last snapshot")
                if self.incremental
                else "all its data"
            )
            lines += [
                ("upload", f"write {what} to a snapshot in {self.region}"),
                ("import", "wait until that snapshot is complete"),
            ]
        else:
            lines += [
                ("upload", f"upload it to s3://{self.bucket}/{self.key_prefix}DIGEST if it does not exist"),
                ("import", f"import it as a snapshot in {self.region} with the role {self.role_name}"),
            ]
        if self.verify != "none":
            amount = "a sample of its blocks" if self.verify == "sample" else "all its blocks"
            lines.append(("verify", f"read {amount} back and compare them with the image"))
        last = "write the tables and result.json"
        lines += [
            (
                "register",
                f"register {name} with root {self.root_device or 'of the image'}, launchable by {who}",
            ),
            ("finish", last if self.via == "direct" else f"delete the S3 object, {last}"),
        ]
        keys = [one.facts["may log in"] for one in self.checks if one.facts.get("may log in")]
        lines += [("may log in", text) for text in keys]
        if self.dry_run:
            lines.append(("dry run", "nothing will be changed: every step only checks"))
        return [*lines, *(("checked", f"{one.name}: {one.outcome}, {one.found}") for one in self.checks)]


@check_arguments
def plan(
    *,
    image: str,
    region: str = "",
    bucket: str = "",
    prefix: str = "",
    via: str = "import",
    incremental: bool = True,
    verify: str = "none",
    boot_test: bool = False,
    boot_expect: str = "",
    system: str = "",
    boot_mode: str = "",
    root_device: str = "",
    role_name: str = "",
    kms_key: str = "",
    public: bool = False,
    confirm_public: str = "",
    tags: Mapping[str, str] | None = None,
    dry_run: bool = False,
    expect_plan: str = "",
    settings: Settings | None = None,
    progress: Progress | None = None,
    session: boto3.Session | None = None,
) -> PublishPlan:
    """Check parameters, image and account, and return the plan. Nothing is changed.

    Parameters
    ----------
    image
        A flake attribute (``ecs-node``, ``./nix#ecs-node``), a ``result`` link, a Nix output directory, or an
        image file (VHD, raw or stream-optimized VMDK; with ``via="direct"`` also qcow2, VHDX and any VMDK).
    region
        Region of the AMI; by default that of the settings, else of AWS (``AWS_REGION``, the profile).
    bucket
        S3 bucket in that region; by default that of the settings. Not used with ``via="direct"``.
    prefix
        First part of the AMI's name; by default that of the settings (``altf4llc``).
    via
        Method: ``"import"`` uses S3 and VM Import, ``"direct"`` the EBS direct APIs.
    incremental
        With ``via="direct"``: send only the blocks that differ from the image's last snapshot.
    verify
        Compare the snapshot with the image: ``"none"``, a ``"sample"``, or the ``"whole"`` snapshot.
    boot_test
        Boot the image in QEMU before the upload, and stop if the boot fails.
    boot_expect
        With `boot_test`: regular expression for the expected line on the console; by default that of NixOS.
    system
        ``x86_64-linux`` or ``aarch64-linux``; by default that of the image file, or of this machine for an
        image of a flake. A contradicting image is refused.
    boot_mode
        ``legacy-bios``, ``uefi`` or ``uefi-preferred``; by default that of the image.
    root_device
        Root device name of the AMI; by default that of the image, else ``/dev/sda1``.
    role_name
        Service role of VM Import; by default that of the settings (``vmimport``).
    kms_key
        ARN of the KMS key for uploaded object, snapshot and AMI; by default that of the settings, else the
        defaults of bucket and account.
    public
        Whether everybody may launch the AMI.
    confirm_public
        With `public`: the account ID, or ``ACCOUNT+keys`` for an image with keys of an administrator. A
        public AMI can be copied by others, so one parameter is not enough.
    tags
        Additional tags for all created resources.
    dry_run
        Check and report; change nothing.
    expect_plan
        Fingerprint of the dry run that was checked: `PublishPlan.upload` refuses another plan.
    settings, progress, session
        Override the defaults from vmsnix.toml and the AWS environment.

    Raises
    ------
    vmsnix_ops.errors.UsageError
        A parameter is missing or invalid.
    vmsnix_ops.errors.ImageError, vmsnix_ops.errors.NixError
        The image does not exist, cannot be read, or has a format that the method does not support.
    vmsnix_ops.errors.AwsError
        Credentials, account, region, bucket or role are unusable.
    """
    settings = settings or load()
    session = session or default_session()
    region = regions.home_region(session, region, settings.region)
    bucket, role_name = bucket or settings.bucket or "", role_name or settings.role_name
    prefix = prefix or settings.prefix
    if via == "direct":
        bucket = role_name = ""
    _check_parameters(
        image, bucket, prefix, via, verify, system, boot_mode, root_device or ROOT_DEVICE, role_name
    )
    if boot_expect:
        check_boot(boot_expect, "auto")
    own_tags, kms_key = tagging.check_tags(tags or {}), keys.check_key(kms_key or settings.kms_key)
    check_public(public, confirm_public)
    if public and kms_key:
        raise errors.ParameterError(
            "A public AMI cannot be encrypted with a key.",
            why="public and kms_key are both set, and others could not launch it.",
            fix="Use only one of them.",
        )

    # First, because it does not call AWS.
    readable, _ = check_image(
        image, flake=settings.flake, via=via, system=system, boot_mode=boot_mode, root_device=root_device
    )
    checks = [readable]
    checks += checks_in_aws(
        session,
        region=region,
        bucket=bucket,
        role_name=role_name,
        allowed_accounts=settings.allowed_accounts,
        key_prefix=settings.key_prefix,
        via=via,
        public=public,
        kms_key=kms_key,
    )
    raise_for_failure(checks)
    facts = {key: value for check in checks for key, value in check.facts.items()}
    check_public(public, confirm_public, facts["account"], facts.get("may log in", ""))
    kms_key = keys.key_arn(kms_key, region=region, who=facts["identity"])

    run = current_run("publish-ami")
    tables = RunTables(settings, run)
    journal = StepJournal(
        run, tables, progress or current(), region=region, account=facts["account"], via=via
    )
    journal.dry_run = dry_run
    return PublishPlan(
        image=image,
        region=region,
        account=facts["account"],
        bucket=bucket,
        key_prefix=settings.key_prefix,
        prefix=prefix,
        via="direct" if via == "direct" else "import",
        incremental=incremental,
        verify=next(known for known in VERIFIES if known == verify),
        boot_test=boot_test,
        boot_expect=boot_expect,
        system=system,
        boot_mode=boot_mode,
        root_device=root_device,
        role_name=role_name,
        kms_key=kms_key,
        public=public,
        tags=own_tags,
        dry_run=dry_run,
        expect_plan=expect_plan,
        checks=tuple(checks),
        settings=settings,
        session=session,
        journal=journal,
    )


def _check_parameters(
    image: str,
    bucket: str,
    prefix: str,
    via: str,
    verify: str,
    system: str,
    boot_mode: str,
    root_device: str,
    role_name: str,
) -> None:
    if not image:
        raise errors.ParameterError(
            "No image given.",
            fix="Add --image with a flake attribute, a result, a directory or an image file.",
        )
    choices = [
        ("method", via, VIAS),
        ("verification", verify, VERIFIES),
        ("system", system, ("", *SYSTEMS)),
        ("boot_mode", boot_mode, ("", *BOOT_MODES)),
    ]
    for name, value, known in choices:
        if value not in known:
            allowed = [choice for choice in known if choice]
            raise errors.ParameterError(
                f"Invalid {name} {value!r}: use {', '.join(allowed)}.", why=errors.nearest(value, allowed)
            )
    if via == "import" and not bucket:
        raise errors.ParameterError(
            "No bucket given.",
            why="VM Import reads the image from one of your buckets.",
            fix="Add --bucket NAME, set bucket in vmsnix.toml, or use --via direct, which needs no bucket.",
        )
    rules = [
        ("root_device", root_device, "device"),
        ("prefix", prefix, "prefix"),
        *([("bucket", bucket, "bucket"), ("role_name", role_name, "role")] if via == "import" else []),
    ]
    for name, value, kind in rules:
        check_form(kind, value, f"{name}: {value!r}")
