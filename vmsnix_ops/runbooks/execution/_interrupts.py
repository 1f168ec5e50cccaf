"""Stop a run on Ctrl-C, SIGTERM or SIGHUP, or from another thread.

By default, SIGTERM and SIGHUP kill papermill immediately, and no ``finally`` of the notebook runs. Here each
signal interrupts the kernel, and this process continues, to save the evidence.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmsnix_ops.interrupts import announce, handling, stop_signals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

CLEANUP_SECONDS = 30.0  # time for an interrupted notebook to clean up before its kernel is killed


@dataclass
class Interrupter:
    """Stops a run, from a signal handler or from any thread.

    The first interrupt lets the ``finally`` blocks of the running cell clean up. A second interrupt kills the
    kernel; so does the end of `cleanup_seconds`.
    """

    cleanup_seconds: float = CLEANUP_SECONDS  # seconds that the notebook has to clean up
    times: int = 0  # number of interrupts
    _group: int | None = None
    _timer: threading.Timer | None = None
    # Reentrant, because a second signal can arrive while the handler of the first has the lock.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def requested(self) -> bool:
        """Whether the run was interrupted."""
        return self.times > 0

    def interrupt(self) -> None:
        """Interrupt the run; the second time, kill its kernel."""
        with self._lock:
            self.times += 1
            self._signal(signal.SIGINT if self.times == 1 else signal.SIGKILL)
            self._start_timer()

    def attach(self, group: int) -> None:
        """Set the process group of the kernel."""
        with self._lock:
            self._group = group
            if self.requested:
                self._start_timer()

    def detach(self) -> None:
        """Forget the process group of a kernel that has ended, because its number can be reused."""
        with self._lock:
            self._group = None
            if self._timer is not None:
                self._timer.cancel()

    def _start_timer(self) -> None:
        if self._timer is None and self._group is not None:
            self._timer = threading.Timer(self.cleanup_seconds, self._signal, [signal.SIGKILL])
            self._timer.daemon = True
            self._timer.start()

    def _signal(self, number: int) -> None:
        with self._lock:
            if self._group is not None:
                with contextlib.suppress(ProcessLookupError):  # the kernel has just ended
                    os.killpg(self._group, number)


@contextlib.contextmanager
def signals(interrupter: Interrupter | None = None) -> Iterator[Interrupter]:
    """Let SIGINT, SIGTERM and SIGHUP interrupt the run in this block; yield its interrupter.

    Python handles signals in the main thread only; in another thread, only `interrupter` can stop the run.
    """
    stopper = Interrupter() if interrupter is None else interrupter
    if threading.current_thread() is not threading.main_thread():
        yield stopper
        return

    def on_signal(number: int, _frame: FrameType | None) -> None:
        hint = "repeat it to stop immediately" if not stopper.requested else "stopping immediately"
        announce(f"{signal.Signals(number).name}: the notebook cleans up; {hint}.")
        stopper.interrupt()

    with handling(dict.fromkeys(stop_signals(), on_signal)):
        yield stopper
