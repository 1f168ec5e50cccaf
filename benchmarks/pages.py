"""Measure the page of an audit with 10,000 AMIs and 20,000 snapshots in Chromium.

``python -m benchmarks.pages PAGE`` opens an ``audit.html``, and prints the time to its first rows, and that
of a search, a filter and a sort, as multiples of the time in which this Chromium parses the page's own JSON.
With ``--itables FOLDER`` (the folder ``itables/html`` of an installed itables), a page with the same rows and
the bundle of itables is measured in turn, in the same run.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from tests.browser.lab import browse
from tests.pages import Page

TITLES = ("Findings", "AMIs", "Snapshots")
ROUNDS = 2
PARSE = """texts => {
    const begin = performance.now();
    texts.forEach(text => JSON.parse(text));
    return performance.now() - begin;
}"""
# The time from an input to the next frame with its rows. The own search waits 120 ms for further letters.
PAINTED = """async act => {
    const status = document.querySelectorAll("section [role=status]")[2], before = status?.textContent;
    const begin = performance.now();
    (0, eval)(act)(...[".tools", ".rows"].map(one => document.querySelectorAll("section " + one)[2]));
    do await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    while (status && act.includes("oninput") && status.textContent === before);
    return performance.now() - begin;
}"""
OWN = {
    "search": """tools => { const one = tools.querySelector("[type=search]"); one.value = "orphan-77";
        one.oninput() }""",
    "sort": """(tools, rows) => rows.querySelectorAll("th button")[6].click()""",
    "filter": """tools => { const one = tools.querySelectorAll("select")[1]; one.selectedIndex = 1;
        one.dispatchEvent(new Event("change")) }""",
}
ITABLES = {
    "search": """() => window.tables[2].search("orphan-77").draw()""",
    "sort": """() => window.tables[2].order([6, "asc"]).draw()""",
    "filter": """() => window.tables[2].column(1).search("us-east-1").draw()""",
}


def with_itables(page: Page, folder: Path) -> str:
    """Return a page with the same rows and the bundle of itables."""
    script, style = (folder / "dt_bundle.js").read_text(), (folder / "dt_bundle.css").read_text()
    (exports,) = re.finditer(r"\bexport\s*\{([^}]*)\}", script)
    pairs = [one.split(" as ")[::-1] for one in exports[1].split(",")]
    names = {pair[0].strip(): pair[-1].strip() for pair in pairs}
    tables, heads = [], ""
    for number, title in enumerate(TITLES):
        rows = page.rows(title)
        cells = "".join(f"<th>{name}</th>" for name in rows[0])
        heads += f"<h2>{title}</h2><table id=t{number} class=display><thead><tr>{cells}</tr></thead></table>"
        tables.append([["" if value is None else value for value in row.values()] for row in rows])
    data = json.dumps(tables).replace("<", "\\u003c")
    options = "{data, deferRender: true, pageLength: 25}"
    return (
        f"<!doctype html><meta charset=utf-8><style>{style}</style>{heads}"
        f"<script type=application/json id=d>{data}</script><script type=module>{script[: exports.start()]}\n"
        "const all = JSON.parse(document.getElementById('d').textContent);\n"
        f"window.tables = all.map((data, n) => new {names['default']}('#t' + n, {options}));</script>"
    )


def measure(path: Path, rows: str, acts: dict[str, str], texts: list[str]) -> dict[str, float]:
    """Return times in milliseconds: to first paint and first rows, of each act, and to parse the texts."""
    with browse(width=1440) as browser:
        page: Any = browser.page
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector(rows)
        page.wait_for_load_state("load")
        now = page.evaluate("() => new Promise(done => requestAnimationFrame(() => done(performance.now())))")
        paint = page.evaluate("performance.getEntriesByType('paint')[0]?.startTime ?? 0")
        found = {"first paint": paint, "first rows": now}
        for name, act in acts.items():
            found[name] = page.evaluate(PAINTED, act)
        found["parse"] = min(page.evaluate(PARSE, texts) for _ in range(3))
        return found


def main() -> None:
    """Measure, and print the fastest of several rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path, help="audit.html of a large account")
    parser.add_argument("--itables", type=Path, help="folder html of itables, to compare with")
    options = parser.parse_args()
    text = options.page.read_text()
    blocks = [block for kind, _, block in Page(text).scripts if kind]
    cases = {"own script": (options.page, ".rows tbody tr:not(.space)", OWN)}
    with tempfile.TemporaryDirectory() as folder:
        if options.itables:
            other = Path(folder, "itables.html")
            other.write_text(with_itables(Page(text), options.itables))
            cases["itables"] = (other, "#t0 tbody tr", ITABLES)
        rounds = [{name: measure(*case, blocks) for name, case in cases.items()} for _ in range(ROUNDS)]
        sizes = {name: case[0].stat().st_size / 1e6 for name, case in cases.items()}
    one = min(found["own script"]["parse"] for found in rounds)
    print(f"Parsing the JSON of the page takes {one:.0f} ms here: the unit of the figures.")
    for name in cases:
        best = {what: min(found[name][what] for found in rounds) / one for what in rounds[0][name]}
        texts = ", ".join(f"{what} {value:.2f}" for what, value in best.items() if what != "parse")
        print(f"{name:12} {sizes[name]:.1f} MB: {texts}")


if __name__ == "__main__":
    main()
