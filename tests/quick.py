"""What makes tests quick and changes nothing that they look at: shared models, short pauses, kept bytecode.

The sandbox's clock is thousands of times faster than ours, and a pause that is right for AWS is an age there.
"""

from __future__ import annotations

import inspect
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def share_models(patch: pytest.MonkeyPatch) -> None:
    """Let all sessions of this process share what botocore works out anew for each: half a publish's work.

    These are its models and client classes, the names of its events and the arguments of their handlers, and
    the words of its User-Agent header, which it cleans letter by letter for every request.
    """
    import botocore.client
    import botocore.hooks
    import botocore.session
    import botocore.useragent

    creator = botocore.client.ClientCreator
    # Sessions only: clients change the models that they read, and the sandbox's server has its own.
    patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
    clean = "sanitize_user_agent_string_component"
    patch.setattr(botocore.useragent, clean, cache(getattr(botocore.useragent, clean)))
    aliaser = botocore.hooks.EventAliaser
    alias, shared = aliaser._alias_event_name, aliaser(None)
    patch.setattr(aliaser, "_alias_event_name", lambda _self, name: alias(shared, name))
    patch.setattr(botocore.hooks, "accepts_kwargs", partial(_accepts_kwargs, botocore.hooks.accepts_kwargs))
    make, made = creator._create_client_class, {}

    def remembered(self: Any, name: str, model: Any) -> Any:
        if name not in made:
            made[name] = make(self, name, model)
        return made[name]

    patch.setattr(creator, "_create_client_class", remembered)


def _accepts_kwargs(slowly: Callable[[Any], Any], handler: Any) -> Any:
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return slowly(handler) if code is None else code.co_flags & inspect.CO_VARKEYWORDS


def keep_bytecode(patch: pytest.MonkeyPatch) -> None:
    """Let the programs that tests start compile the package once, whatever this shell's variables say."""
    patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def pause_briefly(patch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses between two looks, between two tries, and before what AWS may not show yet."""
    from botocore.retries.standard import ExponentialBackoff

    from vmsnix_ops.aws import imports, retiring, waiting

    patch.setattr(waiting.Pace.__init__, "__defaults__", (0.1, 0.5, 1.4, 90.0))
    patch.setattr(ExponentialBackoff.__init__, "__defaults__", (0.2, *_rest(ExponentialBackoff)))
    patch.setattr(imports, "SEEN_SECONDS", 0.3)
    patch.setattr(retiring, "PAUSES", (0.0,) * len(retiring.PAUSES))


def _rest(backoff: Any) -> tuple[Any, ...]:
    most, *rest = backoff.__init__.__defaults__
    assert most == 20, "the first default is the longest pause, in seconds"
    return tuple(rest)
