"""What an audit does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, found, rule
from vmsnix_ops.progress import counted

if TYPE_CHECKING:
    import pandas as pd


@rule("high")
def unread(facts: Facts) -> pd.DataFrame:
    """Find accounts, regions and sources that could not be read."""
    import pandas as pd

    rows = [
        {
            "account": one.account,
            "region": one.region,
            "kind": "region" if one.region else "account",
            "resource_id": one.source,
            "reason": f"{one.error.what} What is there, and what uses it, is unknown.",
            "evidence": one.error.why,
            "cure": one.error.cure,
        }
        for one in facts.inventory.unread
    ]
    return pd.DataFrame(rows)


@rule("info")
def not_asked_one_by_one(facts: Facts) -> pd.DataFrame:
    """Find regions with so many AMIs that AWS was not asked, for each, who else may launch it."""
    import pandas as pd

    places = [
        (account, region, counted(facts.inventory.places.get((account, region), 0), "AMI"))
        for account, region in facts.inventory.hurried
    ]
    frame = pd.DataFrame(places, columns=["account", "region", "name"]).assign(
        kind="region", resource_id=[region for _, region, _ in places]
    )
    return found(
        frame,
        "{name}: AWS was not asked for each which other accounts may launch it.",
        cure="vmsnix run audit-inventory --regions {region} --accounts {account} --one-by-one yes",
    )
