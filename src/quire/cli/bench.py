"""quire bench: flags from the option groups of `quire.bench`, and the engine for benchmarks that need one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from quire.bench import options as groups
from quire.cli.flags import TableCommand, with_dashes
from quire.cli.settings import Setting, from_environment, merge, settings_of
from quire.config import (
    CacheConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    StructuredOutputsConfig,
    build_group,
    did_you_mean,
    fields_of,
)

_SERVE: tuple[tuple[type, str], ...] = (
    (groups.TargetOptions, "Server"),
    (groups.DatasetOptions, "Dataset"),
    (groups.SamplingOptions, "Request"),
    (groups.LoadOptions, "Load"),
    (groups.ReportOptions, "Report"),
)
_ENGINE: tuple[tuple[type, str], ...] = (
    (ModelConfig, "Model"),
    (CacheConfig, "KV cache"),
    (SchedulerConfig, "Scheduler"),
    (ParallelConfig, "Parallelism"),
    (StructuredOutputsConfig, "Structured outputs"),
)
_MAX_HELP_COLUMN = 34


class BenchCommand(TableCommand):
    """A command with one flag per field of some option groups, and maybe those of the engine.

    Args:
        name: the command's.
        tables: groups with their headings in the help; their flags have no twins in the environment.
        engine: also take the engine's flags, whose twins count.
    """

    def __init__(self, name: str, tables: Sequence[tuple[type, str]], *, engine: bool = False, **kwargs: Any) -> None:
        self._own = [setting for group, heading in tables for setting in settings_of(group, heading)]
        self._engine = [setting for group, heading in _ENGINE if engine for setting in settings_of(group, heading)]
        context = {"max_content_width": 120}
        super().__init__(name, [*self._own, *self._engine], [], context_settings=context, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As its base, and `--header a=1 b=2` is read as `--header a=1 --header b=2`."""
        lists = {setting.flag for setting in self._own if setting.kind == "texts"}
        return super().parse_args(ctx, _repeated(with_dashes(args), lists))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section per group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        engine_names = {setting.name for setting in self._engine}
        for param in self.get_params(ctx):
            setting: Setting | None = getattr(param, "setting", None)
            record = param.get_help_record(ctx)
            if setting is not None and setting.name not in engine_names:
                record = (_names(setting, param), _sentence(setting))
            if record is not None:
                sections.setdefault(setting.group if setting else "Options", []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=_MAX_HELP_COLUMN)

    def engine_values(self, command_line: dict[str, Any]) -> dict[str, Any]:
        """Settings of the engine: command line, then environment; without those left at their defaults."""
        names = {setting.name for setting in self._engine}
        return merge(
            {name: command_line[name] for name in _given(command_line) & names}, from_environment(self._engine)
        )


def _repeated(args: list[str], flags: set[str]) -> list[str]:
    """Arguments in which each value of a flag with several has the flag before it."""
    found: list[str] = []
    current = None
    for arg in args:
        if arg.startswith("--"):
            current = arg if arg in flags else None
            found += [] if current else [arg]
        elif current:
            found += [current, arg]
        else:
            found.append(arg)
    return found


def _names(setting: Setting, param: click.Parameter) -> str:
    if setting.kind == "flag":
        return setting.flag
    return f"{setting.flag} {getattr(param.type, 'shown', setting.kind.upper())}"


def _sentence(setting: Setting) -> str:
    shown = setting.default not in (None, (), False)
    return setting.help + (f"  [default: {setting.default}]" if shown else "")


def _given(command_line: dict[str, Any]) -> set[str]:
    return {name for name, value in command_line.items() if value is not None and value != ()}


def _group(kind: type, command_line: dict[str, Any]) -> Any:
    """A group of options from the flags that were given."""
    names = _given(command_line) & set(fields_of(kind))
    return build_group(kind, {name: command_line[name] for name in names})


def _serve_options(command_line: dict[str, Any]) -> Any:
    from quire.bench.serve import ServeOptions

    return ServeOptions(
        dataset=_group(groups.DatasetOptions, command_line),
        target=_group(groups.TargetOptions, command_line),
        sampling=_group(groups.SamplingOptions, command_line),
        load=_group(groups.LoadOptions, command_line),
        report=_group(groups.ReportOptions, command_line),
    )


# ---------------------------------------------------------------------------------------------------------------
# the commands


def _serve() -> click.Command:
    def run(**command_line: Any) -> None:
        options = _serve_options(command_line)
        from quire.bench.serve import run_serve

        run_serve(options)

    text = "Send requests to an OpenAI-compatible server and report throughput and latencies."
    return BenchCommand("serve", _SERVE, callback=run, short_help="Load on a server.", help=text)


def _sweep() -> click.Command:
    def run(**command_line: Any) -> None:
        sweep, options = _group(groups.SweepOptions, command_line), _serve_options(command_line)
        from quire.bench.sweep import run_sweep

        run_sweep(sweep, options)

    text = "Run `serve` over a list of rates or concurrencies: a JSON file each, one table, plots."
    tables = ((groups.SweepOptions, "Sweep"), *_SERVE)
    return BenchCommand("sweep", tables, callback=run, short_help="Load on a server, over a range.", help=text)


def _throughput() -> click.Command:
    def run(**command_line: Any) -> None:
        options = _group(groups.ThroughputOptions, command_line)
        dataset = _group(groups.DatasetOptions, command_line)
        values = command.engine_values(command_line)
        from quire.bench.offline import run_throughput

        run_throughput(options, dataset, _engine_maker(values), values.get("seed", 0))

    text = "Measure how many requests and tokens per second the engine takes offline, all prompts given at once."
    tables = ((groups.ThroughputOptions, "Benchmark"), (groups.DatasetOptions, "Dataset"))
    short = "Offline throughput."
    command = BenchCommand("throughput", tables, engine=True, callback=run, short_help=short, help=text)
    return command


def _latency() -> click.Command:
    def run(**command_line: Any) -> None:
        options = _group(groups.LatencyOptions, command_line)
        values = command.engine_values(command_line)
        from quire.bench.offline import run_latency

        run_latency(options, _engine_maker(values), values.get("seed", 0))

    text = "Measure how long one batch takes offline, again and again."
    tables = ((groups.LatencyOptions, "Benchmark"),)
    short = "Offline latency of one batch."
    command = BenchCommand("latency", tables, engine=True, callback=run, short_help=short, help=text)
    return command


def _engine_maker(values: dict[str, Any]) -> Callable[[], Any]:
    """Makes the engine: `quire.bench` is a client and must not know it."""

    def make() -> Any:
        from quire.llm import LLM

        return LLM(**values)

    return make


def _ceiling() -> click.Command:
    def run(**command_line: Any) -> None:
        options = _group(groups.CeilingOptions, command_line)
        from quire.bench.ceiling import run_ceiling

        run_ceiling(options)

    text = "Measure what the load generator itself can take, against a stub server on this machine."
    tables = ((groups.CeilingOptions, "Options"),)
    return BenchCommand("ceiling", tables, callback=run, short_help="What this client can take.", help=text)


class _Startup(BenchCommand):
    """Flags that it does not know are those of `quire serve`; that one checks them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep what is not ours, in its order."""
        ctx.ignore_unknown_options = ctx.allow_extra_args = True
        return super().parse_args(ctx, args)


def _startup() -> click.Command:
    def run(**command_line: Any) -> None:
        options = _group(groups.StartupOptions, command_line)
        flags = list(click.get_current_context().args)
        from quire.bench.startup import run_startup

        run_startup(options, flags)

    text = "Measure the time from the command to a server that answers. All other arguments go to `quire serve`."
    tables = ((groups.StartupOptions, "Options"),)
    return _Startup("startup", tables, callback=run, short_help="Time until a server is ready.", help=text)


_COMMANDS: dict[str, Callable[[], click.Command]] = {
    "serve": _serve,
    "throughput": _throughput,
    "latency": _latency,
    "startup": _startup,
    "sweep": _sweep,
    "ceiling": _ceiling,
}


class _Bench(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _COMMANDS[cmd_name]() if cmd_name in _COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"No such benchmark {args[0]!r}.{did_you_mean(args[0], set(_COMMANDS))}", ctx)
        return super().resolve_command(ctx, args)


def make_command() -> click.Command:
    """The `bench` command."""
    text = "Measure a server (serve, sweep), the engine offline (throughput, latency), starts, or the client itself."
    return _Bench("bench", short_help="Measure a server or the engine.", help=text, no_args_is_help=False)
