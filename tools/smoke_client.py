"""Talks to a running server with the official `openai` client and fails if anything is amiss.

python tools/smoke_client.py --base-url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import asyncio
import time
import urllib.error
import urllib.request

from openai import AsyncOpenAI, OpenAI


def wait_until_ready(base_url: str, seconds: float) -> float:
    """Poll /health; seconds until it answered 200."""
    start = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(base_url.removesuffix("/v1") + "/health", timeout=5):
                return time.monotonic() - start
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() - start > seconds:
                raise SystemExit(f"no server after {seconds} s") from None
            time.sleep(0.05)


def check_plain_and_stream(client: OpenAI, model: str) -> None:
    """One chat, plain and streamed: the same words, and usage that adds up."""
    messages = [{"role": "user", "content": "Count from 3 to 7."}]
    plain = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=60)
    text = plain.choices[0].message.content
    print("plain   ", repr(text), plain.choices[0].finish_reason, plain.usage.total_tokens, "tokens")
    assert all(digit in text for digit in "34567") and plain.choices[0].finish_reason == "stop"
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=60,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text, (streamed, text)
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    print("streamed", repr(streamed), len(chunks), "chunks")


def check_completion(client: OpenAI, model: str) -> None:
    """One plain completion."""
    done = client.completions.create(model=model, prompt="Once upon a time", max_tokens=20, temperature=0)
    print("complete", repr(done.choices[0].text))
    assert done.usage.completion_tokens <= 20 and done.choices[0].text


async def check_many(base_url: str, model: str, count: int) -> None:
    """Many at once, each with its own right answer."""

    async def one(client: AsyncOpenAI, i: int) -> bool:
        a, b = i % 8, i // 8 % 8
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": f"What is {a} plus {b}?"}], temperature=0, max_tokens=40
        )
        return str(a + b) in answer.choices[0].message.content

    async with AsyncOpenAI(base_url=base_url, api_key="not-needed") as client:
        start = time.monotonic()
        right = sum(await asyncio.gather(*(one(client, i) for i in range(count))))
    print(f"{count} at once: {right} right, {time.monotonic() - start:.2f} s")
    assert right >= 0.95 * count


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--wait", type=float, default=30.0)
    args = parser.parse_args()
    print(f"healthy after {wait_until_ready(args.base_url, args.wait):.1f} s of waiting")
    client = OpenAI(base_url=args.base_url, api_key="not-needed")
    model = client.models.list().data[0].id
    check_plain_and_stream(client, model)
    check_completion(client, model)
    asyncio.run(check_many(args.base_url, model, 64))
    print("smoke test passed")


if __name__ == "__main__":
    main()
