"""IPython extension of the kernels that vmsnix starts.

It shows errors as cards, and saves their parts (why, fix, exit code, AWS request ID), because a kernel sends
only their text. It also guards the side effects of the notebook, and sends the kernel's credentials to the
runner, which removes them from the output.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vmsnix_ops import credentials, files
from vmsnix_ops.redaction import remember
from vmsnix_ops.runbooks.execution import cards, status
from vmsnix_ops.runbooks.execution._secrets import send_secrets

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vmsnix_ops.runbooks.catalog import SideEffects

ERROR_FILE = ".error.json"


def load_ipython_extension(shell: Any) -> None:
    """Install the extension; IPython calls this."""
    shell.events.register("post_run_cell", _save_error)
    _show_whole_frames(shell)
    cards.attach()
    effects, folder = os.environ.get("VMSNIX_SIDE_EFFECTS"), os.environ.get("VMSNIX_RUN_DIR")
    if effects and folder:
        from vmsnix_ops.runbooks.execution import lease, side_effects

        file = os.environ.pop(lease.VARIABLE, "")
        if file:
            _end_with_parent()
        side_effects.install(
            cast("SideEffects", effects),
            os.environ.get("VMSNIX_RUNBOOK", "The notebook"),
            Path(folder),
            Path(file) if file else None,
        )
    _share_secrets()
    if folder:  # files of a run are private; in JupyterLab the user's umask applies
        files.set_shared(os.environ.get("VMSNIX_SHARED") == "true")
        files.set_private_umask()


def _end_with_parent() -> None:
    """Let Linux kill this kernel with its parent: then another process may run the target of the fleet."""
    import ctypes
    import signal

    with suppress(AttributeError):  # not Linux: ipykernel notices within a second
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ.get("JPY_PARENT_PID", os.getppid())):
        os._exit(1)


def _share_secrets() -> None:
    """Send the credentials of this process to the runner before a cell can print them."""
    credentials.watch_botocore()
    remember(*credentials.read_files())
    if descriptor := os.environ.pop("VMSNIX_SECRETS", ""):
        send_secrets(int(descriptor))


def _show_whole_frames(shell: Any) -> None:
    """Show whole texts in frames; pandas cuts them after 50 characters, and so cuts the digest of a name."""

    def as_html(frame: Any) -> Any:
        with _full_width():
            return frame._repr_html_()

    def as_text(frame: Any, printer: Any, _cycle: bool) -> None:
        with _full_width():
            printer.text(repr(frame))

    formatters = shell.display_formatter.formatters
    for module in ("pandas", "pandas.core.frame"):  # the module of DataFrame in pandas 3, and before
        formatters["text/html"].for_type_by_name(module, "DataFrame", as_html)
        formatters["text/plain"].for_type_by_name(module, "DataFrame", as_text)


def _full_width() -> AbstractContextManager[None]:
    import pandas as pd

    return pd.option_context("display.max_colwidth", None)


def _save_error(result: Any) -> None:
    error = result.error_in_exec or result.error_before_exec
    folder = os.environ.get("VMSNIX_RUN_DIR")
    if error is None or folder is None:
        return
    with suppress(OSError):  # the notebook also shows the error
        files.write(Path(folder) / ERROR_FILE, json.dumps(status.describe(error), default=str))
