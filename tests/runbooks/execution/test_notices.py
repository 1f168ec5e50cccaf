"""A failed or partial run without a person sends a notice, and never waits long for it."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.command_line import run_vmsnix, shelf
from tests.hostile import HOSTILE, assert_safe_lines
from tests.support import DEADLINE, join
from vmsnix_ops.errors import SettingsError
from vmsnix_ops.records.result import where
from vmsnix_ops.redaction import Redactor, remembered
from vmsnix_ops.runbooks.evidence import index
from vmsnix_ops.runbooks.evidence.archive import RunFolder
from vmsnix_ops.runbooks.execution import notices
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.runbooks.shelf import Shelf

__all__ = ["run_vmsnix", "shelf"]
SECRET = "/services/T0123456/B0123456/q8Zr5kfV2mNw"
FAILED = {
    "run_id": "20261130T100000000Z-audit-inventory-28aa5e",
    "runbook": "audit-inventory",
    "status": "failed",
    "failure": {"what": "3 findings with severity high.", "why": "The first: ami-1.", "fix": "Fix them."},
    "report": "s3://acme/archive/objects/1/report.html",
}


@dataclass
class Hook:
    """A server that records what it gets, and answers with these codes, the last one again and again."""

    codes: list[int] = field(default_factory=lambda: [200])
    got: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    wait: threading.Event = field(default_factory=threading.Event)
    slow: bool = False
    url: str = ""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(notices, "PAUSE_SECONDS", 0.01)
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if made.slow:
                made.wait.wait(DEADLINE)
            made.paths.append(self.path)
            made.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(made.codes.pop(0) if len(made.codes) > 1 else made.codes[0])
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        made.url = f"http://127.0.0.1:{server.server_port}{SECRET}"
        yield made
        made.wait.set()
        server.shutdown()
        join(thread)


def send(hook: Hook, tmp_path: Path, **values: Any) -> list[str]:
    settings = load(tmp_path, {"VMSNIX_NOTIFY_WEBHOOK": hook.url})
    return notices.send(FAILED | values, settings, {})


def test_a_webhook_gets_a_sentence_and_the_facts(hook: Hook, tmp_path: Path) -> None:
    assert send(hook, tmp_path, status="partial", dry_run=True) == []
    (got,) = hook.got
    assert got["text"] == "vmsnix audit-inventory partial (dry run): 3 findings with severity high."
    assert (got["status"], got["dry_run"], got["fix"]) == ("partial", True, "Fix them.")
    assert got["report"] == FAILED["report"]
    assert hook.paths == [SECRET]


@pytest.mark.parametrize(
    ("values", "account", "region"),
    [
        ({"account": "012345678901", "region": "eu-west-1"}, "012345678901", "eu-west-1"),
        (where([("2", "eu-west-1"), ("1", "us-east-1"), ("1", "")]), "1, 2", "us-east-1, eu-west-1"),
        ({"account": "1", "regions": ["eu-west-1", "us-east-1"]}, "1", "eu-west-1, us-east-1"),
        ({**where([("1", "eu-west-1")]), "regions": 1, "accounts": 1}, "1", "eu-west-1"),
        ({"parameters": {"regions": ["eu-west-1"], "region": ""}}, "", "eu-west-1"),
        ({}, "", ""),
    ],
)
def test_a_notice_and_the_list_of_runs_have_account_and_region(
    hook: Hook, tmp_path: Path, values: dict[str, Any], account: str, region: str
) -> None:
    send(hook, tmp_path, **values)
    assert (hook.got[0]["account"], hook.got[0]["region"]) == (account, region)
    folder = tmp_path / str(FAILED["run_id"])
    folder.mkdir()
    index.add(RunFolder(folder.name, folder, "", {}), FAILED | values)
    (row,) = json.loads((tmp_path / "index.json").read_text())["runs"].values()
    assert (row.get("account", ""), row.get("region", "")) == (account, region)


@pytest.mark.parametrize("status", ["done", "cancelled", "running"])
def test_only_failed_and_partial_runs_send_one(hook: Hook, tmp_path: Path, status: str) -> None:
    assert send(hook, tmp_path, status=status) == []
    assert hook.got == []


def test_a_notice_has_no_secrets(hook: Hook, tmp_path: Path) -> None:
    key = "AKIAABCDEFGHIJKLMNOP"
    send(hook, tmp_path, failure={"what": f"{key} and {hook.url}"})
    text = json.dumps(hook.got)
    assert key not in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("codes", "requests", "problem"),
    [
        ([503, 429, 200], 3, ""),
        ([500], 3, "the server answered 500"),
        ([404], 1, "the server answered 404"),
        ([302], 1, "the server answered 302"),
    ],
)
def test_a_webhook_is_tried_again_and_no_redirect_is_followed(
    hook: Hook, tmp_path: Path, codes: list[int], requests: int, problem: str
) -> None:
    hook.codes = codes
    problems = send(hook, tmp_path)
    assert hook.paths == [SECRET] * requests
    assert problems == ([f"The notice to notify_webhook was not sent: {problem}."] if problem else [])


def test_a_server_that_does_not_answer_is_not_waited_for(
    hook: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SECONDS", 0.3)
    hook.slow = True
    (problem,) = send(hook, tmp_path)
    assert hook.got == []  # it has not answered yet
    assert "it took longer than" in problem


def test_a_refused_connection_is_a_problem_without_the_url(tmp_path: Path, hook: Hook) -> None:
    settings = load(tmp_path, {"VMSNIX_NOTIFY_WEBHOOK": f"http://127.0.0.1:9{SECRET}"})
    (problem,) = notices.send(FAILED, settings, {})
    assert problem == "The notice to notify_webhook was not sent: ConnectionRefusedError."


def test_the_webhook_is_a_secret(tmp_path: Path) -> None:
    url = "https://hooks.example.com/services/T99/B99/abcdefghijkl"
    (tmp_path / "vmsnix.toml").write_text(f'notify_webhook = "{url}"\n')
    settings = load(tmp_path, {})
    assert settings.notify_webhook == url
    assert url not in repr(settings)
    assert url in remembered()
    assert "abcdefghijkl" not in Redactor().text(f"see {url}")
    for wrong in ("http://hooks.example.com/abcdefgh", "ftp://hooks.example.com/abcdefgh", "abcdefgh"):
        with pytest.raises(SettingsError, match="not an https URL") as caught:
            load(tmp_path, {"VMSNIX_NOTIFY_WEBHOOK": wrong})
        (tmp_path / "vmsnix.toml").write_text(f'notify_webhook = "{wrong}"\n')
        with pytest.raises(SettingsError, match="not an https URL") as again:
            load(tmp_path, {})
        assert "abcdefgh" not in f"{caught.value} {again.value}"


@pytest.mark.parametrize("word", [*HOSTILE, "<!channel> <https://evil.example|log> &lt;"])
def test_a_chat_gets_hostile_text_as_text(hook: Hook, tmp_path: Path, word: str) -> None:
    assert send(hook, tmp_path, failure={"what": word}) == []
    (got,) = hook.got
    assert_safe_lines(got["text"])
    assert not re.search(r"[<>\n]|&(?!amp;|lt;|gt;)", got["text"])


def test_a_topic_gets_hostile_text_as_text(tmp_path: Path) -> None:
    with sandbox(speed=1000) as aws:
        topic = aws.client("sns").create_topic(Name="alarms")["TopicArn"]
        settings = load(tmp_path, {"VMSNIX_NOTIFY_TOPIC": topic})
        words = "".join(word for word in HOSTILE if word != "\ud800")
        assert notices.send(FAILED | {"failure": {"what": words}}, settings, aws.environment) == []
        (topics,) = aws.state.tables.of_kind("topics").values()
        (message,) = topics[topic].messages
        assert_safe_lines(message.text)
        assert json.loads(message.text)["what"] == words


def test_a_topic_gets_the_notice(tmp_path: Path) -> None:
    with sandbox(speed=1000) as aws:
        topic = aws.client("sns").create_topic(Name="alarms")["TopicArn"]
        settings = load(tmp_path, {"VMSNIX_NOTIFY_TOPIC": topic})
        assert notices.send(FAILED, settings, aws.environment) == []
        assert notices.send(FAILED | {"status": "done"}, settings, aws.environment) == []
        (topics,) = aws.state.tables.of_kind("topics").values()
        (message,) = topics[topic].messages
        assert message.subject == "vmsnix audit-inventory failed"
        assert json.loads(message.text)["run_id"] == FAILED["run_id"]
        aws.client("sns").delete_topic(TopicArn=topic)
        (problem,) = notices.send(FAILED, settings, aws.environment)
        assert "The notice to notify_topic was not sent" in problem
    with pytest.raises(SettingsError, match="not an SNS topic ARN"):
        load(tmp_path, {"VMSNIX_NOTIFY_TOPIC": "alarms"})


def test_a_failed_run_of_the_command_sends_one_and_keeps_its_exit_code(
    shelf: Shelf,
    run_vmsnix: Callable[..., tuple[int, str, str]],
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf.put("10-fail-well.ipynb", "1 / 0")
    monkeypatch.setenv("VMSNIX_NOTIFY_WEBHOOK", hook.url)
    hook.codes = [200, 404]
    assert run_vmsnix("run", "fail-well")[0] == 1
    (got,) = hook.got
    assert (got["runbook"], got["status"]) == ("fail-well", "failed")
    code, out, err = run_vmsnix("run", "fail-well")
    assert code == 1
    assert "The notice to notify_webhook was not sent: the server answered 404." in err
    assert SECRET not in out + err
    for file in shelf.archive.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run_vmsnix("run", "fail-well")[0] == 1
    assert len(hook.got) == 2
