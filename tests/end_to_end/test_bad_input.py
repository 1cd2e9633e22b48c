"""Whatever comes in, it is refused with its own status and words, and never costs a target."""

import asyncio
import gzip
import os
import pty
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3

from blockstream.errors import BlockstreamError, NotFoundError
from blockstream.pipeline.workers import Workers
from blockstream.run import Run
from blockstream.transfers.receive import receive
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream_protocol import (
    EXTENTS_BYTES,
    HEAD_BYTES,
    MAGIC,
    Codec,
    Frame,
    FrameType,
    Hello,
    Open,
    Plan,
    control_frame,
    encode,
    encode_head,
)
from tests.devices import loop_device, tmpfs
from tests.end_to_end.hosts import (
    COMMAND,
    ROOT,
    Host,
    Words,
    Zygote,
    content,
    count_messages,
    wait_until,
)
from tests.rotation import share

SIZE = 20_480


@pytest.fixture
def stream(eager: Host) -> bytes:
    """A small stream of a full copy."""
    return eager.stream(eager.disk("disk", SIZE), "--goal", "A", "--compress", "zstd")


@pytest.fixture
def target(eager: Host) -> Path:
    """A target that holds something else."""
    path = eager.folder / "target"
    path.write_bytes(content(SIZE, 77))
    return path


def run_here(host: Host, target: Path, data: bytes) -> tuple[int, str]:
    """Run `recv` in this process, which takes milliseconds; return its status and message."""
    path = host.folder / "stdin"
    path.write_bytes(data)
    with path.open("rb") as file:
        request = ReceiveRequest(str(target), host.state_dir)
        try:
            asyncio.run(receive(request, file.fileno(), Run()))
        except BlockstreamError as error:
            return int(error.exit_status), str(error)
    return 0, ""


def known_state(host: Host, target: Path) -> object:
    """Return what is recorded of a target."""
    try:
        return host.status(target)["state"]
    except NotFoundError:
        return "unknown"


def check_harmless(host: Host, target: Path, data: bytes, statuses: set[int]) -> None:
    """Check the status, and that the target is as it was or says that it is not."""
    before = target.read_bytes()
    status, message = run_here(host, target, data)
    assert status in statuses, (status, message)
    assert message
    state = known_state(host, target)
    assert state in {"unknown", "dirty"}
    assert state == "dirty" or target.read_bytes() == before


@pytest.mark.slow
def test_byte_that_is_flipped_is_found(quick: Host) -> None:
    stream, target = small(quick, compress="none")
    for position in range(0, len(stream), len(stream) // 60):
        check_harmless(quick, target, flipped(stream, position), {10, 11, 12})


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_single_byte_that_is_flipped_is_found(quick: Host) -> None:
    stream, target = small(quick, compress="none")
    for position in share(range(len(stream))):
        check_harmless(quick, target, flipped(stream, position), {10, 11, 12})


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_every_single_flip_of_a_packed_stream_is_found_or_unpacks_to_the_same(quick: Host) -> None:
    stream, target = small(quick)
    before, whole = target.read_bytes(), (quick.folder / "disk").read_bytes()
    for position in share(range(len(stream))):
        status, _ = run_here(quick, target, flipped(stream, position))
        if status == 0:  # zstd has bits without a meaning; the digest is of what they unpack to
            assert target.read_bytes() == whole
            shutil.rmtree(quick.state_dir / "targets")
            target.write_bytes(before)
        else:
            assert status in {10, 11, 12}
            assert known_state(quick, target) == "dirty" or target.read_bytes() == before


@pytest.mark.slow
def test_stream_that_is_cut_is_interrupted(quick: Host) -> None:
    stream, target = small(quick)
    for length in range(0, len(stream), len(stream) // 60):
        check_harmless(quick, target, stream[:length], {11})
    assert run_here(quick, target, stream) == (0, "")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_stream_that_is_cut_at_any_byte_is_interrupted(quick: Host) -> None:
    stream, target = small(quick)
    for length in share(range(len(stream))):
        check_harmless(quick, target, stream[:length], {11})


def small(host: Host, compress: str = "zstd") -> tuple[bytes, Path]:
    """Make a stream of text, zeros and noise that is short, and a target that holds other bytes."""
    disk = host.folder / "disk"
    disk.write_bytes(b"a line of text\n" * 50 + bytes(4096) + NOISE[:500] + bytes(30))
    target = host.folder / "target"
    target.write_bytes(content(disk.stat().st_size, 77))
    return host.stream(disk, "--goal", "A", "--compress", compress), target


def flipped(stream: bytes, position: int) -> bytes:
    """Return the stream with one bit changed."""
    return (
        stream[:position] + bytes([stream[position] ^ 1 << position % 8]) + stream[position + 1 :]
    )


def test_nothing_is_read_behind_a_message_that_was_refused(
    quick: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, target = small(quick)
    checkpoint = stream.index(b'{"chain"')
    assert count_messages(stream[: checkpoint - HEAD_BYTES], FrameType.EXTENTS) == 1
    fail = Workers.fail

    def hesitate(self: Workers, error: BaseException) -> None:
        time.sleep(0.1)  # time enough for another thread to read on
        fail(self, error)

    monkeypatch.setattr(Workers, "fail", hesitate)
    status, message = run_here(quick, target, flipped(stream, checkpoint + 20))
    assert (status, "CHECKPOINT" in message) == (12, True), (status, message)
    assert known_state(quick, target) == "dirty"


@pytest.mark.parametrize("tail", [b"\0", b"x" * 200, MAGIC], ids=["zero", "text", "magic"])
def test_bytes_after_the_end_are_refused(
    eager: Host, stream: bytes, target: Path, tail: bytes
) -> None:
    check_harmless(eager, target, stream + tail, {12})


def framed(*frames: Frame, magic: bytes = MAGIC) -> bytes:
    """Return a stream of these frames."""
    return magic + b"".join(map(encode, frames))


def opening(size: int = SIZE) -> Open:
    """Return the opening of a full copy."""
    plan = Plan.whole(size)
    return Open(size, "", "A", plan.digest(blake3).hex(), 1, size)


HELLO = control_frame(Hello(), blake3)
BEGUN = (HELLO, control_frame(opening(), blake3))
NOISE = random.Random(5).randbytes(5000)  # noqa: S311  # the same each time


def extents(raw: bytes, *, codec: Codec = Codec.NONE, raw_len: int | None = None) -> Frame:
    """Return a data frame whose digest is right, whatever its content."""
    payload = zstandard.compress(raw) if codec is Codec.ZSTD else raw
    length = len(raw) if raw_len is None else raw_len
    return Frame(FrameType.EXTENTS, codec, length, blake3(raw).digest(), payload)


def table(*rows: tuple[int, int, int], data: bytes = b"") -> bytes:
    """Return the payload of a data frame."""
    return struct.pack("<I", len(rows)) + b"".join(struct.pack("<QQI", *row) for row in rows) + data


def head(raw_len: int, wire_len: int) -> bytes:
    """Return the head of a data frame that claims these lengths."""
    return encode_head(FrameType.EXTENTS, Codec.NONE, raw_len, wire_len, bytes(32))


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 11, "the input is empty"),
    "magic alone": (MAGIC, 11, ""),
    "noise": (NOISE, 12, ""),
    "gzip": (gzip.compress(NOISE), 12, ""),
    "text": (b"ssh: connect to host: connection refused\n" * 9, 12, ""),
    "zeros": (bytes(5000), 12, ""),
    "through a text pipe": (framed(*BEGUN).replace(b"\r\n", b"\n"), 12, ""),
    "no opening": (framed(HELLO, HELLO), 12, ""),
    "version 2": (framed(control_frame(Hello(version=2), blake3)), 10, "version 2"),
    "other digest": (framed(control_frame(Hello(digest="md5"), blake3)), 10, "md5"),
    "length of 4 GiB": (framed(*BEGUN) + head(2**32 - 1, 2**32 - 1), 12, ""),
    "length beyond the limit": (framed(*BEGUN) + head(EXTENTS_BYTES + 1, 100), 12, ""),
    "table of 4 billion rows": (framed(*BEGUN, extents(b"\xff" * 4)), 12, ""),
    "no rows": (framed(*BEGUN, extents(table())), 12, ""),
    "offset beyond the end": (framed(*BEGUN, extents(table((SIZE, 512, 2)))), 12, ""),
    "offset of 2^64 - 512": (framed(*BEGUN, extents(table((2**64 - 512, 1024, 2)))), 12, ""),
    "length of 2^63": (framed(*BEGUN, extents(table((0, 2**63, 2)))), 12, ""),
    "length of 0": (framed(*BEGUN, extents(table((0, 0, 2)))), 12, ""),
    "unaligned": (framed(*BEGUN, extents(table((1, 512, 2)))), 12, "aligned"),
    "overlap": (framed(*BEGUN, extents(table((0, 1024, 2), (512, 512, 2)))), 12, ""),
    "unknown kind": (framed(*BEGUN, extents(table((0, 512, 3)))), 12, ""),
    "data is missing": (framed(*BEGUN, extents(table((0, 1024, 1), data=b"x" * 512))), 12, ""),
    "too much data": (framed(*BEGUN, extents(table((0, 512, 1), data=b"x" * 513))), 12, ""),
    "source too large": (framed(HELLO, control_frame(opening(SIZE + 512), blake3)), 10, "only"),
    "source too small": (framed(HELLO, control_frame(opening(SIZE - 512), blake3)), 10, "only"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_stream_is_refused(eager: Host, target: Path, name: str) -> None:
    data, status, words = HOSTILE[name]
    before = target.read_bytes()
    got, message = run_here(eager, target, data)
    assert (got, words in message) == (status, True), (got, message)
    assert target.read_bytes() == before


@pytest.mark.slow
def test_a_frame_that_is_refused_is_the_reason_however_threads_meet(
    eager: Host, target: Path
) -> None:
    data, status, _ = HOSTILE["overlap"]  # and then the stream ends too early
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(150):
            got, message = run_here(eager, target, data)
            assert (got, "comes after" in message) == (status, True), message
    finally:
        sys.setswitchinterval(usual)


@pytest.mark.slow
@pytest.mark.parametrize("lies", [True, False], ids=["lying size", "true size"])
def test_decompression_bomb_costs_no_memory(eager: Host, target: Path, lies: bool) -> None:
    size = 4 << 30
    packer = zstandard.ZstdCompressor(level=3).compressobj(-1 if lies else size)
    parts = [packer.compress(bytes(1 << 20)) for _ in range(400 if lies else 4096)]
    payload = b"".join([*parts, packer.flush()])
    frame = Frame(FrameType.EXTENTS, Codec.ZSTD, EXTENTS_BYTES, bytes(32), payload)
    before = target.read_bytes()
    usual = eager.run("recv", target, data=b"").peak
    ended = eager.run("recv", target, data=framed(*BEGUN, frame))
    assert ended.status == 12, ended.err
    assert ended.peak < usual + 40_000
    assert target.read_bytes() == before


# What a target may not be.


def refused(host: Host, words: Words, *parts: str, data: bytes | None = None) -> None:
    """Check that a command is refused with these words."""
    ended = host.run(*words, data=data)
    assert ended.status == 10, ended
    for part in (*parts, "nothing was"):
        assert part in ended.err, ended.err


def test_missing_device_is_refused_and_never_made(eager: Host, stream: bytes) -> None:
    path = Path("/dev/blockstream_test_of_a_missing_name")
    refused(eager, ["recv", path], "does not exist", data=stream)
    refused(eager, ["recv", "--create", path], "check the name", data=stream)
    refused(eager, ["send", eager.folder / "disk", path, "--create"], "check the name")
    assert not path.exists()


@pytest.mark.slow
def test_things_that_are_no_disks_are_refused(eager: Host, stream: bytes) -> None:
    fifo = eager.folder / "fifo"
    os.mkfifo(fifo)
    for path in (eager.folder, fifo, Path("/dev/null"), Path("/dev/zero"), eager.folder / "no"):
        ended = eager.run("recv", path, data=stream)
        assert (ended.status, "nothing was written" in ended.err) == (10, True), ended
        sent = eager.run("send", path)
        assert sent.status in {14, 17}, sent
        assert (sent.out, "nothing was sent" in sent.err) == (b"", True)
        read = eager.run("inspect", path) if path != fifo else None
        assert read is None or read.status in {11, 12, 17}, read
    assert not (eager.folder / "no").exists()


def test_existing_file_is_not_made_again(eager: Host, stream: bytes, target: Path) -> None:
    before = target.read_bytes()
    refused(eager, ["recv", "--create", target], "exists already", data=stream)
    refused(eager, ["send", eager.folder / "disk", target, "--create"], "exists already")
    hole = eager.blank("hole", SIZE)
    refused(eager, ["recv", "--create", hole], "exists already", data=stream)
    (eager.folder / "link").symlink_to(eager.folder / "nowhere")
    refused(eager, ["recv", "--create", eager.folder / "link"], "exists already", data=stream)
    assert target.read_bytes() == before


@pytest.mark.slow
def test_file_that_was_made_for_nothing_is_taken_away(eager: Host, stream: bytes) -> None:
    path = eager.folder / "made"
    for data in (stream[:150], framed(*BEGUN[:1]), b""):
        assert eager.run("recv", "--create", path, data=data).status in {10, 11}
        assert not path.exists()
    changes = eager.list_everything("everything", SIZE)
    words: Words = [eager.folder / "disk", "--base", "A", "--goal", "B", "--extents", changes]
    assert eager.run("recv", "--create", path, data=eager.stream(*words)).status == 10
    assert not path.exists()
    assert eager.run("send", *words, path, "--create").status == 10
    assert not path.exists()


def test_target_that_is_the_source_is_refused(eager: Host) -> None:
    disk = eager.disk("disk", SIZE)
    os.link(disk, eager.folder / "other name")
    (eager.folder / "link").symlink_to(disk)
    refused(eager, ["send", disk, eager.folder / "link"], "symbolic link")
    for name in ("disk", "other name"):
        refused(eager, ["send", disk, eager.folder / name], "is the source itself")
        forced: Words = ["send", disk, eager.folder / name, "--force-in-use"]
        refused(eager, forced, "is the source itself")
    assert disk.read_bytes() == content(SIZE, 1)


@pytest.mark.root
@pytest.mark.slow
def test_target_that_lies_on_the_source_is_refused(eager: Host) -> None:
    disk = eager.disk("disk", 1 << 20)
    with loop_device(disk) as device:
        refused(eager, ["send", device, disk], "is the source itself")
        refused(eager, ["send", disk, device], "is the source itself")
        refused(eager, ["send", disk, device, "--force-in-use"], "is the source itself")
        stream = eager.stream(disk)
        refused(eager, ["recv", disk], "backs /dev/loop", data=stream)
    assert disk.read_bytes() == content(1 << 20, 1)


@pytest.mark.root
@pytest.mark.slow
def test_mounted_target_is_refused(eager: Host) -> None:
    image, place = eager.blank("image", 2 << 20), eager.folder / "place"
    place.mkdir()
    stream = eager.stream(eager.disk("disk", 2 << 20))
    subprocess.run(["mkfs.ext4", "-q", image], check=True)  # noqa: S603, S607
    with loop_device(image) as device:
        subprocess.run(["mount", device, place], check=True)  # noqa: S603, S607
        try:
            (place / "file").write_text("precious")
            refused(eager, ["recv", device], f"is mounted on {place}", data=stream)
            assert (place / "file").read_text() == "precious"
        finally:
            subprocess.run(["umount", place], check=True)  # noqa: S603, S607


@pytest.mark.root
@pytest.mark.slow
def test_swap_is_refused(eager: Host) -> None:
    image = eager.disk("image", 2 << 20)
    stream = eager.stream(image)
    with loop_device(image) as device:
        subprocess.run(["mkswap", "-q", device], check=False, capture_output=True)  # noqa: S603, S607
        if subprocess.run(["swapon", device], check=False, capture_output=True).returncode:  # noqa: S603, S607
            pytest.skip("this machine takes no swap")
        try:
            refused(eager, ["recv", device], "is swap", data=stream)
        finally:
            subprocess.run(["swapoff", device], check=True)  # noqa: S603, S607


@pytest.mark.root
@pytest.mark.slow
def test_device_is_a_target_and_a_source_like_any_other(eager: Host) -> None:
    disk, image = eager.disk("disk", 1 << 20), eager.blank("image", 1 << 20)
    with loop_device(image) as device:
        assert eager.pipe([disk, "--goal", "A"], [device, "--verify"]).statuses == (0, 0)
        assert Path(device).read_bytes() == disk.read_bytes()
        back = eager.run("recv", "--create", eager.folder / "back", data=eager.stream(device))
        assert back.status == 0
    assert (eager.folder / "back").read_bytes() == disk.read_bytes()


def test_second_receiver_is_told_who_is_first(eager: Host, stream: bytes, target: Path) -> None:
    reading, writing = os.pipe()
    first = eager.start(["recv", target], stdin=reading)
    os.close(reading)
    os.write(writing, stream[: len(stream) - 100])
    wait_until(lambda: known_state(eager, target) == "dirty")
    busy: list[Words] = [
        ["recv", target],
        ["undo", target],
        ["abort", target],
        ["adopt", target, "--id", "X"],
    ]
    for words in busy:
        ended = eager.run(*words, data=stream)
        assert ended.status == 10, ended
        assert f"process {first.pid}" in ended.err
    os.write(writing, stream[len(stream) - 100 :])
    os.close(writing)
    assert first.wait().status == 0
    assert target.read_bytes() == content(SIZE, 1)


# The places around.


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("options", ["size=16k", "size=4k", "ro"])
def test_state_directory_without_room_is_refused(
    eager: Host, target: Path, stream: bytes, options: str
) -> None:
    before = target.read_bytes()
    eager.state_dir.mkdir(exist_ok=True)
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", options, "none", eager.state_dir]
    subprocess.run(mount, check=True)  # noqa: S603
    try:
        refused(eager, ["recv", target], "--state-dir", data=stream)
        sent = eager.run("send", eager.folder / "disk")
        assert options != "ro" or (sent.status, sent.out) == (10, b""), sent
    finally:
        subprocess.run(["umount", eager.state_dir], check=True)  # noqa: S603, S607
    assert target.read_bytes() == before


def test_state_directory_that_is_a_file_is_refused(eager: Host, target: Path) -> None:
    eager.state_dir.write_text("a file")
    before = target.read_bytes()
    refused(eager, ["recv", target], "--state-dir", data=framed(*BEGUN))
    assert eager.run("send", target, "--goal", "A").status == 10
    assert target.read_bytes() == before


@pytest.mark.slow
def test_terminals_take_and_give_no_stream(eager: Host, target: Path) -> None:
    ours, theirs = pty.openpty()
    before = target.read_bytes()
    send = eager.start(["send", target], stdout=theirs).wait()
    recv = eager.start(["recv", target], stdin=theirs).wait()
    inspect = eager.start(["inspect"], stdin=theirs).wait()
    os.close(ours)
    os.close(theirs)
    for ended in (send, recv, inspect):
        assert (ended.status, "is a terminal" in ended.err) == (2, True), ended
    assert target.read_bytes() == before


@pytest.mark.parametrize("words", [["send"], ["extents"], ["status"], ["inspect"]], ids=" ".join)
def test_full_disk_behind_standard_output_is_no_success(
    eager: Host, stream: bytes, words: list[str]
) -> None:
    disk = eager.folder / "disk"
    (eager.folder / "stored").write_bytes(stream)
    given = {"inspect": [eager.folder / "stored"], "status": []}.get(words[0], [disk])
    full = os.open("/dev/full", os.O_WRONLY)
    ended = eager.start([*words, *given], stdout=full).wait()
    os.close(full)
    assert (ended.status, "No space left on device" in ended.err) == (11, True), ended


@pytest.mark.slow
@pytest.mark.parametrize("words", [["send"], ["extents"]], ids=" ".join)
def test_reader_that_leaves_is_no_success(eager: Host, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = eager.start([*words, eager.disk("disk", 3 << 20)], stdout=writing).wait()
    os.close(writing)
    assert ended.status == 11, ended


SHELL = [
    ("send {disk} >&-", 11),
    ("recv {target} <&-", 11),
    ("recv {target} 2>&- < {stored}", 0),
    ("recv {target} >&- < {stored}", 0),
    ("recv {target} <&- >&- 2>&-", 11),
    ("inspect {stored} >&-", 11),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "status"), SHELL)
def test_closed_descriptors_never_become_a_disk(
    eager: Host, stream: bytes, target: Path, line: str, status: int
) -> None:
    before = target.read_bytes()
    stored = eager.folder / "stored"
    stored.write_bytes(stream)
    words = line.format(disk=eager.folder / "disk", target=target, stored=stored)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'protocol'}",
        "BLOCKSTREAM_STATE_DIR": str(eager.state_dir),
    }
    command = f"exec {' '.join(COMMAND)} {words}"
    ended = subprocess.run(command, shell=True, env=environment, check=False, capture_output=True)  # noqa: S602
    assert ended.returncode == status, ended
    assert b"Traceback" not in ended.stderr
    assert target.read_bytes() == (before if status else content(SIZE, 1))
    assert stored.read_bytes() == stream
    assert (eager.folder / "disk").read_bytes() == content(SIZE, 1)


def test_target_that_takes_no_more_is_dirty_and_can_be_continued(eager: Host) -> None:
    disk, target = eager.disk("disk", 3 << 20), eager.blank("target", 3 << 20)
    eager.file_limit = 1 << 20
    ended = eager.run("recv", target, data=eager.stream(disk, "--goal", "A"))
    assert ended.status == 13, ended.err
    for part in ("at offset", "File too large", "marked DIRTY", "half-written", "--resume bsr1-"):
        assert part in ended.err
    assert eager.status(target)["state"] == "dirty"
    eager.file_limit = 0
    assert eager.pipe([disk, "--goal", "A"], [target]).statuses == (0, 0)
    assert target.read_bytes() == disk.read_bytes()


@pytest.mark.root
@pytest.mark.slow
def test_full_disk_behind_a_sparse_target_is_named(eager: Host) -> None:
    disk = eager.folder / "noise"
    disk.write_bytes(random.Random(1).randbytes(3 << 20))  # noqa: S311
    stream = eager.stream(disk)
    with tmpfs(eager.folder / "small", "1m") as place:
        ended = eager.run("recv", "--create", place / "target", data=stream)
        assert ended.status == 13, ended.err
        assert "No space left on device (is a thin pool or file system full?)" in ended.err
        assert eager.status(place / "target")["state"] == "dirty"


# Sources.


@pytest.mark.slow
@pytest.mark.parametrize("change", [b"x", b""], ids=["written", "shortened"])
def test_source_that_changes_meanwhile_is_never_sent_whole(eager: Host, change: bytes) -> None:
    disk, target = eager.disk("disk", 3 << 20), eager.blank("target", 3 << 20)
    sender, receiver = eager.start_pipe([disk, "--bwlimit", "2M"], [target])
    wait_until(lambda: any(target.read_bytes()))
    if change:
        with disk.open("r+b") as file:
            file.write(change)
    else:
        os.truncate(disk, 1000)
    sent, received = sender.wait(), receiver.wait()
    assert (sent.status, received.status) == (14, 11), (sent, received)
    assert "END was not sent" in sent.err or "has become shorter" in sent.err
    assert "the sender gave up" in received.err
    assert eager.status(target)["state"] == "dirty"


@pytest.mark.root
@pytest.mark.slow
def test_unreadable_source_sends_nothing(zygote: Zygote) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        nobody = Host(folder, zygote, uid=65534)
        disk = nobody.disk("disk", SIZE)
        disk.chmod(0)
        ended = nobody.run("send", disk)
        assert (ended.status, ended.out) == (14, b""), ended
        assert "cannot be opened: Permission denied; nothing was sent" in ended.err
        disk.chmod(0o444)
        refused(nobody, ["recv", disk], "Permission denied", data=b"")


@pytest.mark.parametrize("options", [[], ["--force-in-use"], ["--apply", "stage"]], ids=str)
def test_a_disk_is_not_streamed_onto_itself(eager: Host, options: list[str]) -> None:
    disk = eager.disk("disk", 1 << 20)
    before = disk.read_bytes()
    ended = eager.pipe([disk], [*options, disk])
    assert ended.recv.status == 10
    assert "the source itself" in ended.recv.err
    assert disk.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_time_of_the_start_is_no_traceback(
    tmp_path: Path, number: signal.Signals
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    words = [sys.executable, "-m", "blockstream", "extents", str(disk), "--since", str(disk)]
    for milliseconds in range(0, 400, 25):
        started = subprocess.Popen(  # noqa: S603  # our own
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(milliseconds / 1000)
        started.send_signal(number)
        said = started.communicate(timeout=60)[1]
        # Before our first line it is Python's own.
        assert "Traceback" not in said or "/blockstream/" not in said, said
        assert "bug" not in said, said
        assert "never awaited" not in said, said
        assert started.returncode in {0, 1, 11, -number}, (started.returncode, said)
