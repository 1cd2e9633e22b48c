"""A group of commands that knows what a mistyped one was meant to be."""

import click


class CommandGroup(click.Group):
    """Names the command that is spelled most like the one that was typed."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, as every group does."""
        typed = args[0]
        if self.get_command(ctx, typed) is None and not typed.startswith("-"):
            import difflib  # rarely used

            near = difflib.get_close_matches(typed, self.list_commands(ctx), n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command {typed!r}.{meant}")
        return super().resolve_command(ctx, args)
