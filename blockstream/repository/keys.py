"""What a store says of itself, and who can open it if it is encrypted.

`bs1/store.json` is written once. Each wrapping of the key is an object of its own,
`bs1/key/STORE/ID.json`, so that one comes or goes without touching another.
"""

import base64
import importlib.util
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from blockstream.errors import (
    AuthenticationError,
    NotFoundError,
    RefusedError,
    StoreDamagedError,
)
from blockstream.interfaces import Objects

FORMAT: Final = 1
_STORE: Final = "bs1/store.json"
_KNOWN: Final = {"format", "id", "created", "needs", "recipient", "wrapped"}
_ENCRYPTION: Final = "aes-256-gcm"
_MOST_BYTES: Final = 1 << 20
_ID: Final = re.compile(r"[0-9a-f]{32}")
_KEY: Final = re.compile(r"[0-9a-f]{32}\.json")


@dataclass(frozen=True, slots=True)
class StoreHeader:
    """What a store says of itself.

    Attributes:
        id: The store's id.
        encrypted: Whether its disks are.
    """

    id: str
    encrypted: bool

    @classmethod
    def read(cls, objects: Objects) -> "StoreHeader":
        """Read it.

        Raises:
            NotFoundError: If there is no store.
            StoreDamagedError: If this is damaged, or missing although there are disks.
            RefusedError: If a later version made it.
        """
        try:
            values = _checked(objects.read_whole(_STORE, _MOST_BYTES))
            needs = set(values.get("needs", ()))
            known = values["format"] == FORMAT and needs <= {_ENCRYPTION}
            found = cls(_id(values["id"]), bool(needs))
        except StoreDamagedError as error:
            if StoredIds.of(objects).disks:
                raise StoreDamagedError(
                    f"{objects.name}: {_STORE} is missing, although there are disks; nothing was "
                    f"done; put it back from a copy, or let `blockstream store init {objects.name}`"
                    " make it anew"
                ) from error
            raise NotFoundError(
                f"{objects.name} is no store yet; nothing was done; look at the name, which is "
                f"STORE/DISK for a disk; `blockstream store init {objects.name}` makes a store"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreDamagedError(
                f"{objects.name}: {_STORE} is damaged: {error}; nothing was done; put it back from "
                f"a copy, or remove it, and `blockstream store init {objects.name}` makes it anew"
            ) from error
        if not known:
            raise RefusedError(f"{objects.name} was made by a later version of blockstream")
        return found

    @classmethod
    def is_there(cls, objects: Objects) -> bool:
        """Tell whether there is a store, as far as one may look."""
        try:
            cls.read(objects)
        except (NotFoundError, AuthenticationError):
            return False
        return True

    def write(self, objects: Objects, created: str) -> bool:
        """Write it, which makes the store; tell whether there was none."""
        needs = [_ENCRYPTION] if self.encrypted else []
        values = {"format": FORMAT, "id": self.id, "created": created, "needs": needs}
        return objects.put_new(_STORE, _with_digest(values))


@dataclass(frozen=True, slots=True)
class StoredIds:
    """What tells that there is, or was, a store.

    Attributes:
        disks: Whether it has any.
        keys: Ids of encrypted stores that have keys there.
    """

    disks: bool
    keys: frozenset[str]

    @classmethod
    def of(cls, objects: Objects) -> "StoredIds":
        """Look for it."""
        disks = any(True for _ in objects.folders("bs1/disk/"))
        return cls(disks, frozenset(filter(_ID.fullmatch, objects.folders("bs1/key/"))))


def _id(word: str) -> str:
    """Return a store's id, which names a folder.

    Raises:
        ValueError: If it is none.
        TypeError: If it is no text.
    """
    if not _ID.fullmatch(word):
        raise ValueError("its id is none")
    return word


def _with_digest(values: dict[str, object]) -> bytes:
    """Return an object that tells when it was altered."""
    digest = blake3(_text(values)).hexdigest()
    return _text({**values, "digest": digest})


def _checked(data: bytes) -> dict[str, Any]:
    """Return what `_with_digest` was given; an early store has no digest.

    Raises:
        ValueError: If it was altered.
        TypeError: If it is none.
        RecursionError: If it is nothing of ours.
    """
    values = dict(json.loads(data))
    if _text(values) != data:
        raise ValueError("it is not as it was written")
    digest = values.pop("digest", "")
    if digest != blake3(_text(values)).hexdigest() and (digest or set(values) - _KNOWN):
        raise ValueError("its digest is another one")
    return values


def _text(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A store's key, as one of those who may open it can read it.

    Attributes:
        recipient: Who can: `age1...`, an ssh public key, or `kms:` and a key of KMS.
        wrapped: The key, encrypted for them; base64.
        created: When, UTC.
    """

    recipient: str
    wrapped: str
    created: str

    @property
    def id(self) -> str:
        """What its object is called: the same for the same recipient."""
        return blake3(self.recipient.encode()).hexdigest(16)

    def encode(self) -> bytes:
        """Return its object."""
        return _with_digest(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> "WrappedKey":
        """Read its object.

        Raises:
            StoreDamagedError: If it is none.
        """
        try:
            values: dict[str, str] = {name: "" + text for name, text in _checked(data).items()}
            found = cls(**values)
            base64.b64decode(found.wrapped, validate=True)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StoreDamagedError(f"it is no wrapped key: {error}") from error
        return found


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """Who can open an encrypted store.

    Attributes:
        objects: The store's objects, as they lie there.
        store_id: The store's id.
    """

    objects: Objects
    store_id: str

    @classmethod
    def of(cls, objects: Objects) -> "StoreKeys":
        """Return the keys of a store.

        Raises:
            RefusedError: If it is not encrypted.
        """
        header = StoreHeader.read(objects)
        if not header.encrypted:
            raise RefusedError(f"{objects.name} is not encrypted: it has no keys")
        return cls(objects, header.id)

    @staticmethod
    def new_identity(path: Path, created: str) -> str:
        """Write a new age identity into a file; return who it is to be encrypted for.

        Raises:
            UsageError: If the file is there already, or cannot be written.
        """
        _check_installed()
        from blockstream.stores.keys import new_identity

        return new_identity(path, created)

    def create(self, recipients: Sequence[str], created: str) -> None:
        """Make a key, and wrap it to each recipient.

        Raises:
            UsageError: If one of them is none.
            AuthenticationError: If KMS refuses.
        """
        key = secrets.token_bytes(32)
        for each in [self._wrapped(key, recipient, created) for recipient in recipients]:
            self._put(each)

    def listed(self) -> list[WrappedKey]:
        """Return what the key is wrapped in.

        Raises:
            StoreDamagedError: If one of them is damaged.
        """
        damages = list[str]()
        found = self._whole(damages)
        if damages:
            raise StoreDamagedError("; ".join(damages))
        return found

    def _whole(self, damages: list[str]) -> list[WrappedKey]:
        """Return those that can be read, and say of the others what is wrong with them."""
        found = []
        for info in self.objects.listed(self._folder):
            if info.stray or not _KEY.fullmatch(info.key.removeprefix(self._folder)):
                continue
            try:
                found.append(WrappedKey.decode(self.objects.read_whole(info.key, _MOST_BYTES)))
            except StoreDamagedError as error:
                damages.append(f"{self.objects.name}: {info.key}: {error}")
        return found

    def opened(self, identity: Path | None) -> bytes:
        """Return the store's key.

        Args:
            identity: File with age identities, or an ssh private key; None for KMS alone.

        Raises:
            AuthenticationError: If nothing that we have opens it.
            StoreDamagedError: If nothing is left that could be opened.
            UsageError: If there is no identity in the file.
        """
        _check_installed()
        from blockstream.stores.keys import identities, unwrapped

        ours, refusals = identities(identity) if identity is not None else [], list[str]()
        whole = self._whole(refusals)
        if not whole:
            raise StoreDamagedError(
                f"{self.objects.name}: no key is left in {self._folder}: "
                f"{'; '.join(refusals) or 'it is empty'}; nothing was done; put them back from a "
                "copy of the store: nothing else opens it"
            )
        # Ours first: a key of KMS may be out of reach, or somebody else's.
        for each in sorted(whole, key=lambda each: each.recipient[:4] == "kms:"):
            try:
                wrapped = base64.b64decode(each.wrapped)
                return unwrapped(wrapped, each.recipient, ours, self.store_id)
            except (AuthenticationError, NotFoundError) as error:
                refusals.append(str(error))
        raise AuthenticationError(
            f"{self.objects.name} is encrypted, and cannot be opened: {'; '.join(refusals)}; "
            "nothing was done; --identity FILE or BLOCKSTREAM_IDENTITY says where an identity lies"
        )

    def add(self, recipient: str, identity: Path | None, created: str) -> WrappedKey:
        """Let somebody else open it, too.

        Raises:
            RefusedError: If they can already.
            UsageError: If that is no recipient.
            AuthenticationError: If we cannot open it, or KMS refuses.
        """
        made = self._wrapped(self.opened(identity), recipient, created)
        if not self._put(made):
            raise RefusedError(f"{made.recipient} can open it already; nothing was done")
        return made

    def remove(self, recipient: str) -> None:
        """Take somebody's key away.

        Raises:
            RefusedError: If nobody else could open it then, or they cannot.
        """
        left = self._whole([])
        going = [each for each in left if recipient in {each.recipient, each.id}]
        if not going:
            raise RefusedError(f"{recipient} is none of those who can open it; nothing was done")
        if len(left) == len(going):
            raise RefusedError(
                f"only {recipient} can open it; nothing was done; add another one first"
            )
        for each in going:
            self.objects.delete(f"{self._folder}{each.id}.json")

    @property
    def _folder(self) -> str:
        return f"bs1/key/{self.store_id}/"

    def _wrapped(self, key: bytes, recipient: str, created: str) -> WrappedKey:
        _check_installed()
        from blockstream.stores.keys import canonical, wrapped

        named = canonical(recipient)
        data = wrapped(key, named, self.store_id)
        return WrappedKey(named, base64.b64encode(data).decode(), created)

    def _put(self, key: WrappedKey) -> bool:
        return self.objects.put_new(f"{self._folder}{key.id}.json", key.encode())


def encrypted(objects: Objects, key: bytes) -> Objects:
    """Return objects as they are to be seen with a store's key."""
    _check_installed()
    from blockstream.stores.encrypted import EncryptedObjects

    return EncryptedObjects(objects, key)


def _check_installed() -> None:
    if not all(importlib.util.find_spec(name) for name in ("cryptography", "pyrage")):
        raise NotFoundError(
            "encryption needs cryptography and pyrage, which are not installed here (the extra "
            "`encryption` brings them); nothing was done"
        )
