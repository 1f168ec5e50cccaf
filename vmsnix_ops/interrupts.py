"""How a program that publishes is stopped: asked once it ends cleanly, asked twice it ends at once.

Python turns Ctrl-C into `KeyboardInterrupt` and lets SIGTERM and SIGHUP kill without a word; while it cleans
up, a second Ctrl-C can wait for a hanging connection. Here each signal asks first, and the second one is
obeyed by the operating system. Notebooks have their runner for that (`vmsnix_ops.runbooks`) or Jupyter's stop
button, so their handlers are left alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vmsnix_ops.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to stop: SIGINT, SIGTERM, and SIGHUP unless it is ignored.

    A terminal that closes and an SSH connection that drops send SIGHUP; ``nohup`` makes a process ignore it.
    """
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)


def announce(text: str) -> None:
    """Write a line to standard error from a signal handler, also when the terminal is gone."""
    # os.write, because a handler may come in the middle of a buffered write.
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


@contextmanager
def stopping() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP interrupt the block as Ctrl-C does; the second ends the process.

    Does nothing outside the main thread, in a Jupyter kernel, and where somebody else handles a signal.
    """
    if threading.current_thread() is not threading.main_thread() or "ipykernel.kernelapp" in sys.modules:
        yield
        return
    asked = False

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked = True
        announce(f"{signal.Signals(number).name}: stopping after cleanup; repeat it to stop immediately.")
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in stop_signals()}
    ours = [number for number, handler in before.items() if handler in UNTOUCHED]
    for number in ours:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


@contextmanager
def interruptible(what: str, kept: str) -> Iterator[None]:
    """Say how to go on when the operator stops a step."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRunError(
            f"The {what} was interrupted.", why=kept, fix="Run the same command again to continue."
        ) from error
