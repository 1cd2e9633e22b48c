"""One simulated world, from one seed: what happens in it, and what must never happen.

The promises that are checked, by number:

    I1  what a duplex sender was acknowledged is durable now
    I2  when CLEAN(goal) is recorded, the medium holds the goal
    I3  when a sender advances its base, the medium holds what it sent, and CLEAN is durable
    I4  whenever a receiver boots at CLEAN(id), the medium holds id
    I5  a refused target is untouched, page cache included
    I6  every transfer that is not rightly refused ends
    I7  nothing but the foreseen errors is raised
    I8  nobody is told that the source changed when it did not
    I9  a receipt is equal to an intent that is durable
    I10 when a set of disks may be committed, each of them is durable
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from blake3 import blake3

from blockstream.pipeline.journal import Journal
from blockstream_protocol import (
    Ack,
    Clean,
    Code,
    Dirty,
    Finish,
    Hello,
    Message,
    Open,
    Plan,
    Receiver,
    ReceiverPolicy,
    Sender,
    TargetState,
    goal_to_continue,
)
from blockstream_protocol import _sender as sender_module
from tests.simulation.drivers import ReceiverDriver, SenderDriver, evidence_of
from tests.simulation.source import Source
from tests.simulation.world import (
    BLOCK,
    BLOCKS,
    FAULTS_UNTIL,
    LAST_STEP,
    SECTOR,
    Crash,
    Disk,
    Faults,
    Pipe,
    SenderRecord,
    SenderStore,
    SlotStorage,
    Violation,
    below,
)

REFUSALS = 3  # after as many a hopeless world is over
# Sessions in a row that may come to nothing without a new fault: every fault that lies in wait for
# its moment spoils one.
FRUITLESS = 10
# In a story, of each digest the first digits are enough, and plans have no words.
_UNREADABLE = re.compile(r"(?<=')([0-9a-f]{6})[0-9a-f]{58}(?=')|plan=<[^>]*>, ")
ROUNDS = 6  # idle rounds until people cut a connection on which only pings travel


@dataclass(frozen=True, slots=True)
class Rules:
    """What a world runs: the shipped classes, or a mutant with one rule removed."""

    sender: type[Sender] = Sender
    receiver: type[Receiver] = Receiver
    sender_driver: type[SenderDriver] = SenderDriver
    receiver_driver: type[ReceiverDriver] = ReceiverDriver


SHIPPED = Rules()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world ended.

    Attributes:
        seed: What it was made from.
        end: "done", "refused" or "violation".
        oracle: For a violation, the number of the promise.
        text: For a violation, what happened.
        faults: Faults that were injected, by kind.
        steps: How long it took.
    """

    seed: int
    end: str
    oracle: str
    text: str
    faults: Counter[str]
    steps: int


class Command:
    """What one run of `send` keeps in mind, over as many sessions as it takes.

    It invents the goal's name, unless an unfinished transfer on the target may be continued.
    """

    def __init__(self, number: int) -> None:
        """Start with a name that nobody used."""
        self.goal = f"invented-{number}"
        self._fresh = False
        self.continued = False

    def goal_for(self, hello: Hello, base: str, begun: list[str]) -> str:
        """Return the goal to open with, now that the target is known."""
        goal = None if self._fresh else goal_to_continue(hello.target, base, begun)
        if goal is not None:
            self.continued |= goal != self.goal
            self.goal = goal
        return self.goal

    def start_anew(self, number: int) -> bool:
        """Give up what does not continue; False if there was nothing of the kind."""
        if not self.continued or self._fresh:
            return False
        self.goal, self._fresh, self.continued = f"invented-{number}", True, False
        return True


class World:
    """Two hosts, a link, and the operator who starts the transfer again until it is over."""

    def __init__(self, seed: int, rules: Rules = SHIPPED, story: list[str] | None = None) -> None:
        """Build the world.

        Args:
            seed: Decides everything that happens.
            rules: What runs in it.
            story: Where to tell what happens; None for silence.
        """
        self.seed = seed
        # No draw, so that a seed means the same world as before.
        self.traced = seed % 2 == 0
        self.rules = rules
        self._story = story
        self.rng = rng = Random(seed)  # noqa: S311  # a simulation must be repeatable
        self.faults = Faults(rng, self.tell)
        self.steps = 0
        self.now = 0.0
        self._pace = (0.01, 0.3, 1.0)[below(rng, 3)]
        self.size = BLOCKS * BLOCK - (300 if rng.random() < 0.1 else 0)
        self.duplex = rng.random() < 0.7
        self.full = rng.random() < 0.2
        self.trusted = rng.random() < 0.4
        self.aiming = self.duplex and rng.random() < 0.4
        self.in_a_set = self.duplex and rng.random() < 0.3
        self.policy = ReceiverPolicy(read_back=rng.random() < 0.2)
        self._cycles = 1 if rng.random() < 0.6 else 2
        # A path as long as this moves the sectors' border through the journal's record.
        self.facts = {"path": "/" * (50 + below(rng, 350))}
        self.checkpoint_bytes = (1, 3500, 9000)[below(rng, 3)]
        self._build()
        self.claimed: dict[str, bytes] = {}
        self.forward = Pipe()
        self.back = Pipe()
        self.forward_ended = self.back_ended = self._hung = False
        self.receiver: ReceiverDriver | None = None
        self.sender: SenderDriver | None = None
        self._idle = 0
        self._refusals = 0
        self._fruitless = self._faults_before = 0
        self._tampered = False
        self._lost_snapshot = False
        self._invented = 0
        self.command = Command(0)
        self._goes_on = False
        self._token: tuple[str, int, str] | None = None
        self._stale = False
        self._over = ""

    def _build(self) -> None:
        """Make the disks: the target at the base, or, sometimes, at something else."""
        rng = self.rng
        base = rng.randbytes(self.size)
        self.source = Source(base, rng, full=self.full)
        wrong = not self.full and rng.random() < 0.05
        held = rng.randbytes(self.size) if wrong or self.full else base
        self.disk = Disk(held, rng, self.faults)
        self.storage = SlotStorage(rng, self.faults)
        self.store = SenderStore(SenderRecord("" if self.full else "base"), rng, self.faults)
        self.images = {"base": base}
        self._hopeless = wrong
        if wrong or self.full:
            self.images["other"] = held
        unknown = (wrong or self.full) and rng.random() < 0.5
        if not unknown:
            self._note("other" if wrong or self.full else "base")

    def _note(self, name: str) -> None:
        """Write the journal's first record, before anything can go wrong."""
        evidence = evidence_of(self.disk, traced=self.traced)
        state = Clean(name, "", Plan.whole(self.size), "", 0, "", evidence.samples)
        quiet = SlotStorage(self.rng, Faults(Random(0), self.tell))  # noqa: S311  # see above
        Journal(quiet, blake3, self.size).record(state, self.facts, trace=evidence.trace)
        self.storage.durable = quiet.durable
        self.storage.view = list(quiet.durable)

    def tell(self, text: str, *values: object) -> None:
        """Add to the story, where there is one."""
        if self._story is not None:
            line = f"{self.steps:5} {self.now:8.2f}s  " + text % values
            self._story.append(_UNREADABLE.sub(r"\1", line))

    # The operator.

    def run(self) -> Outcome:
        """Let it happen, to its end or to the first broken promise."""
        limits = vars(sender_module)
        before = limits["CHECKPOINT_BYTES"]
        limits["CHECKPOINT_BYTES"] = self.checkpoint_bytes
        try:
            while not self._over:
                self._session()
        except Violation as violation:
            return self._outcome("violation", violation.oracle, str(violation))
        except Exception as error:  # noqa: BLE001  # I7: whatever it is, it was not foreseen
            return self._outcome("violation", "I7", f"{type(error).__name__}: {error}")
        finally:
            limits["CHECKPOINT_BYTES"] = before
        return self._outcome(self._over, "", "")

    def _outcome(self, end: str, oracle: str, text: str) -> Outcome:
        self.tell("%s %s", end, text)
        return Outcome(self.seed, end, oracle, text, self.faults.injected, self.steps)

    def _session(self) -> None:
        """Connect both ends, let them talk, and draw the operator's conclusions."""
        self.forward, self.back = Pipe(), Pipe()
        self.forward_ended = self.back_ended = self._hung = False
        self._idle = 0
        self._ends: dict[str, Finish | None] = {"sender": None, "receiver": None}
        self.tell("--- session for %s", self.source.goal)
        self._guarded(self._boot_receiver)
        self._guarded(self._boot_sender)
        while self.receiver is not None or self.sender is not None:
            self._step()
        self._conclude()

    def _boot_receiver(self) -> None:
        self._tamper()
        try:
            self.receiver = self.rules.receiver_driver(self)
        except OSError as error:
            self.tell("receiver cannot open its journal: %s", error)
            self.back.closed = True
            return
        state = self.receiver.journal.state
        self.tell("receiver boots at %s", state)
        if isinstance(state, Clean) and not self._tampered:
            self._require(
                self.disk.durable == self.images[state.id],
                "I4",
                f"the journal says CLEAN({state.id}), but the medium holds something else",
            )

    def _boot_sender(self) -> None:
        self.store.settle()
        if self.aiming:
            if not self._goes_on and self.rng.random() < 0.5:
                self._run_anew()
            self._goes_on = False
            self.source.rename(self.command.goal)
        self.sender = self.rules.sender_driver(self)
        self.tell("sender opens %s", self.sender.opening)

    def _tamper(self) -> None:
        """Let somebody write to a target that is CLEAN at its base."""
        if self._hopeless or self.full or self.rng.random() > 0.02:
            return
        # On the medium as well: where a journal's flush failed, and the power then fails, it may be
        # DIRTY all the same, and nothing is promised of who wrote to a half-written target.
        seen = [self._journal_state(slots) for slots in (self.storage.view, self.storage.durable)]
        if all(isinstance(state, Clean) for state in seen):
            self.faults.count("tamper", "somebody writes to the target")
            block = below(self.rng, BLOCKS)
            # Short enough for the last block, which may be.
            self.disk.overwrite(block * BLOCK, self.rng.randbytes(SECTOR))
            self._tampered = self._hopeless = True

    def _journal_state(self, slots: Sequence[bytes]) -> TargetState:
        copy = SlotStorage(self.rng, Faults(Random(0), self.tell))  # noqa: S311  # see above
        copy.view, copy.plans = list(slots), dict(self.storage.plans)
        return Journal(copy, blake3, self.size).state

    def opening(self) -> Open:
        """Return what the sender announces; one-way, with the token that `status` shows."""
        source, base = self.source, self.store.view.base
        opening = Open(
            size=self.size,
            base=base,
            goal=source.goal,
            plan=source.plan.digest(blake3).hex(),
            ranges=len(source.plan),
            total=source.plan.total,
        )
        if self.duplex:
            return opening
        return self._with_token(opening)

    def _with_token(self, opening: Open) -> Open:
        """Add the resume point; some people throw the token away, some take an old one."""
        state = self._journal_state(self.storage.view)
        old, new = self._token, None
        if isinstance(state, Dirty) and state.frames:
            self._token = new = (state.transfer, state.frames, state.chain)
        fate = self.rng.random()
        token = new if fate < 0.7 else old if fate < 0.9 else None
        self._stale = token != new
        if token is None or token[0] != opening.identity(blake3).hex():
            return opening
        return replace(opening, frames=token[1], chain=token[2])

    def _check_progress(self) -> None:
        """Check I6 early: without faults a transfer must get somewhere."""
        faults = self.faults.injected.total()
        self._fruitless = self._fruitless + 1 if faults == self._faults_before else 0
        self._faults_before = faults
        if self._fruitless > FRUITLESS:
            raise Violation("I6", f"{FRUITLESS} sessions without a fault came to nothing")

    def _conclude(self) -> None:
        """Decide what comes next, as the operator or the scheduler of jobs would."""
        sent, received = self._ends["sender"], self._ends["receiver"]
        if not self.duplex:
            self._confirm(sent, received)
        while not self.store.settled:  # nobody plans the next cycle on what may be taken back
            self._guarded(self.store.settle)
        if self.store.view.base == self.source.goal:
            self._cycle()
            return
        self._check_progress()
        codes = {end.code for end in (sent, received) if end is not None}
        if codes & {Code.REFUSED, Code.SOURCE} and self.command.start_anew(self._invented + 1):
            self._invented += 1
            self._goes_on = True
            self.tell("the command starts anew, with %s", self.command.goal)
            return
        if Code.REFUSED in codes:
            self._refused()
        if self._lost_snapshot or (self.source.mutated and codes & {Code.REFUSED, Code.SOURCE}):
            self._renew()
        elif Code.SOURCE in codes:
            raise Violation("I8", "told that the source changed, which it did not")
        elif Code.UNKNOWN in codes and self.rng.random() < 0.2:
            self._renew()

    @property
    def invented(self) -> list[str]:
        """All names that the sender wrote down, before it announced them."""
        return [f"invented-{number}" for number in range(self._invented + 1)]

    def _run_anew(self) -> None:
        """Let the command be given again, by somebody who knows only what is written down."""
        self._invented += 1
        self.command = Command(self._invented)

    def _renew(self) -> None:
        self._run_anew()
        self._lost_snapshot = False
        self.source.renew()
        self.tell("a new snapshot: %s, blocks %s", self.source.goal, self.source.blocks)

    def _cycle(self) -> None:
        self._cycles -= 1
        self._refusals = self._fruitless = 0
        if not self._cycles:
            self._over = "done"
            return
        self.full = False
        self._run_anew()
        self.source.advance(self.images[self.source.goal])
        self.tell("next cycle: %s, blocks %s", self.source.goal, self.source.blocks)

    def _refused(self) -> None:
        self._refusals += 1
        if self._hopeless:
            if self._refusals >= REFUSALS:
                self._over = "refused"
        elif self.source.narrow:
            self.tell("the plan is widened")
            self.source.widen()
        elif not self.source.mutated and not self._stale:
            raise Violation("I6", "a rightful transfer is refused, and would be for ever")

    def _confirm(self, sent: Finish | None, received: Finish | None) -> None:
        """Take the receipt of a one-way transfer to the sender, unless it gets lost."""
        if received is None or received.committed is None or self.rng.random() < 0.1:
            return
        self.tell("receipt %s", received.committed)
        intent = self.store.view.intent
        self._require(
            received.committed == intent or self._tampered,
            "I9",
            f"the receipt is {received.committed}, the sender's intent {intent}",
        )
        self._guarded(lambda: self.advance(self.source.goal, self.claimed[self.source.goal]))

    def advance(self, goal: str, image: bytes) -> None:
        """Record at the sender that the target holds the goal: the promise is due."""
        self._require(self.disk.durable == image, "I3", f"{goal} is not what the target holds")
        copy = SlotStorage(self.rng, Faults(Random(0), self.tell))  # noqa: S311  # see above
        copy.view, copy.plans = list(self.storage.durable), dict(self.storage.plans)
        state = Journal(copy, blake3, self.size).state
        self._require(
            isinstance(state, Clean) and state.id == goal, "I3", f"CLEAN({goal}) is not durable"
        )
        self.store.record(SenderRecord(goal))
        self.tell("the sender's base is %s", goal)

    # The scheduler.

    @property
    def forward_ready(self) -> bool:
        """Whether the receiver has something to read."""
        pipe = self.forward
        return not self._hung and (bool(pipe.flight) or (pipe.closed and not self.forward_ended))

    @property
    def back_ready(self) -> bool:
        """Whether the sender has something to read."""
        pipe = self.back
        return not self._hung and (bool(pipe.flight) or (pipe.closed and not self.back_ended))

    def _step(self) -> None:
        self.steps += 1
        if self.steps == FAULTS_UNTIL:
            self.faults.stop()
        if self.steps > LAST_STEP:
            raise Violation("I6", "it does not end")
        self.now += self._pace * self.rng.random()
        if self.faults.due():
            self._inject()
        actions: list[Callable[[], None]] = []
        if self.receiver is not None:
            self.receiver.add_actions(actions)
        if self.sender is not None:
            self.sender.add_actions(actions)
        if actions:
            self._guarded(actions[below(self.rng, len(actions))])
        else:
            self._wait()
        self._reap()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do something in which either end may die."""
        try:
            action()
        except Crash as crash:
            self._kill(crash.end, power=crash.power)

    def _reap(self) -> None:
        """Close what an end that is over leaves behind."""
        receiver, sender = self.receiver, self.sender
        if receiver is not None and receiver.finish is not None:
            self._end_receiver(receiver, receiver.finish)
        if sender is not None and sender.finish is not None:
            self.tell("sender ends: %s", sender.finish)
            self._ends["sender"] = sender.finish
            self.sender = None
            self.forward.closed = True

    def _end_receiver(self, receiver: ReceiverDriver, finish: Finish) -> None:
        self.tell("receiver ends: %s", finish)
        untouched = self.disk.writes == receiver.writes_before
        if finish.code == Code.REFUSED or not finish.written:
            self._require(untouched, "I5", f"{finish} wrote to the target")
        self._ends["receiver"] = finish
        self.receiver = None
        self.back.closed = True

    def _wait(self) -> None:
        """Let time pass while nothing can happen; in the end people cut the connection."""
        self._idle += 1
        # A duplex pair notices a hanging connection itself, once it knows that it is one.
        if self._idle > (2 * ROUNDS if self._hung and self.duplex else ROUNDS):
            self._cut()
            return
        self.now += 16.0
        for end in (self.receiver, self.sender):
            if end is not None:
                end.tick()

    def _cut(self) -> None:
        self._hung = False
        self.forward.cut(self.rng)
        self.back.cut(self.rng)

    def _kill(self, end: str, *, power: bool) -> None:
        """Let one end die, with its host or without."""
        if end == "receiver":
            if self.receiver is not None and not power:
                self.receiver.die()
            self.receiver = None
            self.back.cut(self.rng)
            if power:
                self.disk.cut_power()
                self.storage.cut_power()
        else:
            self.sender = None
            self.forward.cut(self.rng)
            if power:
                self.store.cut_power()

    # Faults between two steps; those inside a step are at named points.

    def _inject(self) -> None:
        kinds = (
            self._fault_cut,
            self._fault_kill,
            self._fault_kill,
            self._fault_flip,
            self._fault_lose,
            self._fault_lose,
            self._fault_target,
            self._fault_target,
            self._fault_source,
            self._fault_source,
            self._fault_stop,
        )
        before = self.faults.injected.total()
        for _ in range(5):  # not every fault fits every moment
            kinds[below(self.rng, len(kinds))]()
            if self.faults.injected.total() != before:
                return

    def _fault_cut(self) -> None:
        if self.rng.random() < 0.2:
            self.faults.count("hang", "the connection hangs")
            self._hung = True
            return
        self.faults.count("cut", "the connection is cut")
        self._cut()

    def _fault_kill(self) -> None:
        end = "receiver" if self.rng.random() < 0.7 else "sender"
        power = self.rng.random() < 0.5
        self.faults.count(end[0] + ("power" if power else "kill"), "the %s dies", end)
        self._kill(end, power=power)

    def _fault_flip(self) -> None:
        pipe = self.forward if self.rng.random() < 0.8 else self.back
        if pipe.flight:
            self.faults.count("flip", "a bit in flight")
            pipe.flip(self.rng)

    def _fault_lose(self) -> None:
        pipe = self.forward if self.rng.random() < 0.8 else self.back
        if pipe.flight:
            self.faults.count("lose", "frames in flight are %s", pipe.lose(self.rng))

    def _fault_target(self) -> None:
        fate = self.rng.random()
        if fate < 0.5:
            self.faults.count("eio", "the next flush of the target will fail")
            self.disk.fail_flush = True
            if self.rng.random() < 0.3:  # as when one cable carries both
                self._cut()
        elif fate < 0.7:
            self.faults.count("weio", "the next write will fail")
            self.disk.fail_write = True
        elif fate < 0.85:
            self.faults.count("jeio", "the next flush of the journal will fail")
            self.storage.fail_flush = True
        elif self.policy.read_back:
            self.faults.count("drop", "the next write will be dropped silently")
            self.disk.drop_write = True

    def _fault_source(self) -> None:
        if self.rng.random() < 0.5:
            if not self.trusted and self.source.blocks:
                self.faults.count("mutate", "the source changes under the same id")
                self.source.mutate()
            return
        self.faults.count("resnap", "the snapshot is lost")
        self._lost_snapshot = True
        if self.sender is not None:
            self.sender.fail(Code.SOURCE, "the snapshot overflowed")

    def _fault_stop(self) -> None:
        if self.receiver is None or self.receiver.finish is not None:
            return
        if self.receiver.is_flushing and self.rng.random() < 0.5:
            self.faults.count("eio", "the flush under way will fail")
            self.disk.fail_flush = True
        self.faults.count("stop", "somebody stops the receiver")
        self.receiver.stop()

    # Promises.

    def _require(self, kept: bool, oracle: str, text: str) -> None:
        if not kept:
            raise Violation(oracle, text)

    def check_clean(self, state: TargetState) -> None:
        """Check I2 when CLEAN was recorded."""
        if not isinstance(state, Clean):
            return
        wanted = self.claimed.get(state.id, self.source.image)
        self._require(
            self.duplex or self.forward_ended, "I2", "CLEAN before the end of a one-way stream"
        )
        self._require(
            self.disk.durable == wanted, "I2", f"CLEAN({state.id}) is recorded, the medium differs"
        )
        # MOMENT may be lost on its way: nothing rests upon it.
        self._require(
            state.moment in {self.source.moment, None},
            "I2",
            f"CLEAN({state.id}) is of {self.source.moment}, and said to be of {state.moment}",
        )
        self.images[state.id] = wanted
        self._tampered = False

    def check_settled(self, sender: SenderDriver) -> None:
        """Check I10 when only END is left to say."""
        for pieces in sender.promised.values():
            for offset, data in pieces:
                self._require(
                    self._tampered or self.disk.durable[offset : offset + len(data)] == data,
                    "I10",
                    f"END may be said of {sender.goal}, but offset {offset} is not durable",
                )

    def check_ack(self, sender: SenderDriver, message: Message) -> None:
        """Check I1 when an ACK came that is not the resume point."""
        if not isinstance(message, Ack):
            return
        for index in range(message.frames):
            for offset, piece in sender.promised.get(index, ()):
                self._require(
                    self.disk.durable[offset : offset + len(piece)] == piece,
                    "I1",
                    f"frame {index} was acknowledged, but offset {offset} is not durable",
                )


def simulate(seed: int, rules: Rules = SHIPPED, story: list[str] | None = None) -> Outcome:
    """Run one world."""
    return World(seed, rules, story).run()
