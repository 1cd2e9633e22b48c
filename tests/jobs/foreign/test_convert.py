"""A merged or converted stream does what its streams do one after the other, also for rbd."""

import asyncio
import gzip
import itertools
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockstream.errors import (
    BaseMismatchError,
    BlockstreamError,
    ExitStatus,
    RefusedError,
    SourceError,
    UsageError,
)
from blockstream.formats.foreign.table import by_name
from blockstream.jobs.foreign.chain import ConvertRequest, combined
from blockstream.jobs.foreign.convert import write_ours
from blockstream.jobs.foreign.options import ConvertOptions
from blockstream.jobs.target_admin import adopt
from blockstream.pipeline.compression import CompressionChoice
from blockstream.run import Run
from blockstream.transfers.receive_options import ReceiveRequest
from blockstream.transfers.write_foreign import write_foreign
from tests.end_to_end.streams import taken
from tests.foreign_streams import Change, applied, brought_onto, lvmsync, rbd_diff, thin_send

BLOCK = 512


def made(
    folder: Path, streams: Sequence[Path], to: str = "bsx", pack: int = 0, **said: object
) -> Path:
    """Make one stream of several."""
    request = ConvertRequest(
        streams=[str(each) for each in streams],
        state_dir=folder / "state",
        said=ConvertOptions(to=to, **said),  # type: ignore[arg-type]  # as each test knows
    )
    path = folder / f"made-{len(list(folder.glob('made-*')))}.{to}"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with combined(request, Run()) as found:
            if to == "bsx":
                asyncio.run(write_ours(found, CompressionChoice(pack), fd, Run()))
            else:
                extents = found.what.extents
                asyncio.run(
                    write_foreign(by_name(to), found.source, extents, found.head, fd, Run())
                )
    finally:
        os.close(fd)
    return path


def put(folder: Path, name: str, stream: bytes) -> Path:
    path = folder / name
    path.write_bytes(stream)
    return path


# Where the second range lies against the first, [8, 16): Allen's thirteen.
FIRST = (8, 16)
RELATIONS = {
    "before": (1, 4),
    "meets": (4, 8),
    "overlaps": (4, 12),
    "starts": (8, 12),
    "during": (10, 14),
    "finishes": (12, 16),
    "equals": (8, 16),
    "is started by": (8, 20),
    "contains": (4, 20),
    "is finished by": (4, 16),
    "is overlapped by": (12, 20),
    "is met by": (16, 20),
    "after": (20, 24),
}
# Blocks of the disk after the first and after the second increment.
SIZES = {"same": (32, 32), "grow": (24, 40), "shrink": (32, 10), "shrink past": (32, 18)}


def change(span: tuple[int, int], blocks: int, fill: int) -> list[Change]:
    """Return a range, cut at the end of the disk; zeros for fill 0."""
    first, last = span[0], min(span[1], blocks)
    if first >= last:
        return []
    length = (last - first) * BLOCK
    return [(first * BLOCK, length if not fill else bytes([fill]) * length)]


def resized(disk: bytes, size: int) -> bytes:
    return disk[:size].ljust(size, b"\0")


@pytest.mark.slow
@pytest.mark.needs("rbd")
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("fills", [(1, 2), (1, 0), (0, 2), (0, 0)], ids=str)
def test_merge_is_what_rbd_merge_diff_is(
    tmp_path: Path, sizes: str, fills: tuple[int, int]
) -> None:
    one, two = SIZES[sizes]
    disk = random.Random(3).randbytes(max(one, two) * BLOCK)  # noqa: S311  # the same each time
    for relation, span in RELATIONS.items():
        changes = change(FIRST, one, fills[0]), change(span, two, fills[1])
        first = put(tmp_path, "a-b", rbd_diff(changes[0], one * BLOCK, "a", "b"))
        second = put(tmp_path, "b-c", rbd_diff(changes[1], two * BLOCK, "b", "c"))
        model = applied(resized(disk, one * BLOCK), changes[0])
        model = applied(resized(model, two * BLOCK), changes[1])
        # What is not named by the diffs is the target's own, and theirs to resize.
        onto = resized(resized(disk, one * BLOCK), two * BLOCK)
        ours = made(tmp_path, [first, second], to="rbd").read_bytes()
        assert brought_onto(onto, ours) == model, relation
        theirs = tmp_path / "theirs"
        _merge_diff(first, second, theirs)
        assert brought_onto(onto, theirs.read_bytes()) == model, relation
        # And they read what we write.
        _merge_diff(put(tmp_path, "ours", ours), put(tmp_path, "empty", _nothing(two)), theirs)
        assert brought_onto(onto, theirs.read_bytes()) == model, relation


def _nothing(blocks: int) -> bytes:
    return rbd_diff([], blocks * BLOCK, "c", "d")


def _merge_diff(first: Path, second: Path, into: Path) -> None:
    into.unlink(missing_ok=True)
    command = ["rbd", "--no-config-file", "merge-diff", str(first), str(second), str(into)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # what it is for


increments = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.lists(st.tuples(st.integers(0, 39), st.integers(1, 12), st.booleans()), max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(increments, st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_chain_merges_to_what_the_model_says(
    tmp_path: Path, found: list[tuple[int, list[tuple[int, int, bool]]]], ours: bool
) -> None:
    size = 40 * BLOCK
    model = disk = random.Random(4).randbytes(size)  # noqa: S311  # the same each time
    streams = []
    fill = itertools.count(1)
    for number, (blocks, spans) in enumerate(found):
        size = blocks * BLOCK
        model, disk = resized(model, size), resized(disk, size)
        changes: list[Change] = []
        reached = 0
        for offset, length, zero in sorted(spans):
            first = max(offset, reached)
            last = min(offset + length, blocks)
            if first < last:
                reached = last
                changes += change((first, last), blocks, 0 if zero else next(fill))
        model = applied(model, changes)
        stream = put(tmp_path, f"s{number}", rbd_diff(changes, size, f"{number}", f"{number + 1}"))
        streams.append(made(tmp_path, [stream], pack=number % 2) if ours else stream)
    whole = made(tmp_path, streams)
    target = tmp_path / "target"
    target.write_bytes(disk)
    adopt(str(target), "0", tmp_path / "state", force_base=True)
    taken(ReceiveRequest(str(target), tmp_path / "state"), whole)
    assert target.read_bytes() == model


def test_a_whole_disk_and_its_increments_make_a_whole_disk(tmp_path: Path) -> None:
    first = put(tmp_path, "a", rbd_diff([(0, b"1" * 4096)], 8192, goal="a"))
    second = put(tmp_path, "b", rbd_diff([(2048, 1024)], 8192, "a", "b"))
    whole = made(tmp_path, [first, second])
    copy = tmp_path / "copy"
    taken(ReceiveRequest(str(copy), tmp_path / "state", create=True), whole)
    assert copy.read_bytes() == b"1" * 2048 + bytes(1024) + b"1" * 1024 + bytes(4096)


@pytest.mark.parametrize("ours", [False, True], ids=["rbd", "ours"])
def test_what_a_disk_grows_by_after_it_shrank_is_zeros(tmp_path: Path, ours: bool) -> None:
    steps: list[tuple[list[Change], int]] = [([(8192, b"x" * 4096)], 16_384), ([], 4096)]
    streams = []
    for number, (changes, size) in enumerate([*steps, ([], 16_384)]):
        stream = put(tmp_path, f"s{number}", rbd_diff(changes, size, f"{number}", f"{number + 1}"))
        streams.append(made(tmp_path, [stream]) if ours else stream)
    found = made(tmp_path, streams, to="rbd").read_bytes()
    assert brought_onto(b"n" * 16_384, found) == b"n" * 4096 + bytes(12_288)


def test_what_does_not_follow_is_refused(tmp_path: Path) -> None:
    first = put(tmp_path, "a", rbd_diff([(0, 512)], 8192, "a", "b"))
    whole = put(tmp_path, "w", rbd_diff([(0, 512)], 8192, goal="b"))
    with pytest.raises(BaseMismatchError, match=r"'a'.*'b'.*oldest first"):
        made(tmp_path, [first, first])
    with pytest.raises(RefusedError, match="whole disk"):
        made(tmp_path, [first, whole])
    with pytest.raises(BaseMismatchError):
        made(tmp_path, [first], base="other")


def test_a_record_past_the_end_of_the_disk_before_it_is_refused(tmp_path: Path) -> None:
    first = put(tmp_path, "a", rbd_diff([(0, 512)], 8192, "a", "b"))
    for stream in (lvmsync([(8192, b"x" * 512)]), thin_send([(4096, 8192)])):
        with pytest.raises(RefusedError, match="past the end"):
            made(tmp_path, [first, put(tmp_path, "s", stream)])
    # What lvmsync's header says more than the disk has is not there.
    odd = put(tmp_path, "odd", rbd_diff([(0, 512)], 8292, "a", "b"))
    short = lvmsync([(8192, b"x" * 100)]).replace(struct.pack(">I", 100), struct.pack(">I", 4096))
    found = made(tmp_path, [odd, put(tmp_path, "short", short)], to="rbd", goal="c").read_bytes()
    assert found == rbd_diff([(0, 512), (8192, b"x" * 100)], 8292, "a", "c")


def test_a_size_that_contradicts_the_stream_is_refused(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", rbd_diff([(0, 4096)], 8192, "a", "b"))
    with pytest.raises(RefusedError, match=r"8192.*4096"):
        made(tmp_path, [stream], size=4096)
    assert made(tmp_path, [stream], size=8192).stat().st_size
    image = put(tmp_path, "i", b"x" * 4096)
    with pytest.raises(RefusedError, match=r"4096.*8192"):
        made(tmp_path, [image], size=8192, format="raw")


def test_a_base_that_a_whole_disk_has_no_use_for_is_an_error(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", rbd_diff([(0, 4096)], 8192, goal="b"))
    with pytest.raises(UsageError, match="whole disk"):
        made(tmp_path, [stream], base="a")


def test_a_state_without_a_name_is_no_base(tmp_path: Path) -> None:
    head = put(tmp_path, "head", rbd_diff([(0, 512)], 8192, "a"))
    after = put(tmp_path, "after", rbd_diff([(512, 512)], 8192, "b", "c"))
    with pytest.raises(BaseMismatchError, match="without a name"):
        made(tmp_path, [head, after])
    assert made(tmp_path, [made(tmp_path, [head], goal="b"), after]).stat().st_size


def test_a_base_that_cannot_be_called_so_here_is_named_by_people(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", rbd_diff([(0, 4096)], 8192, "été", "b"))
    with pytest.raises(RefusedError, match="--base"):
        made(tmp_path, [stream])
    assert made(tmp_path, [stream], base="summer").stat().st_size


def test_a_whole_disk_may_change_parts_of_sectors(tmp_path: Path) -> None:
    changes: list[Change] = [(100, b"x" * 100), (700, 400), (1100, b"y" * 30)]
    stream = put(tmp_path, "s", rbd_diff(changes, 8192, goal="b"))
    copy = tmp_path / "copy"
    taken(ReceiveRequest(str(copy), tmp_path / "state", create=True), made(tmp_path, [stream]))
    assert copy.read_bytes() == applied(bytes(8192), changes)


def test_what_is_made_of_an_open_end_is_called_so(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", lvmsync([(0, b"x" * 512)]))
    packed = put(tmp_path, "z", gzip.compress(stream.read_bytes()))
    said = {"size": 8192, "base": "a", "to": "rbd"}
    for path in (stream, packed):
        doubtful = made(tmp_path, [path], **said).read_bytes()  # type: ignore[arg-type]
        assert b"unverified-lvmsync-" in doubtful
        named = made(tmp_path, [path], goal="b", **said).read_bytes()  # type: ignore[arg-type]
        assert named == rbd_diff([(0, b"x" * 512)], 8192, "a", "b")
        believed = made(tmp_path, [path], accept_open_end=True, **said)  # type: ignore[arg-type]
        assert b"unverified" not in believed.read_bytes()


@pytest.mark.parametrize("changed", ["theirs", "ours"])
def test_a_stream_that_was_written_before_all_were_read_is_noticed(
    tmp_path: Path, changed: str
) -> None:
    first = put(tmp_path, "theirs", rbd_diff([(0, b"x" * 4096)], 8192, "a", "b"))
    second = made(tmp_path, [put(tmp_path, "b-c", rbd_diff([(0, 512)], 8192, "b", "c"))])
    ours = second.rename(tmp_path / "ours")
    third = tmp_path / "third"
    os.mkfifo(third)

    def write() -> None:
        """Begin when the third is opened, and so the others were read."""
        with third.open("wb") as pipe:
            with (tmp_path / changed).open("ab") as file:
                file.write(b"more")
            pipe.write(rbd_diff([(512, 512)], 8192, "c", "d"))

    writer = threading.Thread(target=write)
    writer.start()
    request = ConvertRequest(
        [str(first), str(ours), str(third)], tmp_path / "state", ConvertOptions(to="rbd")
    )
    with combined(request, Run()) as found:
        writer.join()
        with pytest.raises(SourceError, match="written while"):
            found.source.validate()


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "wanted"), [("-Sn", ExitStatus.OK), ("-Hn", ExitStatus.REFUSED)])
def test_a_chain_may_be_longer_than_the_usual_limit_of_open_files(
    tmp_path: Path, limit: str, wanted: ExitStatus
) -> None:
    names = []
    for number in range(60):
        stream = rbd_diff([(0, 512)], 8192, f"s{number}", f"s{number + 1}")
        names.append(str(put(tmp_path, f"{number}.rbd", stream)))
    words = [sys.executable, "-m", "blockstream", "merge", "--state-dir", str(tmp_path), *names]
    script = f'ulimit -Sn 128; ulimit {limit} 128; exec "$@"'
    found = subprocess.run(  # noqa: S603  # ourselves
        ["/bin/sh", "-c", script, "sh", *words], capture_output=True, check=False
    )
    assert found.returncode == wanted, found.stderr
    assert (b"in parts" in found.stderr) == (wanted != ExitStatus.OK)


def test_what_a_stream_does_not_say_must_be_said(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", thin_send([(0, 4096)]))
    with pytest.raises(UsageError, match="--size"):
        made(tmp_path, [stream], base="a")
    with pytest.raises(UsageError, match="--base"):
        made(tmp_path, [stream], size=8192)
    assert made(tmp_path, [stream], size=8192, base="a").stat().st_size


def test_a_part_of_a_sector_is_refused_and_named(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", rbd_diff([(1000, b"x" * 24)], 8192, "a", "b"))
    with pytest.raises(RefusedError, match="1000"):
        made(tmp_path, [stream])


def test_a_flipped_bit_in_a_stream_of_ours_is_noticed_before_anything_is_written(
    tmp_path: Path,
) -> None:
    stream = put(tmp_path, "s", rbd_diff([(0, b"x" * 4096)], 8192, "a", "b"))
    ours = made(tmp_path, [stream])
    data = bytearray(ours.read_bytes())
    data[data.index(b"x" * 100)] ^= 1
    ours.write_bytes(data)
    with pytest.raises(BlockstreamError, match="digest"):
        made(tmp_path, [ours], to="rbd")
    assert not (tmp_path / "made-1.rbd").read_bytes()


def test_a_stream_that_is_written_meanwhile_is_never_ended(tmp_path: Path) -> None:
    stream = put(tmp_path, "s", rbd_diff([(0, b"x" * 4096)], 8192, "a", "b"))
    request = ConvertRequest([str(stream)], tmp_path / "state", ConvertOptions(to="rbd"))
    reading, writing = os.pipe()
    try:
        with combined(request, Run()) as found, stream.open("ab") as file:
            file.write(b"more")
            file.flush()
            given = (found.source, found.what.extents, found.head, writing, Run())
            with pytest.raises(SourceError, match="written while"):
                asyncio.run(write_foreign(by_name("rbd"), *given))
        os.close(writing)
        assert os.read(reading, 1 << 16)[-1:] != b"e"
    finally:
        os.close(reading)


@pytest.mark.parametrize("to", ["lvmsync", "thin-send", "rbd"])
def test_a_stream_of_ours_is_written_as_the_table_of_the_format_has_it(
    tmp_path: Path, to: str
) -> None:
    changes: list[Change] = [(512, b"x" * 1024), (4096, 8192), (16_384, b"y" * 512)]
    size = 20_480
    ours = made(tmp_path, [put(tmp_path, "s", rbd_diff(changes, size, "a", "b"))])
    wanted = {
        "lvmsync": lvmsync(changes),
        "thin-send": thin_send([(at, bytes(w) if isinstance(w, int) else w) for at, w in changes]),
        "rbd": rbd_diff(changes, size, "a", "b"),
    }
    assert made(tmp_path, [ours], to=to).read_bytes() == wanted[to]


def test_a_long_range_is_cut_into_records_where_zeros_are_bytes(tmp_path: Path) -> None:
    size = 3 << 20
    ours = made(tmp_path, [put(tmp_path, "s", rbd_diff([(0, size)], size, "a", "b"))])
    steps = range(0, size, 1 << 20)
    assert made(tmp_path, [ours], to="lvmsync").read_bytes() == lvmsync(
        [(at, 1 << 20) for at in steps]
    )
    assert made(tmp_path, [ours], to="thin-send").read_bytes() == thin_send(
        [(at, bytes(1 << 20)) for at in steps]
    )


def test_a_stream_from_a_pipe_is_kept_until_it_is_whole(tmp_path: Path) -> None:
    changes: list[Change] = [(512, b"x" * 1024), (4096, 8192)]
    ours = made(tmp_path, [put(tmp_path, "s", rbd_diff(changes, 16_384, "a", "b"))])
    reading, writing = os.pipe()
    with closing(os.fdopen(writing, "wb")) as pipe:
        pipe.write(ours.read_bytes())
    try:
        found = made(tmp_path, [Path(f"/proc/self/fd/{reading}")], to="rbd")
    finally:
        os.close(reading)
    assert found.read_bytes() == rbd_diff(changes, 16_384, "a", "b")
