"""Tell a team that a run without a person failed or ended partial: by an SNS topic, a webhook, or both.

A notice is sent after the evidence was saved. It is tried for `SECONDS` at most, and a failure to send it
does not change the outcome of the run.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from vmsnix_ops import text
from vmsnix_ops.aws.iam.permissions import needs_of
from vmsnix_ops.aws.session import session_of
from vmsnix_ops.aws.topics import publish_message
from vmsnix_ops.endpoints import is_loopback
from vmsnix_ops.errors import VmsnixError
from vmsnix_ops.records.result import is_dry_run, places
from vmsnix_ops.redaction import Redactor, secret_values

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmsnix_ops.settings import Settings

STATUSES = ("failed", "partial")
SECONDS = 15.0  # after which the run does not wait any longer
ATTEMPTS = 3
PAUSE_SECONDS = 1.0  # before the second attempt; twice as long before the third
TIMEOUT_SECONDS = 5.0  # of one request
KEYS = ("run_id", "runbook", "status", "image", "user", "host", "finished_at", "report")


def send(values: Mapping[str, Any], settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Send a notice about a run that failed or ended partial; return the problems as sentences.

    `values` is the content of ``result.json``. The settings name the destinations; `environment` is that of
    the run, for SNS.
    """
    if values.get("status") not in STATUSES:
        return []
    redactor = Redactor(secret_values(environment))
    payload: dict[str, Any] = redactor.value(_payload(values))
    senders: dict[str, Callable[[], None]] = {}
    if settings.notify_topic:
        senders["notify_topic"] = lambda: _publish(settings.notify_topic, payload, environment)
    if settings.notify_webhook:
        senders["notify_webhook"] = lambda: _post(settings.notify_webhook, payload)
    problems: dict[str, str] = dict.fromkeys(senders, f"it took longer than {SECONDS:.0f} s.")

    def attempt(name: str) -> None:
        problems[name] = _with_retries(senders[name])

    # In threads, because a name that cannot be resolved blocks for longer than any timeout of a request.
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(attempt, name), daemon=True)
        for name in senders
    ]
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [
        redactor.text(f"The notice to {name} was not sent: {problem}")
        for name, problem in dict(problems).items()
        if problem
    ]


def notifier_actions() -> tuple[str, ...]:
    """Return the IAM actions for notices by a topic."""
    return needs_of(publish_message)


def _payload(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the notice: a sentence, which chat programs show, and the facts."""
    failure = values.get("failure") or {}
    marks = [
        *(["dry run"] if is_dry_run(values) else []),
        *(["sandbox"] if values.get("endpoint") == "sandbox" else []),
    ]
    what = failure.get("what") or next(iter(values.get("problems") or ()), "")
    head = f"vmsnix {values.get('runbook')} {values.get('status')}" + (
        f" ({', '.join(marks)})" if marks else ""
    )
    return {
        "text": f"{head}: {what}" if what else head,
        **{name: values.get(name) for name in KEYS},
        **places(values),
        "dry_run": is_dry_run(values),
        "sandbox": "sandbox" in marks,
        "what": what,
        "why": failure.get("why") or "",
        "fix": failure.get("fix") or "",
    }


def _with_retries(call: Callable[[], None]) -> str:
    """Call until it works; return why it did not."""
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            call()
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"the server answered {error.code}."
            if error.code < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                return problem
        except VmsnixError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - no error may hide the outcome of the run
            # The text of the error could contain the URL.
            reason = getattr(error, "reason", None)
            problem = f"{type(reason if isinstance(reason, BaseException) else error).__name__}."
        else:
            return ""
    return problem


def _publish(topic: str, payload: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Publish a notice to a topic; botocore repeats the request."""
    message = text.json(payload, indent=1)
    subject = f"vmsnix {payload['runbook']} {payload['status']}"
    publish_message(topic, subject, message, group=str(payload["runbook"]), session=session_of(environment))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: another server would get the notice."""

    def redirect_request(self, *_arguments: Any, **_more: Any) -> None:
        return None


def _post(url: str, payload: Mapping[str, Any]) -> None:
    """Post a notice to a webhook. The setting allows http only for this machine."""
    handlers: list[Any] = [_NoRedirects()]
    if is_loopback(url):
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(  # noqa: S310 - the setting is an https URL
        url,
        json.dumps({**payload, "text": text.chat(payload["text"])}).encode(),
        {"Content-Type": "application/json", "User-Agent": "vmsnix"},
        method="POST",
    )
    urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_SECONDS).close()
