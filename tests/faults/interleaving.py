"""Run two jobs in every order of their decisive calls, with a scheduler over botocore's events.

Each job has its own thread and session. It stops before each decisive call until the scheduler gives it the
next turn, so only one job runs at a time. The order of the turns determines a run; `every_order` tries all.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import boto3

DEADLINE_SECONDS = 120.0


@dataclass
class Actor:
    """A job that stops before every call for which `decisive` is true."""

    name: str
    session: boto3.Session
    decisive: Callable[[str, Mapping[str, Any]], bool]
    result: Any = None
    error: BaseException | None = None
    calls: list[str] = field(default_factory=list)
    running: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stopped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        # Register before any client is made: clients copy their session's events.
        self.session.events.register("provide-client-params", self._before)

    def _before(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        call = f"{model.service_model.service_name}:{model.name}"
        if self.running and self.decisive(call, params):
            self._pause(call)

    def _pause(self, call: str) -> None:
        self.calls.append(call)
        self._stopped.release()
        if not self._go.acquire(timeout=DEADLINE_SECONDS):
            raise AssertionError(f"{self.name} got no turn for {call}")

    def start(self, job: Callable[[], Any]) -> None:
        """Start a job; it stops before its first action."""
        self.result, self.error, self.running = None, None, True
        self.calls = []

        def run() -> None:
            try:
                self._pause("start")
                self.result = job()
            except BaseException as error:  # noqa: BLE001 (the test checks it)
                self.error = error
            finally:
                self.running = False
                self._stopped.release()

        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()
        self._wait()

    def turn(self) -> None:
        """Let the job run to its next stop or its end."""
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        if not self._stopped.acquire(timeout=DEADLINE_SECONDS):
            raise AssertionError(f"{self.name} hangs after {self.calls}")


def every_order(
    actors: tuple[Actor, Actor], begin: Callable[[], tuple[Callable[[], Any], ...]]
) -> Iterator[str]:
    """Run both jobs in every order of their turns; yield the order when both have ended.

    `begin` resets the account and returns the two jobs.
    """
    prefix: list[int] = []
    while True:  # ends: when every order was tried; each turn has a deadline
        for actor, job in zip(actors, begin(), strict=True):
            actor.start(job)
        turns: list[int] = []
        untried: list[int] = []  # turns at which the second job could have run instead of the first
        while any(actor.running for actor in actors):
            ready = [number for number, actor in enumerate(actors) if actor.running]
            choice = prefix[len(turns)] if len(turns) < len(prefix) else ready[0]
            if len(ready) == 2 and choice == 0:
                untried.append(len(turns))
            turns.append(choice)
            actors[choice].turn()
        yield "".join(actors[number].name[0] for number in turns)
        if not untried:
            return
        last = untried[-1]
        prefix = [*turns[:last], 1]
