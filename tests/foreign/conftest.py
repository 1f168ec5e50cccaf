"""Other people's programs, each in an environment of its own, against a sandbox."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import unavailable
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = Path(__file__).parents[2] / ".cache" / "foreign"
"""``.ci/foreign`` installs each tool here, in an environment that has its name."""

BUCKET, REGION, WEST = "acme-images", "us-east-1", "us-west-2"
MINUTES = 60.0


@dataclass(frozen=True)
class Program:
    """A program of another project, and the environment variables that point it to a sandbox."""

    path: Path
    environment: dict[str, str]
    folder: Path

    def run(self, *arguments: str, minutes: float = 4, **more: str) -> str:
        """Run the program; return its standard output, or fail the test with all that it wrote."""
        done = self._run(arguments, minutes, more)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def fail(self, *arguments: str, minutes: float = 4, **more: str) -> str:
        """Run the program, which must fail; return all that it wrote."""
        done = self._run(arguments, minutes, more)
        assert done.returncode != 0, f"{done.stdout}\n{done.stderr}"
        return f"{done.stdout}\n{done.stderr}"

    def _run(
        self, arguments: tuple[str, ...], minutes: float, more: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.path), *arguments],
            cwd=self.folder,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=minutes * MINUTES,
            check=False,
        )


@pytest.fixture
def speed() -> float:
    """Sandbox seconds in one real second."""
    return 1000.0


@pytest.fixture
def aws(speed: float, tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox with bucket and service role."""
    with sandbox(speed=speed) as aws:
        aws.prepare(bucket=BUCKET, region=REGION, key_prefix="")
        yield aws


def program(tool: str, name: str, aws: Sandbox, folder: Path) -> Program:
    """Return a tool's program, or skip the test (fail it where ``VMSNIX_REQUIRE`` names the tool)."""
    path = TOOLS / tool / "bin" / name
    if not path.exists():
        unavailable(tool, f"{tool} is not installed: run .ci/foreign {tool}")
    return Program(path, environment(aws, folder), folder)


def environment(aws: Sandbox, folder: Path) -> dict[str, str]:
    """Return this process's environment with the sandbox's keys, and without the user's AWS settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "VMSNIX_"))}
    nothing = {"AWS_CONFIG_FILE": str(folder / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none")}
    return {**kept, **nothing, **aws.environment, "AWS_DEFAULT_REGION": REGION, "AWS_PAGER": ""}
