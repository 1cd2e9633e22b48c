"""Not a test: worlds in which real processes are killed at random times, and what must hold then.

Whatever is killed, stopped or damaged: a command that ends with 0 has done what it says, byte for
byte; a target that is called CLEAN holds that state; the same command finishes in the end; and no
end is a bug. When a process dies is decided by the machine, so a world cannot be repeated exactly.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.far_host import far_command, far_status
from tests.end_to_end.hosts import Ended, Host, Process, Words, Zygote, altered, content

_DISTURBED = 6  # attempts in a row that may be killed, before one is left alone
_SIZES = (300_000, 1 << 20, 3 << 20)
_KILLS = (
    *[signal.SIGKILL] * 6,
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
)
# What may come of a store that somebody damaged.
_SAID = {0, 10, 12, 14, 16, 17, 18, 19}


class BrokenError(AssertionError):
    """A promise was broken."""


@dataclass(slots=True)
class Tally:
    """What was counted.

    Attributes:
        worlds: How many of each kind.
        runs: How many commands, by their exit status.
        kills: How many signals, by name.
        damages: How many objects were damaged, by way.
        violations: What was broken.
    """

    worlds: Counter[str] = field(default_factory=Counter)
    runs: Counter[int] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Count what another has counted."""
        for mine, theirs in (
            (self.worlds, other.worlds),
            (self.kills, other.kills),
            (self.damages, other.damages),
        ):
            mine.update(theirs)
        self.runs.update(other.runs)
        self.violations += other.violations


class World:
    """One folder, one host, and what is done there."""

    def __init__(self, folder: Path, zygote: Zygote, seed: int, tally: Tally) -> None:
        """Prepare; nothing is done yet."""
        self.rng = random.Random(seed)  # noqa: S311  # a campaign's
        self.tally = tally
        self.host = Host(folder, zygote, limits={"CHECKPOINT_SECONDS": 0.0})
        self.size = self.rng.choice(_SIZES)
        self.states: dict[str, bytes] = {}

    # Commands.

    def require(self, kept: bool, text: str) -> None:
        """Check a promise."""
        if not kept:
            raise BrokenError(text)

    def counted(self, ended: Ended, words: object) -> Ended:
        """Count an end; none may be a bug."""
        self.tally.runs[ended.status] += 1
        fine = ended.status != 1 and "Traceback" not in ended.err
        self.require(fine, f"{words} ended with {ended.status}: {ended.err[-2000:]}")
        return ended

    def run(self, *words: str | Path) -> Ended:
        """Run a command that nobody disturbs."""
        return self.counted(self.host.run(*words), words)

    def disturbed(self, processes: Sequence[Process]) -> list[Ended]:
        """Wait for processes, of which one may be killed meanwhile."""
        timer = None
        if self.rng.random() < 0.75:
            victim, number = self.rng.choice(processes), self.rng.choice(_KILLS)
            delay = self.rng.choice((0.02, 0.08, 0.25)) * self.rng.random() + 0.01
            timer = threading.Timer(delay, self._kill, (victim, number))
            timer.start()
        ends = [process.wait() for process in processes]
        if timer is not None:
            timer.cancel()
            timer.join()
        return ends

    def _kill(self, victim: Process, number: signal.Signals) -> None:
        if victim.ended is None and victim.state() not in {"", "Z"}:
            with contextlib.suppress(ProcessLookupError):
                victim.signal(number)
                self.tally.kills[number.name] += 1

    def until_done(
        self, start: Callable[[], Sequence[Process]], check: Callable[[], None], words: object
    ) -> None:
        """Run the same command again and again, disturbed, until it has done its work."""
        for _ in range(self.rng.randrange(_DISTURBED)):
            ends = [self.counted(end, words) for end in self.disturbed(start())]
            check()
            if all(end.status == 0 for end in ends):
                return
        for _ in range(3):  # what a killed far end holds, it holds until it notices
            ends = [self.counted(process.wait(), words) for process in start()]
            check()
            if all(end.status == 0 for end in ends):
                return
            time.sleep(0.5)
        raise BrokenError(
            f"{words} does not finish: {[(end.status, end.err[-600:]) for end in ends]}"
        )

    # Disks.

    def disks(self, count: int) -> Iterator[tuple[Path, str, list[str | Path]]]:
        """Give states of a disk, one after the other: its file, its name, and what `send` needs."""
        before: Path | None = None
        for number in range(count):
            seed = self.rng.randrange(1 << 30)
            name = f"g{number}"
            path = self.host.folder / f"disk{number}"
            old = before.read_bytes() if before is not None else b""
            self.states[name] = altered(old, seed) if old else content(self.size, seed)
            path.write_bytes(self.states[name])
            words: list[str | Path] = ["--goal", name]
            if before is not None:
                listed = self.host.list_changes(f"list{number}", path, before)
                words += ["--base", f"g{number - 1}", "--extents", listed]
            yield path, name, words
            before = path

    def compress(self) -> list[str | Path]:
        """Return a way to pack."""
        return ["--compress", self.rng.choice(("none", "auto", "zstd:3"))]

    # Targets.

    def to_a_target(self) -> None:
        """Send a disk and its increments onto a target, over one of the transports."""
        way = self.rng.choice((self._locally, self._piped, self._in_a_session))
        mode = "direct" if way == self._locally else self.rng.choice(("direct", "undo", "stage"))
        self.tally.worlds[f"{way.__name__.removeprefix('_').replace('_', ' ')}, {mode}"] += 1
        target = self.host.blank("target", self.size)
        far = way == self._in_a_session

        def status() -> dict[str, object]:
            if far:
                return {"token": "", "staged": "", "id": None} | far_status(self.host, target)
            with contextlib.suppress(Exception):
                return self.host.status(target)
            return {"state": "unknown", "id": None, "token": "", "staged": ""}

        def check() -> None:
            now = status()
            if now["state"] == "clean":
                name = str(now["id"])
                self.require(
                    target.read_bytes() == self.states[name], f"CLEAN({name}) holds something else"
                )

        for disk, name, words in self.disks(self.rng.randrange(1, 4)):
            packing = [] if way == self._locally else self.compress()
            start = way(disk, target, [*words, *packing], mode, status)
            self.until_done(start, check, (way.__name__, mode, name))
            now = status()
            self.require((now["state"], now["id"]) == ("clean", name), f"0, but {now}")
            check()
            if mode == "undo" and not far and name != "g0" and self.rng.random() < 0.4:
                self._undone(target, name)
                self.until_done(start, check, (way.__name__, "after undo", name))

    def _undone(self, target: Path, name: str) -> None:
        before = f"g{int(name[1:]) - 1}"

        def check() -> None:
            return

        self.until_done(lambda: [self.host.start(["undo", target])], check, ("undo", name))
        self.require(target.read_bytes() == self.states[before], f"undo of {name} is not {before}")

    def _locally(
        self, disk: Path, target: Path, words: Words, _mode: str, _status: object
    ) -> Callable[[], Sequence[Process]]:
        return lambda: [self.host.start(["send", disk, target, *words])]

    def _piped(
        self,
        disk: Path,
        target: Path,
        words: Words,
        mode: str,
        status: Callable[[], dict[str, object]],
    ) -> Callable[[], Sequence[Process]]:
        def start() -> Sequence[Process]:
            now = status()
            if now["staged"]:
                return [self.host.start(["apply", target])]
            sending = [disk, *words]
            if now["token"]:
                kept = words[words.index("--extents") :] if "--extents" in words else ()
                sending = [disk, "--resume", str(now["token"]), *kept]
            return self.host.start_pipe(sending, [target, "--apply", mode])

        return start

    def _in_a_session(
        self, disk: Path, target: Path, words: Words, mode: str, _status: object
    ) -> Callable[[], Sequence[Process]]:
        way = ["--rsh", "sh -c {command}", "--remote-command", far_command(self.host)]
        more = ["--apply", mode, "--retry", "1"]
        return lambda: [self.host.start(["send", disk, f"lab:{target}", *words, *way, *more])]

    # Stores.

    def to_a_store(self) -> None:
        """Save points while others prune and compact, all of them killed at times."""
        self.tally.worlds["store, with prune and compact beside it"] += 1
        place = f"dir:{self.host.folder / 'store'}"
        self.run("store", "init", place)
        done = threading.Event()
        failures: list[BaseException] = []

        def upkeep(seed: int) -> None:
            rng = random.Random(seed)  # noqa: S311  # a campaign's
            prune = ["store", "prune", f"{place}/vm", "--keep", "last=2", "--grace", "0"]
            try:
                while not done.is_set():
                    words = rng.choice((prune, ["store", "compact", f"{place}/vm"]))
                    process = self.host.start(words)
                    if rng.random() < 0.4:
                        done.wait(0.15 * rng.random())
                        self._kill(process, signal.SIGKILL)
                    self.counted(process.wait(), words)
            except BaseException as error:  # noqa: BLE001  # told by the world
                failures.append(error)

        beside = threading.Thread(target=upkeep, args=(self.rng.randrange(1 << 30),))
        beside.start()
        try:
            for disk, name, words in self.disks(self.rng.randrange(2, 6)):
                sending = ["send", disk, f"{place}/vm", *words, *self.compress()]
                start = self._starting(sending)
                self.until_done(start, lambda: None, ("send", name))
                self._points(place, {name})
        finally:
            done.set()
            beside.join()
        if failures:
            raise failures[0]
        self._points(place, {name})
        checked = self.run("store", "verify", place)
        self.require(checked.status == 0, f"verify: {checked.err[-2000:]}")

    def _starting(self, words: Words) -> Callable[[], Sequence[Process]]:
        return lambda: [self.host.start(words)]

    def _points(self, place: str, needed: set[str]) -> None:
        """Restore what there is; what was pruned meanwhile is no failure, and no lie."""
        listed = self.run("points", f"{place}/vm", "--json")
        found = [json.loads(line)["state"] for line in listed.out.splitlines()]
        ours = {state for state in found if state in self.states}
        self.require(needed <= ours, f"{needed} was saved, and there are {found}")
        for state in ours:
            self._restored(place, state, sound=state in needed)

    def _restored(self, place: str, state: str, *, sound: bool) -> int:
        copy = self.host.folder / "copy"
        copy.unlink(missing_ok=True)
        ended = self.run("restore", f"{place}/vm@{state}", copy, "--create")
        if ended.status == 0:
            self.require(copy.read_bytes() == self.states[state], f"{state} came back as another")
        elif sound:
            raise BrokenError(f"{state} does not come back: {ended.status} {ended.err[-800:]}")
        return ended.status

    def with_damage(self) -> None:
        """Damage one object of a store, in whatever way; what comes back is right, or refused."""
        self.tally.worlds["store, damaged"] += 1
        store, twin = self.host.folder / "store", self.host.folder / "twin"
        place = f"dir:{store}"
        self.run("store", "init", place)
        for disk, _, words in self.disks(3):
            saved = self.run("send", disk, f"{place}/vm", *words, *self.compress())
            self.require(saved.status == 0, saved.err)
        shutil.copytree(store, twin)
        files = sorted(path for path in store.rglob("*") if path.is_file())
        way = self._damage(self.rng.choice(files), files)
        self.tally.damages[way] += 1
        verified = self.run("store", "verify", place)
        statuses = [self._restored(place, state, sound=False) for state in self.states]
        said = {verified.status, *statuses}
        self.require(said <= _SAID, f"{way}: {said}")
        if verified.status == 0:
            self.require(set(statuses) == {0}, f"{way}: verify finds nothing, restore {statuses}")
        repaired = self.run("store", "repair", place, "--from", f"dir:{twin}")
        if repaired.status == 0:
            again = self.run("store", "verify", place)
            # Of what says that it is a store, or lies in its place, no copy is taken.
            self.require(again.status in {0, 19}, f"{way}: repaired, and {again.err[-800:]}")
            for state in self.states:
                self._restored(place, state, sound=True)

    def _damage(self, path: Path, files: Sequence[Path]) -> str:
        data = bytearray(path.read_bytes())
        ways = ("flip", "cut", "remove", "swap", "grow", "link", "folder", "pipe", "zeros")
        way = self.rng.choice(ways)
        match way:
            case "flip" if data:
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
                path.write_bytes(data)
            case "cut" if data:
                path.write_bytes(data[: self.rng.randrange(len(data))])
            case "grow":
                path.write_bytes(data + b"\0" * self.rng.randrange(1, 5000))
            case "zeros":
                path.write_bytes(bytes(len(data)))
            case "swap":
                alike = [each for each in files if each.suffix == path.suffix and each != path]
                path.write_bytes(self.rng.choice(alike or [path]).read_bytes())
            case _:
                path.unlink()
        if way == "link":
            path.symlink_to(self.rng.choice(files))
        elif way == "folder":
            path.mkdir()
        elif way == "pipe":
            os.mkfifo(path)
        return f"{way} of {path.parent.name if path.parent.name != 'bs1' else path.name}"


KINDS = (World.to_a_target, World.to_a_target, World.to_a_store, World.with_damage)


def campaign(folder: Path, first: int, until: Callable[[int], bool]) -> Tally:
    """Make worlds, one after the other.

    Args:
        folder: Where they lie; each is removed unless something was broken in it.
        first: The first seed.
        until: Told how many there were; says whether to end.
    """
    tally, zygote = Tally(), Zygote()
    try:
        for number in itertools.count():
            if until(number):
                return tally
            seed = first + number
            home = folder / str(seed)
            home.mkdir()
            world = World(home, zygote, seed, tally)
            try:
                KINDS[seed % len(KINDS)](world)
            except BrokenError as error:
                tally.violations.append(f"world {seed}, in {home}: {error}")
            finally:
                world.host.close()
            if not tally.violations or str(seed) not in tally.violations[-1]:
                shutil.rmtree(home, ignore_errors=True)
    finally:
        zygote.close()
    return tally
