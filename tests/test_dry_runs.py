"""Dry runs of all runbooks, wherever they are shown: marked as dry runs, and without claims of changes."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest

from tests.aws.account import make_ami
from tests.sandbox.clients import allow_public_images
from vmsnix_ops import bootstrap, fleet, promote, publish, retire, rollback, smoke_test
from vmsnix_ops.cli import output, runs
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.progress import silent
from vmsnix_ops.records.result import KEYS, is_dry_run, runs_row
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.console.runner import summary_html
from vmsnix_ops.runbooks.evidence import github, report
from vmsnix_ops.runbooks.evidence.runs import ArchivedRun
from vmsnix_ops.runbooks.evidence.writing import all_parameters, first_entry
from vmsnix_ops.runbooks.execution.execute import RunOutcome
from vmsnix_ops.sandbox import Sandbox, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmsnix_ops.records.result import Result

REGION, BUCKET = "us-east-1", "vmsnix-images"
READS = ("Describe", "Get", "Head", "List", "Simulate")
PLAN = '[[entry]]\nrunbook = "verify-amis"\nregions = ["us-east-1"]\n'
# A verb in the past says that something was done, unless it is part of a plan ("will be created").
CLAIM = re.compile(
    r"(?<!will be )(?<!would be )(?<!is not )(?<!nothing was )\b(published|promoted|retired|launched|"
    r"terminated|uploaded|imported|copied|shared|set|moved|rolled back|registered|created|deleted|made)\b"
)
# Texts that are no claim: columns, steps, and states of what exists.
CODE = re.compile(
    r"<(style|script)(?! type=.application/json)[^>]*>.*?</\1>", re.DOTALL
)  # not read by people
NO_CLAIM = re.compile(
    r"set channel|set /vmsnix|not shared|(is|are) deleted|created_at|created \d+ \w+ ago"
    r"|(\| |  |>)created( \||  |<)"
)
DRY = "dry run"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("dry")
    with sandbox(speed=20000) as aws, pytest.MonkeyPatch.context() as patch:
        for name, value in aws.environment.items():
            patch.setenv(name, value)
        patch.setenv("VMSNIX_STATE", str(folder / "state"))
        patch.chdir(folder)
        aws.prepare(bucket=BUCKET, region=REGION)
        allow_public_images(aws, REGION)
        for version in ("26.11", "26.12"):
            made = make_ami(aws, version=version)
            done = promote.plan(ami=made, channel="stable", dry_run=False, progress=silent()).apply()
            assert done.status == "done"
        make_sample_image(folder / "image", name="sample")
        Path("fleet.toml").write_text(PLAN)
        yield aws


def published() -> Result:
    return publish.plan(image="./image", bucket=BUCKET, dry_run=True, progress=silent()).apply()


JOBS: dict[str, Callable[[], Result]] = {
    "publish-ami": published,
    "bootstrap": lambda: bootstrap.plan(region=REGION, bucket="another-bucket").apply(),
    "smoke-test": lambda: smoke_test.plan(image="ecs-node", dry_run=True, progress=silent()).apply(),
    "promote-ami": lambda: promote.plan(
        image="ecs-node", channel="candidate", regions=["eu-west-1"], share_with=["210987654321"],
        deprecate_days=365, protect=True, progress=silent(),
    ).apply(),
    "rollback": lambda: rollback.plan(image="ecs-node", channel="stable", progress=silent()).apply(),
    "retire-amis": lambda: retire.plan(
        keep_last=0, min_age_days=0, launched_days=0, now=datetime.now(UTC) + timedelta(days=90),
        images=["ecs-node"], progress=silent(),
    ).apply(),
    "fleet": lambda: fleet.plan("fleet.toml").apply(),
}  # fmt: skip


def test_every_runbook_with_a_dry_run_has_a_job_here() -> None:
    with_dry_run = {
        book.name for book in catalog.runbooks() if any(one.name == "dry_run" for one in book.parameters)
    }
    assert set(JOBS) == with_dry_run


@pytest.mark.parametrize("name", JOBS)
def test_a_dry_run_is_marked_and_claims_nothing_wherever_it_is_shown(
    name: str, aws: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = len(aws.calls)
    result = JOBS[name]()
    made = [call.operation for call in list(aws.calls)[before:] if call.ran and call.outcome == "ok"]
    assert [operation for operation in made if not operation.startswith(READS)] == []
    book, now = catalog.find(name), datetime.now(UTC)
    given = all_parameters(book, {"dry_run": True})
    values: dict[str, Any] = {
        **dict.fromkeys(KEYS),
        **result._values(),
        **first_entry(book, f"20261125T193321433Z-{name}-aca377", given, {}, tmp_path, now),
        "finished_at": now.isoformat(),
        "seconds": 1.0,
    }
    assert (values["status"], values["dry_run"]) == ("done", True)
    places = {
        "text": str(result),
        "html": result._repr_html_(),
        "report": report.render(nbformat.v4.new_notebook(), values),
        "console": summary_html(values),
        "summary": github.summary(values),
        "end": _shown(values),
        "runs": _printed(lambda: runs._list([_archived(values)]), capsys),
        "runs show": _printed(lambda: runs._show(_archived(values)), capsys),
    }
    assert [place for place, text in places.items() if DRY not in text.lower()] == []
    assert "<title>" in places["report"]
    assert DRY in places["report"].partition("</title>")[0]
    assert places["summary"].splitlines()[0].endswith(f"{name}: done (dry run: nothing was changed)")
    assert {place: found for place, text in places.items() if (found := claims(text))} == {}
    if values["ami_id"]:
        later = ("report", "console", "summary", "end", "runs", "runs show")
        marked = f"{values['ami_id']} (dry run)"
        assert [place for place in later if marked not in " ".join(places[place].split())] == []
    assert "dry_run=true" in github.outputs(values)
    apply = f"rerun {values['run_id']} --no-dry-run --expect-plan {values['plan_fingerprint']}"
    assert apply in places["runs show"]
    assert runs_row(values)["dry_run"] is True


def claims(text: str) -> list[str]:
    text = NO_CLAIM.sub("", CODE.sub("", text))
    return [text[max(match.start() - 40, 0) : match.end() + 20] for match in CLAIM.finditer(text)]


def _archived(values: dict[str, Any]) -> ArchivedRun:
    return ArchivedRun(values["run_id"], values, values["status"])


def _shown(values: dict[str, Any]) -> str:
    stream = io.StringIO()
    places = ("notebook", "report", "result", "log")
    evidence = dict.fromkeys(places, "")
    output.show_outcome(
        RunOutcome(values["run_id"], values["runbook"], "done", 0, **evidence, seconds=1.0, values=values),
        stream,
    )
    return stream.getvalue()


def _printed(show: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show()
    return capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_recognised_by_its_parameter() -> None:
    assert is_dry_run({"dry_run": None, "parameters": {"dry_run": True}})
    assert not is_dry_run({"dry_run": False, "parameters": {"dry_run": True}})
    assert not is_dry_run({"parameters": '{"dry_run": true}'})
