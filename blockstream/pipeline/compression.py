"""Packing of payloads: which codec, which level, and never a byte believed on the way back."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from blockstream.errors import IntegrityError, UsageError
from blockstream_protocol import Buffer, Codec, RemoteProtocolError

# No frame of ours needs more: it holds little over 1 MiB.
_WINDOW_LOG = 23
_MAX_WINDOW = 1 << _WINDOW_LOG
# Less gain than this is not worth the unpacking.
_WORTH = 0.95
_SAMPLE = 4096
# Levels, and the plain bytes that one core packs with each in a second; text and programs.
_LADDER = {0: 0.0, 1: 600e6, 3: 300e6, 6: 100e6, 9: 60e6}
_LEVELS = list(_LADDER)
# Where a payload is packed anew: from what is most likely the level that it had.
_LEVELS_AGAIN = (*_LEVELS[1:], 12, 15, 19, 22)
_MAGIC_BYTES = 4
_BLOCK_HEAD = 3
# A rate differs by this much from one moment to the next, whatever we do.
_BETTER = 1.1


@dataclass(frozen=True, slots=True)
class CompressionChoice:
    """What the user asked for.

    Attributes:
        level: zstd's level; 0 for none; None to follow the bottleneck.
        least: The level that following the bottleneck begins at, and never falls below.
    """

    level: int | None
    least: int = 0

    @classmethod
    def parse(cls, text: str) -> "CompressionChoice":
        """Parse `auto`, `none`, `zstd` or `zstd:LEVEL`.

        Raises:
            UsageError: If it is none of these.
        """
        name, _, level = text.partition(":")
        if text in {"auto", "none"}:
            return cls(None if text == "auto" else 0)
        if name == "zstd" and (not level or (level.isdecimal() and 1 <= int(level) <= 19)):
            return cls(int(level or 1))
        raise UsageError(f"compression is auto, none, zstd or zstd:1 to zstd:19, not {text!r}")


@dataclass(frozen=True, slots=True)
class Packed:
    """A payload as it travels."""

    codec: Codec
    payload: Buffer


class Compressor:
    """Packs payloads; one a worker, because zstd contexts are not shared."""

    def __init__(self) -> None:
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}
        self._decompress = Decompressor()

    def check(self, packed: Packed, raw: memoryview) -> None:
        """Unpack again, and compare.

        Raises:
            IntegrityError: If something else comes out.
        """
        if packed.codec is not Codec.ZSTD:
            return
        # Of the same length, so equal if it starts so; `==` with a view takes twenty times as long.
        if not self._decompress(packed.payload, len(raw)).startswith(raw):
            raise IntegrityError(
                "a frame does not unpack to what was packed: the memory of this host is not to be "
                "trusted; nothing was committed"
            )

    def packed(self, raw: memoryview, level: int) -> Packed:
        """Return `raw` packed if that is worth it; a sample tells for what cannot be packed."""
        if level and len(raw) > _SAMPLE and not self._hopeless(raw):
            wire = self._context(level).compress(raw)
            if len(wire) < len(raw) * _WORTH:
                return Packed(Codec.ZSTD, wire)
        return Packed(Codec.NONE, raw)

    def _hopeless(self, raw: memoryview) -> bool:
        """Tell from three samples whether packing would gain nothing."""
        if len(raw) < 16 * _SAMPLE:
            return False
        context = self._context(1)
        step = (len(raw) - _SAMPLE) // 3
        sizes = (len(context.compress(raw[i * step :][:_SAMPLE])) for i in (1, 2, 3))
        return sum(sizes) > 3 * _SAMPLE * _WORTH

    def _context(self, level: int) -> zstandard.ZstdCompressor:
        context = self._contexts.get(level)
        if context is None:
            # The frame's digest covers the plain bytes, so zstd's own checksum would be a second.
            context = zstandard.ZstdCompressor(level=level, write_content_size=True)
            self._contexts[level] = context
        return context


def packed_to(raw: Buffer, length: int) -> bytes | None:
    """Return `raw` as one zstd frame of exactly that length; None if no level packs it so small.

    What is too short is filled with what unpacks to nothing: blocks of no bytes, and the number 0
    of a dictionary, which means none (RFC 8878, 3.1.1).
    """
    for level in _LEVELS_AGAIN:
        wire = zstandard.ZstdCompressor(level=level, write_content_size=True).compress(raw)
        if len(wire) <= length:
            return _filled(wire, length - len(wire))
    return None


def _filled(wire: bytes, count: int) -> bytes:
    blocks, number = divmod(count, _BLOCK_HEAD)
    descriptor = wire[_MAGIC_BYTES]
    # A window's size comes before the dictionary's number where the content is no single segment.
    before = _MAGIC_BYTES + 1 + (0 if descriptor & 0x20 else 1)
    header = zstandard.frame_header_size(wire)
    return b"".join(
        (
            wire[:_MAGIC_BYTES],
            bytes([descriptor | number]),  # of one byte or of two: the flag says the same
            wire[_MAGIC_BYTES + 1 : before],
            bytes(number),
            wire[before:header],
            bytes(blocks * _BLOCK_HEAD),
            wire[header:],
        )
    )


class Decompressor:
    """Unpacks payloads of strangers; one a worker."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)

    def __call__(self, wire: Buffer, raw_len: int) -> bytes:
        """Return the `raw_len` plain bytes of `wire`; trust nothing that its header says.

        Raises:
            RemoteProtocolError: If it unpacks to anything else.
        """
        try:
            # zstandard allocates what the header claims, whatever limit it is given.
            header = zstandard.get_frame_parameters(wire)
            if (
                header.content_size != raw_len
                or header.window_size > _MAX_WINDOW
                or header.dict_id != 0
            ):
                raise RemoteProtocolError("a zstd header does not fit its frame")
            plain = self._context.decompress(wire, max_output_size=raw_len, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise RemoteProtocolError(f"a zstd payload does not unpack: {error}") from error
        if len(plain) != raw_len:
            raise RemoteProtocolError("a zstd payload has another length than declared")
        return plain


class LevelControl:
    """Follows the bottleneck: packs harder while the link is slower than the processors.

    Each window of time, the rate of plain bytes decides: a step up the ladder is kept only if it
    made that rate better, and steps that did not help are tried again ever more rarely.
    """

    WINDOW_SECONDS = 0.25

    def __init__(
        self,
        choice: CompressionChoice,
        *,
        clock: Callable[[], float] = time.monotonic,
        idle_cores: Callable[[], float] | None = None,
    ) -> None:
        """Start at the chosen level, or at the least where it is to be found."""
        self.level = choice.least if choice.level is None else choice.level
        self._least = choice.least
        self._fixed = choice.level is not None
        self._clock = clock
        self._idle_cores = idle_cores or IdleCores(clock)
        self._since = clock()
        self._plain = 0
        self._blocked = 0.0
        self._packed = False
        self._before_step: float | None = None
        self._patience = 0
        self._pause = 1

    def note(self, plain: int, blocked: float, *, packed: bool) -> None:
        """Count one frame: its plain bytes, the seconds that the link made us wait, its codec."""
        if self._fixed:
            return
        self._packed = self._packed or packed
        self._plain += plain
        self._blocked += blocked
        now = self._clock()
        elapsed = now - self._since
        if elapsed < self.WINDOW_SECONDS:
            return
        self._decide(self._plain / elapsed, self._blocked / elapsed)
        self._since, self._plain, self._blocked, self._packed = now, 0, 0.0, False

    def _decide(self, rate: float, blocked: float) -> None:
        idle = self._idle_cores()
        if self.level and not self._packed and blocked >= 0.1:
            return  # what cannot be packed says nothing about a level
        if self._before_step is not None and rate < self._before_step * _BETTER:
            # The step up did not pay: back, and wait longer before the next try.
            self._step(-1)
            self._patience = self._pause = min(self._pause * 2, 64)
            self._before_step = None
            return
        self._before_step = None
        if blocked < 0.1 and self.level > self._least:
            self._step(-1)
        elif self._patience:
            self._patience -= 1
        elif blocked > 0.5 and self._affordable(rate, idle):
            self._before_step = rate
            self._step(1)

    def _affordable(self, rate: float, idle: float) -> bool:
        """Tell whether idle cores could pack one level harder at this rate."""
        speed = _LADDER[self.level]
        harder = [_LADDER[level] for level in _LEVELS if level > self.level][:1]
        spent = rate / speed if speed else 0.0
        return bool(harder) and rate / harder[0] - spent < idle

    def _step(self, by: int) -> None:
        self.level = _LEVELS[max(0, _LEVELS.index(self.level) + by)]


class IdleCores:
    """How many cores of this host did nothing since the last question."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._before = (clock(), self._idle())

    def __call__(self) -> float:
        """Return the mean number of idle cores; at most the number that there are."""
        now = (self._clock(), self._idle())
        elapsed, idle = now[0] - self._before[0], now[1] - self._before[1]
        self._before = now
        return idle / elapsed if elapsed > 0 else 0.0

    def _idle(self) -> float:
        """Return the seconds that all cores together have been idle since boot."""
        try:
            words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        except OSError:
            return 0.0
        return (int(words[4]) + int(words[5])) / self._ticks
