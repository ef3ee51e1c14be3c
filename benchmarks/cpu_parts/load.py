"""Streaming load on an OpenAI-compatible server: URL MODEL PROMPTS.json CONCURRENCY ROUNDS -> one line of JSON."""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from openai import AsyncOpenAI


async def measure(url: str, model: str, work: dict, concurrency: int) -> dict[str, float]:
    """All prompts, so many at once: output tokens per second, times to first token and between tokens."""
    gate = asyncio.Semaphore(concurrency)
    firsts: list[float] = []
    gaps: list[float] = []

    async def one(client: AsyncOpenAI, ids: list[int]) -> None:
        async with gate:
            start = time.perf_counter()
            first = 0.0
            stream = await client.completions.create(
                model=model,
                prompt=ids,
                max_tokens=work["many_len"],
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            async for chunk in stream:
                first = first or time.perf_counter()
                usage = chunk.usage
            assert usage.completion_tokens == work["many_len"]
            firsts.append(first - start)
            gaps.append((time.perf_counter() - first) / (work["many_len"] - 1))

    async with AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        start = time.perf_counter()
        await asyncio.gather(*(one(client, ids) for ids in work["many"]))
        wall = time.perf_counter() - start
    rate = len(work["many"]) * work["many_len"] / wall
    return {"out_tok_s": rate, "ttft": statistics.median(firsts), "tpot": statistics.median(gaps)}


def main() -> None:
    """Rounds."""
    url, model, path, concurrency, rounds = sys.argv[1:]
    work = json.loads(Path(path).read_text())
    results = [asyncio.run(measure(url, model, work, int(concurrency))) for _ in range(int(rounds))]
    print("RESULT " + json.dumps({"rounds": results}))


if __name__ == "__main__":
    main()
