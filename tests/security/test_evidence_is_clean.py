"""No file, object or table of a run contains a secret, from its first byte on."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runbooks.shelf import Shelf, make_shelf, notebook
from tests.support import kill, killed_after, wait_until
from vmsnix_ops import files
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks.execution.execute import run
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
KNOWN = "Zq7/hunter+Xk29=pL0"  # named as secret by the environment
SHORT = "hunter22x"
PROFILE = "Pr0f/" * 8  # of a profile, not in the environment
ROLE = "R0le+" * 8  # credentials that a program returns
TOKEN = "opaque-session-" + "t0ken" * 8
SECRETS = (KNOWN, SHORT, PROFILE, ROLE, TOKEN)
ENCODED = tuple(base64.b64encode(secret.encode()).decode().rstrip("=")[:-2] for secret in SECRETS)

PARAMETERS = 'note: str = ""  # anything\n'
LEAVES = """
import os, sys, json, gzip
from pathlib import Path
folder = Path(os.environ["VMSNIX_RUN_DIR"])
known, short = os.environ["SERVICE_TOKEN"], os.environ["DB_PASSWORD"]
(folder / "notes").write_text(known)
(folder / "deep").mkdir()
(folder / "deep" / "data.bin").write_bytes(b"\\0\\1" + known.encode() + b"\\0")
(folder / "packed.gz").write_bytes(gzip.compress(known.encode()))
(folder / "page.svg").write_text(f"<svg><text>{known[:5]}<tspan>{known[5:]}</tspan></text></svg>")
(folder / ".hidden").write_text(short)
(folder / f"file-{short}").write_text("a name is read, too")
(folder / "link").symlink_to(f"/nowhere/{known.replace('/', '_')}-{short}")
(folder / "result.json").write_text(json.dumps({"note": known, short: 1, "SecretAccessKey": "A1/b" * 10}))
"""
PRINTS = """
import base64, time
from IPython.display import display, HTML, SVG
print("\\x1b[32maws_secret_access_key\\x1b[0m=\\x1b[31m'" + "A1/b" * 10 + "'\\x1b[0m")
sys.stdout.write("in two " + known[:6]); sys.stdout.flush(); time.sleep(0.3)
sys.stdout.write(known[6:] + " pieces"); sys.stdout.flush(); time.sleep(0.3)
sys.stderr.write(short); sys.stderr.flush()
print(base64.b64encode(b"u:" + known.encode()).decode())
page = f"<b>{known[:4]}</b>{known[4:]} aws_<i>secret_access_key</i> = <i>{'A1/b' * 10}</i>"
display(HTML(page), metadata={known: short})
display({"application/json": {known: [short]}}, raw=True)
display({"image/png": base64.b64encode(b"\\x89PNG" + known.encode()).decode(), "text/plain": "fig"}, raw=True)
"""
USES = """
import boto3, botocore.session
credentials = boto3.Session(profile_name="static").get_credentials()
print("profile", credentials.secret_key)
found = botocore.session.Session(profile="program").get_credentials().get_frozen_credentials()
print("role", found.secret_key, "and", found.token)
(folder / "credentials.txt").write_text(found.token)
"""
FAILS = "raise ValueError(f'it was {known} and \\x1b[1m{short}\\x1b[0m')"


PACKAGE = ROOT / "vmsnix_ops"
WRITES_BESIDE = {
    "cli/__init__.py": "the home folder of a user without one",
    "cli/shared_sandbox.py": "the keys of the user's sandbox, for its commands, which redaction would remove",
    "files.py": "what all others call",
    "nix/reproducible.py": "a copy of a partition, in a temporary folder, for debugfs",
    "records/tables.py": "manifests: binary digests of blocks, which redaction could damage",
    "publish/bootstrap.py": "the template that the operator asks for, at a path of theirs",
    "runbooks/execution/_engine.py": "what a dying kernel says, in a private temporary folder",
    "runbooks/evidence/github.py": "files that GitHub Actions made",
}
"""Modules that write without `files`, and what."""


def writes(path: Path) -> list[int]:
    """Return the lines in which a module writes a file or makes a folder by itself."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        texts = [
            arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        ]
        # A constant of letters alone, such as "ab", is the mode of an open file.
        opens = called.endswith("open") and any(set(text) & set("wax") and len(text) < 4 for text in texts)
        if opens or called.endswith((".write_text", ".write_bytes", ".mkdir", "makedirs", "shutil.copyfile")):
            found.append(node.lineno)
    return found


def test_every_module_writes_evidence_through_the_same_functions() -> None:
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    # Disk images, machines that boot them, and the sandbox, which are no part of the evidence.
    others = [name for name in modules if not name.startswith(("sandbox/", "disk/", "boot/"))]
    assert {name for name in others if writes(modules[name])} == set(WRITES_BESIDE)


def environment(tmp_path: Path, aws: Any) -> dict[str, str | None]:
    """Return the variables of a run with secrets in them, and in the files of AWS."""
    home = tmp_path / "aws"
    home.mkdir()
    handed = {"Version": 1, "AccessKeyId": "ASIA" + "P" * 16, "SecretAccessKey": ROLE, "SessionToken": TOKEN}
    program = home / "program.py"
    # Built by the program, so that no file of AWS contains them.
    program.write_text(f"print(bytes.fromhex({json.dumps(handed).encode().hex()!r}).decode())")
    (home / "config").write_text(
        f"[profile program]\ncredential_process = {sys.executable} {program}\nregion = us-east-1\n"
    )
    (home / "credentials").write_text(
        f"[static]\naws_access_key_id = {'AKIA' + 'Q' * 16}\naws_secret_access_key = {PROFILE}\n"
    )
    return {
        **aws.environment,
        "SERVICE_TOKEN": KNOWN,
        "DB_PASSWORD": SHORT,
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "credentials"),
        "VMSNIX_STATE": str(tmp_path / "state"),
        "VMSNIX_HISTORY": str(tmp_path / "history"),
    }


def holds(content: bytes) -> list[str]:
    text = content.decode("latin-1").replace("\\/", "/")
    spread = text.replace("\0", "")
    return [secret for secret in (*SECRETS, *ENCODED, "A1/b" * 10) if secret in text or secret in spread]


def leaks(*roots: Path) -> dict[str, list[str]]:
    """Return every file, name and link below these folders that contains a secret."""
    found = {}
    for root in roots:
        for folder, folders, names in os.walk(root):
            for name in (*folders, *names):
                path = Path(folder, name)
                content = name.encode()
                if path.is_symlink():
                    content += str(path.readlink()).encode()
                elif path.is_file():
                    content += path.read_bytes()
                if holds(content):
                    found[str(path)] = holds(content)
    return found


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[Any]:
    with sandbox(state=tmp_path / "sandbox") as served:
        served.prepare(bucket="evidence")
        yield served


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return make_shelf(tmp_path, tmp_path / "archive", monkeypatch)


def put(shelf: Shelf, *cells: str) -> None:
    (shelf.folder / "10-try-this.ipynb").write_text(json.dumps(notebook(*cells, parameters=PARAMETERS)))


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "bucket"])
@pytest.mark.variants
def test_a_run_full_of_secrets_keeps_none(remote: bool, shelf: Shelf, aws: Any, tmp_path: Path) -> None:
    put(shelf, LEAVES, PRINTS, USES, FAILS)
    summary, outputs = tmp_path / "summary.md", tmp_path / "outputs"
    variables = environment(tmp_path, aws) | {
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(outputs),
    }
    outcome = run(
        "try-this",
        {"note": f"about {KNOWN} and {PROFILE}"},
        folder=shelf.folder,
        archive="s3://evidence/runs" if remote else shelf.archive,
        environment=variables,
        cwd=tmp_path,
        screen=shelf.screen,
    )
    assert outcome.status == "failed"
    assert not holds(json.dumps(outcome.values).encode())
    assert not holds(shelf.screen.getvalue().encode())
    assert "in two [secret removed" in shelf.screen.getvalue()
    # The sandbox's folder still contains what was replaced in the bucket, as a bucket with versions does.
    kept = [shelf.archive, tmp_path / "state", tmp_path / "history", tmp_path / "sandbox" / "objects"]
    assert leaks(*kept) == {}
    assert not holds(summary.read_bytes() + outputs.read_bytes())
    row = Tables(tmp_path / "history").read("runs").iloc[0]
    assert "[secret removed" in str(row["parameters"]) + str(row["error"])
    assert outcome.values["secrets_removed"]["credentials in use"] >= 1


HARD_TO_CLEAN = """
import os
from pathlib import Path
folder = Path(os.environ["VMSNIX_RUN_DIR"])
for number, name in enumerate((os.environ["DB_PASSWORD"], os.environ["OTHER_PASSWORD"])):
    (folder / f"a-{name}.txt").write_text(f"file {number}")
    (folder / f"d-{name}").mkdir()
    (folder / f"d-{name}" / "inner").write_text(f"inner {number}")
    (folder / ("l" * 230 + "-" + name + ".txt")).write_text(f"long {number}")
os.mkfifo(folder / "pipe")
(folder / "loop").symlink_to("loop")
(folder / "zz-last").write_text(os.environ["DB_PASSWORD"])
"""


def test_names_that_become_equal_or_too_long_hide_no_file_and_lose_none(
    shelf: Shelf, aws: Any, tmp_path: Path
) -> None:
    put(shelf, HARD_TO_CLEAN)
    other = "gatherer9"
    outcome = run(
        "try-this",
        folder=shelf.folder,
        archive=shelf.archive,
        environment=environment(tmp_path, aws) | {"OTHER_PASSWORD": other},
        cwd=tmp_path,
        screen=shelf.screen,
    )
    assert outcome.status == "done"
    assert outcome.problems == ()
    assert leaks(shelf.archive) == {}
    assert not [path for path in shelf.archive.rglob("*") if other in path.name]
    texts = [path.read_text() for path in shelf.archive.rglob("*") if path.is_file()]
    assert {f"{kind} {number}" for kind in ("file", "inner", "long") for number in (0, 1)} <= set(texts)


def test_a_file_that_cannot_be_read_hides_no_other_and_is_listed(tmp_path: Path) -> None:
    for name in ("aa-before", f"mm {SHORT}", "zz-after"):
        (tmp_path / name).write_text(SHORT)
    (tmp_path / f"mm {SHORT}").chmod(0)
    program = (
        "import sys; from pathlib import Path; from vmsnix_ops.runbooks.evidence.archive import RunFolder\n"
        "from vmsnix_ops.redaction import Redactor\n"
        "folder = RunFolder('r1', Path(sys.argv[1]), '', {}, Redactor((sys.argv[2],)))\n"
        "print(*folder.redact(), *folder.names(), sep='\\n')"
    )
    as_user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if as_user and shutil.which("setpriv") is None:
        pytest.skip("this user can read every file")
    shown = subprocess.run(
        [*as_user, sys.executable, "-c", program, str(tmp_path), SHORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert SHORT not in shown
    assert "could not be searched for secrets: Permission denied" in shown
    assert leaks(tmp_path) == {str(path): [SHORT] for path in tmp_path.glob("mm*")}
    assert "[secret removed" in next(tmp_path.glob("mm*")).name


def test_a_killed_run_has_kept_none(shelf: Shelf, aws: Any, tmp_path: Path) -> None:
    stops = "print(known, short, flush=True)\nprint('under way', flush=True)\nimport time\ntime.sleep(300)"
    put(shelf, LEAVES, PRINTS, USES, stops)
    program = (
        "import sys; from pathlib import Path; from vmsnix_ops.runbooks.execution.execute import run\n"
        f"run('try-this', {{'note': {KNOWN!r}}}, folder=Path(sys.argv[1]), archive='s3://evidence/runs',"
        " screen=sys.stdout)  # forked"
    )
    given = {k: v for k, v in (os.environ | environment(tmp_path, aws)).items() if v is not None}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(shelf.folder)],
        env=given | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        shown = []
        with killed_after(process):
            for line in process.stdout:
                shown.append(line)
                if "under way" in line:
                    break
        (kernel,) = wait_until(lambda: children(process.pid), "the kernel")
        kill(process)
        os.kill(kernel, signal.SIGKILL)
    finally:
        process.kill()
        process.stdout.close()
    assert "under way" in "".join(shown)
    assert not holds("".join(shown).encode())
    assert leaks(tmp_path / "state", tmp_path / "sandbox" / "objects") == {}
    (folder,) = (tmp_path / "state" / "runs").iterdir()
    assert {"notebook.ipynb", "log.txt", "result.json", "notes"} <= {path.name for path in folder.iterdir()}


def children(pid: int) -> list[int]:
    """Return the kernels that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(words[1]) == pid and b"ipykernel" in command:
            found.append(int(path.parent.name))
    return found


def modes(*roots: Path) -> dict[str, str]:
    """Return what others than the owner may enter or read."""
    return {
        str(path): oct(stat.S_IMODE(path.lstat().st_mode))
        for root in roots
        for path in (root, *root.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    }


def run_with_umask(mask: int, shelf: Shelf, aws: Any, cwd: Path) -> None:
    before = os.umask(mask)
    try:
        run(
            "try-this",
            folder=shelf.folder,
            archive=shelf.archive,
            environment=environment(cwd, aws),
            cwd=cwd,
        )
    finally:
        os.umask(before)


def test_state_archive_and_history_are_for_their_owner_only(shelf: Shelf, aws: Any, tmp_path: Path) -> None:
    put(
        shelf,
        "from pathlib import Path\nimport os\n(Path(os.environ['VMSNIX_RUN_DIR']) / 'own').write_text('x')",
    )
    run_with_umask(0o022, shelf, aws, tmp_path)
    assert modes(shelf.archive, tmp_path / "history") == {}
    assert (tmp_path / "history" / "runs").is_dir()


def test_the_setting_shared_lets_the_umask_decide(shelf: Shelf, aws: Any, tmp_path: Path) -> None:
    put(shelf, "print('x')")
    (tmp_path / "vmsnix.toml").write_text("shared = true\n")
    try:
        run_with_umask(0o027, shelf, aws, tmp_path)
    finally:
        files.set_shared(False)
    (folder,) = shelf.archive.glob("*/")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "notebook.ipynb").stat().st_mode) == 0o640


def test_a_file_that_cannot_be_replaced_leaves_no_part_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(tmp_path / "result.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
