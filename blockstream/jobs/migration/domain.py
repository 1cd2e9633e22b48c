"""A guest of libvirt, by `virsh` on both hosts: its definition goes over, and it is started there.

Either it is shut down and boots there, or it is saved to a file, which goes over as well: then it
stands still for longer, but never boots. What `LIBVIRT_DEFAULT_URI` says is used on each host.
"""

import contextlib
import io
import os
import re
import shlex
import stat
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from blockstream.errors import BlockstreamError, ConnectionLostError, InterruptedTransferError
from blockstream.jobs.migration.guests import COMMAND_SECONDS, FarHost, problem_of, run_here
from blockstream.run import Run

_MARK_URI: Final = "https://blockstream.invalid/migrating"
_POLL_SECONDS: Final = 0.5
_PIECE: Final = 1 << 20
_OFF: Final = "shut off"


class Leaving(StrEnum):
    """How a domain comes to stand still."""

    SHUTDOWN = "shutdown"
    SAVE = "save"


@dataclass(frozen=True, slots=True)
class DomainGuest:
    """A domain of libvirt.

    Attributes:
        name: Its name, here and there.
        leaving: How it comes to stand still.
        disks: Device of each volume that moves, and its device on the other host.
        folder: Where its saved memory lies meanwhile.
        far: The other host.
        run: Says what is done, and stops it.
    """

    name: str
    leaving: Leaving
    disks: Mapping[str, str]
    folder: Path
    far: FarHost
    run: Run

    # Before.

    def problems(self) -> list[str]:
        """Return why it cannot be moved. See `Guest`."""
        found = problem_of(self._check_here)
        try:
            state = self._state_there()
            if state and self._there("domuuid", self.name) != self._here("domuuid", self.name):
                found.append(f"{self.far.name}: another domain is called {self.name} there")
        except BlockstreamError as error:
            return [*found, str(error)]
        if state not in {"", _OFF}:
            found.append(f"{self.far.name}: the domain {self.name} is {state} there")
        return found

    def _check_here(self) -> None:
        state = self._state()
        if state != "running":
            raise InterruptedTransferError(f"the domain {self.name} is {state or 'not defined'}")
        if re.search(r"^Persistent:\s+no", self._here("dominfo", self.name), re.MULTILINE):
            raise InterruptedTransferError(
                f"the domain {self.name} is transient, so libvirt would forget it here: "
                "`virsh define` it"
            )
        root = _parsed(self._here("dumpxml", self.name))
        theirs = {disk: _known(disk, self.disks) for disk in _sources(root)}
        stays = [disk for disk, there in theirs.items() if there is None]
        unused = set(self.disks.values()) - set(theirs.values())
        if stays:
            raise InterruptedTransferError(
                f"the domain {self.name} has disks that would not move: {', '.join(stays)}"
            )
        if unused:
            raise InterruptedTransferError(
                f"the domain {self.name} does not have {', '.join(sorted(unused))}"
            )
        nvram = root.findtext("./os/nvram")
        if nvram:
            self.run.tell(f"what its firmware keeps ({nvram}) does not move: copy it by hand")

    # The other host is made ready.

    def prepare(self) -> bool:
        """Define it over there, with a mark if it was not before. See `Guest`."""
        # Memory that an earlier run saved is not that of the disks as they are now.
        self._memory.unlink(missing_ok=True)
        text = self._here("dumpxml", self.name, "--inactive", "--security-info")
        self.run.tell(f"on {self.far.name}: virsh define {self.name}")
        command = 'virsh define "$f"'
        if not self._state_there():
            mark = [_MARK_URI, "--key", "blockstream", "--set", "<migrating/>", "--config"]
            command += f" && virsh {shlex.join(['metadata', self.name, *mark])}"
        command = f'f=$(mktemp) && cat >"$f" && {command}; s=$?; rm -f "$f"; exit $s'
        self.far.command(command, "virsh define", data=[_redirected(text, self.disks)])
        return True

    def call_off(self) -> None:
        """Undefine what carries our mark over there. See `Guest`."""
        if self._marked() and self._state_there() == _OFF:
            self._there("undefine", self.name)

    def pause(self) -> float:
        """Shut it down, or save it. See `Guest`."""
        began = time.monotonic()
        if self.leaving is Leaving.SAVE:
            self.run.tell(f"here: virsh save {self.name}")
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._here("save", self.name, str(self._memory))
            return began
        self.run.tell(f"here: virsh shutdown {self.name}")
        self._here("shutdown", self.name)
        while self._state() != _OFF:
            if time.monotonic() - began > COMMAND_SECONDS:
                raise InterruptedTransferError(
                    f"the domain {self.name} did not shut down within {COMMAND_SECONDS:.0f} s"
                )
            self.run.wait(_POLL_SECONDS)
        return began

    def start_there(self) -> None:
        """Start it over there, or restore it. See `Guest`."""
        self.run.tell(f"on {self.far.name}: {self.name} is started")
        if self.leaving is Leaving.SAVE:
            self._restore_there()
            with contextlib.suppress(OSError):
                self._memory.unlink()
        else:
            self._surely(lambda: self._there("start", self.name))
        # It runs there: what fails from here on is only told.
        found = problem_of(self._settle)
        for text in found:
            self.run.tell(f"the domain runs on {self.far.name}, but: {text}")

    def roll_back(self) -> None:
        """Let it run here again. See `Guest`."""
        state = self._state()
        if state == _OFF:
            if self._memory.exists():
                self._here("restore", str(self._memory))
            else:
                self._here("start", self.name)
        elif state == "paused":
            self._here("resume", self.name)
        self._memory.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Let it start by itself there, if it did here; drop the mark."""
        if re.search(r"^Autostart:\s+enable", self._here("dominfo", self.name), re.MULTILINE):
            self._there("autostart", self.name)
            self._here("autostart", self.name, "--disable")
        if self._marked():
            self._there("metadata", self.name, _MARK_URI, "--remove", "--config")

    # The memory as a file.

    @property
    def _memory(self) -> Path:
        return self.folder / f"{self.name}.save"

    def _restore_there(self) -> None:
        """Copy the saved memory, and let the domain go on with it.

        Raises:
            BlockstreamError: As `start_there`.
        """
        copy = self.far.command(
            "umask 077; mktemp -d /var/tmp/blockstream-XXXXXX", "mktemp"
        ).strip()
        folder = shlex.quote(copy)
        more = ""
        try:
            if any(here != there for here, there in self.disks.items()):
                more = f" --xml {folder}/xml"
                self.far.command(f"cat >{folder}/xml", "copying", data=[self._saved_definition()])
            self.far.command(f"cat >{folder}/memory", "copying", data=self._pieces())
        except ConnectionLostError as error:
            # Nothing was started yet, so it is known to stand still.
            raise InterruptedTransferError(str(error)) from error
        command = f"virsh restore {folder}/memory{more}; s=$?; rm -r {folder}; exit $s"
        self._surely(lambda: self.far.command(command, "virsh restore"))

    def _surely(self, start: Callable[[], object]) -> None:
        """Start it over there; it is taken for not started only if libvirt says that it is off.

        Raises:
            ConnectionLostError: If it complained, and may be running.
            InterruptedTransferError: If it surely does not run.
        """
        try:
            start()
        except ConnectionLostError:
            raise
        except InterruptedTransferError as error:
            try:
                state = self._state_there()
            except BlockstreamError as other:
                raise ConnectionLostError(f"{error}; {other}") from error
            if state in {"", _OFF}:
                raise
            raise ConnectionLostError(f"{error}; but it is {state} there") from error

    def _saved_definition(self) -> bytes:
        """Return the definition in the saved memory, for the other host."""
        text = self._here("save-image-dumpxml", str(self._memory), "--security-info")
        return _redirected(text, self.disks)

    def _pieces(self) -> Iterator[bytes]:
        with self._memory.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    # virsh.

    def _here(self, *words: str) -> str:
        # What it says is looked at, so not in the user's language.
        return run_here(["env", "LC_ALL=C", "virsh", *words], f"virsh {words[0]}", self.run)

    def _there(self, *words: str) -> str:
        return self.far.command(f"LC_ALL=C virsh {shlex.join(words)}", f"virsh {words[0]}")

    def _state(self) -> str:
        """Return the domain's state here; empty if it is not defined."""
        return run_here(self._asking_state, "virsh domstate", self.run).strip()

    def _state_there(self) -> str:
        """Return the domain's state there; empty if it is not defined."""
        return self.far.command(self._asking_state, "virsh domstate").strip()

    @property
    def _asking_state(self) -> str:
        return (
            "command -v virsh >/dev/null || { echo virsh is not there >&2; exit 1; }; "
            # What libvirt does not know is not defined; but who cannot be asked knows nothing.
            f"LC_ALL=C virsh domstate {shlex.quote(self.name)} 2>/dev/null || "
            "virsh list >/dev/null"
        )

    def _marked(self) -> bool:
        """Tell whether what is defined there was defined by us, and not finished."""
        name = shlex.quote(self.name)
        return "migrating" in self.far.command(
            f"virsh metadata {name} {_MARK_URI} --config 2>/dev/null || true", "virsh metadata"
        )


def _sources(root: ET.Element) -> list[str]:
    """Return the devices and files of a domain's writable disks."""
    found = []
    for disk in root.iterfind("./devices/disk"):
        source = disk.find("source")
        if (
            source is None
            or disk.get("device", "disk") != "disk"
            or disk.find("readonly") is not None
        ):
            continue
        found.append(source.get("dev") or source.get("file") or ET.tostring(source).decode())
    return found


def _known(path: str, disks: Mapping[str, str]) -> str | None:
    """Return where a disk goes; None if it does not."""
    return next((there for here, there in disks.items() if _same(path, here)), None)


def _redirected(text: str, disks: Mapping[str, str]) -> bytes:
    """Return a definition that names the devices of the other host."""
    for _, (prefix, uri) in ET.iterparse(io.StringIO(text), ["start-ns"]):  # noqa: S314
        ET.register_namespace(prefix, uri)  # or they would come out under other names
    root = _parsed(text)
    for source in root.iterfind("./devices/disk/source"):
        for word in ("dev", "file"):
            path = source.get(word)
            there = _known(path, disks) if path else None
            if there is not None:
                source.set(word, there)
    return ET.tostring(root)


def _parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  # our own libvirt wrote it


def _same(one: str, other: str) -> bool:
    """Tell whether two paths lead to the same device or file."""
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        found = [Path(path).stat() for path in (one, other)]
    except OSError:
        return False
    return (
        all(stat.S_ISBLK(each.st_mode) for each in found)
        and len({each.st_rdev for each in found}) == 1
    )
