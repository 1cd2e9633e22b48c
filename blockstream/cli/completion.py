"""What the shell is offered for a word that is being typed: places, disks and points, states.

What cannot be read or opened offers nothing: a shell has no place for errors.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from blockstream.cli.store_access import StoreAccess
from blockstream.errors import BlockstreamError
from blockstream.linux.state_directory import default_state_directory

_FOLDER_STORE = "dir:"
_STORES = (_FOLDER_STORE, "s3://")


def places(incomplete: str) -> list[CompletionItem]:
    """Return what a place may go on with: a file, a disk or a point of a store, a kind of place."""
    if incomplete.startswith(_STORES):
        return list(_in_store(incomplete))
    from blockstream.locations.registry import SCHEMES

    kinds = [each.begins for each in SCHEMES if each.begins.startswith(incomplete)]
    found = [CompletionItem(each) for each in kinds] if incomplete else []
    return [*found, CompletionItem(incomplete, type="file")]


def states(context: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return names of states: those that targets of this host hold, and `last`."""
    from blockstream.jobs.target_admin import all_statuses
    from blockstream_protocol import Clean

    named = context.params.get("state_dir")
    folder = named if isinstance(named, Path) else default_state_directory()
    found = {"last"}
    with contextlib.suppress(OSError, BlockstreamError):
        for each in all_statuses(folder):
            if isinstance(each.state, Clean):
                found |= {each.state.id, each.staged}
    return [CompletionItem(each) for each in sorted(found - {""}) if each.startswith(incomplete)]


def _in_store(incomplete: str) -> Iterator[CompletionItem]:
    """Give disks of the store, or points of the disk, that a word begins to name; or folders."""
    disk, at, point = incomplete.rpartition("@")
    outer, _, begun = (disk if at else incomplete).rpartition("/")
    with contextlib.suppress(OSError, BlockstreamError):
        if at:
            yield from (CompletionItem(f"{disk}@{each}") for each in _points(outer, begun, point))
        else:
            yield from (CompletionItem(f"{outer}/{each}") for each in _disks(outer, begun))
    if not at and incomplete.startswith(_FOLDER_STORE):
        yield from _folders(incomplete)


def _disks(store: str, begun: str) -> list[str]:
    from blockstream.cli.stores import opened_store

    with opened_store(store, _access()) as repository:
        return [each for each in repository.disks() if each.startswith(begun)]


def _points(store: str, disk: str, begun: str) -> list[str]:
    from blockstream.cli.stores import opened_store

    with opened_store(store, _access(), disk) as repository:
        found = [str(each.seq) for each in repository.disk(disk).points()]
    return [each for each in ["last", *found] if each.startswith(begun)]


def _folders(incomplete: str) -> Iterator[CompletionItem]:
    outer, _, begun = incomplete.removeprefix(_FOLDER_STORE).rpartition("/")
    with contextlib.suppress(OSError):
        for each in sorted(os.scandir(f"{outer}/"), key=lambda entry: entry.name):
            if each.is_dir() and each.name.startswith(begun) and each.name != "bs1":
                yield CompletionItem(f"{_FOLDER_STORE}{outer}/{each.name}/")


def _access() -> StoreAccess:
    """Return what a command would take to reach a store, if nothing was said of that."""
    named = os.environ.get("BLOCKSTREAM_IDENTITY")
    return StoreAccess("", Path(named) if named else None, default_state_directory())
