"""Start the programs of this package, and kernels, as forks of a process that has imported their libraries.

Their imports take most of the time of a test that starts them. Only the start differs: the forked program is
a child of its starter, with the arguments, variables, files and signals that it usually has. A program that
needs another interpreter or other settings of Python starts as usual. So do the programs of
``tests/test_wheel.py`` and the kernels of ``tests/browser``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).parents[1]
PROGRAMS = ("ipykernel_launcher", "nbconvert", "papermill", "vmsnix_ops")
FORKED_CODE = ("vmsnix_ops.runbooks.fleet.worker", "# forked")
"""Words in the code of ``python -c``: that of a fleet's worker, or a comment."""
IN_BACKGROUND = ["sh", "-c", '"$@" &', "sh"]
"""How the console starts a run that continues without it."""
FIXED = ("PYTHON", "LD_", "LC_", "LANG", "MPL")
"""Variables that Python and its libraries read only once. `PYTHONPATH` may name the checkout itself."""
LIBRARIES = (
    "IPython.core.magics",
    "boto3",
    "botocore.credentials",
    "dask.base",
    "debugpy",
    "deltalake",
    "distributed.client",
    "ipykernel.kernelapp",
    "ipykernel.zmqshell",
    "ipywidgets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "nbclient",
    "nbconvert.nbconvertapp",
    "nbconvert.preprocessors",
    "nbconvert.exporters.html",
    "pandas",
    "pandas.io.formats.style",
    "papermill.cli",
    "pyarrow.compute",
    "pyarrow.dataset",
    "pydantic",
    "pygments.formatters",
    "rich.console",
    "rich.table",
    "stamina",
    "vmsnix_ops.audit",
    "vmsnix_ops.channels.promote",
    "vmsnix_ops.cli",
    "vmsnix_ops.publish",
    "vmsnix_ops.runbooks.evidence.report",
    "vmsnix_ops.runbooks.evidence.writing",
    "vmsnix_ops.runbooks.execution._engine",
    "vmsnix_ops.runbooks.execution._kernel",
    "vmsnix_ops.runbooks.execution.execute",
    "vmsnix_ops.runbooks.execution.interactive",
    "vmsnix_ops.runbooks.execution.side_effects",
    "vmsnix_ops.runbooks.fleet.worker",
    "vmsnix_ops.sandbox",
)
SERVICES = ("ec2", "s3", "sts", "iam", "ebs", "service-quotas", "ssm")
SUBREAPER, NAME_BYTES = 36, 4000  # PR_SET_CHILD_SUBREAPER; length of a command line in /proc


class Forker:
    """The connection to a process that forks programs."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._connection = connection
        self._process = process
        self._lock = threading.Lock()
        self._starter = os.getpid()
        self.lost = False  # whether the process has ended

    def start(self, request: dict[str, Any], descriptors: Sequence[int], *, child: bool) -> int | None:
        """Start a program, by default as a child of this process; return its ID, or None if that fails."""
        if os.getpid() != self._starter:
            return None  # a fork of the starter: the program would not become its child
        with self._lock:
            libc = ctypes.CDLL(None)
            libc.prctl(SUBREAPER, int(child), 0, 0, 0)  # makes the program a child of this process
            try:
                content = json.dumps(request).encode()
                head = len(content).to_bytes(4, "big")
                socket.send_fds(self._connection, [head], descriptors)
                self._connection.sendall(content)
                return int.from_bytes(_exactly(self._connection, 4), "big")
            except OSError:
                self.lost = True
                return None
            finally:
                libc.prctl(SUBREAPER, 0, 0, 0, 0)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        if self._process is not None:
            self._process.wait(60)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:  # ends: when the other side disconnects
        more = connection.recv(size - len(found))
        if not more:
            raise ConnectionResetError
        found += more
    return found


@contextmanager
def forked_programs() -> Iterator[None]:
    """Fork the programs that this process and its programs start."""
    forkers: list[Forker] = []
    lock = threading.Lock()

    def forker() -> Forker:
        with lock:
            if not forkers or forkers[-1].lost:
                forkers.append(_start())
        return forkers[-1]

    with pytest.MonkeyPatch.context() as patch:
        _replace_start(
            partial(patch.setattr, subprocess.Popen, "_execute_child"), forker, fixed_variables(os.environ)
        )
        yield
    for started in forkers:
        started.close()


def fork_programs() -> None:
    """Fork the programs that this process starts from now on, such as a worker of a cluster."""
    _running.append(forked_programs())
    _running[-1].__enter__()


_running: list[Any] = []


def _start() -> Forker:
    ours, theirs = socket.socketpair()
    padding = "-" * NAME_BYTES
    command = [sys.executable, __file__, str(theirs.fileno()), padding]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    return Forker(ours, process)


def _replace_start(replace: Any, forker: Any, fixed: Mapping[str, str]) -> None:
    usual = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    signature = inspect.signature(usual)

    def start(self: Any, *params: Any) -> None:
        bound = signature.bind(self, *params)
        how = bound.arguments
        environment = dict(os.environ if how["env"] is None else how["env"])
        pid = None
        background = isinstance(how["args"], list) and how["args"][:4] == IN_BACKGROUND
        words = how["args"][4:] if background else how["args"]
        if _can_fork(words, how) and fixed_variables(environment) == fixed:
            targets = (("p2cread", 0), ("c2pwrite", 1), ("errwrite", 2))
            numbers = {target: target if how[name] == -1 else how[name] for name, target in targets}
            numbers |= {number: number for number in how["pass_fds"]}
            status = Path("/proc/self/status").read_text(encoding="ascii")
            request = {
                "argv": [str(word) for word in words],
                "environment": environment,
                "cwd": str(how["cwd"] or Path.cwd()),
                "umask": int(status.partition("Umask:")[2].split()[0], 8),
                "session": how["start_new_session"],
                "targets": list(numbers),
            }
            for _ in range(2):  # the process that forks may have been killed, with a group of programs
                pid = forker().start(request, list(numbers.values()), child=not background)
                if pid is not None:
                    break
        if pid is None or background:
            how["args"] = ["true"] if pid is not None else how["args"]
            usual(*bound.args)
            return
        self.pid, self._child_created = pid, True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(how[name] for name in pipes))

    replace(start)


def _can_fork(args: Any, how: Mapping[str, Any]) -> bool:
    if not isinstance(args, list) or len(args) < 3 or args[0] != sys.executable:
        return False
    ours = args[1] == "-m" and args[2].partition(".")[0] in PROGRAMS
    if not ours and (args[1] != "-c" or not any(word in args[2] for word in FORKED_CODE)):
        return False
    usual = {
        "executable": None, "preexec_fn": None, "shell": False, "close_fds": True, "gid": None, "gids": None,
        "uid": None, "umask": -1, "process_group": -1,
    }  # fmt: skip
    folder = Path(how["cwd"] or os.curdir)
    return all(how.get(name, value) == value for name, value in usual.items()) and folder.is_dir()


def fixed_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables whose change needs a usual start."""
    found = {name: value for name, value in environment.items() if name.startswith(FIXED)}
    if found.get("PYTHONPATH") == str(ROOT):
        del found["PYTHONPATH"]
    return found


# The rest runs in the forking process and in the programs.


def serve(control: socket.socket, fixed: Mapping[str, str]) -> tuple[dict[str, Any], list[int]]:
    """Fork a program for each request. Returns only in the programs: the request and its files."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in signals:  # sent to the whole group of its starter
        signal.signal(number, signal.SIG_IGN)
    while True:  # ends: when its starter closes the connection or ends
        try:
            head, files, _, _ = socket.recv_fds(control, 4, 64)
            content = _exactly(control, int.from_bytes(head, "big")) if head else b""
        except OSError:
            content = b""
        if not content:
            os._exit(0)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            parent = os.getpid()
            if os.fork():
                os._exit(0)
            for number, handler in signals.items():
                signal.signal(number, handler)
            request = json.loads(content)
            if request["session"]:
                os.setsid()
            os.write(writer, os.getpid().to_bytes(4, "big"))
            os.close(reader)
            os.close(writer)
            while os.getppid() == parent:  # ends: the process between has only to exit
                time.sleep(0.001)
            if request["argv"][2] != "ipykernel_launcher":
                _fork_from_here(control, files, fixed)
            control.close()
            return request, files
        os.waitpid(between, 0)  # ends: that process only forks
        control.sendall(os.read(reader, 4))
        for number in (reader, writer, *files):
            os.close(number)


def _fork_from_here(control: socket.socket, files: list[int], fixed: Mapping[str, str]) -> None:
    """Let another process fork the programs of this program: it has to be its child, without threads."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        os.dup2(theirs.fileno(), control.fileno(), inheritable=False)
        theirs.close()
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2, *files):
            os.dup2(null, number) if number < 3 else os.close(number)
        raise _ServeAgain
    theirs.close()
    forker = Forker(ours)
    _replace_start(partial(setattr, subprocess.Popen, "_execute_child"), lambda: forker, fixed)


class _ServeAgain(BaseException):
    pass


def become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Take over arguments, variables, files, folder and session of the program to run."""
    import fcntl

    kept = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 200) for number in files]
    for number in files:
        os.close(number)
    for number, target in zip(kept, request["targets"], strict=True):
        os.dup2(number, target, inheritable=True)
        os.close(number)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    _name_process(request["argv"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        unbuffered = old.write_through
        with suppress(OSError):
            raw = open(number, "wb" if number else "rb", 0 if unbuffered and number else -1, closefd=False)  # noqa: SIM115
            line_buffering = not unbuffered and (name == "stderr" or raw.isatty())
            new = io.TextIOWrapper(raw, old.encoding, old.errors, None, line_buffering, unbuffered)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)


def _name_process(words: Sequence[str]) -> None:
    """Show the command line of the program in ``/proc``, where tests search for it."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    content = b"\0".join(word.encode() for word in words)[: end - start]
    ctypes.memmove(start, content.ljust(end - start, b"\0"), end - start)


def _import_libraries() -> None:
    """Import what the programs use, load botocore's models, and shorten pauses as in the tests' process."""
    from tests import quick
    from vmsnix_ops.runbooks.execution.execute import without_rfc3987

    with without_rfc3987():
        for name in LIBRARIES:
            importlib.import_module(name)
    patch = pytest.MonkeyPatch()  # until this process ends
    quick.share_models(patch)
    quick.share_data_of_images(patch)
    quick.pause_briefly(patch)
    import botocore.session

    core = botocore.session.Session()
    for service in SERVICES:
        core.create_client(
            service, region_name="us-east-1", aws_access_key_id="no", aws_secret_access_key="no"
        )
        core.get_component("data_loader").load_service_model(service, "paginators-1")


def run(request: Mapping[str, Any]) -> None:
    """Run a program as ``python -m`` or ``python -c`` does."""
    words = request["argv"]
    if os.environ.get("PYTHONPATH"):
        sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != str(ROOT))]
    if words[1] == "-c":
        sys.argv = ["-c", *words[3:]]
        sys.path.insert(0, "")
        module = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(words[2], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = ["-m", *words[3:]]
        if words[2] == "ipykernel_launcher":  # which read this variable when it was imported
            sys.argv.append(f"--IPKernelApp.parent_handle={os.environ.get('JPY_PARENT_PID') or 0}")
        sys.path.insert(0, request["cwd"])
        runpy._run_module_as_main(words[2], alter_argv=True)  # type: ignore[attr-defined]


def _show_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show an error that ends the program without the calls in this file."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def main() -> None:
    """Import the libraries, serve requests, and run a program in each fork."""
    control = socket.socket(fileno=int(sys.argv[1]))
    fixed = fixed_variables(os.environ)  # before libraries change them
    sys.path[0] = str(ROOT)
    _import_libraries()
    del sys.path[0]
    gc.collect()
    gc.freeze()  # keep the memory shared with the forks
    assert threading.active_count() == 1
    while True:  # ends: `serve` returns in programs only
        try:
            request, files = serve(control, fixed)
            break
        except _ServeAgain:
            continue
    become(request, files)
    sys.excepthook = _show_error
    status = 0
    try:
        run(request)
    except SystemExit as end:
        if not isinstance(end.code or 0, int):
            raise
        status = int(end.code or 0)
    # As Python ends, but without the removal of all modules, which would copy the shared memory.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
