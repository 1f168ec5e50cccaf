"""Rules for every test: no connection to another machine, Ctrl-C works, and every test ends."""

from __future__ import annotations

import faulthandler
import gc
import ipaddress
import os
import signal
import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests import forks, hanging, parts, quick
from vmsnix_ops import redaction
from vmsnix_ops.runbooks.execution.execute import without_rfc3987

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

NOWHERE = "http://127.0.0.1:9"  # the port "discard": nothing listens there
INTERNET = (socket.AF_INET, socket.AF_INET6)

with without_rfc3987():
    import nbformat  # noqa: F401  (without rfc3987, whose grammar takes a second to load)

ERRORS = pytest.StashKey[int]()

settings.register_profile("quick", deadline=None)  # no test measures time
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parts.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    parts.chosen_parts(config)
    os.environ.pop("COLUMNS", None)  # of pytest-xdist's processes; tables would be as narrow
    sys.dont_write_bytecode = False  # compile each test once, also with PYTHONDONTWRITEBYTECODE set
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        quick.compile_once(config)
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        config.stash[ERRORS] = os.dup(2)  # standard error before pytest captures it


def pytest_report_header(config: pytest.Config) -> str:
    sampled = config.getoption("--long-sample")
    chosen = ",".join(name for name in parts.PARTS if name in parts.chosen_parts(config))
    return f"parts: --parts={chosen}" + (f" --long-sample={sampled}" if sampled else "")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the collected tests out of the garbage collector, which takes a second for them each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000, 20, 20)  # with Python's 700, 10, 10 a test takes 8 % more CPU time


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.select(config, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    hanging.watch(item, item.config.stash[ERRORS])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo is not None and str(call.excinfo.value).startswith("Timeout ("):
        report.sections.append(("Programs that were still running and were killed", hanging.end_programs()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the names of failed tests to the file ``VMSNIX_FAILED``, so that CI can run them alone."""
    if path := os.environ.get("VMSNIX_FAILED"):
        reports = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
        failed = {report.nodeid for report in reports}
        Path(path).write_text("".join(f"{name}\n" for name in sorted(failed)), encoding="utf-8")


def is_local(address: Any) -> bool:
    """Whether a socket's address is on this machine."""
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name: no test needs one


@pytest.fixture(scope="session", autouse=True)
def programs_can_be_interrupted() -> None:
    """Let programs that tests start receive SIGINT and SIGHUP.

    Child processes inherit ignored signals: shells ignore SIGINT for background jobs, `nohup` ignores SIGHUP.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)  # children do not inherit a handler


@pytest.fixture(scope="session", autouse=True)
def tests_are_quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Share models and clients, and shorten pauses; see tests/quick.py."""
    patch = pytest.MonkeyPatch()
    quick.share_models(patch)
    quick.share_clients(patch)
    quick.share_data_of_images(patch)
    quick.pause_briefly(patch)
    quick.keep_bytecode(patch)
    usual = sys.platform != "linux" or request.config.getoption("--no-forks")
    with nullcontext() if usual else forks.forked_programs():
        yield
    patch.undo()


@pytest.fixture(autouse=True)
def no_interrupt_is_lost() -> None:
    """Remove Hypothesis' callback from the garbage collector: an interrupt inside it is lost."""
    gc.callbacks[:] = [
        one for one in gc.callbacks if not str(getattr(one, "__module__", "")).startswith("hypothesis")
    ]


@pytest.fixture(autouse=True)
def clients_keep_nothing_of_earlier_tests() -> Iterator[None]:
    """The next test has another sandbox at the same address, and buckets of the same names."""
    yield
    quick.separate_clients()


@pytest.fixture(autouse=True)
def variables_of_python_are_kept() -> Iterator[None]:
    """Fail if a test leaves a variable changed with which programs can no longer be forked."""
    before = forks.fixed_variables(os.environ)
    yield
    after = forks.fixed_variables(os.environ)
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    assert after == before


@pytest.fixture(autouse=True)
def secrets_are_forgotten_after_each_test() -> Iterator[None]:
    """Forget the credentials that a test used, or later tests search all texts for them."""
    before = dict(redaction._known)
    yield
    redaction._known.clear()
    redaction._known.update(before)


@pytest.fixture(scope="session", autouse=True)
def nothing_leaves_this_machine() -> Iterator[None]:
    """Fail on a connection to another machine; give programs that tests start an endpoint without a server.

    `pytest.fail` raises no `Exception`, so that the code under test cannot handle it as an error of AWS.
    """
    patch = pytest.MonkeyPatch()

    def guard(name: str) -> None:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in INTERNET and not is_local(address):
                pytest.fail(f"a test tried to connect to {address}", pytrace=True)
            return original(self, address)

        patch.setattr(socket.socket, name, connect)

    guard("connect")
    guard("connect_ex")
    patch.setenv("AWS_ENDPOINT_URL", NOWHERE)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()
