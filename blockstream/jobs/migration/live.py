"""A guest of QEMU whose memory moves too, so that it never boots again.

QEMU sends the memory while the guest runs, and stops it before it hands over
(`pause-before-switchover`): then the last delta of the disks goes over, and QEMU goes on. It stops
the guest when almost nothing of the memory is left, which must not be before we are ready: so the
end of the first pass is held back by letting it crawl.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from blockstream.errors import (
    BlockstreamError,
    ConnectionLostError,
    InterruptedTransferError,
    OutcomeUnknownError,
)
from blockstream.jobs.migration.guests import FarHost, problem_of
from blockstream.linux.qmp import Qmp, connected
from blockstream.run import Run

_POLL_SECONDS: Final = 0.005  # QEMU looks at 4 GiB of zeros in a second
_UNDER_WAY: Final = {"setup", "active", "pre-switchover", "device", "wait-unplug", "cancelling"}
_OVER: Final = {"completed", "failed", "cancelled"}
# With the return path, QEMU has not handed over before the other one says that it runs.
_CAPABILITIES: Final = ("pause-before-switchover", "return-path", "auto-converge")
_FULL: Final = 1 << 40  # bytes a second; QEMU's own default would be 128 MiB
_CRAWL: Final = 10  # about as many pages
_MEASURED_MS: Final = 250  # within that, QEMU measures its rate twice
# Of the memory, so much is held back: it lasts for hours, and goes over in seconds.
_LEAST_KEPT: Final = 256 << 20
_KEPT_PART: Final = 20
_DOWNTIME_MS: Final = 300  # QEMU's own
_CONVERGE_SECONDS: Final = 1800.0
_HAND_OVER_SECONDS: Final = 600.0


@dataclass(slots=True)
class LiveGuest:
    """A running QEMU.

    Attributes:
        monitor: Its QMP socket: a path, or HOST:PORT.
        incoming: Command that starts a QEMU over there which waits for it, `-incoming`.
        uri: Where that one listens, as QEMU says it.
        downtime: Seconds for the last of the memory, a part of what the guest may stand still.
        far: The other host.
        run: Says what is done, and stops it.
    """

    monitor: str
    incoming: str
    uri: str
    downtime: float
    far: FarHost
    run: Run
    _stopped: float | None = None

    def problems(self) -> list[str]:
        """Return why it cannot be moved. See `Guest`."""

        def ask() -> None:
            with connected(self.monitor) as qmp:
                status = qmp.ask("query-status")["status"]
                if status != "running":
                    raise InterruptedTransferError(f"the guest at {self.monitor} is {status}")
                if qmp.ask("query-migrate").get("status") in _UNDER_WAY:
                    raise InterruptedTransferError(f"{self.monitor}: it is being migrated already")

        return problem_of(ask)

    def prepare(self) -> bool:
        """Let the memory go over, as far as it does while the guest runs. See `Guest`."""
        self.run.tell(f"on {self.far.name}: {self.incoming}")
        self.far.command(self.incoming, "--incoming")
        with connected(self.monitor) as qmp:
            _set(qmp, on=True)
            downtime = max(1, round(self.downtime * 1000))
            qmp.ask("migrate-set-parameters", max_bandwidth=_CRAWL, downtime_limit=downtime)
            qmp.ask("migrate", uri=self.uri)
            self.run.tell(f"the guest's memory goes to {self.uri}")
            return self._held_back(qmp, downtime)

    def _held_back(self, qmp: Qmp, downtime: int) -> bool:
        """Let most of the memory go over; tell whether the guest still runs then.

        Args:
            qmp: Its monitor.
            downtime: What QEMU was allowed, in ms.
        """
        crawls_since = None
        for said in _polled(qmp, _CONVERGE_SECONDS, "the memory has not gone over", self.run):
            if said["status"] == "pre-switchover":
                self._stopped = qmp.happened("STOP")
                return False
            memory = said.get("ram")
            if said["status"] != "active" or not memory:
                continue
            kept = max(_LEAST_KEPT, memory["total"] // _KEPT_PART)
            if crawls_since is not None:
                # It stops the guest as soon as the rest would go over within the downtime at the
                # rate that it measured last (qemu migration_update_counters).
                would_go = memory["mbps"] * 125 * downtime
                measured = said["total-time"] > crawls_since + _MEASURED_MS
                if measured and would_go < memory["remaining"]:
                    return True
            elif memory["remaining"] <= kept or memory["dirty-sync-count"] > 1:
                qmp.ask("migrate-set-parameters", max_bandwidth=_CRAWL)
                crawls_since = said["total-time"]
            else:
                qmp.ask("migrate-set-parameters", max_bandwidth=_FULL)
        raise AssertionError("unreachable")

    def call_off(self) -> None:
        """Let QEMU forget it; the one that waits over there then ends. See `Guest`."""
        self._cancel()

    def pause(self) -> float:
        """Let QEMU stop the guest before it hands over. See `Guest`."""
        with connected(self.monitor) as qmp:
            began = time.monotonic()
            qmp.ask("migrate-set-parameters", max_bandwidth=_FULL)
            for said in _polled(
                qmp, _CONVERGE_SECONDS, "the guest changes its memory too fast", self.run
            ):
                if said["status"] == "pre-switchover":
                    return self._stopped or qmp.happened("STOP") or began
        raise AssertionError("unreachable")

    def start_there(self) -> None:
        """Let QEMU hand over. See `Guest`."""
        try:
            with connected(self.monitor) as qmp:
                qmp.ask("migrate-continue", state="pre-switchover")
                for said in _polled(qmp, _HAND_OVER_SECONDS, "QEMU has not handed over", self.run):
                    if said["status"] == "completed":
                        break
                # It must never run here again, on disks that are out of date from now on.
                self._quit(qmp)
        except ConnectionLostError as error:
            raise OutcomeUnknownError(f"while QEMU handed over: {error}") from error

    def roll_back(self) -> None:
        """Let it run here again. See `Guest`."""
        self._cancel()

    def _cancel(self) -> None:
        with connected(self.monitor) as qmp:
            if qmp.ask("query-migrate").get("status") in _UNDER_WAY:
                qmp.ask("migrate_cancel")
                for _ in _polled(
                    qmp, _HAND_OVER_SECONDS, "QEMU does not let go", self.run, failed_too=True
                ):
                    pass
            if qmp.ask("query-migrate").get("status") == "completed":
                raise InterruptedTransferError(
                    f"QEMU at {self.monitor} says that the guest has gone over: it runs on "
                    f"{self.far.name}"
                )
            _set(qmp, on=False)
            qmp.ask("migrate-set-parameters", downtime_limit=_DOWNTIME_MS, max_bandwidth=_FULL)
            if qmp.ask("query-status")["status"] != "running":
                qmp.ask("cont")

    def _quit(self, qmp: Qmp) -> None:
        try:
            qmp.ask("quit")
        except BlockstreamError as error:
            self.run.tell(
                f"QEMU at {self.monitor} could not be ended, which must not run on: {error}"
            )


def _set(qmp: Qmp, *, on: bool) -> None:
    """Switch on what we need, or off again, because another migration would wait for ever."""
    states = [{"capability": name, "state": on} for name in _CAPABILITIES]
    qmp.ask("migrate-set-capabilities", capabilities=states)


def _polled(
    qmp: Qmp, seconds: float, late: str, run: Run, *, failed_too: bool = False
) -> Iterator[dict[str, Any]]:
    """Give what QEMU says of its migration, until it is over.

    Raises:
        InterruptedTransferError: If it fails.
        ConnectionLostError: If it lasts longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        said = qmp.ask("query-migrate")
        if said["status"] in _OVER - {"completed"} and not failed_too:
            why = said.get("error-desc") or "without a word"
            raise InterruptedTransferError(f"QEMU's migration {said['status']}: {why}")
        yield said
        if said["status"] in _OVER:
            return
        if time.monotonic() > deadline:
            raise ConnectionLostError(f"{late} within {seconds:.0f} s")
        run.wait(_POLL_SECONDS)
