"""The errors of this package, one class for each kind.

::

    VmsnixError                    exit code 1
    ├── UsageError                 exit code 2: the call is wrong
    │   ├── SettingsError
    │   ├── ParameterError
    │   ├── UnknownRunbookError
    │   ├── UnknownRunError
    │   ├── ConfirmationError      a destructive action was not confirmed
    │   └── PlanError              a fleet's plan file is invalid
    ├── ImageError
    │   ├── ImageNotFoundError
    │   ├── ImageFormatError       has the offset and the field
    │   ├── ImageChangedError      has the offset; the file's bytes changed after they were identified
    │   └── BootFailedError        has the last lines of the console
    ├── ToolMissingError           nix, qemu-img, ... is not on this machine
    ├── NixError
    │   ├── UnknownImageError
    │   └── BuildFailedError
    ├── AwsError                   has AWS's code, operation and request ID
    │   ├── CredentialsError
    │   ├── AccessDeniedError
    │   ├── RegionError
    │   │   └── InvalidRegionError     exit code 2: no such region, or regions of several partitions
    │   ├── BucketError
    │   ├── RoleError
    │   ├── UploadError
    │   ├── ImportFailedError
    │   ├── SnapshotFailedError
    │   ├── RegistrationError
    │   │   └── NameTakenError
    │   ├── CopyFailedError
    │   ├── ChannelError
    │   │   └── OverwrittenValueError  a channel was changed between plan and write
    │   ├── SmokeTestError
    │   ├── QuotaError
    │   └── DeadlineError
    ├── RecordsError
    │   ├── SchemaError
    │   ├── UnsavedError           exit code 3: the work is done, but its record could not be saved
    │   └── CommitConflictError
    ├── RunError
    │   ├── RunFailedError
    │   ├── SideEffectsError       a runbook did more than it declares
    │   ├── ArchiveError
    │   └── FleetError             the scheduler or the workers of a fleet
    ├── AuditError                 an audit found something as severe as its limit
    ├── StalePlanError             AWS or the disk changed between plan and apply
    ├── DriftError                 AWS differs from the tables
    ├── InterruptedRunError        Ctrl-C or SIGTERM
    └── PartialError               exit code 3: some regions are done, some are not
        └── UnrecordedActError     an irreversible action could not be announced, so it was not done

The text of an error is what happened, why, and what to do, in this order.
"""

from __future__ import annotations

import difflib
import shutil
from typing import TYPE_CHECKING, TypeVar

from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

E = TypeVar("E", bound="AwsError")


class VmsnixError(Exception):
    """The base of all errors of this package.

    Parameters
    ----------
    what
        What happened, in one sentence.
    why
        The cause, if known.
    fix
        What to do, as a command where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(" ".join(part for part in (what, why, fix) if part))


class UsageError(VmsnixError):
    """The call is wrong: a name, a value or a combination is invalid."""

    exit_code = 2


class SettingsError(UsageError):
    """``vmsnix.toml`` or a ``VMSNIX_*`` variable has an invalid name or value."""


class ParameterError(UsageError):
    """A runbook parameter is unknown, or its value does not fit its declared type."""


class UnknownRunbookError(UsageError):
    """There is no runbook of that name."""


class UnknownRunError(UsageError):
    """The archive has no run with this ID, or several whose IDs begin with it."""


class ConfirmationError(UsageError):
    """A destructive action was not confirmed."""


class PlanError(UsageError):
    """The plan file of a fleet is invalid; the error lists all problems."""


class ImageError(VmsnixError):
    """The disk image cannot be used."""


class ImageNotFoundError(ImageError):
    """There is no image at this path."""


class ImageFormatError(ImageError):
    """The image does not follow the specification of its format.

    Parameters
    ----------
    offset
        Byte offset of the wrong field in the file, if there is one.
    field
        Name of the field in the format's specification.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", offset: int | None = None, field: str = ""
    ) -> None:
        self.offset, self.field = offset, field
        super().__init__(what, why=why, fix=fix)


class ImageChangedError(ImageError):
    """The bytes of the image file changed after they were identified.

    Parameters
    ----------
    offset
        Byte offset of the first range that differs, in the file or (with EBS direct) on the disk, if known.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", offset: int | None = None) -> None:
        self.offset = offset
        super().__init__(what, why=why, fix=fix)


class BootFailedError(ImageError):
    """The image did not boot in QEMU.

    Parameters
    ----------
    console
        The last lines of the serial console; the error's text ends with them.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", console: Sequence[str] = ()) -> None:
        self.console = tuple(console)
        super().__init__(what, why=why, fix=fix)

    def __str__(self) -> str:
        if not self.console:
            return super().__str__()
        head = f"{super().__str__()}\nThe last lines of its console:"
        return "\n  ".join([head, *map(line, self.console)])


class ToolMissingError(VmsnixError):
    """A program that this job needs is not installed."""


class NixError(VmsnixError):
    """Nix failed."""


class UnknownImageError(NixError):
    """The flake has no image of that name."""

    exit_code = 2


class BuildFailedError(NixError):
    """``nix build`` failed.

    Parameters
    ----------
    derivation
        Store path of the failed derivation, if Nix reported one.
    log
        The last lines of its build log.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", derivation: str = "", log: Iterable[str] = ()
    ) -> None:
        self.derivation, self.log = derivation, tuple(log)
        super().__init__(what, why=why, fix=fix)


class AwsError(VmsnixError):
    """AWS refused a call, or an asynchronous operation failed.

    Parameters
    ----------
    code
        AWS's error code, such as ``InvalidAMIName.Duplicate``.
    operation
        The API operation, such as ``RegisterImage``.
    request_id
        Request ID, for AWS Support.
    status_message
        The ``StatusMessage`` or ``StateMessage`` of an asynchronous failure.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        code: str = "",
        operation: str = "",
        request_id: str = "",
        status_message: str = "",
    ) -> None:
        self.code, self.operation = code, operation
        self.request_id, self.status_message = request_id, status_message
        super().__init__(what, why=why, fix=fix)

    def with_fix(self, fix: str, kind: type[AwsError] | None = None) -> AwsError:
        """Return the same error with another fix, and as another class if one is given."""
        return self.restated(kind or type(self), self.what, why=self.why, fix=fix)

    def restated(self, kind: type[E], what: str, *, why: str = "", fix: str = "") -> E:
        """Return an error with another class and text, and with the same facts from AWS."""
        return kind(
            what,
            why=why,
            fix=fix,
            code=self.code,
            operation=self.operation,
            request_id=self.request_id,
            status_message=self.status_message,
        )


class CredentialsError(AwsError):
    """No credentials, or expired or unknown ones."""


class AccessDeniedError(AwsError):
    """The caller lacks a permission; the error names the action."""


class RegionError(AwsError):
    """The region is not enabled for this account, or none is given."""


class InvalidRegionError(RegionError):
    """The region does not exist, or the regions are not of one partition."""

    exit_code = 2


class BucketError(AwsError):
    """The bucket is missing, in another region, or belongs to another account."""


class RoleError(AwsError):
    """The service role of VM Import is missing or lacks permissions."""


class UploadError(AwsError):
    """An upload failed, or its bytes did not arrive unchanged."""


class ImportFailedError(AwsError):
    """The snapshot import did not complete."""


class SnapshotFailedError(AwsError):
    """A snapshot ended in the state ``error``."""


class RegistrationError(AwsError):
    """The AMI could not be registered or used."""


class NameTakenError(RegistrationError):
    """Another AMI with other bytes already has this name."""


class CopyFailedError(AwsError):
    """The copy of an AMI to another region failed; has the snapshot's StateMessage."""


class ChannelError(AwsError):
    """A channel could not be set to an AMI, or must not contain it."""


class OverwrittenValueError(ChannelError):
    """Setting a channel replaced a value that the plan had not read.

    The run ends as partial and changes nothing more: a person has to decide which value is right.

    Parameters
    ----------
    overwritten
        The replaced value as data: ``name``, ``region``, ``version``, ``value``, ``writer``, ``written`` (the
        version that replaced it) and the ``command`` that restores it.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", overwritten: Mapping[str, str | int] | None = None
    ) -> None:
        self.overwritten = dict(overwritten or {})
        super().__init__(what, why=why, fix=fix)


class SmokeTestError(AwsError):
    """An instance of the AMI did not start, failed its checks, or did not print the expected text."""


class QuotaError(AwsError):
    """A service quota is too low."""


class DeadlineError(AwsError):
    """AWS did not finish within the time limit."""


class RecordsError(VmsnixError):
    """The tables could not be read or written."""


class SchemaError(RecordsError):
    """A frame does not have the documented columns."""


class UnsavedError(RecordsError):
    """The work is done, but its record could not be saved."""

    exit_code = 3


class CommitConflictError(RecordsError):
    """Other writers committed to a table each time before this one."""


class RunError(VmsnixError):
    """A runbook could not be run."""


class RunFailedError(RunError):
    """A cell of the runbook failed; the executed notebook shows it."""


class SideEffectsError(RunError):
    """A runbook made an AWS call that its declared side effects do not allow."""


class ArchiveError(RunError):
    """The archive of executed runs cannot be written or read."""


class FleetError(RunError):
    """The runs of a fleet cannot start: Dask, the scheduler or a suitable worker is missing."""


class AuditError(VmsnixError):
    """An audit found something at least as severe as its limit."""


class StalePlanError(VmsnixError):
    """The facts of a plan have changed since it was made; nothing was done."""


class DriftError(VmsnixError):
    """A published AMI differs from its record."""


class InterruptedRunError(VmsnixError):
    """The run was interrupted by Ctrl-C or a signal."""


class PartialError(VmsnixError):
    """Some targets are done and some are not."""

    exit_code = 3


class UnrecordedActError(PartialError):
    """An irreversible action was not done, because its announcement could not be written to the disk.

    Parameters
    ----------
    announced
        The earlier announced actions on this resource, which were done.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", announced: Iterable[str] = ()) -> None:
        super().__init__(what, why=why, fix=fix)
        self.announced = tuple(announced)


def find_program(program: str, what: str = "", *, why: str, fix: str) -> str:
    """Return the path of a program on ``PATH``; a ToolMissingError with these sentences if it is missing."""
    path = shutil.which(program)
    if path is None:
        raise ToolMissingError(what or f"{program} is not installed on this machine.", why=why, fix=fix)
    return path


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` with the most similar known name; an empty string without one.

    >>> nearest("regoin", ["region", "bucket"])
    "Did you mean 'region'?"
    >>> nearest("us-esat-1", ["us-west-1", "us-east-1"])  # two letters are swapped
    "Did you mean 'us-east-1'?"
    >>> nearest("zzz", ["region", "bucket"])
    ''
    """
    choices = list(known)
    swapped = [choice for choice in choices if sorted(choice) == sorted(word)]
    match = swapped[:1] or difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    match = match or difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else ""


__all__ = sorted(
    name for name, one in globals().items() if isinstance(one, type) and issubclass(one, VmsnixError)
)


def __dir__() -> list[str]:
    return __all__
