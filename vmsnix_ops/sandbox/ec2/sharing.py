"""Who may launch an image: accounts, everybody, organizations and organizational units.

Organizations are known by the account's own settings in the table ``organization`` (keys ``organizations``
and ``units``, lists of ARNs): the Organizations service itself is not emulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Image


def may_launch(image: Image, context: Context) -> bool:
    """Tell whether the caller's account may use an image; only its owner may see a disabled or failed one."""
    if image.owner == context.account:
        return True
    if image.state(context.clock) != "available":
        return False
    return image.public() or _shared_with(image, context.account) or _within(image, context)


def executable_by(image: Image, user: str, context: Context) -> bool:
    """Tell whether an image was explicitly shared with ``self``, an account, or ``all``."""
    if user == "all":
        return image.public()
    if user in ("self", context.account):
        return _shared_with(image, context.account) or _within(image, context)
    return _shared_with(image, user)


def _shared_with(image: Image, account: str) -> bool:
    return {"UserId": account} in image.permissions


def _within(image: Image, context: Context) -> bool:
    known = context.table("organization", region="")
    organizations, units = known.get("organizations", ()), known.get("units", ())
    return any(
        p.get("OrganizationArn") in organizations or p.get("OrganizationalUnitArn") in units
        for p in image.permissions
    )
