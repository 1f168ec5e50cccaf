"""Puts a `side_effects.Guard` before every call that botocore makes in this process."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmsnix_ops import files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import ModuleType

    from vmsnix_ops.errors import SideEffectsError
    from vmsnix_ops.runbooks.execution.side_effects import Guard, Level

REFUSALS = ".side-effects.jsonl"
HOOKED = "botocore.client", "botocore.signers"


def install(level: Level, runbook: str, folder: Path) -> None:
    """Guard this process; what is refused is also noted in the run's folder.

    botocore is heavy, and most cells never import it, so the guard waits for its import.

    Parameters
    ----------
    level, runbook
        What may be done, and by whom.
    folder
        Of the run.
    """
    found: list[Guard] = []

    def guard() -> Guard:
        if not found:
            from vmsnix_ops.runbooks.execution.side_effects import Guard

            found.append(Guard(level, runbook, functools.partial(_note, folder / REFUSALS)))
        return found[0]

    for name in HOOKED:
        if name in sys.modules:
            _hook(sys.modules[name], guard)
    sys.meta_path.insert(0, _Finder(guard))


def refusals(folder: Path) -> list[dict[str, str]]:
    """Return what was refused in a run, and remove the note."""
    path = folder / REFUSALS
    try:
        lines = files.read(path).split(b"\n")
    except OSError:
        return []
    with suppress(OSError):
        path.unlink()
    refused = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # cut by a full disk
            refused.append(json.loads(line))
    return refused


def _note(path: Path, error: SideEffectsError) -> None:
    files.append_line(path, json.dumps({"what": error.what, "why": error.why, "cure": error.cure}))


def _hook(module: ModuleType, guard: Callable[[], Guard]) -> None:
    if module.__name__ == "botocore.client":
        _hook_calls(module, guard)
    else:
        _hook_signatures(module, guard)


def _hook_calls(module: ModuleType, guard: Callable[[], Guard]) -> None:
    original = module.BaseClient._make_api_call

    @functools.wraps(original)
    def call(self: Any, operation_name: str, api_params: dict[str, Any]) -> Any:
        service = self.meta.service_model.service_name
        guard().before(self, service, operation_name, api_params)
        answer = original(self, operation_name, api_params)
        guard().after(service, operation_name, answer)
        return answer

    module.BaseClient._make_api_call = call


def _hook_signatures(module: ModuleType, guard: Callable[[], Guard]) -> None:
    """Guard presigned URLs, too: whoever has one can make the call later."""
    original = module.RequestSigner.generate_presigned_url

    @functools.wraps(original)
    def sign(self: Any, request_dict: Any, operation_name: str, *more: Any, **options: Any) -> Any:
        guard().before(None, self._service_id.hyphenize(), operation_name, {})
        return original(self, request_dict, operation_name, *more, **options)

    module.RequestSigner.generate_presigned_url = sign


class _Finder(importlib.abc.MetaPathFinder):
    """Hooks botocore's modules when they have been imported."""

    def __init__(self, guard: Callable[[], Guard]) -> None:
        self._guard = guard

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in HOOKED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._guard)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads a module as another loader does, and hooks it."""

    def __init__(self, original: Any, guard: Callable[[], Guard]) -> None:
        self._original, self._guard = original, guard

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._original.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._original.exec_module(module)
        _hook(module, self._guard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
