"""An nbdkit that is started for one disk of a machine: VMware's own library, or what replaces it.

nbdkit's `vddk` plugin needs VMware's VDDK; `nfc` and others take the same words. A plugin that is
given as the path of a script is run by its own first line (nbdkit(1), "Writing plugins in ...").
"""

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockstream.errors import AuthenticationError, NotFoundError, SourceError
from blockstream.extents import ExtentMap
from blockstream.sources.datastore import Server
from blockstream.sources.nbd import NbdSource
from blockstream.words import Secret

# A vCenter that is busy may take so long to open a disk.
_START_SECONDS: Final = 120.0
_STEP_SECONDS: Final = 0.02
_STOP_SECONDS: Final = 10.0
_LINES: Final = 20
# Smaller reads are rounded up, and larger ones fail on a vCenter
# (kubevirt/containerized-data-importer#3752).
_FILTERS: Final = ("--filter=retry", "--filter=cacheextents", "--filter=blocksize")
_SIZES: Final = ("minblock=512", "maxdata=2M")


@dataclass(frozen=True, slots=True)
class Plugin:
    """Which plugin, and where its library lies.

    Attributes:
        name: `vddk`, `nfc`, or the path of one.
        library: Folder of VDDK; empty where the plugin finds it.
    """

    name: str
    library: str = ""


@dataclass(frozen=True, slots=True)
class Frozen:
    """A disk as a snapshot has it, in the words of the plugin.

    Attributes:
        machine: The machine's name on that server, as `vm-123`.
        snapshot: The snapshot's, as `snapshot-456`.
        file: `[STORE] FOLDER/NAME.vmdk`.
        size: Its bytes.
    """

    machine: str
    snapshot: str
    file: str
    size: int


class NbdkitReader:
    """Runs nbdkit and reads from it. See `virtual_disk.Reader`."""

    def __init__(
        self, server: Server, user: str, password: Secret, plugin: Plugin, disk: Frozen
    ) -> None:
        """Start it, and wait until it listens.

        Raises:
            NotFoundError: If there is no nbdkit here.
            SourceError: If it does not begin to serve, or serves another size.
            AuthenticationError: If the server's certificate is not the right one.
        """
        self.warnings: list[str] = []
        self._said: deque[str] = deque(maxlen=_LINES)
        self._password = password
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockstream-")))
            words = _command(server, user, plugin, disk, folder)
            self._process = self._started(words)
            stack.callback(self._stop)
            self._wait(folder)
            self._source = NbdSource(f"nbd+unix:///?socket={folder}/socket")
            stack.callback(self._source.close)
            if self._source.size != disk.size:
                raise SourceError(
                    f"{disk.file}: nbdkit serves {self._source.size} bytes, and the disk has "
                    f"{disk.size}; nothing was sent"
                )
            self.read_ahead = self._source.read_ahead
            self._stack = stack.pop_all()
        self.alignment = self._source.alignment

    def extents(self) -> ExtentMap:
        """Return what the server says is zeros; DATA where it says nothing."""
        return self._source.extents()

    def read_into(self, offsets: Sequence[int], lengths: Sequence[int], buffer: memoryview) -> None:
        """Fill `buffer`; see `interfaces.Source`."""
        self._source.read_into(offsets, lengths, buffer)

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def _started(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        try:
            os.write(writing, self._password.reveal().encode())  # shorter than any pipe
            os.close(writing)
            words = [word.replace("{password}", str(reading)) for word in words]
            started: Future[subprocess.Popen[bytes]] = Future()
            # It ends with the thread that starts it (PR_SET_PDEATHSIG of prctl(2)); this one lives
            # for as long as it says anything.
            self._listener = threading.Thread(
                target=self._run, args=(words, reading, started), daemon=True
            )
            self._listener.start()
            return started.result()
        except OSError as error:
            raise NotFoundError(
                f"{words[0]} cannot be started: {error.strerror}; nothing was sent; install nbdkit"
            ) from error
        finally:
            os.close(reading)

    def _run(
        self, words: Sequence[str], password: int, started: "Future[subprocess.Popen[bytes]]"
    ) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603  # what the user asked to run
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[password],
                # A Ctrl-C is for us: what is being read then must not fail for it.
                process_group=0,
            )
        except BaseException as error:  # noqa: BLE001  # handed over to who waits for it
            started.set_exception(error)
            return
        started.set_result(process)
        if process.stderr is None:
            return
        with process.stderr as stderr:
            for line in stderr:
                text = line.decode(errors="replace").rstrip()
                self._said.append(text.replace(self._password.reveal(), "***"))
        # Who closes what it says may serve on.
        process.wait()

    def _wait(self, folder: Path) -> None:
        """Wait for the file that it writes when it listens."""
        for _ in range(round(_START_SECONDS / _STEP_SECONDS)):
            if (folder / "pid").exists():
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(_STEP_SECONDS)
                self._listener.join(1.0)
                raise SourceError(
                    f"nbdkit ended with status {status} before it served: "
                    f"{' / '.join(self._said) or 'it said nothing'}; nothing was sent"
                )
        raise SourceError(
            f"nbdkit does not serve after {_START_SECONDS:.0f} s: "
            f"{' / '.join(self._said) or 'it said nothing'}; nothing was sent"
        )

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(1.0)


def _command(
    server: Server, user: str, plugin: Plugin, disk: Frozen, folder: Path
) -> Sequence[str]:
    """Return the command line; `{password}` stands for the number of a descriptor."""
    options = ["--exit-with-parent", "--readonly", "--foreground", *_FILTERS]
    options += [f"--unix={folder}/socket", f"--pidfile={folder}/pid"]
    is_script = "/" in plugin.name and not plugin.name.endswith(".so")
    program = shutil.which("nbdkit") or shutil.which("nbdkit", path="/usr/sbin") or "nbdkit"
    begin = [plugin.name, *options] if is_script else [program, *options, plugin.name]
    return [
        *begin,
        f"server={server.host}",
        *([f"port={server.port}"] if server.port != 443 else []),
        f"user={user}",
        "password=-{password}",
        f"thumbprint={_thumbprint(server)}",
        f"vm=moref={disk.machine}",
        # Without it, a quiesced machine with Windows gives error 13 (CDI#3385).
        f"snapshot={disk.snapshot}",
        # Without them the library may crash (RHEL-54377).
        "transports=file:nbdssl:nbd",
        "compression=skipz",
        *([f"libdir={plugin.library}"] if plugin.library else []),
        *_SIZES,
        f"file={disk.file}",
    ]


def _thumbprint(server: Server) -> str:
    """Return the SHA-1 of the certificate, which was checked by our own rules.

    Raises:
        AuthenticationError: If it is not the right one.
        NotFoundError: If the server does not answer.
    """
    try:
        with (
            socket.create_connection((server.host, server.port), _START_SECONDS) as plain,
            server.context.wrap_socket(plain, server_hostname=server.host) as line,
        ):
            shown = line.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationError(
            f"{server} shows a certificate that is not trusted: {error.verify_message}"
        ) from error
    except OSError as error:
        raise NotFoundError(f"{server} does not answer: {error}; nothing was sent") from error
    # VDDK wants SHA-1 and nothing else.
    digest = hashlib.sha1(shown, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
