"""Disks of two hosts, with a session between them that outlives its connections."""

import contextlib
import math
import os
import select
import shlex
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    ConnectionLostError,
    ForeignStreamError,
    InterruptedTransferError,
    NotFoundError,
    OutcomeUnknownError,
    RefusedError,
    SourceError,
    UsageError,
)
from blockstream.formats.extent_lists import ExtentList, Meaning
from blockstream.interfaces import Link, Source
from blockstream.jobs.digests import Comparison, ask_to_verify, compare, digest_words
from blockstream.jobs.receive import ReceiveRequest, ReceiveResult, receive
from blockstream.jobs.send import SendRequest, SendResult
from blockstream.jobs.serve import PEER_COMMAND
from blockstream.jobs.session import Sending
from blockstream.linux.meeting import MOST_STREAMS, new_token, tell_token
from blockstream.locations import Remote, Way, open_link, open_links, round_trip
from blockstream.run import Run
from blockstream.words import OURS, noise_text
from blockstream_protocol import IDLE_SECONDS, Committed

_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
# The receiver of a connection that broke may hold the target until it, too, notices.
LOCK_WAIT_SECONDS = IDLE_SECONDS - 15.0
# Windows are about 2 MiB: with one stream for each 12.5 ms a line of 1 Gbit/s is full.
_SECONDS_A_STREAM = 0.0125
_COMMAND_NOT_FOUND = 127
_NO_CONNECTION = 255  # of the system's ssh, and of ours
# What the system's ssh says before its 255 that no other attempt would change.
_DENIED = ("Permission denied", "Host key verification failed", "REMOTE HOST IDENTIFICATION")


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """How the other host is reached.

    Attributes:
        way: The way there.
        command: What blockstream is called there.
        retries: How often to connect again without getting any further in between.
        streams: Connections side by side; 0 to count them by the way's round-trip time.
        tell: Says to people that a connection was lost, and what is done about it.
    """

    way: Way = field(default_factory=Way)
    command: str = "blockstream"
    retries: int = 10
    streams: int = 1
    tell: Callable[[str], None] = lambda _text: None


@dataclass(slots=True)
class _Patience:
    """Decides whether to try again, and when."""

    options: PeerOptions
    connected: bool = False
    failures: int = 0
    durable: int = 0
    streams: int = 1

    async def after(self, error: BlockstreamError, run: Run) -> None:
        """Wait before the next connection.

        Raises:
            BlockstreamError: The error, if there is to be none.
        """
        if run.progress.durable > self.durable:
            self.durable, self.failures = run.progress.durable, 0
        self.failures += 1
        again = isinstance(error, ConnectionLostError | OutcomeUnknownError)
        if not again or not self.connected or self.failures > self.options.retries:
            raise error
        if self.failures > 1 and self.streams > 1:
            self.streams = 1  # whatever it is, one connection has the best chance
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (self.failures - 1), _LONGEST_PAUSE_SECONDS)
        self.options.tell(f"{error}; connecting again in {pause:.0f} s")
        await run.pause(pause)


class Push:
    """Sends one disk to another host, connection after connection."""

    def __init__(
        self,
        sending: Sending,
        where: Remote,
        words: list[str],
        options: PeerOptions,
        run: Run,
        *,
        again: bool = False,
    ) -> None:
        """Prepare; `words` are options of `recv` there, `again` as for `push`."""
        self._sending = sending
        self._where = where
        self._words = words
        self._options = options
        self._run = run
        self._patience = _Patience(options, connected=again)

    async def done(self) -> Committed:
        """Send it, and return when it is committed.

        Raises:
            BlockstreamError: With what the other end said.
        """
        run, where = self._run, self._where
        self._patience.streams = await run.ask(lambda: wished_streams(where, self._options))
        while True:
            try:
                try:
                    return await run.carry(self._once)
                except (ConnectionLostError, OutcomeUnknownError) as error:
                    await self._patience.after(error, run)
            except InterruptedTransferError as error:
                if not run.stopped:
                    raise
                raise InterruptedTransferError(
                    f"{error}; {where} is unfinished, {run.progress.durable} of "
                    f"{run.progress.total} bytes are durable there; the same command continues"
                ) from error
            except (SourceError, RefusedError):
                # What was begun there was another state of the source: of no use any more.
                if not self._sending.start_anew():
                    raise

    def _once(self) -> Committed:
        waiting = ["--lock-wait", f"{LOCK_WAIT_SECONDS:.0f}"] if self._patience.connected else []
        words = ["recv", "--session", *waiting, *self._words]
        with connected(self._where, words, self._options, self._patience) as links:
            lanes = [link.to_peer for link in links]
            try:
                committed = self._sending.over(links[0].from_peer, *lanes, name=links[0].name)
            except (ConnectionLostError, OutcomeUnknownError) as error:
                raise explained(error, links, greeted=self._sending.greeted) from error
            finally:
                self._patience.connected |= self._sending.greeted
            self._pass_on(links[0])
            return committed

    def _pass_on(self, link: Link) -> None:
        """Pass on what our program there has to say, although all went well."""
        for line in link.ended()[1].splitlines():
            if line.startswith(OURS):
                self._options.tell(f"{link.name}: {line.removeprefix(OURS)}")


@contextlib.contextmanager
def connected(
    where: Remote, words: Sequence[str], options: PeerOptions, patience: _Patience
) -> Iterator[list[Link]]:
    """Connect as often as wished, and let the programs there meet in one session."""
    count = patience.streams
    with contextlib.ExitStack() as stack:
        meeting = ["--meeting", str(count - 1)] if count > 1 else []
        commands = [remote_command(options, [*words, *meeting], where)]
        commands += [f"{options.command} join {number}" for number in range(count - 1)]
        links: list[Link] = [
            stack.enter_context(contextlib.closing(link))
            for link in open_links(where, commands, options.way)
        ]
        for each in links:
            # Before any is waited for, because the programs there wait for each other.
            stack.callback(each.hang_up)
        if count > 1:
            token = new_token()
            for each in links:
                tell_token(token, each.to_peer)
        yield links


class Standing:
    """A receiver that takes one disk after the other, so that only the first waits for it."""

    def __init__(self, link: Link) -> None:
        """Take over a link on which `recv --session --standing` runs."""
        self._link = link
        self._took_all = True
        self._poll = select.poll()
        self._poll.register(link.from_peer, select.POLLIN)

    @property
    def usable(self) -> bool:
        """Whether it takes another one, as far as is known: one that says anything has ended."""
        return self._took_all and not self._poll.poll(0)

    async def send(self, request: SendRequest, source: Source, run: Run) -> SendResult:
        """Send a disk.

        Raises:
            BlockstreamError: With what the other end said; then it takes no other.
        """
        return await run.carry(lambda: self._sent(request, source, run))

    def _sent(self, request: SendRequest, source: Source, run: Run) -> SendResult:
        self._took_all = False
        sending, link = Sending(request, source, run), self._link
        began = run.now()
        try:
            committed = sending.over(link.from_peer, link.to_peer, name=link.name)
        except (ConnectionLostError, OutcomeUnknownError) as error:
            raise explained(error, [link], greeted=sending.greeted) from error
        sending.confirm(committed)
        self._took_all = sending.ended_with_end
        counts = run.progress.snapshot()
        seconds, moment = run.now() - began, sending.what.moment
        return SendResult(committed, counts, seconds, confirmed=True, moment=moment)


@contextlib.contextmanager
def standing(where: Remote, what: ReceiveRequest, options: PeerOptions) -> Iterator[Standing]:
    """Start a receiver on another host, which takes what is sent before the block ends.

    Its predecessor, whose connection was lost, may still hold the target: so it waits for that.
    """
    words = ["recv", "--session", "--standing", "--lock-wait", f"{LOCK_WAIT_SECONDS:.0f}"]
    with connected(where, [*words, *target_options(what)], options, _Patience(options)) as links:
        yield Standing(links[0])


async def push(
    request: SendRequest,
    source: Source,
    where: Remote,
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
    *,
    again: bool = False,
) -> SendResult:
    """Send a disk of this host to another one, and return when it is committed there.

    Args:
        request: What to send.
        source: The disk.
        where: Where it goes.
        what: How it may be written there.
        options: How its host is reached.
        run: Counts, and stops it.
        again: Whether another connection was lost, which may hold the target a while yet.

    Raises:
        BlockstreamError: With what the other end said.
    """
    if where.name:
        _check_named(what, options)
    asked = replace(request, name=where.name, target=where.key)
    sending = await run.carry(lambda: Sending(asked, source, run))
    for text in sending.what.warnings:
        options.tell(text)
    began = run.now()
    committed = await Push(sending, where, target_options(what), options, run, again=again).done()
    await run.settle(lambda: sending.confirm(committed))
    counts, seconds = run.progress.snapshot(), run.now() - began
    moment = sending.what.moment
    return SendResult(committed, counts, seconds, confirmed=True, moment=moment)


async def compared(
    source: Source,
    where: Remote,
    options: PeerOptions,
    run: Run,
    *,
    adopt: str = "",
) -> Comparison:
    """Compare a disk of this host with one of another by digests.

    Args:
        source: The disk here.
        where: The disk there.
        options: How its host is reached.
        run: Counts, and stops it.
        adopt: Id to give the disk there, which nobody else may use meanwhile.

    Raises:
        BlockstreamError: With what the other end said.
    """
    return await run.carry(lambda: _compared(source, where, options, run, adopt))


def _compared(
    source: Source, where: Remote, options: PeerOptions, run: Run, adopt: str
) -> Comparison:
    command = remote_command(options, digest_words(source.size, adopt), where)
    with contextlib.closing(open_link(where, command, options.way)) as link:
        try:
            if where.name:
                ask_to_verify(link.to_peer, where.name, source.size)
            return compare(source, link.from_peer, run)
        except ConnectionLostError as error:
            raise explained(error, [link], greeted=False) from error


async def push_differing(
    request: SendRequest,
    source: Source,
    where: Remote,
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
) -> tuple[SendResult, Comparison]:
    """Compare a disk with one of another host, and send what differs.

    Raises:
        BlockstreamError: With what the other end said.
    """
    if where.name:
        raise UsageError("HOST::NAME can be compared by `verify`, but not sent what differs")
    base = f"compared-{uuid.uuid4()}"
    comparison = await compared(source, where, options, run, adopt=base)
    found = ExtentList(comparison.differing, Meaning.CHANGED, "comparison", comparison.size)
    request = replace(request, base=base, changes=found)
    # The same open source: what is written to it from the first look on is noticed before END.
    return await push(request, source, where, what, options, run), comparison


async def pull(
    where: Remote,
    send_options: Sequence[str],
    what: ReceiveRequest,
    options: PeerOptions,
    run: Run,
) -> ReceiveResult:
    """Fetch a disk of another host onto one of this host.

    Args:
        where: The source.
        send_options: Options of `send` there.
        what: The target.
        options: How the other host is reached.
        run: Counts, and stops it.

    Raises:
        BlockstreamError: With what the other end said.
    """
    patience = _Patience(options)
    if where.name:
        raise UsageError("`serve` only lets write: a disk is fetched from HOST:/PATH")
    patience.streams = await run.ask(lambda: wished_streams(where, options))
    words = ["send", "--session", *send_options]
    while True:
        async with run.within(connected(where, words, options, patience)) as links:
            lanes = [link.from_peer for link in links]
            try:
                return await receive(what, lanes[0], run, links[0].to_peer, lanes[1:])
            except ForeignStreamError as error:
                text = noise_text(links[0].name, await run.settle(error.words))
                raise InterruptedTransferError(text) from error
            except ConnectionLostError as error:
                lost, greeted = error, run.progress.total > 0
                failure = await run.settle(lambda: explained(lost, links, greeted=greeted))  # noqa: B023
        patience.connected |= greeted
        await patience.after(failure, run)
        # What this run has made is there now.
        what = replace(what, create=False) if greeted else what


def wished_streams(where: Remote, options: PeerOptions) -> int:
    """Return how many connections to use.

    One connection carries little more than its window in a round trip; and one process encrypts
    about 200 MiB a second, which many cores can double.
    """
    if options.streams:
        return options.streams
    seconds = round_trip(where, options.way)
    if seconds is None:
        return 1
    by_distance = math.ceil(seconds / _SECONDS_A_STREAM)
    by_cores = min(4, (os.cpu_count() or 1) // 4)
    return max(1, min(MOST_STREAMS, max(by_distance, by_cores)))


def remote_command(options: PeerOptions, words: Sequence[str], where: Remote) -> str:
    """Return the command line for the other host's shell; the path is its last word.

    `serve` decides by itself; it only compares what it is asked.
    """
    if where.name:
        return PEER_COMMAND
    return f"{options.command} {shlex.join([*words, '--', where.path])}"


def explained(error: BlockstreamError, links: Sequence[Link], *, greeted: bool) -> BlockstreamError:
    """Add what the far program said before it ended; where it never spoke, that is the reason."""
    link = links[0]
    for each in links:
        each.hang_up()
    status, words = link.ended()
    said = f"; it said: {words}" if words else ""
    if greeted:
        return type(error)(f"the connection to {link.name} was lost: {error}{said}")
    if status == _COMMAND_NOT_FOUND and PEER_COMMAND.split()[0] in words:
        return NotFoundError(
            f"{link.name} runs no `blockstream serve` for this key{said}; nothing was sent; the "
            "line that `blockstream serve --show-key-line` prints there belongs before the key"
        )
    if status == _COMMAND_NOT_FOUND:
        return NotFoundError(
            f"blockstream was not found on {link.name}{said}; nothing was sent; install it there, "
            "or give its name with --remote-command"
        )
    if status == AuthenticationError.exit_status and words:
        return AuthenticationError(words)
    denied = status == _NO_CONNECTION and any(text in words for text in _DENIED)
    if status == AuthenticationError.exit_status or denied:
        return AuthenticationError(f"{link.name} let us not in{said}; nothing was sent")
    ours = words.removeprefix(OURS)
    if ours != words:
        # It was blockstream itself that ended, and said why.
        kinds = (kind for kind in BlockstreamError.__subclasses__() if kind.exit_status == status)
        return next(kinds, InterruptedTransferError)(f"{link.name}: {ours}")
    if status == _NO_CONNECTION and words:
        return ConnectionLostError(
            f"no session with {link.name}: {words}; nothing was sent; is the name right, and the "
            "host up?"
        )
    # A program that ended by itself, other than for a lack of connection, would do so again.
    by_itself = 0 < status < _NO_CONNECTION
    return (InterruptedTransferError if by_itself else ConnectionLostError)(
        f"no session with {link.name}: the program that leads there ended with status {status}"
        f"{said}; nothing was sent"
    )


def _check_named(what: ReceiveRequest, options: PeerOptions) -> None:
    """Refuse what the policy there decides."""
    default = ReceiveRequest(what.target, what.state_dir)
    if what != default or options.command != PeerOptions().command or options.streams != 1:
        raise UsageError(
            "how HOST::NAME is written is decided by the policy there: leave --apply, --create, "
            "--verify, --force..., --remote-command and --streams out"
        )


def target_options(what: ReceiveRequest) -> list[str]:
    """Return the options of `recv` for the other host."""
    words = ["--apply", str(what.apply)]
    for option, given in (
        ("--create", what.create),
        ("--verify", what.verify),
        ("--force-in-use", what.force_in_use),
        ("--force-larger", what.force_larger),
        ("--force-base", what.force_base),
    ):
        words += [option] if given else []
    return words
