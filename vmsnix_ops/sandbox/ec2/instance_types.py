"""Instance types: DescribeInstanceTypes, DescribeInstanceTypeOfferings.

``instance_types.tsv`` has the families m1, t2 to t4g, m5 to m8, c5 to c8, r5 to r8 and g4 to g6. Each line
has the facts that its sizes have in common, then each size with its virtual processors and memory in MiB.
Source: recorded answers of DescribeInstanceTypes of 2026. Prices, network and disk performance are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, not_emulated, operation
from vmsnix_ops.sandbox.ec2.common import check_one_of
from vmsnix_ops.sandbox.ec2.filters import Filters, by_name, describe
from vmsnix_ops.sandbox.ec2.networks import zone_ids, zones_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmsnix_ops.sandbox.core import Context, Params

DEFAULT_INSTANCE_TYPE = "m1.small"
"""The type of a launch without a type (RunInstances)."""

FREE_TIER = frozenset({"c7i-flex.large", "m7i-flex.large", "t3.micro", "t3.small", "t4g.micro", "t4g.small"})
TYPE_NAME = re.compile(r"[a-z][a-z0-9-]*\.(nano|micro|small|medium|large|\d*xlarge|metal(-\w+)?)")


@dataclass(frozen=True, slots=True)
class InstanceType:
    """An instance type, as DescribeInstanceTypes shows it.

    `boot_modes` are ``legacy-bios`` and ``uefi``, `hypervisor` is ``nitro``, ``xen``, or ``none`` for bare
    metal, `ena` is ``required``, ``supported`` or ``unsupported``.
    """

    name: str
    architectures: tuple[str, ...]
    boot_modes: tuple[str, ...]
    hypervisor: str
    nitro_tpm: bool
    ena: str
    ebs_optimized: str
    nvme: str
    threads_per_core: int
    manufacturer: str
    usage_classes: tuple[str, ...]
    strategies: tuple[str, ...]
    current: bool
    storage: bool
    recovery: bool
    hibernation: bool
    dedicated_hosts: bool
    processors: int
    memory_mib: int

    @property
    def cores(self) -> int:
        """Its processor cores."""
        return self.processors // self.threads_per_core


READERS: dict[str, Callable[[str], Any]] = {
    "bool": "yes".__eq__,
    "int": int,
    "str": str,
    "tuple[str, ...]": lambda text: tuple(text.split(",")),
}
"""Reads the text of a fact, by the type of its member of `InstanceType`."""


@lru_cache
def instance_types() -> dict[str, InstanceType]:
    """Return the instance types by name."""
    text = files(__package__).joinpath("instance_types.tsv").read_text("ascii")
    header, *lines = (line.split("\t") for line in text.splitlines())
    found = {}
    for line in lines:
        facts = dict(zip(header, line, strict=True))
        for size in facts["sizes"].split():
            name, _, numbers = size.partition("=")
            processors, _, memory = numbers.partition("/")
            texts = facts | {"processors": processors, "memory_mib": memory}
            texts["name"] = f"{facts['family']}.{name}"
            members = {one.name: READERS[str(one.type)](texts[one.name]) for one in fields(InstanceType)}
            kind = InstanceType(**members)
            found[kind.name] = kind
    return found


def find_instance_type(name: str) -> InstanceType:
    """Return an instance type.

    ``InvalidInstanceType`` for a type that AWS does not have, ``NotImplemented`` for one that it may have.
    """
    found = instance_types().get(name)
    if found is not None:
        return found
    families = {kind.partition(".")[0] for kind in instance_types()}
    if TYPE_NAME.fullmatch(name) and name.partition(".")[0] not in families:
        raise not_emulated(f"the instance type {name!r}")
    raise ApiError("InvalidInstanceType", f"The following supplied instance types do not exist: [{name}]")


def instance_type_view(_context: Context, kind: InstanceType) -> dict[str, Any]:
    """Return an instance type as DescribeInstanceTypes shows it."""
    paravirtual = kind.name.startswith("m1.")
    view: dict[str, Any] = {
        "InstanceType": kind.name,
        "CurrentGeneration": kind.current,
        "FreeTierEligible": kind.name in FREE_TIER,
        "SupportedUsageClasses": list(kind.usage_classes),
        "SupportedRootDeviceTypes": ["ebs", "instance-store"] if paravirtual else ["ebs"],
        "SupportedVirtualizationTypes": ["hvm", "paravirtual"] if paravirtual else ["hvm"],
        "BareMetal": kind.hypervisor == "none",
        "ProcessorInfo": {
            "SupportedArchitectures": list(kind.architectures),
            "Manufacturer": kind.manufacturer,
        },
        "VCpuInfo": {
            "DefaultVCpus": kind.processors,
            "DefaultCores": kind.cores,
            "DefaultThreadsPerCore": kind.threads_per_core,
        },
        "MemoryInfo": {"SizeInMiB": kind.memory_mib},
        "InstanceStorageSupported": kind.storage,
        "EbsInfo": {
            "EbsOptimizedSupport": kind.ebs_optimized,
            "EncryptionSupport": "supported",
            "NvmeSupport": kind.nvme,
        },
        "NetworkInfo": {"EnaSupport": kind.ena},
        "PlacementGroupInfo": {"SupportedStrategies": list(kind.strategies)},
        "HibernationSupported": kind.hibernation,
        "DedicatedHostsSupported": kind.dedicated_hosts,
        "BurstablePerformanceSupported": kind.name.startswith("t"),
        "AutoRecoverySupported": kind.recovery,
        "SupportedBootModes": list(kind.boot_modes),
        "NitroTpmSupport": "supported" if kind.nitro_tpm else "unsupported",
    }
    if kind.hypervisor != "none":
        view["Hypervisor"] = kind.hypervisor
    if kind.nitro_tpm:
        view["NitroTpmInfo"] = {"SupportedVersions": ["2.0"]}
    return view


INSTANCE_TYPE_FILTERS: Filters = by_name(
    "auto-recovery-supported bare-metal burstable-performance-supported current-generation "
    "dedicated-hosts-supported ebs-info.ebs-optimized-support ebs-info.encryption-support "
    "ebs-info.nvme-support free-tier-eligible hibernation-supported hypervisor "
    "instance-storage-supported instance-type network-info.ena-support "
    "nitro-tpm-info.supported-versions nitro-tpm-support "
    "placement-group-info.supported-strategies"
) | {
    "memory-info.size-in-mib": "MemoryInfo.SizeInMiB",
    "processor-info.supported-architecture": "ProcessorInfo.SupportedArchitectures",
    "supported-boot-mode": "SupportedBootModes",
    "supported-root-device-type": "SupportedRootDeviceTypes",
    "supported-usage-class": "SupportedUsageClasses",
    "supported-virtualization-type": "SupportedVirtualizationTypes",
    "vcpu-info.default-cores": "VCpuInfo.DefaultCores",
    "vcpu-info.default-threads-per-core": "VCpuInfo.DefaultThreadsPerCore",
    "vcpu-info.default-vcpus": "VCpuInfo.DefaultVCpus",
}


@operation("ec2", "DescribeInstanceTypes", "Filters InstanceTypes MaxResults NextToken")
def describe_instance_types(context: Context, params: Params) -> dict[str, Any]:
    """Return the instance types of the sandbox, without their network and disk performance."""
    found = [find_instance_type(name) for name in params.get("InstanceTypes") or instance_types()]
    return describe(context, params, found, instance_type_view, filters=INSTANCE_TYPE_FILTERS, key="name")


@operation("ec2", "DescribeInstanceTypeOfferings", "Filters LocationType MaxResults NextToken")
def describe_instance_type_offerings(context: Context, params: Params) -> dict[str, Any]:
    """Return where instance types are offered. The sandbox offers each type in every zone.

    On AWS, some regions and zones lack some types.
    """
    kind = params.get("LocationType", "region")
    places = {
        "region": [context.region],
        "availability-zone": zones_of(context.region),
        "availability-zone-id": zone_ids(context.region),
    }
    check_one_of("locationType", kind, places)
    found = [
        {"InstanceType": name, "LocationType": kind, "Location": place}
        for name in instance_types()
        for place in places[kind]
    ]
    filters = by_name("instance-type location")
    return describe(
        context, params, found, filters=filters, key=lambda one: f"{one['InstanceType']} {one['Location']}"
    )
