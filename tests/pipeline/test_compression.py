"""What was packed comes back, nothing of a stranger's header is believed, and the level follows
the bottleneck.
"""

import os
import random
import resource

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockstream.errors import UsageError
from blockstream.pipeline.compression import (
    CompressionChoice,
    Compressor,
    Decompressor,
    IdleCores,
    LevelControl,
    packed_to,
)
from blockstream_protocol import Codec, RemoteProtocolError

MIB = 1 << 20
TEXT = b"".join(b"line %d of a log file\n" % n for n in range(60_000))[:MIB]


# Packing.


@given(st.binary(max_size=1 << 16), st.sampled_from([0, 1, 3, 6, 9, 19]), st.integers(1, 40))
def test_what_was_packed_comes_back(data: bytes, level: int, times: int) -> None:
    raw = memoryview(data * times)
    packed = Compressor().packed(raw, level)
    if packed.codec is Codec.ZSTD:
        assert len(packed.payload) < len(raw)
        assert Decompressor()(packed.payload, len(raw)) == raw
    else:
        assert packed.payload == raw


def test_what_packs_well_is_packed() -> None:
    packed = Compressor().packed(memoryview(TEXT), 1)
    assert packed.codec is Codec.ZSTD
    assert len(packed.payload) < len(TEXT) / 4


@pytest.mark.parametrize("size", [5_000, 600_000])
def test_what_is_packed_again_fits_where_it_was(size: int) -> None:
    raw = TEXT[:size]
    least = len(zstandard.ZstdCompressor(level=1, write_content_size=True).compress(raw))
    for length in (*range(least, least + 9), 2 * least, size - 1):
        packed = packed_to(raw, length)
        assert packed is not None
        assert len(packed) == length
        assert Decompressor()(packed, size) == raw
    harder = packed_to(raw, least - 10)
    assert harder is not None
    assert Decompressor()(harder, size) == raw


def test_what_no_level_packs_so_small_is_not_packed() -> None:
    assert packed_to(TEXT[:5000], 30) is None


def test_level_none_packs_nothing() -> None:
    assert Compressor().packed(memoryview(TEXT), 0).codec is Codec.NONE


def test_what_cannot_be_packed_is_known_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Compressor._context

    class Counting:
        def __init__(self, context: zstandard.ZstdCompressor) -> None:
            self._context = context

        def compress(self, data: memoryview) -> bytes:
            sizes.append(len(data))
            return self._context.compress(data)

    monkeypatch.setattr(Compressor, "_context", lambda self, level: Counting(real(self, level)))
    packed = Compressor().packed(memoryview(os.urandom(MIB)), 3)
    assert packed.codec is Codec.NONE
    assert sizes == [4096] * 3


def test_one_compressible_part_is_enough_to_try() -> None:
    seeded = random.Random(1)  # noqa: S311
    raw = memoryview(seeded.randbytes(MIB // 4) + bytes(MIB // 2) + seeded.randbytes(MIB // 4))
    assert Compressor().packed(raw, 1).codec is Codec.ZSTD


@pytest.mark.parametrize(
    ("text", "level"), [("auto", None), ("none", 0), ("zstd", 1), ("zstd:7", 7), ("zstd:19", 19)]
)
def test_a_choice_is_parsed(text: str, level: int | None) -> None:
    assert CompressionChoice.parse(text).level == level


@pytest.mark.parametrize(
    "text", ["", "gzip", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "zstd:¹", "auto:3", "none:1"]
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="compression is auto, none, zstd"):
        CompressionChoice.parse(text)


# Unpacking what strangers sent.


def zstd(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_content_size=sized).compress(data)


def bomb(claimed: int) -> bytes:
    """Return a small frame whose header claims `claimed` bytes (RFC 8878, 3.1.1.1)."""
    return b"\x28\xb5\x2f\xfd" + b"\xe0" + claimed.to_bytes(8, "little") + b"\x01\x00\x00"


def huge_window() -> bytes:
    """Return a frame of 1000 bytes that wants a window of 128 MiB (RFC 8878, 3.1.1.1.2)."""
    head = b"\x28\xb5\x2f\xfd\x40" + bytes([(27 - 10) << 3]) + (1000 - 256).to_bytes(2, "little")
    return head + ((1000 << 3) | 1).to_bytes(3, "little") + TEXT[:1000]


def with_dictionary() -> bytes:
    samples: list[bytes | bytearray | memoryview] = [
        b"sample %d of something that repeats itself" % n for n in range(2000)
    ]
    dictionary = zstandard.train_dictionary(2048, samples)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT[:1000])


HOSTILE = {
    "empty": b"",
    "garbage": b"not zstd at all",
    "cut": zstd(TEXT[:1000])[:-3],
    "trailing": zstd(TEXT[:1000]) + b"!",
    "two frames": zstd(TEXT[:500]) + zstd(TEXT[500:1000]),
    "longer than said": zstd(TEXT[:1001]),
    "shorter than said": zstd(TEXT[:999]),
    "no size": zstd(TEXT[:1000], sized=False),
    "bomb": bomb(1 << 40),
    "bomb of that size": bomb(1000),
    "bomb of -1": bomb((1 << 64) - 1),
    "huge window": huge_window(),
    "dictionary": with_dictionary(),
    "skippable": b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip",
    "flipped": bytes([*zstd(TEXT[:1000])[:20], 0xFF, *zstd(TEXT[:1000])[21:]]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_payload_that_is_not_what_it_says_is_refused_in_flat_memory(name: str) -> None:
    decompress = Decompressor()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        with pytest.raises(RemoteProtocolError, match="zstd"):
            decompress(HOSTILE[name], 1000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_good_payload_after_a_bad_one_is_unpacked() -> None:
    decompress = Decompressor()
    with pytest.raises(RemoteProtocolError):
        decompress(HOSTILE["cut"], 1000)
    assert decompress(zstd(TEXT[:1000]), 1000) == TEXT[:1000]


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_whatever_comes_is_unpacked_or_refused(data: bytes, size: int) -> None:
    for wire in (data, zstd(data), zstd(data)[: size % 50] + data):
        try:
            plain = Decompressor()(wire, size)
        except RemoteProtocolError:
            continue
        assert len(plain) == size


# The level.


class World:
    """A link, processors, and time that passes by what they do.

    Per level: seconds of a processor for a MiB, and the ratio that it packs to.
    """

    COST = {0: 0.0001, 1: 0.0012, 3: 0.004, 6: 0.012, 9: 0.03}  # noqa: RUF012
    RATIO = {0: 1.0, 1: 3.0, 3: 3.5, 6: 3.8, 9: 3.85}  # noqa: RUF012

    def __init__(
        self, link: float, cores: float, ratio: dict[int, float] | None = None, least: int = 0
    ) -> None:
        self.link = link  # MiB a second
        self.cores = cores
        self.ratio = ratio or self.RATIO
        self.now = 0.0
        self.busy = 0.0
        self.control = LevelControl(
            CompressionChoice(None, least), clock=lambda: self.now, idle_cores=lambda: self.idle
        )

    @property
    def idle(self) -> float:
        return max(0.0, self.cores - self.busy)

    def run(self, seconds: float) -> list[int]:
        """Send for a while; return the level of each MiB."""
        levels, end = [], self.now + seconds
        while self.now < end:
            level = self.control.level
            wire = 1.0 / self.ratio[level] / self.link
            packing = self.COST[level] / self.cores
            step = max(wire, packing)
            self.busy = self.COST[level] / step
            self.now += step
            packed = level > 0 and self.ratio[level] > 1.05
            self.control.note(1 << 20, max(0.0, step - packing), packed=packed)
            levels.append(level)
        return levels


def share(levels: list[int], *wanted: int) -> float:
    return sum(level in wanted for level in levels) / len(levels)


def test_it_begins_with_none() -> None:
    assert World(link=10, cores=2).control.level == 0


def test_a_slow_link_with_idle_cores_is_packed_for() -> None:
    world = World(link=10, cores=2)
    world.run(10)
    assert share(world.run(60), 3, 6, 9) > 0.8


def test_a_level_that_gains_nothing_is_not_kept() -> None:
    world = World(link=10, cores=2, ratio={0: 1.0, 1: 3.0, 3: 3.0, 6: 3.0, 9: 3.0})
    world.run(30)
    assert share(world.run(60), 1) > 0.9


def test_data_that_cannot_be_packed_changes_no_level() -> None:
    world = World(link=10, cores=2)
    world.run(30)
    before = world.control.level
    world.ratio = dict.fromkeys(World.COST, 1.0)
    assert share(world.run(30), before) > 0.9


def test_without_idle_cores_it_stays_at_none() -> None:
    """The receiver shares the processors: the pipe blocks, and packing would slow it down."""
    world = World(link=400, cores=2)
    world.control._idle_cores = lambda: 0.1
    assert share(world.run(30), 0) == 1.0


def test_a_fast_pipe_ends_at_none() -> None:
    world = World(link=8_000, cores=2)
    world.control.level = 9
    world.run(5)
    assert share(world.run(10), 0) > 0.9


def test_it_never_falls_below_the_least() -> None:
    world = World(link=8_000, cores=2, least=1)
    world.control.level = 9
    assert world.run(10)[-1] == 1
    world.control._idle_cores = lambda: 0.1
    assert share(world.run(10), 1) == 1.0


def test_it_returns_when_the_link_becomes_fast() -> None:
    world = World(link=5, cores=2)
    world.run(30)
    assert world.control.level > 0
    world.link = 8_000
    world.run(4)
    assert share(world.run(8), 0) > 0.9


def test_it_climbs_when_the_link_becomes_slow() -> None:
    world = World(link=8_000, cores=2)
    world.run(5)
    world.link = 5
    world.run(20)
    assert share(world.run(30), 3, 6, 9) > 0.8


@pytest.mark.parametrize("level", [0, 1, 7, 19])
def test_a_level_that_was_chosen_stays(level: int) -> None:
    clock = [0.0]
    control = LevelControl(CompressionChoice(level), clock=lambda: clock[0], idle_cores=lambda: 4.0)
    for _ in range(1000):
        clock[0] += 0.1
        control.note(1 << 20, 0.1, packed=bool(level))
    assert control.level == level


def test_idle_cores_are_counted_from_question_to_question(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = [0.0], [0]
    monkeypatch.setattr(IdleCores, "_idle", lambda _self: ticks[0] / 100)
    idle = IdleCores(lambda: clock[0])
    assert idle() == 0.0
    clock[0], ticks[0] = 2.0, 300
    assert idle() == 1.5
    clock[0] = 3.0
    assert idle() == 0.0


def test_idle_cores_of_this_host_are_between_none_and_all() -> None:
    now = [0.0]
    idle = IdleCores(lambda: now[0])
    now[0] = 1e9
    assert 0.0 <= idle() <= (os.cpu_count() or 1)
