"""Stop a program on Ctrl-C, SIGTERM or SIGHUP: the first lets it clean up, the second ends it immediately.

Python raises `KeyboardInterrupt` for Ctrl-C, but SIGTERM and SIGHUP end it without cleanup. During a cleanup,
a second Ctrl-C can wait for a hanging connection. With `stopping`, all three signals interrupt the program,
and the operating system handles the second one. In notebooks, the runner (`vmsnix_ops.runbooks`) or Jupyter's
stop button does this.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vmsnix_ops.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

UNCHANGED = (signal.SIG_DFL, signal.default_int_handler)
Handler = Callable[[int, Any], Any] | int | signal.Handlers | None


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a process: SIGINT, SIGTERM, and SIGHUP unless the process ignores it.

    A closed terminal and a lost SSH connection send SIGHUP; a process started with ``nohup`` ignores it.
    """
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


def announce(text: str) -> None:
    """Write a line to standard error from a signal handler, also if the terminal was closed."""
    # os.write, because the signal can arrive during a buffered write.
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


@contextmanager
def handling(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Use these signal handlers in the block, and restore the earlier ones after it."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt`; a second signal ends the process.

    Does nothing outside of the main thread, in a Jupyter kernel, and for a signal that has another handler.
    """
    if threading.current_thread() is not threading.main_thread() or "ipykernel.kernelapp" in sys.modules:
        yield
        return
    interrupted = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        interrupted = True
        announce(f"{signal.Signals(number).name}: stopping after cleanup; repeat it to stop immediately.")
        raise KeyboardInterrupt

    ours = [number for number in stop_signals() if signal.getsignal(number) in UNCHANGED]
    with handling(dict.fromkeys(ours, on_signal)):
        yield


@contextmanager
def interruptible(what: str, kept: str) -> Iterator[None]:
    """Turn a `KeyboardInterrupt` of the block into an error that contains the command to continue.

    `what` is the step, such as ``"upload"``; `kept` is a sentence about the results that the next attempt
    uses.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"The {what} was interrupted.", why=kept, fix="Run the same command again to continue."
        ) from error
