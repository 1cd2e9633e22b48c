"""What the benchmarks share: contenders that run in turn on the same data, and that data."""

import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
RUN = 16 * MIB
LAUNCHED: list["subprocess.Popen[str]"] = []
PYTHON = [sys.executable, "-m", "blockstream"]


@dataclass
class Contender:
    """One way to do a job.

    Attributes:
        name: What it is called in the table.
        command: A bash command line; `{out}` is the target.
        seconds: Wall time of each run.
        cpu: Processor seconds of each run, all processes.
        busy: The same of the whole machine: daemons that did a part of it are no children.
        rss: Largest single process of any run, in KiB.
    """

    name: str
    command: str
    before: Callable[[], None] = lambda: None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    rss: int = 0

    @property
    def median(self) -> float:
        """Median wall time."""
        return statistics.median(self.seconds)


def alternate(
    contenders: list[Contender], runs: int, what: str, check: Callable[[], None] | None = None
) -> None:
    """Run them in turn, so that a drift of the machine meets all of them."""
    for run in range(runs):
        for one in contenders:
            one.before()
            measured(one)
            if check is not None and run == 0:
                check()
    for one in contenders:
        note(
            what,
            name=one.name,
            seconds=[round(s, 3) for s in one.seconds],
            cpu_seconds=[round(s, 2) for s in one.cpu],
            machine_cpu_seconds=[round(s, 2) for s in one.busy],
            peak_rss_kib=one.rss,
        )


# A process that is forked from a large one has its memory for a peak; this one is small.
LAUNCHER = """
import json, os, subprocess, sys, tempfile, time
def busy():
    words = list(map(int, open("/proc/stat").readline().split()[1:9]))
    return (sum(words) - words[3] - words[4]) / os.sysconf("SC_CLK_TCK")
for line in sys.stdin:
    with tempfile.TemporaryFile() as errors:
        before, began = busy(), time.monotonic()
        command = ["bash", "-o", "pipefail", "-c", json.loads(line)]
        process = subprocess.Popen(command, stderr=errors)
        # The usage of bash holds that of everything it waited for.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        print(json.dumps({
            "status": process.returncode,
            "errors": errors.read().decode(errors="replace"),
            "seconds": seconds,
            "cpu": usage.ru_utime + usage.ru_stime,
            "busy": busy() - before,
            "rss": usage.ru_maxrss,
        }), flush=True)
"""


def launcher() -> subprocess.Popen[str]:
    """Start the process that starts all contenders."""
    return subprocess.Popen(
        [sys.executable, "-S", "-c", LAUNCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def measured(one: Contender) -> None:
    """Run a command line once; time, and what all its processes used."""
    stdin, stdout = LAUNCHED[0].stdin, LAUNCHED[0].stdout
    if stdin is None or stdout is None:
        sys.exit("the launcher has no pipes")
    stdin.write(json.dumps(one.command) + "\n")
    stdin.flush()
    result = json.loads(stdout.readline())
    if result["status"]:
        sys.exit(f"{one.command}\n{result['errors']}")
    one.seconds.append(result["seconds"])
    one.cpu.append(result["cpu"])
    one.busy.append(result["busy"])
    one.rss = max(one.rss, result["rss"])


def table(rows: list[tuple[str, float, float, str]]) -> None:
    """Print what was reached beside what was wanted; a unit with "/s" or "at least" wants more."""
    print("\n| measure | reached | bar | |\n|---|---|---|---|")
    for what, value, bar, unit in rows:
        good = value >= bar if "/s" in unit or "at least" in unit else value <= bar
        print(f"| {what} | {value:.2f} {unit} | {bar} {unit} | {'met' if good else 'NOT MET'} |")


def same(image: Path, out: Path) -> None:
    """Fail unless two files are equal."""
    subprocess.run(["cmp", image, out], check=True)


def make_image(path: Path, size_mib: int, kinds: str = "zttr") -> None:
    """Write runs of zeros, programs and random bytes, in a fixed shuffle."""
    text = programs()
    order = list(kinds) * (size_mib * MIB // RUN // len(kinds))
    random.Random(1).shuffle(order)
    position = 0
    with path.open("wb") as file:
        for kind in order:
            if kind == "z":
                file.write(bytes(RUN))
            elif kind == "r":
                file.write(os.urandom(RUN))
            else:
                position = (position + RUN) % (len(text) - RUN)
                file.write(text[position : position + RUN])


def programs() -> bytes:
    """Return 256 MiB of this host's programs, libraries and scripts."""
    content = bytearray()
    for folder in ("/usr/lib", "/usr/bin", "/usr/share"):
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                try:
                    content += path.read_bytes()
                except OSError:
                    continue
            if len(content) > 256 * MIB:
                return bytes(content[: 256 * MIB])
    return bytes(content)


def shell(command: str) -> str:
    """Return what a command line prints."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True, text=True
    ).stdout


def void(_: object) -> None:
    """Throw a result away."""


def note(what: str, **values: object) -> None:
    """Print one JSON line with what is needed to compare runs."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    print(json.dumps({"bench": what, **values, **versions, "cores": os.cpu_count()}), flush=True)
