"""quire serve: the flags of every config class, merged with environment and file, handed to the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quire.cli.flags import TableCommand
from quire.cli.settings import Setting, from_environment, from_file, merge, settings_of
from quire.config import (
    ENGINE_GROUPS,
    CacheConfig,
    EngineConfig,
    MediaConfig,
    ModelConfig,
    OperationConfig,
    ParallelConfig,
    SchedulerConfig,
    ServerConfig,
    StructuredOutputsConfig,
    build_engine_config,
    build_group,
    fields_of,
)
from quire.errors import ConfigError

_HEADINGS: tuple[tuple[type, str], ...] = (
    (ServerConfig, "HTTP server"),
    (ModelConfig, "Model"),
    (CacheConfig, "KV cache"),
    (SchedulerConfig, "Scheduler"),
    (ParallelConfig, "Parallelism"),
    (StructuredOutputsConfig, "Structured outputs"),
    (MediaConfig, "Pictures"),
    (OperationConfig, "Operation"),
)


def serve_settings() -> list[Setting]:
    """The table of all flags."""
    return [setting for group, heading in _HEADINGS for setting in settings_of(group, heading)]


def build_configs(
    command_line: dict[str, Any], config_file: str | None, settings: list[Setting]
) -> tuple[EngineConfig, ServerConfig]:
    """The settings that count: command line, then environment, then file, then defaults.

    Raises:
        ConfigError: a value cannot be; the message names the flag.
    """
    given = {name: value for name, value in command_line.items() if value is not None and value != ()}
    file = from_file(Path(config_file), settings) if config_file else {}
    values = merge(given, from_environment(settings), file)
    engine_names = {name for group in ENGINE_GROUPS.values() for name in fields_of(group)}
    engine = build_engine_config({name: value for name, value in values.items() if name in engine_names})
    server: ServerConfig = build_group(ServerConfig, values)
    return engine, server


def _run(model_argument: str | None, config: str | None, verbose: bool, **command_line: Any) -> None:
    if model_argument is not None:
        if command_line.get("model") not in (None, model_argument):
            raise ConfigError(f"The model is named twice: {model_argument!r} and --model {command_line['model']!r}.")
        command_line["model"] = model_argument
    engine_config, server_config = build_configs(command_line, config, serve_settings())
    from quire.observability import logs
    from quire.server import run

    level = "DEBUG" if verbose else "INFO"
    logs.set_up(engine_config.operation.log_format, level=level)
    raise SystemExit(run(engine_config, server_config))


def make_command() -> TableCommand:
    """The `serve` command."""
    return TableCommand(
        "serve",
        settings=serve_settings(),
        params=[
            click.Argument(["model_argument"], metavar="[MODEL]", required=False),
            click.Option(["--config"], metavar="FILE.yaml", help="File with settings, named as the flags."),
            click.Option(["-v", "--verbose"], is_flag=True, help="More log lines; tracebacks of start errors."),
        ],
        callback=_run,
        short_help="Serve a model over HTTP with OpenAI's API.",
        help=(
            "Serve MODEL over HTTP with OpenAI's API.\n\nMODEL is a folder or a Hugging Face name; without one, the "
            "small demo model that ships with Quire is served. Each flag has a twin in the environment, and may stand "
            "in the --config file; the command line wins over the environment, the environment over the file. Numbers "
            "may be written 4k (4000), 4K (4096), 25.6k, 1M."
        ),
        context_settings={"max_content_width": 120},
    )
