"""Loaded into the kernels that we start: keeps the parts of the error that ended a run.

The error that a kernel sends over is text. The classes of `vmsnix_ops.errors` carry more (why, cure, exit
code, AWS's request id), and the runner needs that to say one clear thing. IPython loads this module as an
extension.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ERROR_FILE = ".error.json"
PARTS = ("code", "operation", "request_id", "status_message", "offset", "field", "derivation", "log")


def load_ipython_extension(shell: Any) -> None:
    """Keep the error of every cell from now on."""
    shell.events.register("post_run_cell", _keep_error)


def _keep_error(result: Any) -> None:
    error = result.error_in_exec or result.error_before_exec
    folder = os.environ.get("VMSNIX_RUN_DIR")
    if error is None or folder is None:
        return
    path = Path(folder) / ERROR_FILE
    path.write_text(json.dumps(describe(error), default=str), encoding="utf-8")


def describe(error: BaseException) -> dict[str, object]:
    """Return the parts of an error: those of `VmsnixError`, or its class and text."""
    from vmsnix_ops.errors import VmsnixError

    described: dict[str, object] = {"type": type(error).__name__}
    if isinstance(error, VmsnixError):
        described |= {"what": error.what, "why": error.why, "cure": error.cure, "exit_code": error.exit_code}
        described["detail"] = {part: getattr(error, part) for part in PARTS if getattr(error, part, None)}
    return described
