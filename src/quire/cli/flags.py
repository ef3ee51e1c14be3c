"""Click commands whose flags come from a table of settings, with grouped help and '-' and '_' alike."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

from quire.cli.settings import Setting

_LONG_FLAG = re.compile(r"--[A-Za-z0-9_-]+")


def option_of(setting: Setting) -> click.Option:
    """The click option of a setting. Its value is None, or empty, unless the command line gives it."""
    if setting.kind == "flag":
        declaration = f"{setting.flag}/{setting.negative_flag}"
        return _TableOption([setting.name, declaration], setting=setting, default=None, help=setting.help)
    return _TableOption(
        [setting.name, setting.flag],
        setting=setting,
        type=_SettingType(setting),
        default=None,
        multiple=setting.kind == "texts",
        help=setting.help,
    )


class _TableOption(click.Option):
    def __init__(self, *args: Any, setting: Setting, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The flag, and what it does with default and environment name."""
        setting = self.setting
        names = f"{setting.flag} / {setting.negative_flag}" if setting.kind == "flag" else setting.flag
        metavar = "" if setting.kind == "flag" else " " + _SettingType(setting).shown
        extra = [setting.environment]
        if setting.default is not None and setting.default != ():
            shown = str(setting.default).lower() if setting.kind == "flag" else str(setting.default)
            extra.insert(0, f"default: {shown}")
        return names + metavar, f"{setting.help}  [{', '.join(extra)}]"


class _SettingType(click.ParamType):  # type: ignore[type-arg]
    """Parses with the table's own parser, so that flags, environment and file agree."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.name = setting.kind
        kind = "TEXT" if setting.kind == "texts" else setting.kind.upper()
        self.shown = "|".join(setting.choices) or kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            parsed = self.setting._parse(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        return parsed[0] if self.setting.kind == "texts" else parsed

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The choices, where there are some."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self.setting.choices if choice.startswith(incomplete)]


class TableCommand(click.Command):
    """A command with one option per setting.

    Args:
        name: the command's.
        settings: the table.
        params: arguments and options of its own; they come first in the help.
    """

    def __init__(self, name: str, settings: Iterable[Setting], params: list[click.Parameter], **kwargs: Any) -> None:
        super().__init__(name, params=[*params, *map(option_of, settings)], **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with --max_model_len read as --max-model-len."""
        return super().parse_args(ctx, with_dashes(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section per group."""
        own = [
            record
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and not isinstance(param, _TableOption)
            if (record := param.get_help_record(ctx))
        ]
        with formatter.section("Options"):
            formatter.write_dl(own)
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, _TableOption):
                groups.setdefault(param.setting.group, []).append(param.get_help_record(ctx))
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=34)


def with_dashes(args: list[str]) -> list[str]:
    """The flags among some arguments, up to '--', spelt with '-' instead of '_'."""
    end = args.index("--") if "--" in args else len(args)
    return [
        _LONG_FLAG.sub(lambda match: match.group().replace("_", "-"), arg, count=1) if arg.startswith("--") else arg
        for arg in args[:end]
    ] + args[end:]
