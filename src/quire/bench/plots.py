"""Plots: latency percentiles, throughput, and each request on a time line. matplotlib is an extra: quire[bench]."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quire.bench.exchange import Outcome
from quire.bench.metrics import Summary, tokens_per_second, values_of
from quire.bench.workers import RunResult
from quire.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
MOST_BARS = 2000
"""Requests drawn on a time line; of more, evenly chosen ones."""

_TITLES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
_COLOURS = ("#1b6ca8", "#e08e0b", "#b3243a", "#5b7f35", "#7a4fa0")
_WAITING, _STREAMING, _FAILED, _GREY = "#f2b661", "#1b6ca8", "#b3243a", "#667080"


def check_matplotlib(otherwise: str) -> None:
    """See that plots can be drawn.

    Raises:
        ConfigError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"Plots need matplotlib: pip install 'quire[bench]' ({otherwise}).")


def check_path(path: str, flag: str) -> None:
    """See that a plot can be drawn and written there.

    Raises:
        ConfigError: another kind of file, or matplotlib is missing.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"{flag} {path!r}: the name must end in {' or '.join(FORMATS)}.")
    check_matplotlib(f"or leave {flag} out")


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the name's ending says how.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be written'}.") from None


# ---------------------------------------------------------------------------------------------------------------
# figures


def latency_figure(
    values: Sequence[float], summaries: Sequence[Summary], metrics: Sequence[str], axis: str, model: str
) -> Figure:
    """One panel per metric: its percentiles over the swept values."""
    figure, panels = _panels(f"{model}: latency", 2, 2, (11.0, 7.5))
    places, labels = _places(values)
    for panel, metric in zip(panels, metrics, strict=False):
        chosen = [p for p in summaries[0].spreads[metric].percentiles if p >= 50]
        for colour, percentile in zip(_COLOURS, chosen, strict=False):
            heights = [summary.spreads[metric].percentiles[percentile] for summary in summaries]
            panel.plot(places, heights, "o-", color=colour, label=f"p{percentile:g}", linewidth=1.8, markersize=4.5)
        _finish(panel, _TITLES[metric], axis, "ms")
        panel.set_xticks(places, labels)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.06)
        panel.legend(frameon=False, loc="best")
    return figure


def throughput_figure(values: Sequence[float], summaries: Sequence[Summary], axis: str, model: str) -> Figure:
    """Tokens and requests per second over the swept values."""
    figure, panels = _panels(f"{model}: throughput", 1, 2, (11.0, 4.6))
    places, labels = _places(values)
    tokens, requests = panels
    tokens.plot(places, [s.output_throughput for s in summaries], "o-", color=_COLOURS[0], label="output tokens")
    tokens.plot(
        places, [s.total_token_throughput for s in summaries], "s--", color=_COLOURS[1], label="input and output"
    )
    tokens.legend(frameon=False, loc="best")
    _finish(tokens, "Tokens", axis, "tokens per second")
    requests.plot(places, [s.request_throughput for s in summaries], "o-", color=_COLOURS[0], label="completed")
    if any(s.request_goodput is not None for s in summaries):
        good = [s.request_goodput or 0.0 for s in summaries]
        requests.plot(places, good, "s--", color=_COLOURS[3], label="within the limits (goodput)")
    requests.legend(frameon=False, loc="best")
    _finish(requests, "Requests", axis, "requests per second")
    for panel in panels:
        panel.set_xticks(places, labels)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.06)
        panel.yaxis.set_major_formatter("{x:,.0f}" if panel.get_ylim()[1] >= 10 else "{x:,.1f}")
    return figure


def timeline_figure(run: RunResult, title: str) -> Figure:
    """Each request as a bar: waiting, then streaming; below it, output tokens per second."""
    figure = _figure(title, (11.0, 7.0))
    bars, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_bars(bars, run)
    _draw_rate(rate, run)
    return figure


def run_figure(summary: Summary, run: RunResult, title: str) -> Figure:
    """One run on a page: how its latencies are spread, and its time line."""
    figure = _figure(title, (12.0, 10.5))
    grid = figure.add_gridspec(3, 4, height_ratios=[1.3, 2.2, 0.9])
    good = [outcome for outcome in run.outcomes if not outcome.error]
    for column, metric in enumerate(("ttft", "tpot", "itl", "e2el")):
        _draw_spread(figure.add_subplot(grid[0, column]), metric, good)
    bars = figure.add_subplot(grid[1, :])
    _draw_bars(bars, run)
    _draw_rate(figure.add_subplot(grid[2, :], sharex=bars), run)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# panels


def _draw_spread(panel: Axes, metric: str, good: Sequence[Outcome]) -> None:
    """Percentiles 0..100 of a metric as a curve, with some of them named."""
    values = values_of(metric, good)
    if len(values):
        shares = np.linspace(0, 100, 201)
        panel.plot(shares, np.percentile(values, shares), color=_STREAMING, linewidth=1.8)
        for share, colour in ((50, _COLOURS[0]), (90, _COLOURS[1]), (99, _COLOURS[2])):
            value = float(np.percentile(values, share))
            panel.plot([share], [value], "o", color=colour, markersize=5, label=f"p{share}: {value:,.4g} ms")
        panel.legend(frameon=False, loc="upper left", fontsize=8, handletextpad=0.2, borderaxespad=0.2)
        panel.set_ylim(0, float(values.max()) * 1.45 or 1.0)
    _finish(panel, _TITLES[metric], "percentile", "ms")
    panel.set_xticks([0, 25, 50, 75, 100])


def _draw_bars(panel: Axes, run: RunResult) -> None:
    """One line per request, in the order of their starts."""
    from matplotlib.lines import Line2D

    ordered = sorted(run.outcomes, key=lambda outcome: outcome.start)
    drawn = ordered[:: math.ceil(len(ordered) / MOST_BARS)]
    rows = np.arange(len(drawn))
    starts = np.array([outcome.start for outcome in drawn]) - run.start
    ends = np.array([outcome.end for outcome in drawn]) - run.start
    firsts = np.array([outcome.times[0] if len(outcome.chunks) else outcome.end for outcome in drawn]) - run.start
    failed = np.array([bool(outcome.error) for outcome in drawn])
    handles = []
    width = float(np.clip(280 / max(len(drawn), 1), 0.4, 7.0))
    for mask, left, right, colour, label in (
        (~failed, starts, firsts, _WAITING, "waiting for the first token"),
        (~failed, firsts, ends, _STREAMING, "streaming"),
        (failed, starts, ends, _FAILED, "failed"),
    ):
        if mask.any():
            panel.hlines(rows[mask], left[mask], right[mask], colors=colour, linewidth=width)
            handles.append(Line2D([], [], color=colour, linewidth=6.0, label=label))
    panel.invert_yaxis()
    panel.set_xlim(0, float(ends.max(initial=0.0)) * 1.01 or 1.0)
    every = f", every {math.ceil(len(ordered) / MOST_BARS)}th" if len(drawn) < len(ordered) else ""
    _finish(panel, "", "", f"request, by start{every}")
    panel.grid(False, axis="y")
    panel.plot(ends[failed], rows[failed], "x", color=_FAILED, markersize=4, markeredgewidth=1.0)
    panel.legend(handles=handles, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, handlelength=1.2)


def _draw_rate(panel: Axes, run: RunResult) -> None:
    """Output tokens in each second; shorter pieces for short runs."""
    good = [outcome for outcome in run.outcomes if not outcome.error]
    seconds = max((outcome.end for outcome in run.outcomes), default=run.start) - run.start
    width = next((w for w in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if seconds / w <= 120), 1.0)
    stretched = [_stretched(outcome, run.start, 1 / width) for outcome in good]
    counts = tokens_per_second(0.0, stretched) / width
    panel.stairs(counts, np.arange(len(counts) + 1) * width, fill=True, color=_STREAMING, alpha=0.85)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter("{x:,.0f}")
    _finish(panel, "", "seconds since the start", "output tok/s")


def _stretched(outcome: Outcome, start: float, factor: float) -> Outcome:
    """The same request on a clock that starts at `start` and runs `factor` times as fast."""
    times = (outcome.times - start) * factor
    return Outcome(
        index=outcome.index, start=0.0, end=0.0, status=outcome.status, error="", prompt_tokens=0,
        output_tokens=outcome.output_tokens, chunks=times.tobytes(),
    )  # fmt: skip


def _panels(title: str, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = _figure(title, size)
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def _figure(title: str, size: tuple[float, float]) -> Figure:
    """An empty figure; drawn with Agg or as SVG, never on a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.11, w_pad=0.11))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    return figure


def _finish(panel: Axes, title: str, x_label: str, y_label: str) -> None:
    if title:
        panel.set_title(title, fontsize=11)
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    panel.grid(True, color="#d9dde3", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_GREY)


def _places(values: Sequence[float]) -> tuple[list[int], list[str]]:
    """Even places on the axis with the values as labels: sweeps double, and end in inf."""
    return list(range(len(values))), [f"{value:g}" for value in values]
