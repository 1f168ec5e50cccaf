"""Write the pictures of the console and of an audit report: ``just screenshots``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.browser.lab import ROOT, browse, serve
from tests.large_account import populate
from vmsnix_ops.disk.sample import make_sample_image
from vmsnix_ops.sandbox import sandbox

CONSOLE = ROOT / "docs" / "images" / "console.png"
AUDIT = ROOT / "docs" / "how-to" / "pictures" / "audit.png"
REGIONS = ("us-east-1", "eu-central-1")
SPEED = 12.0  # slow enough to take a picture of the import
HALF_DONE = """() => {
    const bar = [...document.querySelectorAll('.vmsnix-steps [aria-label=import]')].at(-1);
    const share = Number(bar?.getAttribute('aria-valuenow') ?? 0);
    return share >= 35 && share < 90;
}"""


def picture_console(folder: Path) -> None:
    """Publish a sample image from the console, and take the picture in the middle of the import."""
    make_sample_image(folder / "result", name="ecs-node", label="26.11.20261125")
    with serve(folder, {}, speed=SPEED, cwd=folder) as lab, browse(height=800) as browser:
        page = browser.page
        page.goto(lab.page("console.ipynb"))
        browser.run_all_cells()
        page.wait_for_selector(".vmsnix-console >> text=Account")
        page.add_style_tag(content=".jp-Cell-inputWrapper, .jp-OutputPrompt { visibility: hidden }")
        browser.pick("publish-ami")
        page.locator(".vmsnix-field-image input").fill("./result")
        page.wait_for_selector(".vmsnix-plan >> text=./result")
        page.locator("button:has-text('Run on the sandbox')").click()
        page.wait_for_function(HALF_DONE)
        page.locator(".vmsnix-console").screenshot(path=CONSOLE)


def picture_audit(folder: Path) -> None:
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
        browser.page.screenshot(path=AUDIT)


def main() -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory(prefix="vmsnix-") as folder:
        picture_console(Path(folder))
        picture_audit(Path(folder))


if __name__ == "__main__":
    main()
