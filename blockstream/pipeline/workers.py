"""Threads that work on one ordered stream, and end together."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress


class WorkersStoppedError(Exception):
    """Another member of the crew failed; whoever gets this ends quietly."""


def default_workers() -> int:
    """Return how many threads keep this host's processors busy.

    One a processor, because two buffers of a frame in one cache cost more than an idle moment;
    never one alone, so that one reads while the other writes.
    """
    return max(2, min(4, os.cpu_count() or 1))


class Turnstile:
    """Lets numbered work pass in order: what was done in parallel leaves in sequence."""

    def __init__(self, first: int = 0) -> None:
        self._turn = first
        self._broken = False
        self._lock = threading.Lock()
        # One lock a waiter: a condition would wake all of them for each frame.
        self._waiting: dict[int, threading.Lock] = {}

    def wait_for(self, number: int) -> None:
        """Wait until it is `number`'s turn.

        Raises:
            WorkersStoppedError: If the turnstile was broken.
        """
        gate = None
        with self._lock:
            if self._turn != number and not self._broken:
                gate = self._waiting[number] = threading.Lock()
                gate.acquire()
        if gate is not None:
            gate.acquire()
        if self._broken:
            raise WorkersStoppedError

    def advance(self) -> None:
        """End the turn."""
        with self._lock:
            self._turn += 1
            gate = self._waiting.pop(self._turn, None)
        if gate is not None:
            gate.release()

    def break_open(self) -> None:
        """Send everybody away who waits or will."""
        with self._lock:
            self._broken = True
            gates = list(self._waiting.values())
            self._waiting.clear()
        for gate in gates:
            gate.release()


class Workers:
    """Runs one function in several threads and remembers every error.

    Every one, because a flush that fails after a cut must not be forgotten for the cut's sake.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        """Prepare; `on_failure` must make the other members end soon, and may be called often."""
        self.errors: list[BaseException] = []
        self._on_failure = on_failure

    @property
    def error(self) -> BaseException | None:
        """The first error, if there is any."""
        return self.errors[0] if self.errors else None

    def run(self, work: Callable[[], None], members: int) -> None:
        """Run `work` in that many threads and wait for all of them. Errors are kept, not raised."""
        # Daemons: a thread that hangs in a write to a stopped pipe must not hold up the exit.
        threads = [
            threading.Thread(target=self._member, args=(work,), name=f"worker-{n}", daemon=True)
            for n in range(members)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def fail(self, error: BaseException) -> None:
        """Keep an error and make everybody end."""
        self.note(error)
        self._on_failure()

    def note(self, error: BaseException) -> None:
        """Keep an error; the others finish what they have and then end by themselves."""
        if not any(error is known for known in self.errors):
            self.errors.append(error)

    def _member(self, work: Callable[[], None]) -> None:
        try:
            with suppress(WorkersStoppedError):
                work()
        except BaseException as error:  # noqa: BLE001  # handed to whoever waits for the crew
            self.fail(error)
