"""quire: the table of commands, and how errors end the program."""

from __future__ import annotations

import importlib
import sys
import warnings

import click

from quire.cli.flags import with_dashes
from quire.errors import ConfigError, QuireError
from quire.version import __version__

_COMMANDS = {
    "serve": "quire.cli.serve",
    "bench": "quire.cli.bench",
    "completion": "quire.cli.completion",
}
"""Command → module with `make_command()`; imported when the command is used or listed."""


class _Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name]).make_command()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from quire.config import did_you_mean

        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No such command {args[0]!r}.{did_you_mean(args[0], set(_COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)


def make_root() -> click.Group:
    """The `quire` command."""
    root = _Root("quire", help="Serve and run large language models.", no_args_is_help=False)
    return click.version_option(__version__, prog_name="quire", message="%(prog)s %(version)s")(root)


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 fine, 1 could not start or died, 2 wrong flags or settings.

    The last line on stderr names the cause; a traceback comes with --verbose only.
    """
    args = sys.argv[1:] if args is None else args
    warnings.showwarning = _show_warning
    try:
        code = make_root().main(args=args, prog_name="quire", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except QuireError as error:
        _explain(error, args)
        code = 2 if isinstance(error, ConfigError) else 1
    except Exception as error:  # noqa: BLE001 - the last line must name the cause, whatever it is
        _explain(error, args)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in our code that it came from."""
    print(f"quire: {message}", file=sys.stderr)


def _explain(error: Exception, args: list[str]) -> None:
    if {"-v", "--verbose"} & set(with_dashes(args)):
        import traceback

        traceback.print_exception(error)
    message = error.message if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"
    print(f"quire: {message}", file=sys.stderr)
