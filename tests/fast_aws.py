"""The AWS CLI without its slow start: one process imports it, and forks for each call of `aws`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICES = ("ec2", "autoscaling", "ssm", "s3", "sts")
CLIENT = """\
#!{python} -ISE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode() + b"\\n")
    sys.exit(int(server.makefile().readline() or 1))
"""


@contextmanager
def fast_aws(folder: Path, program: str) -> Iterator[Path]:
    """Yield a folder with a fast `aws` that behaves as the installed one.

    Parameters
    ----------
    folder
        Where to create it.
    program
        The installed AWS CLI. If it is not a Python program, its own folder is yielded.
    """
    if Path(program).parent.name == "shims":  # pyenv's, a script that finds the program and starts it
        found = subprocess.run(["pyenv", "which", "aws"], capture_output=True, text=True, timeout=60)
        program = found.stdout.strip() or program
    first = Path(program).resolve().read_bytes()[:200].partition(b"\n")[0].decode("utf-8", "replace")
    python = first.removeprefix("#!").strip()
    if "python" not in python or " " in python:
        yield Path(program).parent
        return
    address = str(folder / "aws.socket")
    ready, signal_ready = os.pipe()
    server = subprocess.Popen([python, __file__, address, str(signal_ready)], pass_fds=[signal_ready])
    os.close(signal_ready)
    try:
        assert os.read(ready, 1) == b".", "the AWS CLI cannot be imported"
        client = folder / "aws"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        yield folder
    finally:
        os.close(ready)
        server.kill()
        server.wait(60)


def serve(address: str, signal_ready: int) -> None:
    """Import the AWS CLI, write a byte to `signal_ready`, and fork for each client."""
    from awscli.clidriver import create_clidriver  # type: ignore[import-not-found]

    driver = create_clidriver()
    for name in SERVICES:
        driver.session.get_service_model(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        os.write(signal_ready, b".")
        while True:  # ends: its parent kills it
            client, _ = listener.accept()
            if os.fork() == 0:
                answer(client, driver)
            client.close()


def answer(client: socket.socket, driver: object) -> None:
    """Run one command in this fork and end it."""
    status = 255
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, descriptors, _, _ = socket.recv_fds(client, 1, 3)
        arguments, environment, folder = json.loads(client.makefile().readline())
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["aws", *arguments]
        try:
            status = driver.main(arguments)  # type: ignore[attr-defined]
        except SystemExit as end:
            status = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(f"{status}\n".encode())
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
