"""How a run is asked to stop: Ctrl-C, SIGTERM, SIGHUP, or another thread.

SIGTERM and SIGHUP kill papermill at once, and with it every ``finally`` of the notebook. Here every signal
reaches the kernel as an interrupt, and this process stays to keep the evidence.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops.publish.interrupts import announce, stop_signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

GRACE_SECONDS = 30.0  # for a notebook that was asked to stop, before its kernel is killed


@dataclass
class Interrupter:
    """Asks a run to stop, from a signal handler or from any thread.

    The first call interrupts the running cell, so that its ``finally`` blocks clean up and the notebook
    keeps what they print. The second call, or `grace` seconds, kill the kernel.

    Attributes
    ----------
    grace
        Seconds that the notebook has for cleaning up.
    requested
        Whether somebody asked.
    """

    grace: float = GRACE_SECONDS
    requested: bool = False
    _group: int | None = None
    _timer: threading.Timer | None = None
    # Reentrant, because a second signal may come while the handler of the first holds it.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def interrupt(self) -> None:
        """Ask the run to stop; asked again, stop it at once."""
        with self._lock:
            again, self.requested = self.requested, True
            self._signal(signal.SIGKILL if again else signal.SIGINT)
            self._start_timer()

    def attach(self, group: int) -> None:
        """Tell which process group the kernel is."""
        with self._lock:
            self._group = group
            if self.requested:
                self._start_timer()

    def detach(self) -> None:
        """Tell that the kernel has ended: its process group may soon be somebody else's."""
        with self._lock:
            self._group = None
            if self._timer is not None:
                self._timer.cancel()

    def _start_timer(self) -> None:
        if self._timer is None and self._group is not None:
            self._timer = threading.Timer(self.grace, self._signal, [signal.SIGKILL])
            self._timer.daemon = True
            self._timer.start()

    def _signal(self, number: int) -> None:
        with self._lock:
            if self._group is not None:
                with contextlib.suppress(ProcessLookupError):  # it ended between the question and the signal
                    os.killpg(self._group, number)


@contextlib.contextmanager
def signals(interrupter: Interrupter | None = None) -> Iterator[Interrupter]:
    """Let SIGINT, SIGTERM and SIGHUP ask for a stop in this block.

    Python hands signals to the main thread; in any other, only the interrupter's own callers can ask.

    Parameters
    ----------
    interrupter
        Asked in either case; a new one by default.
    """
    stopper = Interrupter() if interrupter is None else interrupter
    if threading.current_thread() is not threading.main_thread():
        yield stopper
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        told = "repeat it to stop immediately" if not stopper.requested else "stopping immediately"
        announce(f"{signal.Signals(number).name}: the notebook cleans up; {told}.")
        stopper.interrupt()

    before = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield stopper
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
