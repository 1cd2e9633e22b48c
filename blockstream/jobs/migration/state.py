"""How far a migration is: a file that outlives the run that wrote it."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from blockstream.errors import IntegrityError
from blockstream.linux.files import write_durably
from blockstream.linux.lvm import Volume
from blockstream.linux.state_directory import make_directory


class Phase(StrEnum):
    """Where the guest is, for whoever comes after a run that died."""

    NONE = ""
    ROUNDS = "rounds"  # it runs here
    PREPARED = "prepared"  # it runs here, and the other host has been made ready
    PAUSED = "paused"  # it stands still here
    STARTING = "starting"  # nobody knows whether it runs there
    DONE = "done"  # it runs there


class MigrationNote:
    """The note of one guest, found by its first volume."""

    def __init__(self, state_dir: Path, volume: Volume) -> None:
        """Name it; nothing is read."""
        self.path = state_dir / "lvm" / f"migration-{volume.uuid}.json"

    @property
    def phase(self) -> Phase:
        """How far it is.

        Raises:
            IntegrityError: If the file is damaged.
        """
        return Phase(self._values()["phase"])

    @property
    def words(self) -> list[str]:
        """The command line that it was begun with; empty for none.

        Raises:
            IntegrityError: If the file is damaged.
        """
        return list(self._values()["words"])

    def record(self, phase: Phase, words: Sequence[str]) -> None:
        """Make durable how far it is."""
        make_directory(self.path.parent)
        write_durably(self.path, json.dumps({"phase": phase, "words": list(words)}).encode())

    def forget(self) -> None:
        """It is over."""
        self.path.unlink(missing_ok=True)

    def _values(self) -> dict[str, str]:
        try:
            values = json.loads(self.path.read_text())
            Phase(values["phase"])
            list(values["words"])
        except FileNotFoundError:
            return {"phase": "", "words": ""}
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self.path} is damaged: {error}; it says whether the guest was being started on "
                "the other host: see there, then remove the file"
            ) from error
        return dict(values)
