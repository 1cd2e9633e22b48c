"""A file or block device as a target: nobody else uses it, and one descriptor writes it."""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

from blockstream.errors import BusyError, RefusedError, TargetError
from blockstream.linux.aio import FEWEST, batch
from blockstream.linux.block import (
    UNSUPPORTED,
    QueueLimits,
    data_ranges,
    discard,
    is_read_only,
    logical_block_of,
    punch_hole,
    queue_limits_of,
    size_of,
    zero_out,
)
from blockstream.linux.buffers import PAGE, aligned_buffer, read_all, write_all
from blockstream.linux.device_mapper import thin_at
from blockstream.linux.files import remove_made, sync_directory
from blockstream.linux.identity import (
    Identity,
    Node,
    identity_of,
    lock_holder_of,
    node_of,
    share_bytes,
    users_of,
)
from blockstream.linux.image_locks import is_open_in_qemu, keep_qemu_out
from blockstream.linux.traces import trace_of
from blockstream.targets.fresh_chunks import FreshChunks

# One request to the kernel, so that a signal and a progress line do not wait for minutes.
_ZERO_STEP = 1 << 30
_ZEROS = memoryview(bytes(1 << 20))
# Shorter runs of zeros travel as data, two of them side by side; some file systems make them holes.
_LEAST_HOLE = 32 << 10


class DiskTarget:
    """Writes a file or block device. See `interfaces.Target` for what each method promises."""

    def __init__(
        self,
        path: str,
        *,
        create: int | None = None,
        force_in_use: bool = False,
        sources: frozenset[Node] = frozenset(),
    ) -> None:
        """Open `path` for writing; nothing is written.

        Args:
            path: A block device, or a regular file.
            create: Make the file, sparse, with that many bytes; refused if it exists.
            force_in_use: Open it although somebody else has it open or mounted.
            sources: What the source's bytes lie on, where that is on this host.

        Raises:
            RefusedError: If it is not there, of the wrong kind, in use, or the source itself.
        """
        self.name = path
        self._fd = _created(path, create) if create is not None else _opened(path, force_in_use)
        self._made = os.fstat(self._fd) if create is not None else None
        self._medium = -1
        # First bytes and ends of what was written to a file, two for each range.
        self._data = array("q")
        # Whether something may be in the cache; set after a write, so that a flush beside it counts
        # only for what it has seen.
        self._unflushed = False
        self._fresh: FreshChunks | None = None
        try:
            self._lock(force_in_use)
            info = os.fstat(self._fd)
            self._is_device = stat.S_ISBLK(info.st_mode)
            self._check_writable()
            self.begin()
            self.size = size_of(self._fd)
            self._links = info.st_nlink
            self.identity: Identity = identity_of(self._fd)
            self._check_use(sources, force_in_use)
            self._learn(info.st_rdev)
            self._medium = self._open_medium()
        except BaseException:
            os.close(self._fd)
            if self._fresh is not None:
                self._fresh.close()
            self.remove_made()
            raise

    # Opening.

    def _learn(self, device: int) -> None:
        """Find out how it wants to be written."""
        # A file has one writer at a time anyway, and the kernel spins while others wait.
        self._one_writer: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if self._is_device else threading.Lock()
        )
        self._block = logical_block_of(self._fd) if self._is_device else 1
        self._limits = queue_limits_of(self._fd) if self._is_device else QueueLimits()
        # Only a thin volume promises that what it unmapped reads as zeros; a disk that has nothing
        # but discard may forget it with the next power cut.
        thin = thin_at(device) if self._is_device else None
        self._is_thin = thin is not None
        if thin is not None and thin.shows_old:
            self._fresh = FreshChunks(self._fd, self.size, thin.chunk)
        self._keeps_thin = (
            self._is_thin and self._limits.discard_max > 0 and not self._limits.write_zeroes_max
        )

    def remove_made(self) -> None:
        """Remove the file again, if it was made for this target."""
        if self._made is not None:
            remove_made(self.name, self._made)

    def _lock(self, force: bool) -> None:
        """Keep other receivers and QEMU out, and udev from probing a half-written disk."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK or force:
                return
            holder = lock_holder_of(self._fd) or "another process"
            raise BusyError(
                f"{self.name} is locked by {holder}; nothing was written; wait for it to end"
            ) from None
        if not force and is_open_in_qemu(self._fd):
            raise BusyError(
                f"{self.name} is open in QEMU: a guest of it or of libvirt's, qemu-nbd or "
                "qemu-img; nothing was written; end that, or give --force-in-use"
            )
        keep_qemu_out(self._fd)

    def _check_writable(self) -> None:
        if self._is_device and is_read_only(self._fd):
            raise RefusedError(
                f"{self.name} is read-only; nothing was written; `blockdev --setrw {self.name}` "
                "lets it be written, if that is right"
            )

    def begin(self) -> None:
        """Begin a transfer: check that the name stands for what was opened.

        Whoever may change it could have exchanged it between two looks, for a link to any file.
        """
        del self._data[:]
        if self._fresh is not None:
            self._fresh.begin()
        other = self._other_name()
        if other:
            raise RefusedError(
                f"{self.name} {other} than when it was opened; nothing was written; find out who "
                "changes it"
            )

    def _other_name(self) -> str:
        """Say what the name stands for, if that is not what was opened."""
        ours = os.fstat(self._fd)
        try:
            # A name of a file may not have become a link, not even one to itself.
            named = Path(self.name).stat(follow_symlinks=self._is_device)
        except OSError as error:
            return f"is no name of it any more ({error.strerror}), or of another disk"
        if stat.S_IFMT(named.st_mode) != stat.S_IFMT(ours.st_mode):
            return "stands for something else"
        same = named.st_rdev == ours.st_rdev if self._is_device else os.path.samestat(named, ours)
        return "" if same else "stands for another disk"

    def refuse_source(self, sources: frozenset[Node]) -> None:
        """Refuse to be written with what lies on itself; nothing forces that.

        Raises:
            RefusedError: If a source is this target, or one lies on the other.
        """
        node = node_of(self._fd)
        if any(share_bytes(node, source) for source in sources):
            raise RefusedError(
                f"{self.name} is the source itself, or they lie on each other; nothing was written"
            )

    def _check_use(self, sources: frozenset[Node], force: bool) -> None:
        self.refuse_source(sources)
        node = node_of(self._fd)
        # O_EXCL does not see everything: not a loop device on top of this one, nothing of a file.
        users = [] if force else users_of(node)
        if users:
            raise BusyError(
                f"{self.name} is in use: {'; '.join(users)}; nothing was written; stop its user, "
                "or give --force-in-use"
            )

    def _open_medium(self) -> int:
        """Open the same disk once more, past the page cache; -1 where that is not possible."""
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        return -1

    # Writing.

    def write_from(
        self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> None:
        """Write `buffer` to the given ranges, one after the other."""
        if offsets:
            self._check_end(offsets[-1], lengths[-1])
        with self._one_writer:
            if not self._is_device:
                self._note(offsets, lengths)
            try:
                self._provide(offsets, lengths)
                done = self._write_batch(offsets, lengths, buffer)
                position = 0
                for offset, length, count in zip(offsets, lengths, done, strict=True):
                    if count != length:
                        rest = buffer[position + count : position + length]
                        self._write(rest, offset + count)
                    position += length
            finally:
                self._unflushed = True

    def _write_batch(
        self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview
    ) -> Sequence[int]:
        """Write what can be written at once; return how much of each range was.

        Raises:
            TargetError: If a write failed; it is not tried again.
        """
        if len(offsets) < FEWEST:
            return [0] * len(offsets)
        with batch() as queue:
            if queue is None:
                return [0] * len(offsets)
            done = queue.write(self._fd, offsets, lengths, buffer)
        for offset, length, count in zip(offsets, lengths, done, strict=True):
            if count < 0:
                error = OSError(-count, os.strerror(-count))
                raise self._failure("written", offset, length, error) from error
        return done

    def _write(self, data: memoryview, offset: int) -> None:
        try:
            write_all(self._fd, data, offset)
        except OSError as error:
            raise self._failure("written", offset, len(data), error) from error

    def _provide(self, offsets: Sequence[int], lengths: Sequence[int]) -> None:
        """Let no write bring up what lay in a thin pool before."""
        if self._fresh is None:
            return
        for offset, length in zip(offsets, lengths, strict=True):
            try:
                self._fresh.provide(offset, length)
            except OSError as error:
                raise self._failure("written", offset, length, error) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, unmapping where that is certain to give zeros."""
        self._check_end(offset, length)
        for start in range(offset, offset + length, _ZERO_STEP):
            step = min(_ZERO_STEP, offset + length - start)
            try:
                self._zero_step(start, step)
            except OSError as error:
                raise self._failure("zeroed", start, step, error) from error
            finally:
                self._unflushed = True

    def _check_end(self, offset: int, length: int) -> None:
        """A file would grow, and zeroing would be clipped without a word."""
        if offset + length > self.size:
            raise TargetError(
                f"{self.name} has {self.size} bytes: {length} bytes at offset {offset} lie past "
                "its end and were not written; it is marked DIRTY; please report this"
            )

    def _zero_step(self, offset: int, length: int) -> None:
        """Zero whole blocks by a request, and what is left at both ends by writing."""
        block = max(self._limits.discard_granularity if self._keeps_thin else 1, self._block)
        first = -(-offset // block) * block
        last = (offset + length) // block * block
        if first >= last:
            self._write_zeros(offset, length)
            return
        self._write_zeros(offset, first - offset)
        self._write_zeros(last, offset + length - last)
        if self._keeps_thin:
            self._discard_and_check(first, last)
        else:
            self._zero_blocks(first, last)

    def _zero_blocks(self, first: int, last: int) -> None:
        methods = (punch_hole, zero_out) if self._is_device else (punch_hole,)
        for method in methods:
            try:
                method(self._fd, first, last - first)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
            else:
                return
        self._write_zeros(first, last - first)

    def _discard_and_check(self, first: int, last: int) -> None:
        """Discard whole chunks, and count as zero only what reads as zero then."""
        try:
            discard(self._fd, first, last - first)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        for start in range(first, last, len(_ZEROS)):
            step = min(len(_ZEROS), last - start)
            if self._read_medium(start, step).strip(b"\0"):
                self._write_zeros(start, step)

    def _write_zeros(self, offset: int, length: int) -> None:
        if self._fresh is not None:
            self._fresh.provide(offset, length)
        for start in range(offset, offset + length, len(_ZEROS)):
            write_all(self._fd, _ZEROS[: min(len(_ZEROS), offset + length - start)], start)

    def flush(self) -> None:
        """Make every earlier write durable, and take our pages out of the cache."""
        self._unflushed = False
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._unflushed = True
            raise TargetError(
                f"{self.name} could not be flushed: {self._reason(error)}; it is marked DIRTY, and "
                "what was written since the last checkpoint is lost; run the same command again"
            ) from error
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def check_whole(self) -> None:
        """Compare it with its name, and with itself."""
        other = self._other_name()
        size, info = size_of(self._fd), os.fstat(self._fd)
        if other:
            what = f"the name {other} than when the transfer began"
        elif size != self.size:
            what = f"it has {size} bytes now, and had {self.size}"
        elif not self._is_device and info.st_nlink != self._links:
            what = f"the file has {info.st_nlink} names now, and had {self._links}"
        else:
            hole = self._first_hole()
            if hole < 0:
                return
            what = f"there is a hole at offset {hole}, where data was written"
        raise TargetError(
            f"{self.name} is not what was written: {what}; somebody changed it meanwhile; it is "
            "marked DIRTY; find out who, and run the same command again"
        )

    def _first_hole(self) -> int:
        """Return where a hole begins in what was written to a file; -1 for none."""
        if self._is_device or not self._data:
            return -1
        present = [*data_ranges(self._fd, self.size), (self.size, self.size)]
        holes = [(a, b) for (_, a), (b, _) in itertools.pairwise([(0, 0), *present]) if a < b]
        if not holes:
            return -1
        import numpy as np  # 60 ms, which most files and all devices do without

        starts, ends = np.frombuffer(self._data, np.int64).reshape(-1, 2).T
        order = np.argsort(starts)
        starts, ends = starts[order], ends[order]
        firsts, lasts = np.array(holes, np.int64).T
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            low, high = (
                int(np.searchsorted(ends, first, side="right")),
                int(np.searchsorted(starts, last, side="left")),
            )
            begins = np.maximum(starts[low:high], first)
            covered = np.minimum(ends[low:high], last) - begins
            if len(covered) and int(covered.max()) >= _LEAST_HOLE:
                return int(begins[int(np.argmax(covered >= _LEAST_HOLE))])
        return -1

    def _note(self, offsets: Sequence[int], lengths: Sequence[int]) -> None:
        """Remember where data was written to a file."""
        for offset, length in zip(offsets, lengths, strict=True):
            if self._data and self._data[-1] == offset:
                self._data[-1] = offset + length
            else:
                self._data.extend((offset, offset + length))

    def trace(self) -> str:
        """Return what the kernel knows of writes to it."""
        try:
            return trace_of(self._fd)
        except OSError as error:
            raise TargetError(f"{self.name} could not be flushed: {self._reason(error)}") from error

    # Reading back.

    def read_medium(self, offset: int, length: int) -> bytes:
        """Return what the medium holds."""
        try:
            return self._read_medium(offset, length)
        except (OSError, EOFError) as error:
            raise TargetError(
                f"{self.name}: {length} bytes at offset {offset} cannot be read back: {error}"
            ) from error

    def _read_medium(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise EOFError(f"it ends at {self.size}")
        step = max(self._block, PAGE)
        first = offset // step * step
        needed = offset + length - first
        buffer = aligned_buffer(-(-needed // step) * step)
        if not self._read_direct(buffer, first, needed):
            os.posix_fadvise(self._fd, first, len(buffer), os.POSIX_FADV_DONTNEED)
            read_all(self._fd, buffer[:needed], first)
        return bytes(buffer[offset - first : needed])

    def _read_direct(self, buffer: memoryview, first: int, needed: int) -> bool:
        """Read at least `needed` bytes past the page cache; False where it cannot be passed.

        Whole blocks are asked for: at the end of a file of odd size fewer come.
        """
        if self._medium < 0:
            return False
        done = 0
        while done < needed:
            try:
                count = os.preadv(self._medium, [buffer[done:]], first + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                return False
            if not count:
                raise EOFError(f"nothing can be read at offset {first + done}")
            done += count
        return True

    def close(self) -> None:
        """Close the descriptors; the lock ends with them.

        What a failed transfer left in the cache is written now, as the kernel would at the last
        close. Nobody relies on it, but if its error were left unseen, the kernel would give it to
        the next run's flush, on a device that is well again.
        """
        if self._unflushed:
            with contextlib.suppress(OSError):
                os.fdatasync(self._fd)
        if self._medium >= 0:
            os.close(self._medium)
        os.close(self._fd)
        if self._fresh is not None:
            self._fresh.close()

    def _reason(self, error: OSError) -> str:
        # The page cache of a device knows only one error, a full pool included (fs/buffer.c).
        full = errno.ENOSPC, *([errno.EIO] if self._is_thin else [])
        hint = " (is a thin pool or file system full?)" if error.errno in full else ""
        return f"{error.strerror}{hint}"

    def _failure(self, what: str, offset: int, length: int, error: OSError) -> TargetError:
        room = "make room and " if error.errno == errno.ENOSPC else ""
        return TargetError(
            f"{self.name}: {length} bytes at offset {offset} could not be {what}: "
            f"{self._reason(error)}; it is marked DIRTY; {room}run the same command again"
        )


def _created(path: str, size: int) -> int:
    folder = Path(path).absolute().parent
    try:
        # A mistyped /dev path would become a file in RAM.
        if folder.stat().st_dev == Path("/dev").stat().st_dev:
            raise RefusedError(f"{path} would be a file among the devices; nothing was written")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise RefusedError(
            f"{path} exists already, and --create only makes new files; nothing was written"
        ) from None
    except OSError as error:
        raise RefusedError(
            f"{path} cannot be made: {error.strerror}; nothing was written; --create makes a "
            "file in a folder that is there"
        ) from error
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
        sync_directory(folder)
    except OSError as error:
        made = os.fstat(fd)
        os.close(fd)
        remove_made(path, made)
        raise RefusedError(
            f"{path} cannot have {size} bytes: {error.strerror}; nothing was written"
        ) from error
    return fd


def _opened(path: str, force: bool) -> int:
    """Open without creating: a mistyped /dev path would become a file in RAM.

    What the name stands for is held first, and looked at, and only then opened to be written: so it
    cannot be exchanged between the two.
    """
    try:
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RefusedError(
            f"{path} does not exist; nothing was written; check the name, or let `send` or `recv` "
            "make a file, with --create"
        ) from None
    except OSError as error:
        raise _not_opened(path, path, error) from error
    try:
        mode = os.fstat(held).st_mode
        _check_kind(path, mode)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        if stat.S_ISBLK(mode) and not force:
            # Keeps mounts, swap and other exclusive openers out while we write.
            flags |= os.O_EXCL
        same = f"/proc/self/fd/{held}"
        try:
            return os.open(same, flags)
        except OSError as error:
            raise _not_opened(path, same, error) from error
    finally:
        os.close(held)


def _check_kind(path: str, mode: int) -> None:
    """Refuse what is no disk, and a symbolic link to a file; names of devices are links often.

    Whoever can change the link would choose which file we overwrite.
    """
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise RefusedError(
            f"{path} is neither a block device nor a regular file; nothing was written"
        )
    if stat.S_ISREG(mode) and Path(path).is_symlink():
        raise RefusedError(
            f"{path} is a symbolic link to a file; nothing was written; give the file's "
            f"own name, {Path(path).resolve()}"
        )


def _not_opened(path: str, same: str, error: OSError) -> RefusedError:
    """Say why a target could not be opened; `same` is a name of it that nobody can change."""
    if error.errno != errno.EBUSY:
        return RefusedError(f"{path} cannot be opened: {error.strerror}; nothing was written")
    users = "somebody has it open for himself alone"
    with contextlib.suppress(OSError):
        fd = os.open(same, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = users_of(node_of(fd))
            holder = lock_holder_of(fd)
            users = "; ".join([*found, f"{holder} has locked it"] if holder else found) or users
        finally:
            os.close(fd)
    return BusyError(
        f"{path} is in use: {users}; nothing was written; stop its user, or give --force-in-use"
    )
