"""Write docs/images/console.png: ``just screenshots``.

It publishes a sample image on a sandbox, and takes the picture in the middle of the import.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.browser.lab import ROOT, browse, serve
from vmsnix_ops.disk.sample import make_sample_image

PICTURE = ROOT / "docs" / "images" / "console.png"
SPEED = 12.0  # slow enough to take a picture of the import
HALF_DONE = """() => {
    const bar = [...document.querySelectorAll('.vmsnix-steps [aria-label=import]')].at(-1);
    const share = Number(bar?.getAttribute('aria-valuenow') ?? 0);
    return share >= 35 && share < 90;
}"""


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory(prefix="vmsnix-") as place:
        folder = Path(place)
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
            page.locator(".vmsnix-console").screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
