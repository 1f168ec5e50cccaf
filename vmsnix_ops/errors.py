"""Everything that can go wrong, one class each.

::

    VmsnixError                    exit code 1
    ├── UsageError                 exit code 2: the call itself is wrong
    │   ├── SettingsError
    │   ├── ParameterError
    │   ├── UnknownRunbookError
    │   ├── UnknownRunError
    │   ├── ConfirmationError      what destroys wants to be told twice
    │   └── PlanError             a fleet's plan file; says all that is wrong with it
    ├── ImageError
    │   ├── ImageNotFoundError
    │   ├── ImageFormatError       carries the offset and the field
    │   ├── ImageChangedError      carries the offset; the file holds other bytes than were identified
    │   └── BootFailedError        carries the console's last lines
    ├── ToolMissingError           nix, qemu-img, ... is not on this machine
    ├── NixError
    │   ├── UnknownImageError
    │   └── BuildFailedError
    ├── AwsError                   carries AWS's code, message, operation and request id
    │   ├── CredentialsError
    │   ├── AccessDeniedError
    │   ├── RegionError
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
    │   ├── UnsavedError           exit code 3: the work is done, its record could not be saved
    │   └── CommitConflictError
    ├── RunError
    │   ├── RunFailedError
    │   ├── SideEffectsError       a runbook did more than it declares
    │   ├── ArchiveError
    │   └── FleetError             the scheduler or the workers of a fleet
    ├── AuditError                 what an audit found is worse than it may be
    ├── StalePlanError             the world changed between plan and apply
    ├── DriftError                 AWS is not as the tables say
    ├── InterruptedRunError        Ctrl-C or SIGTERM; says how to go on
    └── PartialError            exit code 3: some regions done, some not
        └── UnrecordedActError     an irreversible act was not announced, so it was not done

Every error says what happened, why, and what to do; ``str(error)`` is those sentences in that order.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from vmsnix_ops.text import line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self

__all__ = [
    "AccessDeniedError",
    "ArchiveError",
    "AuditError",
    "AwsError",
    "BootFailedError",
    "BucketError",
    "BuildFailedError",
    "ChannelError",
    "CommitConflictError",
    "ConfirmationError",
    "CopyFailedError",
    "CredentialsError",
    "DeadlineError",
    "DriftError",
    "FleetError",
    "ImageChangedError",
    "ImageError",
    "ImageFormatError",
    "ImageNotFoundError",
    "ImportFailedError",
    "InterruptedRunError",
    "NameTakenError",
    "NixError",
    "OverwrittenValueError",
    "ParameterError",
    "PartialError",
    "PlanError",
    "QuotaError",
    "RecordsError",
    "RegionError",
    "RegistrationError",
    "RoleError",
    "RunError",
    "RunFailedError",
    "SchemaError",
    "SettingsError",
    "SideEffectsError",
    "SmokeTestError",
    "SnapshotFailedError",
    "StalePlanError",
    "ToolMissingError",
    "UnknownImageError",
    "UnknownRunError",
    "UnknownRunbookError",
    "UnrecordedActError",
    "UnsavedError",
    "UploadError",
    "UsageError",
    "VmsnixError",
]


def __dir__() -> list[str]:
    return __all__


class VmsnixError(Exception):
    """Base of every error that this package raises on purpose.

    Parameters
    ----------
    what
        One sentence: what happened.
    why
        One sentence: why, as far as it is known.
    fix
        One sentence: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(" ".join(part for part in (what, why, fix) if part))


class UsageError(VmsnixError):
    """The call itself is wrong: a name, a value or a combination that cannot work."""

    exit_code = 2


class SettingsError(UsageError):
    """``vmsnix.toml`` or a ``VMSNIX_*`` variable holds something that cannot be used."""


class ParameterError(UsageError):
    """A runbook parameter is unknown, or its value does not fit its declared type."""


class UnknownRunbookError(UsageError):
    """There is no runbook of that name."""


class UnknownRunError(UsageError):
    """The archive has no run of that id, or several that begin so."""


class ConfirmationError(UsageError):
    """Something would be destroyed, and nobody has confirmed it."""


class PlanError(UsageError):
    """The plan file of a fleet cannot be carried out; the error says everything that is wrong with it."""


class ImageError(VmsnixError):
    """The disk image cannot be used."""


class ImageNotFoundError(ImageError):
    """There is no image at that place."""


class ImageFormatError(ImageError):
    """The bytes of the image are not what its format demands.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    offset
        Byte offset in the file at which the wrong field stands, where one is to blame.
    field
        Name of that field in the format's specification.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", offset: int | None = None, field: str = ""
    ) -> None:
        self.offset, self.field = offset, field
        super().__init__(what, why=why, fix=fix)


class ImageChangedError(ImageError):
    """The image file holds other bytes than those that were identified.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    offset
        Byte offset of the first range that differs, in the file or (with EBS direct) on the disk, where it is
        known.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", offset: int | None = None) -> None:
        self.offset = offset
        super().__init__(what, why=why, fix=fix)


class BootFailedError(ImageError):
    """The image was booted in QEMU, and did not come up.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    console
        The last lines of its serial console; ``str(error)`` ends with them.
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
    """Nix answered with an error."""


class UnknownImageError(NixError):
    """The flake has no image of that name."""

    exit_code = 2


class BuildFailedError(NixError):
    """``nix build`` failed.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    derivation
        Store path of the failing derivation, where Nix named one.
    log
        The last lines of its build log.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", derivation: str = "", log: Iterable[str] = ()
    ) -> None:
        self.derivation, self.log = derivation, tuple(log)
        super().__init__(what, why=why, fix=fix)


class AwsError(VmsnixError):
    """AWS refused a call, or something that it was doing failed.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    code
        AWS's error code, such as ``InvalidAMIName.Duplicate``.
    operation
        The API operation, such as ``RegisterImage``.
    request_id
        AWS's request id, which its support asks for.
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

    def with_fix(self, fix: str) -> Self:
        """Return the same error with the fix of a caller who knows what was being done."""
        return type(self)(
            self.what,
            why=self.why,
            fix=fix,
            code=self.code,
            operation=self.operation,
            request_id=self.request_id,
            status_message=self.status_message,
        )


class CredentialsError(AwsError):
    """No credentials, or expired or unknown ones."""


class AccessDeniedError(AwsError):
    """The caller may not do this; the error names the missing action."""


class RegionError(AwsError):
    """The region does not exist, or is not enabled for this account."""


class BucketError(AwsError):
    """The bucket is missing, in another region, or not ours to use."""


class RoleError(AwsError):
    """The service role of VM Import is missing or lacks rights."""


class UploadError(AwsError):
    """The bytes did not arrive as they were sent."""


class ImportFailedError(AwsError):
    """The snapshot import ended in a state other than completed."""


class SnapshotFailedError(AwsError):
    """A snapshot ended in the state ``error``."""


class RegistrationError(AwsError):
    """The AMI could not be registered, or turned ``failed``."""


class NameTakenError(RegistrationError):
    """Another AMI, with other bytes, already has this name."""


class CopyFailedError(AwsError):
    """The copy of an AMI to another region turned ``failed``; carries its snapshot's StateMessage."""


class ChannelError(AwsError):
    """A channel could not be set to an AMI, or must not contain it."""


class OverwrittenValueError(ChannelError):
    """A channel was set, and the write replaced a value that the plan did not know.

    The run ends as partial and changes nothing more: which value is right, a person decides.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    overwritten
        The same as data: ``name``, ``region``, ``version``, ``value`` and ``writer`` of what was replaced,
        ``written`` (the version that replaced it) and the ``command`` that returns to it.
    """

    def __init__(
        self, what: str, *, why: str = "", fix: str = "", overwritten: Mapping[str, str | int] | None = None
    ) -> None:
        self.overwritten = dict(overwritten or {})
        super().__init__(what, why=why, fix=fix)


class SmokeTestError(AwsError):
    """An instance of the AMI did not start, did not pass its checks, or did not say what it should."""


class QuotaError(AwsError):
    """A service quota stands in the way."""


class DeadlineError(AwsError):
    """Something took longer than it was given."""


class RecordsError(VmsnixError):
    """The tables could not be read or written."""


class SchemaError(RecordsError):
    """A frame does not have the documented columns."""


class UnsavedError(RecordsError):
    """The work is done, and its record could not be saved."""

    exit_code = 3


class CommitConflictError(RecordsError):
    """Other writers kept winning the commit to a table."""


class RunError(VmsnixError):
    """A runbook could not be run."""


class RunFailedError(RunError):
    """A cell of the runbook failed; the executed notebook holds the evidence."""


class SideEffectsError(RunError):
    """A runbook called AWS in a way that its declared side effects do not allow."""


class ArchiveError(RunError):
    """The archive of executed runs cannot be written or read."""


class FleetError(RunError):
    """The runs of a fleet cannot be handed out: no Dask, no scheduler, no worker that has what they need."""


class AuditError(VmsnixError):
    """An audit found something as bad as what it was told to fail for."""


class StalePlanError(VmsnixError):
    """What a plan was made from has changed since; nothing was done."""


class DriftError(VmsnixError):
    """A published AMI is not as it was recorded any more."""


class InterruptedRunError(VmsnixError):
    """The operator, or the machine, asked the run to stop."""


class PartialError(VmsnixError):
    """Some targets are done and some are not."""

    exit_code = 3


class UnrecordedActError(PartialError):
    """An irreversible act was not done, because the line that announces it could not be written.

    Parameters
    ----------
    what, why, fix
        As for `VmsnixError`.
    announced
        What was announced before it, and done, since the job began with this resource.
    """

    def __init__(self, what: str, *, why: str = "", fix: str = "", announced: Iterable[str] = ()) -> None:
        super().__init__(what, why=why, fix=fix)
        self.announced = tuple(announced)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'?"`` for the known name nearest to a mistyped one, else an empty string.

    Examples
    --------
    >>> nearest("regoin", ["region", "bucket"])
    "Did you mean 'region'?"
    >>> nearest("zzz", ["region", "bucket"])
    ''
    """
    choices = list(known)
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    match = match or difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else ""
