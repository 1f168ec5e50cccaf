"""Operations runbooks as notebooks for NixOS machine images on AWS.

`__all__` is the public API: one module for each job, with the functions `plan`, `check` or `read`. Everything
else is private and may change.

>>> from vmsnix_ops import promote
>>> plan = promote.plan(image="ecs-node", channel="stable", regions=["eu-west-1"])  # doctest: +SKIP
>>> result = plan.apply()  # doctest: +SKIP

Importing this package is fast: a module is imported when it is first used. The functions that need boto3,
pandas and other slow libraries import them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from vmsnix_ops import audit, channels, errors, publish, sandbox, settings
    from vmsnix_ops.audit import retirement as retire
    from vmsnix_ops.channels import promote, rollback, verify
    from vmsnix_ops.publish import boot_test as boot_image
    from vmsnix_ops.publish import bootstrap, build_image, preflight, prove
    from vmsnix_ops.publish import smoke as smoke_test
    from vmsnix_ops.runbooks import console, fleet, history
    from vmsnix_ops.runbooks import parameters as parameters  # not public

__version__ = "0.1.0"

__all__ = [
    "audit",
    "boot_image",
    "bootstrap",
    "build_image",
    "channels",
    "console",
    "errors",
    "fleet",
    "history",
    "preflight",
    "promote",
    "prove",
    "publish",
    "retire",
    "rollback",
    "sandbox",
    "settings",
    "smoke_test",
    "verify",
]

_MODULES = {
    "boot_image": "publish.boot_test",
    "bootstrap": "publish.bootstrap",
    "build_image": "publish.build_image",
    "console": "runbooks.console",
    "fleet": "runbooks.fleet",
    "history": "runbooks.history",
    "parameters": "runbooks.parameters",
    "preflight": "publish.preflight",
    "promote": "channels.promote",
    "prove": "publish.prove",
    "retire": "audit.retirement",
    "rollback": "channels.rollback",
    "run": "runbooks.history",
    "smoke_test": "publish.smoke",
    "verify": "channels.verify",
}
"""Modules whose place in the package has another name.

Notebooks of earlier versions import `parameters` and `run`.
"""


def __getattr__(name: str) -> ModuleType:
    if name not in __all__ and name not in _MODULES:
        raise AttributeError(f"module 'vmsnix_ops' has no attribute {name!r}", name=name)
    return import_module(f"vmsnix_ops.{_MODULES.get(name, name)}")


def __dir__() -> list[str]:
    return __all__
