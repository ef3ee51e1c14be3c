"""quire completion: prints the script that teaches a shell to complete quire's commands and flags."""

from __future__ import annotations

import click


def make_command() -> click.Command:
    """The `completion` command."""

    def run(shell: str) -> None:
        from click.shell_completion import get_completion_class

        completion = get_completion_class(shell)
        root = click.get_current_context().find_root().command
        if completion is not None:
            click.echo(completion(root, {}, "quire", "_QUIRE_COMPLETE").source())

    return click.Command(
        "completion",
        params=[click.Argument(["shell"], type=click.Choice(["bash", "zsh", "fish"]))],
        callback=run,
        short_help="Print a shell completion script.",
        help='Print a completion script. In ~/.bashrc or ~/.zshrc: eval "$(quire completion bash)".',
    )
