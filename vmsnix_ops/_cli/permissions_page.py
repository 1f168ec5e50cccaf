"""Writes docs/reference/permissions.md from what the code declares.

Run ``python -m vmsnix_ops._cli.permissions_page`` after a change.
"""

from __future__ import annotations

from vmsnix_ops._cli.jobs import JOBS, KINDS
from vmsnix_ops.aws.permissions import PERMISSIONS

TARGETS = {
    "everything": "`*`, held to regions by `aws:RequestedRegion`",
    "global": "`*`",
    "bucket": "the bucket",
    "objects": "its objects below the key prefix",
    "role": "the role `vmimport`",
    "principals": "users and roles of the account",
    "policies": "policies called `vmsnix*`",
    "tagged at creation": "import tasks, snapshots, images",
    "snapshots": "snapshots",
    "our snapshots": "snapshots with the tag `vmsnix:digest`",
    "our images": "images with the tag `vmsnix:digest`",
    "our resources": "images and snapshots with the tag `vmsnix:digest`",
    "parameters": "parameters of the account",
    "launches": "instances and what belongs to them, images, snapshots",
    "our instances": "instances with the tag `vmsnix:smoke`",
    "spot role": "EC2's role `AWSServiceRoleForEC2Spot`",
    "pointers": "parameters below the pointers' prefix, `/vmsnix`",
    "topics": "the topic",
    "audit roles": "the role `vmsnix-auditor` of other accounts",
}

HEAD = """# Permissions

<!-- Written by `python -m vmsnix_ops._cli.permissions_page`: change vmsnix_ops/aws/permissions.py. -->

Every function that calls AWS declares the IAM actions that it needs, and a job's policy is the sum of its
functions. `vmsnix iam-policy` prints them, for any partition:

```sh
vmsnix iam-policy publisher --bucket acme-vmsnix-images --account 012345678901 --region eu-central-1
vmsnix iam-policy publisher --via direct --public --verify
vmsnix iam-policy promoter --region eu-central-1 --region eu-west-1 --public --announce
KINDS
vmsnix iam-policy vmimport-role --bucket acme-vmsnix-images
vmsnix iam-policy vmimport-trust
vmsnix iam-policy bucket --bucket acme-vmsnix-images
vmsnix iam-policy github-oidc-trust --account 012345678901 --repository acme/images
```

The tests run every job against the sandbox with exactly its policy, and once more without each single action:
the job then ends with an error that names the action, or, where only a check needs it, with a warning.

A publisher needs `iam:PassRole` only for `vmimport` and only for the service `vmie.amazonaws.com`. History on
S3 (`history = "s3://..."`) needs `s3:ListBucket` on that bucket and `s3:GetObject`, `s3:PutObject`,
`s3:DeleteObject` below its prefix; an archive there (`archive = "s3://..."`) needs what
`vmsnix iam-policy archivist` prints.

"""


def page() -> str:
    """Return the page."""
    jobs = {name: job.actions() for name, job in JOBS.items()}
    lines = ["| action | on | for | jobs |", "|---|---|---|---|"]
    for action, permission in PERMISSIONS.items():
        used = [name for name, actions in jobs.items() if action in actions]
        if "import" in used:  # what every publish via import needs, its variants need, too
            used = [job for job in used if job not in ("public", "verify")]
        if "smoke test" in used:
            used = [job for job in used if job != "first spot test"]
        if "promote" in used:
            used = [job for job in used if not job.endswith(" promotion")]
        cells = (f"`{action}`", TARGETS[permission.target], permission.why, ", ".join(used) or "none yet")
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "\n`sts:GetCallerIdentity` needs no permission. *import* and *direct* are the two ways of a publish; "
    )
    note += "*public* and *verify* are what these parameters of it add.\n"
    others = "\n".join(f"vmsnix iam-policy {kind}" for kind in KINDS if kind not in ("publisher", "promoter"))
    return HEAD.replace("KINDS", others) + "\n".join(lines) + "\n" + note


if __name__ == "__main__":
    from pathlib import Path

    target = Path(__file__).parents[2] / "docs/reference/permissions.md"
    target.write_text(page(), encoding="utf-8")
