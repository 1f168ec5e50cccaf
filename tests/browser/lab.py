"""A JupyterLab on a sandbox, and a browser that records its requests and errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib import request

from tests.support import join, require
from vmsnix_ops.cli.lab import CONSOLE_PAGE
from vmsnix_ops.records.tables import Tables
from vmsnix_ops.sandbox.access import Access

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[2]
# These notebooks replace those of the package, so that JupyterLab cannot change the ones of the checkout.
PROGRAM = """
import contextlib, json, sys
from pathlib import Path
from vmsnix_ops.cli import main, sandbox, shared_sandbox
from tests.runbooks.shelf import replace_package
replace_package(Path(sys.argv[1]))
if int(sys.argv[3]):
    from tests.large_account import populate
    from vmsnix_ops.cli.shared_sandbox import FOLDER
    from vmsnix_ops.sandbox import Sandbox
    from vmsnix_ops.settings import load
    aws = Sandbox(state=load().state / FOLDER / "aws")
    populate(aws, regions=("us-east-1", "eu-central-1"), amis=int(sys.argv[3]) // 2)
    aws.stop()
shared_sandbox.SPEED, begin = float(sys.argv[2]), sandbox.run_sandbox
@contextlib.contextmanager
def print_environment():
    with begin() as served:
        print("SANDBOX-ENVIRONMENT", json.dumps(served.environment), file=sys.stderr, flush=True)
        yield served
sandbox.run_sandbox = print_environment
options = ["--LabApp.expose_app_in_browser=True", "--ServerApp.allow_root=True"]
sys.exit(main([*sys.argv[4:], "--sandbox", "--no-browser", "--", *options]))
"""
SPEED = 600.0
SHOTS = Path(os.environ.get("TEST_SCREENSHOTS") or ROOT / ".cache" / "screenshots")
TOO_WIDE = """() => {
    const whole = document.querySelector('.vmsnix-console'), edge = whole.getBoundingClientRect().right;
    const scrolling = '.vmsnix-scroll, .vmsnix-log, svg';
    const notebook = document.querySelector('.jp-WindowedPanel-outer');
    const boxes = [notebook, ...whole.querySelectorAll('.vmsnix-scroll')];
    const sideways = boxes.filter((one) => one.scrollWidth > one.clientWidth);
    const shown = [...whole.querySelectorAll('*')].filter((one) => one.checkVisibility());
    const cut = shown.filter((one) =>
        !one.parentElement.closest(scrolling) && one.getBoundingClientRect().right > edge);
    return [...sideways, ...cut].map((one) => one.outerHTML.slice(0, 200));
}"""
"""What scrolls sideways or is cut off at the edge of the console."""
LOG = """() => {
    const box = document.querySelector('.vmsnix-log');
    const text = box.querySelector('[role=log]');
    const [outer, inner] = [box.getBoundingClientRect(), text.getBoundingClientRect()];
    return {
        last: Number(text.textContent.trim().split(' ').at(-1)),
        below: Math.round(inner.bottom - outer.bottom),
        above: Math.round(outer.top - inner.top),
        focused: document.activeElement === box,
    };
}"""
NO_SPLASH = "#jupyterlab-splash { display: none }"  # when the theme changes
READY = """() => {
    const app = window.jupyterapp;
    const notebook = app && app.shell.currentWidget;
    return Boolean(notebook && notebook.context && notebook.context.isReady && notebook.sessionContext.isReady
        && notebook.sessionContext.session.kernel.status === "idle"
        && app.commands.isEnabled("notebook:run-all-cells"));
}"""


@dataclass
class Lab:
    """A running JupyterLab."""

    folder: Path
    url: str
    token: str
    process: subprocess.Popen[str]
    output: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Read its output to the end, so that the pipe never fills up, and find its address there."""
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.output.append(line)
                if line.startswith("SANDBOX-ENVIRONMENT "):
                    self.environment = json.loads(line.removeprefix("SANDBOX-ENVIRONMENT "))
                address = re.search(r"(http://127\.0\.0\.1:\d+)/\S*\?token=(\w+)", line)
                if address:
                    self.url, self.token = address.groups()
                    self.ready.set()

    def page(self, notebook: str, *, alone: bool = False) -> str:
        """Return the address of a notebook, `alone` or beside the others that are open."""
        place = f"doc/workspaces/{Path(notebook).stem}" if alone else "lab"
        return f"{self.url}/{place}/tree/{notebook}?token={self.token}"

    def send(self, name: str, method: str, value: Any = None) -> None:
        """Send a request to the sandbox's own API, for example to add a fault."""
        data = None if value is None else json.dumps(value).encode()
        sent = request.Request(
            f"{self.environment['VMSNIX_SANDBOX']}/_vmsnix/{name}", data=data, method=method
        )
        with request.urlopen(sent, timeout=60) as answer:
            answer.read()

    @property
    def aws(self) -> Access:
        """Access to its sandbox."""
        return Access(
            self.environment["AWS_ENDPOINT_URL"],
            self.environment["AWS_ACCESS_KEY_ID"],
            self.environment["AWS_SECRET_ACCESS_KEY"],
            self.environment["VMSNIX_ALLOWED_ACCOUNTS"],
        )


@dataclass
class Browser:
    """A page with its requests and errors."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Record the address of every request, and every error."""
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        self.page.on(
            "console",
            lambda message: self.errors.append(message.text) if message.type == "error" else None,
        )

    def another(self) -> Browser:
        """Open another page in the same browser."""
        return listening(self.page.context.browser, self.page.viewport_size)

    def external_requests(self) -> list[str]:
        """Return the requests to other machines."""
        local = re.compile(r"(?:http|ws)://127\.0\.0\.1:\d+/|(?:data|blob):|about:")
        return [url for url in self.requests if not local.match(url)]

    def save(self) -> None:
        """Save the open notebook, and wait until it is saved."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.save()")

    def run_all_cells(self) -> None:
        self.page.wait_for_function(READY)
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def pick(self, runbook: str) -> None:
        """Choose a runbook in the console, and wait for its form."""
        label = self.page.locator(".vmsnix-pick-runbook option", has_text=runbook).inner_text()
        self.page.select_option(".vmsnix-pick-runbook select", label=label)
        self.page.locator(".vmsnix-plan b", has_text=runbook).wait_for(state="attached")

    def set_theme(self, name: str) -> None:
        """Let the system prefer a theme, which JupyterLab follows."""
        self.page.emulate_media(color_scheme=name.lower())
        light = "true" if name == "Light" else "false"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        # Another change before the splash screen has disappeared causes an error in JupyterLab.
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")


@dataclass
class Opened:
    """The console, open in a browser."""

    lab: Lab
    browser: Browser

    @property
    def page(self) -> Any:
        return self.browser.page

    @property
    def archive(self) -> Path:
        return Path(self.lab.environment["VMSNIX_ARCHIVE"])

    def open(self, notebook: str, *, alone: bool = False) -> None:
        """Open a notebook with the console, and run it."""
        self.page.goto(self.lab.page(notebook, alone=alone))
        self.browser.run_all_cells()
        self.page.locator(".vmsnix-banner").wait_for()
        self.page.add_style_tag(content=NO_SPLASH)

    def runs(self) -> Any:
        return Tables(self.lab.environment["VMSNIX_HISTORY"]).read("runs")

    def pick(self, runbook: str) -> None:
        self.tab("Run")
        self.browser.pick(runbook)
        if self.button("Back to the form").is_visible():
            self.button("Back to the form").click()
        self.page.wait_for_selector(".vmsnix-form")

    def field(self, name: str) -> Any:
        """Return the input of a parameter, after opening its group."""
        group = self.page.locator(f".vmsnix-form:visible .vmsnix-group:has(.vmsnix-field-{name})")
        if group.count() and not group.locator(".vmsnix-fields").is_visible():
            group.locator(".vmsnix-fold").click()
        return self.page.locator(f".vmsnix-form:visible .vmsnix-field-{name} input").first

    def type_in(self, name: str, text: str) -> None:
        self.field(name).fill(text)

    def button(self, text: str) -> Any:
        return self.page.locator(f".vmsnix-console button:visible:has-text('{text}')").first

    def tab(self, name: str) -> None:
        self.page.click(f".vmsnix-tabs button:has-text('{name}')")
        pane = ".vmsnix-run" if name == "Run" else f".vmsnix-tab-{name.lower()}"
        self.page.wait_for_selector(f"{pane} >> visible=true")

    def wait_for_text(self, text: str) -> None:
        self.page.locator(".vmsnix-console").get_by_text(text).locator("visible=true").first.wait_for()

    def shoot_wide(self, name: str) -> None:
        """Save pictures in both themes for a wide and a narrow screen."""
        before = self.page.viewport_size
        self.shoot(name, widths=(1440, 1024))
        self.page.set_viewport_size(before)

    def log(self) -> dict[str, Any]:
        """Return the last line of the live log, how much of it is hidden, and whether it has the focus."""
        found: dict[str, Any] = self.page.evaluate(LOG)
        return found

    def shoot(self, name: str, *, widths: tuple[int, ...] = ()) -> None:
        """Save a picture of the console in both themes, for each width if some are given."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        for theme in ("Dark", "Light"):
            self.browser.set_theme(theme)
            for width in widths or (0,):
                if width:
                    self.page.set_viewport_size({"width": width, "height": 1000})
                self.page.evaluate("() => document.querySelector('.vmsnix-console').scrollIntoView()")
                with suppress(PlaywrightTimeout):  # a theme is applied in several steps
                    self.page.wait_for_function(f"() => ({TOO_WIDE})().length === 0", timeout=20_000)
                words = [name, *([str(width)] if width else []), theme.lower()]
                self.page.screenshot(path=SHOTS / f"console-{'-'.join(words)}.png")
                wide = self.page.evaluate(TOO_WIDE)
                assert not wide, "\n".join(wide)


def open_console(lab: Lab, browser: Browser) -> Opened:
    """Open the page of ``vmsnix console --sandbox``, and wait until it knows its account."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened = Opened(lab, browser)
    opened.page.goto(f"{lab.url}{CONSOLE_PAGE}?token={lab.token}")
    opened.page.locator(".vmsnix-banner >> text=Account").wait_for()
    opened.page.add_style_tag(content=NO_SPLASH)
    return opened


@contextmanager
def serve(
    folder: Path,
    changes: Mapping[str, Mapping[str, str]],
    *,
    speed: float = 60.0,
    cwd: Path = ROOT,
    command: Sequence[str] = ("lab",),
    amis: int = 0,
) -> Iterator[Lab]:
    """Serve copies of the notebooks.

    Parameters
    ----------
    folder
        Folder for everything that JupyterLab writes.
    changes
        Replacements by file name: old text to new text.
    speed
        Speed of the sandbox's clock.
    cwd
        Folder in which ``vmsnix lab`` runs.
    command
        Command of ``vmsnix`` with its options. With ``--edit``, the notebooks are those of a checkout.
    amis
        Number of AMIs in the sandbox, in two regions.
    """
    notebooks = folder / ("notebooks" if "--edit" in command else "_notebooks")
    notebooks.mkdir()
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        text = source.read_text(encoding="utf-8")
        for old, new in changes.get(source.name, {}).items():
            assert old in text
            text = text.replace(old, new)
        (notebooks / source.name).write_text(text, encoding="utf-8")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    private = {name: str(folder / name.lower()) for name in names}
    program = [sys.executable, "-c", PROGRAM, str(notebooks), str(speed), str(amis), *command]
    more = {"PYTHONPATH": str(ROOT), "VMSNIX_STATE": str(folder / "state")}
    with started(program, folder, {**os.environ, **private, **more}, cwd) as lab:
        yield lab


@contextmanager
def started(
    command: list[str], folder: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[Lab]:
    """Start a program that serves JupyterLab, and wait until it prints its address."""
    process = subprocess.Popen(
        command,
        cwd=folder if cwd is None else cwd,
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    served = Lab(folder, "", "", process)
    rest = threading.Thread(target=served.listen)
    rest.start()
    try:
        assert served.ready.wait(120), "".join(served.output)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        join(rest)


@contextmanager
def browse(*, width: int = 1280, height: int = 1000) -> Iterator[Browser]:
    """Start Chromium and open a page."""
    chromium = require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        yield listening(browser, {"width": width, "height": height})
        browser.close()


def listening(browser: Any, viewport: Mapping[str, int]) -> Browser:
    """Open a page and record its requests and errors."""
    page = browser.new_page(viewport=viewport)
    page.set_default_timeout(120_000)
    opened = Browser(page)
    opened.listen()
    return opened
