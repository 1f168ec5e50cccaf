"""Secrets are found in every notation, and other texts are never redacted."""

from __future__ import annotations

import base64
import bz2
import gzip
import html
import io
import json
import lzma
import os
import random
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnix_ops import redaction
from vmsnix_ops.redaction import LineRedactor, Redactor, find_secret, secret_values

VALUE = "Zq7/hunter+Xk29=pL"  # a secret of the environment, which no pattern matches
SHORT = "hunter22x"
KEY = "A1/b" * 10
ACCESS = "AKIA" + "ABCDEFGHIJKLMNOP"
ENVIRONMENT = {"SERVICE_TOKEN": VALUE, "DB_PASSWORD": SHORT}


def redactor(**environment: str) -> Redactor:
    return Redactor(secret_values(environment or ENVIRONMENT))


COLOURED = {
    "the traceback of IPython": f"\x1b[38;5;28maws_secret_access_key\x1b[39m=\x1b[33m'{KEY}'\x1b[39m)",
    "colours inside of the value": "aws_secret_access_key=" + "\x1b[1m".join((KEY[:9], KEY[9:20], KEY[20:])),
    "a title in between": f"secret_access_key\x1b]0;title\x07 = {KEY}",
    "a hyperlink around it": f"secret_key=\x1b]8;;https://a/b\x1b\\{KEY}\x1b]8;;\x1b\\",
    "a hyperlink to it": f"\x1b]8;;https://b/k?X-Amz-Signature={'0a' * 32}\x1b\\here\x1b]8;;\x1b\\",
    "struck over": "secret_key=" + "".join(f"{letter}\b{letter}" for letter in KEY),
    "spans": f'<span class="n">aws_secret_access_key</span><span class="o">=</span><span>{KEY}</span>',
    "a span inside of the value": f"<b>secret_key</b>: {KEY[:5]}<span>{KEY[5:]}</span>",
    "entities": f"aws_secret_access_key&#x3D;&quot;{KEY.replace('/', '&#x2F;')}&quot;",
    "a table": f"<tr><td>AWS_SECRET_ACCESS_KEY</td><td>{KEY}</td></tr>",
    "a printed table": f"AWS_SECRET_ACCESS_KEY   {KEY}",
    "JSON with escaped slashes": json.dumps({"SecretAccessKey": KEY}).replace("/", r"\/"),
    "JSON in JSON in HTML": html.escape(json.dumps(json.dumps({"SecretAccessKey": KEY.replace("/", "/")}))),
    "unicode escapes": "secret_key\\u003d" + KEY.replace("/", "\\u002f"),
    "a query": "secret_access_key%3D" + quote(KEY, safe=""),
    "zero-width spaces": "secret_key=" + "\u200b".join(KEY),
}


@pytest.mark.parametrize("case", COLOURED)
def test_colours_markup_and_escapes_do_not_hide_a_secret(case: str) -> None:
    text = COLOURED[case]
    clean = Redactor().text(f"before {text} after")
    assert find_secret(text)
    assert "[secret removed" in clean
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    for part in (KEY[:5], KEY[-12:], "0a0a0a"):
        assert part not in clean


def in_lines(content: bytes, width: int, end: str) -> str:
    text = base64.b64encode(content).decode()
    return end.join(text[start : start + width] for start in range(0, len(text), width))


FORMS = {
    "itself": VALUE,
    "in lines of colour": "".join(f"\x1b[3{n % 8}m{letter}\x1b[0m" for n, letter in enumerate(VALUE)),
    "a URL": quote(VALUE, safe=""),
    "a URL in lower case": quote(VALUE, safe="").lower(),
    "JSON": json.dumps(VALUE),
    "JSON with escaped slashes": json.dumps(VALUE).replace("/", r"\/"),
    "HTML": html.escape(VALUE),
    "hexadecimal": VALUE.encode().hex(),
    **{
        f"base64 after {len(before)} bytes, {name}": encode(before + VALUE.encode() + b" and more").decode()
        for before in (b"", b"u", b"u:", b"us:")
        for name, encode in (("standard", base64.b64encode), ("for URLs", base64.urlsafe_b64encode))
    },
    "base64 in a URL": quote(base64.b64encode(f"user:{VALUE}".encode()).decode(), safe=""),
    "base64 in lines": base64.encodebytes(b"x" * 50 + VALUE.encode() + b"x" * 90).decode(),
    **{
        f"base64 in lines of {width} that end in {end!r}": in_lines(b"x" * 40 + VALUE.encode(), width, end)
        for width in (8, 16, 64)
        for end in ("\n", "\r\n", "\n      ")
    },
    "base64 in base64": base64.b64encode(base64.b64encode(b"user:" + VALUE.encode())).decode(),
    "user data": base64.b64encode(gzip.compress(b"#!/bin/sh\n" + VALUE.encode())).decode(),
    "the command of PowerShell": base64.b64encode(f"'{VALUE}'".encode("utf-16-le")).decode(),
    "hexadecimal with colons": VALUE.encode().hex(":"),
    "hexadecimal with spaces": VALUE.encode().hex(" ").upper(),
    "octal escapes": "".join(f"\\{byte:03o}" for byte in VALUE.encode()),
    "long unicode escapes": "".join(f"\\U{ord(letter):08x}" for letter in VALUE),
    "entities without an end": "".join(f"&#{ord(letter)}" for letter in VALUE),
    "escapes of Markdown": VALUE.replace("+", r"\+").replace("=", r"\="),
    "variants of letters": "\ufe0f".join(VALUE),
    "directions of writing": "\u2066".join(VALUE),
    "two lines of a frame": f"\u2502 {VALUE[:7]} \u2502\n\u2502 {VALUE[7:]} \u2502",
    "a table that cuts it short": f"{VALUE[:12]}...",
    "the end of a text that was cut": f"\u2026{VALUE[-12:]}",
}


@pytest.mark.parametrize("case", FORMS)
def test_a_known_secret_is_found_in_every_form(case: str) -> None:
    text = FORMS[case]
    clean = redactor().text(f"before {text} after")
    assert "[secret removed" in clean
    assert VALUE not in clean
    for word in clean.replace("[secret removed: secret of the environment]", " ").split():
        if len(word) > 7:
            assert word not in VALUE
    clean = clean.replace("[secret removed: secret of the environment]", " ")
    for run in re.findall(r"[A-Za-z0-9+/]{8,}", clean.translate(str.maketrans("-_", "+/"))):
        for shift in range(4):  # no decodable part is left
            kept = base64.b64decode(run[shift:] + "A" * (-len(run[shift:]) % 4))
            assert VALUE[:8].encode() not in kept


SECRET_VARIABLES = {
    "X_PASS": "/not/there/at-all",
    "X_PASSWORD": "12ab45cd",
    "ENCRYPTION_KEY": "0123456789abcdef" * 4,
    "KEY": "k" * 9,
    "CLOUD_CREDENTIALS": "user=a;pw=b",
    "BASIC_AUTH": "user:pass",
    "SLACK_WEBHOOK_URL": "https://hooks.example/T0/B0/xyz",
    "MYSQL_PWD": "letmein99",
    "SSHPASS": "opensesame",
    "GH_PAT": "pat-abcdefgh",
    "GPG_PASSPHRASE": "correct horse",
    "lower_case_token": "abcdefgh",
}
HARMLESS_VARIABLES = {
    "A_TOKEN": "true",
    "B_TOKEN": "disabled",
    "C_KEY": "1234567890",
    "D_KEY": "12,345,678.25",
    "E_PASS": "eu-central-1",
    "F_KEY": "us-gov-west-1",
    "G_AUTH": "012345678901",
    "H_CREDENTIALS": os.getcwd(),  # noqa: PTH109
    "I_KEY": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIabcdefghijklmnopqrst me@here",
    "J_KEY": "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
    "K_KEY": "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYI\n-----END PUBLIC KEY-----",
    "L_SECRET": "arn:aws:secretsmanager:us-east-1:012345678901:secret:name-AbCdEf",
    "M_KEY": "ami-0123456789abcdef0",
    "N_PASSWORD": "short",
    "O_TOKEN_FILE": "/var/run/secrets/token-file",
    "P_PUBLIC_KEY": "anything-at-all",
    "Q_PASS": "2026-11-28T10:00:00Z",
    "KEYBOARD": "not-a-secret",
    "AUTHOR": "somebody",
    "PASSAGE": "not-a-secret",
}


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_a_variable_with_a_secret_name_is_secret(name: str) -> None:
    value = SECRET_VARIABLES[name]
    assert secret_values({name: value}) == (value,)
    assert value not in Redactor(secret_values({name: value})).text(f"it is '{value}'.")


@pytest.mark.parametrize("name", HARMLESS_VARIABLES)
def test_a_harmless_value_is_not_secret(name: str) -> None:
    assert secret_values({name: HARMLESS_VARIABLES[name]}) == ()


@pytest.mark.parametrize(
    "name",
    [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "SECRET_PATH",
        "TOKEN_DIR",
        "CREDENTIALS_DIRECTORY",
        "API_KEY_HOME",
        "SECRETS_ROOT",
        "AUTH_TOKEN_SOCK",
        "ACTIONS_ID_TOKEN_REQUEST_URL",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "TOKEN_ISSUER_ARN",
        "DB_SECRET_NAME",
        "TOKEN_ENDPOINT",
        "SECRETS_REGION",
        "AWS_CREDENTIAL_EXPIRATION",
        "PUBLIC_KEY",
        "token_file",
    ],
)
def test_the_path_of_a_secret_is_not_secret(name: str) -> None:
    value = "not/there:whatever-it-says"
    assert secret_values({name: value}) == ()
    assert secret_values({name.upper() + "_TOKEN": value}) == (() if name == "PUBLIC_KEY" else (value,)), (
        "a word in the middle of a name does not count, except PUBLIC"
    )


def test_the_parts_of_a_secret_are_secret() -> None:
    private = (
        "-----BEGIN " + "PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END " + "PRIVATE KEY-----"
    )
    account = json.dumps(
        {"type": "service_account", "private_key": private, "deep": {"client_secret": "s3cr3t-abc"}}
    )
    known = secret_values({"GCP_CREDENTIALS": account, "DEPLOY_KEY": private})
    clean = Redactor(known).text("a s3cr3t-abc b MIIEvQIBADANBgkqhkiG9w0BAQEFAASC c service_account")
    assert clean.count("[secret removed") == 2
    assert "service_account" in clean


ARN = "arn:aws:iam::012345678901:role/vmimport"
SURVIVORS = [
    "ami-0123456789abcdef0",
    "snap-0fedcba9876543210 vol-ffffffff import-snap-0123456789abcdef0",
    ARN,
    "arn:aws:ssm:eu-central-1:012345678901:parameter/vmsnix/ecs-node/stable",
    "012345678901",
    "1,234,567 blocks, 42 AMIs, 99.5 %",
    "20261128T183600238Z-publish-ami-0a1b2c",
    "eu-central-1",
    str(Path.cwd()),
    "sha256 " + "0123456789abcdef" * 4,
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
]
PARTS = sorted({part for text in SURVIVORS[:9] for part in text.replace(",", " ").split()})
NAMES = st.sampled_from(
    ["X_TOKEN", "Y_PASS", "Z_KEY", "A_AUTH", "B_WEBHOOK", "C_CREDENTIALS", "SECRET", "D_PASSWORD"]
)


def pieces() -> Any:
    """Return possible values of a variable: any text, our output, and any part of it."""
    part = st.builds(
        lambda text, start, size: text[start : start + size],
        st.sampled_from(["".join(PARTS), "0123456789abcdef" * 4, "da39a3ee5e6b4b0d3255bfef95601890afd80709"]),
        st.integers(0, 150),
        st.integers(0, 15),
    )
    return st.text(max_size=40) | st.sampled_from(PARTS) | part.filter(lambda text: text.isalnum())


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(NAMES, pieces(), max_size=5))
def test_ids_arns_counts_paths_and_digests_are_never_redacted(environment: dict[str, str]) -> None:
    clean = Redactor(secret_values(environment))
    for text in SURVIVORS:
        assert clean.text(text) == text
        assert clean.text(f'{{"value": "{text}", "n": 1}}') == f'{{"value": "{text}", "n": 1}}'


@pytest.mark.parametrize(
    "value",
    [
        "1234abcd-12ab-34cd-56ef-1234567890ab",
        "my-company-images-eu",
        "VmsnixPublisherRole",
        "vmsnix/ecs-node/stable",
    ],
)
def test_a_name_in_an_arn_or_a_path_is_never_redacted(value: str, tmp_path: Path) -> None:
    clean = redactor(KMS_KEY=value)
    (tmp_path / value).mkdir(parents=True)
    for text in (f"arn:aws:kms:us-east-1:012345678901:key/{value}", f"{tmp_path / value}/result.json"):
        assert clean.text(text) == text
    assert value not in clean.text(f"KMS_KEY={value}")


@pytest.mark.parametrize("value", [SHORT, VALUE.replace("/", "_")])
def test_a_secret_file_name_is_redacted(value: str, tmp_path: Path) -> None:
    (tmp_path / f"a-{value}").touch()
    assert value not in redactor(X_PASSWORD=value).text(f"wrote {tmp_path}/a-{value} (1 byte)")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=30), max_size=6), st.integers(0, 5))
def test_chunks_of_a_stream_are_redacted_as_one_text(texts: list[str], at: int) -> None:
    cut = len(VALUE) * at // 6
    chunks = [*texts[:at], VALUE[:cut], VALUE[cut:], *texts[at:]]
    clean = redactor().pieces(chunks)
    assert len(clean) == len(chunks)
    assert VALUE not in "".join(clean)


def png(*chunks: tuple[bytes, bytes]) -> str:
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )
    return base64.b64encode(whole).decode()


PICTURES = {
    "a text of a PNG": png((b"tEXt", b"note\0" + VALUE.encode())),
    "a packed text of a PNG": png((b"zTXt", b"note\0\0" + zlib.compress(f"x {ACCESS} y".encode()))),
    "a long text of a PNG": png((b"iTXt", b"n\0\1\0\0\0" + zlib.compress(VALUE.encode()))),
    "a JPEG": base64.b64encode(b"\xff\xd8\xff\xfe\0\x20" + ACCESS.encode() + b"\xff\xd9").decode(),
    "no picture at all": ACCESS,
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_with_a_secret_is_removed(case: str) -> None:
    bundle = {"image/png": PICTURES[case], "text/plain": "<Figure>"}
    kept = json.dumps(redactor().value(bundle))
    assert PICTURES[case] not in kept
    assert "[secret removed" in kept


def test_a_picture_without_a_secret_is_kept() -> None:
    noise = bytes(random.Random(1).randrange(256) for _ in range(200_000))
    bundle = {
        "image/png": png((b"IDAT", noise), (b"tEXt", b"Software\0Matplotlib")),
        "text/plain": "<Figure>",
    }
    assert redactor().value(bundle) == bundle


def test_a_notebook_is_redacted_everywhere() -> None:
    def data(**more: str) -> dict[str, Any]:
        uri = f"<img src='data:image/png;base64,{PICTURES['a text of a PNG']}'>"
        svg = f"<svg><text>{VALUE[:6]}<tspan>{VALUE[6:]}</tspan></text></svg>"
        return {"text/html": [f"<i>{VALUE}</i>\n", uri], "image/svg+xml": svg, "text/plain": VALUE, **more}

    cell = nbformat.v4.new_code_cell(f"key = '{VALUE}'")
    cell.metadata[VALUE] = {"tags": [VALUE]}
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text=f"a {VALUE[:7]}"),
        nbformat.v4.new_output("stream", name="stderr", text="between"),
        nbformat.v4.new_output(
            "stream", name="stdout", text=[f"{VALUE[7:]}\n", "aws_secret_access_key=\n", KEY]
        ),
        nbformat.v4.new_output("display_data", data(), metadata={VALUE: SHORT}),
        nbformat.v4.new_output("display_data", {"application/json": {VALUE: 1, "SecretAccessKey": KEY}}),
        nbformat.v4.new_output("display_data", {"application/json": [{"Key": "secret_key", "Value": KEY}]}),
        nbformat.v4.new_output("error", ename=VALUE, evalue=VALUE, traceback=["secret_access_key=", KEY]),
    ]
    note = nbformat.v4.new_markdown_cell(f"![{VALUE}](attachment:a.png)")
    note.attachments = {f"{VALUE}.png": {"image/png": PICTURES["a text of a PNG"]}}
    notebook = nbformat.v4.new_notebook(cells=[cell, note], metadata={"x": {VALUE: [VALUE]}, VALUE: 1})
    redactor().notebook(notebook)
    text = nbformat.writes(notebook)
    for secret in (
        VALUE,
        json.dumps(VALUE)[1:-1],
        KEY,
        SHORT,
        PICTURES["a text of a PNG"],
        VALUE[7:],
        VALUE[:7],
    ):
        assert secret not in text
    nbformat.validate(notebook)
    assert "between" in text


def zipped(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def parquet(codec: str) -> bytes:
    packed = io.BytesIO()
    rows = pa.table({"text": [f"row {number} {VALUE}" for number in range(200)]})
    pq.write_table(rows, packed, compression=codec)
    return packed.getvalue()


FILES: dict[str, bytes] = {
    "notes": VALUE.encode(),
    "table.tsv": f"a\t{VALUE}\n".encode(),
    "data.json": json.dumps({"SecretAccessKey": KEY, VALUE: ["x"]}, indent=2).encode(),
    "lines.jsonl": json.dumps({"a": VALUE}).encode()
    + b"\n"
    + json.dumps({"secret_key": KEY}).encode()
    + b"\n",
    "wide.txt": f"it is {VALUE}".encode("utf-16"),
    "latin.txt": b"caf\xe9 " + VALUE.encode(),
    "packed.gz": gzip.compress(VALUE.encode()),
    "program.bin": b"\x7fELF\0\0" + ACCESS.encode() + b"\0",
    "twice.gz": gzip.compress(gzip.compress(VALUE.encode())),
    "second.gz": gzip.compress(b"first") + gzip.compress(VALUE.encode()),
    "second.bz2": bz2.compress(b"first") + bz2.compress(VALUE.encode()),
    "second.xz": lzma.compress(b"first") + lzma.compress(VALUE.encode()),
    "old.lzma": lzma.compress(VALUE.encode(), lzma.FORMAT_ALONE),
    "stream.z": zlib.compress(b"first " * 9 + VALUE.encode()),
    "book.xlsx": zipped("sheet.xml", VALUE.encode() * 50),
    "name.zip": zipped(VALUE, b"a"),
    "nested.zip": zipped("inner.zip", zipped("deep.gz", gzip.compress(VALUE.encode()))),
    "begins-as-a-script.pyz": b"#!/usr/bin/env python3\n" + zipped("main.py", VALUE.encode()),
    "nested.tar": tarred("inner.zip", zipped("deep", VALUE.encode() * 9)),
    "nested.tar.gz": gzip.compress(tarred("inner.zip", zipped("deep", VALUE.encode() * 9))),
    "page.pdf": b"%PDF-1.4\nstream\n" + zlib.compress(b"(" + VALUE.encode() + b") Tj") + b"\nendstream\n",
    **{f"{codec}.parquet": parquet(codec) for codec in ("snappy", "zstd", "gzip")},
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_kind_is_kept_without_its_secret(name: str) -> None:
    content = FILES[name]
    clean = redactor().content(content, name)
    assert clean != content
    assert VALUE.encode() not in clean
    assert KEY.encode() not in clean
    assert b"[secret removed" in clean
    if name.endswith("json"):
        json.loads(clean)
    if name.endswith("jsonl"):
        assert [list(json.loads(line)) for line in clean.splitlines()] == [["a"], ["secret_key"]]


def test_a_file_without_a_secret_is_unchanged() -> None:
    for content in (b'{"a":   1}\r\n', b"\xff\xfe\0", bytes(range(256)), "caf\u00e9".encode(), b""):
        assert redactor().content(content, "a.json") is content


def test_credentials_in_use_are_secret_from_the_moment_they_are_known() -> None:
    value = "in-use/" + "q" * 30
    before = redactor()
    assert before.text(value) == value
    redaction.remember(value, None, "", "short")
    assert before.text(f"x{value}y") == "x[secret removed: credentials in use]y"


def test_many_credentials_do_not_make_texts_slow() -> None:
    values = tuple(f"secret-{number:030d}" for number in range(3000))
    many = Redactor(values)
    assert many.text(f"a {values[7]} b") == "a [secret removed: secret of the environment] b"
    for _ in range(2000):
        many.text("ami-0123456789abcdef0 is in use")


def test_a_secret_after_the_first_piece_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_UNPACKED_BYTES", 1000)
    for before in (990, 5000):
        content = bytes(random.Random(1).choices(b"abc \n", k=before)) + VALUE.encode()
        for packed in (gzip.compress(content), bz2.compress(content), lzma.compress(content)):
            assert redactor().binary(packed)


def test_large_texts_are_redacted_in_linear_time() -> None:
    clean = redactor()
    for piece in (
        "line of output\n",
        f"{SHORT} ",
        "secret_key ",
        "<a",
        "<!--",
        "\x1b]",
        "\x1bP",
        "/a/hunter22x",
        "&a",
    ):
        clean.text(piece * (600_000 // len(piece)))


def test_a_line_without_an_end_has_limited_memory_and_is_redacted() -> None:
    lines = LineRedactor(redactor())
    shown = []
    for number in range(400):
        shown.append(lines.feed("x" * 9_990 + " " + (VALUE[:9] if number % 2 else VALUE[9:] + " ")))
    shown.append(lines.flush())
    assert VALUE not in "".join(shown)
    assert sum(1 for text in shown if text) > 2


def test_a_text_is_searched_again_when_a_secret_becomes_known() -> None:
    redactor, secret = Redactor(), "correct-Horse-7-battery"
    text = f"the value is {secret}"
    assert redactor.text(text) == text
    redaction.remember(secret)
    assert secret not in redactor.text(text)


def test_few_clean_texts_are_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnix_ops.redaction.MOST_CLEAN", 1000)
    redactor = Redactor()
    for number in range(1000):
        redactor.text(f"an ordinary line of a log, number {number}")
    assert sum(map(len, redactor._clean)) < 1100
