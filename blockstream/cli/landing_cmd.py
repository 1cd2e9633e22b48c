"""`blockstream landing`: what `migrate` asks of the host where a volume comes to lie."""

from pathlib import Path

import click

from blockstream.cli.console import show
from blockstream.cli.options import with_errors_json, with_state_dir
from blockstream.jobs.migration.target_volume import LandingWish, land, landing_line


@click.command("landing", hidden=True)
@click.option("--group", required=True)
@click.option("--name", required=True)
@click.option("--size", type=click.IntRange(min=0), default=0)
@click.option("--create", is_flag=True)
@click.option("--pool", default="")
@click.option("--dry-run", is_flag=True)
@click.option("--remove", is_flag=True)
@click.option("--settle", is_flag=True)
@click.option("--mark", default="")
@with_state_dir
@with_errors_json
def command(
    group: str,
    name: str,
    size: int,
    create: bool,
    pool: str,
    dry_run: bool,
    remove: bool,
    settle: bool,
    mark: str,
    state_dir: Path,
) -> None:
    """Look at a volume, make it or take it away; answer with a line of JSON."""
    wish = LandingWish(group, name, size, create, pool, dry_run, remove, settle, mark)
    show(landing_line(land(wish, state_dir)) + "\n")
