"""The order of a migration, and what is done when one of its steps fails."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from blockstream.errors import (
    BlockstreamError,
    ConnectionLostError,
    IntegrityError,
    InterruptedTransferError,
    LeftoverError,
    OutcomeUnknownError,
    RefusedError,
    SourceError,
)
from blockstream.jobs.migration.guests import Guest
from blockstream.jobs.migration.landing import Landing
from blockstream.jobs.migration.note import MigrationNote, Phase
from blockstream.jobs.migration.rounds import Next, Round, decide_next, projected
from blockstream.jobs.migration.volume import Means, Move, MovingVolume
from blockstream.jobs.send import SendResult
from blockstream.jobs.supervision import undisturbed
from blockstream.linux import lvm
from blockstream.pipeline.failpoints import failpoint
from blockstream.words import duration_text, size_text

_MOST_OVERFLOWS = 3


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What moves, and how.

    Attributes:
        moves: The volumes of the guest.
        means: What they are moved with.
        words: The command line, for `--resume`.
        max_downtime: Seconds that the guest may stand still.
        go_anyway: Whether the last pass begins although it will take longer.
        compare: Whether the targets hold most of it, so that only what differs need go over.
        verify: Whether both sides are compared before the guest is started there.
        store: Bytes for each classic snapshot; 0 to decide by the volume's size.
    """

    moves: tuple[Move, ...]
    means: Means
    words: tuple[str, ...] = ()
    max_downtime: float = 5.0
    go_anyway: bool = False
    compare: bool = False
    verify: bool = False
    store: int = 0


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """How it went.

    Attributes:
        rounds: All rounds, the last pass included.
        downtime: Seconds from the moment it stood still to the end of the start.
        seconds: How long all of it took.
    """

    rounds: tuple[Round, ...]
    downtime: float
    seconds: float


class Migration:
    """Moves the volumes of one guest."""

    def __init__(self, request: MigrationRequest, guest: Guest) -> None:
        """Look at the volumes of this host; nothing is done, and nobody is asked.

        Raises:
            RefusedError: If none of them is there.
        """
        self._request = request
        self._guest = guest
        self._means = request.means
        self._tell = request.means.tell
        self._rounds: list[Round] = []
        self._round_ended = 0.0
        self._problems: list[str] = []
        found = [self._found(move) for move in request.moves]
        self._volumes = [each for each in found if each is not None]
        if not self._volumes:
            raise self._refused()
        self._note = MigrationNote(self._means.state_dir, self._volumes[0].volume)

    def _found(self, move: Move) -> MovingVolume | None:
        """Look at a volume of this host."""
        try:
            volume = lvm.volume_at(move.source)
        except BlockstreamError as error:
            self._problems.append(f"{move.source}: {error}")
            return None
        if volume is None:
            self._problems.append(f"{move.source} is no logical volume of this host")
            return None
        moving = MovingVolume(move, volume, self._means, self._request.store)
        problem = moving.problem()
        self._problems += [problem] if problem else []
        return moving

    def check(self) -> None:
        """Look at both hosts, without a change.

        Raises:
            RefusedError: With all that is wrong.
            BlockstreamError: If the other host is not reached.
        """
        for moving in self._volumes:
            found = moving.asked(dry_run=True)
            self._problems += [f"{moving.where.account}: {text}" for text in found.problems]
        self._problems += self._guest.problems()
        if self._problems:
            raise self._refused()

    def _refused(self) -> RefusedError:
        return RefusedError(
            "the migration cannot begin:\n  " + "\n  ".join(self._problems) + "\nnothing was done"
        )

    # All of it.

    def run(self) -> MigrationReport:
        """Move them; when this returns, the guest runs on the other host.

        Raises:
            BlockstreamError: If it does not; then it runs here, but for OutcomeUnknownError.
        """
        with self._note.held(), contextlib.ExitStack() as stack:
            for moving in self._volumes:
                stack.callback(moving.close)
            began = time.monotonic()
            # Before the other host is asked, which may be why that run died.
            self._recover()
            self.check()
            self._record(Phase.ROUNDS)
            try:
                downtime = self._moved()
            except (InterruptedTransferError, OutcomeUnknownError) as error:
                if self._note.phase is not Phase.ROUNDS:
                    raise
                text = "`blockstream migrate --resume VOLUME` goes on, --abort cleans up"
                raise type(error)(f"{error}; {text}") from error
            except BaseException:
                if self._note.phase is Phase.ROUNDS:
                    self._drop_snapshots()
                    self._note.forget()
                raise
            with undisturbed(self._tell):
                self._finish()
        return MigrationReport(tuple(self._rounds), downtime, time.monotonic() - began)

    def _moved(self) -> float:
        """Move them, with more room for changes where there was too little; return the downtime.

        Raises:
            SourceError: If there is no more room.
            BlockstreamError: As `run`.
        """
        compare = self._request.compare
        for attempt in range(1, _MOST_OVERFLOWS + 1):
            try:
                self._first(self._landed(), compare=compare)
                self._converge()
                return self._switch()
            except SourceError as error:
                overflowed = any(moving.has_overflowed() for moving in self._volumes)
                if attempt == _MOST_OVERFLOWS or not overflowed:
                    raise
                enlarged = [moving.enlarge() for moving in self._volumes]
                # One that cannot have more may still do beside one that has.
                if not any(enlarged):
                    raise
                self._tell(
                    f"{error}; it begins again with twice the room for snapshots, and sends what "
                    "differs"
                )
            compare = True
            self._rounds.clear()
        raise AssertionError("unreachable")

    def abort(self) -> None:
        """Let the guest run here, and leave nothing behind, on the other host neither.

        Raises:
            LeftoverError: If something is left; then it may be tried again.
        """
        with self._note.held():
            self._recover()
            self._leave(lambda moving: moving.asked(remove=True), "the guest runs here")

    def _finish(self) -> None:
        """Clean up after the guest was started over there.

        Raises:
            LeftoverError: If something is left.
        """
        self._leave(lambda moving: moving.asked(settle=True), "the guest runs on the other host")

    def _leave(self, settle: Callable[[MovingVolume], Landing], where_it_is: str) -> None:
        """Remove our snapshots, tell the other host that it is over, and forget the note."""
        try:
            self._drop_snapshots()
            for moving in self._volumes:
                settle(moving)
        except BlockstreamError as error:
            raise LeftoverError(
                f"{where_it_is}, but something of ours is left: {error}; the same command tries "
                "again to remove it"
            ) from error
        self._note.forget()

    def _drop_snapshots(self) -> None:
        for moving in self._volumes:
            moving.drop_snapshots()

    def _recover(self) -> None:
        """Wake a guest that a run which died had paused.

        Raises:
            OutcomeUnknownError: If it died while the guest was being started over there.
            RefusedError: If it had migrated it.
        """
        match self._note.phase:
            case Phase.STARTING:
                raise OutcomeUnknownError(
                    "an earlier run died while it started the guest on the other host, and whether "
                    "it runs there is not known; see there; if it does, remove our snapshots here "
                    f"(blockstream_*) and {self._note.path}; if it surely does not, remove that "
                    "file, start the guest here, and run the same command again"
                )
            case Phase.DONE:
                self._finish()
                raise RefusedError(
                    "an earlier run has migrated it: the guest runs on the other host; what was "
                    "left of that run is removed now"
                )
            case Phase.PAUSED:
                self._tell("an earlier run died while the guest was paused: it is woken")
                self._roll_back()
            case Phase.PREPARED:
                self._call_off()

    def _record(self, phase: Phase) -> None:
        self._note.record(phase, self._request.words)

    def _landed(self) -> list[Landing]:
        """Make the volumes there, and see what they hold."""
        landings = [moving.asked() for moving in self._volumes]
        self._problems += [text for found in landings for text in found.problems]
        if self._problems:
            raise self._refused()
        return landings

    # Rounds.

    def _first(self, landings: Sequence[Landing], *, compare: bool) -> None:
        """Bring the whole of each volume over, or go on with what an earlier run began."""
        began = time.monotonic()
        sent = [
            moving.begin(landing, compare=compare)
            for moving, landing in zip(self._volumes, landings, strict=True)
        ]
        self._note_round([each for each in sent if each is not None], began, 0.0)

    def _converge(self) -> None:
        """Send what changed, round after round, until the last pass is short enough.

        Raises:
            RefusedError: If no number of rounds would be enough.
        """
        while self._goes_on():
            began = time.monotonic()
            interval = began - self._oldest()
            self._note_round([moving.round() for moving in self._volumes], began, interval)

    def _oldest(self) -> float:
        """Return when the first of the snapshots was made whose states the targets hold."""
        return min(moving.made for moving in self._volumes)

    def _note_round(self, sent: Iterable[SendResult], began: float, interval: float) -> None:
        done = _counted(len(self._rounds), sent, began, interval, self._volumes)
        self._rounds.append(done)
        self._round_ended = time.monotonic()
        ahead = projected(self._rounds)
        text = f"round {done.number}: {size_text(done.covered)} in {duration_text(done.seconds)}"
        self._tell(text + (f"; the last pass would take {duration_text(ahead)}" if ahead else ""))

    def _goes_on(self) -> bool:
        """Tell whether another round is worth it.

        Raises:
            RefusedError: If no number of rounds would be enough.
        """
        waited = time.monotonic() - self._round_ended
        verdict = decide_next(self._rounds, self._request.max_downtime, waited)
        if verdict is not Next.HOPELESS:
            return verdict is Next.AGAIN
        last, seconds = self._rounds[-1], projected(self._rounds) or 0.0
        best = max(each.send_rate for each in self._rounds)
        text = (
            f"it does not converge: the guest changes {size_text(last.dirty_rate)} a second, "
            f"{size_text(best)} a second can be sent, so the last pass would take "
            f"{duration_text(seconds)} and not {duration_text(self._request.max_downtime)}"
        )
        if not self._request.go_anyway:
            raise RefusedError(
                f"{text}; the guest runs on here; allow more with --max-downtime, or give "
                "--on-no-converge go"
            )
        self._tell(text)
        return False

    # The guest goes over.

    def _switch(self) -> float:
        """Move the guest, and return how long it stood still."""
        self._record(Phase.PREPARED)
        try:
            if self._guest.prepare():
                self._converge()
            return self._last()
        except BaseException:
            if self._note.phase is Phase.PREPARED:
                self._call_off()
            raise

    def _last(self) -> float:
        """Stop the guest, send the rest, start it over there; return how long it stood still."""
        for moving in self._volumes:
            moving.stand_by()
        self._record(Phase.PAUSED)
        try:
            began = self._guest.pause()
            self._send_rest()
            if self._request.verify:
                self._verify()
        except BaseException:
            self._roll_back()
            raise
        self._start()
        return time.monotonic() - began

    def _send_rest(self) -> None:
        """Send what changed since the last snapshots, from the volumes themselves."""
        began = time.monotonic()
        interval = began - self._oldest()
        sent = [moving.rest() for moving in self._volumes]
        self._rounds.append(_counted(len(self._rounds), sent, began, interval))

    def _verify(self) -> None:
        """Compare both sides by digests, while the guest stands still.

        Raises:
            IntegrityError: If they differ.
        """
        for moving in self._volumes:
            if found := moving.differing():
                raise IntegrityError(
                    f"{moving.where} differs from {moving.volume} in {found} bytes; the guest was "
                    "not started there"
                )

    def _start(self) -> None:
        """Start the guest over there. From here on it is never started here unless that failed.

        Raises:
            OutcomeUnknownError: If nobody knows whether it runs there.
            BlockstreamError: If it does not.
        """
        with undisturbed(self._tell):
            self._record(Phase.STARTING)
            failpoint("migrate.before_start")
            try:
                self._guest.start_there()
            except (ConnectionLostError, OutcomeUnknownError) as error:
                raise OutcomeUnknownError(
                    f"{error}; whether the guest runs on the other host is not known: see there "
                    "before it is started here"
                ) from error
            except BaseException:
                self._record(Phase.PAUSED)  # it is known not to run there
                self._roll_back()
                raise
            self._record(Phase.DONE)

    def _roll_back(self) -> None:
        """Let the guest run here again.

        Raises:
            InterruptedTransferError: If it could not be woken; the note goes on to say so.
        """
        with undisturbed(self._tell):
            try:
                self._guest.roll_back()
            except BlockstreamError as error:
                raise InterruptedTransferError(
                    f"THE GUEST STANDS STILL, it could not be woken here: {error}; wake it by "
                    "hand, or mend what is wrong and run `blockstream migrate --abort VOLUME`, "
                    "which tries again"
                ) from error
            self._tell("the guest runs here again")
            self._record(Phase.PREPARED)
            self._call_off()

    def _call_off(self) -> None:
        """Undo on the other host what was prepared there, as far as it is reached."""
        with undisturbed(self._tell):
            try:
                self._guest.call_off()
            except BlockstreamError as error:
                self._tell(f"what was prepared on the other host may be left there: {error}")
            self._record(Phase.ROUNDS)


def _counted(
    number: int,
    sent: Iterable[SendResult],
    began: float,
    interval: float,
    volumes: Iterable[MovingVolume] = (),
) -> Round:
    """Return what went over in a round that ends now."""
    results, volumes = list(sent), list(volumes)
    return Round(
        number,
        sum(each.counts.covered for each in results),
        sum(each.counts.wire for each in results),
        time.monotonic() - began,
        sum(each.seconds for each in results),
        interval,
        max((moving.filled for moving in volumes), default=0.0),
        sum(moving.preparing for moving in volumes),
    )


def report_values(report: MigrationReport) -> dict[str, object]:
    """Return a report as JSON has it."""
    values = asdict(report)
    values["rounds"] = [
        asdict(each) | {"send_rate": each.send_rate, "dirty_rate": each.dirty_rate}
        for each in report.rounds
    ]
    return values
