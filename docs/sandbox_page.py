"""Write docs/reference/sandbox.md from the sandbox's operations, botocore's models and the tests.

Run ``python -m docs.sandbox_page`` after a change.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmsnix_ops.sandbox
from vmsnix_ops.sandbox import ebs, limits
from vmsnix_ops.sandbox.core import OPERATIONS, Operation, load_operations
from vmsnix_ops.sandbox.ec2 import imports, snapshots
from vmsnix_ops.sandbox.ec2.filters import absent, by_name, documented_filters
from vmsnix_ops.sandbox.ec2.instance_types import instance_types
from vmsnix_ops.sandbox.limits import DEFAULTS
from vmsnix_ops.sandbox.policies import MANAGED_POLICIES
from vmsnix_ops.sandbox.public_amis import PARAMETER_PATH, PUBLIC_IMAGES
from vmsnix_ops.sandbox.wire.models import SERVICES, Service, service_model

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/sandbox.md"
SANDBOX = Path(vmsnix_ops.sandbox.__file__).parent

IMAGE_OPERATION = re.compile(
    r"Image|Snapshot|Import(?!Client|Key)|BundleTask|BundleInstance|ConversionTask|ExportTask"
)
"""The operations of EC2 that have a row of their own even when they are not emulated."""

TITLES = {"rbin": "Recycle Bin"}
"""Titles of services whose ID in botocore's models is not their name."""
FOLDED = 5  # longer lists of names are folded
TOOL_TESTS = ("tests/foreign/test_*.py", "tests/test_other_tools.py", "tests/sandbox/s3/test_other_tools.py")

HEAD = """# What the sandbox emulates

<!-- Written by `python -m docs.sandbox_page`: change it and vmsnix_ops/sandbox. -->

The sandbox is a local AWS in one process on 127.0.0.1, and needs no AWS account. Use it to try the runbooks,
and to test programs that publish and copy AMIs. It checks signatures, policies, parameters and checksums, and
returns AWS's error codes. Resources are pending for some time, as on AWS.

**It cannot show** whether VM Import accepts an operating system, how long AWS takes, or recent changes of
AWS. Its instances run nothing: to check whether an image boots, use the
[boot test](../how-to/boot-an-image.md).
Before you rely on a new job, run it once in an AWS account
([compare AWS and the sandbox](../how-to/record-aws.md)).

**Start it** with `vmsnix sandbox` (it prints the environment variables for a shell), with the option
`--sandbox` of a runbook, or in [Python](python.md#sandbox).

**Start it with content**: `vmsnix sandbox --seed demo`, or `sandbox(seed="demo")` in Python. This fills an
empty account with two years of published images: some dozens of AMIs in three regions with channels,
instances, launch templates, Auto Scaling groups, shared and public AMIs, drift and unfinished uploads. The
content and its ages are always the same. The command fills the account of `vmsnix demo` and `--sandbox`, and
the tables of its runs. It refuses an account that has AMIs. In Python, the attribute `records` has the rows
of the tables.

**What is not emulated is refused** with the error `NotImplemented` (HTTP status 501), which names the
operation, parameter or value. The sandbox never ignores a parameter.

**Some lists are shorter than on AWS.** A request for another name is refused as not emulated:

| operation | only these are listed |
|---|---|
SHORTER

## Tools that run unchanged

| tests | what they run |
|---|---|
TOOLS

[Other tools](other-tools.md) compares some of them.

## Limits and durations

`vmsnix sandbox --limits aws`, or `sandbox(limits="aws")` in Python, refuses requests above the rates of AWS.
Each limit is a token bucket: a request takes a token, and tokens are added at a constant rate. The limits are
off by default. They follow the sandbox's clock: `--speed 60` allows sixty times as many requests a second.

| operation | bucket | tokens a second | error |
|---|---:|---:|---|
LIMITS

Other services are not limited. Each account has its own buckets in each region. Service Quotas returns the
quotas of the EBS direct APIs; the limits of EC2 are in *Request throttling for the Amazon EC2 API*.

These quotas are always on:

| quota | error |
|---|---|
| PENDING pending snapshots of the EBS direct APIs | `ServiceQuotaExceededException` (HTTP status 402) |
| COPIES copies of snapshots to a region at once | `ResourceLimitExceeded` |
| TASKS imports of snapshots at once | `ResourceCountLimitExceeded` |

AWS publishes no durations, except that a time-based copy takes at most the given time. The durations of
the sandbox, in sandbox time, are:

| what | seconds | public reports |
|---|---|---|
| import of a snapshot | IMPORT for each GiB of the disk | 2 to 15 minutes |
| copy of a snapshot or AMI | COPY for each GiB that the snapshot stores | |
| the same, `--limits aws` | LIMITED for each GiB; a time-based copy: as given | over 3 minutes for 2 GiB |
| snapshot after CompleteSnapshot | COMPLETE for each GiB that was written | |

## Speed and memory

`just bench-sandbox` measures the sandbox, moto's server (`.ci/foreign moto` installs it) and nginx in one
run. On two cores that also ran other programs:

| | CPU time, sandbox | CPU time, moto 5.2.5 | ratio | ratio of requests a second |
|---|---:|---:|---:|---:|
| PutObject of 8 MiB, with CRC-32 | 17 ms | 39 ms | 0.42 | 2.2 |
| RegisterImage | 0.52 ms | 2.8 ms | 0.18 | 3.1 |
| DescribeImages of 10,000 AMIs in one answer | 0.25 s | 4.2 s | 0.06 | 13 |
| PutSnapshotBlock, 64 connections | 1.0 ms | not emulated | | |

The sandbox started in 0.4 s (moto: 1.3 s). It used at most 67 MiB of memory for 1 GiB to S3 and 1 GiB of
blocks (moto for 1 GiB to S3: 629 MiB).

**Do not measure uploads with the sandbox**: it accepted 610 blocks a second, 0.39 times as many as nginx,
which discards them. `just bench-upload` sends to nginx.

## Operations

*yes*: with every parameter in the models of botocore BOTOCORE. *partial*: all but the listed parameters and
values.

"""


def page() -> str:
    """Return the page."""
    import botocore

    load_operations()
    head = HEAD
    for name, text in {
        "TOOLS": "\n".join(_tool_rows()),
        "BOTOCORE": botocore.__version__,
        "LIMITS": "\n".join(_limit_rows()),
        "SHORTER": "\n".join(_shorter_list_rows()),
        "PENDING": f"{ebs.MAX_PENDING_SNAPSHOTS}",
        "COPIES": f"{snapshots.MAX_COPIES_IN_PROGRESS}",
        "TASKS": f"{imports.MAX_ACTIVE_TASKS}",
        "IMPORT": f"{imports.BASE_SECONDS:g} + {imports.SECONDS_PER_GIB:g}",
        "COPY": f"{snapshots.COPY_SECONDS:g} + {snapshots.SECONDS_PER_STORED_GIB:g}",
        "LIMITED": f"{limits.COPY_SECONDS:g} + {limits.COPY_SECONDS_PER_GIB:g}",
        "COMPLETE": f"{ebs.COMPLETE_SECONDS:g} + {ebs.SECONDS_PER_WRITTEN_GIB:g}",
    }.items():
        head = re.sub(rf"\b{name}\b", lambda _, text=text: text, head)
    return head + "\n\n".join(_service_section(service_model(name)) for name in SERVICES) + "\n"


def _tool_rows() -> list[str]:
    """Return a row for each file of tests that run other people's tools, with its docstring's first line."""
    rows = []
    for path in [path for pattern in TOOL_TESTS for path in sorted(ROOT.glob(pattern))]:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = " ".join(text.partition("\n\n")[0].split())
        rows.append(f"| `{path.relative_to(ROOT)}` | {first} |")
    return rows


def _shorter_list_rows() -> list[str]:
    """Return a row for each operation that lists less than on AWS, with what it lists."""
    quotas = [f"`{code}` {quota[0]}" for (_, code), quota in DEFAULTS.items()]
    families = sorted({name.partition(".")[0] for name in instance_types()})
    rows = [
        (
            "ListServiceQuotas, ListAWSDefaultServiceQuotas",
            _folded([", ".join(quotas)], f"{len(quotas)} quotas"),
        ),
        (
            "DescribeInstanceTypes, DescribeInstanceTypeOfferings",
            _folded(families, f"{len(families)} families"),
        ),
        (
            "DescribeImages of `amazon`",
            _folded([image.name for image in PUBLIC_IMAGES], f"{len(PUBLIC_IMAGES)} AMIs"),
        ),
        ("GetParametersByPath", f"parameters of these AMIs below `{PARAMETER_PATH}`"),
        ("ListPolicies", _folded(sorted(MANAGED_POLICIES), f"{len(MANAGED_POLICIES)} policies of AWS")),
    ]
    return [f"| {name} | {text} |" for name, text in rows]


def _limit_rows() -> list[str]:
    """Return a row for each limit on requests."""
    rows = []
    for codes, where, reason in (
        (limits.PER_SNAPSHOT, "one snapshot", "RESOURCE_LEVEL_THROTTLE"),
        (limits.PER_ACCOUNT, "an account", "ACCOUNT_THROTTLED"),
    ):
        for operation, code in codes.items():
            rate = f"{DEFAULTS['ebs', code][1]:,.0f}"
            error = f"`RequestThrottledException`, `{reason}`"
            rows.append(f"| {operation}, {where} | {rate} | {rate} | {error} |")
    own: dict[limits.TokenBucket, list[str]] = {}
    for operation, bucket in limits.EC2_OPERATIONS.items():
        own.setdefault(bucket, []).append(operation)
    unfiltered = ", ".join(sorted(limits.UNFILTERED_OPERATIONS))
    texts = [
        ("EC2, other operations that read", limits.NON_MUTATING),
        (f"without filters and page size: {unfiltered}", limits.UNFILTERED),
        ("EC2, other operations that change", limits.MUTATING),
        *((", ".join(operations), bucket) for bucket, operations in own.items()),
        *((f"{operation}, each instance", bucket) for operation, bucket in limits.INSTANCES.items()),
    ]
    return rows + [
        f"| {text} | {bucket.capacity:,} | {bucket.refill:g} | `RequestLimitExceeded` |"
        for text, bucket in texts
    ]


def _service_section(service: Service) -> str:
    names = sorted(service.model.operation_names)
    emulated = [name for name in names if (service.name, name) in OPERATIONS]
    others = [name for name in names if name not in emulated]
    shown = [name for name in others if service.name == "ec2" and IMAGE_OPERATION.search(name)]
    rest = [name for name in others if name not in shown]
    title = service.model.metadata["serviceId"]
    lines = [f"### {TITLES.get(title, title)}", ""]
    lines += [
        f"{len(emulated)} of {len(names)} operations.",
        "",
        "| operation | emulated | not emulated |",
        "|---|---|---|",
    ]
    for name in sorted(emulated + shown):
        if name in shown:
            lines.append(f"| {name} | no | |")
        else:
            refused = _refused(service, OPERATIONS[service.name, name])
            lines.append(f"| {name} | {'partial' if refused else 'yes'} | {refused} |")
    if service.name == "ec2":
        text = f"The other {len(rest)} operations are not emulated; none is about AMIs, snapshots or imports."
        lines += ["", text]
    elif rest:
        lines += ["", f"Not emulated: {_names(rest, 'operations')}"]
    return "\n".join(lines)


def _refused(service: Service, operation: Operation) -> str:
    """Return the parameters and values of an operation that are refused."""
    shape = service.operation(operation.name).input_shape
    members = set(shape.members) if shape is not None else set()
    handled = operation.parameters | ({"DryRun"} if service.name == "ec2" else set())
    found = [_names(sorted(members - handled), "parameters")] if members - handled else []
    for text in refused_values(operation):
        text = re.sub(rf",? of ({service.name}:)?({operation.name}|{service.name})$", "", text)
        text = re.sub(r"^the ((?:(?! of )[\w ])+) …(/…)?( …)?", r"some \1s", text)
        text = re.sub(r"^(?:…|some values of …)$", "some values", text.removeprefix("iam:… of "))
        text = text.replace("policys", "policies").removesuffix(" here")
        text = re.sub(r"^… (without \w+)$", r"requests \1", text)
        text = re.sub(r"^the (tags|quotas) of (the service|… in) …$", r"\1 of some services", text)
        text = re.sub(r"^the retrieval of a thumbprint of …$", "retrieving a thumbprint", text)
        if text not in found:
            found.append(text)
    return "; ".join(found)


def _names(names: Collection[str], kind: str) -> str:
    """Return names as code; a long list is folded."""
    if len(names) <= FOLDED:
        return ", ".join(f"`{name}`" for name in names)
    return _folded(names, f"{len(names)} {kind}")


def _folded(names: Collection[str], summary: str) -> str:
    return f"<details><summary>{summary}</summary>{', '.join(names)}</details>"


# What the code of an operation refuses: found in its source, so that no list has to be kept beside it.

Function = tuple[str, str]  # module and name
CHECKS = {("vmsnix_ops.sandbox.ec2.common", name) for name in ("attribute_name", "check_one_of")} | {
    ("vmsnix_ops.sandbox.ec2.filters", "describe")
}
"""General checks. What they refuse is in their arguments."""

FILTER_TABLES = {"absent": absent, "by_name": by_name}


def refused_values(operation: Operation) -> list[str]:
    """Return what the handler of an operation, and the functions that it uses, refuse as not emulated."""
    functions = _functions()
    texts: list[str] = []
    handler = inspect.unwrap(operation.handler)
    queue = [(handler.__module__, handler.__name__)]
    service = ".".join(queue[0][0].split(".")[:3])
    seen = set(CHECKS)
    while queue:
        name = queue.pop(0)
        if name not in seen and name in functions and name[0].startswith(service):
            seen.add(name)
            calls, used, local = functions[name]
            known = {**vars(sys.modules[name[0]]), **local}
            texts += [text for call in calls if (text := _refused_by(call, known, operation))]
            queue += used
    return list(dict.fromkeys(texts))


@cache
def _functions() -> dict[Function, tuple[list[ast.Call], list[Function], dict[str, ast.expr]]]:
    """Return the calls of each function and class of the sandbox, the functions it names, its variables."""
    found = {}
    for path in sorted(SANDBOX.rglob("*.py")):
        module = ".".join(("vmsnix_ops.sandbox", *path.relative_to(SANDBOX).with_suffix("").parts))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names = {node.name: (module, node.name) for node in known}
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module:
                names |= {one.name: (statement.module, one.name) for one in statement.names}
        for node in known:
            inner = list(ast.walk(node))
            calls = [one for one in inner if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)]
            used = [names[one.id] for one in inner if isinstance(one, ast.Name) and one.id in names]
            local = {
                one.targets[0].id: one.value
                for one in inner
                if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
            }
            found[module, node.name] = calls, used, local
    return found


def _refused_by(call: ast.Call, known: dict[str, Any], operation: Operation) -> str:
    """Return what a call refuses; empty for a call that refuses nothing."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    filters = next((one.value for one in call.keywords if one.arg == "filters"), None)
    if name == "describe" and filters is not None:
        others = documented_filters(operation.name) - set(_value(filters, known) or ())
        return f"filters: {_names(sorted(others), 'filters')}" if others else ""
    if name == "check_one_of":
        parameter, allowed = _value(call.args[0], known), _value(call.args[2], known)
        if not isinstance(parameter, str) or allowed is None:
            return "some values of members"
        missing = _listed_values(service_model("ec2").operation(operation.name).input_shape, parameter)
        missing -= set(allowed)
        return f"{_names(sorted(missing), 'values')} of `{parameter}`" if missing else ""
    if name == "attribute_name":
        allowed, shape = _value(call.args[1], known), _value(call.args[2], known)
        if allowed is None:
            return "some attributes"
        enumeration: Any = service_model("ec2").model.shape_for(shape)
        listed = set(enumeration.enum)
        return _names(sorted(listed - set(allowed)), "attributes")
    return _text(call.args[0]) if name == "not_emulated" else ""


def _listed_values(shape: Any, parameter: str) -> set[str]:
    """Return the values that botocore's model lists for a parameter, or a member of one, of this name."""
    found: set[str] = set()
    for name, member in getattr(shape, "members", {}).items():
        inner = getattr(member, "member", member)
        if name.lower() == parameter.lower():
            found.update(getattr(inner, "enum", ()))
        found |= _listed_values(inner, parameter)
    return found


def _value(node: Any, known: dict[str, Any]) -> Any:
    """Return a constant, the keys of a dictionary, or a known value; None for anything else."""
    if isinstance(node, ast.Name):
        return _value(known.get(node.id), known)
    if isinstance(node, ast.BinOp):
        return [*_value(node.left, known), *_value(node.right, known)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FILTER_TABLES:
        return FILTER_TABLES[node.func.id](ast.literal_eval(node.args[0]))
    if isinstance(node, ast.Dict):
        return [_value(key, known) for key in node.keys if key is not None]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        whole, last = _value(node.value, known), node.slice.upper
        return whole[: _value(last, known)] if whole is not None and node.slice.lower is None else None
    if not isinstance(node, ast.AST):
        return node
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _text(node: ast.expr) -> str:
    """Return a text, with … in the place of values."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values)
    return str(ast.literal_eval(node))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
