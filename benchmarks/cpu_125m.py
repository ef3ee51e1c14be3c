"""A 125 M-parameter Llama shape on the CPU: `quire serve` under 64 concurrent requests, beside transformers' generate.

    pip install '.[test]' && python benchmarks/cpu_125m.py [--out benchmarks/results/cpu_125m.md]

Both run in this one call, in turn, on the same random checkpoint that transformers itself wrote: 64 prompts of 128
random tokens, 64 new tokens each, bfloat16, greedy, end tokens ignored. The server is reached over HTTP by the
official `openai` client with streaming; transformers gets its best case, one static batch of 64 without padding.
Reported: total and output tokens per second, and for the server the time from exec to ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PROMPTS, PROMPT_LEN, OUTPUT_LEN, VOCAB = 64, 128, 64, 32_000


def write_checkpoint(folder: Path) -> None:
    """125 M parameters, random, with a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        dtype=torch.bfloat16,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2", "bos_token": "w1"}))


def prompts() -> list[list[int]]:
    """The same random prompts for both."""
    rng = random.Random(0)
    return [[rng.randrange(3, VOCAB) for _ in range(PROMPT_LEN)] for _ in range(PROMPTS)]


def run_transformers(folder: Path, rounds: int) -> list[float]:
    """Seconds of each round of one static batch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.tensor(prompts())
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=OUTPUT_LEN,
                max_new_tokens=OUTPUT_LEN,
                pad_token_id=0,
            )
        assert out.shape == (PROMPTS, PROMPT_LEN + OUTPUT_LEN)
        seconds.append(time.perf_counter() - start)
    return seconds


async def _load(base_url: str, model: str, inputs: list[list[int]]) -> tuple[float, list[float]]:
    """All requests at once, streamed; wall seconds and each time to first token."""
    from openai import AsyncOpenAI

    async def one(client: AsyncOpenAI, ids: list[int]) -> float:
        start = time.perf_counter()
        first = 0.0
        stream = await client.completions.create(
            model=model,
            prompt=ids,
            max_tokens=OUTPUT_LEN,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            first = first or time.perf_counter() - start
            usage = chunk.usage
        assert usage.completion_tokens == OUTPUT_LEN
        return first

    async with AsyncOpenAI(base_url=base_url, api_key="none", timeout=600) as client:
        start = time.perf_counter()
        firsts = await asyncio.gather(*(one(client, ids) for ids in inputs))
        return time.perf_counter() - start, firsts


def run_quire(folder: Path, rounds: int, port: int) -> tuple[list[float], list[float], float]:
    """Seconds of each round, times to first token of the last, and seconds from exec to ready."""
    flags = ["--port", str(port), "--max-model-len", "2048", "--no-enable-prefix-caching"]
    start = time.perf_counter()
    server = subprocess.Popen([sys.executable, "-m", "quire", "serve", str(folder), *flags])
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.02)
        ready = time.perf_counter() - start
        seconds, firsts = [], []
        for _ in range(rounds):
            wall, firsts = asyncio.run(_load(f"http://127.0.0.1:{port}/v1", str(folder), prompts()))
            seconds.append(wall)
        return seconds, firsts, ready
    finally:
        server.terminate()
        server.wait(timeout=30)


def run_offline(folder: Path, rounds: int) -> list[float]:
    """Seconds of each round of `LLM.generate` on the same prompts."""
    from quire import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=OUTPUT_LEN, ignore_eos=True)
    seconds = []
    with LLM(model=str(folder), max_model_len=2048, enable_prefix_caching=False) as llm:
        for _ in range(rounds):
            start = time.perf_counter()
            outputs = llm.generate(prompts(), params, use_tqdm=False)
            seconds.append(time.perf_counter() - start)
            assert all(len(output.outputs[0].token_ids) == OUTPUT_LEN for output in outputs)
    return seconds


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8231)
    args = parser.parse_args()
    import torch
    import transformers

    import quire

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        theirs = run_transformers(Path(folder), args.rounds)
        ours, firsts, ready = run_quire(Path(folder), args.rounds, args.port)
        offline = run_offline(Path(folder), args.rounds)
    total, output = PROMPTS * (PROMPT_LEN + OUTPUT_LEN), PROMPTS * OUTPUT_LEN
    lines = [
        "| engine | total tok/s (best of rounds) | output tok/s | median of rounds, total tok/s | median TTFT |",
        "|---|---|---|---|---|",
    ]
    for name, seconds, ttft in (
        (f"quire {quire.__version__}, `quire serve` over HTTP", ours, f"{statistics.median(firsts):.2f} s"),
        (f"quire {quire.__version__}, `LLM.generate`", offline, "-"),
        (f"transformers {transformers.__version__}, generate, static batch", theirs, "-"),
    ):
        best, median = min(seconds), statistics.median(seconds)
        lines.append(f"| {name} | {total / best:,.0f} | {output / best:,.0f} | {total / median:,.0f} | {ttft} |")
    lines += [
        "",
        f"Best of ours to best of transformers: {min(theirs) / min(ours):.2f} over HTTP,"
        f" {min(theirs) / min(offline):.2f} offline. Exec to ready: {ready:.1f} s.",
        f"{PROMPTS} prompts of {PROMPT_LEN} tokens, {OUTPUT_LEN} new tokens each, bfloat16; {args.rounds} rounds each;"
        f" torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPU cores.",
        f"Command: `python benchmarks/cpu_125m.py --rounds {args.rounds}`",
    ]
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("# 125 M Llama shape on the CPU\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
