"""One run against a server: options → requests → load → summary, table and files."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from quire.bench import gpu, report
from quire.bench.arrivals import due_times
from quire.bench.datasets import build
from quire.bench.load import Job
from quire.bench.metrics import Summary, goodput_limits, summarize
from quire.bench.options import (
    DatasetOptions,
    LoadOptions,
    ReportOptions,
    SamplingOptions,
    TargetOptions,
    metric_names,
    pairs,
    percentiles,
)
from quire.bench.target import BodyMaker, find_model, is_chat, make_target
from quire.bench.vocabulary import Vocabulary, vocabulary_of
from quire.bench.workers import RunResult, run_job
from quire.errors import QuireError

BUSY = 0.85
"""Share of a core from which the client may have slowed down what it measured."""


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All groups of `quire bench serve`."""

    dataset: DatasetOptions = DatasetOptions()
    target: TargetOptions = TargetOptions()
    sampling: SamplingOptions = SamplingOptions()
    load: LoadOptions = LoadOptions()
    report: ReportOptions = ReportOptions()


class Measured(msgspec.Struct, frozen=True):
    """What one run gave.

    Attributes:
        summary: figures.
        run: the timelines.
        content: the JSON object.
        text: the table, with what is to be said besides.
    """

    summary: Summary
    run: RunResult
    content: dict[str, Any]
    text: str


class Bench:
    """Owns what runs on one server have in common: target, model, vocabulary.

    Args:
        options: of the run, or of the first of several.

    Raises:
        ConfigError: options that cannot work.
        UnavailableError: the server does not answer.
    """

    def __init__(self, options: ServeOptions) -> None:
        check(options)
        self._target = make_target(options.target)
        self._model = find_model(options.target, tell)
        self._tokenizer = options.target.tokenizer or options.target.model or self._model
        self._vocab_size = options.dataset.vocab_size
        self._vocabulary: Vocabulary | None = None

    def measure(self, options: ServeOptions) -> Measured:
        """One run.

        Raises:
            ConfigError: a dataset that cannot be used.
            QuireError: not one request was answered.
        """
        chat = is_chat(options.target)
        as_text = chat or options.dataset.random_as_text
        samples = build(options.dataset, self._get_vocabulary, options.load.seed, as_text=as_text)
        maker = BodyMaker(chat=chat, model=self._model, sampling=options.sampling)
        bodies = [maker.body(sample) for sample in samples]
        prompt_lens = [sample.prompt_len for sample in samples]
        del samples  # long prompts as lists of integers take more memory than all the rest
        self._warm_up(options, bodies)
        due = due_times(len(bodies), options.load.request_rate, options.load.burstiness, options.load.seed)
        job = Job(
            target=self._target,
            indices=range(len(bodies)),
            bodies=bodies,
            due=due,
            max_concurrency=options.load.max_concurrency,
            timeout=options.target.request_timeout_sec,
        )
        local = self._target.host in gpu.LOCAL_HOSTS
        with gpu.GpuWatch(gpu.nvml_reader() if local else None) as watch:
            run = _run_with_bar(job, options)
        return self._measured(options, prompt_lens, run, watch.means)

    def _get_vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = vocabulary_of(self._tokenizer, self._vocab_size, tell)
        return self._vocabulary

    def _warm_up(self, options: ServeOptions, bodies: list[bytes]) -> None:
        count = min(options.load.num_warmups, len(bodies))
        if count:
            timeout = options.target.request_timeout_sec
            limit = options.load.max_concurrency
            run_job(Job(self._target, range(count), bodies[:count], [0.0] * count, limit, timeout))

    def _measured(
        self, options: ServeOptions, prompt_lens: list[int], run: RunResult, gpu_means: list[float]
    ) -> Measured:
        limits = goodput_limits(pairs(options.report.goodput, "--goodput", ":"))
        chosen = percentiles(options.report.metric_percentiles)
        summary = summarize(run.start, run.outcomes, prompt_lens, chosen, limits)
        gpu_utilization = gpu.in_use(gpu_means)
        text = report.table(
            summary,
            metric_names(options.report.percentile_metrics),
            max_concurrency=options.load.max_concurrency,
            request_rate=options.load.request_rate,
            gpu_utilization=gpu_utilization,
        )
        content = {
            **self._head(options, len(prompt_lens)),
            **report.figures(summary),
            "gpu_utilization": gpu_utilization,
            "gpu_utilization_per_device": gpu_means,
            "client_cpu_share": run.cpu_share,
            **report.per_request(run.start, run.outcomes, prompt_lens),
        }
        return Measured(summary, run, content, "\n".join([text, *_remarks(run)]))

    def _head(self, options: ServeOptions, num_prompts: int) -> dict[str, Any]:
        rate = options.load.request_rate
        return {
            "date": time.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": options.target.backend,
            "backend": options.target.backend,
            "label": options.report.label,
            "model_id": self._model,
            "tokenizer_id": self._tokenizer,
            "num_prompts": num_prompts,
            **pairs(options.report.metadata, "--metadata"),
            "request_rate": "inf" if math.isinf(rate) else rate,
            "burstiness": options.load.burstiness,
            "max_concurrency": options.load.max_concurrency,
        }


def run_serve(options: ServeOptions) -> Measured:
    """`quire bench serve`: one run, printed and saved.

    Raises:
        QuireError: options that cannot work, no server, or not one request answered.
    """
    if options.report.plot:
        from quire.bench.plots import check_path

        check_path(options.report.plot, "--plot")
    measured = Bench(options).measure(options)
    print(measured.text, flush=True)
    if options.report.save_result or options.report.save_detailed or options.report.result_filename:
        path = Path(options.report.result_dir or ".") / (options.report.result_filename or _file_name(measured.content))
        report.write_json(path, measured.content)
        tell(f"Result written to {path}.")
    if options.report.plot:
        from quire.bench.plots import run_figure, save

        save(run_figure(measured.summary, measured.run, title=_title(measured.content)), options.report.plot)
        tell(f"Plot written to {options.report.plot}.")
    if not measured.summary.completed:
        raise QuireError(f"No request succeeded: {report.error_lines(measured.run.outcomes)[0]}")
    return measured


def check(options: ServeOptions) -> None:
    """Look at everything that can be wrong before anything is sent.

    Raises:
        ConfigError: something is.
    """
    metric_names(options.report.percentile_metrics)
    percentiles(options.report.metric_percentiles)
    goodput_limits(pairs(options.report.goodput, "--goodput", ":"))
    pairs(options.report.metadata, "--metadata")
    make_target(options.target)
    BodyMaker(chat=is_chat(options.target), model="", sampling=options.sampling)


def tell(message: str) -> None:
    """A remark beside the result, which alone goes to stdout."""
    print(f"quire: {message}", file=sys.stderr, flush=True)


def _run_with_bar(job: Job, options: ServeOptions) -> RunResult:
    from tqdm import tqdm

    with tqdm(total=len(job.bodies), unit="req", disable=options.report.disable_tqdm, dynamic_ncols=True) as bar:

        def on_done(count: int) -> None:
            bar.update(count)

        return run_job(job, options.load.num_workers, on_done)


def _remarks(run: RunResult) -> list[str]:
    remarks = [f"Error: {line}" for line in report.error_lines(run.outcomes)]
    if run.cpu_share > BUSY:
        remarks.append(
            f"Note: the load generator itself was busy ({run.cpu_share:.0%} of a core);"
            " latencies may be its own. Use more --num-workers."
        )
    return remarks


def _title(content: dict[str, Any]) -> str:
    limit = content["max_concurrency"]
    at_most = f", at most {limit} at once" if limit else ""
    rate = float(content["request_rate"])
    pace = "all at once" if math.isinf(rate) else f"{rate:g} per second"
    return f"{content['model_id']}: {content['num_prompts']} requests, {pace}{at_most}"


def _file_name(content: dict[str, Any]) -> str:
    """{label}-{rate}qps[-concurrency{n}]-{model}-{time}.json"""
    limit = content["max_concurrency"]
    concurrency = f"-concurrency{limit}" if limit else ""
    model = str(content["model_id"]).rstrip("/").rpartition("/")[2]
    label = content["label"] or content["backend"]
    return f"{label}-{content['request_rate']}qps{concurrency}-{model}-{content['date']}.json"
