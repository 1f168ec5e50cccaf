"""How Delta Lake reaches S3: the same environment, profile and endpoint that boto3 would use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vmsnix_ops import credentials as credentials_module
from vmsnix_ops.errors import RecordsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGN_IN = "Sign in (aws sso login), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def storage_options(
    environment: Mapping[str, str] | None = None, *, region: str | None = None
) -> dict[str, str]:
    """Return what ``deltalake`` must be told to work on S3.

    ``deltalake`` has its own S3 client, which does not know everything that boto3 does (SSO,
    ``credential_process``), so botocore finds the credentials wherever the environment does not name them.
    Commits are conditional PUTs (``If-None-Match``), which S3 honours since November 2024: no lock table is
    needed.

    Parameters
    ----------
    environment
        The ``AWS_*`` variables; ``os.environ`` by default.
    region
        Region where the environment names none.

    Raises
    ------
    RecordsError
        When there are no credentials.
    """
    given = os.environ if environment is None else environment
    options = {
        "aws_conditional_put": "etag",
        "AWS_EC2_METADATA_DISABLED": given.get("AWS_EC2_METADATA_DISABLED", "false"),
    }
    endpoint = given.get("AWS_ENDPOINT_URL_S3") or given.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        parts = urlsplit(endpoint)
        # Plain HTTP is for this machine only, unless somebody asks for it by name.
        if parts.scheme == "http" and (parts.hostname in LOOPBACK or given.get("AWS_ALLOW_HTTP") == "true"):
            options["AWS_ALLOW_HTTP"] = "true"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    if given.get("AWS_ACCESS_KEY_ID") and given.get("AWS_SECRET_ACCESS_KEY"):
        options |= {name: given[name] for name in names if given.get(name)}
        found_region = given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION") or region
    else:
        credentials, found_region = _from_botocore(given, region)
        options |= credentials
    options["AWS_REGION"] = found_region or "us-east-1"
    return options


def _from_botocore(given: Mapping[str, str], region: str | None) -> tuple[dict[str, str], str | None]:
    import botocore.exceptions
    import botocore.session

    credentials_module.watch()
    try:
        session = botocore.session.Session(profile=given.get("AWS_PROFILE") or None)
        credentials = session.get_credentials()
        frozen = credentials.get_frozen_credentials() if credentials else None
        found_region = given.get("AWS_REGION") or session.get_config_variable("region") or region
    except botocore.exceptions.BotoCoreError as error:
        raise RecordsError(
            "The history on S3 cannot be reached: the AWS configuration has no usable credentials.",
            why=f"{error}.",
            cure=_SIGN_IN,
        ) from error
    if frozen is None:
        raise RecordsError(
            "The history on S3 cannot be reached: there are no AWS credentials.",
            why="Neither the environment, nor a profile, nor this machine's role has any.",
            cure=_SIGN_IN,
        )
    options = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
    if frozen.token:
        options["AWS_SESSION_TOKEN"] = frozen.token
    return options, found_region
