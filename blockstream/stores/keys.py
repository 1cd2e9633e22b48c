"""A store's key, wrapped for those who may open the store: age identities, and keys of KMS."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyrage

from blockstream.errors import AuthenticationError, NotFoundError, UsageError

_KMS: Final = "kms:"
_SECRET: Final = "AGE-SECRET-KEY-"  # noqa: S105  # what a line of an identity file begins with
_MOST_SHOWN: Final = 70


def wrapped(key: bytes, recipient: str, store_id: str) -> bytes:
    """Encrypt a store's key for a recipient.

    Args:
        key: The store's key.
        recipient: `age1...`, an ssh public key, or `kms:` and the ARN, alias or id of a key.
        store_id: Bound to what KMS wraps, so that its log says what it was for.

    Raises:
        UsageError: If the recipient is none.
        AuthenticationError: If KMS refuses.
    """
    if recipient.startswith(_KMS):
        return bytes(_kms("encrypt", recipient, store_id, Plaintext=key)["CiphertextBlob"])
    return bytes(pyrage.encrypt(key, [_recipient(recipient)]))


def unwrapped(data: bytes, recipient: str, ours: Sequence[Any], store_id: str) -> bytes:
    """Return what `wrapped` was given.

    Args:
        data: What it returned.
        recipient: For whom it is.
        ours: Our identities.
        store_id: As it was wrapped.

    Raises:
        AuthenticationError: If it is not for us.
    """
    if recipient.startswith(_KMS):
        return bytes(_kms("decrypt", recipient, store_id, CiphertextBlob=data)["Plaintext"])
    if not ours:
        raise AuthenticationError(f"no identity was given for {_short(recipient)}")
    try:
        return bytes(pyrage.decrypt(data, ours))
    except pyrage.DecryptError as error:
        raise AuthenticationError(
            f"the identity given is not that of {_short(recipient)}"
        ) from error


def identities(path: Path) -> list[Any]:
    """Return the age identities of a file, or the one of an ssh private key.

    Raises:
        UsageError: If there is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; nothing was done") from error
    lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
    secret = [line for line in lines if line.startswith(_SECRET)]
    try:
        if not secret and any("PRIVATE KEY" in line for line in lines):
            return [pyrage.ssh.Identity.from_buffer(data)]
        found = [pyrage.x25519.Identity.from_str(line) for line in secret]
    except pyrage.IdentityError as error:
        raise UsageError(f"{path} holds no identity: {error}; nothing was done") from error
    if not found:
        raise UsageError(
            f"{path} holds no identity: a line AGE-SECRET-KEY-1... is one, or an ssh private key; "
            "nothing was done"
        )
    return found


def new_identity(path: Path, created: str) -> str:
    """Write a new age identity into a file that only its owner can read; return its recipient.

    Raises:
        UsageError: If the file is there already, or cannot be written.
    """
    made = pyrage.x25519.Identity.generate()
    recipient = str(made.to_public())
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "w") as file:
            file.write(f"# created: {created}\n# public key: {recipient}\n{made}\n")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; no identity was made") from error
    return recipient


def canonical(recipient: str) -> str:
    """Return a recipient as it is kept: an ssh key without its comment."""
    words = recipient.split()
    return " ".join(words[:2]) if recipient.startswith("ssh-") else recipient.strip()


def _short(recipient: str) -> str:
    return recipient if len(recipient) <= _MOST_SHOWN else recipient[: _MOST_SHOWN - 3] + "..."


def _recipient(text: str) -> Any:
    kind = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return kind.from_str(text)
    except pyrage.RecipientError as error:
        raise UsageError(
            f"{_short(text)!r} is no recipient: age1..., an ssh public key, or kms:ARN is one; "
            "nothing was done"
        ) from error


def _kms(what: str, recipient: str, store_id: str, **words: Any) -> Any:
    """Ask KMS once.

    Raises:
        AuthenticationError: If it refuses, or cannot be reached.
        NotFoundError: If what speaks to it is not installed.
    """
    try:
        from aiobotocore.session import get_session  # 0.3 s
        from botocore.exceptions import BotoCoreError, ClientError

        from blockstream.stores.s3_client import is_bare
    except ImportError as error:
        raise NotFoundError(
            "KMS needs aiobotocore, which is not installed here (the extra `s3` brings it); "
            "nothing was done"
        ) from error
    key = recipient.removeprefix(_KMS)
    arn = key.split(":")

    async def ask() -> Any:
        session = get_session()
        region = arn[3] if arn[0] == "arn" and len(arn) > 3 else None
        region = region or session.get_config_variable("region") or "us-east-1"
        async with session.create_client("kms", region_name=region) as client:
            if is_bare(client.meta.endpoint_url):
                raise UsageError(
                    f"KMS would be asked at {client.meta.endpoint_url}, which is another host, and "
                    "not https: the store's key would be readable on its way; nothing was done"
                )
            context = {"blockstream-store": store_id}
            return await getattr(client, what)(KeyId=key, EncryptionContext=context, **words)

    try:
        return asyncio.run(ask())
    except (ClientError, BotoCoreError, OSError) as error:
        raise AuthenticationError(f"KMS key {key}: {error}") from error
