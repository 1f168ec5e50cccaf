"""Every job runs with exactly its policy, and not with one action less: it then says which one it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.privileges.account import without
from tests.privileges.rehearsals import REHEARSALS, rehearsal, removals
from vmsnix_ops import errors
from vmsnix_ops.aws.iam.permissions import PERMISSIONS
from vmsnix_ops.cli.iam_policy import JOBS

if TYPE_CHECKING:
    from tests.privileges.account import Account


def test_every_rehearsal_is_one_of_a_job() -> None:
    assert set(REHEARSALS) <= set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_it_runs_with_exactly_its_policy(account: Account, job: str) -> None:
    rehearsal(job).run(account, JOBS[job].actions())


@pytest.mark.parametrize(
    ("job", "action"), [(job, action) for job, one in REHEARSALS.items() for action in one.only_when]
)
def test_it_may_do_what_it_needs_only_when_something_happens(account: Account, job: str, action: str) -> None:
    assert action in JOBS[job].actions()
    rehearsal(job).only_when[action](account, JOBS[job].actions())


@pytest.mark.long(seconds=1)
@pytest.mark.parametrize(("job", "action"), removals())
def test_without_one_action_it_names_that_action(account: Account, job: str, action: str) -> None:
    known, lacking = rehearsal(job), without(JOBS[job].actions(), action)
    named = PERMISSIONS[action].action
    if action in known.told:
        assert named in known.told[action](account, lacking)
        return
    with pytest.raises(errors.VmsnixError) as caught:
        known.only_when.get(action, known.run)(account, lacking)
    assert named in f"{caught.value} {getattr(caught.value, '__notes__', '')}"
