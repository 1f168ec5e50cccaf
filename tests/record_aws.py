"""Record responses of AWS without secrets, and compare the sandbox with them.

Some texts and fields of the sandbox can be checked only with AWS itself. Record a command in a real account,
run the same command on a sandbox, and compare the two folders:

    python -m tests.record_aws run recording-aws vmsnix publish --image ./result
    python -m tests.record_aws run recording-sandbox vmsnix publish --image ./result --sandbox
    python -m tests.record_aws compare recording-aws recording-sandbox

Every response that botocore parses becomes a file; equal responses share one. `run` registers this module as
a client plugin of botocore (BOTOCORE_EXPERIMENTAL__PLUGINS), so it records every process without code in the
package.

Secrets that `vmsnix_ops.redaction` finds, tokens, request IDs, and IDs of users and of S3's owners are
removed; account IDs are replaced. Names of buckets, users and tags are kept: read a recording before you
share it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from vmsnix_ops.redaction import Redactor, secret_values
from vmsnix_ops.text import line, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parent.parent
VARIABLE = "RECORD_AWS_FOLDER"
_MASKED_HEADERS = re.compile(
    r"date|etag|set-cookie|x-amz(n|-cf)?-?(id-2|id|request-?id|trace-id)", re.IGNORECASE
)
_REMOVED = (  # names of elements and keys
    r"AccessKeyId|SecretAccessKey|SessionToken|UserId|RequestI[dD]|HostId|OwnerDisplayName|DisplayName"
    r"|NextToken|Next\w*Marker|\w*ContinuationToken|BlockToken|PaginationToken|EncodedAuthorizationMessage"
)
_VALUES = (
    re.compile(rf"(?i:(<({_REMOVED})>))[^<]+(?=</)"),
    re.compile(rf"(?i:(\"({_REMOVED})\"\s*:\s*\"))[^\"]+"),
)
_OWNER = re.compile(r"(<ID>)[0-9a-f]{64}(?=</ID>)")
_ENCODED = re.compile(r"(failure message: )\S+")
_UNIQUE = re.compile(r"\b(?:AIDA|AROA|AGPA|ANPA|ASCA|AIPA)[A-Z0-9]{12,}\b")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")
_ACCOUNT = re.compile(r"(?<![0-9A-Za-z.])[0-9]{12}(?![0-9A-Za-z])")
MASK = "REMOVED"
LONGEST_SECONDS = 24 * 3600  # time limit of the recorded command


def initialize_client_plugin(client: Any) -> None:
    """Record every response to a client; botocore calls this for each client that it makes.

    A response that cannot be written is not recorded; the command continues.
    """
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        return
    clean = Cleaner()

    def before_parse(operation_model: Any, response_dict: Mapping[str, Any], **_more: Any) -> None:
        answer = clean.answer(operation_model.service_model.service_name, operation_model.name, response_dict)
        text = json.dumps(answer, indent=1, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        name = f"{answer['service']}.{answer['operation']}.{answer['status']}.{digest}.json"
        with suppress(OSError):
            (Path(folder) / name).write_text(text + "\n", encoding="utf-8")

    client.meta.events.register("before-parse", before_parse)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables that make a process record into a folder."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        VARIABLE: str(folder.absolute()),
        "BOTOCORE_EXPERIMENTAL__PLUGINS": f"vmsnix_record={__spec__.name if __spec__ else __name__}",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def run(folder: Path, command: list[str]) -> int:
    """Run a command and record the responses; return its exit code, or 1 if nothing was recorded."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        write(sys.stderr, f"Cannot record into {folder}: {error.strerror}. Name another folder.\n")
        return 2
    before = set(folder.glob("*.json"))
    given = {**os.environ, **environment(folder)}
    code = subprocess.run(command, env=given, check=False, timeout=LONGEST_SECONDS).returncode
    count = len(set(folder.glob("*.json")) - before)
    write(sys.stderr, f"{count} new responses in {folder}.\n")
    return code or int(not any(folder.glob("*.json")))


class Cleaner:
    """Remove secrets; an account ID gets the same replacement everywhere."""

    def __init__(self) -> None:
        self._secrets = Redactor(secret_values())
        self._accounts: dict[str, str] = {}

    def answer(self, service: str, operation: str, response: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is recorded: ``service``, ``operation``, ``status``, ``headers``, ``body``.

        A streamed body (an object, a block) is not recorded.
        """
        body = response["body"]
        content = body.decode("utf-8", "replace") if isinstance(body, bytes) else None
        headers = {
            str(name).lower(): MASK if _MASKED_HEADERS.fullmatch(str(name)) else self.text(str(value))
            for name, value in response["headers"].items()
        }
        return {
            "service": service,
            "operation": operation,
            "status": int(response["status_code"]),
            "headers": headers,
            "body": None if content is None else self.text(content),
        }

    def text(self, text: str) -> str:
        """Return the text without secrets."""
        for shape in (*_VALUES, _OWNER, _ENCODED):
            text = shape.sub(rf"\g<1>{MASK}", text)
        text = self._secrets.text(text)
        for shape in (_UNIQUE, _UUID):
            text = shape.sub(MASK, text)
        return _ACCOUNT.sub(self._account, text)

    def _account(self, found: re.Match[str]) -> str:
        return self._accounts.setdefault(found[0], f"{len(self._accounts):012d}")


def differences(real: Path, ours: Path) -> list[str]:
    """Return the differences between two recordings, for each kind of response that both have.

    A kind is an operation with a status and an error code. Names of headers, elements or keys of the body,
    and texts of errors are compared; values of successful responses are not.
    """
    left, right = _kinds(real), _kinds(ours)
    found = []
    for kind in sorted(left.keys() & right.keys()):
        for only, here, there in (("the first", left, right), ("the second", right, left)):
            found += [f"{kind}: only {only} has {fact}" for fact in sorted(here[kind] - there[kind])]
    return found


def _kinds(folder: Path) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.json")):
        answer = json.loads(path.read_text(encoding="utf-8"))
        facts = dict(_facts(answer))
        code = next(
            (text for name, text in facts.items() if text and name.split("/")[-1].lower() == "code"), ""
        )
        kind = f"{answer['service']} {answer['operation']} {answer['status']} {code}".strip()
        failed = answer["status"] >= 300
        shown = {
            f"{name} = {text!r}" if failed and _is_error_text(name) else name for name, text in facts.items()
        }
        kinds.setdefault(kind, set()).update(shown | {f"header {name}" for name in answer["headers"]})
    return kinds


def _is_error_text(name: str) -> bool:
    return name.split("/")[-1].lower() in ("code", "message", "reason", "__type")


def _facts(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the path of each element or key of a body, with its text; a list counts as one element."""
    body = (answer["body"] or "").strip()
    if body.startswith("<"):
        yield from _elements(ET.fromstring(body), "")
    elif body.startswith(("{", "[")):
        yield from _members(json.loads(body), "")


def _elements(element: ET.Element, above: str) -> Iterator[tuple[str, str]]:
    path = f"{above}/{element.tag.rpartition('}')[2]}"
    yield path, (element.text or "").strip()
    for child in element:
        yield from _elements(child, path)


def _members(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _members(item, f"{path}/{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _members(item, path)
    else:
        yield path, str(value)


def compare(real: Path, ours: Path) -> int:
    """Print the differences between two recordings; return 1 if there are any."""
    found = differences(real, ours)
    write(
        sys.stdout,
        "".join(f"{line(one)}\n" for one in found) or "No differences in the responses that both have.\n",
    )
    return 1 if found else 0


def main(arguments: list[str] | None = None) -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(
        prog="tests.record_aws", description="Record responses of AWS, and compare recordings."
    )
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("run", help="run a command and record the responses of AWS")
    recording.add_argument("folder", type=Path)
    recording.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND ...")
    comparing = commands.add_parser("compare", help="print the differences between two recordings")
    comparing.add_argument("real", type=Path)
    comparing.add_argument("ours", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "compare":
        return compare(given.real, given.ours)
    if not given.words:
        recording.error("name the command to run")
    return run(given.folder, given.words)


if __name__ == "__main__":
    sys.exit(main())
