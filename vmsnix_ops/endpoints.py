"""Where the requests of a process are sent: to AWS, to a sandbox on this machine, or to another endpoint.

>>> endpoint_kind({})
'aws'
>>> endpoint_kind({"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"})
'sandbox'
>>> endpoint_kind({"AWS_ENDPOINT_URL": "https://ec2.internal.example.com"})
'custom'
"""

from __future__ import annotations

import configparser
import ipaddress
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

EndpointKind = Literal["aws", "sandbox", "custom"]
ENDPOINT_KINDS: tuple[EndpointKind, ...] = get_args(EndpointKind)

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


def endpoint_url(environment: Mapping[str, str] | None = None) -> str:
    """Return the endpoint of EC2 that a process with these variables uses; an empty text for that of AWS.

    ``VMSNIX_SANDBOX``, which a command with ``--sandbox`` sets, comes first; then, in the order of botocore,
    ``AWS_ENDPOINT_URL_EC2``, ``AWS_ENDPOINT_URL``, and in the files of the AWS tools the ``services`` section
    of the profile and its ``endpoint_url``.
    """
    given = os.environ if environment is None else environment
    if given.get("VMSNIX_SANDBOX"):
        return given["VMSNIX_SANDBOX"]
    ignored = given.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower()
    if ignored == "true":
        return ""
    url = given.get("AWS_ENDPOINT_URL_EC2") or given.get("AWS_ENDPOINT_URL")
    return url or _url_of_profile(given, ignored)


def _url_of_profile(given: Mapping[str, str], ignored: str) -> str:
    """Return the endpoint of EC2 in the user's configuration of the AWS tools."""
    home = given.get("HOME")
    profile = given.get("AWS_PROFILE") or given.get("AWS_DEFAULT_PROFILE") or "default"
    sections: dict[str, dict[str, str]] = {}
    for variable, name in (("AWS_CONFIG_FILE", "config"), ("AWS_SHARED_CREDENTIALS_FILE", "credentials")):
        path = given.get(variable) or (f"{home}/.aws/{name}" if home else "")
        for section, values in _sections(path).items():
            sections[section] = sections.get(section, {}) | values
    prefixed, plain = sections.get(f"profile {profile}", {}), sections.get(profile, {})
    values = prefixed | plain
    if not ignored and values.get("ignore_configured_endpoint_urls", "").lower() == "true":
        return ""
    services = sections.get(f"services {values.get('services', '')}", {})
    pairs = (line.partition("=") for line in services.get("ec2", "").splitlines())
    nested = {name.strip(): value.strip() for name, _, value in pairs}
    return nested.get("endpoint_url") or values.get("endpoint_url") or ""


def _sections(path: str) -> Mapping[str, dict[str, str]]:
    """Return the sections of a file of the AWS tools; none if it cannot be read."""
    try:
        file = Path(path).expanduser()
        state = file.stat()
        return _parsed(file, state.st_mtime_ns, state.st_size) if path and file.is_file() else {}
    except (OSError, ValueError, RuntimeError, configparser.Error):  # botocore reports it
        return {}


@lru_cache(maxsize=8)
def _parsed(file: Path, _changed: int, _size: int) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, default_section="", allow_no_value=True)
    parser.read_string(file.read_text(encoding="utf-8"))
    # Quotes are allowed around the names of profiles: [profile "night shift"].
    return {
        " ".join(name.replace('"', "").split()): {key: value or "" for key, value in parser.items(name)}
        for name in parser.sections()
    }


def endpoint_kind(environment: Mapping[str, str] | None = None) -> EndpointKind:
    """Return where requests are sent: ``aws``, ``sandbox`` (a loopback address) or ``custom``."""
    given = os.environ if environment is None else environment
    url = endpoint_url(given)
    if not url:
        return "aws"
    if given.get("VMSNIX_SANDBOX") or is_loopback(url):
        return "sandbox"
    return "aws" if _host(url).endswith(_AWS) else "custom"


def sandbox_url(environment: Mapping[str, str] | None = None) -> str:
    """Return the address of the sandbox to which requests are sent; an empty text if they are not."""
    return endpoint_url(environment) if endpoint_kind(environment) == "sandbox" else ""


def is_loopback(url: str) -> bool:
    """Return whether the host of a URL is this machine's loopback address."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.0.0.1.example.com
        return False


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # not a URL: botocore refuses it
        return ""
