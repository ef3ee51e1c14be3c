"""docs/sampling.md names every field, and what stands in it works as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from test_serve import Server

from quire.frontend.validate import ChatRequest, CompletionRequest
from quire.params import BeamSearchParams, SamplingParams

TEXT = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = re.findall(r"-d '(.*?)'", TEXT, re.S)


def test_every_field_is_there() -> None:
    named = set(re.findall(r"`(\w+)`", TEXT))
    assert set(SamplingParams.__struct_fields__) <= named
    assert set(BeamSearchParams.__struct_fields__) <= named
    basic = {"model", "messages", "prompt", "stream", "tools", "tool_choice", "parallel_tool_calls"}
    parsed = {"include_reasoning", "response_format", "structured_outputs"}
    for kind in (ChatRequest, CompletionRequest):
        guided = {name for name in kind.__struct_fields__ if name.startswith("guided_")}
        assert set(kind.__struct_fields__) - basic - parsed - guided <= named


def test_defaults_are_those_of_the_class() -> None:
    plain = SamplingParams()
    rows = re.findall(r"^\| `(\w+)` \| ✓? ?\| ([^|]*) \|", TEXT, re.M)
    numbers = [(name, default) for name, default in rows if re.fullmatch(r"-?[\d.]+", default)]
    assert len(numbers) >= 10
    for name, default in numbers:
        assert float(default) == getattr(plain, name), name


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_run(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_commands_run() -> None:
    server = Server("demo").wait_ready()
    try:
        for body in COMMANDS:
            request = json.loads(body)
            [choice] = httpx.post(server.url + "/v1/completions", json=request).json()["choices"]
            assert choice["text"] == request["prompt"] if request.get("echo") else choice["text"]
    finally:
        server.stop()
