"""Send the credentials of a kernel to the runner, through a socket.

The kernel has the credentials (of an SSO session, a role or an instance), but the runner writes the evidence.
The kernel sends each value that it passes to `redaction.remember`, and the runner reads it before it handles
the next output of the kernel.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from vmsnix_ops.redaction import listen, remember

if TYPE_CHECKING:
    from collections.abc import Sequence

SEND_SECONDS = 10.0  # then the notebook continues, because the runner has ended or hangs
MAX_MESSAGE_BYTES = 60_000


class SecretReceiver:
    """The runner's end of the socket; `descriptor` is the file descriptor of the kernel's end."""

    def __init__(self) -> None:
        self._runner_socket, self._kernel_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = self._kernel_socket.fileno()
        self._lock = threading.Lock()
        self._closed = False
        # A kernel that sends many credentials without any output must not block on a full socket.
        threading.Thread(target=self._receive_forever, name="vmsnix-secrets", daemon=True).start()

    def receive(self) -> None:
        """Remember all secrets that the kernel has sent."""
        with self._lock:
            while not self._closed and self._read(socket.MSG_DONTWAIT):
                pass

    def close(self) -> None:
        """Remember the remaining secrets, and close both ends."""
        self.receive()
        self._closed = True
        with suppress(OSError):
            self._runner_socket.shutdown(socket.SHUT_RDWR)
        self._kernel_socket.close()

    def _read(self, flags: int) -> bool:
        try:
            message = self._runner_socket.recv(2 * MAX_MESSAGE_BYTES, flags)
        except OSError:
            return False
        if message:
            with suppress(ValueError):
                remember(*json.loads(message))
        return bool(message)

    def _receive_forever(self) -> None:
        import select

        ready = select.poll()  # `select` would refuse descriptors above 1023
        ready.register(self._runner_socket, select.POLLIN)
        while not self._closed:
            ready.poll()
            with self._lock:
                if not self._read(socket.MSG_DONTWAIT) and self._is_shut_down():
                    break
        self._runner_socket.close()

    def _is_shut_down(self) -> bool:
        if self._closed:
            return True
        try:
            return not self._runner_socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def send_secrets(descriptor: int) -> None:
    """Send all secrets of this process, also future ones, to the `SecretReceiver` of the runner."""
    os.set_inheritable(descriptor, False)
    sender = socket.socket(fileno=descriptor)
    sender.settimeout(SEND_SECONDS)
    lock = threading.Lock()

    def send(values: Sequence[str]) -> None:
        with lock, suppress(OSError):  # the runner, which writes the evidence, has ended
            for value in values:
                if len(value) <= MAX_MESSAGE_BYTES // 6:  # JSON needs up to six bytes per character
                    sender.send(json.dumps([value]).encode())

    listen(send)
