"""The order of a migration, and what is done when one of its steps fails."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from blockstream.captures.lvm_snapshots import volume_held
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
from blockstream.jobs.migration.convergence import Next, Round, decide_next, projected
from blockstream.jobs.migration.downtime import Downtime, Watch
from blockstream.jobs.migration.guests import Guest
from blockstream.jobs.migration.marks import places_of
from blockstream.jobs.migration.state import MigrationNote, Phase
from blockstream.jobs.migration.target_volume import Landing
from blockstream.jobs.migration.volume import Means, Move, MovingVolume, moved_to
from blockstream.linux import lvm
from blockstream.pipeline.failpoints import failpoint
from blockstream.run import Run
from blockstream.transfers.send import SendResult
from blockstream.words import duration_text, size_text

_MOST_OVERFLOWS = 3
_ANOTHER_FAILED = "another volume of the guest failed"
# A last pass that takes longer than expected, and was wanted all the same, may take so much longer.
_MARGIN = 2.0


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What moves, and how.

    Attributes:
        moves: The volumes of the guest.
        means: What they are moved with.
        words: The command line, for `--resume`.
        max_downtime: Seconds that the last pass may take, while the guest stands still.
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
        downtime: How long it stood still.
        seconds: How long all of it took.
    """

    rounds: tuple[Round, ...]
    downtime: Downtime
    seconds: float


class Migration:
    """Moves the volumes of one guest."""

    def __init__(self, request: MigrationRequest, guest: Guest, run: Run) -> None:
        """Look at the volumes of this host; nothing is done, and nobody is asked.

        Args:
            request: What moves.
            guest: Whoever uses it.
            run: Counts, and stops it.

        Raises:
            RefusedError: If none of them is there.
        """
        self._request = request
        self._guest = guest
        self._means = request.means
        self._run = run
        self._tell = run.tell
        self._rounds: list[Round] = []
        self._round_ended = 0.0
        self._limit = request.max_downtime
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

    async def check(self) -> None:
        """Look at both hosts, without a change.

        Raises:
            RefusedError: With all that is wrong.
            BlockstreamError: If the other host is not reached.
        """
        await self._run.carry(self._check)

    def _check(self) -> None:
        for moving in self._volumes:
            found = moving.asked(self._run, dry_run=True)
            self._problems += [f"{moving.where.account}: {text}" for text in found.problems]
        self._problems += self._guest.problems()
        if self._problems:
            raise self._refused()

    def _refused(self, done: str = "\nnothing was done") -> RefusedError:
        problems = "\n  ".join(self._problems)
        return RefusedError(f"the migration cannot begin:\n  {problems}{done}")

    # All of it.

    async def done(self) -> MigrationReport:
        """Move them; when this returns, the guest runs on the other host.

        Raises:
            BlockstreamError: If it does not; then it runs here, but for OutcomeUnknownError.
        """
        run = self._run
        async with run.within(self._alone()):
            began = run.now()
            await run.carry(self._begin)
            try:
                for moving in self._volumes:
                    await run.carry(moving.claim)
                downtime = await self._moved()
            except BlockstreamError as error:
                if self._note.phase is not Phase.ROUNDS:
                    raise
                error.add(await run.settle(self._what_stays))
                raise
            with run.kept_to_the_end():
                await run.settle(self._finish)
        return MigrationReport(tuple(self._rounds), downtime, run.now() - began)

    def _begin(self) -> None:
        # Before the other host is asked, which may be why that run died.
        self._recover()
        self._check()
        self._leave_other_places()
        self._record(Phase.ROUNDS)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let nobody else move or send these volumes meanwhile; give connections back at the end.

        Raises:
            BusyError: If somebody does.
        """
        with contextlib.ExitStack() as stack:
            for moving in self._volumes:
                held = volume_held(moving.volume, self._means.state_dir, alone=True)
                stack.enter_context(held)
                stack.callback(moving.close)
            yield

    def _what_stays(self) -> str:
        """Name what is left of a run that failed in its rounds, and what to do with it."""
        volume = self._volumes[0].volume
        try:
            left = [name for moving in self._volumes for name in moving.left()]
            if not left:
                for moving in self._volumes:
                    moving.release()
                self._note.forget()
                return "the guest runs here, and nothing of this is left"
        except BlockstreamError as error:
            left = [f"something ({error})"]
        return (
            f"the guest runs here; there stay {' and '.join(left)}; the same command, or "
            f"`blockstream migrate --resume {volume}`, goes on with that, and `blockstream migrate "
            f"--abort {volume}` removes it"
        )

    def _leave_other_places(self) -> None:
        """Remove here what an earlier migration to another place left, and say so."""
        for moving in self._others():
            self._tell(
                f"an earlier migration of {moving.volume} to {moving.where} was not finished: its "
                "snapshots here are removed, and what it made there in the end, or by --abort"
            )
            moving.drop_snapshots()

    def _others(self) -> list[MovingVolume]:
        """Return the same volumes as they were on their way to other places."""
        return [
            MovingVolume(moved_to(moving.volume, where), moving.volume, self._means, 0)
            for moving in self._volumes
            for tag, where in places_of(lvm.again(moving.volume)).items()
            if tag != moving.tag
        ]

    async def _moved(self) -> Downtime:
        """Move them, with more room for changes where there was too little; return the downtime.

        Raises:
            SourceError: If there is no more room.
            BlockstreamError: As `run`.
        """
        compare = self._request.compare
        for attempt in range(1, _MOST_OVERFLOWS + 1):
            try:
                await self._first(await self._run.carry(self._landed), compare=compare)
                await self._converge()
                return await self._switch()
            except SourceError as error:
                last = attempt == _MOST_OVERFLOWS
                if last or not await self._run.carry(self._enlarged):
                    raise
                self._tell(
                    f"{error}; it begins again with twice the room for snapshots, and sends what "
                    "differs"
                )
            compare = True
            self._rounds.clear()
        raise AssertionError("unreachable")

    def _enlarged(self) -> bool:
        """Let snapshots that overflowed have more room; tell whether that was it, and there is."""
        if not any(moving.has_overflowed() for moving in self._volumes):
            return False
        # One that cannot have more may still do beside one that has.
        enlarged = [moving.enlarge() for moving in self._volumes]
        return any(enlarged)

    async def abort(self) -> None:
        """Let the guest run here, and leave nothing behind, on the other host neither.

        Raises:
            LeftoverError: If something is left; then it may be tried again.
        """
        async with self._run.within(self._alone()):
            await self._run.carry(self._aborted)

    def _aborted(self) -> None:
        self._recover()
        self._leave(lambda moving: moving.asked(self._run, remove=True), "the guest runs here")

    def _finish(self) -> None:
        """Clean up after the guest was started over there.

        Raises:
            LeftoverError: If something is left.
        """
        with self._run.undisturbed():
            self._leave(
                lambda moving: moving.asked(self._run, settle=True),
                "the guest runs on the other host",
            )

    def _leave(self, settle: Callable[[MovingVolume], Landing], where_it_is: str) -> None:
        """Remove our snapshots, tell the other hosts that it is over, and forget the note.

        What cannot be removed does not keep the rest.

        Raises:
            LeftoverError: If something stays.
        """
        problems = []
        steps = [(moving, settle) for moving in self._volumes]
        try:
            others = self._others()
        except BlockstreamError as error:
            others, problems = [], [str(error)]
        steps += [(moving, lambda other: other.asked(self._run, remove=True)) for moving in others]
        for moving, finish in steps:
            try:
                moving.drop_snapshots()
                finish(moving)
                moving.release()
            except BlockstreamError as error:
                problems.append(str(error))
        if problems:
            raise LeftoverError(
                f"{where_it_is}, but something of ours is left: {'; '.join(problems)}; the same "
                "command tries again to remove it"
            )
        self._note.forget()

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
        landings = [moving.asked(self._run) for moving in self._volumes]
        self._problems += [text for found in landings for text in found.problems]
        if self._problems:
            raise self._refused("")
        return landings

    # Rounds.

    async def _first(self, landings: Sequence[Landing], *, compare: bool) -> None:
        """Bring the whole of each volume over, or go on with what an earlier run began."""
        began = time.monotonic()
        sent = await self._run.side_by_side(
            [
                moving.begin(landing, part, compare=compare)
                for moving, landing, part in zip(
                    self._volumes, landings, self._parts(), strict=True
                )
            ]
        )
        self._note_round([each for each in sent if each is not None], began, 0.0)

    async def _converge(self) -> None:
        """Send what changed, round after round, until the last pass is short enough.

        Raises:
            RefusedError: If no number of rounds would be enough.
        """
        while self._goes_on():
            began = time.monotonic()
            interval = began - self._oldest()
            pairs = zip(self._volumes, self._parts(), strict=True)
            sent = await self._run.side_by_side([moving.round(part) for moving, part in pairs])
            self._note_round(sent, began, interval)

    def _parts(self) -> list[Run]:
        """Return what each volume of a round is handed."""
        return self._run.parts(len(self._volumes), _ANOTHER_FAILED)

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
        text = (
            f"it does not converge: the guest changes {size_text(last.dirty_rate)} a second, "
            f"{size_text(last.send_rate)} a second can be sent, so the last pass would take "
            f"{duration_text(seconds)} and not {duration_text(self._request.max_downtime)}"
        )
        if not self._request.go_anyway:
            raise RefusedError(
                f"{text}; allow more with --max-downtime, or give --on-no-converge go"
            )
        self._limit = _MARGIN * seconds
        self._tell(f"{text}; it goes on, and gives up after {duration_text(self._limit)}")
        return False

    # The guest goes over.

    async def _switch(self) -> Downtime:
        """Move the guest, and return how long it stood still."""
        run = self._run
        await run.carry(lambda: self._record(Phase.PREPARED))
        try:
            if await run.carry(self._guest.prepare):
                await self._converge()
            return await self._last()
        except BaseException:
            if self._note.phase is Phase.PREPARED:
                with run.kept_to_the_end():
                    await run.settle(self._call_off)
            raise

    async def _last(self) -> Downtime:
        """Stop the guest, send the rest, start it over there; return how long it stood still."""
        run = self._run
        for moving in self._volumes:
            await run.carry(moving.stand_by)
        parts = self._parts()
        watch = Watch(self._limit, lambda: self._wake(parts), run)
        # Whoever left now would leave a guest behind that stands still.
        with run.kept_to_the_end():
            await run.settle(lambda: self._record(Phase.PAUSED))
            try:
                times = [await run.carry(self._guest.pause), time.monotonic()]
                async with watch:
                    await self._send_rest(parts)
                times.append(time.monotonic())
                if self._request.verify:
                    await self._verify()
                times.append(time.monotonic())
                run.check()
            except BaseException:
                await run.settle(lambda: self._roll_back(watch))
                raise
            await run.settle(self._start)
        times.append(time.monotonic())
        return Downtime(*(later - earlier for earlier, later in pairwise(times)))

    def _wake(self, parts: Iterable[Run]) -> None:
        """Wake the guest, in a thread: whoever sends the rest may hang anywhere."""
        self._tell(f"after {duration_text(self._limit)} it is given up: the guest is woken")
        for part in parts:
            part.stop("the guest was woken")
        with self._run.undisturbed():
            self._guest.roll_back()

    async def _send_rest(self, parts: Iterable[Run]) -> None:
        """Send what changed since the last snapshots, from the volumes themselves."""
        began = time.monotonic()
        interval = began - self._oldest()
        pairs = zip(self._volumes, parts, strict=True)
        sent = await self._run.side_by_side([moving.rest(part) for moving, part in pairs])
        self._rounds.append(_counted(len(self._rounds), sent, began, interval))

    async def _verify(self) -> None:
        """Compare both sides by digests, while the guest stands still.

        Raises:
            IntegrityError: If they differ.
        """
        pairs = zip(self._volumes, self._parts(), strict=True)
        differing = await self._run.side_by_side([moving.differing(part) for moving, part in pairs])
        for moving, found in zip(self._volumes, differing, strict=True):
            if found:
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
        with self._run.undisturbed():
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

    def _roll_back(self, watch: Watch | None = None) -> None:
        """Let the guest run here again, if nobody has done that yet.

        Raises:
            InterruptedTransferError: If it could not be woken; the note goes on to say so.
        """
        with self._run.undisturbed():
            try:
                if watch is None or not watch.woken:
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
        with self._run.undisturbed():
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
        max((each.seconds for each in results), default=0.0),
        interval,
        max((moving.filled for moving in volumes), default=0.0),
        max((moving.preparing for moving in volumes), default=0.0),
    )
