"""Requests below ``/_vmsnix/``, which read and control a sandbox in another process.

===========  ======================  ==============================================================
``health``   GET                     ``{"ok": true}``
``calls``    GET, DELETE             the calls; ``?name=ec2:*`` filters them
``faults``   GET, POST, DELETE       the fault rules; POST adds one
``clock``    GET, POST               ``{"speed": ..., "advance": seconds, "skew": seconds}``
``state``    GET                     the number of resources of each kind
``oidc``     GET                     a token of GitHub for ``?subject=...&audience=...``
===========  ======================  ==============================================================

These requests need no signature: the server listens on 127.0.0.1 and has no secrets. Requests with an Origin
header are refused, so no web site can send them through a browser.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import ApiError, load_json
from vmsnix_ops.sandbox.web_identity import STS_AUDIENCE, make_token
from vmsnix_ops.sandbox.wire.http import Request, Response

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.state import SandboxState


PREFIX = "/_vmsnix/"
MAX_BYTES = 2**20
MAX_SKEW_SECONDS = 10 * 365 * 86400


def answer_admin_request(state: SandboxState, request: Request) -> Response:
    """Return the answer to a request below ``/_vmsnix/``."""
    if "origin" in request.headers:
        return _json({"error": "not for browsers"}, 403)
    name = request.path.removeprefix(PREFIX)
    try:
        content = request.body.read(MAX_BYTES)
        value: Any = load_json(content) if content else {}
        found = _route(state, request, name, dict(value))
    except (ValueError, TypeError, OverflowError, ApiError) as error:
        return _json({"error": str(error)}, 400)
    return (
        _json({"error": f"there is no {request.method} {request.path}"}, 404)
        if found is None
        else _json(found)
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(value, default=str).encode())


def _route(state: SandboxState, request: Request, name: str, value: Any) -> Any:
    method = request.method
    if name == "health" and method == "GET":
        return {"ok": True}
    if name == "calls" and method == "GET":
        return [call.as_json() for call in state.calls.matching(request.query.get("name", "*"))]
    if name == "calls" and method == "DELETE":
        state.calls.clear()
        return {}
    if name == "faults" and method == "GET":
        return [asdict(rule) for rule in state.faults.rules]
    if name == "faults" and method == "POST":
        return asdict(state.faults.add(value))
    if name == "faults" and method == "DELETE":
        state.faults.clear()
        return {}
    if name == "clock" and method in {"GET", "POST"}:
        return _clock(state, value)
    if name == "state" and method == "GET":
        return _count_resources(state)
    if name == "oidc" and method == "GET" and "subject" in request.query:
        # The form of ACTIONS_ID_TOKEN_REQUEST_URL, from which a workflow takes its token.
        audience = request.query.get("audience", STS_AUDIENCE)
        return {"value": make_token(request.query["subject"], audience=audience)}
    return None


def _clock(state: SandboxState, value: dict[str, Any]) -> dict[str, Any]:
    if "speed" in value:
        state.clock.speed = float(value["speed"])
    if "advance" in value:
        state.clock.advance(float(value["advance"]))
    if "skew" in value:
        skew = float(value["skew"])
        if not math.isfinite(skew) or abs(skew) > MAX_SKEW_SECONDS:
            raise ValueError(f"skew must be at most {MAX_SKEW_SECONDS} seconds, not {skew}")
        state.clock.skew = timedelta(seconds=skew)
    return {
        "speed": state.clock.speed,
        "skew": state.clock.skew.total_seconds(),
        "now": state.clock.now().isoformat(),
    }


def _count_resources(state: SandboxState) -> dict[str, Any]:
    counts: dict[str, dict[str, int]] = {}
    with state.lock:
        for account, region, kind in sorted(state.tables):
            if kind not in {"credentials", "trash"}:
                table = state.tables[account, region, kind]
                counts.setdefault(kind, {}).update({f"{account}/{region}": len(table)} if table else {})
    return counts
