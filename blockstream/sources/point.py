"""A restore point as a source: what was saved is read back, frame by frame, each checked."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockstream.errors import SourceError, StoreDamagedError
from blockstream.extents import ExtentMap
from blockstream.formats.point_index import Numbers, PointIndex
from blockstream.formats.point_map import merged
from blockstream.linux.identity import Identity, Node
from blockstream_protocol import HEAD_BYTES, Decompress, Kind

_IN_FLIGHT: Final = 16  # most requests of increments are small, and wait for the server
_RUN_BYTES: Final = 4 << 20  # of one request, about
_GAP_BYTES: Final = 256 << 10  # of what nobody wants, rather than another request
_AHEAD_BYTES: Final = 32 << 20
_RUNS_AHEAD: Final = 64
_MOST_HELD: Final = 2 * _AHEAD_BYTES
_CACHE_BYTES: Final = 96 << 20
# Frames that stay after all of them was read, because another thread may be a little behind.
_SPENT: Final = 8
# Frames whose turn comes later than this many others are not fetched with this one.
_NEAR: Final = 32
# Who wants the next frame but that many, with several threads, reads in order.
_IN_ORDER: Final = 8

Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """A point of the chain: its index, and how its packs are read.

    Attributes:
        index: Its index.
        read: Returns a range of one of its packs: number, offset, length.
        name: What people call it.
    """

    index: PointIndex
    read: Callable[[int, int, int], bytes]
    name: str


@dataclass(slots=True)
class _Run:
    """Frames that one request fetches.

    Attributes:
        layer: Number of the layer.
        pack: Number of the pack.
        offset: Where it begins in it.
        length: How many bytes.
        left: How many of its frames nobody has taken yet.
        data: What comes; None before it is asked for, and after all was taken.
    """

    layer: int
    pack: int
    offset: int
    length: int
    left: int
    data: "Future[bytes] | None" = None


class PointSource:
    """A point of a store. See `interfaces.Source` for what each method promises."""

    alignment = 1
    immutable = True
    is_still = True
    read_ahead = 0
    nodes: frozenset[Node] = frozenset()

    def __init__(
        self,
        name: str,
        identity: Identity,
        layers: Sequence[Layer],
        new_decompress: Callable[[], Decompress],
    ) -> None:
        """Lay the layers over each other, the full copy first; nothing else is read yet.

        Args:
            name: What people call it.
            identity: What it is known by.
            layers: The points that it is made of.
            new_decompress: Makes what unpacks one payload at a time.

        Raises:
            StoreDamagedError: If they do not make a whole disk.
        """
        self.name = name
        self.identity = identity
        self.warnings: list[str] = []
        self._layers = layers
        self._map = merged([layer.index for layer in layers])
        self.size = self._map.size
        self._ends = self._map.offset + self._map.length
        self._fetching = _Fetching(layers, *self._uses(), new_decompress)

    def extents(self) -> ExtentMap:
        """Return DATA and ZERO extents that cover the disk."""
        return self._map.extents()

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer` with the given ranges, one after the other."""
        at = 0
        for offset, length in zip(offsets, lengths, strict=True):
            if offset < 0 or offset + length > self.size:
                raise SourceError(f"{self.name} has no {length} bytes at offset {offset}")
            self._read(offset, buffer[at : at + length])
            at += length

    def validate(self) -> None:
        """Nothing to do: each frame was checked as it came."""

    def close(self) -> None:
        """Give everything back."""
        self._fetching.close()

    def _read(self, offset: int, buffer: memoryview) -> None:
        found, done = self._map, 0
        row = int(np.searchsorted(self._ends, offset, side="right"))
        while done < len(buffer):
            inside = offset + done - int(found.offset[row])
            count = min(len(buffer) - done, int(found.length[row]) - inside)
            piece = buffer[done : done + count]
            if int(found.kind[row]) == Kind.ZERO:
                piece[:] = bytes(count)
            else:
                key = (int(found.layer[row]), int(found.frame[row]))
                start = int(found.start[row]) + inside
                piece[:] = self._fetching.payload(key)[start : start + count]
                if inside + count == int(found.length[row]):
                    self._fetching.used(key)
            done, row = done + count, row + 1

    def _uses(self) -> tuple[tuple[Numbers, Numbers], Numbers]:
        """Return how the frames will be used.

        Returns:
            Layer and frame of all that hold data, in the order in which they are wanted first; and
            of each frame of each layer, how many extents it has.
        """
        data = np.equal(self._map.kind, Kind.DATA)
        layer, frame = self._map.layer[data], self._map.frame[data]
        # Two numbers as one: `unique` of pairs takes ten times as long.
        _, first = np.unique(layer << 40 | frame, return_index=True)
        first.sort()
        order = layer[first], frame[first]
        counts = np.array([len(each.index.frames) for each in self._layers], np.int64)
        frame += (np.cumsum(counts) - counts)[layer]
        return order, np.bincount(frame, minlength=int(counts.sum())).astype(np.int32)


class _Fetching:
    """Frames, fetched ahead in few requests and kept until they were used."""

    def __init__(
        self,
        layers: Sequence[Layer],
        order: tuple[Numbers, Numbers],
        extents: Numbers,
        new_decompress: Callable[[], Decompress],
    ) -> None:
        """Plan; nothing is fetched.

        Args:
            layers: What frames are fetched from.
            order: Layer and frame of each, in the order in which they are wanted first.
            extents: How many extents each frame of each layer has.
            new_decompress: Makes what unpacks one payload at a time.
        """
        self._layers = layers
        self._new_decompress = new_decompress
        counts = [len(layer.index.frames) for layer in layers]
        self._base = (np.cumsum(counts) - counts).tolist()
        self._runs = _Runs.joined(layers, order)
        self._met: dict[int, _Run] = {}
        self._finished = bytearray(len(self._runs))
        # For each frame of each layer: which run fetches it, and when its turn is.
        places = np.array(self._base, np.int64)[order[0]] + order[1]
        self._run_of, self._turn_of = (np.zeros(sum(counts), np.int64) for _ in range(2))
        self._run_of[places] = self._runs.of
        self._turn_of[places] = np.arange(len(places))
        self._extents = extents
        self._unread = extents.copy()  # of each frame, the extents that were not read yet
        self._spent: deque[Key] = deque()
        self._asked: deque[_Run] = deque()
        self._held = 0
        self._lock = threading.Lock()
        self._cache: OrderedDict[Key, Future[memoryview]] = OrderedDict()
        self._cached = 0
        self._turn = 0  # of the frame that was wanted last
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="fetch")

    def payload(self, key: Key) -> memoryview:
        """Return the unpacked payload of a frame.

        Raises:
            StoreDamagedError: If it is not what was stored.
        """
        with self._lock:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
            else:
                mine: Future[memoryview] = Future()
                self._cache[key] = mine
        if known is not None:
            return known.result()
        try:
            found = self._decoded(key)
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(found)
        with self._lock:
            self._cached += len(found)
            self._make_room()
        return found

    def used(self, key: Key) -> None:
        """Note that an extent of a frame was read to its end: after the last, the frame may go."""
        place = self._base[key[0]] + key[1]
        with self._lock:
            self._unread[place] -= 1
            if self._unread[place]:
                return
            self._unread[place] = self._extents[place]  # whoever begins again
            self._spent.append(key)
            if len(self._spent) > _SPENT:
                self._forget(self._spent.popleft())

    def close(self) -> None:
        """Ask for nothing more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _make_room(self) -> None:
        for key in list(self._cache):
            if self._cached <= _CACHE_BYTES:
                return
            self._forget(key)

    def _forget(self, key: Key) -> None:
        known = self._cache.get(key)
        if known is not None and known.done() and known.exception() is None:
            self._cached -= len(self._cache.pop(key).result())

    def _decoded(self, key: Key) -> memoryview:
        layer, number = self._layers[key[0]], key[1]
        data = self._wire(key)
        try:
            return memoryview(layer.index.payload(number, data, self._new_decompress()))
        except StoreDamagedError as error:
            frames = layer.index.frames
            pack, offset = int(frames.pack[number]), int(frames.offset[number])
            raise StoreDamagedError(
                f"{layer.name}: the frame at offset {offset} of pack {pack}: {error}"
            ) from error

    def _wire(self, key: Key) -> bytes:
        """Return the bytes of a frame in its pack.

        A copy: what is kept of a frame must not keep the whole run that it came with.
        """
        layer, frames = self._layers[key[0]], self._layers[key[0]].index.frames
        offset = int(frames.offset[key[1]])
        end = offset + HEAD_BYTES + int(frames.wire[key[1]])
        place = self._base[key[0]] + key[1]
        number, turn = int(self._run_of[place]), int(self._turn_of[place])
        with self._lock:
            run = self._run(number)
            # Whoever reads here and there wants a frame, and not what lies around it.
            in_order = abs(turn - self._turn) <= _IN_ORDER
            self._turn = turn
            if in_order and not self._finished[number]:
                self._ask_ahead(number)
            asked = run.data
        if asked is None:
            return layer.read(int(frames.pack[key[1]]), offset, end - offset)
        data = asked.result()[offset - run.offset : end - run.offset]
        with self._lock:
            run.left -= 1
            if not run.left:
                self._finished[number] = 1
                self._drop(run)
                self._met.pop(number, None)
        return data

    def _ask_ahead(self, number: int) -> None:
        """Let what is wanted next be fetched."""
        ahead = 0
        for each in range(number, min(number + _RUNS_AHEAD, len(self._runs))):
            if ahead > _AHEAD_BYTES:
                break
            if self._finished[each]:
                continue
            run = self._run(each)
            if run.data is None:
                read = self._layers[run.layer].read
                run.data = self._pool.submit(read, run.pack, run.offset, run.length)
                self._asked.append(run)
                self._held += run.length
            ahead += run.length
        # What nobody came for, because it was skipped, would stay for ever.
        while self._asked and (self._held > _MOST_HELD or self._asked[0].data is None):
            self._drop(self._asked.popleft())

    def _run(self, number: int) -> _Run:
        if number not in self._met:
            self._met[number] = self._runs[number]
        return self._met[number]

    def _drop(self, run: _Run) -> None:
        if run.data is not None:
            run.data = None
            self._held -= run.length


@dataclass(frozen=True, slots=True)
class _Runs:
    """Frames that lie beside each other and are wanted at about the same time, one entry a run.

    Attributes:
        layer: Number of the layer.
        pack: Number of the pack.
        offset: Where it begins in it.
        length: How many bytes.
        frames: How many of them are wanted.
        of: For each frame, in the order in which it is wanted, the number of its run.
    """

    layer: Numbers
    pack: Numbers
    offset: Numbers
    length: Numbers
    frames: Numbers
    of: Numbers

    def __len__(self) -> int:
        return len(self.layer)

    def __getitem__(self, number: int) -> _Run:
        return _Run(
            layer=int(self.layer[number]),
            pack=int(self.pack[number]),
            offset=int(self.offset[number]),
            length=int(self.length[number]),
            left=int(self.frames[number]),
        )

    @classmethod
    def joined(cls, layers: Sequence[Layer], order: tuple[Numbers, Numbers]) -> "_Runs":
        """Join frames, given by layer and number in the order in which they are wanted."""
        counts = np.array([len(layer.index.frames) for layer in layers], np.int64)
        places = (np.cumsum(counts) - counts)[order[0]] + order[1]
        # Layer by layer, and within a layer in the order in which they are wanted.
        turn = np.argsort(order[0], kind="stable")
        layer = order[0][turn]
        pack, offset, wire = (
            np.concatenate([getattr(each.index.frames, name) for each in layers])[places[turn]]
            for name in ("pack", "offset", "wire")
        )
        end = offset + HEAD_BYTES + wire
        begins = np.ones(len(turn), np.bool_)
        gap = offset[1:] - end[:-1]
        begins[1:] = (
            np.not_equal(layer[1:], layer[:-1])
            | np.not_equal(pack[1:], pack[:-1])
            | np.less(gap, 0)
            | np.greater(gap, _GAP_BYTES)
            | np.not_equal(turn[1:] // _NEAR, turn[:-1] // _NEAR)
            | np.not_equal(end[1:] // _RUN_BYTES, end[:-1] // _RUN_BYTES)
        )
        first = np.flatnonzero(begins)
        last = np.append(first, len(turn))[1:] - 1
        by_turn = np.argsort(turn[first])
        rank = np.empty(len(first), np.int64)
        rank[by_turn] = np.arange(len(first))
        of = np.empty(len(turn), np.int64)
        of[turn] = rank[np.cumsum(begins) - 1]
        first, last = first[by_turn], last[by_turn]
        length = end[last] - offset[first]
        return cls(layer[first], pack[first], offset[first], length, last - first + 1, of)
