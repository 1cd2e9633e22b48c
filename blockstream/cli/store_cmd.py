"""`blockstream store`."""

import contextlib
import json

import click

from blockstream.cli.command_group import CommandGroup
from blockstream.cli.console import say, show
from blockstream.cli.location_types import PLACE
from blockstream.cli.store_access import StoreAccess
from blockstream.cli.store_care import compact_points, prune_points, repair_points, verify
from blockstream.cli.store_keys import key
from blockstream.cli.store_options import with_store_access
from blockstream.cli.stores import (
    is_store,
    opened_objects,
    whole_store,
)
from blockstream.errors import (
    RefusedError,
    StoreDamagedError,
    UsageError,
)
from blockstream.interfaces import Objects
from blockstream.repository.keys import StoreHeader
from blockstream.repository.memory import Memory
from blockstream.repository.pins import Pins
from blockstream.repository.policy import Role, policy
from blockstream.repository.repository import Repository


@click.group("store", cls=CommandGroup, short_help="Make and look after a store of restore points.")
def command() -> None:
    """Make and look after a STORE: a place for restore points of any number of disks.

    STORE is dir:PATH, a folder on a disk of this host, a USB disk or NFS; or s3://BUCKET/PREFIX, on
    AWS or another server that speaks S3. Credentials come as for the aws command: from the
    environment, ~/.aws, or the instance.

    \b
    Examples:
      blockstream store init dir:/var/backups/blockstream
      blockstream send /dev/vg/vm dir:/var/backups/blockstream/vm
      blockstream points dir:/var/backups/blockstream/vm
      blockstream restore dir:/var/backups/blockstream/vm@last /dev/vg/vm
      blockstream store verify dir:/var/backups/blockstream --percent 5
      blockstream store prune dir:/var/backups/blockstream --keep hourly=24,daily=30
      blockstream store init s3://bucket/backups --endpoint-url https://s3.example.com
    """  # noqa: D301


@command.command("init", short_help="Make a store, once.")
@click.argument("store", type=PLACE)
@click.option(
    "--encrypt-to",
    "recipients",
    multiple=True,
    metavar="RECIPIENT",
    help="Encrypt all that is saved, for who can open it: age1..., an ssh public key, or kms:ARN. "
    "May be given several times.",
)
@click.option(
    "--anew", is_flag=True, help="Make it although this host has used another store in that place."
)
@with_store_access
def init(store: str, recipients: tuple[str, ...], anew: bool, access: StoreAccess) -> None:
    """Make a STORE, once; its bucket must be there.

    With --encrypt-to, whoever reads the bucket or the folder sees names and sizes only. Every
    command needs an --identity then, or a key of KMS that it may use.
    """
    place = whole_store(store)
    outer = place.rpartition("/")[0]
    if outer.startswith("dir:") and is_store(outer, access):
        raise RefusedError(
            f"{place} is the name of a disk of the store {outer}; nothing was made; choose a "
            "folder that is in no store"
        )
    with opened_objects(place, access) as objects:
        if not anew and Memory(access.state_dir).has_used(objects.name) and _is_empty(objects):
            raise RefusedError(
                f"this host has used a store in {objects.name} that is not there now; nothing was "
                "made; is what it lies on mounted? --anew makes another one all the same"
            )
        header = Repository.create(objects, recipients)
        name = objects.name
        if not header.encrypted:  # else its key is remembered, when it is used
            with contextlib.suppress(RefusedError):  # without a state directory, nothing is
                Memory(access.state_dir).trust(Repository(objects))
    say(f"{name} is a store now; `blockstream send DISK {name}/NAME` saves a disk")
    if recipients:
        say("Whoever loses every identity that opens it has lost what it holds: keep one elsewhere")


def _is_empty(objects: Objects) -> bool:
    """Tell whether there is nothing of a store, not even a damaged one."""
    try:
        return not StoreHeader.is_there(objects)
    except StoreDamagedError:
        return False


@command.command("policy", short_help="Print what AWS must allow a key.")
@click.argument("store", type=PLACE)
@click.option(
    "--role",
    type=click.Choice([str(role) for role in Role]),
    default=str(Role.WRITER),
    show_default=True,
    help="writer: send; reader: points, restore, verify; pruner: prune, compact.",
)
def show_policy(store: str, role: str) -> None:
    """Print the least that AWS must allow a key for a STORE in S3.

    A writer's key can neither delete nor hide points. But S3 lets whoever may write overwrite: only
    a bucket with versioning, or Object Lock, outlives a writer's key that was stolen. `store init`
    needs a key that may write all of it.
    """
    place = whole_store(store)
    if not place.startswith("s3://"):
        raise UsageError(f"{store} is no store in S3: s3://BUCKET/PREFIX is one")
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    show(json.dumps(policy(bucket, prefix.strip("/"), Role(role)), indent=2) + "\n")


@command.command("trust", short_help="Take the store that lies there now for the right one.")
@click.argument("store", type=PLACE)
@with_store_access
def trust(store: str, access: StoreAccess) -> None:
    """Take the STORE that lies there now for the right one, on this host.

    The first encrypted store that is used in a place is remembered. Another one there is refused,
    because whoever may write the place could have put it there: with a key of his own. How far each
    disk was is remembered, too; `send` and `prune` refuse a store that is older than that.
    """
    with opened_objects(whole_store(store), access) as objects:
        repository = Repository(objects, access.identity)
        Pins(access.state_dir).trust(repository)
        Memory(access.state_dir).trust(repository)
    if repository.encrypted:
        say(f"{objects.name} is trusted here; its fingerprint is {repository.fingerprint}")
    else:
        say(f"{objects.name} is trusted here, and is not encrypted: anybody can make another")


for each in (verify, prune_points, compact_points, repair_points, key):
    command.add_command(each)
