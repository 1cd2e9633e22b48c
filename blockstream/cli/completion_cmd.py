"""`blockstream completion`."""

import click
from click.shell_completion import get_completion_class

from blockstream.cli.console import show
from blockstream.errors import UsageError

_VARIABLE = "_BLOCKSTREAM_COMPLETE"
# Bash breaks words at : and @ and =, and puts what it is given behind the last of these. So the
# words are told from the line itself, and what stands before that place is taken off.
_BASH = r"""_blockstream_completion() {
    local line="${COMP_LINE:0:COMP_POINT}" words word before type value
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word="${words[-1]}"
    before="${word%"${word##*[:@=]}"}"
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("${value#"$before"}")
                [[ $value == *[/:] ]] && compopt -o nospace
                ;;
        esac
    done < <(
        COMP_WORDS=$(printf '%q ' "${words[@]}") COMP_CWORD=$((${#words[@]} - 1)) \
            _BLOCKSTREAM_COMPLETE=bash_complete "$1" 2>/dev/null
    )
}
complete -o nosort -F _blockstream_completion blockstream
"""


@click.command("completion", short_help="Print what makes a shell complete words.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete options, files, states, and disks and points of stores.

    \b
    Examples:
      blockstream completion bash > /etc/bash_completion.d/blockstream
      blockstream completion zsh > /usr/local/share/zsh/site-functions/_blockstream
      blockstream completion fish > ~/.config/fish/completions/blockstream.fish
    """  # noqa: D301
    if shell == "bash":
        show(_BASH)
        return
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"nothing is known of {shell}")
    root = context.find_root()
    show(found(root.command, {}, "blockstream", _VARIABLE).source())
