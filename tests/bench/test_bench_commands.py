"""The commands as they are typed: against the stub, with a made-up engine, with wrong input."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

import quire.llm
from quire.bench.datasets import Sample
from quire.bench.options import SamplingOptions, TargetOptions
from quire.bench.startup import measure_start, read_banner
from quire.bench.target import BodyMaker, make_target
from quire.cli.main import make_root
from quire.errors import ConfigError, QuireError, StartupError

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    "--num-prompts",
    "12",
    "--input-len",
    "8",
    "--output-len",
    "5",
    "--vocab-size",
    "500",
    "--disable-tqdm",
    "--tokenizer",
    "demo",
)


def bench(*args: str) -> Result:
    return CliRunner().invoke(make_root(), ["bench", *args])


def complaint(*args: str) -> str:
    """What is said about wrong input."""
    result = bench(*args)
    assert result.exit_code != 0
    return result.exception.message if isinstance(result.exception, QuireError) else result.output


def row(text: str, name: str) -> str:
    return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith(name))


# ---- serve ---------------------------------------------------------------------------------------------------------


def test_serve(stub_port: int, tmp_path: Path) -> None:
    result = bench(
        "serve", "--port", str(stub_port), *SMALL, "--max_concurrency=4", "--request-rate", "2000", "--save-result",
        "--result-dir", str(tmp_path), "--label", "mine", "--metadata", "a=1", "b=2", "--goodput", "ttft:60000",
        "e2el:60000",
        "--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,90", "--num-warmups", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert row(result.output, "Successful requests") == "12" and row(result.output, "Total generated tokens") == "60"
    assert row(result.output, "Maximum request concurrency") == "4"
    assert "P90 E2EL (ms):" in result.output and "ITL" not in result.output
    [path] = tmp_path.iterdir()
    assert re.fullmatch(r"mine-2000\.0qps-concurrency4-stub-\d{8}-\d{6}\.json", path.name)
    found = json.loads(path.read_text())
    assert {
        "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate",
        "burstiness",
        "max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
        "request_throughput", "request_goodput", "output_throughput", "total_token_throughput", "input_lens",
        "output_lens",
        "ttfts", "itls", "errors", "start_times", "max_output_tokens_per_s", "max_concurrent_requests", "mean_ttft_ms",
        "median_tpot_ms", "std_itl_ms", "p90_e2el_ms", "gpu_utilization", "client_cpu_share", "refused",
    } <= set(found)  # fmt: skip
    assert (found["a"], found["b"], found["label"], found["model_id"]) == ("1", "2", "mine", "stub")
    assert found["completed"] == 12 and found["max_concurrent_requests"] <= 4 and found["request_rate"] == 2000.0
    assert len(found["ttfts"]) == 12 and {len(gaps) for gaps in found["itls"]} == {4}
    assert found["request_goodput"] == pytest.approx(found["request_throughput"])


def test_serve_chat_with_failures(grumpy_port: int, tmp_path: Path) -> None:
    result = bench(
        "serve", "--backend", "openai-chat", "--base-url", f"http://127.0.0.1:{grumpy_port}/v1", *SMALL,
        "--save-result", "--result-filename", str(tmp_path / "a.json"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert row(result.output, "Failed requests") == "4" and row(result.output, "  refused (429, 503)") == "4"
    assert "Error: 4 x HTTP 429: too many requests" in result.output
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["request_rate"] == "inf" and found["failed"] == found["refused"] == 4
    assert sorted(found["errors"])[-4:] == ["HTTP 429: too many requests"] * 4


def test_serve_with_workers_and_files(stub_port: int, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"prompt {i}", "output_tokens": 3}) for i in range(5)))
    result = bench(
        "serve", "--port", str(stub_port), "--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts",
        "9",
        "--disable-tqdm", "--num-workers", "2", "--skip-chat-template",
    )  # fmt: skip
    assert result.exit_code == 0 and row(result.output, "Total generated tokens") == "27", result.output


def test_the_script_of_old(stub_port: int, tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    turns = [
        {"from": "human", "value": "Tell me a story about a fox."},
        {"from": "gpt", "value": "Once upon a time there was"},
    ]
    path.write_text(json.dumps([{"conversations": turns}]))
    done = subprocess.run(
        [
            sys.executable, "benchmarks/benchmark_serving.py", "--backend", "openai-chat", "--model", "demo",
            "--port", str(stub_port),
            "--dataset-name", "sharegpt", "--dataset-path", str(path), "--num-prompts", "6", "--request-rate", "1000",
        ],
        capture_output=True, text=True, timeout=30, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert row(done.stdout, "Successful requests") == "6"


def test_all_fail(tmp_path: Path) -> None:
    from quire.bench.ceiling import stub

    with stub(fail_every=1) as port:
        assert (
            complaint("serve", "--port", str(port), *SMALL) == "No request succeeded: 12 x HTTP 429: too many requests"
        )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ("serve", "--base-url", "http://a:1", "--host", "b"),
            "--base-url 'http://a:1' and --host b both name the server",
        ),
        (("serve", "--base-url", "http://a:1", "--port", "2"), "and --port 2 both"),
        (("serve", "--base-url", "a:1"), "a URL such as http://localhost:8000 is needed"),
        (("serve", "--dataset-name", "alpaca"), "'alpaca' is not one of"),
        (("serve", "--output-len", "0"), "--output-len 0"),
        (("serve", "--random-range-ratio", "1"), "--random-range-ratio 1.0"),
        (("serve", "--request-rate", "0"), "--request-rate 0.0"),
        (("serve", "--backend", "openai-chat", "--endpoint", "/v1/completions"), "does not fit --backend openai-chat"),
        (("serve", "--endpoint", "v1/completions"), "must begin with '/'"),
        (("serve", "--extra-body", "{"), "--extra-body '{': broken JSON"),
        (("serve", "--extra-body", "[]"), "a JSON object is needed"),
        (("serve", "--goodput", "itl:3"), "'itl' is not one of ttft, tpot, e2el"),
        (("serve", "--metadata", "a"), "--metadata 'a': KEY=VALUE is needed"),
        (("serve", "--header", "a=b\nc: d"), "cannot be sent"),
        (("serve", "--percentile-metrics", "speed"), "--percentile-metrics"),
        (("serve", "--plot", "a.gif"), "must end in .png or .svg"),
        (
            ("serve", "--port", "9", "--ready-check-timeout-sec", "0"),
            "No server is ready at http://127.0.0.1:9/v1/models",
        ),
        (("serve", "--max-concurency", "9"), "--max-concurrency"),
        (("sweep",), "needs one of --request-rates"),
        (("sweep", "--request-rates", "1", "--concurrencies", "2"), "needs one of --request-rates"),
        (("sweep", "--request-rates", "1,x"), "--request-rates '1,x': numbers separated by commas"),
        (("sweep", "--request-rates", "0,1"), "0 is not above 0"),
        (("sweep", "--concurrencies", "1.5"), "whole numbers"),
        (("sweep", "--concurrencies", "1", "--max-concurrency", "2"), "both set the limit"),
        (("sweep", "--request-rates", "1", "--request-rate", "2"), "both set the rate"),
        (("sweep", "--request-rates", "1", "--rounds", "2"), "--rounds goes with --concurrencies"),
        (("throughput", "--gpu-memory-utilization", "3", "--num-prompts", "1"), "--gpu-memory-utilization 3.0"),
        (("startup", "--port", "1"), "leave --port out"),
        (("serv",), "Did you mean 'serve'?"),
    ],
)
def test_wrong_input(args: tuple[str, ...], words: str) -> None:
    assert words in " ".join(complaint(*args).split())


def test_missing_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'quire[bench]'" in complaint("serve", "--plot", "a.png")


# ---- what is sent --------------------------------------------------------------------------------------------------


def test_targets() -> None:
    assert make_target(TargetOptions(api_key="k")).headers == b"authorization: Bearer k\r\n"
    target = make_target(TargetOptions(base_url="https://a/x/v1/", header=("b=c=d",)))
    assert (target.host, target.port, target.tls, target.path) == ("a", 443, True, "/x/v1/completions")
    assert target.headers.endswith(b"b: c=d\r\n")
    assert make_target(TargetOptions(backend="openai-chat", port=5)).path == "/v1/chat/completions"
    assert b"host: [::1]:8000\r\n" in make_target(TargetOptions(host="::1")).request(b"")


def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert b"Bearer secret" in make_target(TargetOptions()).headers


def body(sample: Sample, *, chat: bool, **sampling: Any) -> Any:
    return msgspec.json.decode(BodyMaker(chat=chat, model="m", sampling=SamplingOptions(**sampling)).body(sample))


def test_bodies() -> None:
    common = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0}
    assert body(Sample([1, 2], 2, 3), chat=False) == {"prompt": [1, 2], "max_tokens": 3, **common}
    assert body(Sample("a", 0, 3), chat=True) == {
        "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3, **common,
    }  # fmt: skip
    more = {
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "frequency_penalty": 1.0,
        "presence_penalty": 1.0,
        "repetition_penalty": 1.1,
    }
    found = body(
        Sample("a", 0, 3), chat=False, ignore_eos=True, logprobs=2, extra_body='{"seed": 4, "model": "n"}', **more
    )
    assert found == {
        "prompt": "a",
        "max_tokens": 3,
        **common,
        **more,
        "ignore_eos": True,
        "logprobs": 2,
        "seed": 4,
        "model": "n",
    }
    assert body(Sample("a", 0, 3), chat=True, logprobs=2)["top_logprobs"] == 2
    with pytest.raises(ConfigError, match="token ids"):
        body(Sample([1], 1, 1), chat=True)
    with pytest.raises(ConfigError, match="openai-chat"):
        body(Sample([{"role": "user", "content": "a"}], 0, 1), chat=False)


# ---- sweep and plots -----------------------------------------------------------------------------------------------


def test_sweep(stub_port: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = bench(
        "sweep", "--port", str(stub_port), *SMALL, "--request-rates", "inf,500", "--output-dir", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "rate-500.json", "rate-inf.json", "table.md", "table.csv", "latency.png", "throughput.png",
        "timeline-rate-500.png", "timeline-rate-inf.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0].startswith("| rate | completed |") and [line[:8] for line in table[2:]] == ["| 500 | ", "| inf | "]
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [r["rate"] for r in rows] == ["500", "inf"] and rows[0]["completed"] == "12" and "p99_itl_ms" in rows[0]
    assert json.loads((tmp_path / "rate-500.json").read_text())["p90_ttft_ms"] > 0


def test_sweep_over_concurrency(stub_port: int, tmp_path: Path) -> None:
    flags = ("--concurrencies", "3,1", "--rounds", "2", "--no-plots", "--output-dir", str(tmp_path))
    result = bench("sweep", "--port", str(stub_port), *SMALL, *flags)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "concurrency-1.json",
        "concurrency-3.json",
        "table.md",
        "table.csv",
    }
    assert json.loads((tmp_path / "concurrency-3.json").read_text())["completed"] == 6


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_of_a_run(grumpy_port: int, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{ending}"
    result = bench("serve", "--port", str(grumpy_port), *SMALL, "--plot", str(path))
    assert result.exit_code == 0 and path.stat().st_size > 10_000, result.output


# ---- offline -------------------------------------------------------------------------------------------------------


class FakeEngine:
    """Stands in for quire.LLM: answers with as many tokens as were asked for."""

    made: list[FakeEngine] = []

    def __init__(self, **settings: Any) -> None:
        self.settings, self.closed, self.calls = settings, False, []
        self.made.append(self)

    def generate(self, prompts: Any, params: Any, use_tqdm: bool = True) -> list[Any]:
        each = params if isinstance(params, list) else [params] * len(prompts)
        self.calls.append((prompts, each))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=[0] * one.max_tokens)],
            )
            for prompt, one in zip(prompts, each, strict=True)
        ]

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(vocab_size=100, is_special=lambda token_id: token_id < 10)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    monkeypatch.setattr(quire.llm, "LLM", FakeEngine)
    monkeypatch.setattr(FakeEngine, "made", [])
    return FakeEngine.made


def test_throughput(engine: list[FakeEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_MAX_NUM_SEQS", "7")
    result = bench(
        "throughput", "--model", "m", "--load-format", "dummy", "--enforce-eager", "--max-model-len", "4k",
        "--num-prompts", "5",
        "--input-len", "6", "--output-len", "3", "--disable-detokenize", "--num-warmups", "1", "--output-json",
        str(tmp_path / "o.json"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    [made] = engine
    assert made.closed and made.settings == {
        "model": "m", "load_format": "dummy", "enforce_eager": True, "max_model_len": 4000, "max_num_seqs": 7,
    }  # fmt: skip
    (warm, _), (prompts, params) = made.calls
    assert len(warm) == 1 and len(prompts) == 5 and {len(prompt["prompt_token_ids"]) for prompt in prompts} == {6}
    assert all(10 <= i < 100 for prompt in prompts for i in prompt["prompt_token_ids"])
    assert all(p.ignore_eos and p.max_tokens == 3 and not p.detokenize for p in params)
    assert re.search(
        r"^Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s$", result.output, re.M
    )
    assert "Total num prompt tokens:  30" in result.output and "Total num output tokens:  15" in result.output
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["num_requests"] == 5 and found["total_num_tokens"] == 45
    assert {"elapsed_time", "requests_per_second", "tokens_per_second"} <= set(found)


def test_latency(engine: list[FakeEngine], tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    result = bench(
        "latency", "--batch-size", "3", "--num-iters", "4", "--num-iters-warmup", "1", "--output-json", str(path)
    )
    assert result.exit_code == 0, result.output
    assert "Avg latency: " in result.output and "99% percentile latency: " in result.output
    found = json.loads(path.read_text())
    assert len(found["latencies"]) == 4 and set(found["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    calls = engine[0].calls
    assert len(calls) == 5 and {len(prompts) for prompts, _ in calls} == {3} and engine[0].closed
    prompts = [tuple(prompt["prompt_token_ids"]) for batch, _ in calls for prompt in batch]
    assert len(set(prompts)) == 15 and {len(ids) for ids in prompts} == {32} and calls[0][1][0].max_tokens == 128


# ---- startup and ceiling -------------------------------------------------------------------------------------------

FAKE_SERVER = """
import http.server, sys, time
print("    ready  http://x/v1 after 1.5 s (import 1.2, load 0.3)", file=sys.stderr, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    calls = 0
    def do_GET(self):
        Handler.calls += 1
        self.send_response(200 if Handler.calls > 2 else 503)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_start() -> None:
    start = measure_start([sys.executable, "-c", FAKE_SERVER], timeout=20)
    assert 0 < start.listening <= start.ready and start.own == 1.5 and start.stages == {"import": 1.2, "load": 0.3}


def test_start_that_fails() -> None:
    with pytest.raises(StartupError, match="ended with code 3: too bad"):
        measure_start([sys.executable, "-c", "import sys; print('too bad', file=sys.stderr); sys.exit(3)"], timeout=20)
    with pytest.raises(StartupError, match=r"not ready within --timeout 0.2 s"):
        measure_start([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)


def test_banner() -> None:
    assert read_banner("ready  http://127.0.0.1:8000/v1 after 9.8 s") == (9.8, {})
    assert read_banner("INFO already there") == (0.0, {})


def test_ceiling(tmp_path: Path) -> None:
    flags = ("--num-prompts", "8", "--output-len", "4", "--concurrency", "4", "--stub-workers", "2")
    result = bench("ceiling", *flags, "--output-json", str(tmp_path / "o.json"))
    assert result.exit_code == 0 and "Chunks:" in result.output, result.output
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["ceiling"]["chunks_per_second"] > 0 and found["options"]["stub_workers"] == 2


# ---- a client, and light -------------------------------------------------------------------------------------------


def test_it_is_a_client() -> None:
    code = (
        "import importlib, pkgutil, sys, quire.bench;"
        "[importlib.import_module('quire.bench.' + m.name) for m in pkgutil.iter_modules(quire.bench.__path__)];"
        "houses = ['torch', 'matplotlib', *('quire.' + h for h in ('llm', 'frontend', 'engine', 'worker', 'server'))];"
        "print([name for name in houses if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", ["serve", "sweep", "throughput", "latency", "startup", "ceiling"])
def test_help(name: str) -> None:
    result = bench(name, "--help")
    assert (
        (result.exit_code == 0 and "Options:" in result.output)
        or "Server:" in result.output
        or "Benchmark:" in result.output
    )
    assert ("QUIRE_MAX_MODEL_LEN" in result.output) == (name in ("throughput", "latency"))


def test_commands_of_the_guide() -> None:
    """Every `quire bench` line of docs/bench.md is one that the command line takes."""
    guide = (REPOSITORY / "docs" / "bench.md").read_text()
    blocks = "".join(re.findall(r"```\n(.*?)```", guide, re.DOTALL))
    lines = [line.partition("#")[0].split() for line in blocks.splitlines() if line.startswith("quire bench")]
    assert len(lines) >= 10
    group = make_root().get_command(click.Context(make_root()), "bench")
    assert isinstance(group, click.Group)
    for _, _, name, *args in lines:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        with command.make_context(name, args):
            pass
