"""Find the AWS credentials of this process, so that `vmsnix_ops.redaction` removes them from all outputs.

Credentials may come from the environment, profiles, SSO, roles, an instance, a container or a program.
`watch_botocore` remembers them when botocore gets them, before code can print them. `read_files` reads AWS's
own files.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmsnix_ops.import_hooks import after_import
from vmsnix_ops.redaction import remember

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    import boto3
    from botocore.session import Session

SECRET_KEYS = frozenset(
    {
        "accesstoken",
        "authorizationtoken",
        "aws_secret_access_key",
        "aws_session_token",
        "clientsecret",
        "refreshtoken",
        "secretaccesskey",
        "secretbinary",
        "secretstring",
        "sessiontoken",
        "sso_client_secret",
    }
)
ANSWERS_WITH_SECRETS = frozenset(
    {"sts", "sso", "sso-oidc", "iam", "cognito-identity", "secretsmanager", "ecr", "signin"}
)
LARGEST_FILE = 1_000_000  # bytes; an SSO cache file has 2,000


@functools.cache  # so that botocore is hooked once
def watch_botocore() -> None:
    """Remember every secret key and token that botocore gets in this process from now on."""
    after_import({"botocore.credentials": _hook_credentials, "botocore.client": _hook_answers})


def session_keys(session: boto3.Session | Session) -> tuple[str, str, str] | None:
    """Return access key, secret key and session token of a session, or ``None`` if a key is missing or empty.

    botocore refreshes credentials that are about to expire. The session token may be ``""``.
    """
    found = session.get_credentials()
    frozen = found.get_frozen_credentials() if found else None
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        return None
    return frozen.access_key, frozen.secret_key, frozen.token or ""


def read_files(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the secrets in AWS's own files: profiles, and the caches of SSO and assumed roles.

    The variables of `environment`, by default ``os.environ``, contain the files' paths.
    """
    given = os.environ if environment is None else environment
    home = Path(given.get("HOME") or "~").expanduser()
    found: list[str] = []
    for variable, name in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        path = Path(given[variable]).expanduser() if given.get(variable) else home / ".aws" / name
        parser = configparser.RawConfigParser(strict=False, default_section="", allow_no_value=True)
        try:
            parser.read_string(_read(path))
        except configparser.Error:
            continue
        for section in parser.sections():
            found += [value for key, value in parser.items(section) if key in SECRET_KEYS and value]
    for folder in ("sso/cache", "cli/cache", "login/cache"):
        try:
            paths = sorted((home / ".aws" / folder).glob("*.json"))
        except OSError:
            continue
        for path in paths:
            try:
                found += _secrets(json.loads(_read(path) or "null"))
            except (ValueError, RecursionError):
                continue
    token_files = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE")
    found += [_read(Path(given[name])).strip() for name in token_files if given.get(name)]
    return tuple(dict.fromkeys(filter(None, found)))


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE or not path.is_file():
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def _secrets(value: Any, depth: int = 6) -> Iterator[str]:
    """Yield the secrets in an answer of AWS or in a cached one."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, bytes):
                item = item.decode("utf-8", "replace")
            if isinstance(item, str) and str(key).replace("-", "").lower() in SECRET_KEYS:
                yield item
            elif isinstance(item, dict | list) and depth:
                yield from _secrets(item, depth - 1)
    elif isinstance(value, list) and depth:
        for item in value:
            yield from _secrets(item, depth - 1)


def _hook_credentials(module: ModuleType) -> None:
    for kind in (module.Credentials, module.RefreshableCredentials):
        for name in ("__init__", "_set_from_data"):
            if name in vars(kind):
                _remember_after(kind, name)


def _remember_after(kind: Any, name: str) -> None:
    original = getattr(kind, name)

    @functools.wraps(original)
    def method(self: Any, *given: Any, **more: Any) -> Any:
        answer = original(self, *given, **more)
        values = vars(self)  # not the properties: reading one may refresh the credentials
        found = [values.get(key) for key in ("secret_key", "token", "_secret_key", "_token")]
        remember(*(value for value in found if isinstance(value, str)))
        return answer

    setattr(kind, name, method)


def _hook_answers(module: ModuleType) -> None:
    """Remember the secrets in AWS's answers, such as the keys of AssumeRole."""
    original = module.BaseClient._make_api_call

    @functools.wraps(original)
    def call(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        answer = original(self, operation_name, api_params)
        service = self.meta.service_model.service_name
        if service in ANSWERS_WITH_SECRETS:
            remember(*_secrets(answer))
        elif service == "ssm":
            remember(*_secure_strings(answer))
        return answer

    module.BaseClient._make_api_call = call


def _secure_strings(answer: Any) -> Iterator[str]:
    for parameter in (answer.get("Parameter"), *answer.get("Parameters", ())):
        if isinstance(parameter, dict) and parameter.get("Type") == "SecureString":
            yield str(parameter.get("Value", ""))
