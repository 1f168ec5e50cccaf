"""Ansible's AWS collections create and delete resources in the sandbox; a second run changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.foreign.conftest import REGION, program

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

PLAYBOOK = Path(__file__).with_name("ansible.yml")
FRIEND = "222233334444"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}

CHANGED = {
    "bucket": [True, False, True],
    "object": [True, False, True],
    "download": [True, False],
    "role": [True, False, True],
    "parameter": [True, False, True],
    "secret": [True, False, True],
    "instance": [True, False, True],
    "snapshot": [True, False],
    "snapshot permission": [True, False],
    "new image": [True],
    "image": [False, True, False],
    "image of the instance": [True],
    "no images": [True, True, True, False],
    "no snapshot": [False],
    "stopped instance": [True, False],
    "no instance": [True, False],
    "no parameters": [True, True, False],
    "no role": [True, False],
    "no object": [True],
    "no bucket": [True, False],
}
"""For each task of the playbook, which of its runs change something."""


def bucket_policy(bucket: str) -> dict[str, object]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
                "Condition": {"NumericLessThan": {"s3:TlsVersion": "1.2"}},
            }
        ],
    }


def register_image(aws: Sandbox) -> str:
    """Register an AMI with an empty disk; return its ID."""
    ebs, ec2 = aws.client("ebs", REGION), aws.client("ec2", REGION)
    snapshot: str = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
    ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=0)
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 1})
    image: str = ec2.register_image(
        Name="base",
        Architecture="x86_64",
        RootDeviceName="/dev/xvda",
        VirtualizationType="hvm",
        EnaSupport=True,
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}}],
    )["ImageId"]
    return image


def test_ansible_creates_resources_once_and_deletes_them(aws: Sandbox, tmp_path: Path) -> None:
    tool = program("ansible", "ansible-playbook", aws, tmp_path)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"disk" * 2**20)
    facts = {
        "disk": str(disk),
        "image": register_image(aws),
        "friend": FRIEND,
        "trust": json.dumps(TRUST),
        "bucket_policy": bucket_policy("ansible-images"),
        "ansible_python_interpreter": str(tool.path.with_name("python")),
    }
    printed = tool.run(
        *("-i", "localhost,", "-e", json.dumps(facts), str(PLAYBOOK)),
        ANSIBLE_STDOUT_CALLBACK="ansible.posix.json",
        ANSIBLE_LOCAL_TEMP=str(tmp_path / "local"),
        ANSIBLE_REMOTE_TEMP=str(tmp_path / "remote"),
        ANSIBLE_HOME=str(tmp_path / "home"),
        ANSIBLE_PIPELINING="1",
        AWS_REGION=REGION,
    )
    changed = {
        task["task"]["name"]: [result["changed"] for result in task["hosts"]["localhost"]["results"]]
        for task in json.loads(printed)["plays"][0]["tasks"]
    }
    assert changed == CHANGED
    assert disk.with_name("disk.raw.back").read_bytes() == disk.read_bytes()
    refused = {(call.operation, call.outcome) for call in aws.calls if call.status == 501}
    assert refused == set(), "the sandbox does not emulate what the modules call"
