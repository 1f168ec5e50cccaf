"""Who an image is in AWS: name, key, tags and registration, derived from its bytes and its description."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmsnix_ops.aws import images, imports, keys
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import writing
from vmsnix_ops.publish import registration as registering
from vmsnix_ops.publish.values import Built

if TYPE_CHECKING:
    from vmsnix_ops.disk.formats import DiskImage
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.publish.plan import Plan


def describe(plan: Plan, image: BuiltImage, disk: DiskImage, seen: Survey) -> Built:
    """Return what is known of an image before AWS is asked; refuse a format that its way cannot take."""
    if plan.via == "import":
        imports.check_format(image.path.name, disk)
    name = images.clean_name(f"{plan.prefix}-{image.name}-{image.version}-{image.system}-{seen.digest[:8]}")
    wanted = registering.registration(
        image, name=name, disk_bytes=disk.size, root_device=plan.root_device, boot_mode=plan.boot_mode
    )
    return Built(
        outcome="created",
        name=image.name,
        version=image.version,
        system=image.system,
        path=image.path,
        format=disk.format,
        digest=seen.digest,
        file_bytes=disk.file_bytes,
        disk_bytes=disk.size,
        boot_mode=wanted.boot_mode,
        tpm_support=wanted.tpm_support,
        imds_support=wanted.imds_support,
        ena_support=wanted.ena_support,
        root_device=wanted.root_device,
        flake=image.flake or "",
        derivation=image.drv_path or "",
        store_path=image.store_path or "",
        ami_name=name,
        seen=seen,
        registration=wanted,
    )


def registration(plan: Plan, built: Built, snapshot_id: str = "") -> images.Registration:
    """Return what the AMI is registered with: what the image asks for, and what the operator chose."""
    if built.registration is None:
        raise RuntimeError("a built image with a digest has a registration")
    return replace(built.registration, snapshot_id=snapshot_id, tags=tags(plan, built) | _evidence(plan))


def _evidence(plan: Plan) -> dict[str, str]:
    """Return the tag that leads from an AMI to the evidence of its run; none without an archive for all."""
    entry = plan.journal.run.entry
    # A tag that is cut leads nowhere.
    return {tagging.EVIDENCE: entry} if 0 < len(entry) <= tagging.LONGEST_VALUE else {}


def key(plan: Plan, built: Built) -> str:
    """Return the key of the object in S3: the digest, so that the same bytes have the same key everywhere."""
    return f"{plan.key_prefix}{built.digest}.{built.format}"


def url(plan: Plan, built: Built) -> str:
    """Return the object's address, as the AWS CLI writes it."""
    return f"s3://{plan.bucket}/{key(plan, built)}"


def tags(plan: Plan, built: Built) -> dict[str, str]:
    """Return the tags of everything that this publish creates."""
    return {
        tagging.NAME: built.ami_name,
        tagging.IMAGE: built.name,
        tagging.DIGEST: built.digest,
        tagging.RUN: plan.run_id,
        tagging.FLAKE: built.flake[: tagging.LONGEST_VALUE],
        tagging.DERIVATION: built.derivation,
        tagging.VERSION: built.version,
        **plan.tags,
    }


def block_upload(plan: Plan, built: Built) -> writing.Upload:
    """Return what the direct way uploads, and where it remembers the blocks that arrived."""
    if built.path is None:
        raise RuntimeError("a built image with a digest has a path")
    name = f"{plan.account}-{plan.region}-{built.digest}{keys.mark(plan.kms_key)}"
    return writing.Upload(
        path=built.path,
        digest=built.digest,
        image=built.name,
        region=plan.region,
        tags=tags(plan, built),
        journal=plan.settings.state / "blocks" / name,
        incremental=plan.incremental,
        kms_key=plan.kms_key,
        seen=built.seen,
    )
