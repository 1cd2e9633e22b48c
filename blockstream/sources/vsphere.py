"""A session with a vCenter or an ESXi host: machines, snapshots, and what changed in their disks.

The one place that speaks VMware's API. Every answer that is a fault becomes an error of ours here.
"""

import contextlib
import http.client
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from xml.parsers.expat import ExpatError

from pyVim.connect import SmartStubAdapter
from pyVmomi import vim, vmodl

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    NotFoundError,
    RefusedError,
    SourceError,
)
from blockstream.extents import ExtentMap
from blockstream.formats.changed_areas import ChangeMapError, Page, pages
from blockstream.sources.datastore import Server
from blockstream.sources.inventory import (
    GoneError,
    InTheWayError,
    Machine,
    MaybeDoneError,
    QuiesceError,
    Snapshot,
    TrackerError,
    VirtualDisk,
)
from blockstream.sources.virtual_hardware import DISK_PATHS, disks
from blockstream.words import Secret

T = TypeVar("T")

# What ends a call without an answer of VMware's: a proxy that answers in HTML among it.
_BROKEN: Final = (OSError, http.client.HTTPException, ExpatError)
# Faults that any call may meet with.
_NOT_THE_TRACKERS: Final = (
    *(vim.fault.FileLocked, vim.fault.TaskInProgress, vim.fault.NotAuthenticated),
    *(vim.fault.NoPermission, vmodl.fault.ManagedObjectNotFound),
)
_ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 2.0
# A vCenter forgets a session after 30 minutes without a call, and reading files is none.
_KEEP_ALIVE_SECONDS: Final = 600.0
_SECONDS: Final = 300.0
_CONNECT_SECONDS: Final = 30.0
_VERSIONS_BYTES: Final = 1 << 16  # it is a list of a few versions
_LEAST_HARDWARE: Final = 7  # change tracking came with it
# kubernetes-sigs/vsphere-csi-driver, TranslateVslmError.
_TRACKER_FAULTS: Final = {
    "vim.hostd.vmsvc.cbt.noTrack": "change tracking is off, or has not begun, for this disk",
    "vim.hostd.vmsvc.cbt.noEpoch": "the tracker does not know the moment",
    "vim.hostd.vmsvc.cbt.cannotGetChanges": "the tracker's map is lost, or is of another time",
}
_QUIESCE_FAULTS: Final = (
    vim.fault.ApplicationQuiesceFault,
    vim.fault.FilesystemQuiesceFault,
    vim.fault.ToolsUnavailable,
)
# What holds what the guest has written since a snapshot: COWD and SESparse.
_DELTA = re.compile(r"-\d{6}-(delta|sesparse)\.vmdk")

_MACHINE_PATHS: Final = (
    *("name", "parent", "config.instanceUuid", "config.template", "config.version"),
    *("config.changeTrackingEnabled", *DISK_PATHS, "snapshot.rootSnapshotList"),
    *("runtime.host", "runtime.consolidationNeeded"),
)


class VSphere:
    """A session; used from several threads at once."""

    def __init__(self, server: Server, user: str, password: Secret) -> None:
        """Connect and log in.

        Raises:
            AuthenticationError: If the certificate, the user or the password is not right.
            NotFoundError: If nobody answers there.
        """
        self.name = str(server)
        self._user, self.password = user, password
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._last_call = time.monotonic()
        self._releases: dict[str, str] = {}
        try:
            _check_speaks(server)
            self._stub = SmartStubAdapter(
                host=server.host,
                port=server.port,
                sslContext=server.context,
                httpConnectionTimeout=_SECONDS,
                # An idle connection may have been closed there; a request on it would fail.
                connectionPoolTimeout=60,
            )
            self._instance = vim.ServiceInstance("ServiceInstance", self._stub)
            self._content = self._instance.RetrieveContent()
        except ssl.SSLCertVerificationError as error:
            raise AuthenticationError(
                f"{self.name} shows a certificate that is not trusted: {error.verify_message}; "
                "nothing was asked; give ?ca=FILE with the certificate that signs it, or "
                "?thumbprint=SHA256 of its own"
            ) from error
        except (*_BROKEN, vmodl.MethodFault) as error:
            raise NotFoundError(
                f"nobody speaks VMware's API at {self.name}: {_words_of(error)}; nothing was "
                "asked; look at the name, and whether a vCenter or ESXi listens there"
            ) from error
        try:
            self._log_in()
        except ConnectionError as error:
            self._stub.DropConnections()
            raise NotFoundError(f"{self.name} does not let us in: {error}") from None
        except BaseException:
            self._stub.DropConnections()
            raise

    # Sessions.

    def cookie(self, stale: str = "") -> str:
        """Return the session's cookie, of a new session if the server refused `stale`."""
        with self._lock:
            # There is none where the connection broke while we logged in.
            if self._cookie() in {"", stale}:
                self._log_in()
            return self._cookie()

    def keep_alive(self) -> None:
        """Make a call, if there was none for some minutes."""
        with self._lock:
            if time.monotonic() - self._last_call > _KEEP_ALIVE_SECONDS:
                self._call(self._instance.CurrentTime)

    def close(self) -> None:
        """Log out, if the server still listens."""
        self._closed.set()
        with self._lock:
            # If it cannot hear us, it forgets us by itself.
            with contextlib.suppress(*_BROKEN, vmodl.MethodFault):
                self._content.sessionManager.Logout()
            self._stub.DropConnections()

    def _cookie(self) -> str:
        return str(self._stub.cookie).split(";")[0]

    def _log_in(self) -> None:
        """Begin a session.

        Raises:
            ConnectionError: If the connection broke.
            BlockstreamError: If the server does not want us.
        """
        with self._lock:
            self._stub.cookie = ""
            try:
                self._content.sessionManager.Login(self._user, self.password.reveal())
            except vim.fault.InvalidLogin:
                # Not its own words, which may hold what was sent.
                raise AuthenticationError(
                    f"{self.name} does not let {self._user} in; nothing was sent; is the password "
                    "right?"
                ) from None
            except vmodl.MethodFault as error:
                raise NotFoundError(f"{self.name} does not let us in: {_words_of(error)}") from None
            except _BROKEN as error:
                raise ConnectionError(_words_of(error)) from None

    def _call(self, call: Callable[[], T], *, again: bool = True) -> T:
        """Make a call; log in once more if the session has ended.

        Args:
            call: The call.
            again: Whether it does no harm to make it twice.

        Raises:
            MaybeDoneError: If the connection broke, too often or where it must not be made twice.
            BlockstreamError: What the fault means.
        """
        pause, refused = _FIRST_PAUSE_SECONDS, ""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                # Another thread may have renewed it meanwhile: two would end each other's.
                cookie = self.cookie(refused)
                self._last_call = time.monotonic()
                return call()
            except vim.fault.NotAuthenticated:
                # The call did not run, so that any may be made again.
                if refused:
                    raise AuthenticationError(
                        f"{self.name} ends each session at once; nothing more was sent"
                    ) from None
                refused = cookie
            except vmodl.MethodFault as error:
                raise self._translated(error) from error
            except _BROKEN as error:
                if not again or attempt == _ATTEMPTS or self._closed.wait(pause):
                    raise MaybeDoneError(
                        f"{self.name} is not reached any more: {_words_of(error)}, tried {attempt} "
                        "times; END was not sent; send again"
                    ) from error
                pause *= 2
        raise SourceError(f"{self.name} is not reached any more")

    # Looking.

    def machine(self, path: str) -> Machine:
        """Return the machine of that inventory path.

        Raises:
            NotFoundError: If there is none.
        """
        found = self._call(lambda: self._content.searchIndex.FindByInventoryPath(path))
        if not isinstance(found, vim.VirtualMachine):
            raise NotFoundError(
                f"{self.name} has no virtual machine {path}; nothing was sent; `blockstream "
                "vsphere ls` lists them"
            )
        return self.again(Machine(found, path, "", False, False, 0, "", (), (), False))

    def again(self, machine: Machine) -> Machine:
        """Return a machine as it is now.

        Raises:
            GoneError: If it is not there any more.
        """
        values = self._properties(machine.ref, _MACHINE_PATHS)
        return self._machine(machine.ref, machine.path, values)

    def machines(self) -> list[Machine]:
        """Return all machines, by path."""
        kinds = (vim.VirtualMachine, vim.Folder, vim.Datacenter)
        view = self._call(
            lambda: self._content.viewManager.CreateContainerView(
                self._content.rootFolder, list(kinds), True
            )
        )
        try:
            found = self._listed(view, kinds)
        finally:
            self._call(view.DestroyView)
        names = {_id(ref): (values["name"], values.get("parent")) for ref, values in found}
        machines = []
        for ref, values in found:
            if isinstance(ref, vim.VirtualMachine) and "config.hardware.device" in values:
                path, up = [], ref
                while up is not None and _id(up) in names:
                    name, up = names[_id(up)]
                    path.append(name)
                machines.append(self._machine(ref, "/".join(reversed(path)), values))
        return sorted(machines, key=lambda each: each.path)

    def datacenter(self, machine: Machine) -> str:
        """Return the inventory path of the datacenter that a machine is in."""
        words: list[str] = []
        ref = machine.ref
        while ref is not None:
            values = self._properties(ref, ("name", "parent"))
            up = values.get("parent")
            # The root folder has no place in paths.
            if up is not None and (words or isinstance(ref, vim.Datacenter)):
                words.append(str(values["name"]))
            ref = up
        return "/".join(reversed(words))

    def _listed(self, view: Any, kinds: Sequence[Any]) -> list[tuple[Any, dict[str, Any]]]:
        collector = vmodl.query.PropertyCollector
        way = collector.TraversalSpec(name="all", path="view", skip=False, type=type(view))
        wanted = [
            collector.PropertySpec(
                type=kind,
                pathSet=list(_MACHINE_PATHS if kind is vim.VirtualMachine else ("name", "parent")),
            )
            for kind in kinds
        ]
        what = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=view, skip=True, selectSet=[way])], propSet=wanted
        )
        return list(self._retrieved(what))

    def _properties(self, ref: Any, paths: Sequence[str]) -> dict[str, Any]:
        """Return properties; one that is not set is missing."""
        collector = vmodl.query.PropertyCollector
        what = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=ref)],
            propSet=[collector.PropertySpec(type=type(ref), pathSet=list(paths))],
        )
        return dict(next(iter(self._retrieved(what)), (ref, {}))[1])

    def _retrieved(self, what: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        collector = self._content.propertyCollector
        options = vmodl.query.PropertyCollector.RetrieveOptions()
        answer = self._call(lambda: collector.RetrievePropertiesEx([what], options))
        while answer is not None:
            for each in answer.objects:
                yield each.obj, {prop.name: prop.val for prop in each.propSet}
            token = answer.token
            if not token:
                return
            answer = self._call(
                lambda token=token: collector.ContinueRetrievePropertiesEx(token)  # type: ignore[misc]
            )

    def _machine(self, ref: Any, path: str, values: dict[str, Any]) -> Machine:
        tree = values.get("snapshot.rootSnapshotList") or ()
        hardware = str(values.get("config.version", "")).removeprefix("vmx-")
        return Machine(
            ref=ref,
            path=path,
            uuid=str(values.get("config.instanceUuid", "")),
            tracked=bool(values.get("config.changeTrackingEnabled")),
            template=bool(values.get("config.template")),
            hardware=int(hardware) if hardware.isdecimal() else 0,
            release=self._release(values.get("runtime.host")),
            disks=tuple(disks(values)),
            snapshots=tuple(_flat(tree)),
            consolidation=bool(values.get("runtime.consolidationNeeded")),
        )

    def _release(self, host: Any) -> str:
        """Return the version of a host, which is asked once; empty where it is not told."""
        if host is None:
            return ""
        if _id(host) not in self._releases:
            told = self._properties(host, ("config.product.version",))
            self._releases[_id(host)] = str(told.get("config.product.version", ""))
        return self._releases[_id(host)]

    # Snapshots.

    def make_snapshot(
        self, machine: Machine, name: str, description: str, *, quiesced: bool
    ) -> Snapshot:
        """Make a snapshot of that name, which no other one may have.

        Raises:
            QuiesceError: If the guest could not be brought to rest.
            InTheWayError: If there is none, and may be one later.
            MaybeDoneError: If there may be one, of which nobody knows.
            SourceError: If there is none, for another reason.
        """

        def make() -> Any:
            return machine.ref.CreateSnapshot_Task(name, description, False, quiesced)

        try:
            return Snapshot(self._made(machine, name, make), name, description)
        except MaybeDoneError as error:
            raise MaybeDoneError(
                f"{error}; {machine.path} may have the snapshot {name} now: the same command "
                "removes it when it is run again"
            ) from error

    def _made(self, machine: Machine, name: str, make: Callable[[], Any]) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._done(self._call(make, again=False))
            except MaybeDoneError:
                # The answer is lost, and perhaps the task runs: of two, one would stay for ever.
                found = self._named(machine, name)
                if found is not None:
                    return found.ref
                if attempt == _ATTEMPTS:
                    raise
        raise SourceError(f"{self.name} is not reached any more")

    def disks_of(self, snapshot: Snapshot) -> tuple[VirtualDisk, ...]:
        """Return the disks as a snapshot froze them.

        Raises:
            GoneError: If it is not there any more.
        """
        return tuple(disks(self._properties(snapshot.ref, DISK_PATHS)))

    def remove_snapshot(self, snapshot: Snapshot) -> None:
        """Remove a snapshot; it is no error if it is not there any more.

        Raises:
            InTheWayError: If it could not be removed now.
            SourceError: If it may still be there.
        """
        # Made twice, it finds nothing the second time.
        with contextlib.suppress(GoneError):
            self._done(self._call(lambda: snapshot.ref.RemoveSnapshot_Task(False)))

    def has_snapshot(self, machine: Machine, name: str) -> bool:
        """Tell whether there is a snapshot of that name, once no task changes that any more."""
        return self._named(machine, name) is not None

    def consolidate(self, machine: Machine) -> bool:
        """Put together what removed snapshots have left, if they have; tell whether it was needed.

        Raises:
            InTheWayError: If it could not be done now.
            SourceError: If it could not be done.
        """
        if not self._properties(machine.ref, ("runtime.consolidationNeeded",)).get(
            "runtime.consolidationNeeded"
        ):
            return False
        self._done(self._call(machine.ref.ConsolidateVMDisks_Task))
        return True

    def now(self) -> datetime:
        """Return the server's time, by which it notes when a snapshot is made."""
        found: datetime = self._call(self._instance.CurrentTime)
        return found

    def delta_bytes(self, machine: Machine) -> int:
        """Return how large all is that was written since snapshots of a machine were made."""
        files = self._properties(machine.ref, ("layoutEx.file",)).get("layoutEx.file") or ()
        return sum(int(each.size) for each in files if _DELTA.search(str(each.name)))

    def _named(self, machine: Machine, name: str) -> Snapshot | None:
        """Return the snapshot of that name, once tasks have ended that may make or remove it."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            # Asked first: a task that ends in between has made what is looked for then.
            tasks = self._properties(machine.ref, ("recentTask",)).get("recentTask") or ()
            running = any(self._is_about_snapshots(task) for task in tasks)
            found = [each for each in self.again(machine).snapshots if each.name == name]
            if found or not running:
                return found[0] if found else None
            self._closed.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _is_about_snapshots(self, task: Any) -> bool:
        values = self._properties(task, ("info.state", "info.descriptionId"))
        # `VirtualMachine.createSnapshot`, `VirtualMachineSnapshot.remove`.
        about = "napshot" in str(values.get("info.descriptionId", ""))
        return about and values.get("info.state") in {"queued", "running"}

    def _done(self, task: Any) -> Any:
        """Wait until a task has ended; return its result.

        Raises:
            MaybeDoneError: If nobody tells us what becomes of it.
            InTheWayError: If it failed, and may succeed later.
            SourceError: If it failed.
        """
        pause = 0.02
        while True:
            values = self._properties(task, ("info.state", "info.error", "info.result"))
            if values.get("info.state") == "success":
                return values.get("info.result")
            if values.get("info.state") == "error":
                raise self._translated(values.get("info.error"))
            if "info.state" not in values:
                raise MaybeDoneError(f"{self.name} does not tell {self._user} how a task ends")
            self._closed.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    # Changes.

    def track(self, machine: Machine) -> None:
        """Switch change tracking on; it begins when the machine is stunned the next time.

        Raises:
            RefusedError: If it would not track, or lie.
            InTheWayError: If the server does not now.
            SourceError: If the server does not.
        """
        if machine.template:
            raise RefusedError(f"{machine.path} is a template; nothing was switched on")
        if machine.hardware < _LEAST_HARDWARE:
            raise RefusedError(
                f"{machine.path} has hardware version {machine.hardware}, and change tracking "
                f"needs {_LEAST_HARDWARE}; nothing was switched on"
            )
        if machine.snapshots:
            # Backup Exec article 100033481: since 6.5 the map is then wrong, without any error.
            raise RefusedError(
                f"{machine.path} has snapshots ({machine.snapshots[0].name}), with which change "
                "tracking would begin with a wrong map; nothing was switched on; remove them first"
            )
        for disk in machine.disks:
            if disk.obstacle:
                raise RefusedError(
                    f"{machine.path}: {disk.label} {disk.obstacle}, with which nothing can be "
                    "tracked; nothing was switched on"
                )
        wanted = vim.vm.ConfigSpec(changeTrackingEnabled=True)
        self._done(self._call(lambda: machine.ref.ReconfigVM_Task(wanted)))

    def changed(
        self, machine: Machine, snapshot: Snapshot, disk: VirtualDisk, since: str
    ) -> ExtentMap:
        """Return what changed in a disk between a change id and a snapshot.

        Args:
            machine: The machine.
            snapshot: The snapshot, which has to be given even if it is the newest state.
            disk: The disk, as the snapshot has it.
            since: The change id; `*` for what is allocated.

        Raises:
            TrackerError: If the tracker cannot tell.
            InTheWayError: If it cannot tell now.
            GoneError: If the disk or the snapshot is not there any more.
        """
        asking = pages(disk.size)
        start = next(asking)
        try:
            while True:
                page = self._page(machine, snapshot, disk, since, start)
                start = asking.send(page)
        except StopIteration as end:
            found: ExtentMap = end.value
            return found
        except ChangeMapError as error:
            raise TrackerError(f"the tracker's answer cannot be true: {error}") from error

    def _page(
        self, machine: Machine, snapshot: Snapshot, disk: VirtualDisk, since: str, start: int
    ) -> Page:
        def ask() -> Any:
            try:
                return machine.ref.QueryChangedDiskAreas(snapshot.ref, disk.key, start, since)
            except (*_BROKEN, *_NOT_THE_TRACKERS):
                raise
            except Exception as error:
                # Whatever it is, and whatever pyvmomi makes of an answer that it does not know.
                raise _of_tracker(error, start) from error

        info = self._call(ask)
        try:
            areas = [(int(each.start), int(each.length)) for each in info.changedArea or ()]
            return Page(int(info.startOffset), int(info.length), areas)
        except (AttributeError, TypeError, ValueError) as error:
            raise TrackerError(f"the tracker's answer cannot be true: {error}") from error

    # Faults.

    def _translated(self, error: Any) -> BlockstreamError:
        """Say what a fault means."""
        if isinstance(error, vmodl.fault.ManagedObjectNotFound):
            return GoneError(f"{error.obj} is not there any more on {self.name}; END was not sent")
        if isinstance(error, vim.fault.NoPermission):
            return SourceError(
                f"{self.name} does not allow it: the privilege {error.privilegeId} is missing; "
                "nothing was sent"
            )
        if isinstance(error, vim.fault.TaskInProgress):
            return InTheWayError(
                f"another task works on the machine ({self._kind_of(error.task)}TaskInProgress)"
            )
        if isinstance(error, vim.fault.FileLocked):
            return InTheWayError(f"{error.file or 'a file'} is locked (FileLocked)")
        if isinstance(error, vim.fault.MultipleSnapshotsNotSupported):
            return SourceError(
                "the machine takes no snapshot beside the one it has "
                "(MultipleSnapshotsNotSupported); nothing was sent; remove that one first"
            )
        if isinstance(error, _QUIESCE_FAULTS):
            return QuiesceError(f"the guest could not be brought to rest ({type(error).__name__})")
        return SourceError(f"{self.name} says: {_words_of(error)}")

    def _kind_of(self, task: Any) -> str:
        """Return what a task does, as `VirtualMachine.migrate, `; empty where nobody tells."""
        if task is None:
            return ""
        with contextlib.suppress(SourceError):
            told = self._properties(task, ("info.descriptionId",)).get("info.descriptionId")
            return f"{told}, " if told else ""
        return ""


def _check_speaks(server: Server) -> None:
    """See that it speaks VMware's API, of which pyvmomi only says "Exception" if it does not.

    Raises:
        NotFoundError: If it is something else.
        OSError: If it is not there, or its certificate is not trusted.
    """
    with contextlib.closing(
        http.client.HTTPSConnection(
            server.host, server.port, timeout=_CONNECT_SECONDS, context=server.context
        )
    ) as connection:
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        answer = connection.getresponse()
        said = answer.read(_VERSIONS_BYTES)
    if answer.status != http.client.OK or b"<name>urn:vim25</name>" not in said:
        raise NotFoundError(
            f"nobody speaks VMware's API at {server}: /sdk/vimServiceVersions.xml is answered with "
            f"status {answer.status}; nothing was asked"
        )


def _flat(tree: Sequence[Any]) -> Iterator[Snapshot]:
    for each in tree:
        yield Snapshot(each.snapshot, str(each.name), str(each.description or ""), each.createTime)
        yield from _flat(each.childSnapshotList or ())


def id_of(named: Machine | Snapshot) -> str:
    """Return what the server calls a machine or a snapshot: `vm-123`."""
    return _id(named.ref)


def _id(ref: Any) -> str:
    return str(ref._GetMoId())  # pyvmomi has no other name for it


def _of_tracker(error: Any, start: int) -> BlockstreamError:
    """Say what a failure of `QueryChangedDiskAreas` means, but for those that may pass."""
    if isinstance(error, vmodl.fault.InvalidArgument):
        wrong = str(error.invalidProperty)
        if wrong.endswith("changeId"):
            return TrackerError("the tracker does not know the change id")
        if wrong.endswith("startOffset"):
            return TrackerError(f"the tracker does not take offset {start}")
        return GoneError(
            f"the tracker was asked for a {wrong} that is not there any more; END was not sent; "
            "send again"
        )
    if not isinstance(error, vim.fault.FileFault):
        return TrackerError(f"the tracker failed: {_words_of(error)}")
    keys = [str(each.key) for each in error.faultMessage or ()]
    text = " ".join([*keys, str(error.msg)])
    meaning = next((words for key, words in _TRACKER_FAULTS.items() if key in text), "")
    return TrackerError(meaning or f"the tracker failed: {error.msg}")


def _words_of(error: Any) -> str:
    """Return what an error says, with its kind; never what was sent."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    kind = type(error).__name__.rpartition(".")[2]
    text = str(getattr(error, "msg", None) or "") or (
        str(error) if isinstance(error, OSError) else ""
    )
    return f"{kind} ({text})" if text else kind
