"""Each job runs with exactly its policy, and names each action that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.aws.account import make_ami
from tests.privileges.account import REGION, without
from tests.privileges.job_runs import JOB_RUNS, job_run, removals
from vmsnix_ops import channels, errors
from vmsnix_ops.audit.sync import sync
from vmsnix_ops.aws.iam.permissions import PERMISSIONS
from vmsnix_ops.cli.policies import JOBS

if TYPE_CHECKING:
    from tests.privileges.account import Account


def test_every_run_belongs_to_a_job() -> None:
    assert set(JOB_RUNS) <= set(JOBS)


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.variants(quick=3)
def test_a_job_runs_with_exactly_its_policy(account: Account, job: str) -> None:
    job_run(job).run(account, JOBS[job].actions())


@pytest.mark.parametrize(
    ("job", "action"), [(job, action) for job, one in JOB_RUNS.items() for action in one.only_when]
)
@pytest.mark.variants(quick=2)
def test_a_special_case_runs_with_the_policy_of_its_job(account: Account, job: str, action: str) -> None:
    assert action in JOBS[job].actions()
    job_run(job).only_when[action](account, JOBS[job].actions())


@pytest.mark.long(seconds=1)
@pytest.mark.parametrize(("job", "action"), removals())
def test_a_job_names_a_missing_action(account: Account, job: str, action: str) -> None:
    known, lacking = job_run(job), without(JOBS[job].actions(), action)
    named = PERMISSIONS[action].action.lower()  # some services write their own name in capitals: SNS:Publish
    if action in known.reported:
        assert named in known.reported[action](account, lacking).lower()
        return
    with pytest.raises(errors.VmsnixError) as caught:
        known.only_when.get(action, known.run)(account, lacking)
    assert named in f"{caught.value} {getattr(caught.value, '__notes__', '')}".lower()


def test_the_policy_of_an_auditor_allows_reading_the_channels(account: Account) -> None:
    ami_id = make_ami(account.aws)
    account.aws.client("ssm").put_parameter(
        Name="/vmsnix/ecs-node/stable", Value=ami_id, Type="String", DataType="aws:ec2:image"
    )
    sync(regions=[REGION], session=account.aws.session())
    frame = channels.read(regions=[REGION], session=account.session(JOBS["audit"].actions()))
    assert list(frame["ami_id"]) == [ami_id]
    assert list(frame["problem"]) == [""]
    assert list(frame["drifted"]) == [False]
