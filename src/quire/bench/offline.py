"""`throughput` and `latency`: an engine in this program, without HTTP. The caller brings the engine.

The engine and its parameters are seen through protocols: this package imports neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from quire.bench.datasets import Sample, build
from quire.bench.options import DatasetOptions, LatencyOptions, ThroughputOptions
from quire.bench.report import write_json
from quire.bench.vocabulary import Vocabulary
from quire.errors import ConfigError
from quire.params import SamplingParams

LATENCY_PERCENTILES = (10, 25, 50, 75, 90, 99)


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    def is_special(self, token_id: int) -> bool:
        """Whether it is no text."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text."""


class Engine(Protocol):
    """What is needed of `quire.LLM`."""

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool = True) -> Sequence[Any]:
        """Complete prompts, all together."""

    def get_tokenizer(self) -> Any:
        """The model's tokenizer."""

    def close(self) -> None:
        """End it."""


MakeEngine = Callable[[], Engine]


def run_throughput(
    options: ThroughputOptions, dataset: DatasetOptions, make_engine: MakeEngine, seed: int
) -> dict[str, float]:
    """`quire bench throughput`: all prompts at once, printed and saved.

    Raises:
        ConfigError: a dataset that cannot be used.
        StartupError: the engine could not start.
    """
    engine = make_engine()
    try:
        samples = build(dataset, lambda: vocabulary_of(engine), seed, as_text=dataset.random_as_text)
        prompts, params = _requests(samples, detokenize=not options.disable_detokenize)
        if options.num_warmups:
            engine.generate(prompts[: options.num_warmups], params[: options.num_warmups], use_tqdm=False)
        start = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=not options.disable_tqdm)
        seconds = time.perf_counter() - start
    finally:
        engine.close()
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(output.outputs[0].token_ids) for output in outputs)
    figures = {
        "elapsed_time": seconds,
        "num_requests": len(outputs),
        "total_num_tokens": num_prompt + num_output,
        "requests_per_second": len(outputs) / seconds,
        "tokens_per_second": (num_prompt + num_output) / seconds,
        "output_tokens_per_second": num_output / seconds,
        "total_prompt_tokens": num_prompt,
        "total_output_tokens": num_output,
    }
    print(
        f"Throughput: {figures['requests_per_second']:.2f} requests/s, {figures['tokens_per_second']:.2f} total"
        f" tokens/s, {figures['output_tokens_per_second']:.2f} output tokens/s\n"
        f"Total num prompt tokens:  {num_prompt}\nTotal num output tokens:  {num_output}",
        flush=True,
    )
    if options.output_json:
        write_json(Path(options.output_json), figures)
    return figures


def run_latency(options: LatencyOptions, make_engine: MakeEngine, seed: int) -> dict[str, Any]:
    """`quire bench latency`: one batch again and again, printed and saved. Each round has prompts of its own.

    Raises:
        StartupError: the engine could not start.
    """
    engine = make_engine()
    latencies = []
    try:
        vocabulary = vocabulary_of(engine)
        rng = np.random.default_rng(seed)
        params = _params(options.output_len, detokenize=not options.disable_detokenize)
        for i in tqdm(range(options.num_iters_warmup + options.num_iters), desc="Rounds", dynamic_ncols=True):
            prompts = [{"prompt_token_ids": vocabulary.draw(rng, options.input_len)} for _ in range(options.batch_size)]
            start = time.perf_counter()
            engine.generate(prompts, params, use_tqdm=False)
            if i >= options.num_iters_warmup:
                latencies.append(time.perf_counter() - start)
    finally:
        engine.close()
    found = dict(zip(LATENCY_PERCENTILES, np.percentile(latencies, LATENCY_PERCENTILES).tolist(), strict=True))
    print(f"Avg latency: {np.mean(latencies)} seconds")
    for percentile, value in found.items():
        print(f"{percentile}% percentile latency: {value} seconds", flush=True)
    figures = {
        "avg_latency": float(np.mean(latencies)),
        "latencies": latencies,
        "percentiles": {str(percentile): value for percentile, value in found.items()},
    }
    if options.output_json:
        write_json(Path(options.output_json), figures)
    return figures


def vocabulary_of(engine: Engine) -> Vocabulary:
    """The ids of an engine's tokenizer, special tokens left out."""
    tokenizer: Tokenizer = engine.get_tokenizer()
    ids = [i for i in range(tokenizer.vocab_size) if not tokenizer.is_special(i)]
    return Vocabulary(np.array(ids, dtype=np.int64), _Text(tokenizer))


class _Text:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids))
        return text


def _params(output_len: int, *, detokenize: bool) -> SamplingParams:
    return SamplingParams(max_tokens=output_len, ignore_eos=True, detokenize=detokenize)


def _requests(samples: list[Sample], *, detokenize: bool) -> tuple[list[Any], list[SamplingParams]]:
    """(prompts, parameters) as the engine takes them."""
    prompts = []
    for sample in samples:
        prompt = sample.prompt
        if isinstance(prompt, list) and isinstance(prompt[0], dict):
            raise ConfigError("The dataset holds messages; throughput takes text or token ids.")
        prompts.append({"prompt": prompt} if isinstance(prompt, str) else {"prompt_token_ids": prompt})
    return prompts, [_params(sample.output_len, detokenize=detokenize) for sample in samples]
