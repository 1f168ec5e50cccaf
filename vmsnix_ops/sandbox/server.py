"""The HTTP server on 127.0.0.1, with a thread for each connection."""

from __future__ import annotations

import errno
import io
import logging
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmsnix_ops.sandbox.core import load_operations
from vmsnix_ops.sandbox.dispatch import Dispatcher
from vmsnix_ops.sandbox.wire.http import (
    TIMEOUT_TEXT,
    BadRequestError,
    DisconnectedError,
    Request,
    TimedSocketReader,
    TooSlowError,
    abort,
    close,
    limit_time,
    linger,
    read_request,
    write_response,
)

if TYPE_CHECKING:
    from vmsnix_ops.sandbox.state import SandboxState


logger = logging.getLogger("vmsnix_ops.sandbox")
HOST = "127.0.0.1"
MAX_CONNECTIONS = 1000  # each has a thread
DRAIN_LIMIT = 64 * 2**20  # bytes of a refused upload that are read; a longer one is disconnected


@dataclass(frozen=True)
class Timeouts:
    """How long a client may take, in seconds."""

    idle: float = 300.0  # between two requests
    head: float = 30.0  # for a request line and its headers
    silence: float = 60.0  # without a byte of the body, or without reading the answer
    per_byte: float = 1 / 1024  # in addition, for each byte of the body


TIMEOUTS = Timeouts()


class Server:
    """Serves one sandbox over HTTP until it is stopped.

    Parameters
    ----------
    state
        The state of the sandbox.
    port
        TCP port; 0 chooses a free one.

    Raises
    ------
    OSError
        The port is in use.
    """

    def __init__(self, state: SandboxState, port: int = 0) -> None:
        load_operations()
        self.state = state
        self._dispatcher = Dispatcher(state)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._guard = threading.Lock()
        self._listener = _listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="sandbox-server", daemon=True)

    @property
    def url(self) -> str:
        """The value for ``AWS_ENDPOINT_URL``."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> None:
        """Start to serve, in threads of this process."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection, and wait for running calls."""
        self._dispatcher.stopping.set()
        close(self._listener)
        if self._thread.is_alive():
            self._thread.join()
        with self._guard:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            close(connection)
            thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._dispatcher.stopping.is_set():
                    return
                logger.exception("the sandbox could not accept a connection")
                self._dispatcher.stopping.wait(0.1)  # such as when there is no free file descriptor
                continue
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="sandbox-connection", daemon=True
            )
            with self._guard:
                full = len(self._connections) >= MAX_CONNECTIONS
                if not full:
                    self._connections[connection] = thread
            if full:
                abort(connection)
                continue
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            limit_time(connection, socket.SO_SNDTIMEO, TIMEOUTS.silence)
            incoming = TimedSocketReader(connection)
            source: Any = io.BufferedReader(incoming, 64 * 1024)
            while self._serve_one(connection, source, incoming):
                pass
        except OSError:
            logger.debug("a client disconnected, or was too slow")
        finally:
            with self._guard:
                self._connections.pop(connection, None)
            close(connection)

    def _serve_one(
        self, connection: socket.socket, source: io.BufferedReader, incoming: TimedSocketReader
    ) -> bool:
        """Answer one request, and return whether the connection can be used again."""
        incoming.set_timeout(TIMEOUTS.idle)
        if not source.peek(1):
            return False
        incoming.set_timeout(TIMEOUTS.head)
        try:
            request = read_request(
                source,
                lambda: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n"),
                lambda: incoming.set_timeout(TIMEOUTS.silence, per_byte=TIMEOUTS.per_byte),
            )
        except BadRequestError as error:
            return self._refuse(connection, error)
        except TooSlowError:
            return self._refuse(connection, BadRequestError(TIMEOUT_TEXT, status=408, code="RequestTimeout"))
        if request is None:
            return False
        try:
            response = self._dispatcher.answer(request)
        except DisconnectedError:
            abort(connection)
            return False
        if response.drop:
            abort(connection) if response.cut_after is not None else close(connection)
            return False
        keep = request.keeps_alive and self._read_rest(request)
        head_only = request.method == "HEAD"
        if write_response(connection, response, head_only=head_only, close=not keep):
            return True
        if response.cut_after is None:
            linger(connection)
        return False

    def _refuse(self, connection: socket.socket, error: BadRequestError) -> bool:
        write_response(connection, self._dispatcher.refuse(error), head_only=False, close=True)
        linger(connection)
        return False

    @staticmethod
    def _read_rest(request: Request) -> bool:
        """Read the rest of a request, and return whether the next one can follow on the connection."""
        if request.expects_continue and request.body.http.untouched:
            return False  # whether the client sends its body now is unknown
        return request.body.drain(DRAIN_LIMIT)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                errno.EADDRINUSE,
                f"Port {port} on {HOST} is in use. Choose another port, or 0 for a free one.",
            ) from error
        raise OSError(
            error.errno, f"The sandbox cannot listen on {HOST}:{port}: {error.strerror}."
        ) from error
    return listener
