"""A stage for rehearsals: a sandbox, and an environment from which nothing can reach the real AWS.

History and archive of rehearsals live apart from those of production.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmsnix_ops.errors import RunError
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "vmsnix-images"
SPEED = 60.0  # sandbox seconds in one real second: an import of minutes takes seconds


@dataclass(frozen=True, slots=True)
class Stage:
    """A sandbox that serves, and how to play on it.

    Attributes
    ----------
    url
        Where it serves.
    environment
        Variables on top of this process's, which has no ``AWS_*`` ones of its own in the meantime.
    state
        Folder of this rehearsal's history and archive.
    """

    url: str
    environment: dict[str, str]
    state: Path


def places(folder: Path) -> dict[str, str]:
    """Return the variables that keep a rehearsal's records below one folder."""
    return {
        "VMSNIX_STATE": str(folder),
        "VMSNIX_HISTORY": str(folder / "history"),
        "VMSNIX_ARCHIVE": str(folder / "archive"),
    }


@contextmanager
def _no_aws_variables() -> Iterator[None]:
    """Take the caller's AWS variables away: a profile or an endpoint among them would lead elsewhere."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def rehearsal(
    *, name: str = "sandbox", speed: float = SPEED, keep: bool = True, port: int = 0
) -> Iterator[Stage]:
    """Serve a sandbox in this process for the length of the block.

    Parameters
    ----------
    name
        Of the folder below the setting ``state``.
    speed
        Sandbox seconds in one real second.
    keep
        Whether what is created stays for the next rehearsal.
    port
        0 takes a free one.

    Raises
    ------
    RunError
        When the port is taken or the folder is in use.
    """
    from vmsnix_ops.sandbox import sandbox

    settings = load()
    folder = settings.state / name
    region = settings.region or "us-east-1"
    try:
        served = sandbox(speed=speed, port=port, state=folder / "aws" if keep else None)
    except OSError as error:
        raise RunError("The sandbox cannot start.", why=f"{error}") from error
    if not keep:
        # Tables that outlive their sandbox would show AMIs that are nowhere any more.
        shutil.rmtree(folder / "history", ignore_errors=True)
    with _no_aws_variables(), served as aws:
        aws.prepare(bucket=BUCKET, region=region, role=settings.role_name)
        yield Stage(
            url=aws.url,
            environment=aws.environment
            | places(folder)
            | {
                "AWS_REGION": region,
                "AWS_DEFAULT_REGION": region,
                "VMSNIX_SANDBOX": aws.url,
                "VMSNIX_BUCKET": BUCKET,
                "VMSNIX_REGION": region,
                "VMSNIX_ALLOWED_ACCOUNTS": aws.account,
            },
            state=folder,
        )
