"""Changed, removed and cut evidence is found, also if the chain of the journal was computed again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from vmsnix_ops.records.result import runs_row
from vmsnix_ops.records.tables import open_tables
from vmsnix_ops.redaction import remember
from vmsnix_ops.runbooks import catalog
from vmsnix_ops.runbooks.evidence import archive as archives
from vmsnix_ops.runbooks.evidence import cells, chain, runs, verification, writing
from vmsnix_ops.runbooks.execution._output import LiveOutput
from vmsnix_ops.runbooks.execution.status import Failure
from vmsnix_ops.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmsnix_ops.settings import Settings

RUN_ID = "20261130T070000000Z-import-timings-abcdef"


@dataclass
class Evidence:
    """A finished run of six entries, and what an attacker can do to its folder."""

    settings: Settings
    folder: Path

    @property
    def journal(self) -> Path:
        return self.folder / chain.FILE_NAME

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def write(self, entries: list[dict[str, Any]], *, compute: bool = False) -> None:
        """Write the journal, with a new chain if wanted, and the result.json that belongs to it."""
        if compute:
            previous = ""
            for number, entry in enumerate(entries, 1):
                entries[number - 1] = chain.chained({**entry, "sha256": ""}, number, previous)
                previous = entries[number - 1]["sha256"]
        self.journal.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        values = self.values()
        values |= {"journal_entries": len(entries), "journal_sha256": entries[-1]["sha256"]}
        values["files"][chain.FILE_NAME]["sha256"] = hashlib.sha256(self.journal.read_bytes()).hexdigest()
        self.write_result(values)

    def values(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())

    def write_result(self, values: dict[str, Any]) -> None:
        (self.folder / "result.json").write_text(json.dumps(values, indent=2))

    def verify(self, settings: Settings | None = None) -> verification.Verification:
        archive = runs.open_archive(self.settings)
        return verification.verify(archive, settings or self.settings, archive.find(RUN_ID))


def edit(evidence: Evidence, *, compute: bool = False) -> None:
    entries = evidence.entries()
    entries[2]["outcome"] = "ok, really"
    evidence.write(entries, compute=compute)


def remove(evidence: Evidence, *, compute: bool = False) -> None:
    entries = evidence.entries()
    del entries[2]
    evidence.write(entries, compute=compute)


def cut(evidence: Evidence, *, compute: bool = False) -> None:
    evidence.write(evidence.entries()[:-2], compute=compute)


def replace_journal(evidence: Evidence) -> None:
    evidence.write([{**entry, "note": "of another run"} for entry in evidence.entries()], compute=True)


def edit_file(evidence: Evidence, *, compute: bool = False) -> None:
    report = evidence.folder / "report.html"
    report.write_text("all is well")
    if compute:
        values = evidence.values()
        values["files"]["report.html"]["sha256"] = hashlib.sha256(report.read_bytes()).hexdigest()
        evidence.write_result(values)


def edit_result(evidence: Evidence, **changed: object) -> None:
    evidence.write_result({**evidence.values(), **(changed or {"ami_id": "ami-0123456789abcdef0"})})


def edit_text(evidence: Evidence, name: str, before: str, after: str) -> None:
    path = evidence.folder / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))


def edit_listed_file(evidence: Evidence, **changed: object) -> None:
    values = evidence.values()
    values["files"]["log.txt"] |= changed
    evidence.write_result(values)


def pretend_another_attempt(evidence: Evidence) -> None:
    """Forge an entry, and hide the row of the run by another number of the attempt."""
    entries, values = evidence.entries(), {**evidence.values(), "attempt": 2}
    entries[2]["outcome"] = "ok, really"
    entries[-1]["result"] = writing.result_digest(values)
    evidence.write_result(values)
    evidence.write(entries, compute=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    state = tmp_path_factory.mktemp("state")
    settings = load(state, {"VMSNIX_STATE": str(state)})
    book = catalog.find("import-timings")
    started = datetime.now(UTC)
    entry = writing.first_entry(book, RUN_ID, {}, {}, state, started, interactive=True)
    folder = archives.open_folder(settings.archive, RUN_ID, entry, work=state / "runs", environment={})
    journal = chain.ChainedJournal(folder.path(chain.FILE_NAME), state, RUN_ID, folder.redactor)
    journal.append("run", run_id=RUN_ID, cells=[])
    for number in (1, 2):
        journal.append(cells.STARTED, cell=number, source="1 + 1")
        journal.append("cell", cell=number, outcome=cells.OK)
    prepared = writing.PreparedRun(book, "", {}, settings, {}, state, folder, entry)
    live = LiveOutput(folder.path("log.txt"), None, folder.redactor, 1000)
    notebook = cells.notebook(chain.read(folder.local))
    values = writing.save(prepared, notebook, live, "done", None, 1.0, record=True)
    assert values["problems"] == []
    journal.reload()
    return Evidence(settings, folder.local)


@pytest.fixture
def evidence(saved: Evidence, tmp_path: Path) -> Iterator[Evidence]:
    """Return the run; after the test, its folder and its anchors are as before."""
    state = saved.settings.state
    shutil.copytree(state, tmp_path / "copy")
    yield saved
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "copy", state)


def test_unchanged_evidence_is_intact(evidence: Evidence) -> None:
    found = evidence.verify()
    assert (found.finding, found.exit_code, len(found.anchors)) == ("intact", 0, 2)
    assert {check.name for check in found.checks} == {
        "journal",
        "result.json",
        "log.txt",
        "notebook.ipynb",
        "report.html",
    }


def test_an_older_copy_of_a_resumed_run_is_found(evidence: Evidence) -> None:
    """Each attempt appends to the journal, so the rows of all attempts are anchors."""
    entries = len(evidence.entries()) + 9
    values = {**evidence.values(), "attempt": 2, "journal_entries": entries, "journal_sha256": "0" * 64}
    open_tables(evidence.settings).append("runs", [runs_row(values)])
    found = evidence.verify()
    assert (found.exit_code, found.finding) == (1, "cut off")
    assert "9 entries missing at its end." in str(found)


def test_another_number_of_the_attempt_does_not_hide_the_row(evidence: Evidence) -> None:
    pretend_another_attempt(evidence)
    shutil.rmtree(evidence.settings.state / chain.ANCHORS)
    found = evidence.verify()
    assert found.exit_code == 1
    assert {check.name: check.finding for check in found.checks}["journal"] == "changed"


@pytest.mark.parametrize(
    ("attack", "name", "finding"),
    [
        (edit, "journal", "changed"),
        (lambda evidence: edit(evidence, compute=True), "journal", "changed"),
        (remove, "journal", "removed"),
        (lambda evidence: remove(evidence, compute=True), "journal", "cut off|changed"),
        (cut, "journal", "cut off"),
        (lambda evidence: cut(evidence, compute=True), "journal", "cut off"),
        (replace_journal, "journal", "changed"),
        (lambda evidence: evidence.journal.unlink(), "journal", "removed"),
        (lambda evidence: evidence.journal.write_text("no JSON\n"), "journal", "changed"),
        (edit_file, "report.html", "changed"),
        (lambda evidence: edit_file(evidence, compute=True), "report.html", "changed"),
        (lambda evidence: (evidence.folder / "log.txt").unlink(), "log.txt", "removed"),
        (edit_result, "result.json", "changed"),
        (lambda evidence: edit_result(evidence, finished_at=None, ami_id="ami-0"), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, status="failed", exit_code=1), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, exit_code=1), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, report="/tmp/another.html"), "report.html", "changed"),
        (lambda evidence: edit_result(evidence, journal_entries=3), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, journal_sha256="0" * 64), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, secrets_removed={"token": 1}), "result.json", "changed"),
        (lambda evidence: edit_result(evidence, result="/tmp/result.json"), "result.json", "changed"),
        (lambda evidence: edit_listed_file(evidence, bytes=1), "log.txt", "changed"),
        (lambda evidence: (evidence.folder / "result.json").unlink(), "result.json", "removed"),
        (
            lambda evidence: edit_text(evidence, "result.json", '"ami_id": null', '"ami_id": 5'),
            "result.json",
            "changed",
        ),
        (
            lambda evidence: edit_text(evidence, "result.json", '"ami_id"', '"ami_id": "ami-0", "ami_id"'),
            "result.json",
            "changed",
        ),
        (
            lambda evidence: edit_text(evidence, chain.FILE_NAME, '"cell": 1', '"cell": 7, "cell": 1'),
            "journal",
            "changed",
        ),
    ],
)
@pytest.mark.parametrize("anchor", ["history", "machine"])
def test_changed_evidence_is_found_with_one_anchor(
    evidence: Evidence, attack: Callable[[Evidence], object], name: str, finding: str, anchor: str
) -> None:
    attack(evidence)
    settings = evidence.settings
    if anchor == "history":
        shutil.rmtree(settings.state / chain.ANCHORS)
    else:
        settings = replace(settings, history=str(settings.state / "elsewhere"))
    found = evidence.verify(settings)
    checks = {check.name: check.finding for check in found.checks}
    # With the anchor of the last entry only, an entry that is missing cannot be located.
    assert checks[name] in finding.split("|")
    assert found.exit_code == 1


def test_the_status_of_a_failed_run_is_sealed(evidence: Evidence) -> None:
    failure = Failure("ValueError", "Cell 2 failed.").to_json()
    values = {**evidence.values(), "status": "failed", "exit_code": failure["exit_code"], "failure": failure}
    chain.append_end(evidence.folder, values, writing.result_digest(values))
    values |= chain.last(evidence.folder)
    evidence.write_result(values)

    def finding() -> str:
        return {check.name: check.finding for check in evidence.verify().checks}["result.json"]

    assert finding() == "intact"
    for status in ("done", "partial", "cancelled"):
        evidence.write_result({**values, "status": status})
        assert finding() == "changed"


def test_without_an_anchor_evidence_is_only_consistent(evidence: Evidence) -> None:
    shutil.rmtree(evidence.settings.state / chain.ANCHORS)
    elsewhere = replace(evidence.settings, history=str(evidence.settings.state / "elsewhere"))
    edit(evidence, compute=True)
    found = evidence.verify(elsewhere)
    assert (found.finding, found.exit_code, found.anchors) == ("not anchored", 3, ())
    entries = evidence.entries()
    entries[2]["outcome"] = "ok"
    evidence.write(entries)
    assert evidence.verify(elsewhere).finding == "changed"


def test_a_secret_that_becomes_known_later_is_removed_and_the_journal_is_intact(tmp_path: Path) -> None:
    secret = "correct-horse-battery-staple"
    folder = archives.RunFolder("run", tmp_path, "", {})
    journal = chain.ChainedJournal(tmp_path / chain.FILE_NAME, tmp_path / "state", "run", folder.redactor)
    for number in range(3):
        journal.append(cells.STARTED, cell=number, source=f"open({secret!r})")
    remember(secret)
    assert folder.redact() == []
    journal.reload()
    journal.append(cells.STARTED, cell=4, source=secret)
    assert secret not in journal.path.read_text()
    entries = chain.parse(journal.path.read_bytes())
    assert chain.first_defect(entries) is None
    anchors = chain.read_anchors(tmp_path / "state", "run")
    assert [one.entries for one in anchors] == [3, 4]
    assert entries[3] is not None
    assert anchors[-1].sha256 == entries[3]["sha256"]


def test_a_journal_that_cannot_be_written_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = chain.ChainedJournal(tmp_path / "file" / chain.FILE_NAME, tmp_path, "run", archives.Redactor())
    journal.append(cells.STARTED, cell=1, source="1")
    assert "could not be written" in next(iter(journal.problems))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
