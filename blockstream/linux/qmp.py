"""QEMU's machine protocol: one JSON object a line, events between the replies."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from blockstream.errors import ConnectionLostError, InterruptedTransferError, NotFoundError

_SECONDS: Final = 10.0
_LONGEST_LINE: Final = 16 << 20


class Qmp:
    """A connection to a QEMU."""

    def __init__(self, file: Any) -> None:
        """Take over a connection whose greeting was read."""
        self._file = file
        self._events: list[tuple[str, float]] = []

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a command; return what QEMU says.

        Raises:
            InterruptedTransferError: If QEMU refuses it.
            ConnectionLostError: If QEMU is gone.
        """
        words: dict[str, object] = {"execute": command}
        if arguments:
            words["arguments"] = {
                name.replace("_", "-"): value for name, value in arguments.items()
            }
        try:
            self._file.write(json.dumps(words).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ConnectionLostError(f"QEMU is gone: {error.strerror}") from error
        while True:
            said = self.line()
            if "return" in said:
                return said["return"]
            if "error" in said:
                raise InterruptedTransferError(
                    f"QEMU refuses {command}: {said['error'].get('desc', said['error'])}"
                )

    def line(self) -> Mapping[str, Any]:
        """Take one line; an event is noted."""
        try:
            text = self._file.readline(_LONGEST_LINE)
            said = json.loads(text) if text else None
        except (OSError, ValueError) as error:
            raise ConnectionLostError(f"QEMU does not answer: {error}") from error
        if not isinstance(said, dict):
            raise ConnectionLostError("QEMU has closed its monitor")
        if "event" in said:
            self._events.append((str(said["event"]), time.monotonic()))
        return said

    def happened(self, event: str) -> float | None:
        """Return when an event came that was seen so far, the last of its kind."""
        return next((when for name, when in reversed(self._events) if name == event), None)


@contextlib.contextmanager
def connected(place: str) -> Iterator[Qmp]:
    """Connect to a monitor: a socket's path, or HOST:PORT.

    Raises:
        NotFoundError: If nobody listens there, or it is no QMP.
        ConnectionLostError: If somebody else holds it, for a monitor talks to one only.
    """
    with contextlib.ExitStack() as stack:
        try:
            line = stack.enter_context(_line(place))
        except OSError as error:
            raise NotFoundError(f"no QEMU answers at {place}: {error.strerror or error}") from error
        file = stack.enter_context(line.makefile("rwb"))
        qmp = Qmp(file)
        try:
            greeting = qmp.line()
        except ConnectionLostError as error:
            raise ConnectionLostError(
                f"{place} does not greet as a QMP socket does: {error}; a monitor talks to one at "
                "a time, and somebody else may hold it"
            ) from error
        if "QMP" not in greeting:
            raise NotFoundError(f"{place} is no QMP socket")
        qmp.ask("qmp_capabilities")
        yield qmp


@contextlib.contextmanager
def _line(place: str) -> Iterator[socket.socket]:
    host, colon, port = place.rpartition(":")
    if "/" not in place and colon and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as line:
            yield line
        return
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_SECONDS)
        line.connect(place)
        yield line
