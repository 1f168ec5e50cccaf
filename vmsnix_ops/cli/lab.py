"""``vmsnix console`` and ``vmsnix lab``: open the console alone, or the runbooks in JupyterLab."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from vmsnix_ops import files
from vmsnix_ops.cli.output import show_error
from vmsnix_ops.cli.runbooks import folder_of, folder_option, preparing
from vmsnix_ops.errors import RunError, ToolMissingError
from vmsnix_ops.interrupts import handling, stop_signals
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmsnix_ops.runbooks.copies import Copy

# By default, JupyterLab fetches news and checks for updates on the network.
NOTIFICATIONS = {"fetchNews": "false", "checkForUpdates": False}
THEMES = {"adaptive-theme": True}  # light or dark as the system, until the user chooses otherwise
STOP_SECONDS = 15
SHUTDOWN_SECONDS = 5.0  # for a kernel to save the evidence of a run that was not completed
LAB_FOLDER = "VMSNIX_LAB_FOLDER"  # environment variable of kernels: the folder in which the lab was started
CONSOLE = "console.ipynb"
"""Notebook of the console."""
LAB_PAGE = f"/lab/tree/{CONSOLE}"
CONSOLE_PAGE = f"/doc/workspaces/vmsnix-console/tree/{CONSOLE}"
"""Page of JupyterLab on which the extension in `EXTENSIONS` runs the console and shows nothing else."""
EXTENSIONS = Path(__file__).parents[1] / "runbooks" / "console" / "labextension"
BANNER = """\
body::after {
    content: "Shared originals in git, saved without outputs";
    position: fixed; top: 2px; right: 12px; z-index: 10000; padding: 3px 10px; border-radius: 3px;
    background: #8a4b00; color: #fff; font: 600 12px/1.5 sans-serif; pointer-events: none;
}
"""
"""Style of JupyterLab with the shared notebooks: a banner at the right end of the menu bar."""


_sandbox_option = click.option("--sandbox", is_flag=True, help="Use a local sandbox instead of AWS.")
_port_option = click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="TCP port; 0 chooses a free one."
)
_no_browser_option = click.option(
    "--no-browser", is_flag=True, help="Print the address, and do not open a browser."
)
_jupyterlab_options = click.argument(
    "options", nargs=-1, type=click.UNPROCESSED, metavar="[-- JUPYTERLAB_OPTIONS]"
)


@click.command()
@_sandbox_option
@folder_option
@_port_option
@_no_browser_option
@_jupyterlab_options
def console(sandbox: bool, folder: Path | None, port: int, no_browser: bool, options: tuple[str, ...]) -> int:
    """Open the console in a browser: a form for every runbook, on 127.0.0.1 only.

    Relative paths in parameters start at the current folder, as for `vmsnix NAME`.
    """
    return _open(CONSOLE_PAGE, folder, port, options, sandbox=sandbox, no_browser=no_browser)


@click.command()
@_sandbox_option
@click.option(
    "--edit", is_flag=True, help="Open the shared notebooks of a checkout, and save them without outputs."
)
@folder_option
@_port_option
@_no_browser_option
@_jupyterlab_options
def lab(
    sandbox: bool, edit: bool, folder: Path | None, port: int, no_browser: bool, options: tuple[str, ...]
) -> int:
    """Open copies of the runbooks in JupyterLab, on 127.0.0.1 only.

    Changes of the copies do not change `vmsnix NAME`. `vmsnix runbooks diff` compares them with the package.
    Relative paths in parameters start at the current folder, as for `vmsnix NAME`.
    """
    if edit and folder is not None:
        raise click.UsageError("Use --edit or --folder, not both: --edit opens no copies.")
    return _open(LAB_PAGE, folder, port, options, sandbox=sandbox, no_browser=no_browser, edit=edit)


def _open(
    page: str,
    folder: Path | None,
    port: int,
    options: tuple[str, ...],
    *,
    sandbox: bool,
    no_browser: bool,
    edit: bool = False,
) -> int:
    """Serve JupyterLab until it ends, open one of its pages, and return the exit code."""
    from vmsnix_ops.cli.sandbox import run_sandbox
    from vmsnix_ops.settings import load

    if find_spec("jupyterlab") is None:
        raise ToolMissingError(
            "JupyterLab is not installed.",
            why="Installations for servers and CI do not include it.",
            fix="Run pip install 'vmsnix-ops[lab]'",
        )
    state = load().state
    notebooks = _shared() if edit else _copies(folder_of(folder))
    with (
        run_sandbox() if sandbox else nullcontext() as served,
        # Each lab has its own kernel folder, because a second lab can run another interpreter.
        TemporaryDirectory(prefix="vmsnix-kernel-") as kernel,
    ):
        environment = {**os.environ, **(served.environment if served is not None else {})}
        if served is not None:
            echo(f"SANDBOX: these notebooks use {served.url}, not AWS.", err=True)
        with preparing():
            environment |= _jupyter_environment(state / "lab", environment, Path(kernel))
        command = _command(notebooks, page, port or _free_port(), no_browser=no_browser)
        if edit:
            with preparing():
                command += _edit_options(Path(kernel))
        code = _serve([*command, *options], environment)
    if code and os.geteuid() == 0 and not re.search(r"allow.root", " ".join(options)):
        raise RunError(
            "JupyterLab failed.",
            why="It does not run as root unless you allow it. That is safe in your own container.",
            fix="Start it as another user, or allow root: "
            f"vmsnix {click.get_current_context().info_name} -- --allow-root",
        )
    return code


def _shared() -> Path:
    """Return the folder of the notebooks of a checkout, which people maintain in git."""
    from vmsnix_ops.runbooks import catalog

    folder = catalog.default_folder()
    if catalog.is_installed():
        raise RunError(
            "vmsnix lab --edit needs a checkout.",
            why=f"The notebooks in {folder} belong to an installed package: the next installation replaces "
            "them, and no version control has them.",
            fix="Edit copies with vmsnix lab, write your own runbook, or install a checkout: pip install "
            "--editable .",
        )
    echo(f"SHARED ORIGINALS: {folder} is the checkout. Notebooks are saved without outputs.", err=True)
    return folder


def _copies(folder: Path) -> Path:
    """Make the missing copies of the notebooks; offer to replace those that are older than the package's."""
    from vmsnix_ops.runbooks import copies

    with preparing():
        made, problems = copies.make(folder)
        for problem in problems:
            show_error(problem.what, problem.why, problem.fix)
        echo(f"Copies of the runbooks: {folder}. Changes here do not change `vmsnix NAME`.", err=True)
        outdated = [one for one in made if one.outdated]
        if outdated:
            _offer(folder, outdated)
    return folder


def _offer(folder: Path, outdated: list[Copy]) -> None:
    """Let the user compare, keep or reset copies that are older than the package's notebooks."""
    from vmsnix_ops.runbooks import copies

    names = [one.name for one in outdated]
    listed = ", ".join(f"{one.name} (edited)" if one.edited else one.name for one in outdated)
    echo(f"These copies are older than the notebooks of the package: {listed}.", err=True)
    place = "" if folder == folder_of(None) else f" --folder {shlex.quote(str(folder))}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        echo(f"  To compare them: vmsnix runbooks diff{place} {' '.join(names)}", err=True)
        echo(f"  To replace them: vmsnix runbooks reset{place} {' '.join(names)}", err=True)
        return
    while True:
        answer = click.prompt(
            "Compare them, keep your copies, or reset them (your copies are kept under other names)?",
            type=click.Choice(("compare", "keep", "reset")),
            default="keep",
            err=True,
        )
        if answer != "compare":
            break
        for one in outdated:
            for line in copies.compare(one.name, folder):
                echo(line, err=True)
    if answer == "keep":
        copies.keep(folder, outdated)
        return
    for name in names:
        if old := copies.reset(folder, name):
            echo(f"The old copy of {name} is {old.name}.", err=True)


def _jupyter_environment(folder: Path, environment: Mapping[str, str], share: Path) -> dict[str, str]:
    """Write settings, and a kernel into `share`; return the variables that make JupyterLab use them."""
    from vmsnix_ops.runbooks.execution import kernels

    _write_workspace(folder / "workspaces")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    kernel = share / "kernels" / "python3" / "kernel.json"
    change_folder = f"import os; os.chdir(os.environ[{LAB_FOLDER!r}]); del os"
    spec = {
        "argv": kernels.argv(f"--InteractiveShellApp.exec_lines={change_folder}"),
        "display_name": "Python 3 (vmsnix)",
        "language": "python",
        "metadata": kernels.METADATA,
    }
    themes = settings / "themes.jupyterlab-settings"
    written = {settings / "notification.jupyterlab-settings": NOTIFICATIONS, kernel: spec}
    for path, content in (written if themes.exists() else {**written, themes: THEMES}).items():
        files.make_folder(path.parent)
        files.write(path, json.dumps(content, indent=2))
    others = environment.get("JUPYTER_PATH", "")
    return {
        **kernels.python_path(environment),
        LAB_FOLDER: str(Path.cwd()),
        "JUPYTER_PATH": os.pathsep.join(part for part in (str(share), others) if part),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }


def _write_workspace(workspaces: Path) -> None:
    """Close the side bar at the first start, so that the console has the whole width."""
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    files.make_folder(workspaces)
    if not any(workspaces.iterdir()):
        layout = {"left": {"collapsed": True, "visible": True}}
        WorkspacesManager(str(workspaces)).save(
            "default", json.dumps({"data": {"layout-restorer:data": layout}, "metadata": {"id": "default"}})
        )


def _edit_options(folder: Path) -> list[str]:
    """Write a style sheet with a banner; return the options of JupyterLab for the shared notebooks."""
    files.write(folder / "custom.css", BANNER)
    return [
        "--ContentsManager.pre_save_hook=vmsnix_ops.runbooks.copies.strip_outputs",
        f"--ServerApp.tornado_settings={{'static_custom_path': [{str(folder)!r}]}}",
        "--LabApp.custom_css=True",
    ]


def _command(notebooks: Path, page: str, port: int, *, no_browser: bool) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={notebooks}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--LabApp.default_url={page}",
        f"--LabApp.extra_labextensions_path={EXTENSIONS}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
        "--KernelManager.transport_encryption=auto",
        f"--KernelManager.shutdown_wait_time={SHUTDOWN_SECONDS}",
    ]
    return [*command, "--no-browser"] if no_browser else command


def _free_port() -> int:
    """Return a port that is free now; JupyterLab itself would search only near 8888."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(command: list[str], environment: Mapping[str, str]) -> int:
    """Run JupyterLab until it ends. It handles Ctrl-C itself; SIGTERM and SIGHUP stop it."""
    server = subprocess.Popen(command, env=dict(environment))

    def stop(_number: int, _frame: object) -> None:
        server.terminate()
        # JupyterLab never stops while a kernel is starting.
        timer = threading.Timer(STOP_SECONDS, server.kill)
        timer.daemon = True
        timer.start()

    with handling(dict.fromkeys(stop_signals(), stop) | {signal.SIGINT: signal.SIG_IGN}):
        code = server.wait()
    return 0 if code in (0, -signal.SIGTERM, -signal.SIGKILL) else 1
