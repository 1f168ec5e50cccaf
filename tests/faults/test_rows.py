"""The rows of the list of real failures (docs/how-to/when-it-breaks.md) that no other file has tests of."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.faults.account import BUCKET, REGION, look
from tests.support import few
from vmsnix_ops import errors, publish
from vmsnix_ops.progress import silent


def run(publishers, **changes):
    asked = {"image": str(publishers.image), "region": REGION, "bucket": BUCKET, "progress": silent()}
    return publish.plan(**{**asked, **changes}).apply()


def done(publishers, name):
    return [call for call in publishers.aws.calls.matching(name, ran=True) if call.outcome == "ok"]


def fault(publishers, op, **rule):
    return publishers.aws.faults.add({"op": op, **rule})


@pytest.mark.parametrize("status", ["deleted", "deleting", "error", "cancelled"])
def test_row_01_every_terminal_state_of_an_import_ends_the_wait_at_once(publishers, status):
    values = {"Status": status, "StatusMessage": "ClientError: Unknown OS"}
    fault(publishers, "ec2:DescribeImportSnapshotTasks", nth=list(range(3, 40)), do="set", values=values)
    with pytest.raises(errors.ImportFailedError, match=f"task is {status}|Unknown OS"):
        run(publishers)
    # A look that shows a terminal state is the last one, but for the cleaning up.
    assert publishers.aws.calls.count("ec2:DescribeImportSnapshotTasks") <= 5


def test_row_04_aws_cancels_the_conversion_once_and_nothing_is_uploaded_again(publishers):
    message = "SERVER_ERROR : conversion : AWS initiated task cancellation"
    fault(publishers, "ec2:ImportSnapshot", nth=1, do="outcome", outcome={"status_message": message})
    run(publishers)
    assert len(done(publishers, "ec2:ImportSnapshot")) == 2
    assert len({call.params["ClientToken"] for call in done(publishers, "ec2:ImportSnapshot")}) == 2
    assert len(done(publishers, "s3:CompleteMultipartUpload")) == 1


def test_row_04_aws_cancels_every_conversion_and_the_tries_are_bounded(publishers):
    message = "SERVER_ERROR : conversion : AWS initiated task cancellation"
    fault(publishers, "ec2:ImportSnapshot", do="outcome", outcome={"status_message": message})
    with pytest.raises(errors.ImportFailedError, match="3 times"):
        run(publishers)
    assert len(done(publishers, "ec2:ImportSnapshot")) == 3
    assert look(publishers.aws).empty


def test_row_05_an_image_that_aws_refuses_leaves_no_object_for_the_next_run(publishers):
    message = "ClientError: Disk validation failed [Unsupported specified file format]"
    fault(publishers, "ec2:ImportSnapshot", nth=1, do="outcome", outcome={"status_message": message})
    with pytest.raises(errors.ImportFailedError, match="Disk validation failed"):
        run(publishers)
    assert look(publishers.aws).empty
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


def test_row_06_the_object_stays_as_long_as_an_import_reads_it(publishers):
    from tests.faults.publishers import Kill
    from vmsnix_ops.publish.pipeline import clean_bucket

    publishers.aws.clock.speed = 10  # the import outlives the publisher that started it
    publishers.publishers.run(
        publishers.job(publishers.state, "import", Kill("ec2:ImportSnapshot", 1, "after"))
    )
    plan = publish.plan(image=str(publishers.image), region=REGION, bucket=BUCKET, progress=silent())
    built = plan.build()
    clean_bucket(plan, built)
    account = look(publishers.aws)
    assert account.running
    assert account.objects
    publishers.aws.clock.advance(3600)
    clean_bucket(plan, built)
    assert look(publishers.aws).objects == ()


def test_row_08_an_import_that_aws_no_longer_lists_is_found_by_its_snapshot(publishers):
    fault(publishers, "ec2:RegisterImage", do="error", code="AMIQuotaExceeded", http=400)
    with pytest.raises(errors.QuotaError):
        run(publishers)
    publishers.aws.faults.clear()
    publishers.aws.state.tables.table(publishers.aws.account, REGION, "import_tasks").clear()
    run(publishers)
    assert len(done(publishers, "ec2:ImportSnapshot")) == 1
    assert list(look(publishers.aws).leftovers()) == []


def test_row_08_an_import_whose_snapshot_was_deleted_is_done_anew(publishers):
    first = run(publishers)
    ec2 = publishers.aws.client("ec2", REGION)
    ec2.deregister_image(ImageId=first.ami_id)
    ec2.delete_snapshot(SnapshotId=first.snapshot_id)
    second = run(publishers)
    assert second.snapshot_id != first.snapshot_id
    assert list(look(publishers.aws).leftovers()) == []


def test_row_10_a_snapshot_that_is_not_yet_seen_can_be_tagged_a_moment_later(publishers):
    code = "InvalidSnapshot.NotFound"
    rule = fault(publishers, "ec2:CreateTags", nth=[1, 2], do="error", code=code, http=400)
    run(publishers)
    assert rule.applied == 2


@pytest.mark.parametrize("code", ["SnapshotCreationPerVolumeRateExceeded", "ResourceCountLimitExceeded"])
def test_row_13_a_limit_is_told_and_what_was_done_is_kept(publishers, code):
    fault(publishers, "ec2:ImportSnapshot", do="error", code=code, http=400)
    with pytest.raises(errors.AwsError, match=code):
        run(publishers)
    publishers.aws.faults.clear()
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


def test_a_burst_of_throttling_is_waited_out(publishers):
    fault(publishers, "ec2:*", nth=[3, 4, 5, 9, 10], do="error", code="RequestLimitExceeded", http=503)
    fault(publishers, "s3:*", nth=[2, 3, 6], do="error", code="SlowDown", http=503)
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


@pytest.mark.parametrize(("code", "http"), [("InternalError", 500), ("ServiceUnavailable", 503)])
def test_server_errors_are_waited_out(publishers, code, http):
    rules = [fault(publishers, op, nth=[2, 3], do="error", code=code, http=http) for op in ("ec2:*", "s3:*")]
    run(publishers)
    assert [rule.applied for rule in rules] == [2, 2]
    assert list(look(publishers.aws).leftovers()) == []


@pytest.mark.parametrize(
    "cut",
    [
        {"op": "s3:UploadPart", "nth": 1, "do": "reset", "when": "body", "of": "request", "keep": 65536},
        {"op": "s3:UploadPart", "nth": 1, "do": "drop", "when": "after"},
        {"op": "ec2:RegisterImage", "nth": 1, "do": "reset", "when": "after"},
    ],
    ids=["reset in the upload's body", "answer of a part lost", "answer of the registration reset"],
)
def test_a_broken_connection_is_overcome(publishers, cut):
    rule = publishers.aws.faults.add(cut)
    run(publishers)
    assert rule.applied == 1
    assert list(look(publishers.aws).leftovers()) == []


def test_an_answer_that_is_cut_off_is_told_and_the_next_run_goes_on(publishers):
    fault(publishers, "ec2:ImportSnapshot", nth=1, do="drop", when="body", keep=100)
    with pytest.raises(errors.AwsError, match="response was incomplete"):
        run(publishers)
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


def test_a_hung_answer_is_given_up_and_asked_again(publishers, monkeypatch):
    import botocore.config

    whole = botocore.config.Config.__init__
    # The real limit is a minute.
    monkeypatch.setattr(
        botocore.config.Config, "__init__", lambda self, *a, **k: whole(self, *a, **{**k, "read_timeout": 1})
    )
    rule = fault(publishers, "ec2:RegisterImage", nth=1, do="hang", seconds=5)
    run(publishers)
    assert rule.applied == 1
    assert list(look(publishers.aws).leftovers()) == []


def test_slow_answers_are_only_slow(publishers):
    fault(publishers, "ec2:Describe*", nth=[2, 4], do="delay", seconds=0.5)
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


@pytest.mark.parametrize(
    "operation", few(["s3:UploadPart", "ec2:ImportSnapshot", "ec2:RegisterImage"], 1, seconds=1)
)
def test_expired_credentials_say_how_to_go_on_and_the_next_run_does(publishers, operation):
    fault(publishers, operation, do="error", code="ExpiredToken", http=400)
    with pytest.raises(errors.CredentialsError, match="continues where it stopped"):
        run(publishers)
    publishers.aws.faults.clear()
    run(publishers)
    assert list(look(publishers.aws).leftovers()) == []


def test_a_clock_that_is_wrong_is_named(publishers):
    from datetime import timedelta

    publishers.aws.clock.skew = timedelta(hours=1)
    try:
        with pytest.raises(errors.CredentialsError):
            run(publishers, via="direct")
    finally:
        publishers.aws.clock.skew = timedelta(0)
    assert look(publishers.aws).empty


def test_a_dead_region_ends_with_one_clear_error(publishers):
    fault(publishers, "ec2:*", do="drop")
    with pytest.raises(errors.AwsError, match="again"):
        run(publishers)
    publishers.aws.faults.clear()
    assert look(publishers.aws).empty


def test_row_18_a_fresh_snapshot_that_is_not_yet_seen_takes_its_blocks_later(publishers):
    code = "ResourceNotFoundException"
    rule = fault(publishers, "ebs:PutSnapshotBlock", nth=[1, 2, 3], do="error", code=code, http=404)
    publishers.aws.clock.speed = 100
    run(publishers, via="direct")
    assert rule.applied == 3
    assert list(look(publishers.aws).leftovers()) == []


def test_row_20_a_snapshot_that_expired_is_begun_anew_and_nothing_is_left(publishers):
    from tests.faults.publishers import Kill

    state = publishers.state
    publishers.aws.clock.speed = 100  # the second snapshot must not expire while its workers start
    publishers.publishers.run(publishers.job(state, "direct", Kill("ebs:CompleteSnapshot", 1, "before")))
    publishers.aws.clock.advance(2 * 3600)
    (ended,) = publishers.publishers.run(publishers.job(state, "direct"))
    assert ended.status == 0, ended.text
    assert list(look(publishers.aws).leftovers()) == []


def test_row_21_throttled_blocks_are_sent_more_slowly(publishers):
    fault(
        publishers,
        "ebs:PutSnapshotBlock",
        nth=list(range(1, 8)),
        do="error",
        code="RequestThrottledException",
        http=400,
    )
    publishers.aws.clock.speed = 100
    run(publishers, via="direct")
    assert list(look(publishers.aws).leftovers()) == []


def test_row_22_a_token_that_was_used_otherwise_is_followed_by_the_next(publishers):
    rule = fault(publishers, "ebs:StartSnapshot", nth=1, do="error", code="ConflictException", http=409)
    publishers.aws.clock.speed = 100
    run(publishers, via="direct")
    assert rule.applied == 1
    tokens = [call.params["ClientToken"] for call in publishers.aws.calls.matching("ebs:StartSnapshot")]
    assert len(set(tokens)) == len(tokens) == 2
    assert list(look(publishers.aws).leftovers()) == []


def test_row_24_every_block_and_the_whole_carry_their_checksums(publishers):
    publishers.aws.clock.speed = 100
    run(publishers, via="direct")
    puts = done(publishers, "ebs:PutSnapshotBlock")
    assert puts
    for put in puts:
        assert put.params["DataLength"] == 524_288
        assert put.params["ChecksumAlgorithm"] == "SHA256"
        assert len(base64.b64decode(put.params["Checksum"])) == 32
    by_index = {put.params["BlockIndex"]: put.params["Checksum"] for put in puts}
    whole = hashlib.sha256(b"".join(base64.b64decode(by_index[index]) for index in sorted(by_index)))
    (sealed,) = done(publishers, "ebs:CompleteSnapshot")
    assert sealed.params["ChangedBlocksCount"] == len(by_index)
    assert sealed.params["ChecksumAggregationMethod"] == "LINEAR"
    assert sealed.params["Checksum"] == base64.b64encode(whole.digest()).decode()


def test_row_25_a_refused_direct_publish_leaves_no_pending_snapshot(publishers):
    fault(publishers, "ebs:PutSnapshotBlock", do="error", code="AccessDeniedException", http=403)
    publishers.aws.clock.speed = 100
    with pytest.raises(errors.AwsError):
        run(publishers, via="direct")
    publishers.aws.faults.clear()
    assert look(publishers.aws).empty
