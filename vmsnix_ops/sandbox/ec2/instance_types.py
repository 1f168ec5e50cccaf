"""A few instance types: what an image needs to be launched on one, and no more.

Figures from "Amazon EC2 instance types".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import AwsError, Params, operation
from vmsnix_ops.sandbox.ec2.filters import Reader, page, select

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context


@dataclass(frozen=True, slots=True)
class InstanceType:
    """An instance type: architectures and boot modes that it takes, virtual processors, memory in MiB."""

    name: str
    architectures: tuple[str, ...]
    boot_modes: tuple[str, ...]
    processors: int
    memory_mib: int
    nitro: bool = True
    burstable: bool = False


_BOTH = ("legacy-bios", "uefi")
_TYPES = (
    InstanceType("t2.micro", ("i386", "x86_64"), ("legacy-bios",), 1, 1024, nitro=False, burstable=True),
    InstanceType("t3.nano", ("x86_64",), _BOTH, 2, 512, burstable=True),
    InstanceType("t3.micro", ("x86_64",), _BOTH, 2, 1024, burstable=True),
    InstanceType("t3.small", ("x86_64",), _BOTH, 2, 2048, burstable=True),
    InstanceType("t3.medium", ("x86_64",), _BOTH, 2, 4096, burstable=True),
    InstanceType("t3a.micro", ("x86_64",), _BOTH, 2, 1024, burstable=True),
    InstanceType("t3a.small", ("x86_64",), _BOTH, 2, 2048, burstable=True),
    InstanceType("t4g.nano", ("arm64",), ("uefi",), 2, 512, burstable=True),
    InstanceType("t4g.micro", ("arm64",), ("uefi",), 2, 1024, burstable=True),
    InstanceType("t4g.small", ("arm64",), ("uefi",), 2, 2048, burstable=True),
    InstanceType("t4g.medium", ("arm64",), ("uefi",), 2, 4096, burstable=True),
    InstanceType("m5.large", ("x86_64",), _BOTH, 2, 8192),
    InstanceType("m6g.large", ("arm64",), ("uefi",), 2, 8192),
    InstanceType("m6i.large", ("x86_64",), _BOTH, 2, 8192),
    InstanceType("m7g.large", ("arm64",), ("uefi",), 2, 8192),
    InstanceType("m7i.large", ("x86_64",), _BOTH, 2, 8192),
    InstanceType("c7g.large", ("arm64",), ("uefi",), 2, 4096),
    InstanceType("c7i.large", ("x86_64",), _BOTH, 2, 4096),
)
TYPES = {kind.name: kind for kind in _TYPES}

_READERS: dict[str, Reader] = {
    "bare-metal": lambda _t: [False],
    "burstable-performance-supported": lambda t: [t.burstable],
    "current-generation": lambda t: [t.name != "t2.micro"],
    "hypervisor": lambda t: ["nitro" if t.nitro else "xen"],
    "instance-type": lambda t: [t.name],
    "memory-info.size-in-mib": lambda t: [t.memory_mib],
    "nitro-tpm-support": lambda t: ["supported" if t.nitro and "uefi" in t.boot_modes else "unsupported"],
    "processor-info.supported-architecture": lambda t: t.architectures,
    "supported-boot-mode": lambda t: t.boot_modes,
    "supported-root-device-type": lambda _t: ["ebs"],
    "supported-usage-class": lambda _t: ["on-demand", "spot"],
    "supported-virtualization-type": lambda _t: ["hvm"],
    "vcpu-info.default-vcpus": lambda t: [t.processors],
}


def find(name: str) -> InstanceType:
    """Return an instance type.

    Raises
    ------
    AwsError
        ``InvalidInstanceType``: AWS does not have it, or the sandbox does not.
    """
    if name not in TYPES:
        raise AwsError("InvalidInstanceType", f"The following supplied instance types do not exist: [{name}]")
    return TYPES[name]


def _view(kind: InstanceType) -> dict[str, Any]:
    tpm = kind.nitro and "uefi" in kind.boot_modes
    return {
        "InstanceType": kind.name,
        "CurrentGeneration": kind.name != "t2.micro",
        "BareMetal": False,
        "BurstablePerformanceSupported": kind.burstable,
        "Hypervisor": "nitro" if kind.nitro else "xen",
        "MemoryInfo": {"SizeInMiB": kind.memory_mib},
        "NitroTpmSupport": "supported" if tpm else "unsupported",
        "ProcessorInfo": {"SupportedArchitectures": list(kind.architectures)},
        "SupportedBootModes": list(kind.boot_modes),
        "SupportedRootDeviceTypes": ["ebs"],
        "SupportedUsageClasses": ["on-demand", "spot"],
        "SupportedVirtualizationTypes": ["hvm"],
        "VCpuInfo": {"DefaultVCpus": kind.processors},
    }


@operation("ec2", "DescribeInstanceTypes", honours=("Filters", "InstanceTypes", "MaxResults", "NextToken"))
def describe_instance_types(_context: Context, params: Params) -> dict[str, Any]:
    """Return the instance types that the sandbox has, with the attributes that it knows."""
    found = [find(name) for name in params.get("InstanceTypes") or TYPES]
    kept = select(found, params, _READERS, tags=False, operation="DescribeInstanceTypes")
    shown, token = page(
        kept, params, lambda t: t.name, smallest=5, largest=100, default=100, not_with="InstanceTypes"
    )
    return {"InstanceTypes": [_view(kind) for kind in shown]} | ({"NextToken": token} if token else {})
