"""A sign of life of whoever writes a point, so that nobody takes what it wrote for garbage."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from blockstream.errors import BlockstreamError
from blockstream.repository.repository import ALIVE_SECONDS, StoredDisk

_BEAT_SECONDS: Final = ALIVE_SECONDS / 10


@contextlib.contextmanager
def alive(disk: StoredDisk, identity: str, every: float = _BEAT_SECONDS) -> Iterator[None]:
    """Give a sign of life until this ends, well or not.

    It lies among the packs, where a key that may only write points may write. A store that does not
    take it fails for the packs, too, and says so there.

    Args:
        disk: Where to.
        identity: The id of the point that is being written.
        every: Seconds between two signs.
    """
    key, ended = disk.alive_key(identity), threading.Event()

    def beat() -> None:
        with contextlib.suppress(BlockstreamError):
            disk.objects.put(key, b"")

    def beats() -> None:
        while not ended.wait(every):
            beat()

    beat()
    thread = threading.Thread(target=beats, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_BEAT_SECONDS)
        with contextlib.suppress(BlockstreamError):  # a key that may not delete leaves it to prune
            disk.objects.delete(key)
