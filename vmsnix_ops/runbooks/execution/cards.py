"""Show in a notebook where its requests are sent, and errors and interrupts as cards.

A card has what happened, why, and what to do; its details are folded: the parts of an AWS error, the ID of
the run, and the traceback. The error output of the cell, which other tools read, has the same text without
the details. JupyterLab and ``report.html`` show only the card; GitHub, nbconvert and terminals show the text
too.

Only errors of this package and interrupts are cards; for all others, such as a ``NameError``, IPython shows
its traceback.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmsnix_ops import endpoints, progress
from vmsnix_ops.errors import InterruptedRunError, VmsnixError
from vmsnix_ops.progress import ENDS, amount
from vmsnix_ops.runbooks.execution import status
from vmsnix_ops.templates import fill
from vmsnix_ops.text import line, lines, plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

ERROR = "application/vnd.vmsnix.error+json"
"""MIME type of the parts of an error, in the output of its card."""
HEAD = "application/vnd.vmsnix.endpoint+json"
"""MIME type of the endpoint, account and region, in the output of the first call."""
ACCOUNT_SECONDS = 2.0  # that the first call waits for the account
CODE, OPERATION, REQUEST_ID = "AWS error code", "AWS operation", "AWS request ID"
NAMES = {"code": CODE, "operation": OPERATION, "request_id": REQUEST_ID}
WORDS = {
    "aws": ("AWS", "#9b1c1c", "Requests reach AWS."),
    "sandbox": ("SANDBOX", "#0b6b53", "No request reaches AWS."),
    "custom": ("CUSTOM ENDPOINT", "#5b3a8c", "Requests are sent to this address."),
}

# The colours are inside the elements, because a saved notebook has no style sheet. White is readable on each
# of them, on a light and on a dark page.
_HEAD = """\
<div class="vmsnix-head" style="border-left:5px solid {{ colour }};padding:4px 12px">
<b style="background:{{ colour }};color:#fff;padding:2px 8px;border-radius:3px">{{ title }}</b>
account <b>{{ account or "unknown" }}</b>, region <b>{{ region or "none set" }}</b>
{%- if url %}, <code>{{ url }}</code>{% endif %}
<br>{{ words }}{% if problem %} {{ problem }}{% endif %}
</div>
"""
# JupyterLab shows the text of the error in the next output; the card has this text too.
_CARD = """\
<style>.jp-OutputArea-child:has(.vmsnix-card) + .jp-OutputArea-child:has(> [data-mime-type$="jupyter.error"],
> [data-mime-type$="jupyter.stderr"]) { display: none }</style>
<div class="vmsnix-card" role="alert"
style="border:1px solid {{ colour }};border-left-width:5px;border-radius:4px;padding:8px 14px">
<p><b style="background:{{ colour }};color:#fff;padding:2px 8px;border-radius:3px">{{ kind }}</b>
<b>{{ what }}</b></p>
{% if why %}<p style="white-space:pre-wrap"><b>Why:</b> {{ why }}</p>{% endif %}
{% if fix %}<p style="white-space:pre-wrap"><b>What to do:</b> {{ fix }}</p>{% endif %}
<details><summary>Details</summary>
<table>{% for name, value in details %}<tr><th style="text-align:left">{{ name }}</th>
<td style="text-align:left"><code>{{ value }}</code></td></tr>{% endfor %}</table>
<pre style="white-space:pre-wrap">{{ traceback }}</pre>
</details></div>
"""


def attach() -> None:
    """Show errors and interrupts of this kernel as cards. Nothing happens outside of a kernel, or again."""
    shell = kernel_shell()
    # A user's own handler is kept.
    if shell is None or shell.custom_exceptions:
        return
    shell.set_custom_exc((VmsnixError, KeyboardInterrupt), show_error)
    shell.events.register("pre_run_cell", _begin_cell)
    shell.events.register("post_run_cell", _end_cell)


def kernel_shell() -> Any:
    """Return the IPython shell of this kernel; ``None`` in a program or on a terminal."""
    if "IPython" not in sys.modules:
        return None
    shell = sys.modules["IPython"].get_ipython()
    return shell if getattr(shell, "kernel", None) is not None else None


def _begin_cell(_info: Any) -> None:
    progress.begin_cell()


def _end_cell(result: Any) -> None:
    if result is not None and not result.success:
        progress.end_cell()


def show_error(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    """Show an error as a card, and send its text as the cell's error; IPython calls this."""
    progress.end_cell()
    parts = describe(error)
    text = _text(parts)
    # IPython uses it for the error that it stores, from which the evidence is made.
    error._render_traceback_ = lambda: text  # type: ignore[attr-defined]
    try:
        trace_text = plain(
            "\n".join(shell.InteractiveTB.structured_traceback(kind, error, trace, tb_offset or 1))
        )
    except Exception:  # noqa: BLE001 - such as source that changed since it was imported
        trace_text = "".join(traceback.format_exception(error))
    details = [(NAMES.get(name, name.replace("_", " ")), value) for name, value in parts["detail"].items()]
    stopped = isinstance(error, KeyboardInterrupt | InterruptedRunError)
    shown = fill(
        _CARD,
        kind="Stopped" if stopped else "Failed",
        colour="#7a4f00" if stopped else "#b3261e",
        what=parts["what"],
        why=parts["why"],
        fix=parts["fix"],
        details=details,
        traceback=trace_text,
    )
    folded = "\n".join([*(f"{name}: {line(value)}" for name, value in details), lines(trace_text)])
    shell.display_pub.publish({"text/html": str(shown), "text/plain": folded, ERROR: parts})
    shell._showtraceback(kind, error, text)
    return text


def describe(error: BaseException) -> dict[str, Any]:
    """Return what happened, why and what to do, and the details of an error or an interrupt."""
    known: dict[str, Any] = status.describe(error)
    detail = {**known.get("detail", {})}
    if run_id := _run_id():
        detail["run"] = run_id
    detail["error"] = known["type"]
    parts = {name: str(known.get(name) or "") for name in ("what", "why", "fix")}
    if not isinstance(error, VmsnixError):
        parts["what"] = "The cell was interrupted."
    if isinstance(error, KeyboardInterrupt | InterruptedRunError):
        parts["why"] = " ".join(filter(None, (parts["why"], _progress_in_words())))
        if progress.in_jupyter() or not parts["fix"]:
            parts["fix"] = "Run this cell again to continue. Completed steps are reused."
    return {**parts, "detail": detail}


def _progress_in_words() -> str:
    """Return which steps of the cell are done and which are not."""
    steps = progress.steps_of_cell()
    if not steps:
        return "No step was running."
    done = ", ".join(event.step for event in steps if event.kind == "finished")
    failed = ", ".join(event.step for event in steps if event.kind == "failed")
    rest = ", ".join(
        f"{event.step} ({amount(event)})" if event.done else event.step
        for event in steps
        if event.kind == "stopped" or event.kind not in ENDS
    )
    words = {"Done": done, "Failed": failed, "Not finished": rest}
    return " ".join(f"{name}: {value}." for name, value in words.items() if value)


def _text(parts: Mapping[str, Any]) -> list[str]:
    red, bold, end = "\x1b[31m", "\x1b[1m", "\x1b[0m"
    text = [f"{red}{bold}{lines(parts['what'])}{end}"]
    text += [f"{bold}Why:{end} {lines(parts['why'])}"] if parts["why"] else []
    return text + ([f"{bold}What to do:{end} {lines(parts['fix'])}"] if parts["fix"] else [])


def _run_id() -> str:
    from vmsnix_ops.records import run_context

    kernel_run = run_context._kernel_run
    return os.environ.get("VMSNIX_RUN_ID") or (kernel_run.run_id if kernel_run is not None else "")


@dataclass
class Where:
    """Where the requests of this kernel are sent, and as whom; unknown values are empty."""

    region: str  # of the parameters, or the default region
    account: str = ""
    problem: str = ""  # why the account is unknown
    kind: endpoints.EndpointKind = field(default_factory=endpoints.endpoint_kind)
    url: str = field(default_factory=endpoints.endpoint_url)

    def html(self) -> str:
        """Return the head of a notebook."""
        title, colour, words = WORDS[self.kind]
        shown = {name: value for name, value in vars(self).items() if name != "kind"}
        return str(fill(_HEAD, title=title, colour=colour, words=words, **shown))

    def __str__(self) -> str:
        title, _, words = WORDS[self.kind]
        place = f"account {self.account or 'unknown'}, region {self.region or 'none set'}"
        return line(" ".join(filter(None, (f"{title}: {place}.", self.url, words, self.problem))))

    def read_account(self, region: str) -> None:
        """Read the account of the credentials in use, and the default region."""
        try:
            self._read(region)
        except VmsnixError as error:
            self.problem = f"The account is unknown: {error.why or error.what}"
        except Exception as error:  # noqa: BLE001 - the first call of a notebook never fails because of its head
            self.problem = f"The account is unknown: {type(error).__name__}."

    def _read(self, region: str) -> None:
        from vmsnix_ops import settings
        from vmsnix_ops.aws import session as sessions
        from vmsnix_ops.region_names import known_regions

        session = sessions.session(settings.load().region)
        default = session.region_name or ""
        self.region = self.region or default
        key = (self.url, *(os.environ.get(name, "") for name in _OF_THE_CALLER))
        if key in _accounts:
            self.account = _accounts[key]
            return
        # botocore would read the code from standard input, in this thread.
        if session._session.get_scoped_config().get("mfa_serial"):
            self.problem = "The account is unknown, because the profile needs an MFA code."
            return
        chosen = next((name for name in (region, default) if name in known_regions()), "us-east-1")
        sts = sessions.client(session, "sts", chosen, attempts=1, read_seconds=ACCOUNT_SECONDS)
        with sessions.calling("read the account"):
            self.account = _accounts[key] = sts.get_caller_identity()["Account"]


_accounts: dict[tuple[str, ...], str] = {}
_OF_THE_CALLER = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN")


def show_head(values: Mapping[str, object]) -> None:
    """Show at the head of a notebook whether it is on AWS or on a sandbox, its account and its region.

    The account is read once in a kernel. The first call waits for it for `ACCOUNT_SECONDS` at most.
    """
    shell = kernel_shell()
    if shell is None:
        return
    where = read_where(values)
    known = {"endpoint": where.kind, "url": where.url, "account": where.account, "region": where.region}
    shell.display_pub.publish({"text/html": where.html(), "text/plain": str(where), HEAD: known})


def read_where(values: Mapping[str, object], seconds: float = ACCOUNT_SECONDS) -> Where:
    """Return where the requests of this process are sent; the parameters have the region or the regions."""
    given = values.get("region") or values.get("regions") or ""
    regions = [str(one) for one in given] if isinstance(given, list | tuple) else [str(given)]
    found = Where(", ".join(filter(None, regions)))
    reader = threading.Thread(target=found.read_account, args=(regions[0],), name="AWS account", daemon=True)
    reader.start()
    reader.join(seconds)
    if reader.is_alive():
        problem = f"The account is unknown, because AWS did not answer in {seconds:g} seconds."
        found = Where(found.region, problem=problem)  # the thread may still change the other
    return found
