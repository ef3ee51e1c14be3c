"""Clients of others against a real `quire serve`: the official one in its less common forms, and what builds on it.

langchain-openai, litellm and instructor are in the extra `clients`; without them their tests are skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from test_serve import Server, free_port

ROOT = Path(__file__).parents[2]
QUESTION = "What is 3 plus 4?"
MESSAGES = [{"role": "user", "content": QUESTION}]
SNIPPET_MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3-8B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(metrics_port: int) -> Iterator[Server]:
    names = [word for name in ("demo", *SNIPPET_MODELS) for word in ("--served-model-name", name)]
    flags = ["--enable-metrics", "--metrics-port", str(metrics_port)]
    server = Server("--max-num-seqs", "64", *names, *flags).wait_ready()
    yield server
    code, log = server.stop()
    assert code == 0, log


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url + "/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="not-needed", max_retries=0) as client:
        yield client


# ---------------------------------------------------------------------------------------------------------------
# openai


def test_raw_responses(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=MESSAGES, temperature=0, extra_headers={"x-request-id": "mine-7"}, extra_body={"typo": 1}
    )
    assert raw.status_code == 200 and raw.headers["x-request-id"] == "mine-7"
    assert "typo" in raw.headers["x-quire-warnings"] and "7" in raw.parse().choices[0].message.content
    with client.chat.completions.with_streaming_response.create(
        model="demo", messages=MESSAGES, temperature=0, stream=True
    ) as streaming:
        assert streaming.headers["content-type"].startswith("text/event-stream")
        lines = list(streaming.iter_lines())
    assert lines[-2] == "data: [DONE]" and all(not line or line.startswith("data: ") for line in lines)
    with client.completions.with_streaming_response.create(model="demo", prompt="Once", max_tokens=5) as streaming:
        assert json.loads(streaming.read())["object"] == "text_completion"


def test_async_streaming(url: str) -> None:
    async def main() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            plain = await client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
            async with await client.chat.completions.create(
                model="demo", messages=MESSAGES, temperature=0, stream=True
            ) as stream:
                pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return plain.choices[0].message.content or "", "".join(pieces)

    plain, streamed = asyncio.run(main())
    assert plain == streamed and "7" in plain


def test_a_stream_that_is_left_early(client: openai.OpenAI, server: Server) -> None:
    stream = client.completions.create(
        model="demo", prompt="Once", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in zip(range(3), stream, strict=False):
        pass
    stream.close()
    for _ in range(200):
        if server.metric("vllm:num_requests_running") == 0:
            return
    raise AssertionError("the request goes on")


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=MESSAGES, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    plain = client.chat.completions.create(model="demo", messages=MESSAGES, temperature=0)
    assert final.choices[0].message.content == plain.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_tools_are_taken(client: openai.OpenAI) -> None:
    """A model whose template shows none says so; no flag is needed, and it is no error."""
    answer = client.chat.completions.create(
        model="demo", messages=MESSAGES, temperature=0, tools=[WEATHER], tool_choice="auto"
    )
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "stop"


def test_errors_by_class(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as caught:
        list(client.completions.create(model="demo", prompt="x", n=1000, stream=True))
    assert caught.value.param == "n"


# ---------------------------------------------------------------------------------------------------------------
# what builds on it


def test_langchain(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model="demo", base_url=url, api_key="x", temperature=0, max_retries=0)
    answer = model.invoke(QUESTION)
    assert "7" in answer.content and answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == answer.content
    both = model.batch([QUESTION, "What is 2 plus 2?"])
    assert both[0].content == answer.content and both[1].content
    assert asyncio.run(model.ainvoke(QUESTION)).content == answer.content
    tooled = model.bind_tools([WEATHER]).invoke(QUESTION)
    assert tooled.content or tooled.tool_calls
    text = langchain.OpenAI(model="demo", base_url=url, api_key="x", temperature=0, max_tokens=8, max_retries=0)
    assert text.invoke("Once upon a time") == "".join(text.stream("Once upon a time")) != ""


def test_litellm(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    litellm = pytest.importorskip("litellm")
    common = {"model": "hosted_vllm/demo", "api_base": url, "temperature": 0, "num_retries": 0}
    answer = litellm.completion(messages=MESSAGES, **common)
    text = answer.choices[0].message.content
    assert "7" in text and answer.usage.total_tokens > 0
    stream = litellm.completion(messages=MESSAGES, stream=True, **common)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    assert asyncio.run(litellm.acompletion(messages=MESSAGES, **common)).choices[0].message.content == text
    done = litellm.text_completion(prompt="Once upon a time", max_tokens=8, **common)
    assert done.choices[0].text and done.usage.completion_tokens <= 8
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=MESSAGES, **{**common, "temperature": -1})


def test_instructor(client: openai.OpenAI) -> None:
    instructor = pytest.importorskip("instructor")
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    ask = {"model": "demo", "temperature": 0, "max_retries": 0, "response_model": Person}
    ask["messages"] = [{"role": "user", "content": "Give me a JSON object with name Ada and age 7"}]
    found = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions.create(**ask)
    assert isinstance(found, Person)


# ---------------------------------------------------------------------------------------------------------------
# snippets: only the port is another


def on_port(text: str, server: Server) -> str:
    return re.sub(r"(localhost|127\.0\.0\.1):8000", f"localhost:{server.port}", text)


def curl_lines() -> list[str]:
    """Every curl command of the README and the docs that goes to the server, continued lines joined."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", path.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.split("  #")[0] for line in lines if line.startswith("curl ") and ":8000" in line]
    return found


SNIPPET_CURLS = [
    """curl http://localhost:8000/v1/chat/completions -H "Content-Type: application/json" -d '{"model": "meta-llama/"""
    """Llama-3.2-3B-Instruct", "messages": [{"role": "user", "content": "Hello"}]}'""",
    "curl http://localhost:8000/metrics",
]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
@pytest.mark.parametrize("line", [*curl_lines(), *SNIPPET_CURLS])
def test_curl(line: str, server: Server) -> None:
    command = on_port(line, server).replace("curl ", "curl -sS --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    if "/metrics" not in line and "-N" not in line and "/docs" not in line:
        assert json.loads(done.stdout)
    assert done.stdout


def test_the_metrics_port(metrics_port: int) -> None:
    """curl http://localhost:9090/metrics | grep vllm"""
    text = httpx.get(f"http://localhost:{metrics_port}/metrics").text
    for name in ("vllm:time_to_first_token_seconds", "vllm:num_requests_running", "vllm:gpu_cache_usage_perc"):
        assert f"# TYPE {name} " in text
    assert httpx.get(f"http://localhost:{metrics_port}/v1/models").status_code == 404


SNIPPET_PYTHON = {
    "a coding assistant, plain and streamed": """
from openai import OpenAI
client = OpenAI(
    base_url="http://localhost:8000/v1",
    api_key="not-needed",
)
response = client.chat.completions.create(
    model="meta-llama/Llama-3.1-8B-Instruct",
    messages=[
        {"role": "system", "content": "You are a helpful coding assistant."},
        {"role": "user", "content": "Write a binary search function in Python."},
    ],
    temperature=0.3,
    max_tokens=512,
)
print(response.choices[0].message.content)
for chunk in client.chat.completions.create(
    model="meta-llama/Llama-3.1-8B-Instruct", messages=[{"role": "user", "content": "Hello"}], stream=True
):
    print(chunk.choices[0].delta.content or "", end="")
""",
    "one line": """
from openai import OpenAI
client = OpenAI(base_url='http://localhost:8000/v1', api_key='EMPTY')
print(client.chat.completions.create(
    model='meta-llama/Llama-3-8B-Instruct',
    messages=[{'role': 'user', 'content': 'Hello!'}]
).choices[0].message.content)
""",
    "one paragraph": """
from openai import OpenAI
client = OpenAI(
    base_url="http://localhost:8000/v1",
    api_key="not-needed"
)
response = client.chat.completions.create(
    model="meta-llama/Llama-3.1-8B-Instruct",
    messages=[{"role": "user", "content": "Explain transformers in one paragraph."}]
)
print(response.choices[0].message.content)
""",
}


@pytest.mark.parametrize("name", SNIPPET_PYTHON)
def test_python_snippets(name: str, server: Server) -> None:
    code = on_port(SNIPPET_PYTHON[name], server)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0 and len(done.stdout.strip()) > 3, done.stderr
