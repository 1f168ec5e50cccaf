"""Secrets are found by their format and in the environment; nothing else is removed."""

from __future__ import annotations

import json
import os
import resource
import socket
from contextlib import ExitStack, closing

import nbformat
import pytest

from tests.support import wait_until
from vmsnix_ops.redaction import LineRedactor, Redactor, find_secret, remembered, secret_values
from vmsnix_ops.runbooks.execution._secrets import SecretReceiver

# Built from parts, so that a scanner for secrets does not report this file.
KEY = "A" * 40
HEX = "0123456789abcdef" * 4
PRIVATE = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA " + "PRIVATE KEY-----"
SECRETS = {
    "access key": ("AKIA" + "ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"),
    "temporary access key": ("key ASIA" + "ABCDEFGHIJKLMN77 used", "ABCDEFGHIJKLMN77"),
    "secret key in a shell": (f"export AWS_SECRET_ACCESS_KEY={KEY}", KEY),
    "secret key in JSON": (f'{{"SecretAccessKey": "{KEY}"}}', KEY),
    "secret key in a repr": (f"{{'aws_secret_access_key': '{KEY}'}}", KEY),
    "session token": (f"aws_session_token = {KEY}{KEY}", KEY),
    "session token by its beginning": ("IQoJb3JpZ2lu" + "X" * 60, "X" * 60),
    "presigned URL": (f"https://b.s3.amazonaws.com/k?X-Amz-Expires=60&X-Amz-Signature={HEX}", HEX),
    "presigned URL's token": ("https://b/k?X-Amz-Security-Token=IQoJ%2F" + "a" * 40 + "&x=1", "a" * 40),
    "old presigned URL": ("https://b/k?AWSAccessKeyId=x&Signature=abcdefghijklmnopqrst%3D", "ghijklmnop"),
    "private key": (f"before {PRIVATE} after", "MIIEow"),
    "cut private key": (PRIVATE[:50], "MIIEow"),
    "bearer": ("Authorization: Bearer " + "abcdefghijklmnop.qrs", "ghijklmnop"),
    "password in a URL": ("https://me:" + "hunter22@example.org/", "hunter22"),
    "GitHub token": ("ghs_" + "a1" * 20, "a1a1"),
    "web token": ("eyJ" + "hbGciOiJIUzI1" + ".eyJ" + "zdWIiOiIxMjM0" + "." + "abcdefghijkl", "zdWIiOiIxMjM0"),
    "Nix signing key": ("cache.example.org-1:" + "a" * 86 + "==", "a" * 86),
}
HARMLESS = [
    "ami-0123456789abcdef0 snap-0123456789abcdef0",
    "altf4llc-ecs-node-26.11-x86_64-linux-0123abcd",
    f"sha256 {HEX}",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",  # a git revision is 40 characters, too
    "/nix/store/0c1z1qg9s0fjg5ya3k3yj7hqv0pnc1bc-image",
    "arn:aws:iam::012345678901:role/vmimport",
    "https://example.org/path?x=1",
    "-----BEGIN CERTIFICATE-----",
    "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",  # a public key
]


@pytest.mark.parametrize("case", SECRETS)
def test_a_secret_is_found_and_removed(case: str) -> None:
    text, core = SECRETS[case]
    assert find_secret(text)
    redactor = Redactor()
    redacted = redactor.text(text)
    assert core not in redacted
    assert "[secret removed: " in redacted
    assert sum(redactor.found.values()) >= 1


@pytest.mark.parametrize("case", SECRETS)
def test_redacting_a_redacted_text_changes_nothing(case: str) -> None:
    once = Redactor().text(SECRETS[case][0])
    again = Redactor()
    assert again.text(once) == once
    assert again.found == {}


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_words_are_not_redacted(text: str) -> None:
    assert find_secret(text) == ""
    assert Redactor().text(text) == text


def test_the_text_around_a_secret_is_kept() -> None:
    text = Redactor().text(f"https://b/k?X-Amz-Date=now&X-Amz-Signature={HEX}&x=1")
    assert text.startswith("https://b/k?X-Amz-Date=now&X-Amz-Signature=[secret removed")
    assert text.endswith("&x=1")


def test_secret_values_are_read_from_the_environment() -> None:
    environment = {
        "GITHUB_TOKEN": "a-value-without-any-shape",
        "AWS_SECRET_ACCESS_KEY": "b" * 20,
        "DB_PASSWORD": "short",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token-file",
        "HOME": "/home/somebody-with-a-name",
    }
    assert set(secret_values(environment)) == {"a-value-without-any-shape", "b" * 20}  # 5 letters are a word
    assert "without-any" not in Redactor(secret_values(environment)).text("x a-value-without-any-shape y")


def test_a_notebook_is_cleaned_everywhere_and_in_its_pictures() -> None:
    secret, core = SECRETS["access key"]
    cell = nbformat.v4.new_code_cell(f"print('{secret}')")
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=secret),
        nbformat.v4.new_output("display_data", {"text/html": f"<b>{secret}</b>", "image/png": secret}),
        nbformat.v4.new_output("display_data", {"application/json": {"deep": [{"er": secret}]}}),
        nbformat.v4.new_output("error", ename="E", evalue=secret, traceback=["a", secret]),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"parameters": {"x": secret}}})
    Redactor().notebook(notebook)
    text = nbformat.writes(notebook)
    assert core not in text
    nbformat.validate(notebook)


def test_lists_are_returned_as_lists() -> None:
    values = {"regions": ["eu-west-1"], "none": [], "two": ["a", "b"], "deep": [{"x": ["y"]}]}
    assert Redactor().value(values) == values


def test_a_secret_that_arrives_in_pieces_is_found() -> None:
    lines = LineRedactor(Redactor())
    secret = SECRETS["access key"][0]
    shown = [lines.feed("key " + secret[:7]), lines.feed(secret[7:] + "\nnext"), lines.flush()]
    assert shown == ["", "key [secret removed: AWS access key]\n", "next"]


def test_a_private_key_that_arrives_line_by_line_is_not_shown() -> None:
    lines = LineRedactor(Redactor())
    shown = "".join(lines.feed(line + "\n") for line in f"before\n{PRIVATE}\nafter".split("\n"))
    assert "MIIEow" not in shown
    assert "IBAAK" not in shown
    assert shown.startswith("before\n")
    assert shown.endswith("after\n")


def test_long_lines_are_searched_in_linear_time() -> None:
    for piece in ("y", "a1", "://a", "=", "secret_key ", "eyJaaaaaaaaaa."):
        Redactor().text(piece * (2_000_000 // len(piece)))


def test_a_process_with_a_thousand_open_files_receives_the_credentials_of_a_kernel() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 1200:
        pytest.skip("this machine allows fewer than 1,200 open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1200), hard))
    try:
        with ExitStack() as files:
            for _ in range(1030):
                files.enter_context(open(os.devnull))  # noqa: PTH123
            receiver = files.enter_context(closing(SecretReceiver()))
            kernel = files.enter_context(socket.socket(fileno=os.dup(receiver.descriptor)))
            for value in ("the first secret of a kernel", "the second secret of a kernel"):
                kernel.send(json.dumps([value]).encode())
                wait_until(lambda value=value: value in remembered(), "the secret")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
