"""Stores, disks in them and their points: `dir:PATH/DISK@POINT`, `s3://BUCKET/PATH/DISK@POINT`."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from blockstream.errors import NotFoundError, UsageError
from blockstream.interfaces import Objects
from blockstream.words import holds_credentials

_STORE = re.compile(
    r"(?P<store>dir:.*?|s3://[^/]+.*?)(?:/(?P<disk>[^/@]+)(?:@(?P<point>[^/@]*))?)?/?", re.DOTALL
)
_ENDPOINT = re.compile(r"https?://[^/]")


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A disk in a store, or a point of it.

    Attributes:
        store: The store: `dir:PATH` or `s3://BUCKET/PREFIX`.
        disk: Name of the disk; empty for the store itself.
        point: Which point; empty for none in particular.
    """

    store: str
    disk: str = ""
    point: str = ""
    what: ClassVar[str] = (
        "is in a store, and here only a disk will do; nothing was done; `blockstream restore` "
        "writes a point onto a disk"
    )

    @property
    def key(self) -> str:
        """See `Location`."""
        return str(self)

    def __str__(self) -> str:
        """What people call it."""
        disk = f"/{self.disk}" if self.disk else ""
        return f"{self.store}{disk}" + (f"@{self.point}" if self.point else "")


def store_place(location: str, *, disk: bool = True) -> StorePlace | None:
    """Return the store that a location leads to; None if it leads to none.

    Args:
        location: `dir:PATH` or `s3://BUCKET/PREFIX`, then `/DISK`, then `@POINT` at most.
        disk: Whether its last word is a disk.

    Raises:
        UsageError: If a disk, or the folder, is missing.
    """
    found = _STORE.fullmatch(location)
    if found is None:
        return None
    if not location.removeprefix("dir:").strip("/"):
        raise UsageError(
            f"{location} names no folder: dir:PATH; nothing was done; is a variable not set?"
        )
    if not disk:
        return StorePlace(location.rstrip("/"))
    # One folder below / is a store, for nobody has one in / itself.
    if not found["disk"] or found["store"] == "dir:":
        raise UsageError(
            f"{location} names no disk: STORE/DISK, as in {location.rstrip('/')}/vm; nothing was "
            "done"
        )
    return StorePlace(found["store"], found["disk"], found["point"] or "")


def open_objects(store: str, endpoint: str = "", *, allow_http: bool = False) -> Objects:
    """Open a store's objects; a bucket is not asked yet.

    Args:
        store: `dir:PATH` or `s3://BUCKET/PREFIX`.
        endpoint: URL of another S3 server than AWS; empty for what botocore's settings say.
        allow_http: Speak to another host without TLS.

    Raises:
        NotFoundError: If what speaks S3 is not installed.
        UsageError: If the endpoint is no URL.
    """
    for each in (store, endpoint):
        if holds_credentials(each):
            raise UsageError(
                f"{each} holds a password, which everybody can read on this host; nothing was "
                "done; credentials come from the environment, ~/.aws, or the instance"
            )
    if endpoint and not _ENDPOINT.match(endpoint):
        raise UsageError(
            f"{endpoint} is no URL of an S3 server, as https://s3.example.com is; nothing was done"
        )
    if store.startswith("dir:"):
        from blockstream.stores.folder import FolderObjects

        return FolderObjects(Path(store.removeprefix("dir:")).absolute())
    if importlib.util.find_spec("aiobotocore") is None:
        raise NotFoundError(
            "S3 needs aiobotocore, which is not installed here (the extra `s3` brings it); nothing "
            "was done"
        )
    from blockstream.stores.s3 import s3_objects  # 0.3 s

    return s3_objects(store, endpoint, allow_http=allow_http)
