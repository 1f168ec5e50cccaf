"""Run two jobs at once in every order of their decisive calls: a scheduler over botocore's events.

Each job runs in a thread of its own with a session of its own. Before a decisive call it stops, and goes on
when the scheduler says so; between two stops only one job runs. So a run is decided by the order of the
turns alone, and `every_order` tries them all.
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
    """One job: its session stops before every call that `decisive` names."""

    name: str
    session: boto3.Session
    decisive: Callable[[str, Mapping[str, Any]], bool]
    result: Any = None
    error: BaseException | None = None
    calls: list[str] = field(default_factory=list)
    gated: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stopped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        # Before any client is made: clients copy their session's events.
        self.session.events.register("provide-client-params", self._before)

    def _before(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        call = f"{model.service_model.service_name}:{model.name}"
        if self.gated and self.decisive(call, params):
            self._pause(call)

    def _pause(self, call: str) -> None:
        self.calls.append(call)
        self._stopped.release()
        if not self._go.acquire(timeout=DEADLINE_SECONDS):
            raise AssertionError(f"{self.name} was never allowed to go on with {call}")

    def start(self, job: Callable[[], Any]) -> None:
        """Begin a job; it stops before it does anything."""
        self.result, self.error, self.gated = None, None, True
        self.calls = []

        def run() -> None:
            try:
                self._pause("start")
                self.result = job()
            except BaseException as error:  # noqa: BLE001 (the test looks at it)
                self.error = error
            finally:
                self.gated = False
                self._stopped.release()

        self._thread = threading.Thread(target=run, name=self.name, daemon=True)
        self._thread.start()
        self._wait()

    def turn(self) -> None:
        """Let it run to its next stop, or to its end."""
        self._go.release()
        self._wait()

    def _wait(self) -> None:
        if not self._stopped.acquire(timeout=DEADLINE_SECONDS):
            raise AssertionError(f"{self.name} hangs after {self.calls}")

    @property
    def running(self) -> bool:
        return self.gated


def every_order(
    actors: tuple[Actor, Actor], begin: Callable[[], tuple[Callable[[], Any], ...]]
) -> Iterator[str]:
    """Run both jobs in every order of their turns, and yield each order when both have ended.

    `begin` prepares the world and returns the two jobs.
    """
    prefix: list[int] = []
    while True:
        for actor, job in zip(actors, begin(), strict=True):
            actor.start(job)
        turns: list[int] = []
        open_choices: list[int] = []  # turns at which the second job could have run instead of the first
        while any(actor.running for actor in actors):
            able = [number for number, actor in enumerate(actors) if actor.running]
            choice = prefix[len(turns)] if len(turns) < len(prefix) else able[0]
            if len(able) == 2 and choice == 0:
                open_choices.append(len(turns))
            turns.append(choice)
            actors[choice].turn()
        yield "".join(actors[number].name[0] for number in turns)
        if not open_choices:
            return
        last = open_choices[-1]
        prefix = [*turns[:last], 1]
