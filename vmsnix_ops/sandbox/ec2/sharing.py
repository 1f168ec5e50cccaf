"""Who may launch an image: accounts, everybody, organizations and organizational units.

Organizations are known by the account's own settings in the table ``organization`` (keys ``organizations``
and ``units``, lists of ARNs): the Organizations service itself is not emulated.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vmsnix_ops.sandbox.core import AwsError

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.core import Context
    from vmsnix_ops.sandbox.ec2.state import Image

SHAPES = {
    "UserId": re.compile(r"\d{12}"),
    "Group": re.compile("all"),
    "OrganizationArn": re.compile(r"arn:aws[a-z-]*:organizations::\d{12}:organization/o-[a-z0-9]{10,32}"),
    "OrganizationalUnitArn": re.compile(
        r"arn:aws[a-z-]*:organizations::\d{12}:ou/o-[a-z0-9]{10,32}/ou-[a-z0-9-]{8,68}"
    ),
}


def check_grantee(item: str, value: str) -> None:
    """Refuse an account, group, organization or unit that cannot be one."""
    if not SHAPES[item].fullmatch(value):
        name = item[0].lower() + item[1:]
        raise AwsError(
            "InvalidAMIAttributeItemValue", f'Invalid attribute item value "{value}" for {name} item type.'
        )


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
