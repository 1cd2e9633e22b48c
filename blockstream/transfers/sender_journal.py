"""What a sender remembers: what each transfer must have committed, and which were confirmed."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blockstream.errors import IntegrityError, NotFoundError, RefusedError, UsageError
from blockstream.linux.files import write_durably
from blockstream.linux.state_directory import make_directory
from blockstream_protocol import Committed


@dataclass(frozen=True, slots=True)
class Intent:
    """One transfer, from the sender's side.

    Attributes:
        expected: What the receiver must say to be believed.
        source: What was sent.
        base: State that it started from; empty for a full copy.
        confirmed: Whether a receipt came back.
        target: Where it was sent; empty over a pipe.
    """

    expected: Committed
    source: str
    base: str
    confirmed: bool = False
    target: str = ""


class SentTransfers:
    """The sender's own journal: one small file a transfer."""

    def __init__(self, state_directory: Path) -> None:
        self._folder = state_directory / "sent"

    def prepare(self) -> None:
        """Make the place for it, so that a bad one is told before anything is sent.

        Raises:
            RefusedError: If it cannot be made.
        """
        make_directory(self._folder)

    def record(self, intent: Intent) -> None:
        """Make an intent durable, before END is said.

        Raises:
            RefusedError: If there is no room.
        """
        make_directory(self._folder)
        path = self._path(intent.expected.transfer, intent.target)
        try:
            write_durably(path, json.dumps(asdict(intent), sort_keys=True).encode())
        except OSError as error:
            raise RefusedError(
                f"{path} cannot be written: {error.strerror}; END was not sent, so the receiver "
                "does not commit; make room, or choose another place with --state-dir"
            ) from error

    def begin(self, source: str, target: str, base: str, goal: str) -> None:
        """Note the goal that was invented for a transfer, before it is announced.

        Raises:
            RefusedError: If there is no room.
        """
        make_directory(self._folder)
        path = self._begun_path(source, target)
        try:
            write_durably(path, json.dumps({"base": base, "goal": goal}).encode())
        except OSError as error:
            raise RefusedError(
                f"{path} cannot be written: {error.strerror}; nothing was sent; make room, or "
                "choose another place with --state-dir"
            ) from error

    def begun(self, source: str, target: str, base: str) -> str:
        """Return the goal that was invented for the same transfer, if nobody knows of its end."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(self._begun_path(source, target).read_text())
            if values["base"] == base:
                return str(values["goal"])
        return ""

    def find(self, transfer: str, target: str = "") -> Intent | None:
        """Return what was recorded of a transfer to a target, or over a pipe."""
        return self._read(self._path(transfer, target))

    def _read(self, path: Path) -> Intent | None:
        try:
            values = json.loads(path.read_text())
            return Intent(**(values | {"expected": Committed(**values["expected"])}))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{path} is damaged: {error}") from error

    def confirm(self, receipt: Committed, target: str = "") -> Intent:
        """Compare a receipt with what was sent, and note that it came.

        Raises:
            NotFoundError: If no such transfer was sent from here.
            RefusedError: If the receiver committed something else.
        """
        intent = self.find(receipt.transfer, target)
        if intent is None:
            raise NotFoundError(
                f"no transfer {receipt.transfer[:16]} was sent from here; the base was not advanced"
            )
        if intent.expected != receipt:
            raise RefusedError(
                f"the receipt for {receipt.goal!r} is not for what was sent: the receiver "
                "committed another content; the base was not advanced"
            )
        confirmed = replace(intent, confirmed=True)
        self.record(confirmed)
        if self.begun(intent.source, target, intent.base) == receipt.goal:
            self._begun_path(intent.source, target).unlink(missing_ok=True)
        return confirmed

    def last_confirmed(self, source: str, target: str) -> str:
        """Return the newest confirmed state that was sent of a source to a target.

        Args:
            source: What was sent.
            target: Where; empty over a pipe.

        Raises:
            NotFoundError: If there is none.
        """
        for intent in self._newest_first():
            if intent.confirmed and (intent.source, intent.target) == (source, target):
                return intent.expected.goal
        where = f"to {target}" if target else "over a pipe"
        raise NotFoundError(
            f"no transfer of {source} {where} was confirmed yet, so there is no last base; nothing "
            "was sent; name the state that the target holds with --base, or send all without it"
        )

    def _newest_first(self) -> Iterator[Intent]:
        paths = sorted(self._folder.glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        for path in reversed(paths):
            intent = self._read(path)
            if intent is not None:
                yield intent

    def _path(self, transfer: str, target: str) -> Path:
        """Return where it is kept: the same content may go to several targets."""
        of_target = _short_digest(target) if target else ""
        return self._folder / f"{'-'.join(filter(None, (transfer, of_target)))}.json"

    def _begun_path(self, source: str, target: str) -> Path:
        return self._folder / f"{_short_digest(source)}-{_short_digest(target)}.begun"


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_receipt(text: str) -> Committed:
    """Parse the line that `recv --receipt` writes.

    Raises:
        UsageError: If it is none.
    """
    try:
        receipt = Committed(**json.loads(text))
        if len(bytes.fromhex(receipt.transfer)) == 32:
            return receipt
    except (ValueError, TypeError, RecursionError):
        pass
    raise UsageError(
        "this is not a receipt: `blockstream recv --receipt -` writes one, a line of JSON"
    )


def receipt_line(committed: Committed) -> str:
    """Return the receipt as one line."""
    return json.dumps(asdict(committed), sort_keys=True)
