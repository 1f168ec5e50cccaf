"""Make tests faster without another result: shared models and clients, short pauses.

The sandbox's clock is thousands of times faster than real time, so pauses for AWS are far too long for it.
"""

from __future__ import annotations

import compileall
import inspect
import os
import socket
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ROOT = Path(__file__).parents[1]
MOST_CLIENTS = 64  # each uses a megabyte or more
SNAPSHOT_MINUTES = 4320
"""Minutes without a block after which AWS fails a snapshot that a test uploads: the longest that AWS allows.

With the usual hour, the fast clock fails snapshots while a busy machine starts the workers.
"""


def share_models(patch: pytest.MonkeyPatch) -> None:
    """Share between all sessions what botocore computes for each: half the CPU time of a publish.

    These are models, client classes, names of events, arguments of their handlers, and the parts of the
    User-Agent header.
    """
    import botocore.client
    import botocore.hooks
    import botocore.model
    import botocore.session
    import botocore.useragent

    creator = botocore.client.ClientCreator
    # Of sessions only: clients change their models, and the sandbox's server has its own.
    patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
    clean = "sanitize_user_agent_string_component"
    patch.setattr(botocore.useragent, clean, cache(getattr(botocore.useragent, clean)))
    aliaser = botocore.hooks.EventAliaser
    alias, shared = aliaser._alias_event_name, aliaser(None)
    patch.setattr(aliaser, "_alias_event_name", lambda _self, name: alias(shared, name))
    patch.setattr(botocore.hooks, "accepts_kwargs", partial(_accepts_kwargs, botocore.hooks.accepts_kwargs))
    make, made = creator._create_client_class, {}

    def make_once(self: Any, name: str, model: Any) -> Any:
        if name not in made:
            made[name] = make(self, name, model)
        return made[name]

    patch.setattr(creator, "_create_client_class", make_once)
    discovery = botocore.model.ServiceModel.endpoint_discovery_operation._fget
    found: dict[str, Any] = {}

    def search_once(model: Any) -> Any:  # botocore reads all operations of a service for every client
        if model.service_name not in found:
            found[model.service_name] = discovery(model)
        return found[model.service_name]

    patch.setattr(botocore.model.ServiceModel, "endpoint_discovery_operation", property(search_once))


def share_clients(patch: pytest.MonkeyPatch) -> None:
    """Share AWS clients between tests: the sandboxes of this process have the same address and key.

    Only clients of plain sessions with keys from the environment are shared.
    """
    import boto3
    from botocore.credentials import Credentials
    from botocore.retries.quota import RetryQuota
    from botocore.utils import S3RegionRedirectorv2

    from vmsnix_ops.aws import session as sessions
    from vmsnix_ops.sandbox import Access, server

    listen, own_port = server._listen, listening_port()

    def listen_again(port: int) -> Any:
        if port == 0:
            with suppress(OSError):  # a second sandbox runs beside the first
                return listen(own_port)
        return listen(port)

    patch.setattr(server, "_listen", listen_again)

    make, quotas = sessions._make, []

    class Quota(RetryQuota):  # type: ignore[misc]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            quotas.append(self)

    patch.setattr("botocore.retries.quota.RetryQuota", Quota)

    class Redirector(S3RegionRedirectorv2):  # type: ignore[misc]
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            _redirectors.add(self)

    patch.setattr("botocore.client.S3RegionRedirectorv2", Redirector)

    def of_session(session: Any, *params: Any) -> Any:
        keys = session.get_credentials()
        plain = type(session) is boto3.Session and type(keys) is Credentials
        if not plain or "RECORD_AWS_FOLDER" in os.environ:
            return make(session, *params)
        about = sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or "proxy" in k.lower())
        quotas.clear()
        client = _shared(
            (session.profile_name, keys.get_frozen_credentials(), *about, *params),
            lambda: make(session, *params),
        )
        if quotas:
            client.quotas = tuple(quotas)
        for quota in client.quotas:  # retries of earlier tests must not count
            quota._available_capacity = quota._max_capacity
        return client

    patch.setattr(sessions, "_make", of_session)
    client_of = Access.client

    def of_sandbox(access: Any, service: str, region: str = "us-east-1", **options: Any) -> Any:
        if options:
            return client_of(access, service, region, **options)
        key = (access.url, access.access_key, access.secret_key, service, region)
        return _shared(key, lambda: client_of(access, service, region))

    patch.setattr(Access, "client", of_sandbox)


_clients: dict[Any, Any] = {}
_redirectors: WeakSet[Any] = WeakSet()
"""What S3 clients remember: the regions of buckets, whose names other tests use in other regions."""


def _shared(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _clients:
        if len(_clients) >= MOST_CLIENTS:
            _clients.pop(next(iter(_clients))).close()
        _clients[key] = make()
    return _clients[key]


def separate_clients() -> None:
    """Close the connections of all shared clients, and let S3 clients forget the regions of buckets."""
    for client in tuple(_clients.values()):
        client.close()
    for redirector in tuple(_redirectors):
        redirector._cache.clear()


def share_data_of_images(patch: pytest.MonkeyPatch) -> None:
    """Share the pseudo-random bytes of sample images: making them takes longest."""
    from vmsnix_ops.disk import sample

    patch.setattr(sample, "_data", lru_cache(4)(sample._data))


def listening_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def _accepts_kwargs(slowly: Callable[[Any], Any], handler: Any) -> Any:
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return slowly(handler) if code is None else code.co_flags & inspect.CO_VARKEYWORDS


def keep_bytecode(patch: pytest.MonkeyPatch) -> None:
    """Let programs that tests start keep the compiled package, also with PYTHONDONTWRITEBYTECODE set."""
    patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def compile_once(config: pytest.Config) -> None:
    """Compile the package and its tests in two processes, before all processes of tests do it at once."""
    from _pytest.assertion import rewrite

    state = config.stash[rewrite.assertstate_key]
    other = os.fork()
    for path in sorted([*ROOT.glob("vmsnix_ops/**/*.py"), *ROOT.glob("tests/**/*.py")])[bool(other) :: 2]:
        if not path.name.startswith("test_") and path.name != "conftest.py":
            compileall.compile_file(path, quiet=2)
            continue
        folder = rewrite.get_cache_dir(path)
        compiled = folder / f"{path.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(path, compiled) is None and rewrite.try_makedirs(folder):
            digest, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, digest, compiled)
    if not other:
        os._exit(0)
    os.waitpid(other, 0)  # ends: that process has as much to do as this one


def pause_briefly(patch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between two reads, between two attempts, and before reads that may be stale."""
    from botocore.retries.standard import ExponentialBackoff

    from vmsnix_ops.aws import imports, polling, retiring
    from vmsnix_ops.aws.ebs_direct import writing

    patch.setattr(writing, "TIMEOUT_MINUTES", SNAPSHOT_MINUTES)
    patch.setattr(polling.PollInterval.__init__, "__defaults__", (0.1, 0.5, 1.4, 90.0))
    patch.setattr(ExponentialBackoff.__init__, "__defaults__", (0.2, *_rest(ExponentialBackoff)))
    patch.setattr(imports, "VISIBLE_SECONDS", 0.3)
    patch.setattr(retiring, "READ_PAUSES", (0.0,) * len(retiring.READ_PAUSES))


def _rest(backoff: Any) -> tuple[Any, ...]:
    most, *rest = backoff.__init__.__defaults__
    assert most == 20, "the first default is the longest pause, in seconds"
    return tuple(rest)
