#!/usr/bin/env -S nbdkit python
"""Stands in for nbdkit's plugin `vddk`: takes its words, notes them, serves a file.

STANDIN_FILE says which, STANDIN_NOTES where the words are noted, and STANDIN_FAILS with what it
fails; with `size` it serves another size.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

API_VERSION = 2
_WORDS = {
    "server": r"localhost",
    "port": r"\d+",
    "user": r".+@.+",
    "password": r"-\d+",
    "thumbprint": r"([0-9A-F]{2}:){19}[0-9A-F]{2}",
    "vm": r"moref=vm-\d+",
    "snapshot": r"snapshot-\d+",
    "transports": r"file:nbdssl:nbd",
    "compression": r"skipz",
    "libdir": r"/.+",
    "file": r"\[.+\] .+\.vmdk",
}
given: dict[str, str] = {}


def config(key: str, value: str) -> None:
    if not re.fullmatch(_WORDS[key], value):
        raise ValueError(f"{key}={value}")
    given[key] = value


def config_complete() -> None:
    password = os.read(int(given["password"][1:]), 1000).decode()
    if os.environ.get("STANDIN_FAILS") == "password":
        # As a library may do that was written without care.
        sys.stderr.write(f"cannot log in with {password}\n")
        raise RuntimeError("VixDiskLib_ConnectEx: Cannot complete login")
    notes: dict[str, Any] = {
        **given,
        "said_password": password,
        "line": Path("/proc/self/cmdline").read_text(),
        "group": os.getpgrp(),
    }
    Path(os.environ["STANDIN_NOTES"]).write_text(json.dumps(notes))


def open(readonly: bool) -> int:  # noqa: A001  # the plugin's own word
    return os.open(os.environ["STANDIN_FILE"], os.O_RDONLY)


def close(handle: int) -> None:
    os.close(handle)


def can_multi_conn(handle: int) -> bool:
    return True


def get_size(handle: int) -> int:
    size = os.fstat(handle).st_size
    return size + 512 if os.environ.get("STANDIN_FAILS") == "size" else size


def pread(handle: int, buffer: Any, offset: int, flags: int) -> None:
    buffer[:] = os.pread(handle, len(buffer), offset)
