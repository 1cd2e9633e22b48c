"""A volume is called thin only if the kernel says so, and of all of it."""

import fcntl
import os
import struct
from pathlib import Path

import pytest

from blockstream.linux import device_mapper
from blockstream.linux.device_mapper import is_thin

# What DM_TABLE_STATUS answers (linux/dm-ioctl.h): a head of 312 bytes, then per target 40 bytes
# and its table, padded to 8.
HEAD = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
DEVICE = os.makedev(253, 7)


def answer_of(*types: str, flags: int = 0) -> bytes:
    rows = b""
    for number, name in enumerate(types):
        table = f"253:{number} 1\0".encode()
        table += bytes(-len(table) % 8)
        end = len(rows) + 40 + len(table)
        rows += struct.pack("=QQiI16s", number * 2048, 2048, 0, end, name.encode()) + table
    head = HEAD.pack(4, 48, 0, 16384, 312, len(types), 1, flags, 0, 0, DEVICE, b"v", b"LVM-x", b"")
    return head + rows


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Stand in for the kernel; it answers with the first element and puts the question there."""
    control = tmp_path / "control"
    control.touch()
    exchange: list[bytes] = [b""]

    def ioctl(_file: object, request: int, buffer: bytearray, _mutate: bool) -> int:
        assert request == (3 << 30) | (312 << 16) | (0xFD << 8) | 12  # _IOWR(0xfd, 12, dm_ioctl)
        answer, exchange[0] = exchange[0], bytes(buffer)
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
    asked[0] = answer_of(*types)
    assert is_thin(DEVICE) is thin


def test_the_question_is_about_this_device_and_its_table(asked: list[bytes]) -> None:
    is_thin(DEVICE)
    fields = HEAD.unpack_from(asked[0])
    assert fields[:5] == (4, 0, 0, len(asked[0]), 312)
    assert fields[7] == 1 << 4  # DM_STATUS_TABLE_FLAG
    assert fields[10] == DEVICE


def test_an_answer_that_was_cut_proves_nothing(asked: list[bytes]) -> None:
    asked[0] = answer_of("thin", flags=1 << 8)
    assert not is_thin(DEVICE)


def test_who_may_not_ask_is_not_told(asked: list[bytes]) -> None:
    assert not is_thin(DEVICE)


def test_what_is_no_volume_is_not_thin() -> None:
    assert not is_thin(os.makedev(1, 1))
