"""Faults of the network and AWS: the snapshot has the image's bytes, or there is one clear error."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import boto3
import pytest

from tests.aws.ebs_direct.test_resume import BLOCK, REGION, Upload, aws, image, puts, snapshots
from tests.publish.test_publish import bytes_of
from tests.quick import SNAPSHOT_MINUTES
from tests.support import join, wait_until
from vmsnix_ops import errors
from vmsnix_ops.aws.ebs_direct import engine, writing
from vmsnix_ops.aws.ebs_direct import worker as block_worker
from vmsnix_ops.aws.ebs_direct.engine import BlockRefusedError, TransferConfig
from vmsnix_ops.aws.ebs_direct.wire import Answer, BlockEndpoint, Keys
from vmsnix_ops.aws.ebs_direct.worker import RAMP_UP_SECONDS, RampUp, RateLimiter, TransferJob, Worker
from vmsnix_ops.disk.formats import open_image

__all__ = ["aws", "image"]
PUT = "ebs:PutSnapshotBlock"
THROTTLED = {"code": "RequestThrottledException", "http": 400, "message": "Rate exceeded"}
GONE = {"code": "ResourceNotFoundException", "http": 404, "message": "The snapshot does not exist."}


@pytest.fixture
def upload(image, tmp_path):
    return Upload(image, tmp_path / "records")


def arrived(aws, made, image) -> bool:
    return bytes_of(aws, made.snapshot_id, image.stat().st_size) == image.read_bytes()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"do": "error", "probability": 0.3, **THROTTLED}, id="throttled"),
        pytest.param({"do": "error", "probability": 0.3, "code": "InternalServerException"}, id="500"),
        pytest.param({"do": "error", "nth": [1, 2, 9], "http": 503, "code": "Unavailable"}, id="503"),
        pytest.param({"do": "drop", "probability": 0.3}, id="dropped"),
        pytest.param({"do": "drop", "when": "after", "probability": 0.3}, id="answer lost"),
        pytest.param({"do": "reset", "probability": 0.3}, id="reset"),
        pytest.param(
            {"do": "reset", "when": "body", "of": "request", "keep": 100_000, "nth": [2, 5, 6]}, id="cut"
        ),
        pytest.param({"do": "drop", "when": "body", "keep": 10, "nth": [1, 7]}, id="answer cut"),
        pytest.param({"do": "error", "nth": [1, 2, 3, 4, 5, 6], **GONE}, id="not yet visible"),
    ],
)
@pytest.mark.variants(seconds=2)
def test_temporary_errors_are_retried(aws, image, upload, fault):
    rule = aws.faults.add({"op": PUT, **fault})
    made = upload.run()
    assert rule.applied > 0
    assert arrived(aws, made, image)
    assert snapshots(aws) == {made.snapshot_id: "completed"}


def test_a_hanging_put_is_sent_again(aws, image, upload):
    aws.faults.add({"op": PUT, "do": "hang", "nth": [1, 4], "seconds": 10_000})
    made = upload.run(TransferConfig(2, 8, read_seconds=1))
    assert arrived(aws, made, image)


def test_a_snapshot_that_expires_during_the_upload_is_replaced(aws, image, upload):
    aws.faults.add({"op": PUT, "do": "delay", "seconds": 0.2})

    def let_it_expire() -> None:
        wait_until(lambda: puts(aws) >= 5, "the put of five blocks")
        aws.clock.advance((SNAPSHOT_MINUTES + 1) * 60)

    thread = threading.Thread(target=let_it_expire)
    thread.start()
    made = upload.run()
    join(thread)
    assert arrived(aws, made, image)
    assert snapshots(aws) == {made.snapshot_id: "completed"}


def test_a_refused_block_leaves_no_snapshot(aws, upload, monkeypatch):
    monkeypatch.setattr(writing, "COMPLETION_SECONDS", 1)  # for another machine, of which there is none
    aws.faults.add({"op": PUT, "do": "error", "nth": 9, "http": 400, "code": "ValidationException"})
    with pytest.raises(BlockRefusedError, match="ValidationException"):
        upload.run()
    assert snapshots(aws) == {}
    assert not upload.journal.exists()


def test_an_image_that_changes_during_the_upload_is_refused_and_leaves_nothing(aws, image, upload):
    """AWS takes no block whose bytes are not those that were hashed."""
    aws.faults.add({"op": PUT, "do": "delay", "seconds": 0.3})

    def change() -> None:
        wait_until(lambda: puts(aws), "the put of a block")
        image.write_bytes(b"other" * (40 * BLOCK // 5))

    thread = threading.Thread(target=change)
    thread.start()
    with pytest.raises(errors.ImageError, match="changed"):
        upload.run(TransferConfig(1, 2))
    join(thread)
    assert snapshots(aws) == {}
    assert not upload.journal.exists()


def test_an_image_that_changes_where_nothing_is_sent_is_refused_too(aws, image, upload, monkeypatch):
    first, send = upload.run().snapshot_id, engine.run
    with image.open("r+b") as file:
        file.write(b"changed")

    def run(*arguments, **more):
        throttled = send(*arguments, **more)
        with image.open("r+b") as file:
            file.seek(20 * BLOCK)
            file.write(b"changed")
        return throttled

    monkeypatch.setattr(engine, "run", run)
    with pytest.raises(errors.ImageError, match="changed"):
        Upload(image, upload.journal.parent).run()
    assert snapshots(aws) == {first: "completed"}


def test_throttling_beyond_the_budget_reports_the_ceiling_and_keeps_the_blocks(aws, image, upload):
    aws.faults.add({"op": PUT, "do": "error", "nth": list(range(20, 2000)), **THROTTLED})
    with pytest.raises(BlockRefusedError) as caught:
        upload.run(TransferConfig(2, 8, budget_seconds=1))
    assert "ceiling" in caught.value.fix
    assert set(snapshots(aws).values()) == {"pending"}
    aws.faults.clear()
    before = puts(aws)
    made = upload.run()
    assert puts(aws) - before < 30
    assert arrived(aws, made, image)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"extra": {"Reason": "ACCOUNT_THROTTLED"}}, "PutSnapshotBlock requests per account in this region"),
        ({"extra": {"Reason": "RESOURCE_LEVEL_THROTTLE"}}, "1,000 requests a second for one snapshot"),
        ({"code": "ThrottlingException"}, "PutSnapshotBlock requests per account in this region"),
    ],
)
def test_a_throttled_upload_names_the_limit(aws, upload, fault, text):
    aws.faults.add({"op": PUT, "do": "error", **THROTTLED, **fault})
    with pytest.raises(BlockRefusedError) as caught:
        upload.run(TransferConfig(2, 8, budget_seconds=0.5))
    assert text in caught.value.why
    assert "put_ceiling" in caught.value.fix


def test_a_transfer_has_a_time_limit(aws, upload):
    aws.faults.add({"op": PUT, "do": "hang", "seconds": 60})
    with pytest.raises(errors.DeadlineError):
        upload.run(TransferConfig(2, 8, total_seconds=2))
    assert set(snapshots(aws).values()) == {"pending"}


def test_a_denied_put_reports_the_action(aws, upload):
    denied = {"code": "AccessDeniedException", "http": 403, "message": "no"}
    aws.faults.add({"op": PUT, "do": "error", **denied})
    with pytest.raises(errors.AccessDeniedError) as caught:
        upload.run()
    assert "ebs:PutSnapshotBlock" in caught.value.fix
    assert snapshots(aws) == {}


def test_expiring_credentials_are_refreshed_during_the_upload(aws, image, upload):
    from botocore.credentials import RefreshableCredentials

    good = {
        "access_key": aws.environment["AWS_ACCESS_KEY_ID"],
        "secret_key": aws.environment["AWS_SECRET_ACCESS_KEY"],
        "token": None,
        "expiry_time": "2099-01-01T00:00:00Z",
    }
    expired = {"code": "ExpiredTokenException", "http": 403, "message": "expired"}
    rule = aws.faults.add({"op": PUT, "do": "error", "nth": list(range(10, 2000)), **expired})
    session = boto3.Session(region_name=REGION)
    refreshed: list[int] = []

    class Renewed(RefreshableCredentials):
        """Hands out the other key once the sandbox refuses the first."""

        def get_frozen_credentials(self):
            found = super().get_frozen_credentials()
            if rule.applied and not refreshed:
                refreshed.append(1)
                aws.faults.clear()
            return found._replace(token="second") if refreshed else found

    session._session._credentials = Renewed.create_from_metadata(good, lambda: good, "test")
    made = upload.run(session=session)
    assert refreshed
    assert arrived(aws, made, image)


def test_credentials_that_stay_expired_end_the_run_and_keep_the_blocks(aws, upload):
    expired = {"code": "ExpiredTokenException", "http": 403, "message": "expired"}
    aws.faults.add({"op": PUT, "do": "error", "nth": list(range(10, 2000)), **expired})
    with pytest.raises(errors.CredentialsError) as caught:
        upload.run()
    assert "continues from the transferred blocks" in caught.value.fix
    assert set(snapshots(aws).values()) == {"pending"}


def test_a_lost_response_to_the_completion_is_no_failure(aws, image, upload):
    aws.faults.add({"op": "ebs:CompleteSnapshot", "do": "drop", "when": "after", "nth": 1})
    assert arrived(aws, upload.run(), image)


def test_a_snapshot_that_fails_after_its_completion_is_deleted(aws, upload):
    aws.faults.add(
        {"op": "ebs:CompleteSnapshot", "do": "outcome", "outcome": {"status_message": "Internal failure"}}
    )
    with pytest.raises(errors.SnapshotFailedError):
        upload.run()
    assert snapshots(aws) == {}
    assert not upload.journal.exists()


def test_the_ceiling_bounds_the_rate(aws, upload):
    started = time.monotonic()
    upload.run(TransferConfig(1, 8, ceiling=10))
    assert time.monotonic() - started > 30 / 10 - 1


def test_throttled_blocks_are_sent_more_slowly(monkeypatch, image) -> None:
    now, sent = [1000.0], list[float]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(block_worker, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    job = TransferJob("put", "snap-0123456789abcdef0", str(image), raw=True, threads=1, rate=20, budget=60)
    worker = Worker(job, BlockEndpoint("http://127.0.0.1:1", REGION), Keys("key", "secret"))

    def put(*_arguments: object, **_more: object) -> Answer:
        sent.append(now[0])
        return Answer(400, "RequestThrottledException") if len(sent) in (1, 21) else Answer(201)

    monkeypatch.setattr(worker, "wire", SimpleNamespace(put=put, keys=worker.wire.keys))
    with open_image(image) as disk:
        for index in [number for number in range(40) if number % 4 != 3]:
            data = disk.read(index * BLOCK, BLOCK)
            worker.put(disk, index, hashlib.sha256(data).hexdigest())
    gaps = [later - earlier for earlier, later in pairwise(sent)]
    # The rate climbs by 0.2 % a block. Of the turns after a throttled answer two were given out before it.
    assert gaps[2:20] == pytest.approx([1 / 10] * 18, rel=0.05)
    assert gaps[22:] == pytest.approx([1 / 5] * 9, rel=0.1)


@pytest.mark.parametrize("wrong", [b"other" * (BLOCK // 5) + b"end", bytes(BLOCK), bytes(BLOCK - 1), b""])
def test_a_block_that_does_not_match_its_checksum_is_downloaded_again(
    monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    monkeypatch.setattr(block_worker, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: None))
    job = TransferJob("digest", "snap-0123456789abcdef0", "", raw=True, threads=1, rate=1e6, budget=60)
    worker = Worker(job, BlockEndpoint("http://127.0.0.1:1", REGION), Keys("key", "secret"))
    data = b"block" * (BLOCK // 5) + b"end"
    checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
    short = base64.b64encode(hashlib.sha256(wrong).digest()).decode()  # right, but for too few bytes
    answers = [
        Answer(200, body=wrong, checksum=checksum),
        *([Answer(200, body=wrong, checksum=short)] if len(wrong) < BLOCK else []),
        Answer(200, body=data, checksum=checksum),
    ]
    monkeypatch.setattr(
        worker, "wire", SimpleNamespace(get=lambda *_, **__: answers.pop(0), keys=worker.wire.keys)
    )
    assert worker.digest(7, "token") == (7, hashlib.sha256(data).hexdigest())
    assert answers == []


def test_all_threads_are_active_when_they_wait_and_few_when_they_work() -> None:
    waiting, working = RampUp(20), RampUp(20)
    seen = []
    for _ in range(3):
        time.sleep(RAMP_UP_SECONDS)
        waiting.update()
        seen.append(waiting.open)
    assert seen == [8, 16, 20]
    assert waiting.seconds is None
    for _ in range(5):
        end = time.process_time() + RAMP_UP_SECONDS
        while time.process_time() < end:  # ends: it takes the time itself
            pass
        working._at = time.monotonic() - RAMP_UP_SECONDS  # whatever else this machine does
        working.update()
    assert working.open == 4
    assert RampUp(2).open == 2


def test_the_rate_halves_once_for_a_burst_and_rises_again() -> None:
    limiter = RateLimiter(1_000_000)
    limiter._cut -= 1
    limiter.slower()
    limiter.slower()
    assert limiter.rate == 500_000
    for _ in range(500):
        limiter.wait()  # ends: after a millionth of a second
    assert limiter.rate == 1_000_000
    assert BLOCK == 524_288
