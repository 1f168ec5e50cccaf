"""The names, keys and tags of an image in AWS, and the registration of its AMI."""

from __future__ import annotations

import base64
import re
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from vmsnix_ops import errors
from vmsnix_ops.arguments import DEVICE
from vmsnix_ops.aws import images, imports, keys
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.aws.ebs_direct import writing
from vmsnix_ops.boot.measurements import read_measurements
from vmsnix_ops.disk.image import volume_gib
from vmsnix_ops.disk.survey import changed, still_identified
from vmsnix_ops.publish.values import Built

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from types_boto3_ec2.literals import BootModeValuesType
    from types_boto3_ec2.type_defs import BlockDeviceMappingTypeDef, EbsBlockDeviceTypeDef

    from vmsnix_ops.boot.measurements import Measurements
    from vmsnix_ops.disk.image import DiskImage
    from vmsnix_ops.disk.survey import Survey
    from vmsnix_ops.nix.image import BuiltImage
    from vmsnix_ops.publish.parameters import PublishParameters


# The registration of an AMI, by the image's ``registerImage`` and the operator's parameters, which take
# precedence. An unsupported value is refused before the upload.
#
# Sources: "RegisterImage" and "EbsBlockDevice" in the Amazon EC2 API Reference; "Instance type requirements
# for NitroTPM" and "UEFI variables" in the Amazon EC2 User Guide.

ROOT_DEVICE = "/dev/sda1"  # as the default of RegisterImage
UEFI_DATA_BYTES = 64 * 1024  # EC2's limit
_CHOICES: dict[str, tuple[object, ...]] = {
    "Architecture": tuple(images.ARCHITECTURES.values()),
    "BootMode": ("legacy-bios", "uefi", "uefi-preferred"),
    "EnaSupport": (True, False),
    "ImdsSupport": ("v2.0",),
    "SriovNetSupport": ("simple",),
    "TpmSupport": ("v2.0",),
    "VirtualizationType": ("hvm",),
}
_TEXTS = ("Description", "RootDeviceName", "UefiData")
_OURS = {
    "Name": "the name follows from prefix, image and digest",
    "TagSpecifications": "give tags with the parameter tags",
    "ImageLocation": "the AMI starts from a snapshot",
    "KernelId": "images are hvm",
    "RamdiskId": "images are hvm",
}
_SIZES = {
    "gp2": (1, 16_384), "gp3": (1, 65_536), "io1": (4, 16_384), "io2": (4, 65_536),
    "sc1": (125, 16_384), "st1": (125, 16_384), "standard": (1, 1_024),
}  # fmt: skip
_IOPS = {"gp3": (3_000, 80_000), "io1": (100, 64_000), "io2": (100, 256_000)}
_THROUGHPUT = {"gp3": (125, 2_000)}
# Unit, and minimum and maximum by volume type (EbsBlockDevice).
_RANGES = {"VolumeSize": (" GiB", _SIZES), "Iops": ("", _IOPS), "Throughput": (" MiB/s", _THROUGHPUT)}
_NO_ROOT_TYPES = ("sc1", "st1")
_INSTANCE_STORE = re.compile(r"ephemeral(1?[0-9]|2[0-3])")
_EBS = {
    "DeleteOnTermination": bool,
    "Encrypted": bool,
    "Iops": int,
    "Throughput": int,
    "VolumeSize": int,
    "VolumeType": str,
}


def registration_of(
    image: BuiltImage, *, name: str, disk_bytes: int, root_device: str = "", boot_mode: str = ""
) -> images.Registration:
    """Return the registration of an image's AMI, without snapshot and tags.

    The operator's `root_device` and `boot_mode` take precedence over the image's ``registerImage``. An
    ImageFormatError names the field of ``registerImage`` that EC2 or vmsnix does not support.
    """
    asked = _checked({k: v for k, v in image.register_image.items() if v is not None}, image)
    architecture = images.ARCHITECTURES.get(image.system)
    if architecture is None:
        raise errors.ImageError(
            f"EC2 has no architecture for {image.system or 'an unknown system'}.",
            why=f"EC2 supports {' and '.join(images.ARCHITECTURES)}.",
            fix="Build the image for one of them.",
        )
    if asked.get("Architecture", architecture) != architecture:
        _refuse(
            image, "Architecture", f"It is {asked['Architecture']!r}, but the image is for {image.system}."
        )
    mode = boot_mode or str(asked.get("BootMode") or image.boot_mode)
    _check_firmware(image, asked, architecture, mode)
    device, root, disks = _devices(image, asked, root_device, disk_bytes)
    return images.Registration(
        name=name,
        architecture=architecture,
        boot_mode=cast("BootModeValuesType", mode),  # the plan and `_checked` allow no other
        root_device=device,
        snapshot_id="",
        description=str(asked.get("Description") or f"NixOS {image.version} {image.name}"[:255]),
        root_volume=root,
        disks=disks,
        tpm_support=asked.get("TpmSupport") or "",
        ena_support=bool(asked.get("EnaSupport", True)),
        uefi_data=str(asked.get("UefiData") or ""),
    )


def _checked(asked: Mapping[str, Any], image: BuiltImage) -> Mapping[str, Any]:
    for key, value in asked.items():
        if key in _OURS:
            _refuse(image, key, f"An image cannot set it: {_OURS[key]}.")
        if key in _CHOICES:
            choices = _CHOICES[key]
            if value not in choices or type(value) is not type(choices[0]):
                _refuse(image, key, f"It is {value!r} and must be {' or '.join(map(repr, choices))}.")
        elif key in _TEXTS:
            longest = 255 if key == "Description" else UEFI_DATA_BYTES * 2
            if not isinstance(value, str) or len(value) > longest:
                _refuse(image, key, "It is too long, or not text.")
        elif key != "BlockDeviceMappings":
            _refuse(image, key, "vmsnix does not support this parameter of RegisterImage.")
    if "RootDeviceName" in asked and not re.fullmatch(DEVICE, asked["RootDeviceName"]):
        _refuse(image, "RootDeviceName", f"{asked['RootDeviceName']!r} is not a device name of EC2.")
    return asked


def _check_firmware(image: BuiltImage, asked: Mapping[str, Any], architecture: str, mode: str) -> None:
    """Refuse combinations of boot mode, TPM and UEFI data that EC2 refuses."""
    if architecture == "arm64" and mode == "legacy-bios":
        raise errors.ImageError(
            f"The image {image.name} is for {image.system} and cannot boot with legacy-bios.",
            why="arm64 instances boot only with UEFI.",
            fix="Use the boot mode uefi.",
        )
    if asked.get("TpmSupport") and mode != "uefi":
        _refuse(image, "TpmSupport", f"A TPM needs the boot mode uefi, but the boot mode is {mode}.")
    if image.attested and asked.get("TpmSupport") != "v2.0":
        _refuse(image, "TpmSupport", "It is missing, but nothing can attest an image without a TPM.")
    if asked.get("UefiData"):
        if mode == "legacy-bios":
            _refuse(
                image, "UefiData", "UEFI data needs the boot mode uefi, but the boot mode is legacy-bios."
            )
        try:
            data = base64.b64decode(asked["UefiData"], validate=True)
        except ValueError:
            _refuse(image, "UefiData", "It is not base64.")
        if len(data) > UEFI_DATA_BYTES:
            _refuse(image, "UefiData", f"It has {len(data)} bytes; EC2 allows {UEFI_DATA_BYTES}.")


def _devices(
    image: BuiltImage, asked: Mapping[str, Any], root_device: str, disk_bytes: int
) -> tuple[str, EbsBlockDeviceTypeDef, tuple[BlockDeviceMappingTypeDef, ...]]:
    """Return the root device's name, its volume, and the mappings of further disks."""

    def refuse(why: str) -> NoReturn:
        _refuse(image, "BlockDeviceMappings", why)

    mappings = _mappings(asked, refuse)
    own = str(asked.get("RootDeviceName") or ROOT_DEVICE)
    if mappings and "RootDeviceName" not in asked and own not in mappings:
        _refuse(
            image,
            "RootDeviceName",
            f"It is missing, and BlockDeviceMappings has {', '.join(mappings)}: the root disk is unknown.",
        )
    device = root_device or own
    root = images.default_root_volume()
    given = mappings.pop(own, None)
    if given is not None:
        if "Ebs" not in given:
            refuse(f"The root device {own} is not an EBS volume.")
        root |= given["Ebs"]
    if device in mappings:
        refuse(f"{device} is an additional disk of the image and cannot be the root device.")
    size, smallest = root.get("VolumeSize"), volume_gib(disk_bytes)
    if size is not None and int(size) < smallest:
        refuse(f"The root volume has {size} GiB, but the disk needs {smallest} GiB.")
    low, high = _SIZES[root["VolumeType"]]
    if not low <= int(size or smallest) <= high:
        refuse(
            f"The root volume has {size or smallest} GiB, but {root['VolumeType']} allows {low} to {high} "
            "GiB."
        )
    if "Encrypted" in root:
        refuse("The snapshot determines whether the root volume is encrypted: use the parameter kms_key.")
    if root["VolumeType"] in _NO_ROOT_TYPES:
        refuse(f"A root volume cannot be of type {root['VolumeType']}.")
    return device, root, tuple({"DeviceName": name, **mapping} for name, mapping in mappings.items())


def _mappings(
    asked: Mapping[str, Any], refuse: Callable[[str], NoReturn]
) -> dict[str, BlockDeviceMappingTypeDef]:
    """Return the block device mappings by device name, after checking them."""
    given = asked.get("BlockDeviceMappings", [])
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        refuse("It must be a list of objects.")
    found: dict[str, BlockDeviceMappingTypeDef] = {}
    for entry in given:
        mapping = {key: value for key, value in entry.items() if value is not None}
        device = mapping.pop("DeviceName", "")
        if not isinstance(device, str) or not re.fullmatch(DEVICE, device):
            refuse(f"{device!r} is not a device name of EC2.")
        if device in found:
            refuse(f"{device} is given twice.")
        if len(mapping) != 1 or not {"Ebs", "NoDevice", "VirtualName"} & set(mapping):
            refuse(f"{device} needs exactly one of Ebs, NoDevice and VirtualName, but has {sorted(mapping)}.")
        if "Ebs" in mapping:
            mapping["Ebs"] = _ebs(device, mapping["Ebs"], refuse)
        elif mapping.get("NoDevice", "") != "":
            refuse(f"NoDevice of {device} is {mapping['NoDevice']!r}, but must be an empty text.")
        elif "VirtualName" in mapping and not _INSTANCE_STORE.fullmatch(str(mapping["VirtualName"])):
            refuse(
                f"VirtualName of {device} is {mapping['VirtualName']!r}, but must be ephemeral0 to "
                "ephemeral23."
            )
        found[device] = cast("BlockDeviceMappingTypeDef", mapping)  # each member was checked
    root = str(asked.get("RootDeviceName") or ROOT_DEVICE)
    for device, disk in found.items():
        if device != root and "Ebs" in disk and "VolumeSize" not in disk["Ebs"]:
            refuse(f"{device} has no VolumeSize.")
    return found


def _ebs(device: str, given: Any, refuse: Callable[[str], NoReturn]) -> EbsBlockDeviceTypeDef:
    if not isinstance(given, dict):
        refuse(f"Ebs of {device} must be an object.")
    ebs = {key: value for key, value in given.items() if value is not None}
    for key, value in ebs.items():
        if key == "SnapshotId":
            refuse(f"{device} uses a snapshot, which exists in one region only.")
        if key not in _EBS:
            refuse(f"vmsnix does not support {key} of {device}.")
        if type(value) is not _EBS[key] or (type(value) is int and value < 1):
            refuse(f"{key} of {device} is {value!r}, but must be a {_EBS[key].__name__}.")
    kind = ebs.get("VolumeType", "gp3")
    if kind not in _SIZES:
        refuse(f"VolumeType of {device} is {kind!r}, but must be one of {', '.join(_SIZES)}.")
    if kind in ("io1", "io2") and "Iops" not in ebs:
        refuse(f"{device} is of type {kind}, but has no Iops.")
    for key, (unit, ranges) in _RANGES.items():
        if key not in ebs:
            continue
        if kind not in ranges:
            refuse(f"{device} is of type {kind}, which has no {key}.")
        low, high = ranges[kind]
        if not low <= ebs[key] <= high:
            refuse(f"{key} of {device} is {ebs[key]}{unit}, but {kind} allows {low} to {high}{unit}.")
    # Explicit values instead of AWS's defaults, so that an AMI can be compared with the request.
    checked: EbsBlockDeviceTypeDef = {"VolumeType": kind, "DeleteOnTermination": True}
    return checked | cast("EbsBlockDeviceTypeDef", ebs)


def _refuse(image: BuiltImage, field: str, why: str) -> NoReturn:
    raise errors.ImageFormatError(
        f"Cannot register the image {image.name}: {field} in its registerImage is invalid.",
        why=why,
        fix="Correct vmsnix.image.registerImage in the image's configuration, then build the image again.",
        field=field,
    )


def describe(plan: PublishParameters, image: BuiltImage, disk: DiskImage, survey: Survey) -> Built:
    """Return an image with the name and registration of its AMI; refuse an unsupported format."""
    if plan.via == "import":
        imports.check_format(image.path.name, disk)
    name = images.clean_name(
        f"{plan.prefix}-{image.name}-{image.version}-{image.system}-{survey.identity[:8]}"
    )
    wanted = registration_of(
        image, name=name, disk_bytes=disk.size, root_device=plan.root_device, boot_mode=plan.boot_mode
    )
    facts = {one.name: getattr(image, one.name) for one in fields(image)}
    facts |= {"boot_mode": wanted.boot_mode, "format": disk.format, "logical_bytes": disk.size}
    measured = read_measurements(disk, image.attested)
    if measured is not None and not still_identified(image.path, survey):
        raise changed(str(image.path))
    return Built(**facts, outcome="created", survey=survey, registration=wanted, measurements=measured)


def registration(plan: PublishParameters, built: Built, snapshot_id: str = "") -> images.Registration:
    """Return the registration of the AMI with snapshot and tags."""
    if built.registration is None:
        raise RuntimeError("the image has no registration")
    return replace(built.registration, snapshot_id=snapshot_id, tags=tags(plan, built) | _of_ami(plan, built))


def _of_ami(plan: PublishParameters, built: Built) -> dict[str, str]:
    """Return the tags of the AMI alone: evidence on S3, number of baked-in keys, measurements in SHA-384."""
    entry = plan.journal.run.entry
    # A shortened URL is useless.
    evidence = {tagging.EVIDENCE: entry} if 0 < len(entry) <= tagging.LONGEST_VALUE else {}
    keys = {tagging.ADMIN_KEYS: str(len(built.keys))} if built.keys else {}
    return evidence | keys | (measurement_tags(built.measurements) if built.measurements else {})


def measurement_tags(measured: Measurements) -> dict[str, str]:
    """Return the tags of an attested AMI. They are a record: who may tag an AMI can change them."""
    return {
        tagging.ROOT_HASH: measured.root_hash,
        tagging.UKI: measured.uki_sha384,
        tagging.PCR4: measured.pcr4_sha384,
        tagging.PCR12: measured.pcr12_sha384,
    }


def key(plan: PublishParameters, built: Built) -> str:
    """Return the key of the object in S3, which depends only on the file and the encryption."""
    if built.survey is None:
        raise RuntimeError("the uploaded image has no digests")
    file = f"{built.digest}-{built.survey.file_digest[:32]}{keys.key_suffix(plan.kms_key)}"
    return f"{plan.key_prefix}{file}.{built.format}"


def url(plan: PublishParameters, built: Built) -> str:
    """Return the URL of the object in S3."""
    return f"s3://{plan.bucket}/{key(plan, built)}"


def tags(plan: PublishParameters, built: Built) -> dict[str, str]:
    """Return the tags of all resources that this publish creates."""
    return {
        tagging.NAME: built.ami_name,
        tagging.IMAGE: built.name,
        tagging.DIGEST: built.digest,
        tagging.RUN: plan.run_id,
        tagging.FLAKE: (built.flake or "")[: tagging.LONGEST_VALUE],
        tagging.DERIVATION: built.derivation or "",
        tagging.VERSION: built.version,
        **plan.tags,
    }


def block_upload(plan: PublishParameters, built: Built) -> writing.SnapshotUpload:
    """Return the parameters of a direct upload."""
    name = f"{plan.account}-{plan.region}-{built.digest}{keys.key_suffix(plan.kms_key)}"
    return writing.SnapshotUpload(
        path=built.path,
        digest=built.digest,
        image=built.name,
        region=plan.region,
        tags=tags(plan, built),
        journal=plan.settings.state / "blocks" / name,
        incremental=plan.incremental,
        kms_key=plan.kms_key,
        survey=built.survey,
    )
