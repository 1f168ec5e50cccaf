"""Every command of every page runs: page by page from top to bottom, as a reader types them.

Each page has a sandbox, a home folder and a folder of its own. `READERS` has what a reader has before the
first command of a page, and the values that replace those of the page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pandas as pd
import pytest
import yaml
from jsonschema import Draft202012Validator

from docs.schemas import plan_schema, settings_schema
from tests.aws.account import make_ami
from tests.boot.attested_image import make_disk, write_output
from tests.boot.small_linux import UP, make_small_linux
from tests.docs.page import FENCE, NAMES, ROOT, Block, Command, blocks, missing_lines, text_of
from tests.docs.shell import SPEED, Shell
from tests.forks import FIXED
from tests.nix.conftest import SETTINGS
from tests.sandbox.clients import allow_public_images
from tests.support import DEADLINE, killed_after, read_line, require, unavailable
from tests.test_docs import in_sentences
from tests.workflows.job import Job
from vmsnix_ops.cli.sandbox import write_records
from vmsnix_ops.runbooks import copies
from vmsnix_ops.sandbox import Sandbox, make_sample_image, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

PROGRAMS = ("nix", "aws", "just", "git", "papermill")
INDEX = "downloads packages; CI runs the install commands of README.md"
ADDED = "changes the package; tests/test_contributing.py runs it in a copy"
STARTS = "starts a server: test_a_server_starts"
LAB = "starts JupyterLab, as tests/browser does"
UNITS = "needs a machine with systemd as PID 1; test_schedule.py checks the units and runs their command"
NOT_RUN = {
    ("README.md", "python3 -m venv"): INDEX,
    ("README.md", ".venv/bin/pip install"): INDEX,
    ("README.md", ".venv/bin/pytest"): "runs these tests",
    ("CONTRIBUTING.md", "python3 -m venv"): INDEX,
    ("CONTRIBUTING.md", ".venv/bin/pip install"): INDEX,
    ("CONTRIBUTING.md", ". .venv/bin/activate"): INDEX,
    ("CONTRIBUTING.md", "cp notebooks"): ADDED,
    ("CONTRIBUTING.md", "python -m docs.manifest"): ADDED,
    ("CONTRIBUTING.md", "vmsnix count-amis"): ADDED,
    ("docs/quickstart.md", "python3 -m venv"): INDEX,
    ("docs/quickstart.md", ".venv/bin/pip install"): INDEX,
    ("docs/quickstart.md", "vmsnix console"): LAB,
    ("docs/quickstart.md", "vmsnix lab"): LAB,
    ("docs/weekly-report.md", "vmsnix sandbox"): STARTS,
    ("docs/how-to/console.md", "vmsnix console"): LAB,
    ("docs/how-to/jupyterlab.md", "vmsnix lab"): LAB,
    ("docs/how-to/schedule.md", "sudo systemctl"): UNITS,
    ("docs/how-to/schedule.md", "journalctl"): UNITS,
    ("docs/how-to/fleet.md", "dask"): "needs other machines; tests/runbooks/fleet uses a cluster with TLS",
    ("docs/how-to/first-publish.md", "aws cloudformation"): "the sandbox has no CloudFormation; "
    "tests/publish checks the template",
    ("nix/README.md", "nix"): "downloads nixpkgs; tests/nix evaluates the flake",
    ("nix/README.md", "cachix"): "needs an account at Cachix",
    ("nix/README.md", "NIXPKGS_TREE"): "downloads nixpkgs; tests/nix evaluates the flake",
    ("docs/how-to/outside-altf4.md", "#!/bin/sh"): "runs on a machine made from an image",
    ("docs/how-to/outside-altf4.md", "nix flake check"): "downloads nixpkgs; tests/nix evaluates the flake",
}
"""Commands that no test can run, by page and first words, and why."""
SHORT = ("channels", "findings", "history", "iam-policy", "list", "runs")
"""Commands that `test_short_commands_in_sentences_run` runs."""
RUN_ELSEWHERE = {
    "--help": "tests/cli/test_commands.py",
    "attestation-policy --last N": "tests/channels/test_attestation.py",
    "audit --sandbox": "tests/cli/test_shared_sandbox.py",
    "bootstrap --no-dry-run": "tests/notebooks/test_run.py",
    "console --sandbox": "tests/browser/test_console.py",
    "demo --fresh": "tests/cli/test_shared_sandbox.py",
    "demo --json": "tests/cli/test_shared_sandbox.py",
    "lab --edit": "tests/browser/test_lab.py",
    "lab --sandbox": "tests/browser/test_lab.py",
    "preflight --public": "tests/publish/test_preflight.py",
    "promote --channel": "the page's blocks",
    "publish --boot-test": "tests/publish/test_boot_test.py",
    "publish --image ./nix#ecs-node": "the page's blocks",
    "sandbox --limits aws": "test_a_server_starts",
    "sandbox --reset": "tests/cli/test_shared_sandbox.py",
    "timings --sandbox": "the page's blocks",
    "weekly-report --weeks 8": "the build of the documentation, with papermill",
}
"""Commands with arguments in sentences, and what runs them."""


@dataclass
class Desk:
    """What the reader of a page works with."""

    aws: Sandbox
    folder: Path
    environment: dict[str, str]
    shell: Shell

    def run(self, command: str, code: int = 0) -> str:
        """Run a command that must end with an exit code; return what it prints."""
        found, printed = self.shell.run(command)
        assert found == code, printed
        return printed


Names = dict[str, str]


def demo(desk: Desk) -> Names:
    """Fill account and tables as ``vmsnix sandbox --seed demo`` does."""
    with mock.patch.dict(os.environ, desk.environment, clear=True):
        desk.aws.add_demo()
        write_records(desk.aws, Path(desk.environment["HOME"]) / ".local/state/vmsnix_ops")
    return {}


def bucket(desk: Desk) -> Names:
    """Create a bucket and the role, as first-publish.md does."""
    desk.aws.prepare(bucket="acme-vmsnix-images", region="eu-central-1")
    return {}


def bucket_settings(desk: Desk) -> Names:
    """Create a bucket and the role, and write them into ``vmsnix.toml``."""
    bucket(desk)
    (desk.folder / "vmsnix.toml").write_text('region = "eu-central-1"\nbucket = "acme-vmsnix-images"\n')
    return {}


def failed_publish(desk: Desk) -> Names:
    """Publish until AWS refuses the last request."""
    code = "ResourceCountLimitExceeded"
    desk.aws.faults.add({"op": "ec2:RegisterImage", "nth": 1, "do": "error", "code": code, "http": 400})
    desk.run("vmsnix publish --image ./result --region us-east-1 --via direct", 1)
    return failed_run(desk)


def unfinished_publish(desk: Desk) -> Names:
    """Publish until the limit of imports is reached; the uploaded image is kept."""
    desk.aws.prepare()
    code = "ResourceCountLimitExceeded"
    desk.aws.faults.add({"op": "ec2:ImportSnapshot", "nth": 1, "do": "error", "code": code, "http": 400})
    desk.run("vmsnix publish --image ./result --region us-east-1 --bucket vmsnix-images", 1)
    return failed_run(desk)


def failed_run(desk: Desk) -> Names:
    """Return the ID of the last run."""
    (run,) = json.loads(desk.run("vmsnix runs --last 1 --json"))
    return {"RUN": run["run_id"], "4f02a1": run["run_id"][-6:]}


def past_runs(desk: Desk) -> Names:
    """Fail a publish."""
    demo(desk)
    (made,) = json.loads(desk.run("vmsnix history amis --image ecs-node --last 1 --json"))
    return failed_publish(desk) | {"ami-0123456789abcdef0": made["ami_id"]}


def planned_promotion(desk: Desk) -> Names:
    """Plan a promotion, and write a wrong region into the settings of another folder."""
    demo(desk)
    (made,) = json.loads(desk.run("vmsnix history amis --image ecs-node --last 1 --json"))
    planned = desk.run(f"vmsnix promote --ami {made['ami_id']} --channel stable --regions eu-west-1")
    (run,) = json.loads(desk.run("vmsnix runs --last 1 --json"))
    wrong = desk.folder / "wrong"
    wrong.mkdir()
    (wrong / "vmsnix.toml").write_text('region = "us-esat-1"\n')
    shutil.copytree(desk.folder / "result", wrong / "result")
    return {
        "20261125T193321433Z-promote-ami-aca377": run["run_id"],
        "8f1d0c52a6b7e943": planned.partition("--expect-plan=")[2].split()[0],
    }


def published(desk: Desk) -> Names:
    """Publish an image."""
    desk.run("export VMSNIX_REGION=eu-central-1")
    desk.run("vmsnix publish --image ./result --via direct")
    (made,) = json.loads(desk.run("vmsnix history amis --last 1 --json"))
    names = {"ami-0123456789abcdef0": made["ami_id"], "snap-0123456789abcdef0": made["snapshot_id"]}
    return names | {"price                 0.01 USD": "price less than 0.01 USD"}


def attested(desk: Desk) -> Names:
    """Publish an attested image, and set a channel to its AMI."""
    write_output(desk.folder / "attested", make_disk())
    desk.run("export VMSNIX_REGION=eu-central-1")
    desk.run("vmsnix publish --image ./attested --via direct")
    (made,) = json.loads(desk.run("vmsnix history amis --last 1 --json"))
    desk.aws.client("ssm", "eu-central-1").put_parameter(
        Name="/vmsnix/attested/stable", Value=made["ami_id"], Type="String"
    )
    return {"ami-0123456789abcdef0": made["ami_id"]}


def ci_job(desk: Desk) -> Names:
    """Set the variables of the page's environment, and create its buckets."""
    demo(desk)
    for name in ("acme-vmsnix-records", "vmsnix-images"):
        desk.aws.prepare(bucket=name)
    (desk.folder / "promotions").mkdir()
    desk.environment |= {"VMSNIX_REGION": "us-east-1", "VMSNIX_BUCKET": "vmsnix-images"}
    desk.run("export VMSNIX_REGION=us-east-1 VMSNIX_BUCKET=vmsnix-images")
    return {}


def plans(desk: Desk) -> Names:
    """Create the buckets and the role that the plan names, and the plan of the second example."""
    for region in ("eu-central-1", "us-east-1"):
        desk.aws.prepare(bucket=f"acme-images-{region}", region=region)
    trust = {"Effect": "Allow", "Principal": {"AWS": desk.aws.account}, "Action": "sts:AssumeRole"}
    desk.aws.client("iam").create_role(
        RoleName="vmsnix-publisher",
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )
    everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    desk.aws.client("iam").put_role_policy(
        RoleName="vmsnix-publisher",
        PolicyName="everything",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [everything]}),
    )
    (desk.folder / "broken").write_text("text")
    (desk.folder / "try.toml").write_text(PLAN_OF_TWO)
    (desk.folder / "wrong").mkdir()
    (desk.folder / "wrong/nightly.toml").write_text(WRONG_PLAN)
    return {}


def own_nix(desk: Desk) -> Names:
    """Give Nix a store and settings of its own."""
    require("nix")
    root = desk.folder.parent / "own-nix"
    (root / "conf").mkdir(parents=True)
    flakes = "experimental-features = nix-command flakes"
    (root / "conf/nix.conf").write_text(SETTINGS.replace("experimental-features =", flakes))
    folders = {
        "NIX_STORE_DIR": "store", "NIX_STATE_DIR": "state", "NIX_LOCALSTATE_DIR": "var",
        "NIX_LOG_DIR": "log", "NIX_CONF_DIR": "conf",
    }  # fmt: skip
    for name, folder in folders.items():
        desk.environment[name] = str(root / folder)
        desk.run(f"export {name}={root / folder}")
    shutil.rmtree(desk.folder / "ecs-node")
    return {}


def copied(desk: Desk) -> Names:
    """Copy the notebooks as ``vmsnix lab`` does, and keep those of the checkout in git."""
    demo(desk)
    copies.make(copies.work_folder(Path(desk.environment["HOME"]) / ".local/state/vmsnix_ops"))
    (desk.folder / "notebooks").unlink()
    shutil.copytree(ROOT / "notebooks", desk.folder / "notebooks")
    desk.run("git init --quiet && git add notebooks")
    return {}


def small_linux(desk: Desk) -> Names:
    """Make an image that boots."""
    bucket(desk)
    desk.run("export VMSNIX_REGION=eu-central-1 VMSNIX_BUCKET=acme-vmsnix-images")
    disk = f"{make_small_linux(desk.folder)} --system x86_64-linux"
    return {
        "boot-image --image ./nix#ecs-node": f"boot-image --image {disk} --expect '{UP}'",
        "publish --image ./nix#ecs-node": f"publish --image {disk} --boot-expect '{UP}'",
        "./result": disk,
        "Started Amazon SSM Agent": UP,
    }


def recording(desk: Desk) -> Names:
    """Choose the region and the bucket of the recording."""
    bucket(desk)
    desk.run(f"export PYTHONPATH={ROOT} REGION=eu-central-1 BUCKET=acme-vmsnix-images")
    return {}


def justfile(desk: Desk) -> Names:
    """Copy the recipes."""
    (desk.folder / "justfile").symlink_to(ROOT / "justfile")
    return {}


def own_image(desk: Desk) -> Names:
    """Add an image to the flake, as the page says."""
    bucket(desk)
    own_nix(desk)
    justfile(desk)
    packages = desk.folder / "nix/packages.nix"
    text = packages.read_text(encoding="utf-8")
    added = text.replace("  gc-fwd = image", '  web = image "web" "Web server";\n  gc-fwd = image')
    packages.write_text(added, encoding="utf-8")
    shutil.rmtree(desk.folder / "result")
    desk.run("nix build ./nix#ecs-node")
    return {"ami-0123456789abcdef0": make_ami(desk.aws, region="us-east-1")}


def public_allowed(desk: Desk) -> Names:
    """End the block of public AMIs in the region of the page."""
    allow_public_images(desk.aws, "eu-central-1")
    return {}


def nothing(_desk: Desk) -> Names:
    """Prepare nothing."""
    return {}


PLAN_OF_TWO = """
name = "try"

[[entry]]
name = "publish"
runbook = "publish-ami"
images = ["./ecs-node", "./gc-fwd", "./broken"]
regions = ["us-east-1"]

[[entry]]
name = "audit"
runbook = "audit-inventory"
regions = ["us-east-1"]
after = ["publish"]
"""
WRONG_PLAN = """
[[entry]]
name = "publish"
runbook = "publish-ami"
images = ["./web.vhd"]
regions = ["us-esat-1", "eu-west-1"]
parameters = { bucket = "acme-images" }

[[entry.override]]
where = { region = "us-east-1" }
retires = 3

[[entry]]
name = "build"
runbook = "publsh-ami"

[[entry]]
name = "audit"
runbook = "audit-inventory"
regions = ["us-esat-1"]
after = ["audit"]
"""


@dataclass(frozen=True)
class Reader:
    """The reader of a page.

    Parameters
    ----------
    prepare
        Makes what the page expects, and returns the values that replace those of the page.
    seconds
        Duration of the test, if it starts many kernels; 0 for the quick tests.
    codes
        Exit codes that the page does not show, by the first words of the command.
    settings
        Whether the reader saves the page's TOML before the next command.
    python
        Names that the page's Python knows before; None: another test runs it.
    shows
        By the first words of an output: the command that prints it, or empty text if another test checks it.
    """

    prepare: Callable[[Desk], Names] = nothing
    seconds: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    settings: bool = False
    python: dict[str, Any] | None = field(default_factory=dict)
    shows: Mapping[str, str] = field(default_factory=dict)


HOW = "docs/how-to/"
READERS = {
    "README.md": Reader(bucket, 25),
    "CONTRIBUTING.md": Reader(justfile, python=None),
    "docs/quickstart.md": Reader(),
    "docs/weekly-report.md": Reader(settings=True, python=None),
    HOW + "attest.md": Reader(attested, 15),
    HOW + "audit.md": Reader(demo, 30, shows={"Since ": "vmsnix audit"}),
    HOW + "boot-an-image.md": Reader(small_linux, 60, shows={"small-linux.img did not boot.": ""}),
    HOW + "build-an-image.md": Reader(own_nix, 20),
    HOW + "ci.md": Reader(ci_job, 35),
    HOW + "direct-upload.md": Reader(published, 12),
    HOW + "dry-runs.md": Reader(
        planned_promotion, 15, shows={"Error: The call of": "cd wrong; vmsnix publish --image ./reslt; cd .."}
    ),
    HOW + "findings.md": Reader(demo, 15),
    HOW + "first-publish.md": Reader(public_allowed, 35, settings=True),
    HOW + "fleet.md": Reader(
        plans,
        60,
        codes={"vmsnix fleet try.toml": 3},
        settings=True,
        shows={"Error: The plan": "cd wrong; vmsnix fleet nightly.toml; cd .."},
    ),
    HOW + "jupyterlab.md": Reader(copied, 10),
    HOW + "outside-altf4.md": Reader(
        own_image, 10, settings=True, shows={"vmsnix.admin.keys is empty": "", "may log in": ""}
    ),
    HOW + "own-runbooks.md": Reader(demo, 10, settings=True, python=None),
    HOW + "promote-and-roll-back.md": Reader(demo, 40),
    HOW + "prove.md": Reader(published, 15),
    HOW + "read-timings.md": Reader(demo, 10, shows={"slow ": ""}),
    HOW + "record-aws.md": Reader(recording, 20),
    HOW + "retire.md": Reader(demo, 20),
    HOW + "runs.md": Reader(past_runs, 30),
    HOW + "smoke-test.md": Reader(demo, 15),
    HOW + "verify.md": Reader(demo, 15),
    HOW + "when-it-breaks.md": Reader(unfinished_publish, seconds=15),
    "docs/reference/findings.md": Reader(demo, 15),
    "docs/reference/permissions.md": Reader(),
    "docs/reference/python.md": Reader(demo, python={"frame": pd.DataFrame({"a": [1]})}),
}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    folder, calls = tmp_path / "checkout", tmp_path / "calls"
    shutil.copytree(ROOT / "tests/nix/fixture", folder / "nix")
    calls.mkdir()
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    for name, seed in (("result", 0), ("ecs-node", 0), ("gc-fwd", 1)):
        make_sample_image(folder / name, name="gc-fwd" if seed else "ecs-node", seed=seed)
    kept = {name: value for name, value in os.environ.items() if name.startswith((*FIXED, "OPENBLAS"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with sandbox(speed=SPEED) as aws:
        environment = {**kept, "PATH": path, "HOME": str(tmp_path), **aws.environment}
        with Shell(folder, calls, environment) as shell:
            yield Desk(aws, folder, environment, shell)


def reason_not_to_run(command: Command) -> str:
    """Return why no test can run a command, or empty text."""
    return next(
        (why for (page, words), why in NOT_RUN.items()
         if page == command.block.page and command.text.startswith(words)), ""
    )  # fmt: skip


class Reading:
    """One reader's way through a page, and what was wrong on it."""

    def __init__(self, desk: Desk, reader: Reader) -> None:
        self.desk, self.reader = desk, reader
        self.names = reader.prepare(desk) | {"./nix#ecs-node": "./ecs-node", "./nix#gc-fwd": "./gc-fwd"}
        self.problems: list[str] = []
        self.missing: list[str] = []  # programs
        self._printed = ""  # by the commands of the last block
        self._plan = ""
        self._python: dict[str, Any] = {}

    def read(self, block: Block) -> None:
        """Do what a block says."""
        commands = list(block.commands())
        if commands:
            self._printed = ""
            for command, after in zip(commands, [*commands[1:], None], strict=True):
                if not reason_not_to_run(command):
                    self._run(command, after)
        elif block.language == "toml":
            self._save(block)
        elif block.language == "yaml":
            self._work(block)
        elif block.language == "python":
            self._execute(block)
        elif block.language == "text":
            self._compare(block)

    def _add(self, block: Block, problem: str) -> None:
        self.problems.append(f"{block.page}:{block.line}: {problem}")

    def _own(self, text: str) -> str:
        """Return a text with the values of this reader."""
        for old, new in self.names.items():
            text = text.replace(old, new)
        return text

    def _missing(self, shown: Iterable[str], printed: str) -> list[str]:
        return missing_lines([self._own(line) for line in shown], printed)

    def _run(self, command: Command, after: Command | None) -> None:
        text = self._own(command.text.replace(".venv/bin/", ""))
        if self._plan:
            text = re.sub(r"(--(?:expect-plan|confirm)[ =])[0-9a-f]{16}\b", rf"\g<1>{self._plan}", text)
        program = text.split()[0]
        if program in PROGRAMS and shutil.which(program, path=self.desk.environment["PATH"]) is None:
            self.missing.append(program)
            return
        code, printed = self.desk.shell.run(text)
        self._printed += printed
        if plans := re.findall(r"--expect-plan[= ]([0-9a-f]{16})", printed):
            self._plan = plans[-1]
        wanted = int(any(line.startswith("Error:") for line in command.shown or ()))
        wanted = next((code for words, code in self.reader.codes.items() if text.startswith(words)), wanted)
        if after and after.text == "echo $?" and after.shown:
            wanted = int(after.shown[0])
        if code != wanted:
            self.problems.append(
                f"{command.block.line}: `{text}` ends with {code}, not {wanted}: {printed[-900:]}"
            )
        elif missing := self._missing(command.shown or [], printed):
            self._add(command.block, f"`{text}` does not print {missing}")

    def _compare(self, block: Block) -> None:
        lines = block.text.splitlines()
        for words, call in self.reader.shows.items():
            if lines[0].startswith(words):
                if not call:
                    return
                self._printed = self.desk.shell.run(call)[1]
        if missing := self._missing(lines, self._printed):
            self._add(block, f"not printed: {missing}")

    def _save(self, block: Block) -> None:
        content = tomllib.loads(block.text)
        fleet = block.page.endswith("fleet.md")
        if fleet and "entry" not in content:
            content["entry"] = [{"runbook": "verify-amis"}]
        Draft202012Validator(plan_schema() if fleet else settings_schema()).validate(content)
        for name in re.findall(r"^#:schema (\S+)", block.text, re.MULTILINE):
            assert (ROOT / "docs/reference" / name).is_file()
        if self.reader.settings and not (fleet and "[[entry]]" not in block.text):
            file = self.desk.folder / ("nightly.toml" if fleet else "vmsnix.toml")
            before = file.read_text(encoding="utf-8") if file.exists() else ""
            file.write_text(before + self._own(block.text), encoding="utf-8")

    def _work(self, block: Block) -> None:
        """Run the steps of a workflow, and write the fingerprint of each plan to the file of the page."""
        steps = yaml.safe_load(block.text)
        job = {"runs-on": "ubuntu-24.04", "steps": steps}
        file = self.desk.folder / "workflow.yml"
        file.write_text(yaml.safe_dump({"on": "push", "jobs": {"job": job}}), encoding="utf-8")
        checked = subprocess.run(
            ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", file],
            env=self.desk.environment,
            capture_output=True, text=True, timeout=DEADLINE,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout
        for step in steps:
            run = Job({"steps": [step]}, self.desk.folder, {}, self.desk.environment)
            if run.run():
                self._add(block, run.printed)
            plan = run.outputs("unnamed").get("plan_fingerprint", "")
            assert plan
            assert plan in run.summary
            (self.desk.folder / "promotions/stable.plan").write_text(plan)

    def _execute(self, block: Block) -> None:
        if self.reader.python is None:
            return
        with mock.patch.dict(os.environ, self.desk.environment, clear=True), chdir(self.desk.folder):
            self._python |= self.reader.python
            try:
                exec(block.text, self._python)
            except Exception as error:  # noqa: BLE001 - listed with the other problems of the page
                self._add(block, repr(error))


def parameters() -> list[Any]:
    return [
        pytest.param(page, marks=[pytest.mark.long(seconds=reader.seconds)] if reader.seconds else [])
        for page, reader in READERS.items()
    ]


@pytest.mark.parametrize("page", parameters())
def test_a_reader_can_run_every_command(page: str, desk: Desk) -> None:
    reading = Reading(desk, READERS[page])
    for block in blocks(page):
        reading.read(block)
    assert not reading.problems, "\n\n".join(reading.problems)
    if reading.missing:
        unavailable(reading.missing[0], f"these programs are not on PATH: {', '.join(reading.missing)}")


def test_short_commands_in_sentences_run(desk: Desk) -> None:
    demo(desk)
    desk.run("export VMSNIX_BUCKET=acme-vmsnix-images VMSNIX_ARCHIVE=s3://acme-vmsnix-records/archive")
    desk.aws.prepare(bucket="acme-vmsnix-records")
    calls = {
        call for page in NAMES for call in in_sentences(text_of(page)) if not re.search("[A-Z]{2}", call)
    }
    short = sorted(call for call in calls if call.startswith(SHORT))
    only = {
        "findings export",
        "history",
        "iam-policy",
        "runs repair",
        "runs resume",
        "runs show",
        "runs verify",
        "history rebuild steps",
    }
    assert only < set(short)  # they need an argument; nothing is archived
    for call in set(short) - only:
        desk.run(f"vmsnix {call}")


def test_every_call_in_a_sentence_is_run_or_has_a_reason() -> None:
    """A single word is the name of a command."""
    calls = {call for page in NAMES for call in in_sentences(FENCE.sub("", text_of(page)))}
    whole = {call for call in calls if " " in call.strip() or call.startswith("-")}
    shown = {command.text for page in NAMES for block in blocks(page) for command in block.commands()}
    left = {
        call
        for call in whole
        if not call.startswith((*SHORT, "help "))
        and not re.search("[A-Z]{2}", call)  # with a placeholder
        and f"vmsnix {call}" not in shown
    }
    assert left == RUN_ELSEWHERE.keys()


def test_every_page_with_commands_has_a_reader() -> None:
    pages = {
        page
        for page in NAMES
        for block in blocks(page)
        if any(not reason_not_to_run(command) for command in block.commands())
    }
    assert pages - set(READERS) == set()


@pytest.mark.parametrize(("page", "words"), NOT_RUN)
def test_the_pages_have_the_commands_that_cannot_run(page: str, words: str) -> None:
    assert any(command.text.startswith(words) for block in blocks(page) for command in block.commands())


def test_the_examples_in_nix_can_be_parsed() -> None:
    program = require("nix-instantiate")
    for block in (block for page in NAMES for block in blocks(page) if block.language == "nix"):
        whole = block.text.split("\n", 1)[-1] if block.text.startswith("#") else block.text
        text = block.text if whole[0] in "{[" else f"{{ lib }}: {{ {block.text} }}"
        parsed = [program, "--parse", "--expr", text]
        done = subprocess.run(parsed, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 0, f"{block.page}:{block.line}: {done.stderr}"


@pytest.mark.long(seconds=8)
@pytest.mark.parametrize("words", ["--seed demo", "--limits aws"])
def test_a_server_starts(desk: Desk, words: str) -> None:
    """``vmsnix console`` and ``vmsnix lab`` are started by tests/browser."""
    with subprocess.Popen(
        ["vmsnix", "sandbox", *words.split()],
        cwd=desk.folder, env=desk.environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        read_line(process, "export AWS_ENDPOINT_URL")
        process.send_signal(signal.SIGINT)
        with killed_after(process):
            assert process.stdout is not None
            process.stdout.read()
        assert process.wait(DEADLINE) in (0, 130)
