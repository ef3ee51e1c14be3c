"""`quire bench sweep`: runs over a list of rates or concurrencies, one JSON file each, one table, plots.

Each point has a seed of its own: prompts that the server has just seen would be answered from its prefix cache.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import msgspec

from quire.bench import report
from quire.bench.options import METRICS, SweepOptions, numbers, percentiles
from quire.bench.serve import Bench, Measured, ServeOptions, tell
from quire.errors import ConfigError, QuireError

PERCENTILES = (50.0, 90.0, 99.0)
_COLUMNS = (
    ("completed", "completed", "{:d}"),
    ("failed", "failed", "{:d}"),
    ("req/s", "request_throughput", "{:.2f}"),
    ("output tok/s", "output_throughput", "{:,.0f}"),
    ("total tok/s", "total_token_throughput", "{:,.0f}"),
    ("TTFT p50 ms", "p50_ttft_ms", "{:.1f}"),
    ("TTFT p99 ms", "p99_ttft_ms", "{:.1f}"),
    ("TPOT p50 ms", "p50_tpot_ms", "{:.2f}"),
    ("TPOT p99 ms", "p99_tpot_ms", "{:.2f}"),
    ("ITL p50 ms", "p50_itl_ms", "{:.2f}"),
    ("ITL p99 ms", "p99_itl_ms", "{:.2f}"),
    ("GPU %", "gpu_utilization", "{:.0f}"),
)
"""Heading, JSON key, format."""


class Point(msgspec.Struct, frozen=True):
    """One run of a sweep.

    Attributes:
        value: the rate, or the concurrency.
        measured: what it gave.
    """

    value: float
    measured: Measured


def run_sweep(sweep: SweepOptions, options: ServeOptions) -> list[Point]:
    """All points; printed and saved.

    Raises:
        QuireError: options that cannot work, no server, or a point without any answer.
    """
    name, points = plan(sweep, options)
    folder = Path(sweep.output_dir)
    if not sweep.no_plots:
        from quire.bench.plots import check_matplotlib

        check_matplotlib("--no-plots leaves plots out")
    if options.dataset.dataset_name in ("sharegpt", "custom"):
        tell("All points send the same prompts: later ones may be answered from the server's prefix cache.")
    bench = Bench(options)
    done: list[Point] = []
    for value, point in points:
        tell(f"{name} {value:g} ({len(done) + 1} of {len(points)})")
        measured = bench.measure(point)
        print(measured.text, flush=True)
        report.write_json(folder / f"{name}-{value:g}.json", measured.content)
        if not measured.summary.completed:
            raise QuireError(f"No request succeeded: {report.error_lines(measured.run.outcomes)[0]}")
        done.append(Point(value, measured))
    _write(done, name, folder)
    if not sweep.no_plots:
        _plot(done, name, folder, sweep.plot_format)
    tell(f"Results, tables and plots written to {folder}.")
    return done


def plan(sweep: SweepOptions, options: ServeOptions) -> tuple[str, list[tuple[float, ServeOptions]]]:
    """('rate' or 'concurrency', values with the options of their runs).

    Raises:
        ConfigError: no list, two, or values that cannot be.
    """
    if (sweep.request_rates is None) == (sweep.concurrencies is None):
        raise ConfigError("sweep needs one of --request-rates 1,2,4,inf and --concurrencies 1,8,32.")
    if sweep.request_rates is not None:
        if not math.isinf(options.load.request_rate):
            raise ConfigError("--request-rate and --request-rates both set the rate: give one.")
        if sweep.rounds is not None:
            raise ConfigError("--rounds goes with --concurrencies; with --request-rates give --num-prompts.")
        values = _increasing(sweep.request_rates, "--request-rates")
        changes = [{"request_rate": value} for value in values]
        return "rate", [
            _point(options, i, value, change) for i, (value, change) in enumerate(zip(values, changes, strict=True))
        ]
    assert sweep.concurrencies is not None
    if options.load.max_concurrency is not None:
        raise ConfigError("--max-concurrency and --concurrencies both set the limit: give one.")
    values = _increasing(sweep.concurrencies, "--concurrencies")
    if any(value != int(value) for value in values if not math.isinf(value)) or math.isinf(values[-1]):
        raise ConfigError(f"--concurrencies {sweep.concurrencies!r}: whole numbers are needed.")
    return "concurrency", [
        _point(options, i, value, {"max_concurrency": int(value)}, sweep.rounds) for i, value in enumerate(values)
    ]


def _point(
    options: ServeOptions, index: int, value: float, change: dict[str, Any], rounds: int | None = None
) -> tuple[float, ServeOptions]:
    replace = msgspec.structs.replace
    load = replace(options.load, seed=options.load.seed + index, **change)
    dataset = options.dataset if rounds is None else replace(options.dataset, num_prompts=rounds * int(value))
    chosen = dict.fromkeys([*PERCENTILES, *percentiles(options.report.metric_percentiles)])
    shown = replace(options.report, metric_percentiles=",".join(f"{p:g}" for p in sorted(chosen)))
    return value, replace(options, load=load, dataset=dataset, report=shown)


def _increasing(text: str, flag: str) -> list[float]:
    values = sorted(set(numbers(text, flag)))
    if values[0] <= 0:
        raise ConfigError(f"{flag} {text!r}: {values[0]:g} is not above 0.")
    return values


# ---------------------------------------------------------------------------------------------------------------
# files


def markdown(points: list[Point], name: str) -> str:
    """The table for people."""
    lines = [
        f"| {name} | " + " | ".join(heading for heading, _, _ in _COLUMNS) + " |",
        "|" + "---:|" * (len(_COLUMNS) + 1),
    ]
    for point in points:
        cells = [_cell(point.measured.content[key], shown) for _, key, shown in _COLUMNS]
        lines.append(f"| {point.value:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comma_separated(points: list[Point], name: str) -> str:
    """The table for programs: every figure."""
    keys = [key for key, value in points[0].measured.content.items() if not isinstance(value, list)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name, *keys])
    for point in points:
        writer.writerow([f"{point.value:g}", *(point.measured.content[key] for key in keys)])
    return out.getvalue()


def _cell(value: Any, shown: str) -> str:
    return "n/a" if value is None else shown.format(value)


def _write(points: list[Point], name: str, folder: Path) -> None:
    table = markdown(points, name)
    print(table, flush=True)
    report.write_text(folder / "table.md", table + "\n")
    report.write_text(folder / "table.csv", comma_separated(points, name))


def _plot(points: list[Point], name: str, folder: Path, plot_format: str) -> None:
    from quire.bench import plots

    axis = "request rate offered (req/s)" if name == "rate" else "concurrent requests"
    model = str(points[0].measured.content["model_id"])
    values = [point.value for point in points]
    summaries = [point.measured.summary for point in points]
    plots.save(plots.latency_figure(values, summaries, METRICS, axis, model), folder / f"latency.{plot_format}")
    plots.save(plots.throughput_figure(values, summaries, axis, model), folder / f"throughput.{plot_format}")
    for point in points:
        figure = plots.timeline_figure(point.measured.run, title=f"{model}: each request at {name} {point.value:g}")
        plots.save(figure, folder / f"timeline-{name}-{point.value:g}.{plot_format}")
