"""An AMI is never both retired and used, in any order of the calls of the two jobs; both may fail."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.audit.retirement.fleet import OTHER_ACCOUNT, REGION, Fleet, fleet, fleet_sandbox
from tests.faults.interleaving import Actor, every_order
from vmsnix_ops import errors
from vmsnix_ops.aws import parameters, retiring
from vmsnix_ops.aws import tags as tagging
from vmsnix_ops.channels import promote, rollback
from vmsnix_ops.progress import silent
from vmsnix_ops.publish import smoke
from vmsnix_ops.records.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["fleet", "fleet_sandbox"]
CHANNEL = "/vmsnix/web/stable"
WHOLE = bool(os.environ.get("VMSNIX_WHOLE_TESTS"))
"""Stop at every read of the other job's write, not only at the first: hundreds of orders for each test."""
pytestmark = pytest.mark.usefixtures("nothing_is_recorded")
USERS = ("promote", "smoke test", "promote the first", "roll back")


@pytest.fixture
def nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no tables: these tests do not read them, and writing takes most of the time."""
    monkeypatch.setattr(Tables, "append", lambda *_words, **_more: None)


class UseRace:
    """Two AMIs, a channel, and two jobs for one of the AMIs: a retirement and a use."""

    def __init__(self, fleet: Fleet, user: str) -> None:
        self.fleet, self.user = fleet, user
        self.before, self.ami = fleet.ami(days=80), fleet.ami(days=60)
        fleet.share(self.ami, OTHER_ACCOUNT)
        if user == "roll back":
            fleet.set_parameter(CHANNEL, self.ami)
        if user != "promote the first":
            fleet.set_parameter(CHANNEL, self.before)
        else:
            self.before = ""
        self.retirer = Actor("retire", fleet.aws.session(REGION), self._decides_retirement)
        self.user_job = Actor("use", fleet.aws.session(REGION), self._decides_use)
        self.marked = self.read = self.used = False
        self.retirement = fleet.plan(
            amis=[self.ami], allow_shared=True, session=self.retirer.session, launched_days=0
        )
        assert [one.resource_id for one in self.retirement.planned] == [self.ami]
        self.use = self._use()
        self.tables = fleet.aws.state.save_tables()

    def _use(self) -> Callable[[], Any]:
        given: dict[str, Any] = {"dry_run": False, "progress": silent(), "session": self.user_job.session}
        if self.user == "smoke test":
            tested = smoke.plan(ami=self.ami, region=REGION, **given)
            return lambda: tested.apply()
        given |= {"image": "web", "channel": "stable", "region": REGION}
        if self.user == "roll back":
            return rollback.plan(to=self.ami, **given).apply
        return promote.plan(ami=self.ami, **given).apply

    def _decides_retirement(self, call: str, parameters: Mapping[str, Any]) -> bool:
        if call == "ec2:CreateTags" and parameters["Resources"] == [self.ami]:
            self.marked = True
            return True
        if call == "ec2:DisableImage":
            return True
        if WHOLE:
            return self.marked and call in ("ssm:GetParameters", "ssm:GetParametersByPath")
        # The first read of references after the mark.
        first = self.marked and not self.read and call == "ssm:GetParameters"
        self.read = self.read or first
        return first

    def _decides_use(self, call: str, parameters: Mapping[str, Any]) -> bool:
        if call in ("ssm:PutParameter", "ec2:RunInstances", "ssm:DeleteParameter"):
            self.used = True
            return True
        # The first read after the write; in a long run also those after the write was reverted.
        first = self.used and call == "ec2:DescribeImages"
        self.used = self.used and (WHOLE or not first)
        return first

    def begin(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.fleet.aws.state.restore_tables(self.tables)
        self.marked = self.read = self.used = False
        console = {"op": "ec2:RunInstances", "do": "outcome", "outcome": {"console": "NixOS"}}
        self.fleet.aws.faults.add(console)
        return self.retirement.apply, self.use

    @property
    def actors(self) -> tuple[Actor, Actor]:
        return self.retirer, self.user_job

    def verdict(self, *, stale: bool = False) -> tuple[bool, bool]:
        """Check the account against both results; return whether the AMI was retired, and used."""
        if stale:
            self.fleet.aws.faults.clear()
        if self.user_job.error is not None:
            raise self.user_job.error
        if isinstance(
            self.retirer.error, errors.StalePlanError
        ):  # it noticed the other job before it started
            retired = False
        elif self.retirer.error is not None:
            raise self.retirer.error
        else:
            (one,) = self.retirer.result.outcomes
            retired = one.outcome == "changed"
            assert one.outcome in ("changed", "skipped"), one
        found = self.user_job.result
        used = found.passed if self.user == "smoke test" else found.status == "done"
        named = parameters.find_parameter(self.fleet.client("ssm"), CHANNEL)
        assert self.fleet.amis()[self.ami] == ("disabled" if retired else "available")
        if not retired:
            assert not any(retiring.is_retirement_tag(key) for key in self.fleet.tags(self.ami))
            assert self.fleet.permissions(self.ami) == [{"UserId": OTHER_ACCOUNT}]
        if self.user == "smoke test":
            assert self._alive() == []
        else:
            assert (named.value if named else "") == (self.ami if used else self.before)
        if not used:
            error = found.error
            # EC2 refuses to launch an AMI that was disabled before vmsnix could read the mark.
            assert isinstance(
                error, errors.AwsError if self.user == "smoke test" else errors.RegistrationError
            )
        return retired, used

    def _alive(self) -> list[str]:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        found = self.fleet.ec2.describe_instances(Filters=states)["Reservations"]
        return [one["InstanceId"] for group in found for one in group["Instances"]]


def ended_before_the_mark(user: str, order: str) -> bool:
    """Return whether the test's instance was terminated before the retirement's second turn set the mark."""
    return user == "smoke test" and "u" not in order.split("r", 2)[-1] and order.count("r") > 1


@pytest.mark.long(seconds=15)
@pytest.mark.parametrize("user", USERS)
def test_in_every_order_a_retired_ami_is_not_used(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0,))
    race, seen = UseRace(fleet, user), {}
    for order in every_order(race.actors, race.begin):
        seen[order] = race.verdict()
    assert [
        order
        for order, both in seen.items()
        if both == (True, True) and not ended_before_the_mark(user, order)
    ] == []
    assert (True, False) in seen.values()
    assert (False, True) in seen.values() or user == "smoke test"
    assert len(seen) >= 20


@pytest.mark.long(seconds=50)
@pytest.mark.parametrize(
    ("user", "reads"),
    [(user, reads) for user in USERS for reads in (1, 2) if WHOLE or user == "promote" or reads == 2],
)
def test_in_every_order_with_stale_reads_a_retired_ami_is_not_used(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, user: str, reads: int
) -> None:
    """After every write, the first reads of each kind still show the state before it."""
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0, 0.0, 0.0))
    race, seen = UseRace(fleet, user), {}

    def begin() -> tuple[Callable[[], Any], Callable[[], Any]]:
        jobs = race.begin()
        for op in ("ssm:GetParameter*", "ec2:DescribeInstances", "ec2:DescribeImages"):
            fleet.aws.faults.add({"op": op, "do": "stale", "reads": reads})
        return jobs

    for order in every_order(race.actors, begin):
        seen[order] = race.verdict(stale=True)
    assert [
        order
        for order, both in seen.items()
        if both == (True, True) and not ended_before_the_mark(user, order)
    ] == []
    assert {True} < {won for both in seen.values() for won in both}


class RestoreRace:
    """An AMI that one run retires or deletes while another run restores it."""

    def __init__(self, fleet: Fleet, *, deletes: bool) -> None:
        self.fleet, self.deletes = fleet, deletes
        self.ami = fleet.ami()
        fleet.share(self.ami, OTHER_ACCOUNT)
        fleet.apply(allow_shared=True)
        if not deletes:
            fleet.ec2.enable_image(ImageId=self.ami)  # by hand: it has the mark and can be launched
        self.retirer = Actor("delete or retire", fleet.aws.session(REGION), self._decides)
        self.restorer = Actor("restore", fleet.aws.session(REGION), self._decides)
        when = {"now": fleet.later()} if deletes else {}
        self.retirement = fleet.plan(allow_shared=True, session=self.retirer.session, **when)
        self.restoration = fleet.plan(action="restore", session=self.restorer.session)
        self.tables = fleet.aws.state.save_tables()

    def _decides(self, call: str, parameters: Mapping[str, Any]) -> bool:
        if call == "ec2:CreateTags":
            return bool(parameters["Resources"] == [self.ami])
        if call in ("ec2:DisableImage", "ec2:EnableImage", "ec2:DeregisterImage"):
            return True
        return call == "ec2:DeleteTags" and parameters["Resources"] == [self.ami]

    def begin(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        self.fleet.aws.state.restore_tables(self.tables)
        return self.retirement.apply, self.restoration.apply

    def verdict(self) -> tuple[bool, bool]:
        """Check the AMI against both results; return whether it was retired or deleted, and restored."""
        won = []
        for actor in (self.retirer, self.restorer):
            if isinstance(actor.error, errors.StalePlanError):
                won.append("")
                continue
            if actor.error is not None:
                raise actor.error
            won.append(actor.result.outcomes[0].outcome)
        retired, restored = won[0] in ("deleted", "changed"), won[1] == "changed"
        state = self.fleet.amis().get(self.ami, "")
        assert (state == "") == (won[0] == "deleted")
        if state:
            has_mark = tagging.RETIRED in self.fleet.tags(self.ami)
            assert has_mark or state == "available", "it is disabled without a mark"
        if restored:
            assert state == "available"
            # A retirement that marks it after the restoration and gives up restores the mark that it found.
            marked = any(retiring.is_retirement_tag(key) for key in self.fleet.tags(self.ami))
            assert not marked or won[0] == "skipped"
            assert self.fleet.permissions(self.ami) == [{"UserId": OTHER_ACCOUNT}]
        elif won[0] == "changed":
            assert (state, self.fleet.permissions(self.ami)) == ("disabled", [])
        return retired, restored


@pytest.mark.long(seconds=12)
@pytest.mark.parametrize("deletes", [True, False], ids=["delete", "retire"])
def test_the_results_match_the_ami_in_every_order_of_retiring_and_restoring(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, deletes: bool
) -> None:
    """A deletion and a restoration never both succeed; a restoration after a complete retirement can."""
    monkeypatch.setattr(retiring, "READ_PAUSES", (0.0,))
    race, seen = RestoreRace(fleet, deletes=deletes), {}
    for order in every_order((race.retirer, race.restorer), race.begin):
        seen[order] = race.verdict()
    if deletes:
        assert [order for order, both in seen.items() if both == (True, True)] == []
    assert {won for both in seen.values() for won in both} == {True, False}
