"""A VMDK, with the chain of its parents, as a source."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from blockstream.errors import NotFoundError, SourceError, VmdkError
from blockstream.extents import Column, ExtentMap
from blockstream.formats.steps import Ranges, Steps, read_with
from blockstream.formats.vmdk import cowd, hosted, sesparse
from blockstream.formats.vmdk.chain import (
    MOST_LINKS,
    NOWHERE,
    Asking,
    Chain,
    Link,
    Part,
    Places,
    check_parent,
    size_notes,
)
from blockstream.formats.vmdk.cowd import read_cowd
from blockstream.formats.vmdk.descriptor import (
    LIVE,
    MOST_BYTES,
    SECTOR,
    Descriptor,
    ExtentLine,
    ExtentType,
    is_descriptor,
    parse_descriptor,
)
from blockstream.formats.vmdk.grains import GrainMap
from blockstream.formats.vmdk.hosted import read_grain, read_hosted
from blockstream.formats.vmdk.sesparse import read_sesparse
from blockstream.interfaces import Source
from blockstream.linux.buffers import aligned_buffer
from blockstream.sources.disk import DiskSource
from blockstream_protocol import Kind

T = TypeVar("T")
_SPAN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which runs of a file are read in one go.

    Attributes:
        gap: Those that lie closer together than this, with what is between, in bytes.
        copied: Those that are shorter than this; longer ones are read to where they belong, in
            bytes.
    """

    gap: int
    copied: int


# A call costs less than a copy of many bytes.
_HERE: Final = _Reach(16 << 10, 32 << 10)
# A request costs a way there and back: at 140 MB/s (kubevirt/containerized-data-importer#3752),
# half a millisecond of it is a gap of this size.
_FAR: Final = _Reach(64 << 10, _SPAN)

_MAGICS: Final = {
    ExtentType.SPARSE: hosted.MAGIC,
    ExtentType.VMFSSPARSE: cowd.MAGIC,
    ExtentType.SESPARSE: sesparse.MAGIC,
}


class VmdkSource:
    """Reads a disk through its chain of VMDKs, newest first; leaves the page cache as it was."""

    def __init__(
        self,
        path: str,
        *,
        delta: bool = False,
        outside: bool = False,
        from_medium: bool = False,
        open_file: Callable[[str], Source] | None = None,
    ) -> None:
        """Open a VMDK and what it is made of.

        Args:
            path: Its descriptor, or a sparse file with one in it; with `delta`, also a bare one.
            delta: Leave its parents closed: what it does not hold itself cannot be read.
            outside: Follow names that lead out of the folder of the VMDK.
            from_medium: Read past the cache where the file system lets us.
            open_file: Opens the files, where they are not of this host.

        Raises:
            NotFoundError: If a file is missing.
            SourceError: If a file, or the chain, cannot be read or trusted.
        """
        self.name = f"vmdk:{path}"
        self.immutable = False
        self.is_still = True
        self.alignment = SECTOR
        self._scratch = threading.local()
        self._reach = _HERE if open_file is None else _FAR
        with contextlib.ExitStack() as stack:
            opener = _Opener(stack, outside=outside, from_medium=from_medium, open_file=open_file)
            opened = opener.chain(path, delta=delta)
            self._files = opener.files
            self._chain = Chain(opened.links, alone=delta and opened.is_delta)
            self._stack = stack.pop_all()
        self.is_delta = opened.is_delta
        self.state = opened.state
        self.base_state = opened.base_state
        self.size = self._chain.size
        self.identity = self._files[0].identity
        self.read_ahead = max(file.read_ahead for file in self._files)
        self.nodes = frozenset(node for file in self._files for node in file.nodes)
        self.warnings = [*opener.notes, *(f"{path}: {text}" for text in size_notes(opened.links))]
        for file in self._files:
            self.warnings += file.warnings

    def extents(self) -> ExtentMap:
        """Return DATA and ZERO extents, by grains; holes of flat files are ZERO."""
        found = self._run(self._chain.extents(flat=self._held))
        return found.filled(Kind.ZERO) if not self._chain.alone else found.filled(Kind.DATA)

    def changes(self) -> ExtentMap:
        """Return what the newest link itself holds, data and zeros.

        Raises:
            SourceError: If it cannot be told.
        """
        return self._run(self._chain.extents(0, self._held))

    def _held(self, part: Part) -> ExtentMap:
        return self._files[part.file].extents()

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        for offset, length in zip(offsets, lengths, strict=True):
            if offset + length > self.size:
                raise SourceError(
                    f"{self.name}: {length} bytes at offset {offset} cannot be read: it ends at "
                    f"{self.size}; END was not sent"
                )
        places = self._run(self._chain.places(offsets, lengths))
        whole = np.frombuffer(buffer, np.uint8)
        for into, length in _rows(places.parts == NOWHERE, places.into, places.lengths):
            whole[into : into + length] = 0
        for number in np.unique(places.parts[places.parts != NOWHERE]).tolist():
            part = self._chain.parts[number]
            mine = places.parts == number
            if part.map is not None and part.map.compressed:
                self._inflate(part, part.map, places, mine, whole)
            else:
                self._fetch(self._files[part.file], places, mine, buffer)

    def _fetch(
        self, file: Source, places: Places, mine: npt.NDArray[np.bool_], buffer: memoryview
    ) -> None:
        """Read what lies in a file as it is, in as few reads as its places allow."""
        positions, lengths, into = places.positions[mine], places.lengths[mine], places.into[mine]
        order = np.argsort(positions, kind="stable")
        positions, lengths, into = positions[order], lengths[order], into[order]
        for rows in _clusters(positions, lengths, self._reach):
            if rows.stop - rows.start == 1:
                start, length = int(into[rows.start]), int(lengths[rows.start])
                view = buffer[start : start + length]
                file.read_into([int(positions[rows.start])], [length], view)
                continue
            first = int(positions[rows.start])
            span = int((positions[rows] + lengths[rows]).max()) - first
            scratch = self._room(span)
            file.read_into([first], [span], scratch)
            begins = (positions[rows] - first).tolist()
            for begin, length, start in zip(
                begins, lengths[rows].tolist(), into[rows].tolist(), strict=True
            ):
                buffer[start : start + length] = scratch[begin : begin + length]

    def _room(self, size: int) -> memoryview:
        """Return memory of this thread's."""
        kept: memoryview | None = getattr(self._scratch, "room", None)
        if kept is None or len(kept) < size:
            kept = self._scratch.room = aligned_buffer(max(size, _SPAN))
        return kept[:size]

    def _inflate(
        self,
        part: Part,
        grains: GrainMap,
        places: Places,
        mine: npt.NDArray[np.bool_],
        whole: npt.NDArray[np.uint8],
    ) -> None:
        """Read what lies in a file deflated."""
        position, data = -1, b""
        for row in np.flatnonzero(mine).tolist():
            within = int(places.starts[row]) - part.start
            number = within // grains.grain
            if int(places.positions[row]) != position:
                position = int(places.positions[row])
                data = self._of(part.file, read_grain(grains, position, number))
            begin, into, length = (
                within - number * grains.grain,
                int(places.into[row]),
                int(places.lengths[row]),
            )
            whole[into : into + length] = np.frombuffer(data, np.uint8, length, begin)

    def validate(self) -> None:
        """Check that no file of the chain was written.

        Raises:
            SourceError: If one was.
        """
        for file in self._files:
            file.validate()

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def _of(self, number: int, steps: Steps[T]) -> T:
        file = self._files[number]
        with _naming(file.name, "END was not sent"):
            return read_with(steps, lambda ranges: _read(file, ranges))

    def _run(self, asking: Asking[T]) -> T:
        """Serve a chain that asks for ranges of its files."""
        name = self.name
        try:
            ask = next(asking)
            while True:
                file = self._files[ask.file]
                name = file.name
                ask = asking.send(_read(file, ask.ranges))
        except StopIteration as stop:
            result: T = stop.value
            return result
        except VmdkError as error:
            raise SourceError(f"{name}: {error}; END was not sent") from error


@dataclass(slots=True)
class _Opened:
    """What was opened.

    Attributes:
        links: Newest first.
        state: What the newest content is called; empty if nothing tells.
        base_state: The same of its parent's.
        is_delta: Whether the newest has a parent.
    """

    links: list[Link] = field(default_factory=list)
    state: str = ""
    base_state: str = ""
    is_delta: bool = False


class _Opener:
    """Opens files by the names in descriptors, within one folder if nobody said otherwise."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        *,
        outside: bool,
        from_medium: bool,
        open_file: Callable[[str], Source] | None = None,
    ) -> None:
        self.files: list[Source] = []
        self._open_file = open_file
        self.notes: list[str] = []
        self._stack = stack
        self._outside = outside
        self._from_medium = from_medium
        self._parts = 0

    def chain(self, path: str, *, delta: bool) -> _Opened:
        """Open a VMDK and its parents; with `delta`, it alone."""
        found = _Opened()
        child: Descriptor | None = None
        while True:
            link, descriptor = self._link(path, bare=delta)
            found.links.append(link)
            if child is None:
                found.is_delta = descriptor is None or descriptor.has_parent
                found.state = descriptor.state if descriptor is not None else ""
                found.base_state = self._parent_state(path, descriptor)
            else:
                self._check(path, child, descriptor)
            if delta or descriptor is None or not descriptor.has_parent:
                return found
            if len(found.links) == MOST_LINKS:
                raise SourceError(f"{path} has more than {MOST_LINKS} parents; nothing was sent")
            path, child = self._inside(path, descriptor.parent, "parent"), descriptor

    def _check(self, path: str, child: Descriptor, parent: Descriptor | None) -> None:
        if parent is None:
            raise SourceError(f"{path} is a parent without a descriptor; nothing was sent")
        with _naming(path):
            note = check_parent(child, parent)
        if note:
            self.notes.append(f"{path} {note}")

    def _parent_state(self, path: str, descriptor: Descriptor | None) -> str:
        """Return what a delta's parent is called, where it or its parent tells that."""
        if descriptor is None or not descriptor.has_parent or descriptor.parent_cid != LIVE:
            return descriptor.parent_state if descriptor is not None else ""
        try:
            with contextlib.ExitStack() as stack:
                opener = _Opener(
                    stack,
                    outside=self._outside,
                    from_medium=False,
                    open_file=self._open_file,
                )
                _, parent = opener._link(self._inside(path, descriptor.parent, "parent"), bare=True)
        except (SourceError, NotFoundError):
            return ""
        return parent.state if parent is not None and parent.cid == LIVE else ""

    def _link(self, path: str, *, bare: bool) -> tuple[Link, Descriptor | None]:
        """Open one disk; without a descriptor only if a `bare` one will do."""
        number = self._open(path)
        file = self.files[number]
        head = _read(file, [(0, min(file.size, SECTOR))])
        with _naming(path):
            if head.startswith(hosted.MAGIC):
                found = read_with(read_hosted(file.size), lambda ranges: _read(file, ranges))
                self.notes += [f"{path}: {text}" for text in found.warnings]
                descriptor = parse_descriptor(found.descriptor) if found.descriptor else None
                if found.map is None and descriptor is not None:
                    return self._described(path, number, descriptor), descriptor
                if descriptor is not None and len(descriptor.extents) > 1:
                    raise VmdkError("it is one of several files, and describes the others")
                if found.map is not None and (descriptor is not None or bare):
                    return Link((self._part(number, 0, found.map.size, found.map),)), descriptor
            elif is_descriptor(head):
                if file.size > MOST_BYTES:
                    raise VmdkError(f"its descriptor is longer than {MOST_BYTES} bytes")
                descriptor = parse_descriptor(_read(file, [(0, file.size)]))
                return self._described(path, number, descriptor), descriptor
            elif bare and (kind := _bare_kind(head)) is not None:
                grains = self._map(number, kind)
                return Link((self._part(number, 0, grains.size, grains),)), None
            elif _bare_kind(head) is None:
                raise VmdkError(
                    "it is no VMDK that we know; a flat one is a disk as it is: leave vmdk: out, "
                    "or name its descriptor"
                )
            raise VmdkError(
                "it has no descriptor in it, so its parents are not known; name its descriptor, "
                "or take it alone with --delta"
            )

    def _described(self, path: str, number: int, descriptor: Descriptor) -> Link:
        """Open the files that a descriptor, which is file `number`, names."""
        opened: dict[str, int] = {}
        parts: list[Part] = []
        start = 0
        for line in descriptor.extents:
            if line.type is ExtentType.ZERO:
                parts.append(self._part(NOWHERE, start, line.size))
            else:
                place = self._inside(path, line.file, "extent")
                if place not in opened:
                    opened[place] = self._open(place)
                parts.append(self._extent(opened[place], start, line))
            start += line.size
        return Link(tuple(parts))

    def _extent(self, number: int, start: int, line: ExtentLine) -> Part:
        file = self.files[number]
        with _naming(file.name):
            if line.type in _MAGICS:
                grains = self._map(number, line.type)
                if grains.size < line.size:
                    raise VmdkError(
                        f"it holds {grains.size} bytes, where its descriptor says {line.size}"
                    )
                return self._part(number, start, line.size, grains)
            if line.offset + line.size > file.size:
                raise VmdkError(
                    f"it has {file.size} bytes, where its descriptor wants {line.size} from "
                    f"offset {line.offset}"
                )
        return self._part(number, start, line.size, position=line.offset)

    def _part(
        self,
        number: int,
        start: int,
        size: int,
        grains: GrainMap | None = None,
        position: int = 0,
    ) -> Part:
        self._parts += 1
        return Part(self._parts - 1, number, start, size, position, grains)

    def _map(self, number: int, kind: ExtentType) -> GrainMap:
        """Read the header of a sparse file, which must be of a kind."""
        file = self.files[number]
        head = _read(file, [(0, min(file.size, SECTOR))])
        if not head.startswith(_MAGICS[kind]):
            raise VmdkError(f"it begins with {head[:8]!r}, and is no {kind.value} file")

        def read(ranges: Ranges) -> bytes:
            return _read(file, ranges)

        if kind is ExtentType.VMFSSPARSE:
            found, notes = read_with(read_cowd(file.size), read)
        elif kind is ExtentType.SESPARSE:
            found, notes = read_with(read_sesparse(file.size), read), ()
        else:
            sparse = read_with(read_hosted(file.size), read)
            if sparse.map is None:
                raise VmdkError("its capacity is 0")
            found, notes = sparse.map, sparse.warnings
        self.notes += [f"{file.name}: {text}" for text in notes]
        return found

    def _open(self, path: str) -> int:
        """Open a file of the chain; each is opened once.

        Raises:
            SourceError: If it is open already: the chain is a loop.
        """
        file = (
            DiskSource(path, from_medium=self._from_medium)
            if self._open_file is None
            else self._open_file(path)
        )
        self._stack.callback(file.close)
        if any(file.nodes & other.nodes or _are_same(file, other) for other in self.files):
            raise SourceError(f"{path} is named twice by the chain; nothing was sent")
        self.files.append(file)
        return len(self.files) - 1

    def _inside(self, path: str, name: str, what: str) -> str:
        """Return the path of a file that the VMDK at `path` names.

        Raises:
            SourceError: If it leads out of the folder, and nobody allowed that.
            NotFoundError: If a parent is not there.
        """
        folder = Path(path).parent
        if what == "parent" and not self._outside:
            # ESXi writes absolute names there; a chain that was copied lies together.
            name = PureWindowsPath(name).name
        place = folder / name
        # Of another host's names, too, it tells which lead out by themselves.
        if not self._outside and not _lies_in(place, folder):
            raise SourceError(
                f"{path} names an {what} outside its folder, {name!a}; nothing was sent; "
                "--allow-outside follows it"
            )
        if what == "parent" and self._open_file is None and not place.exists():
            raise NotFoundError(
                f"{place}, the parent of {path}, does not exist; nothing was sent; copy it there, "
                "send the --delta alone, or follow the whole name with --allow-outside"
            )
        return str(place)


def _are_same(file: Source, other: Source) -> bool:
    """Tell whether two files of another host are one."""
    return not file.nodes and file.identity == other.identity


def _lies_in(place: Path, folder: Path) -> bool:
    """Tell whether a path stays in a folder, links resolved."""
    real = os.path.realpath(place)
    return os.path.commonpath([real, os.path.realpath(folder)]) == os.path.realpath(folder)


def _bare_kind(head: bytes) -> ExtentType | None:
    """Return what a sparse file is that begins so."""
    return next((kind for kind, magic in _MAGICS.items() if head.startswith(magic)), None)


def _read(file: Source, ranges: Ranges) -> bytes:
    """Return the bytes of ranges."""
    size = sum(length for _, length in ranges)
    buffer = aligned_buffer(size)
    file.read_into([start for start, _ in ranges], [length for _, length in ranges], buffer)
    return bytes(buffer)


def _rows(
    chosen: npt.NDArray[np.bool_], starts: Column, lengths: Column
) -> Iterable[tuple[int, int]]:
    return zip(starts[chosen].tolist(), lengths[chosen].tolist(), strict=True)


def _clusters(positions: Column, lengths: Column, reach: _Reach) -> Iterator[slice]:
    """Give runs of rows, sorted by position, that one read takes."""
    if not len(positions):
        return
    ends = positions + lengths
    near = positions[1:] - ends[:-1] < reach.gap
    small = lengths < reach.copied
    near &= small[1:] & small[:-1]
    first = 0
    for last in [*(np.flatnonzero(~near) + 1).tolist(), len(positions)]:
        while first < last:
            within = int(np.searchsorted(ends[first:last], int(positions[first]) + _SPAN, "right"))
            yield slice(first, first + max(within, 1))
            first += max(within, 1)


@contextlib.contextmanager
def _naming(path: str, undone: str = "nothing was sent") -> Iterator[None]:
    """Name the file that a parser complains of, and what was not done."""
    try:
        yield
    except VmdkError as error:
        raise SourceError(f"{path}: {error}; {undone}") from error
