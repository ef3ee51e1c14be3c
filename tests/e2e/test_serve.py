"""`quire serve` as a process: the demo model over real HTTP, with the official `openai` client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running `quire serve`."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "quire", "serve", *flags, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
        self.started = time.monotonic()

    def wait_ready(self) -> Server:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.url + "/health", timeout=2).close()
                return self
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() - self.started < 60
            time.sleep(0.02)

    def metric(self, name: str) -> float:
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + "{"))

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=40)
        return self.process.returncode, log


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--max-num-seqs", "64").wait_ready()
    yield server
    code, log = server.stop()
    assert code == 0, log


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="not-needed", max_retries=0)


def test_plain_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert "7" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "demo"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streams_equal_plain(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage or chunks[-1].usage.completion_tokens == plain.usage.completion_tokens


def test_completions_of_every_prompt_kind(client: openai.OpenAI) -> None:
    one = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=8, temperature=0)
    two = client.completions.create(model="demo", prompt=["Once upon a time", "The fox"], max_tokens=8, temperature=0)
    assert one.id.startswith("cmpl-") and one.usage.completion_tokens == 8
    assert [c.index for c in two.choices] == [0, 1] and two.choices[0].text == one.choices[0].text
    ids = client.completions.create(model="demo", prompt=[[5, 6, 7], [8]], max_tokens=2, temperature=0)
    assert len(ids.choices) == 2 and ids.usage.prompt_tokens == 4
    several = client.completions.create(model="demo", prompt="Once", n=3, seed=1, max_tokens=9, logprobs=2)
    assert len(several.choices) == 3 and len(several.choices[0].logprobs.tokens) <= 9
    assert several.choices[0].logprobs.token_logprobs[0] <= 0


def test_64_at_once(server: Server) -> None:
    async def one(client: openai.AsyncOpenAI, i: int) -> bool:
        question = [{"role": "user", "content": f"What is {i % 8} plus {i // 8}?"}]
        stream = await client.chat.completions.create(model="demo", messages=question, temperature=0, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        return str(i % 8 + i // 8) in text

    async def all_of_them() -> list[bool]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x", max_retries=0) as client:
            return await asyncio.gather(*(one(client, i) for i in range(64)))

    assert sum(asyncio.run(all_of_them())) >= 61


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(server: Server, stream: bool) -> None:
    """After the connection is closed the engine runs at most two more steps of the request."""
    body = {"model": "demo", "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    url = server.url + "/v1/completions"
    before = server.metric("vllm:request_success_total")
    with contextlib.suppress(httpx.ReadTimeout), httpx.stream("POST", url, json=body, timeout=0.4) as response:
        for _ in zip(range(3), response.iter_lines(), strict=False):
            pass
    deadline = time.monotonic() + 2
    while server.metric("vllm:num_requests_running") > 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.metric("vllm:num_requests_running") == 0
    assert server.metric("vllm:request_success_total") == before + 1
    assert server.metric("vllm:kv_cache_usage_perc") == 0


def test_the_seeds_chat_snippet_with_only_the_model_changed(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="not-needed")
    response = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "system", "content": "You are a helpful coding assistant."},
            {"role": "user", "content": "Write a binary search function in Python."},
        ],
        temperature=0.3,
        max_tokens=512,
    )
    assert response.choices[0].message.content and response.choices[0].finish_reason == "stop"


def test_errors_have_openais_shape(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="demo"):
        client.chat.completions.create(model="other", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=-1)
    assert bad.value.body["param"] == "temperature" and set(bad.value.body) >= {"message", "type", "param", "code"}
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="demo", prompt="word " * 3000)
    assert httpx.get(server.url + "/nothing").status_code == 404


def test_other_routes(client: openai.OpenAI, server: Server) -> None:
    assert client.models.list().data[0].id == "demo"
    assert "version" in httpx.get(server.url + "/version").json()
    metrics = httpx.get(server.url + "/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
        "generation_tokens_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    ):  # fmt: skip
        assert f"vllm:{name}{{" in metrics


def test_api_key_guards_every_route_but_health() -> None:
    server = Server("--api-key", "secret", "--served-model-name", "tiny").wait_ready()
    try:
        url = server.url
        assert httpx.get(url + "/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/docs", "//v1/models"):
            assert httpx.get(url + path).status_code in (401, 404)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url + "/v1", api_key="wrong").models.list()
        assert openai.OpenAI(base_url=url + "/v1", api_key="secret").models.list().data[0].id == "tiny"
    finally:
        assert server.stop()[0] == 0


def test_banner_is_short_and_says_what_matters() -> None:
    server = Server().wait_ready()
    time.sleep(0.2)
    code, log = server.stop()
    banner = log.split("INFO")[0]
    lines = [line for line in banner.splitlines() if line.strip()]
    assert code == 0 and len(lines) <= 14
    for words in ("demo", "CPU", "weights", "tokens", server.url, "ready"):
        assert words in banner, banner


def test_sigterm_lets_running_requests_finish() -> None:
    server = Server().wait_ready()
    body = {"model": "demo", "prompt": "Once", "max_tokens": 300, "ignore_eos": True}

    async def finish() -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as http:
            request = asyncio.create_task(http.post(server.url + "/v1/completions", json=body))
            while await asyncio.to_thread(server.metric, "vllm:num_requests_running") < 1:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            return await request

    response = asyncio.run(finish())
    assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 300
    server.process.communicate(timeout=30)
    assert server.process.returncode == 0


def test_engine_death_is_told_and_exits_with_1() -> None:
    server = Server("--max-restarts", "0").wait_ready()
    [engine] = psutil.Process(server.process.pid).children()
    body = {"model": "demo", "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    start = time.monotonic()
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        engine.kill()
        events = [line for line in lines if line.startswith("data: ")]
    assert "error" in json.loads(events[-1][6:]) and time.monotonic() - start < 4
    server.process.communicate(timeout=20)
    assert server.process.returncode == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["/no/such/folder"], ["/no/such/folder"]),
        (["--max-model-len", "100000"], ["--max-model-len"]),
        (["--num-gpu-blocks-override", "4"], ["--max-model-len 48"]),
        (["--max-modle-len", "5"], ["--max-model-len"]),
        (["--gpu-memory-utilization", "1.5"], ["--gpu-memory-utilization", "1"]),
        (["--dtype", "int3"], ["dtype"]),
    ],
)  # fmt: skip
def test_start_errors_exit_within_5_s_with_a_last_line_that_helps(flags: list[str], words: list[str]) -> None:
    server = Server(*flags)
    _, log = server.process.communicate(timeout=5)
    last = log.strip().splitlines()[-1]
    assert server.process.returncode != 0 and "Traceback" not in log
    assert all(word in last for word in words), log


def test_port_in_use_is_an_error_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "quire", "serve", "--port", str(port)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=5)
    assert done.returncode != 0 and str(port) in done.stderr.strip().splitlines()[-1]


def test_config_file_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "quire.yaml"
    path.write_text("max_num_seqs: 3\nserved-model-name: from-file\n")
    server = Server("--config", str(path), env={"QUIRE_MAX_NUM_SEQS": "5"}).wait_ready()
    assert httpx.get(server.url + "/v1/models").json()["data"][0]["id"] == "from-file"
    code, log = server.stop()
    assert code == 0 and "at most 5" in log
