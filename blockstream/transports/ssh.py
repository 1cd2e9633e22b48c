"""An ssh connection in a process of its own that only relays bytes.

`python -m blockstream.transports.ssh HOST -- COMMAND` runs COMMAND there, with this process's
standard input, output and error as its own. One Python process encrypts about 200 MiB a second
however many connections it has, so each connection gets one.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence

import asyncssh
import uvloop

from blockstream.errors import ExitStatus
from blockstream.transports.destination import (
    Destination,
    NotTrustedError,
    UnreachableError,
    connected,
    destination,
    reason,
    say,
)
from blockstream.transports.host_keys import HostKeyPolicy

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_PIECE = 1 << 18
# Of several connections that are fed in turn, each needs more at hand than a window holds, or it
# waits for the slowest of them.
_AHEAD_BYTES = 4 << 20
# What ssh itself says when the connection, and not the command, failed.
_NO_CONNECTION = 255


def main(words: Sequence[str] | None = None) -> int:
    """Relay until the command there ends; return its exit status.

    Args:
        words: The arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="")
    parser.add_argument("--host-keys", type=HostKeyPolicy, default=HostKeyPolicy.STRICT)
    parser.add_argument("--config", default="")
    parser.add_argument("command")
    options = parser.parse_args(words)
    # Whoever started us minds these, and ends us by ending our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        where = destination(
            options.host,
            port=options.port,
            user=options.user,
            policy=options.host_keys,
            config_file=options.config,
        )
        return uvloop.run(_relayed(where, options.command))
    except NotTrustedError as error:
        say(str(error))
        return ExitStatus.AUTHENTICATION
    except UnreachableError as error:
        say(str(error))
        return _NO_CONNECTION
    except (OSError, asyncssh.Error, RuntimeError) as error:
        # uvloop complains with RuntimeError of what closes while it is used.
        say(f"the connection to {options.host} broke: {reason(error)}")
        return _NO_CONNECTION


async def _relayed(where: Destination, command: str) -> int:
    """Connect, run the command, and move bytes until it ends."""
    async with connected(where) as connection:
        relay = _Relay()
        channel, _ = await connection.create_session(lambda: relay, command, encoding=None)
        await relay.ended
        status = channel.get_exit_status()
    if status is None or status < 0:  # the line broke, or a signal ended it
        say(f"the command on {where.host} did not end by itself")
        return _NO_CONNECTION
    return int(status)


class _Relay(asyncssh.SSHClientSession[bytes]):
    """Moves bytes between an ssh channel and our own three descriptors.

    Nothing is kept but what a full pipe did not take: the channel is paused until it does.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._waiting: deque[bytes] = deque()
        self._over = False
        for fd in (_STDIN, _STDOUT):
            os.set_blocking(fd, False)  # our ends of the pipes are ours alone

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan
        chan.set_write_buffer_limits(high=_AHEAD_BYTES)

    def session_started(self) -> None:
        self._loop.add_reader(_STDIN, self._read)

    def pause_writing(self) -> None:
        self._loop.remove_reader(_STDIN)

    def resume_writing(self) -> None:
        if not self._over:
            self._loop.add_reader(_STDIN, self._read)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            with contextlib.suppress(OSError):
                os.write(_STDERR, data)
            return
        self._waiting.append(data)
        if len(self._waiting) == 1:
            self._write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_of_input()
        if exc is not None:
            say(f"the connection broke: {reason(exc)}")
        if self._waiting:
            os.set_blocking(_STDOUT, True)
            self._write()
        if not self.ended.done():
            self.ended.set_result(None)

    def _read(self) -> None:
        try:
            data = os.read(_STDIN, _PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._channel.write(data)
        else:
            self._end_of_input()
            with contextlib.suppress(OSError):
                self._channel.write_eof()

    def _end_of_input(self) -> None:
        self._over = True
        self._loop.remove_reader(_STDIN)

    def _write(self) -> None:
        """Write what waits; the rest when the pipe has room."""
        while self._waiting:
            data = self._waiting.popleft()
            try:
                written = os.write(_STDOUT, data)
            except BlockingIOError:
                written = 0
            except OSError:
                self._waiting.clear()
                self._channel.abort()  # whoever started us has gone
                break
            if written < len(data):
                self._waiting.appendleft(data[written:])
                self._channel.pause_reading()
                self._loop.add_writer(_STDOUT, self._write)
                return
        self._loop.remove_writer(_STDOUT)
        self._channel.resume_reading()


if __name__ == "__main__":
    sys.exit(main())
