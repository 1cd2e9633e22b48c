"""Which encrypted stores this host has used: another one in the place of one of these is refused.

Who can write a bucket can put a store there whose key is his own, and would be sent the next point.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from blockstream.errors import AuthenticationError, RefusedError
from blockstream.linux.files import sync_directory
from blockstream.linux.state_directory import make_directory
from blockstream.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Pins:
    """What a state directory remembers of stores: for each place, fingerprints as names of files.

    Attributes:
        state_dir: The state directory.
    """

    state_dir: Path

    def check(self, store: Repository) -> None:
        """Compare a store with what was used in its place before; the first encrypted one is noted.

        Raises:
            AuthenticationError: If it is another one.
            RefusedError: If it cannot be noted.
        """
        folder = self._folder(store)
        try:
            known = {path.name for path in folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            known = set()
        except OSError as error:
            raise RefusedError(f"{folder} cannot be read: {error.strerror}") from error
        if not known and store.encrypted:
            self.trust(store)
        elif known and store.fingerprint not in known:
            what = "has another key" if store.encrypted else "is not encrypted"
            name = store.objects.name
            raise AuthenticationError(
                f"{name} is not the store that was used here before: it {what}, and somebody may "
                "have put it in the place of yours; nothing was done; if it is the right one all "
                f"the same, say so with `blockstream store trust {name}`"
            )

    def trust(self, store: Repository) -> None:
        """Take a store for the right one in its place, as well as those before.

        Raises:
            RefusedError: If it cannot be noted.
        """
        folder = self._folder(store)
        make_directory(folder)
        path = folder / store.fingerprint
        try:
            with contextlib.suppress(FileExistsError), path.open("x") as file:
                file.write(f"{store.objects.name}\n")  # for people: the name of the file counts
            sync_directory(folder)
        except OSError as error:
            raise RefusedError(f"{path} cannot be made: {error.strerror}") from error

    def _folder(self, store: Repository) -> Path:
        return self.state_dir / "stores" / blake3(store.objects.name.encode()).hexdigest(16)
