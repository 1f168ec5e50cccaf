"""A process that uploads an image, for tests that kill it: IMAGE, DIGEST, JOURNAL, HISTORY, REGION."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3
import pytest

from tests import quick
from vmsnix_ops.aws.ebs_direct import writing
from vmsnix_ops.aws.ebs_direct.engine import TransferConfig
from vmsnix_ops.records.tables import Tables


def wanted(image: str, digest: str, journal: str, region: str) -> writing.SnapshotUpload:
    tags = {"Name": "victim", "vmsnix:image": "victim", "vmsnix:digest": digest, "vmsnix:run": "1"}
    return writing.SnapshotUpload(Path(image), digest, "victim", region, tags, Path(journal))


def main() -> None:
    quick.pause_briefly(pytest.MonkeyPatch())
    image, digest, journal, history, region = sys.argv[1:]
    session, tables = boto3.Session(region_name=region), Tables(history)
    job = wanted(image, digest, journal, region)
    config = TransferConfig(processes=2, connections=8)
    made = writing.upload(session, job, tables=tables, config=config)
    print(writing.finish(session, job, made, tables=tables).snapshot_id)


if __name__ == "__main__":
    main()
