"""Where the requests of a process are sent: to AWS, to a sandbox on this machine, or to another endpoint.

>>> endpoint_kind({})
'aws'
>>> endpoint_kind({"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"})
'sandbox'
>>> endpoint_kind({"AWS_ENDPOINT_URL": "https://ec2.internal.example.com"})
'custom'
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

EndpointKind = Literal["aws", "sandbox", "custom"]
ENDPOINT_KINDS: tuple[EndpointKind, ...] = get_args(EndpointKind)

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


def endpoint_url(environment: Mapping[str, str] | None = None) -> str:
    """Return the endpoint of EC2 that the variables set; an empty text for that of AWS.

    The variables are ``VMSNIX_SANDBOX``, which a command with ``--sandbox`` sets, and those of the AWS tools:
    ``AWS_ENDPOINT_URL_EC2`` and ``AWS_ENDPOINT_URL``.
    """
    given = os.environ if environment is None else environment
    if given.get("VMSNIX_SANDBOX"):
        return given["VMSNIX_SANDBOX"]
    if given.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true":
        return ""
    return given.get("AWS_ENDPOINT_URL_EC2") or given.get("AWS_ENDPOINT_URL") or ""


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
    return host in ("localhost", "::1") or host.startswith("127.")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # not a URL: botocore refuses it
        return ""
