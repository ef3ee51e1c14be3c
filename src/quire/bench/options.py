"""What can be asked of a benchmark: one frozen group per theme, one field per flag.

Names and defaults are those of `vllm bench`, so commands move over. The command line is made from the fields, as it is
from those of `quire.config`. Nothing heavy is imported here: `--help` reads this file.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quire.errors import ConfigError

Count = Annotated[int, Meta(ge=1)]


class DatasetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which prompts, how many, how long."""

    dataset_name: Annotated[
        Literal["random", "sharegpt", "custom", "prefix_repetition"], Meta(description="Where prompts come from.")
    ] = "random"
    dataset_path: Annotated[
        str | None, Meta(description="File of sharegpt (JSON) or custom (one JSON object per line).")
    ] = None
    num_prompts: Annotated[int, Meta(ge=1, description="Number of requests.")] = 1000
    input_len: Annotated[
        Count | None, Meta(description="Prompt tokens, whatever the dataset calls them (random, prefix_repetition).")
    ] = None
    output_len: Annotated[Count | None, Meta(description="Output tokens, whatever the dataset calls them.")] = None
    random_input_len: Annotated[int, Meta(ge=1, description="random: prompt tokens.")] = 1024
    random_output_len: Annotated[int, Meta(ge=1, description="random: output tokens.")] = 128
    random_range_ratio: Annotated[
        float, Meta(ge=0, lt=1, description="random: lengths vary evenly within this share below and above.")
    ] = 0.0
    random_prefix_len: Annotated[
        int, Meta(ge=0, description="random: tokens that all prompts begin with, besides the input length.")
    ] = 0
    sharegpt_output_len: Annotated[
        Count | None, Meta(description="sharegpt: output tokens; default: as long as the recorded answer.")
    ] = None
    custom_output_len: Annotated[
        int, Meta(ge=1, description="custom: output tokens of lines that have no output_tokens.")
    ] = 256
    prefix_repetition_prefix_len: Annotated[int, Meta(ge=1, description="prefix_repetition: shared tokens.")] = 256
    prefix_repetition_suffix_len: Annotated[int, Meta(ge=1, description="prefix_repetition: tokens of its own.")] = 256
    prefix_repetition_num_prefixes: Annotated[int, Meta(ge=1, description="prefix_repetition: shared prefixes.")] = 10
    prefix_repetition_output_len: Annotated[int, Meta(ge=1, description="prefix_repetition: output tokens.")] = 128
    disable_shuffle: Annotated[bool, Meta(description="Keep the order of the file.")] = False
    no_oversample: Annotated[
        bool, Meta(description="Send fewer requests where the file has too few prompts, instead of repeating some.")
    ] = False
    skip_chat_template: Annotated[
        bool, Meta(description="Accepted for vLLM's sake: no template is ever applied here, the server does it.")
    ] = False
    random_as_text: Annotated[
        bool, Meta(description="Send made-up prompts as text; /v1/completions gets token ids otherwise.")
    ] = False
    vocab_size: Annotated[
        Annotated[int, Meta(ge=16)] | None,
        Meta(description="Token ids are drawn below this; default: the tokenizer's."),
    ] = None


class TargetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Which server, and how it is spoken to."""

    backend: Annotated[
        Literal["openai", "vllm", "openai-chat"],
        Meta(description="openai and vllm: /v1/completions; openai-chat: /v1/chat/completions."),
    ] = "openai"
    base_url: Annotated[
        str | None, Meta(description="http(s)://host:port of the server, instead of host and port.")
    ] = None
    host: Annotated[str | None, Meta(description="Host of the server; default 127.0.0.1.")] = None
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None, Meta(description="Port of the server; default 8000.")
    ] = None
    endpoint: Annotated[str | None, Meta(description="Path of the API; default: the backend's.")] = None
    model: Annotated[str | None, Meta(description="Model; default: the first one the server lists.")] = None
    served_model_name: Annotated[str | None, Meta(description="Name of the model in requests; default: --model.")] = (
        None
    )
    tokenizer: Annotated[
        str | None,
        Meta(description="Folder or name of the tokenizer, for prompts made or measured here; default: model."),
    ] = None
    trust_remote_code: Annotated[
        bool, Meta(description="Accepted for vLLM's sake; no code of a tokenizer is ever run.")
    ] = False
    api_key: Annotated[str | None, Meta(description="Bearer key; default: OPENAI_API_KEY in the environment.")] = None
    header: Annotated[tuple[str, ...], Meta(description="KEY=VALUE sent with each request; several may follow.")] = ()
    ready_check_timeout_sec: Annotated[
        float, Meta(ge=0, description="Seconds to wait until the server answers; 0: it must answer now.")
    ] = 600
    request_timeout_sec: Annotated[float, Meta(gt=0, description="Seconds until a request counts as failed.")] = 21600


class SamplingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What each request asks for; only what is given is sent, and temperature."""

    ignore_eos: Annotated[bool, Meta(description="Generate past the model's end tokens.")] = False
    temperature: Annotated[float, Meta(ge=0, description="0 is greedy.")] = 0.0
    top_p: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, Meta(description="Nucleus sampling.")] = None
    top_k: Annotated[int | None, Meta(description="Most likely tokens to choose from.")] = None
    min_p: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, Meta(description="Least relative probability.")] = None
    frequency_penalty: Annotated[float | None, Meta(description="In -2..2.")] = None
    presence_penalty: Annotated[float | None, Meta(description="In -2..2.")] = None
    repetition_penalty: Annotated[float | None, Meta(description="Above 0; 1 is off.")] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="Log-probabilities of this many tokens at each position.")
    ] = None
    extra_body: Annotated[str | None, Meta(description="JSON object merged into each request's body.")] = None


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """When requests are sent."""

    request_rate: Annotated[float, Meta(gt=0, description="Requests per second; inf sends all at once.")] = math.inf
    burstiness: Annotated[
        float,
        Meta(gt=0, description="Shape of the gamma distribution of gaps: 1 Poisson, below burstier, above evener."),
    ] = 1.0
    max_concurrency: Annotated[Count | None, Meta(description="Most requests at once; default: no limit.")] = None
    num_warmups: Annotated[int, Meta(ge=0, description="Requests before the clock starts.")] = 0
    seed: Annotated[int, Meta(ge=0, description="Of prompts, lengths and arrival times.")] = 0
    num_workers: Annotated[int, Meta(ge=1, le=256, description="Processes that share the requests.")] = 1


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is printed and saved."""

    percentile_metrics: Annotated[str, Meta(description="Of ttft, tpot, itl, e2el: those in the table.")] = (
        "ttft,tpot,itl"
    )
    metric_percentiles: Annotated[str, Meta(description="Percentiles, separated by commas.")] = "99"
    goodput: Annotated[
        tuple[str, ...], Meta(description="METRIC:MS that a good request keeps (ttft, tpot, e2el); several may follow.")
    ] = ()
    save_result: Annotated[bool, Meta(description="Write a JSON file.")] = False
    save_detailed: Annotated[
        bool, Meta(description="As --save-result, which holds the figures of each request here.")
    ] = False
    result_dir: Annotated[str | None, Meta(description="Folder of that file; default: the current one.")] = None
    result_filename: Annotated[
        str | None, Meta(description="Its name; default: {label}-{rate}qps[-concurrency{n}]-{model}-{time}.json.")
    ] = None
    label: Annotated[str | None, Meta(description="Names the run; default: the backend.")] = None
    metadata: Annotated[tuple[str, ...], Meta(description="KEY=VALUE for the JSON file; several may follow.")] = ()
    plot: Annotated[str | None, Meta(description="Draw percentiles and a timeline into this .png or .svg.")] = None
    disable_tqdm: Annotated[bool, Meta(description="No progress bar.")] = False


class SweepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The points of a sweep."""

    request_rates: Annotated[str | None, Meta(description="Rates separated by commas, such as 1,2,4,inf.")] = None
    concurrencies: Annotated[str | None, Meta(description="Most requests at once, such as 1,8,32.")] = None
    rounds: Annotated[
        Count | None, Meta(description="With concurrencies: N times as many prompts as clients, not --num-prompts.")
    ] = None
    output_dir: Annotated[str, Meta(description="Folder for JSON files, tables and plots.")] = "sweep"
    plot_format: Annotated[Literal["png", "svg"], Meta(description="Format of the plots.")] = "png"
    no_plots: Annotated[bool, Meta(description="Tables only; needs no matplotlib.")] = False


class ThroughputOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the offline throughput is measured."""

    output_json: Annotated[str | None, Meta(description="Write the figures to this file.")] = None
    disable_detokenize: Annotated[bool, Meta(description="Token ids only, no text.")] = False
    num_warmups: Annotated[int, Meta(ge=0, description="Prompts before the clock starts.")] = 0
    disable_tqdm: Annotated[bool, Meta(description="No progress bar.")] = False


class LatencyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the latency of one batch is measured."""

    input_len: Annotated[int, Meta(ge=1, description="Prompt tokens.")] = 32
    output_len: Annotated[int, Meta(ge=1, description="Output tokens.")] = 128
    batch_size: Annotated[int, Meta(ge=1, description="Prompts at once.")] = 8
    num_iters_warmup: Annotated[int, Meta(ge=0, description="Rounds before the clock starts.")] = 10
    num_iters: Annotated[int, Meta(ge=1, description="Rounds that count.")] = 30
    output_json: Annotated[str | None, Meta(description="Write the figures to this file.")] = None
    disable_detokenize: Annotated[bool, Meta(description="Token ids only, no text.")] = False


class StartupOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How starts are measured."""

    num_iters: Annotated[int, Meta(ge=1, description="Starts, one after the other.")] = 3
    timeout: Annotated[float, Meta(gt=0, description="Seconds until a start counts as failed.")] = 600
    output_json: Annotated[str | None, Meta(description="Write the figures to this file.")] = None


class CeilingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The stub server and the load on it."""

    concurrency: Annotated[int, Meta(ge=1, description="Requests at once.")] = 256
    num_prompts: Annotated[int, Meta(ge=1, description="Requests of the chunk test.")] = 2048
    output_len: Annotated[int, Meta(ge=1, description="Chunks of each answer of the chunk test.")] = 128
    input_len: Annotated[int, Meta(ge=1, description="Prompt tokens of each request.")] = 512
    step_ms: Annotated[
        float, Meta(ge=0, description="The stub's pace: one chunk per stream each so many ms; 0: as fast as it can.")
    ] = 0.0
    num_workers: Annotated[int, Meta(ge=1, le=256, description="Processes of the client.")] = 1
    stub_workers: Annotated[int, Meta(ge=1, le=256, description="Processes of the stub.")] = 1
    output_json: Annotated[str | None, Meta(description="Write the figures to this file.")] = None


METRICS = ("ttft", "tpot", "itl", "e2el")


def metric_names(text: str) -> tuple[str, ...]:
    """The metrics of --percentile-metrics.

    Raises:
        ConfigError: an unknown one.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"--percentile-metrics {text!r}: {name!r} is not one of {', '.join(METRICS)}.")
    return names


def percentiles(text: str) -> tuple[float, ...]:
    """The numbers of --metric-percentiles.

    Raises:
        ConfigError: not numbers in 0..100.
    """
    values = numbers(text, "--metric-percentiles")
    for value in values:
        if not 0 <= value <= 100:
            raise ConfigError(f"--metric-percentiles {text!r}: {value:g} is not in 0..100.")
    return values


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """Numbers separated by commas.

    Raises:
        ConfigError: something else, or nothing.
    """
    try:
        values = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values or any(math.isnan(value) for value in values):
        raise ConfigError(f"{flag} {text!r}: numbers separated by commas are needed.")
    return values


def pairs(texts: tuple[str, ...], flag: str, separator: str = "=") -> dict[str, str]:
    """KEY=VALUE texts as a mapping.

    Raises:
        ConfigError: one without separator or key.
    """
    found = {}
    for text in texts:
        key, mark, value = text.partition(separator)
        if not mark or not key.strip():
            raise ConfigError(f"{flag} {text!r}: KEY{separator}VALUE is needed.")
        found[key.strip()] = value.strip()
    return found


def json_object(text: str | None, flag: str) -> dict[str, Any]:
    """A JSON object from text; none is {}.

    Raises:
        ConfigError: broken JSON, or something else than an object.
    """
    if text is None:
        return {}
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{flag} {text!r}: broken JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{flag} {text!r}: a JSON object is needed.")
    return value
