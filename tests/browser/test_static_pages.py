"""Every static page fits into a window of 1024 pixels and is readable in both themes, in Chromium."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.lab import ROOT, SHOTS, browse
from tests.support import unavailable
from vmsnix_ops.cli import main
from vmsnix_ops.cli.sandbox import write_records
from vmsnix_ops.sandbox import sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AXE = ROOT / ".cache" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = """async () => (await axe.run()).violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .flatMap(one => one.nodes.map(node => `${one.id}: ${node.target} ${node.failureSummary}`))"""
TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll('.rows, .table')]
    .filter(one => one.scrollWidth > one.clientWidth)
    .map(one => `${one.tagName} ${one.className}: ${one.scrollWidth} > ${one.clientWidth}`)"""
FLEET = """
name = "nightly"
[[entry]]
runbook = "verify-amis"
regions = ["us-east-1", "eu-west-1"]
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The pages of an account with two years of images: what an audit, a promotion and a fleet write."""
    folder = tmp_path_factory.mktemp("pages")
    with sandbox(speed=300) as aws, pytest.MonkeyPatch.context() as patch:
        aws.add_demo()
        variables = aws.environment | {"VMSNIX_STATE": str(folder), "VMSNIX_PROGRESS": "silent"}
        for name, value in (variables | write_records(aws, folder)).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        (folder / "fleet.toml").write_text(FLEET)
        channels = folder / "channels.html"
        promotion = ["promote", "--image", "ecs-node", "--channel", "stable", "--no-dry-run"]
        assert main(["channels", "--html", str(channels)]) == 0
        assert main(["audit", "--known-accounts", "111122223333"]) == 0
        assert main([*promotion, "--regions", "eu-west-1"]) == 0
        assert main(["fleet", "fleet.toml", "--no-dry-run"]) == 3  # the demo account has drifted
        archive = folder / "archive"
        found = {"channels": channels, "runs": archive / "index.html"}
        (found["audit"],) = archive.glob("*-audit-inventory-*/audit.html")
        for name in ("audit-inventory", "promote-ami", "fleet"):
            (found[f"report of {name}"],) = archive.glob(f"*-{name}-*/report.html")
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_into_the_window_and_axe_finds_no_serious_fault(
    pages: dict[str, Path], scheme: Any
) -> None:
    if not AXE.is_file():
        unavailable("axe", f"{AXE} does not exist; .ci/foreign axe installs it")
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    SHOTS.mkdir(parents=True, exist_ok=True)
    problems: dict[str, list[str]] = {}
    with browse() as browser:
        page = browser.page
        page.emulate_media(color_scheme=scheme)
        for name, path in pages.items():
            page.goto(path.as_uri())
            for width in (1440, 1024):
                page.set_viewport_size({"width": width, "height": 1000})
                with suppress(PlaywrightTimeout):  # the page is laid out again after the change of its width
                    page.wait_for_function(f"() => ({TOO_WIDE})().length === 0", timeout=20_000)
                problems[f"{name}, {width}"] = page.evaluate(TOO_WIDE)
                page.screenshot(path=SHOTS / f"page-{name}-{width}-{scheme}.png", full_page=True)
            page.evaluate(AXE.read_text())
            problems[name] = page.evaluate(SERIOUS)
        assert {name: found for name, found in problems.items() if found} == {}
        assert set(browser.external_requests()) == {path.as_uri() for path in pages.values()}
        assert browser.errors == []
