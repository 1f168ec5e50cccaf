"""Failures of the list in docs/reference/failures.md that no other file tests."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.faults.account import BUCKET, REGION
from tests.quick import SNAPSHOT_MINUTES
from vmsnix_ops import errors, publish
from vmsnix_ops.progress import silent


def run(sweep, **changes):
    given = {"image": str(sweep.image), "region": REGION, "bucket": BUCKET, "progress": silent()}
    return publish.plan(**{**given, **changes}).apply()


def done(sweep, name):
    return [call for call in sweep.aws.calls.matching(name, ran=True) if call.outcome == "ok"]


def fault(sweep, op, **rule):
    return sweep.aws.faults.add({"op": op, **rule})


@pytest.mark.parametrize("status", ["deleted", "deleting", "error", "cancelled"])
@pytest.mark.variants
def test_row_01_every_terminal_state_of_an_import_ends_the_wait_at_once(sweep, status):
    values = {"Status": status, "StatusMessage": "ClientError: Unknown OS"}
    fault(sweep, "ec2:DescribeImportSnapshotTasks", nth=list(range(3, 40)), do="set", values=values)
    with pytest.raises(errors.ImportFailedError, match=f"task is {status}|Unknown OS"):
        run(sweep)
    # After a terminal state only the clean-up reads the task again.
    assert sweep.aws.calls.count("ec2:DescribeImportSnapshotTasks") <= 5


def test_row_04_a_cancelled_conversion_is_repeated_without_an_upload(sweep):
    message = "SERVER_ERROR : conversion : AWS initiated task cancellation"
    fault(sweep, "ec2:ImportSnapshot", nth=1, do="outcome", outcome={"status_message": message})
    run(sweep)
    assert len(done(sweep, "ec2:ImportSnapshot")) == 2
    assert len({call.params["ClientToken"] for call in done(sweep, "ec2:ImportSnapshot")}) == 2
    assert len(done(sweep, "s3:CompleteMultipartUpload")) == 1


def test_row_04_a_conversion_that_is_always_cancelled_is_tried_three_times(sweep):
    message = "SERVER_ERROR : conversion : AWS initiated task cancellation"
    fault(sweep, "ec2:ImportSnapshot", do="outcome", outcome={"status_message": message})
    with pytest.raises(errors.ImportFailedError, match="3 times"):
        run(sweep)
    assert len(done(sweep, "ec2:ImportSnapshot")) == 3
    assert sweep.account().empty


def test_row_05_an_image_that_aws_refuses_leaves_no_object_for_the_next_run(sweep):
    message = "ClientError: Disk validation failed [Unsupported specified file format]"
    fault(sweep, "ec2:ImportSnapshot", nth=1, do="outcome", outcome={"status_message": message})
    with pytest.raises(errors.ImportFailedError, match="Disk validation failed"):
        run(sweep)
    assert sweep.account().empty
    run(sweep)
    assert sweep.problems() == []


def test_row_06_the_object_is_kept_while_an_import_reads_it(sweep):
    from tests.faults.publishers import Kill
    from vmsnix_ops.publish.pipeline import delete_upload

    sweep.aws.clock.speed = 10  # the import outlives the publisher that started it
    sweep.publishers.run(sweep.job(sweep.state, "import", Kill("ec2:ImportSnapshot", 1, "after")))
    plan = publish.plan(image=str(sweep.image), region=REGION, bucket=BUCKET, progress=silent())
    built = plan.build()
    delete_upload(plan, built)
    account = sweep.account()
    assert account.running
    assert account.objects
    sweep.aws.clock.advance(3600)
    delete_upload(plan, built)
    assert sweep.account().objects == ()


def test_row_08_an_import_that_aws_no_longer_lists_is_found_by_its_snapshot(sweep):
    fault(sweep, "ec2:RegisterImage", do="error", code="AMIQuotaExceeded", http=400)
    with pytest.raises(errors.QuotaError):
        run(sweep)
    sweep.aws.faults.clear()
    sweep.aws.state.tables.table(sweep.aws.account, REGION, "import_tasks").clear()
    run(sweep)
    assert len(done(sweep, "ec2:ImportSnapshot")) == 1
    assert sweep.problems() == []


def test_row_08_an_import_whose_snapshot_was_deleted_is_repeated(sweep):
    first = run(sweep)
    ec2 = sweep.aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    ec2.delete_snapshot(SnapshotId=first.snapshot_id)
    second = run(sweep)
    assert second.snapshot_id != first.snapshot_id
    assert sweep.problems() == []


def test_row_10_a_snapshot_that_aws_does_not_list_yet_is_tagged_later(sweep):
    code = "InvalidSnapshot.NotFound"
    rule = fault(sweep, "ec2:CreateTags", nth=[1, 2], do="error", code=code, http=400)
    run(sweep)
    assert rule.applied == 2


@pytest.mark.parametrize("code", ["ResourceCountLimitExceeded", "SnapshotCreationPerVolumeRateExceeded"])
@pytest.mark.variants(seconds=4)
def test_row_13_a_limit_is_reported_and_finished_work_is_kept(sweep, code):
    fault(sweep, "ec2:ImportSnapshot", do="error", code=code, http=400)
    with pytest.raises(errors.AwsError, match=code):
        run(sweep)
    sweep.aws.faults.clear()
    run(sweep)
    assert sweep.problems() == []


def test_throttled_requests_are_repeated(sweep):
    fault(sweep, "ec2:*", nth=[3, 4, 5, 9, 10], do="error", code="RequestLimitExceeded", http=503)
    fault(sweep, "s3:*", nth=[2, 3, 6], do="error", code="SlowDown", http=503)
    run(sweep)
    assert sweep.problems() == []


@pytest.mark.parametrize(("code", "http"), [("InternalError", 500), ("ServiceUnavailable", 503)])
def test_requests_with_server_errors_are_repeated(sweep, code, http):
    rules = [fault(sweep, op, nth=[2, 3], do="error", code=code, http=http) for op in ("ec2:*", "s3:*")]
    run(sweep)
    assert [rule.applied for rule in rules] == [2, 2]
    assert sweep.problems() == []


@pytest.mark.parametrize(
    "cut",
    [
        {"op": "s3:UploadPart", "nth": 1, "do": "reset", "when": "body", "of": "request", "keep": 65536},
        {"op": "s3:UploadPart", "nth": 1, "do": "drop", "when": "after"},
        {"op": "ec2:RegisterImage", "nth": 1, "do": "reset", "when": "after"},
    ],
    ids=["reset in the upload's body", "response to a part lost", "response to the registration reset"],
)
@pytest.mark.variants
def test_requests_on_broken_connections_are_repeated(sweep, cut):
    rule = sweep.aws.faults.add(cut)
    run(sweep)
    assert rule.applied == 1
    assert sweep.problems() == []


def test_an_incomplete_response_is_an_error_and_the_next_run_continues(sweep):
    fault(sweep, "ec2:ImportSnapshot", nth=1, do="drop", when="body", keep=100)
    with pytest.raises(errors.AwsError, match="response was incomplete"):
        run(sweep)
    run(sweep)
    assert sweep.problems() == []


def test_a_request_without_a_response_is_repeated(sweep, monkeypatch):
    import botocore.config

    whole = botocore.config.Config.__init__
    # The real limit is a minute.
    monkeypatch.setattr(
        botocore.config.Config, "__init__", lambda self, *a, **k: whole(self, *a, **{**k, "read_timeout": 1})
    )
    rule = fault(sweep, "ec2:RegisterImage", nth=1, do="hang", seconds=5)
    run(sweep)
    assert rule.applied == 1
    assert sweep.problems() == []


def test_slow_responses_are_waited_for(sweep):
    fault(sweep, "ec2:Describe*", nth=[2, 4], do="delay", seconds=0.5)
    run(sweep)
    assert sweep.problems() == []


@pytest.mark.parametrize("operation", ["s3:UploadPart", "ec2:ImportSnapshot", "ec2:RegisterImage"])
@pytest.mark.variants(seconds=1)
def test_the_run_after_expired_credentials_continues(sweep, operation):
    fault(sweep, operation, do="error", code="ExpiredToken", http=400)
    with pytest.raises(errors.CredentialsError, match="continues where it stopped"):
        run(sweep)
    sweep.aws.faults.clear()
    run(sweep)
    assert sweep.problems() == []


def test_a_wrong_clock_is_a_credentials_error(sweep):
    from datetime import timedelta

    sweep.aws.clock.skew = timedelta(hours=1)
    try:
        with pytest.raises(errors.CredentialsError):
            run(sweep, via="direct")
    finally:
        sweep.aws.clock.skew = timedelta(0)
    assert sweep.account().empty


def test_a_region_that_does_not_answer_is_one_error(sweep):
    fault(sweep, "ec2:*", do="drop")
    with pytest.raises(errors.AwsError, match="again"):
        run(sweep)
    sweep.aws.faults.clear()
    assert sweep.account().empty


def test_row_18_a_snapshot_that_aws_does_not_list_yet_gets_its_blocks_later(sweep):
    code = "ResourceNotFoundException"
    rule = fault(sweep, "ebs:PutSnapshotBlock", nth=[1, 2, 3], do="error", code=code, http=404)
    run(sweep, via="direct")
    assert rule.applied == 3
    assert sweep.problems() == []


def test_row_20_an_expired_snapshot_is_replaced_and_nothing_is_left(sweep):
    from tests.faults.publishers import Kill

    state = sweep.state
    sweep.publishers.run(sweep.job(state, "direct", Kill("ebs:CompleteSnapshot", 1, "before")))
    sweep.aws.clock.advance(2 * SNAPSHOT_MINUTES * 60)
    (ended,) = sweep.publishers.run(sweep.job(state, "direct"))
    assert ended.status == 0, ended.text
    assert sweep.problems() == []


def test_row_21_throttled_blocks_are_sent_more_slowly(sweep):
    fault(
        sweep,
        "ebs:PutSnapshotBlock",
        nth=list(range(1, 8)),
        do="error",
        code="RequestThrottledException",
        http=400,
    )
    run(sweep, via="direct")
    assert sweep.problems() == []


def test_row_22_a_token_used_with_other_parameters_is_replaced_by_the_next(sweep):
    rule = fault(sweep, "ebs:StartSnapshot", nth=1, do="error", code="ConflictException", http=409)
    run(sweep, via="direct")
    assert rule.applied == 1
    tokens = [call.params["ClientToken"] for call in sweep.aws.calls.matching("ebs:StartSnapshot")]
    assert len(set(tokens)) == len(tokens) == 2
    assert sweep.problems() == []


def test_row_24_every_block_and_the_snapshot_have_checksums(sweep):
    run(sweep, via="direct")
    puts = done(sweep, "ebs:PutSnapshotBlock")
    assert puts
    for put in puts:
        assert put.params["DataLength"] == 524_288
        assert put.params["ChecksumAlgorithm"] == "SHA256"
        assert len(base64.b64decode(put.params["Checksum"])) == 32
    by_index = {put.params["BlockIndex"]: put.params["Checksum"] for put in puts}
    whole = hashlib.sha256(b"".join(base64.b64decode(by_index[index]) for index in sorted(by_index)))
    (completed,) = done(sweep, "ebs:CompleteSnapshot")
    assert completed.params["ChangedBlocksCount"] == len(by_index)
    assert completed.params["ChecksumAggregationMethod"] == "LINEAR"
    assert completed.params["Checksum"] == base64.b64encode(whole.digest()).decode()


def test_row_25_a_refused_direct_publish_leaves_no_pending_snapshot(sweep):
    fault(sweep, "ebs:PutSnapshotBlock", do="error", code="AccessDeniedException", http=403)
    with pytest.raises(errors.AwsError):
        run(sweep, via="direct")
    sweep.aws.faults.clear()
    assert sweep.account().empty
