"""A client for S3 as the user has configured it for every other program, and what it complains of.

What the environment and ~/.aws say counts: endpoint, profile, region, SSO, `credential_process`,
addressing style, payload signing, checksums, retries. Settings of ours stand only where they say
nothing (botocore, "Configuration"; botocore.configprovider).
"""

import os
import re
import urllib.parse
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)
from botocore.parsers import ResponseParserError

from blockstream.errors import (
    AuthenticationError,
    BlockstreamError,
    NotAllowedError,
    NotFoundError,
    StoreDamagedError,
    StoreError,
    UsageError,
)

IN_FLIGHT: Final = 8
ATTEMPTS: Final = 6
_NO_CREDENTIALS: Final = (
    *(ConfigParseError, CredentialRetrievalError, InvalidConfigError, LoginError),
    *(NoAuthTokenError, NoCredentialsError, PartialCredentialsError, ProfileNotFound),
    *(RefreshWithMFAUnsupportedError, SSOError, TokenRetrievalError, UnknownCredentialError),
)
_DENIED: Final = {"AccessDenied", "AllAccessDisabled", "403"}
_UNKNOWN: Final = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_MISSING: Final = {"NoSuchKey", "404", "NotFound"}
_TAKEN: Final = {"PreconditionFailed", "412"}
_CONFLICT: Final = {"ConditionalRequestConflict", "409"}
# What servers say to a header that they do not know.
_AMISS: Final = {
    "InvalidArgument",
    "InvalidRequest",
    "MissingContentLength",
    "NotImplemented",
    "UnsupportedHeader",
    "XNotImplemented",
}
_AGAIN: Final = {408, 429, 500, 502, 503, 504}
_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1"}
_AMAZON: Final = re.compile(r"(?:^|\.)amazonaws\.com(?:\.cn)?$")
_WORDS: Final = 160
_TAGS: Final = re.compile(
    rb"<(?:style|script|title)\b.*?</(?:style|script|title)>|<[^>]*>", re.DOTALL
)


class TakenError(StoreError):
    """Somebody has written that key already."""


class AgainError(StoreError):
    """It may work a moment later."""


class AmissError(StoreError):
    """The server takes a request amiss, perhaps for a header that it does not know."""


class BeyondEndError(StoreDamagedError):
    """The object ends before the range begins."""


class _ForeignReplyError(Exception):
    """A reply that is none of S3's, as of a proxy."""

    def __init__(self, status: int, body: bytes) -> None:
        words = " ".join(_TAGS.sub(b" ", body[:4096]).decode(errors="replace").split())
        super().__init__(f"HTTP {status}, and no reply of S3's: {words[:_WORDS] or 'no words'!r}")
        self.status = status


async def new_client(
    stack: AsyncExitStack, name: str, endpoint: str, *, allow_http: bool
) -> tuple[Any, int]:
    """Return a client, and how often it may ask.

    Args:
        stack: Closes it.
        name: What people call the store.
        endpoint: URL of another server than AWS; empty for what botocore's settings say.
        allow_http: Speak to another host without TLS.

    Raises:
        AuthenticationError: If there are no credentials.
        UsageError: If everybody on the way could read what is said.
    """
    session = get_session()
    await _check_credentials(session, name)
    settings = _Settings(session, endpoint)
    client = await stack.enter_async_context(settings.client())
    url = client.meta.endpoint_url
    bare = is_bare(url)  # wherever that was said
    if bare and not allow_http:
        raise UsageError(
            f"{name}: {url} is another host, and not https: everybody on the way could read and "
            "alter what is said; nothing was sent; --allow-http takes it"
        )
    if bare or not _AMAZON.search(urllib.parse.urlsplit(url).hostname or ""):
        # Other servers seldom have a name for each bucket; without encryption, only a signature
        # protects the payload on its way.
        client = await stack.enter_async_context(settings.client(path=True, signed=bare))
    # Wildcards come first: before botocore makes a 500 of a page with 200.
    client.meta.events.register("before-parse.*.*", _refuse_foreign)
    return client, settings.attempts


async def _check_credentials(session: AioSession, name: str) -> None:
    """Get credentials, by whatever way is configured.

    Raises:
        AuthenticationError: If they cannot be had; a program that should give them may fail in any
            way.
    """
    try:
        found = await session.get_credentials()
        if found is not None:
            await found.get_frozen_credentials()
            return
        why = "there are none"
    except Exception as error:  # noqa: BLE001  # botocore lets through what a plug-in raises
        why = str(error) or type(error).__name__
    raise AuthenticationError(
        f"{name}: no credentials: {why}; nothing was sent; they come from the environment, ~/.aws, "
        "or the instance, as for the aws command"
    )


class _Settings:
    """What a client is made with."""

    def __init__(self, session: AioSession, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self._profile: Mapping[str, Any] = session.get_scoped_config()
        # With retries of the user's, ours do not multiply them.
        theirs = self._is_set("max_attempts") or self._is_set("retry_mode")
        limit = session.get_config_variable("max_attempts") if theirs else None
        self.attempts = ATTEMPTS if not theirs else max(1, int(limit or 1))
        self._retries = None if theirs else {"mode": "standard", "total_max_attempts": ATTEMPTS}

    def client(self, *, path: bool = False, signed: bool = False) -> Any:
        """Return a client, not connected yet.

        Args:
            path: Whether the bucket belongs into the path of URLs.
            signed: Whether the payload is signed.
        """
        s3 = {
            "addressing_style": "path" if path else "auto",
            "payload_signing_enabled": signed,
        }
        theirs = self._profile.get("s3")
        known = theirs if isinstance(theirs, dict) else {}
        checksums = {
            name: "when_required"
            for name in ("request_checksum_calculation", "response_checksum_validation")
            if not self._is_set(name)
        }
        config = AioConfig(
            s3={key: value for key, value in s3.items() if key not in known},
            retries=self._retries,
            max_pool_connections=2 * IN_FLIGHT + 4,
            connect_timeout=10,
            read_timeout=60,
            tcp_keepalive=True,
            user_agent_extra="blockstream",
            **checksums,
        )
        region = self._session.get_config_variable("region") or "us-east-1"
        endpoint = self._endpoint or None
        return self._session.create_client(
            "s3", region_name=region, endpoint_url=endpoint, config=config
        )

    def _is_set(self, name: str) -> bool:
        return name in self._profile or f"AWS_{name.upper()}" in os.environ


def is_bare(url: str) -> bool:
    """Tell whether what is sent to a URL leaves this host without encryption."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _LOOPBACK


def _refuse_foreign(response_dict: Mapping[str, Any], **_: object) -> None:
    """Refuse a reply that no S3 server gives, with its first words, before it is parsed."""
    body = response_dict.get("body")
    if not isinstance(body, bytes) or not body.strip():
        return
    start = body.lstrip()[:9].lower()
    if not start.startswith(b"<") or start.startswith((b"<html", b"<!doctype")):
        raise _ForeignReplyError(response_dict["status_code"], body)


FAILURES: Final = (
    *(ClientError, BotoCoreError, ResponseParserError, _ForeignReplyError),
    *(HttpError, OSError, TimeoutError),
)


def translated(error: Exception, name: str, bucket: str, key: str) -> BlockstreamError:
    """Return a failure, one of `FAILURES`, as one of ours.

    Args:
        error: What happened.
        name: What people call the store.
        bucket: Its bucket.
        key: The object that was asked for.
    """
    if isinstance(error, ClientError):
        return _refusal(error, name, bucket, key)
    if isinstance(error, _NO_CREDENTIALS):
        return AuthenticationError(
            f"{name}: no credentials: {error}; nothing more was sent; they come from the "
            "environment, ~/.aws, or the instance, as for the aws command"
        )
    if isinstance(error, _ForeignReplyError):
        text = f"{name}: {key}: {error}; what answers there, a proxy?"
        return AgainError(text) if error.status in _AGAIN else StoreError(text)
    if isinstance(error, ResponseParserError):
        return StoreError(f"{name}: {key}: a reply is not understood: {str(error)[:_WORDS]}")
    return StoreError(f"{name} cannot be reached: {error}; run it again")


def _refusal(error: ClientError, name: str, bucket: str, key: str) -> BlockstreamError:
    """Return a server's refusal as one of ours."""
    said = error.response.get("Error", {})
    code, status = str(said.get("Code", "")), _status_of(error)
    text = f"{name}: {key}: {code}: {said.get('Message', '')}"
    if code in _MISSING:
        return StoreDamagedError(f"{name} has no {key}")
    if code == "NoSuchBucket":
        return NotFoundError(f"{name}: there is no bucket {bucket}; make it first")
    if code == "InvalidObjectState":
        return StoreError(
            f"{name}: {key} is archived ({said.get('StorageClass', 'Glacier')}), and cannot be "
            f"read; `aws s3api restore-object --bucket {bucket} --key KEY --restore-request "
            "Days=7` thaws it, in hours; then run this again"
        )
    if code in _TAKEN:
        return TakenError(text)
    if code in _CONFLICT:
        return AgainError(text)
    if code == "InvalidRange":
        return BeyondEndError(text)
    if code in _DENIED:
        return NotAllowedError(text)
    if code in _UNKNOWN:
        return AuthenticationError(text)
    # What botocore has tried again is not tried again by us as often.
    if status in _AGAIN and not error.response.get("ResponseMetadata", {}).get("RetryAttempts"):
        return AgainError(text)
    return AmissError(text) if code in _AMISS or status in {411, 501} else StoreError(text)


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
