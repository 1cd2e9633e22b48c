"""`blockstream store key`."""

from pathlib import Path

import click

from blockstream.cli.console import emit_result, say, show
from blockstream.cli.location_types import PLACE
from blockstream.cli.options import with_json
from blockstream.cli.store_access import StoreAccess
from blockstream.cli.store_options import with_store_access
from blockstream.cli.stores import (
    opened_objects,
    whole_store,
)
from blockstream.repository.keys import StoreKeys
from blockstream.repository.repository import now_text


@click.group("key")
def key() -> None:
    """Say who can open an encrypted STORE.

    \b
    Examples:
      blockstream store key new /root/backup.key
      blockstream store init s3://bucket/backups --encrypt-to age1...
      blockstream store key add s3://bucket/backups "$(cat admin.pub)" --identity /root/backup.key
    """  # noqa: D301


@key.command("new", short_help="Make an age identity, and print its recipient.")
@click.argument("file", type=click.Path(path_type=Path))
def new_key(file: Path) -> None:
    """Make an age identity in FILE, and print its recipient."""
    show(StoreKeys.new_identity(file, now_text()) + "\n")
    say(f"{file} opens what is encrypted for it: keep a copy on another host")


@key.command("list", short_help="List who can open a store.")
@click.argument("store", type=PLACE)
@with_store_access
@with_json
def list_keys(store: str, access: StoreAccess, as_json: bool) -> None:
    """List who can open a STORE."""
    with opened_objects(whole_store(store), access) as objects:
        for each in StoreKeys.of(objects).listed():
            if as_json:
                from blockstream.events import Key

                emit_result(Key(each.id, each.recipient, each.created))
            else:
                show(f"{each.created}   {each.recipient}\n")


@key.command("add", short_help="Let somebody open a store, too.")
@click.argument("store", type=PLACE)
@click.argument("recipient")
@with_store_access
def add_key(store: str, recipient: str, access: StoreAccess) -> None:
    """Let RECIPIENT open a STORE, too; who does so must be able to."""
    with opened_objects(whole_store(store), access) as objects:
        made = StoreKeys.of(objects).add(recipient, access.identity, now_text())
    say(f"{made.recipient} can open it now")


@key.command("remove", short_help="Take somebody's key away.")
@click.argument("store", type=PLACE)
@click.argument("recipient")
@with_store_access
def remove_key(store: str, recipient: str, access: StoreAccess) -> None:
    """Take the key of RECIPIENT away.

    The store's own key stays the same: who has opened the store once may have kept it. Against
    that, only a new store helps.
    """
    with opened_objects(whole_store(store), access) as objects:
        StoreKeys.of(objects).remove(recipient)
    say(f"{recipient} is given the key no more")
