"""The load generator against `quire serve` with the demo model, over real HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from quire.bench.startup import _free_port
from quire.cli.main import make_root


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A running server; the load generator itself waits until it is ready."""
    port = _free_port()
    flags = ["--port", str(port), "--max-num-seqs", "16"]
    process = subprocess.Popen([sys.executable, "-m", "quire", "serve", *flags], stderr=subprocess.DEVNULL)
    yield port
    process.terminate()
    assert process.wait(timeout=40) == 0


@pytest.mark.parametrize("backend", ["vllm", "openai-chat"])
def test_counts_are_exact(port: int, backend: str, tmp_path: Path) -> None:
    args = [
        "bench", "serve", "--backend", backend, "--port", str(port), "--num-prompts", "10", "--random-input-len", "30",
        "--random-output-len", "12", "--ignore-eos", "--max-concurrency", "5", "--disable-tqdm", "--top-p", "0.9",
        "--temperature", "1",
        "--save-result", "--result-filename", str(tmp_path / "o.json"), "--ready-check-timeout-sec", "50",
    ]  # fmt: skip
    result = CliRunner().invoke(make_root(), args)
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads((tmp_path / "o.json").read_text())
    assert (found["completed"], found["failed"], found["errors"]) == (10, 0, [""] * 10)
    assert found["output_lens"] == [12] * 10 and found["model_id"] == "demo"
    assert len(set(found["input_lens"])) == 1 and found["input_lens"][0] >= 30  # a chat's template adds some
    assert backend == "openai-chat" or found["input_lens"] == [30] * 10
    assert all(0 < len(gaps) <= 11 for gaps in found["itls"]) and all(ttft > 0 for ttft in found["ttfts"])
    assert found["max_concurrent_requests"] <= 5


def test_the_server_refuses(port: int) -> None:
    args = [
        "bench",
        "serve",
        "--port",
        str(port),
        "--model",
        "other",
        "--tokenizer",
        "demo",
        "--num-prompts",
        "2",
        "--disable-tqdm",
    ]
    result = CliRunner().invoke(make_root(), args)
    assert result.exit_code != 0 and "HTTP 404" in str(result.exception) and "other" in str(result.exception)
