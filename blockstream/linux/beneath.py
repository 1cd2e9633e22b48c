"""Files below a directory that others may write, too: no name there leads out of it.

Every component is opened relative to the directory before, never through a link, and what is opened
must be a regular file. `openat2` would do the same in one call, on kernels that have it; this is
one way for all of them.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from blockstream.linux.files import sync_directory

# Only to go through, which takes no right to read.
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# Not to wait for the other end of a FIFO, and not to make a terminal ours.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


# What the kernel says of a link or of a file where a directory must be, and of a socket.
_NOT_OURS = {errno.ELOOP, errno.ENOTDIR, errno.ENXIO}


class ElsewhereError(OSError):
    """A name is a link, or not the kind of file that must be there."""


class Beneath:
    """A directory, and what lies below it under names of words between slashes.

    The directory itself may be a link: whoever named it meant where it leads. Any thread.
    """

    def __init__(self, root: Path) -> None:
        """Name it; it need not be there."""
        self._root = root

    @contextlib.contextmanager
    def folder(self, name: str, *, make: bool = False) -> Iterator[int]:
        """Open a directory below it, to go through; the descriptor is closed afterwards.

        Args:
            name: Its name; empty for the directory itself.
            make: Whether to make what is missing of it, durably.

        Raises:
            FileNotFoundError: If it is not there.
            ElsewhereError: If a component is a link, or no directory.
            OSError: If it cannot be opened or made.
        """
        if make:
            _make_root(self._root)
        fd = os.open(self._root, _FOLDER)
        try:
            for word in words_of(name):
                inner = _entered(fd, word, make=make)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def holding(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the directory in which a file lies; give its descriptor and the file's last word.

        Raises:
            OSError: As `folder`.
        """
        folder, _, last = name.rpartition("/")
        words_of(last)
        with self.folder(folder, make=make) as fd:
            yield fd, last

    def opened(self, name: str) -> FileIO:
        """Open a file to be read.

        Raises:
            FileNotFoundError: If it is not there.
            ElsewhereError: If it is no regular file, or a directory on the way is a link.
            OSError: If it cannot be read.
        """
        with self.holding(name) as (folder, last):
            return opened_file(folder, last)


def words_of(name: str) -> list[str]:
    """Return the components of a name.

    Raises:
        ElsewhereError: If one of them leads elsewhere.
    """
    words = [word for word in name.split("/") if word]
    if any(word in {".", ".."} or "\0" in word for word in words):
        raise ElsewhereError(errno.EINVAL, "it is no name for a file", name)
    return words


@contextlib.contextmanager
def entered(folder: int, word: str) -> Iterator[int]:
    """Open a directory of a directory, to go through; the descriptor is closed afterwards.

    Raises:
        FileNotFoundError: If it is not there.
        ElsewhereError: If it is a link, or no directory.
        OSError: If it cannot be opened.
    """
    fd = _entered(folder, word, make=False)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def listable(folder: int) -> Iterator[int]:
    """Open a directory that was opened to go through, to be listed or made durable."""
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_names(folder: int) -> None:
    """Make the names in a directory durable."""
    with listable(folder) as fd:
        os.fsync(fd)


def opened_file(folder: int, word: str) -> FileIO:
    """Open a regular file of a directory to be read.

    Raises:
        FileNotFoundError: If it is not there.
        ElsewhereError: If it is no regular file.
        OSError: If it cannot be read.
    """
    with _elsewhere():
        fd = os.open(word, _FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ElsewhereError(errno.EINVAL, "it is no regular file", word)
    return FileIO(fd)


def _entered(folder: int, word: str, *, make: bool) -> int:
    with _elsewhere():
        try:
            return os.open(word, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(word, dir_fd=folder)
        sync_names(folder)
        return os.open(word, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        text = "it is a link, or no file or folder as it must be"
        raise ElsewhereError(error.errno, text, error.filename) from error


def _make_root(folder: Path) -> None:
    """Make a directory and its parents, durably."""
    if folder.is_dir():
        return
    _make_root(folder.parent)
    # For its owner alone; who wants others to use it makes it before, with the modes that it needs.
    folder.mkdir(0o700, exist_ok=True)
    sync_directory(folder.parent)
