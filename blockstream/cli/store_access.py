"""Options on how a store is reached, and what they come to."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from blockstream.linux.state_directory import check_owner, default_state_directory


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """What it takes to reach a store, and to read it.

    Attributes:
        endpoint: URL of another S3 server than AWS; empty for what botocore's settings say.
        identity: File with an identity that opens an encrypted store.
        state_dir: Where it is remembered which stores were used, and how far they were.
        given: Whether endpoint or identity were given on the command line.
        allow_http: Speak to another host without TLS.
    """

    endpoint: str
    identity: Path | None
    state_dir: Path
    given: bool
    allow_http: bool = False


def with_store_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how a store is reached, as `access`."""

    @click.option(
        "--endpoint-url",
        default="",
        metavar="URL",
        help="S3 server other than AWS; AWS_ENDPOINT_URL and ~/.aws/config say it, too.",
    )
    @click.option(
        "--identity",
        type=click.Path(path_type=Path),
        metavar="FILE",
        envvar="BLOCKSTREAM_IDENTITY",
        help="Opens an encrypted store: a file with an age identity, or an ssh private key; "
        "BLOCKSTREAM_IDENTITY says it, too.",
    )
    @click.option(
        "--allow-http",
        is_flag=True,
        help="Take an S3 server of another host that is reached by http, without TLS.",
    )
    @functools.wraps(command)
    def wrapped(
        *words: Any, endpoint_url: str, identity: Path | None, allow_http: bool, **options: Any
    ) -> None:
        typed = click.get_current_context().get_parameter_source("identity")
        given = bool(endpoint_url) or allow_http or typed is ParameterSource.COMMANDLINE
        state_dir = options.get("state_dir") or check_owner(default_state_directory())
        access = StoreAccess(endpoint_url, identity, state_dir, given, allow_http)
        command(*words, access=access, **options)

    return wrapped
