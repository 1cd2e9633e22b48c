"""Options on how a store is reached, and what they come to."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from blockstream.cli.option_groups import OptionGroups, with_groups
from blockstream.cli.store_access import StoreAccess
from blockstream.declared import Needs, option
from blockstream.linux.state_directory import check_owner, default_state_directory


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StoreOptions:
    """How a store is reached.

    Attributes:
        endpoint_url: S3 server other than AWS; empty for what botocore's settings say.
        identity: File with an identity that opens an encrypted store.
        allow_http: Take a server of another host without TLS.
    """

    endpoint_url: str = option(
        "",
        "S3 server other than AWS; AWS_ENDPOINT_URL and ~/.aws/config say it, too.",
        metavar="URL",
        needs=(Needs.STORE,),
        rare=True,
    )
    identity: Path | None = option(
        None,
        "Opens an encrypted store: an age identity or an ssh private key; BLOCKSTREAM_IDENTITY "
        "says it, too.",
        metavar="FILE",
        variable="BLOCKSTREAM_IDENTITY",
        needs=(Needs.STORE,),
    )
    allow_http: bool = option(
        False,
        "Take an S3 server of another host that is reached by http, without TLS.",
        needs=(Needs.STORE,),
        rare=True,
    )

    def access(self, state_dir: Path | None = None) -> StoreAccess:
        """Return it with the state directory that remembers which stores were used."""
        remembering = state_dir or check_owner(default_state_directory())
        return StoreAccess(self.endpoint_url, self.identity, remembering, self.allow_http)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class StoreGroups(OptionGroups):
    """The options of a command that needs only a store."""

    titles: ClassVar = {"store": "Reaching the store"}

    store: StoreOptions


def with_store_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how a store is reached, as `access`."""

    @with_groups(StoreGroups)
    @functools.wraps(command)
    def wrapped(*words: Any, options: StoreGroups, **given: Any) -> None:
        command(*words, access=options.store.access(), **given)

    return wrapped
