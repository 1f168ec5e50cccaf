"""Write docs/reference/permissions.md from the permissions that the code declares.

Run ``python docs/permissions_page.py`` after a change.
"""

from __future__ import annotations

from vmsnix_ops.aws.iam.permissions import PERMISSIONS
from vmsnix_ops.cli.policies import JOBS, KINDS

TARGETS = {
    "everything": "`*`, limited to regions by `aws:RequestedRegion`",
    "global": "`*`",
    "bucket": "the bucket",
    "objects": "its objects below the key prefix",
    "role": "the role `vmimport`",
    "passed role": "the role `vmimport`, only to VM Import",
    "principals": "users and roles of the account",
    "policies": "policies called `vmsnix*`",
    "new resources": "resources that the policy's own creating actions make (`ec2:CreateAction`)",
    "imported snapshots": "snapshots of the volume `vol-ffffffff` without our tags, `Name`, a backup's tags",
    "registrations": "a new image, of snapshots with the tag `vmsnix:digest`",
    "copies": "a new image and its snapshots, of images with the tag `vmsnix:digest`",
    "snapshots without a parent": "new snapshots without a parent",
    "snapshots of any parent": "new snapshots of any parent",
    "our snapshots": "snapshots with the tag `vmsnix:digest`",
    "our images": "EBS-backed images with the tag `vmsnix:digest`",
    "our tags": "images and snapshots with the tag `vmsnix:digest`, every tag except that one",
    "our imports": "import tasks with the tag `vmsnix:digest`",
    "parameters": "parameters of the account, without decrypting",
    "launches": "a new instance and its parts, of EBS-backed images with the tag `vmsnix:digest`",
    "our instances": "instances with the tag `vmsnix:smoke`",
    "spot role": "EC2's role `AWSServiceRoleForEC2Spot`",
    "channels": "parameters below the prefix of the channels, `/vmsnix`, without decrypting",
    "topics": "the topic of `--topic`, else every topic of the account",
    "audit roles": "the role `vmsnix-auditor` of other accounts",
}

HEAD = """# Permissions

<!-- Written by `python docs/permissions_page.py`: change it and aws/iam/permissions.py. -->

`vmsnix iam-policy` prints the smallest IAM policy of each job, for any partition. Limit the policy to an
account, a region and a bucket. The default bucket is that of `vmsnix.toml`:

```sh
vmsnix iam-policy publisher --bucket acme-vmsnix-images --account 012345678901 --region eu-central-1
vmsnix iam-policy publisher --via direct --public --verify
vmsnix iam-policy publisher --via direct --incremental
vmsnix iam-policy promoter --region eu-central-1 --region eu-west-1 --public \\
    --announce --topic arn:aws:sns:eu-central-1:012345678901:releases
vmsnix iam-policy verifier --blocks
vmsnix iam-policy prover --archive --bucket acme-vmsnix-records
vmsnix iam-policy archivist --bucket acme-vmsnix-records
vmsnix iam-policy bootstrap --bucket acme-vmsnix-images
KINDS
vmsnix iam-policy vmimport-role --bucket acme-vmsnix-images
vmsnix iam-policy vmimport-trust
vmsnix iam-policy bucket --bucket acme-vmsnix-images
vmsnix iam-policy github-oidc-trust --account 012345678901 --repository acme/images
```

If a permission is missing, the job fails with an error that names the action. If only a check needs the
action, the job prints a warning. The tests run every job on the sandbox with exactly its policy, and once
more without each permission.

History on S3 (`history = "s3://..."`) needs `s3:ListBucket` on that bucket and `s3:GetObject`,
`s3:PutObject`, `s3:DeleteObject` below its prefix. For an archive on S3 (`archive = "s3://..."`) attach the
policy of `vmsnix iam-policy archivist`.

## Which resources a policy can change

These policies allow changing, deleting, sharing and reading only resources with the tag `vmsnix:digest` (on
this page: *our* resources). A person or job with such a policy cannot make another resource ours:

- **Existing resources** can be tagged only if they have the tag `vmsnix:digest`. That tag itself cannot be
  changed or removed.
- **New resources** can be tagged only in the request that creates them (`ec2:CreateAction`).
- **The source of a new resource must be ours**: AMIs can be registered only from our snapshots, and only our
  AMIs can be copied or launched. (`${*}` in an ARN of these policies matches a new resource, which has no ID
  yet, but never an existing one.)
- **Instance store AMIs** (from a bundle in S3) cannot be shared, launched or changed: these actions are
  allowed only on AMIs whose `ec2:RootDeviceType` is `ebs`.
- **Roles**: only `vmimport` can be passed, and only to VM Import (`vmie.amazonaws.com`).
- **Secrets**: each policy that allows reading parameters has an explicit Deny on decrypting them
  (`kms:Decrypt` through Systems Manager).
- **A KMS key** (`--kms-key`, or `kms_key` of `vmsnix.toml`): a publisher may use it only through EBS and S3
  (`kms:ViaService`), and may grant it only to AWS services (`kms:GrantIsForAWSResource`). The policy of the
  role `vmimport` has no such condition, because AWS does not document through which service VM Import uses
  the key; only VM Import may assume this role.

The tests try to reach a foreign AMI, a foreign snapshot, a secret and a role with every policy.

## Which policies you must not combine

Two of the publisher's policies allow making a snapshot ours that vmsnix did not create, because AWS has no
condition that prevents it. An identity with such a policy must not be able to share or read snapshots:

- **`publisher`** (`--via import`) allows tagging the snapshot that VM Import made. It does not allow
  deleting, sharing or reading snapshots, or making AMIs public.
- **`publisher --via direct --incremental`** allows starting a snapshot from any other one. It does not allow
  sharing or reading snapshots, or making AMIs public.
- **`publisher --via direct`** allows starting only snapshots without a parent, so every upload sends all
  blocks. With `--public` and `--verify` it also allows sharing and reading them.

Do not attach two of these to one identity. Do not attach one of the first two together with `promoter`,
`retirer`, `smoke-tester`, `prover` or `verifier --blocks`. Use a separate identity for what the first two do
not allow:

- **Compare with the image:** with the policy of `verifier --blocks`, run
  `vmsnix publish --image FILE --via direct --verify whole --dry-run`. A dry run changes nothing.
- **Make public:** with the policy of `promoter --public`, run `vmsnix promote --ami AMI --public`.
- **Undo a publish with `--via import`:** run `vmsnix undo RUN` twice: with the publisher's policy, to delete
  the upload and cancel the import, then with the retirer's policy, to delete the snapshot.

## Remaining risks

- **A publisher with `--via import` can make an untagged copy of a snapshot ours.** VM Import does not tag its
  snapshots. They have the parent volume `vol-ffffffff`, like every snapshot that was copied from another
  region or account. So the publisher can tag such a copy, unless it has a `Name`, a `vmsnix:` tag, or a tag
  of AWS Backup or Data Lifecycle Manager. The publisher can register a private AMI of the copy, but cannot
  read, share or delete it. Identities with another of our policies can then use it, and a retirement can
  delete it. Tag copies that you want to keep, or publish with `--via direct`.
- **An incremental publisher can start from any snapshot**, because `ebs:ParentSnapshot` compares the ARN of
  the parent and not its tags. The new snapshot contains the parent's data and is ours. The publisher can
  register a private AMI of it, but cannot read or share it.
- **A publisher can register an instance store AMI** from any bundle in S3 that EC2 may read, because AWS has
  no condition key for the bundle. The AMI is private, and no policy here allows using it. Deregister it as an
  administrator.
- **A smoke test runs what a publisher registered.** A publisher with `--via import`, or an incremental one,
  can add such a snapshot to an AMI as a second disk, which programs in the AMI can read. Start smoke tests in
  a subnet without outgoing connections, and do not let publishers read the console output.
- **A smoke tester can start our AMIs with any user data**, in any subnet and with any security group of the
  account, but without an instance profile.
- **Auditor, audit member and retirer read user data.** They read complete launch templates, launch
  configurations, container recipes, and all parameters except SecureStrings. Keep secrets out of all of
  these.
- **An archivist can replace evidence** below the prefix of `archive`. Keep it in a bucket with versioning.
- **A promoter decides what a channel serves.** `ssm:PutParameter` covers every channel below the prefix,
  and `sns:Publish` every topic of the account unless `--topic` names one.
- **The bootstrap policy is as powerful as an administrator's.** Anyone who may write the policy and the
  trust of a role can give that role every permission and then assume it. Use `bootstrap` once, with an
  administrator's credentials.
- **Not verified against AWS:** that `ebs:StartSnapshot` sets `ec2:CreateAction` when it tags a snapshot.
  AWS documents the key for EC2's own actions. If AWS refuses a direct upload for this reason, the error
  names the policy; publish by import instead.

## Permissions by action

"""


def page() -> str:
    """Return the page."""
    jobs = {name: job.actions() for name, job in JOBS.items()}
    lines = ["| action | on | purpose | jobs |", "|---|---|---|---|"]
    for name, permission in PERMISSIONS.items():
        used = [job for job, names in jobs.items() if name in names]
        if "direct" in used:  # its variants need the same
            used = [job for job in used if job not in ("incremental", "public", "verify")]
        if "smoke test" in used:
            used = [job for job in used if job != "first spot test"]
        if "promote" in used:
            used = [job for job in used if not job.endswith(" promotion")]
        if "verify AMIs" in used:
            used = [job for job in used if job != "verify blocks"]
        cells = (
            f"`{permission.action}`",
            TARGETS[permission.target],
            permission.why,
            ", ".join(used) or "none yet",
        )
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "\n`sts:GetCallerIdentity` needs no permission. *import* and *direct* are the two methods of a "
        "publish. *incremental*, *public* and *verify* are additional permissions of *direct* for these "
        "parameters.\n"
    )
    shown = ("publisher", "promoter", "archivist", "bootstrap")
    others = "\n".join(f"vmsnix iam-policy {kind}" for kind in KINDS if kind not in shown)
    return HEAD.replace("KINDS", others) + "\n".join(lines) + "\n" + note


if __name__ == "__main__":
    from pathlib import Path

    target = Path(__file__).parent / "reference/permissions.md"
    target.write_text(page(), encoding="utf-8")
