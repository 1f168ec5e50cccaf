"""How the runner learns the credentials of a kernel: through a socket, before the kernel can print them.

The runner writes the evidence, and the kernel has the credentials: of an SSO session, a role, an instance.
What the kernel's `redaction.remember` is given is sent at once, and the runner reads it before it takes any
output of the kernel.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from vmsnix_ops.redaction import LineRedactor, Redactor, find_secret, listen, remember, secret_values

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Inbox", "LineRedactor", "Redactor", "find_secret", "report_to", "secret_values"]

SEND_SECONDS = 10.0  # when the runner is gone or hangs, the notebook goes on
LONGEST = 60_000  # bytes of one message


class Inbox:
    """The runner's end of the socket.

    Attributes
    ----------
    descriptor
        The kernel's end, to be passed on to it.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = self._theirs.fileno()
        self._lock = threading.Lock()
        self._over = False
        # A kernel that gets many credentials and prints nothing must not wait for room in the socket.
        threading.Thread(target=self._keep_reading, name="vmsnix-secrets", daemon=True).start()

    def drain(self) -> None:
        """Remember everything that the kernel has sent."""
        with self._lock:
            while not self._over and self._read(socket.MSG_DONTWAIT):
                pass

    def close(self) -> None:
        """Remember what is left, and close both ends."""
        self.drain()
        self._over = True
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._theirs.close()

    def _read(self, flags: int) -> bool:
        try:
            message = self._ours.recv(2 * LONGEST, flags)
        except OSError:
            return False
        if message:
            with suppress(ValueError):
                remember(*json.loads(message))
        return bool(message)

    def _keep_reading(self) -> None:
        import select

        ready = select.poll()  # unlike `select` it takes descriptors above 1023
        ready.register(self._ours, select.POLLIN)
        while not self._over:
            ready.poll()
            with self._lock:
                if not self._read(socket.MSG_DONTWAIT) and self._is_shut():
                    break
        self._ours.close()

    def _is_shut(self) -> bool:
        if self._over:
            return True
        try:
            return not self._ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def report_to(descriptor: int) -> None:
    """Send what this process remembers as secret, now and from now on, to the runner's `Inbox`."""
    os.set_inheritable(descriptor, False)
    sender = socket.socket(fileno=descriptor)
    sender.settimeout(SEND_SECONDS)
    lock = threading.Lock()

    def send(values: Sequence[str]) -> None:
        with lock, suppress(OSError):  # the runner is gone, and with it whoever would write
            for value in values:
                if len(value) <= LONGEST // 6:  # as JSON
                    sender.send(json.dumps([value]).encode())

    listen(send)
