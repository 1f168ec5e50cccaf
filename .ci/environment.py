"""Write environment.yml from pyproject.toml (which packages) and requirements-test.txt (which versions).

Usage: python .ci/environment.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_ON_CONDA_FORGE = {  # absent, or of another name there, so pip installs them
    "playwright",
    "rust-just",
    "types-boto3-lite",
}

HEAD = """\
# Made by `just lock` from pyproject.toml and requirements-test.txt: change those.
name: vmsnix-ops
channels:
  - conda-forge
dependencies:
  - python >=3.11,<3.14
  - pip
"""


def canonical(name: str) -> str:
    """Return a name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {
        "to run": project["project"]["dependencies"],
        **{f"extra: {name}": wanted for name, wanted in project["project"]["optional-dependencies"].items()},
        "to install": project["dependency-groups"]["build"],
    }
    lock = (ROOT / "requirements-test.txt").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    lines, by_pip = [HEAD], []
    for title, requirements in groups.items():
        lines.append(f"  # {title}\n")
        for requirement in requirements:
            name = canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
            if name in NOT_ON_CONDA_FORGE:
                extras = "".join(re.findall(r"\[.*\]", requirement))
                by_pip.append(f"      - {name}{extras}=={versions[name]}\n")
            else:
                lines.append(f"  - {name}={versions[name]}\n")
    (ROOT / "environment.yml").write_text("".join([*lines, "  - pip:\n", *by_pip]), encoding="utf-8")


if __name__ == "__main__":
    main()
