"""What is inside: images with a package that was asked for, and images of which nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmsnix_ops.audit.findings import Facts, found, publish_again, rule, together

if TYPE_CHECKING:
    import pandas as pd


@rule("high")
def contains_package(facts: Facts) -> pd.DataFrame:
    """Find AMIs that contain a package which was asked for, such as openssl older than 3.0.15."""
    packages, parts = facts.packages, []
    for wanted in facts.measure.packages:
        rows = packages[packages["name"] == wanted.name]
        versions = {version: wanted.matches(version) for version in rows["version"].fillna("").unique()}
        rows = rows[rows["version"].fillna("").map(versions).astype(bool)]
        if not len(rows):
            continue
        inside = rows.groupby("digest")["version"].agg(lambda some: ", ".join(sorted(set(some.dropna()))))
        amis = facts.amis[facts.amis["digest"].isin(inside.index)]
        parts.append(
            found(
                amis,
                f"It contains {wanted.name} {{versions}} ({wanted} was asked for). Publish one that is built "
                "of newer packages, promote it, and retire this one; until then this stays.",
                evidence="table packages",
                cure=publish_again(amis),
                versions=amis["digest"].map(inside),
            )
        )
    return together(*parts) if parts else found(facts.amis.head(0), "")


@rule("medium")
def contents_unknown(facts: Facts) -> pd.DataFrame:
    """Find AMIs of which nobody recorded what is inside, when packages were asked for."""
    amis = facts.amis
    if not facts.measure.packages:
        return found(amis.head(0), "")
    asked = ", ".join(str(wanted) for wanted in facts.measure.packages)
    unknown, ours = ~amis["digest"].isin(facts.known_digests), amis["digest"].notna()
    reason = f"Nobody recorded what is inside it, so it cannot be said whether it contains {asked}."
    one = found(
        amis[unknown & ours],
        reason + " What is published now is recorded: promote that, and retire this one; until then this "
        "stays.",
        evidence="no rows in the table packages",
        cure=publish_again(amis[unknown & ours]),
    )
    other = found(
        amis[unknown & ~ours],
        reason + " Something else made it: a person must look inside.",
        evidence="no tag vmsnix:digest",
    )
    return together(one, other)
