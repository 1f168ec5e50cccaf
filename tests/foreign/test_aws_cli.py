"""The AWS CLI, versions 1 and 2, runs the usual commands of operators with ``--endpoint-url``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest

from tests.foreign.conftest import REGION, TOOLS, Program, environment
from tests.support import unavailable

if TYPE_CHECKING:
    from vmsnix_ops.sandbox import Sandbox

CLIS = {"aws": TOOLS / "aws" / "bin" / "aws", "awscli": Path("/usr/bin/aws")}
"""Version 1 from PyPI, and Debian's version 2, which does not read ``AWS_ENDPOINT_URL``."""
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}
ALLOW = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "ec2:*", "Resource": "*"}]}
COMMANDS = r"""
          | sts get-caller-identity --query Arn --output text | arn:aws:iam::\d{12}:user/operator
          | s3 mb s3://cli | make_bucket: cli
          | s3 cp disk.raw s3://acme-images/disk.raw --no-progress | upload: .*
          | s3 sync tree s3://cli/tree --no-progress | (upload: .*\s*){2}
          | s3 sync tree s3://cli/tree --no-progress |
          | s3 ls s3://cli --recursive --summarize | (?s).* tree/a b.txt\n.* tree/sub/ü\+c.txt\n.*Objects: 2.*
          | s3 cp s3://acme-images/disk.raw back --no-progress | download: .*
url       | s3 presign 's3://cli/tree/a b.txt' --expires-in 60 | http://127.0.0.1.*
          | s3api head-object --bucket cli --key 'tree/a b.txt' --query ContentLength | 3
          | s3 rb s3://cli --force | (?s).*remove_bucket: cli
task      | ec2 import-snapshot --disk-container Format=RAW,UserBucket={S3Bucket=acme-images,S3Key=disk.raw} <
            --query ImportTaskId --output text | import-snap-.*
snapshot  | ec2 describe-import-snapshot-tasks --import-task-ids $task --output text <
            --query ImportSnapshotTasks[0].SnapshotTaskDetail.SnapshotId | snap-.*
          | ec2 wait snapshot-completed --snapshot-ids $snapshot |
image     | ec2 register-image --name server --architecture x86_64 --virtualization-type hvm --ena-support <
            --boot-mode uefi --root-device-name /dev/xvda --query ImageId --output text <
            --block-device-mappings DeviceName=/dev/xvda,Ebs={SnapshotId=$snapshot,VolumeType=gp3} | ami-.*
          | ec2 wait image-available --image-ids $image |
          | ec2 create-tags --resources $image --tags Key=team,Value=platform |
          | ec2 describe-images --owners self --filters Name=tag:team,Values=platform <
            --query Images[].[ImageId,State,BootMode] --output text | $image\tavailable\tuefi
          | ec2 modify-image-attribute --image-id $image --launch-permission Add=[{UserId=222233334444}] |
          | ec2 describe-image-attribute --image-id $image --attribute launchPermission <
            --query LaunchPermissions[].UserId --output text | 222233334444
copy      | ec2 copy-image --region us-west-2 --source-region us-east-1 --source-image-id $image <
            --name server --query ImageId --output text | ami-.*
          | ec2 wait image-available --region us-west-2 --image-ids $copy |
          | ec2 deregister-image --image-id $image | (?s).*
          | ssm put-parameter --name /cli/image --type String --value $copy --query Version | 1
          | ssm get-parameters-by-path --path /cli --query Parameters[].Value --output text | $copy
          | ssm delete-parameter --name /cli/image |
topic     | sns create-topic --name images --query TopicArn --output text | arn:aws:sns:us-east-1:.*:images
          | sns list-topics --query Topics[].TopicArn --output text | $topic
          | sns delete-topic --topic-arn $topic |
          | iam create-role --role-name cli --assume-role-policy-document file://trust.json <
            --query Role.RoleName --output text | cli
          | iam put-role-policy --role-name cli --policy-name ec2 --policy-document file://allow.json |
          | iam get-role-policy --role-name cli --policy-name ec2 <
            --query PolicyDocument.Statement[].Action --output text | ec2:\*
          | iam delete-role-policy --role-name cli --policy-name ec2 |
          | iam delete-role --role-name cli |
"""
"""In each line a name for the output, a command, and the pattern of its output; `<` continues a line."""


@pytest.mark.parametrize("cli", CLIS)
def test_the_aws_cli_does_what_operators_do(cli: str, aws: Sandbox, tmp_path: Path) -> None:
    if not CLIS[cli].exists():
        unavailable(cli, f"{CLIS[cli]} does not exist")
    # Without --endpoint-url the CLI would reach AWS: no proxy listens on port 9.
    proxy = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    variables = {**environment(aws, tmp_path), **proxy, "AWS_EC2_METADATA_DISABLED": "true"}
    del variables["AWS_ENDPOINT_URL"]
    program = Program(CLIS[cli], variables, tmp_path)
    (tmp_path / "disk.raw").write_bytes(b"disk" * 2**19 * 5)  # 10 MiB: two parts
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "a b.txt").write_text("one")
    (tmp_path / "tree" / "sub" / "ü+c.txt").write_text("two")
    (tmp_path / "trust.json").write_text(json.dumps(TRUST))
    (tmp_path / "allow.json").write_text(json.dumps(ALLOW))

    outputs: dict[str, str] = {}
    for line in re.sub(r"<\s+", "", COMMANDS).strip("\n").splitlines():
        filled = Template(line).substitute(outputs)
        name, command, pattern = (part.strip() for part in filled.split("|"))
        output = program.run("--endpoint-url", aws.url, *shlex.split(command)).strip()
        assert re.fullmatch(pattern, output), (command, output)
        outputs[name] = output
        if name == "task":  # this version 2 cannot wait for an import
            params = {"ImportTaskIds": [output], "WaiterConfig": {"Delay": 1}}
            aws.client("ec2", REGION).get_waiter("snapshot_imported").wait(**params)
        if name == "url":
            with urlopen(output, timeout=60) as answer:
                assert answer.read() == b"one"
    assert (tmp_path / "back").read_bytes() == (tmp_path / "disk.raw").read_bytes()
    assert {call.outcome for call in aws.calls} <= {"ok", "NoSuchKey"}
