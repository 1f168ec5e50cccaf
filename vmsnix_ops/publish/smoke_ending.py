"""How a smoke test ends: its instance goes before anything is written down, and one that runs on is told.

Between a failure and the call that terminates the instance stands only one look at its console. A journal, a
table or a face of the progress may hang or fail (a full disk, an unreachable bucket): they come after.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops import errors
from vmsnix_ops.aws import instances
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from vmsnix_ops.aws.session import Client


@dataclass
class Seen:
    """What a test saw so far; kept also when it fails.

    Attributes
    ----------
    asked
        Whether AWS was asked for an instance: from then on there may be one whose id is not known.
    instance_id
        The instance; empty before AWS told it.
    console
        What it said, without secrets.
    passed
        Whether all that was tested was as it should be.
    ended
        Whether AWS was asked to terminate what there is.
    others
        Instances of this AMI's tests that were terminated because the id of ours was not known.
    refused
        By id, or an empty one for the look for it: why an instance may run on.
    gone
        Whether nothing is known to run.
    """

    asked: bool = False
    instance_id: str = ""
    console: str = ""
    passed: bool = False
    ended: bool = False
    others: list[str] = field(default_factory=list)
    refused: dict[str, errors.AwsError] = field(default_factory=dict)
    gone: bool = False

    def read(self, ec2: Client) -> None:
        """Read the console once more, if there is an instance; what it said before is kept."""
        if self.instance_id:
            text = instances.console(ec2, self.instance_id).replace("\r\n", "\n")
            self.console = Redactor(secret_values()).text(text) or self.console


def end(ec2: Client, ami_id: str, seen: Seen) -> None:
    """Ask AWS to terminate the instance of a test, once; what AWS refuses is kept in `Seen.refused`.

    Where AWS was asked for an instance and its answer was lost, every instance of the AMI's tests goes.

    Raises
    ------
    KeyboardInterrupt
        It came meanwhile; AWS was asked nevertheless.
    """
    if seen.ended:
        return
    try:
        if not seen.passed:
            with suppress(errors.AwsError):
                seen.read(ec2)  # what it said tells most about why
    finally:
        try:
            _terminate(ec2, ami_id, seen)
        except KeyboardInterrupt:  # maybe before AWS was asked; one more ends the process, see `stopping`
            _terminate(ec2, ami_id, seen)
            raise
        finally:
            seen.ended = True


def _terminate(ec2: Client, ami_id: str, seen: Seen) -> None:
    seen.refused.clear()
    ids = [seen.instance_id] if seen.instance_id else []
    if seen.asked and not ids:
        try:
            seen.others = ids = [one.instance_id for one in instances.left_behind(ec2, ami_id)]
        except errors.AwsError as error:
            seen.refused[""] = error
    for instance_id in ids:
        try:
            instances.terminate(ec2, [instance_id])
        except errors.AwsError as error:
            seen.refused[instance_id] = error


def outcome(caught: BaseException | None, seen: Seen, *, region: str) -> BaseException | None:
    """Return what a test that ended so is told as; ``None`` when it passed.

    Parameters
    ----------
    caught
        What ended it; ``None`` when nothing did.
    seen
        What it saw: an instance that may run on is told whatever else failed, with the command that ends it.
    region
        Where.
    """
    told, runs_on = caught, _runs_on(seen, region)
    if isinstance(caught, KeyboardInterrupt):
        told = errors.InterruptedRunError(
            "The smoke test was interrupted.", why=_fate(seen), cure="Run the same command again."
        )
    elif isinstance(caught, OSError):
        told = errors.RecordsError(
            "The smoke test could not be written down.",
            why=f"{caught}. {_fate(seen)}".strip(),
            cure="Make room where vmsnix keeps its state, and run the same command again.",
        )
    if runs_on is not None:
        if told is None or told in seen.refused.values():
            told = runs_on
        elif isinstance(told, errors.VmsnixError):
            told = _both(told, runs_on)
        else:  # a mistake of ours, which is shown with its traceback
            told.add_note(str(runs_on))
    if told is not None and told is not caught:
        told.__cause__ = caught
    return told


def _runs_on(seen: Seen, region: str) -> errors.SmokeTestError | None:
    """Return which instance AWS refused to terminate, why, and the command that does it."""
    if not seen.refused:
        return None
    ids = [name for name in seen.refused if name]
    what, cure = (
        f"An instance of the test may run on in {region}.",
        f"See whether there is one: aws ec2 describe-instances --region {region} "
        f"--filters Name=tag-key,Values={tagging.SMOKE}.",
    )
    if ids:
        what = f"{', '.join(ids)} runs on in {region}."
        cure = f"Terminate it: aws ec2 terminate-instances --region {region} --instance-ids {' '.join(ids)}."
    refused = list(seen.refused.values())
    why = " ".join(f"{error.what} {error.why}".strip() for error in refused)
    first = refused[0]
    return errors.SmokeTestError(
        what, why=why, cure=cure, code=first.code, operation=first.operation, request_id=first.request_id
    )


def _both(told: errors.VmsnixError, runs_on: errors.SmokeTestError) -> errors.VmsnixError:
    """Return one error that says both; an interrupt stays one."""
    kind = type(told) if isinstance(told, errors.InterruptedRunError) else errors.SmokeTestError
    what = " ".join(part for part in (told.what, told.why, runs_on.what) if part)
    return kind(what, why=runs_on.why, cure=f"{runs_on.cure} {told.cure}".strip())


def _fate(seen: Seen) -> str:
    """Return what became of the instance; one that AWS refused to terminate is told by `_runs_on`."""
    if seen.refused:
        return ""
    names = [seen.instance_id] if seen.instance_id else seen.others
    if not names:
        return "No instance runs."
    return f"{', '.join(names)} {'was terminated' if seen.gone else 'is being terminated'}."
