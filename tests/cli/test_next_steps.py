"""After a run, the terminal shows the command that usually comes next, and short tables."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest

from vmsnix_ops.audit.retirement._plan import _by_reason
from vmsnix_ops.cli import cli, output
from vmsnix_ops.cli.next_steps import next_command, with_sandbox
from vmsnix_ops.cli.policies import KINDS
from vmsnix_ops.display import make_table, shortened
from vmsnix_ops.runbooks import catalog, parameters
from vmsnix_ops.runbooks.execution.execute import RunOutcome
from vmsnix_ops.runbooks.execution.status import Failure

RUN = "20261130T081743599Z-x-28aa5e"


def failed(kind: str, code: str = "", **values: Any) -> dict[str, Any]:
    return {"status": "failed", "failure": {"type": kind, "what": "x", "detail": {"code": code}}, **values}


@pytest.mark.parametrize(
    ("book", "values", "command"),
    [
        (
            "publish-ami",
            {"ami_id": "ami-1", "region": "eu-west-1", "parameters": {}},
            "vmsnix smoke-test --ami=ami-1 --region=eu-west-1",
        ),
        (
            "smoke-test",
            {"ami_id": "ami-1", "region": "eu-west-1", "parameters": {}},
            "vmsnix promote --ami=ami-1 --region=eu-west-1 --channel=candidate",
        ),
        ("promote-ami", {"image": "web", "parameters": {}}, "vmsnix verify --image=web"),
        (
            "promote-ami",
            {
                "dry_run": True,
                "plan_fingerprint": "f1",
                "parameters": {"ami": "ami-1", "regions": ["us-east-1"], "dry_run": True, "public": False},
            },
            "vmsnix promote --ami=ami-1 --regions=us-east-1 --expect-plan=f1 --no-dry-run",
        ),
        ("promote-ami", {"dry_run": True, "plan_fingerprint": None, "parameters": {"dry_run": True}}, ""),
        (
            "retire-amis",
            {"dry_run": True, "plan_fingerprint": "f1", "parameters": {"dry_run": True}},
            "vmsnix retire --expect-plan=f1 --confirm=f1 --no-dry-run --yes",
        ),
        ("audit-inventory", {"parameters": {"regions": ["all"]}}, "vmsnix retire --dry-run --regions=all"),
        ("publish-ami", failed("InterruptedRunError"), f"vmsnix runs resume {RUN}"),
        ("publish-ami", failed("AwsError", "SlowDown"), f"vmsnix runs resume {RUN}"),
        ("audit-inventory", failed("DeadlineError"), f"vmsnix rerun {RUN}"),
        ("retire-amis", failed("DeadKernelError", dry_run=True), f"vmsnix rerun {RUN}"),
        ("promote-ami", failed("PartialError", status="partial"), f"vmsnix runs resume {RUN}"),
        ("promote-ami", failed("PartialError", dry_run=True), ""),
        ("publish-ami", failed("ParameterError"), "vmsnix help publish"),
        (
            "publish-ami",
            failed("RoleError", region="eu-west-1", parameters={"bucket": "images"}),
            "vmsnix bootstrap --region eu-west-1 --bucket images",
        ),
        ("promote-ami", failed("CredentialsError", "ExpiredToken"), "vmsnix preflight"),
        ("preflight", failed("CredentialsError", "ExpiredToken"), ""),
        (
            "publish-ami",
            failed("AccessDeniedError", parameters={"via": "direct"}),
            "vmsnix iam-policy publisher --via direct",
        ),
        (
            "retire-amis",
            failed(
                "StalePlanError", parameters={"regions": ["us-east-1"], "expect_plan": "f1", "confirm": "f1"}
            ),
            "vmsnix retire --regions=us-east-1 --dry-run",
        ),
        *(
            (book, failed(kind), "")
            for kind in (
                "ImageFormatError",
                "ConfirmationError",
                "SideEffectsError",
                "NameError",
                "AuditError",
            )
            for book in ("publish-ami", "audit-inventory")
        ),
        ("audit-inventory", {"status": "partial"}, f"vmsnix runs repair {RUN}"),
        ("import-timings", {"parameters": {}}, ""),
    ],
)
def test_the_next_command_fits_the_outcome_and_is_valid(
    book: str, values: dict[str, Any], command: str
) -> None:
    runbook = catalog.find(book)
    outcome = {"run_id": RUN, "status": "done", "exit_code": 0, "failure": None, **values}
    assert next_command(runbook, outcome, sandbox=False) == command
    words = shlex.split(command)
    if len(words) > 3 and words[1] in catalog.short_names().values():
        names = {word.lstrip("-").partition("=")[0] for word in words if word.startswith("--")}
        declared = {one.name.replace("_", "-") for one in catalog.find(words[1]).parameters}
        assert names <= {*declared, "no-dry-run", "yes"}
    if command:
        everywhere = words[1] in ("help", "iam-policy")
        expected = command if everywhere else f"{command} --sandbox"
        assert next_command(runbook, outcome, sandbox=True) == expected
    if words[1:2] == ["iam-policy"]:
        assert words[2] in KINDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run vmsnix history amis", "run vmsnix history amis --sandbox"),
        ("Promote one first: vmsnix promote", "Promote one first: vmsnix promote --sandbox"),
        ("vmsnix runs repair saves them later.", "vmsnix runs repair --sandbox saves them later."),
        ("vmsnix bootstrap --no-dry-run creates it.", "vmsnix bootstrap --sandbox --no-dry-run creates it."),
        ("Run vmsnix list or vmsnix help promote.", "Run vmsnix list or vmsnix help promote."),
        ("vmsnix rerun --sandbox ID", "vmsnix rerun --sandbox ID"),
        ("It was not made by vmsnix or vmsnix-ops.", "It was not made by vmsnix or vmsnix-ops."),
    ],
)
def test_commands_in_a_text_get_the_option_for_the_sandbox(text: str, expected: str) -> None:
    assert with_sandbox(text, cli) == expected


def test_the_error_of_a_run_on_the_sandbox_names_commands_of_the_sandbox(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = Failure("ChannelError", "No AMI.", fix="Run vmsnix history amis.")
    outcome = RunOutcome(
        RUN, "promote-ami", "failed", 1, "", "", "", "", 1.0, failure, {"sandbox": "http://127.0.0.1:9"}
    )
    monkeypatch.setattr("vmsnix_ops.endpoints.endpoint_kind", lambda: "aws")
    with click.Context(cli):
        output.show_failure(outcome)
    assert "Run vmsnix history amis --sandbox." in capsys.readouterr().err
    monkeypatch.setattr("vmsnix_ops.endpoints.endpoint_kind", lambda: "sandbox")
    with click.Context(cli):
        output.show_failure(outcome)
    assert "Run vmsnix history amis." in capsys.readouterr().err


def test_the_command_of_a_run_sets_its_parameters() -> None:
    book = catalog.find("publish")
    given = {"tags": {"Team": "a"}, "public": False, "kms_key": "x y"}
    line = parameters.command_line(book, given, sandbox=True)
    assert line == "vmsnix publish --tags=Team=a --no-public '--kms-key=x y' --sandbox"


def test_a_long_table_is_short_as_text_and_complete_in_a_notebook() -> None:
    table = shortened(make_table(["name"], [[f"row-{number}"] for number in range(30)]), 10, "all.csv")
    assert str(table).splitlines()[-2:] == ["row-9", "20 more rows in all.csv."]
    assert "row-29" in table._repr_html_()
    assert len(table.frame()) == 30
    short = make_table(["name"], [["a"]])
    assert shortened(short, 1, "all.csv") is short


def test_kept_amis_are_grouped_by_the_kind_of_their_reason() -> None:
    kept = [
        SimpleNamespace(resource_id=f"ami-{number}", reasons=(reason,))
        for number, reason in enumerate(
            [f"created {days} days ago, less than 30 days" for days in range(12)]
            + [f"one of the last 3 of /vmsnix/{name}/stable" for name in ("web", "db")]
            + ["in use: launch-template lt-1"]
        )
    ]
    lines = _by_reason(cast("Any", kept)).splitlines()
    assert lines[0] == "    12  such as: created 0 days ago, less than 30 days"
    assert lines[1] == "        ami-0, ami-1, ami-2 and 9 more"
    assert lines[2:4] == [
        "     2  such as: one of the last 3 of /vmsnix/web/stable",
        "        ami-12, ami-13",
    ]
    assert lines[-1] == "plan.csv and the report list all with their reasons."
    assert len(lines) == 7
