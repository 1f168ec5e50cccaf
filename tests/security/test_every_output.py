"""Every command and report shows hostile text as text."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from markdown_it import MarkdownIt

from tests.audit.conftest import own, served
from tests.command_line import run_vmsnix, shelf
from tests.hostile import HOSTILE, assert_safe_lines, hidden, read_github_file
from tests.pages import Elements, Page
from tests.support import finish
from vmsnix_ops import display, progress
from vmsnix_ops.channels import overview
from vmsnix_ops.records import timing_plots
from vmsnix_ops.records.schemas import SCHEMAS
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.runbooks import history as histories
from vmsnix_ops.text import line

if TYPE_CHECKING:
    from tests.audit.account import Owner
    from tests.runbooks.shelf import Shelf

__all__ = ["own", "run_vmsnix", "served", "shelf"]
RunVmsnix = Any
NOW = datetime(2026, 11, 25, tzinfo=UTC)
EVIL = [word for word in HOSTILE if word != "\ud800"]  # no file and no service takes half a character
HARMLESS_TAGS = set(
    re.findall(
        r"\w+",
        """html head meta title style body header main h1 h2 h3 h4 p a b strong em span div dl dt dd section
        details summary ul ol li pre code table caption thead tbody tr th td br hr img svg path g text rect
        figure time nav footer article small i noscript""",
    )
)


def assert_safe_page(page: str) -> None:
    read = Page(page)
    assert read.tags <= HARMLESS_TAGS
    assert not [name for name in read.attributes if name.startswith("on")]
    for name in ("href", "src"):
        assert not [value for value in read.attributes.get(name, ()) if "evil" in value]
    assert hidden(page) == []


def assert_safe_csv(written: str) -> None:
    rows = list(csv.reader(io.StringIO(written)))
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == len(written.rstrip("\n").split("\n"))
    for row in rows:
        for cell in row:
            computed = cell.lstrip(' "')[:1] in {*"=+-@", "\uff1d"} and not re.fullmatch(r"-?[\d.]+", cell)
            assert not computed, cell
    assert_safe_lines(written, commands=False)


def tables(shelf: Shelf) -> Tables:
    return Tables(shelf.archive.parent / "history")


def row(table: str, word: str, number: int) -> dict[str, Any]:
    """Return a row in which every text is hostile, as far as the schema lets it."""
    by_kind = {"text": word, "json": word, "time": NOW, "count": number, "number": -1.5, "flag": True}
    return {column.name: by_kind[column.kind] for column in SCHEMAS[table].columns}


RUN = """
import json
from pathlib import Path
from vmsnix_ops.progress import current
from vmsnix_ops.records.result import write_result
from vmsnix_ops.records.run_context import current_run
from vmsnix_ops.display import make_table
words = json.loads(Path(name).read_text())
with current().step("evil") as step:
    for word in words:
        step.message(word)
for word in words:
    with current().step(word):
        pass
"""
DISPLAY = """
for word in words:
    print(word)
    print(word, end="")
    print("\\n\\r" + word)
import sys
sys.stderr.write("\\n".join(words))
display({"word": words}, words[0], make_table([*words], [words], title=words[1]))
import pandas
pandas.DataFrame({"word": words})
"""
WRITE = """
steps = [{"step": word, "status": word, "seconds": 1.0} for word in words]
write_result(current_run("try-this"), {
    "status": "done", "image_name": words[1], "steps": steps, "words": words,
    **{f"word_{number}": word for number, word in enumerate(words)},
    "tables": [{"title": words[3], "columns": ["a", "b"], "rows": [[word, word] for word in words]}],
})
"""
RAISE = """
from vmsnix_ops.errors import RunError
raise RunError("\\n".join(words), why=" ".join(words), fix=words[2])
"""


@pytest.mark.parametrize("ends", [WRITE, WRITE + RAISE, "raise ValueError('\\n'.join(words))"])
@pytest.mark.variants(seconds=4)
def test_a_run_shows_hostile_text_as_text(shelf: Shelf, tmp_path: Path, ends: str) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps(EVIL))
    output, page = tmp_path / "output", tmp_path / "summary"
    environment = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(page),
    }
    outcome = shelf.run(RUN, DISPLAY, ends, given={"name": str(words)}, environment=environment)
    assert_safe_lines(shelf.screen.getvalue(), folds=True)
    assert_safe_lines(Path(outcome.log).read_text(), folds=True)
    assert shelf.screen.getvalue().count("owned") > 5
    assert_safe_page(Path(outcome.report).read_text())
    assert_safe_lines(Path(outcome.result).read_text())

    found = read_github_file(output.read_text())
    assert found["run_id"] == outcome.run_id
    assert found["status"] == outcome.status
    assert found.get("ami_id") is None
    for value in found.values():
        assert_safe_lines(value)
    assert_safe_lines(page.read_text())
    rendered = MarkdownIt("commonmark").enable("table").render(page.read_text())
    tags = {
        "h2",
        "h3",
        "p",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "blockquote",
        "br",
    }
    assert set(re.findall(r"<(\w+)", rendered)) <= tags
    if WRITE in ends:
        assert rendered.count("<tr>") > 2 * len(EVIL)
        cells = re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)
        assert {len(re.findall(r"<t[dh]", cell)) for cell in cells} == {2, 4}


@pytest.mark.parametrize("table", ["runs", "steps", "amis", "retirements"])
def test_the_history_shows_hostile_text_as_text(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    store = tables(shelf)
    monkeypatch.setenv("VMSNIX_HISTORY", store.location)
    frame = pd.DataFrame([row(table, word, number) for number, word in enumerate(EVIL, 1)])
    monkeypatch.setattr(histories, table, lambda **_wanted: frame)
    code, shown_text, _ = run_vmsnix("history", table)
    assert code == 0
    assert_safe_lines(shown_text)
    code, written, _ = run_vmsnix("history", table, "--csv")
    assert code == 0
    assert_safe_csv(written)
    code, written, _ = run_vmsnix("history", table, "--json")
    assert_safe_lines(written)
    assert len(json.loads(written)) == len(EVIL)


def test_past_runs_are_shown_with_hostile_text_as_text(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    for number, word in enumerate(EVIL):
        folder = shelf.archive / f"20261125T0000{number:02}000Z-try-this-abcdef"
        folder.mkdir(parents=True)
        values = dict.fromkeys(
            ("user", "host", "cwd", "region", "account", "image_name", "ami_id", "notebook", "sandbox"), word
        )
        values |= {
            "run_id": folder.name,
            "runbook": word,
            "status": "failed",
            "started_at": "2026-11-25T00:00:00+00:00",
            "seconds": 1.0,
            "parameters": {word: word, "image": word, "more": [word]},
            "failure": {"what": word, "why": word, "fix": word},
            "problems": [word],
            "slow": [{"text": word}],
            "steps": [{"step": word, "status": word, "seconds": 1}],
        }
        (folder / "result.json").write_text(json.dumps(values))
        code, out, err = run_vmsnix("runs", "show", folder.name)
        assert code == 0
        assert_safe_lines(out)
        assert_safe_lines(err)
    for words in ((), ("--json",)):
        code, out, _ = run_vmsnix("runs", "--all", *words)
        assert code == 0
        assert_safe_lines(out)


@pytest.mark.parametrize("word", EVIL)
def test_an_error_names_a_hostile_word_as_text(shelf: Shelf, run_vmsnix: RunVmsnix, word: str) -> None:
    shelf.put("10-try-this.ipynb", "pass")
    for command in (
        ("run", word),
        (f"x{word}",),
        ("run", "try-this", f"--{word}"),
        ("run", "try-this", "--count", f"x{word}"),
        ("run", "try-this", "-p", f"x{word}=1"),
        ("runs", "show", f"x{word}"),
        ("fleet", f"x{word}"),
        ("undo", f"x{word}"),
        ("diff", f"x{word}", "y"),
    ):
        if any("\0" in one for one in command):
            continue
        code, out, err = run_vmsnix(*command)
        assert code in (1, 2), command
        assert_safe_lines(out)
        assert_safe_lines(err)


def test_runbooks_are_listed_with_hostile_titles_as_text(shelf: Shelf, run_vmsnix: RunVmsnix) -> None:
    for number, word in enumerate(EVIL, 10):
        path = shelf.put(
            f"{number}-book-{number}.ipynb", "pass", parameters=f"x: str = {word!r}  # {line(word)}"
        )
        book = json.loads(path.read_text())
        book["metadata"]["vmsnix"] |= {"title": word, "description": word}
        path.write_text(json.dumps(book))
    for words in (("list",), ("list", "--json"), ("--help",), ("run", "book-10", "--help")):
        code, out, err = run_vmsnix(*words)
        assert code == 0, err
        assert_safe_lines(out)


def test_two_amis_with_hostile_packages_differ_as_text(
    shelf: Shelf, run_vmsnix: RunVmsnix, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmsnix_ops.audit import diff as diffs

    frame = pd.DataFrame(
        {
            "change": ["added"] * len(EVIL),
            "name": EVIL,
            "before": EVIL,
            "after": EVIL,
            "bytes": [-1] * len(EVIL),
        }
    )
    monkeypatch.setattr(diffs, "diff", lambda before, after: diffs.PackageDifferences(before, after, frame))
    for words in ((), ("--json",)):
        code, out, _ = run_vmsnix("diff", "a\n::error::b", "c", *words)
        assert code == 0
        assert_safe_lines(out)
    code, out, _ = run_vmsnix("diff", "a", "b", "--csv")
    assert_safe_csv(out)


def test_an_audit_and_a_retirement_write_hostile_names_as_text(
    own: Owner, tmp_path: Path, run_vmsnix: RunVmsnix
) -> None:
    from botocore.exceptions import ClientError

    from vmsnix_ops.audit import reports

    made = 0
    for word in EVIL:
        try:
            own.ami(
                tags={"Name": word, "vmsnix:image": word, "vmsnix:digest": "d" * 64}, Description=word[:200]
            )
        except ClientError:
            continue  # the sandbox refuses what EC2 refuses
        made += 1
    assert made > len(EVIL) // 2
    own.aws.clock.advance(400 * 86400)
    audit = reports.AuditResult.of(own.scan(regions=["us-east-1"]))
    paths = reports.write(audit, tmp_path)
    for name, path in paths.items():
        if name.endswith(".csv"):
            assert_safe_csv(path.read_text())
    assert_safe_page(paths["audit.html"].read_text())
    assert_safe_lines(paths["audit.json"].read_text())
    for text in (repr(audit.show_findings("critical", "high", "medium", "low")), str(audit.changes)):
        assert_safe_lines(text)
    from vmsnix_ops.audit import retirement

    plan = retirement.plan(
        regions=["us-east-1"], keep_last=0, min_age_days=0, launched_days=0, session=own.aws.session()
    )
    for text in (str(plan), str(plan.show_planned()), str(plan.show_kept())):
        assert_safe_lines(text)
    finish(plan.apply())
    assert_safe_csv((plan.run.folder / "plan.csv").read_text())


def test_channels_show_hostile_text_as_text() -> None:
    texts = ("image", "channel", "region", "name", "state", "changed_by", "drift", "problem")
    blank = dict.fromkeys(overview.COLUMNS, "") | dict.fromkeys(("instances", "drifted", "since"), pd.NA)
    rows = [blank | dict.fromkeys(texts, word) | {"ami_id": "ami-1", "age_days": 1.0} for word in EVIL]
    frame = pd.DataFrame(rows).assign(proven_at=pd.NaT, older_instances=7)
    assert_safe_page(overview.page(frame))
    assert_safe_lines(str(overview.show(frame)), commands=False)  # `echo` makes lines of a CI log safe


@pytest.mark.parametrize("word", EVIL)
def test_a_table_keeps_its_rows_and_columns(word: str) -> None:
    table = display.make_table([word, "b"], [[word, "x"], ["y", word]], title=word)
    assert_safe_lines(str(table))
    assert len(str(table).split("\n")) == 4
    page = Elements(table._repr_html_())
    assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert set(page.attributes) <= {"class", "style"}


def test_progress_shows_hostile_text_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from vmsnix_ops.progress import TerminalBars

    for folds in (False, True):
        stream = io.StringIO()
        drawn = io.StringIO()
        for face in (progress.LogLines(stream, folds=folds), TerminalBars(Console(file=drawn, width=200))):
            for word in EVIL:
                with suppress(ValueError), progress.Progress(face).step(word) as step:
                    step.message(word)
                    step.update(1, 2, word)
                    raise ValueError(word)
        assert_safe_lines(stream.getvalue(), folds=folds)
        assert_safe_lines(drawn.getvalue())


def test_a_plot_draws_dollars_and_backslashes_as_they_are() -> None:
    rows = [
        {
            "run_id": f"r{number}",
            "step": step,
            "status": "created",
            "started_at": pd.Timestamp("2026-11-25", tz="UTC") + pd.Timedelta(20 * number, "D"),
            "finished_at": pd.Timestamp("2026-11-25", tz="UTC") + pd.Timedelta(20 * number, "D"),
            "seconds": 10.0,
            "bytes": 2**30,
            "image": word,
            "region": word,
            "via": "import",
        }
        for number, word in enumerate(["$x^{$", "$\\frac$", "a$b"])
        for step in ("upload", "import")
    ]
    from vmsnix_ops.records.frames import to_arrow, to_frame
    from vmsnix_ops.records.schemas import schema

    steps = to_frame(to_arrow(schema("steps"), rows))
    for plot in (timing_plots.plot_usual, timing_plots.plot_trend, timing_plots.plot_compare):
        plot(steps).savefig(io.BytesIO(), format="png")
