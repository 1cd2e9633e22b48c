"""A volume is called thin only if the kernel says so, and of all of it."""

import fcntl
import os
import struct
from pathlib import Path

import pytest

from blockstream.linux import device_mapper
from blockstream.linux.device_mapper import Thin, thin_at

# What DM_TABLE_STATUS answers (linux/dm-ioctl.h): a head of 312 bytes, then per target 40 bytes
# and its table, padded to 8.
HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
DEVICE = os.makedev(253, 7)
POOL = "253:0 253:1 128 0 0"


def answer_of(*types: str, flags: int = 0, words: str = "253:2 1") -> bytes:
    rows = b""
    for number, name in enumerate(types):
        table = f"{words}\0".encode()
        table += bytes(-len(table) % 8)
        end = len(rows) + 40 + len(table)
        rows += struct.pack("=QQiI16s", number * 2048, 2048, 0, end, name.encode()) + table
    head = HEAD.pack(4, 48, 0, 16384, 312, len(types), 1, flags, 0, 0, DEVICE, b"v", b"LVM-x", b"")
    return head + rows


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stand in for the kernel; it answers with the first element and puts the question there.

    Of more elements, the others are the answers to the next questions.
    """
    control = tmp_path / "control"
    control.touch()
    exchange: list[bytes] = [b""]

    def ioctl(_file: object, request: int, buffer: bytearray, _mutate: bool) -> int:
        assert request == (3 << 30) | (312 << 16) | (0xFD << 8) | 12  # _IOWR(0xfd, 12, dm_ioctl)
        answer = exchange.pop(0)
        exchange.append(bytes(buffer))
        if not answer:
            raise PermissionError(1, "no")
        buffer[: len(answer)] = answer
        return 0

    monkeypatch.setattr(device_mapper, "_CONTROL", control)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(Path, "is_dir", lambda _path: True)
    return exchange


@pytest.mark.parametrize(
    ("types", "thin"),
    [
        (["thin"], True),
        (["thin", "thin"], True),
        (["linear"], False),
        (["thin", "linear"], False),
        (["thin-pool"], False),
        (["crypt"], False),
        ([], False),
    ],
)
def test_only_thin_targets_make_a_thin_volume(
    asked: list[bytes], types: list[str], thin: bool
) -> None:
    asked[:] = [answer_of(*types), answer_of("thin-pool", words=POOL)]
    assert (thin_at(DEVICE) is not None) is thin


@pytest.mark.parametrize(
    ("pool", "wanted"),
    [
        ("253:0 253:1 128 0 0", Thin(65536, shows_old=False)),
        ("253:0 253:1 128 0 1 skip_block_zeroing", Thin(65536, shows_old=True)),
        ("253:0 253:1 1024 0 2 ignore_discard skip_block_zeroing", Thin(524288, shows_old=True)),
        ("253:0 253:1 128 0 1 no_discard_passdown", Thin(65536, shows_old=False)),
        ("", Thin(0, shows_old=False)),
    ],
)
def test_what_its_pool_does_with_new_chunks_is_known(
    asked: list[bytes], pool: str, wanted: Thin
) -> None:
    asked[:] = [answer_of("thin"), answer_of("thin-pool", words=pool)]
    assert thin_at(DEVICE) == wanted
    assert HEAD.unpack_from(asked[1])[10] == os.makedev(253, 2)


def test_the_question_is_about_this_device_and_its_table(asked: list[bytes]) -> None:
    thin_at(DEVICE)
    fields = HEAD.unpack_from(asked[0])
    assert fields[:5] == (4, 0, 0, len(asked[0]), 312)
    assert fields[7] == 1 << 4  # DM_STATUS_TABLE_FLAG
    assert fields[10] == DEVICE


def test_an_answer_that_was_cut_proves_nothing(asked: list[bytes]) -> None:
    asked[0] = answer_of("thin", flags=1 << 8)
    assert not thin_at(DEVICE)


def test_who_may_not_ask_is_not_told(asked: list[bytes]) -> None:
    assert not thin_at(DEVICE)


def test_what_is_no_volume_is_not_thin() -> None:
    assert not thin_at(os.makedev(1, 1))
