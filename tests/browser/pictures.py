"""Write the pictures of the documentation: ``just pictures``, or some: ``just pictures audit``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.lab import ROOT, browse, open_console, serve
from tests.large_account import populate
from tests.records import synthetic
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import sandbox
from vmsnix_ops.text import echo

if TYPE_CHECKING:
    from collections.abc import Callable

REGIONS = ("us-east-1", "eu-central-1")
SPEED = 12.0  # slow enough to take a picture of the import
HALF_DONE = """() => {
    const bar = [...document.querySelectorAll('.vmsnix-steps [aria-label=import]')].at(-1);
    const share = Number(bar?.getAttribute('aria-valuenow') ?? 0);
    return share >= 35 && share < 90;
}"""


def picture_console(folder: Path, picture: Path) -> None:
    """Publish a sample image from the console, and take the picture in the middle of the import."""
    make_sample_image(folder / "result", name="ecs-node", label="26.11.20261125")
    with (
        serve(folder, {}, speed=SPEED, cwd=folder, command=["console"]) as lab,
        browse(height=800) as browser,
    ):
        console = open_console(lab, browser)
        console.pick("publish-ami")
        console.type_in("image", "./result")
        console.page.wait_for_selector(".vmsnix-plan >> text=./result")
        console.button("Run on the sandbox").click()
        console.page.wait_for_function(HALF_DONE)
        console.page.locator(".vmsnix-console").screenshot(path=picture)


def picture_audit(folder: Path, picture: Path) -> None:
    """Audit an account with a missing AMI and an unknown share, and take the picture of the report."""
    from vmsnix_ops import audit

    with sandbox() as aws:
        os.environ |= {**aws.environment, "VMSNIX_STATE": str(folder / "audit"), "VMSNIX_PROGRESS": "silent"}
        populate(aws, regions=REGIONS, amis=60, referenced_one_in=12)
        ec2 = aws.client("ec2", REGIONS[0])
        (template, *_) = ec2.describe_launch_templates()["LaunchTemplates"]
        (version, *_) = ec2.describe_launch_template_versions(
            LaunchTemplateId=template["LaunchTemplateId"], Versions=["$Latest"]
        )["LaunchTemplateVersions"]
        missing = version["LaunchTemplateData"]["ImageId"]
        ec2.deregister_image(ImageId=missing)
        image = ec2.describe_images(Owners=["self"])["Images"][-1]["ImageId"]
        ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"UserId": "999988887777"}]})
        audit.check(regions=list(REGIONS), known_accounts=["111122223333"]).save()
    (report,) = (folder / "audit").rglob("audit.html")
    with browse(width=1200, height=1000) as browser:
        browser.page.goto(report.as_uri())
        browser.page.screenshot(path=picture)


PICTURES: dict[str, Callable[[Path, Path], None]] = {
    "docs/images/console.png": picture_console,
    "docs/how-to/pictures/audit.png": picture_audit,
    **{
        f"docs/how-to/pictures/timings-{name}.png": lambda _folder, picture: synthetic.draw(picture)
        for name in synthetic.PLOTS
    },
}
"""The pictures, and what draws each, with an empty folder for its files."""


def main(words: list[str]) -> None:
    """Write the pictures whose names contain one of the words; without words, all."""
    for name, draw in PICTURES.items():
        if not words or any(word in name for word in words):
            with tempfile.TemporaryDirectory(prefix="vmsnix-") as folder:
                draw(Path(folder), ROOT / name)
            echo(name)


if __name__ == "__main__":
    main(sys.argv[1:])
