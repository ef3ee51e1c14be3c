"""The program itself: help, versions, errors, exit codes, and how fast it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from click.testing import CliRunner

import quire.server
from quire import __version__
from quire.cli.main import make_root
from quire.config import EngineConfig, ServerConfig


def program(*args: str, **env: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    done = subprocess.run(
        [sys.executable, "-m", "quire", *args], capture_output=True, text=True, env={**os.environ, **env}, timeout=30
    )
    return done.returncode, done.stdout, done.stderr


def best_seconds(*args: str) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        program(*args)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineConfig, ServerConfig]]:
    """What `serve` would have started."""
    calls: list[tuple[EngineConfig, ServerConfig]] = []

    def run(engine: EngineConfig, server: ServerConfig) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr(quire.server, "run", run)
    monkeypatch.setattr("quire.observability.logs.set_up", lambda log_format, level: None)
    return calls


def serve(*args: str) -> Any:
    return CliRunner().invoke(make_root(), ["serve", *args])


def test_version_and_help_are_fast() -> None:
    assert program("--version") == (0, f"quire {__version__}\n", "")
    assert best_seconds("--version") < 0.3
    assert best_seconds("serve", "--help") < 1.0
    assert best_seconds("--help") < 1.0


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from quire.cli.main import make_root; root = make_root();"
        "[root.get_command(None, name) for name in root.list_commands(None)];"
        "heavy = ('torch', 'zmq', 'starlette', 'uvicorn', 'tokenizers', 'numpy', 'jinja2', 'yaml');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_is_grouped() -> None:
    code, out, _ = program("serve", "--help")
    assert code == 0
    headings = ["Options:", "HTTP server:", "Model:", "KV cache:", "Scheduler:", "Parallelism:"]
    places = [out.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
    flat = " ".join(out.split())
    for words in ("--max-model-len", "QUIRE_MAX_MODEL_LEN", "default: 0.9", "--enable-prefix-caching /"):
        assert words in flat


def test_flags(served: list[tuple[EngineConfig, ServerConfig]]) -> None:
    result = serve(
        "my/model", "--max_model_len", "4k", "--gpu-memory-utilization=0.5", "--no-enable-prefix-caching",
        "--enforce_eager", "--api-key", "a", "--api-key", "b",
        "--served_model_name=with_underscore", "--dtype", "bfloat16", "--port", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    engine, server = served[0]
    assert (engine.model.model, engine.model.max_model_len, engine.model.dtype) == ("my/model", 4000, "bfloat16")
    assert (engine.cache.gpu_memory_utilization, engine.cache.enable_prefix_caching) == (0.5, False)
    assert engine.model.enforce_eager is True and server.port == 1
    assert (server.api_key, server.served_model_name) == (("a", "b"), ("with_underscore",))


def test_model(served: list[tuple[EngineConfig, ServerConfig]]) -> None:
    for args, model in (((), "demo"), (("a",), "a"), (("--model", "b"), "b"), (("c", "--model", "c"), "c")):
        assert serve(*args).exit_code == 0
        assert served[-1][0].model.model == model
    assert "named twice" in str(serve("a", "--model", "b").exception)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("serve", "--max-modl-len", "4"), "--max-model-len"),
        (("serve", "--max-model-len", "4x"), "'4x' is not a whole number"),
        (("serve", "--max-model-len", "-7"), "--max-model-len"),
        (("serve", "--gpu-memory-utilization", "1.5"), "--gpu-memory-utilization"),
        (("serve", "--dtype", "int4"), "'int4' is not one of auto"),
        (("serve", "--port", "99999"), "--port"),
        (("serve", "a", "b"), "unexpected extra argument"),
        (("serv",), "Did you mean 'serve'"),
        (("serve", "--config", "/no/such.yaml"), "--config"),
        (("completion", "powershell"), "powershell"),
        (("serve", "/no/such/folder"), "no such folder"),
    ],
)
def test_errors(args: tuple[str, ...], words: str) -> None:
    code, _, errors = program(*args)
    assert code == 2 and words in errors.strip().splitlines()[-1] and "Traceback" not in errors


def test_verbose_shows_the_traceback() -> None:
    code, _, errors = program("serve", "--port", "99999", "-v")
    assert code == 2 and "Traceback" in errors and errors.strip().splitlines()[-1].startswith("quire: --port")


def test_environment_errors_name_the_variable() -> None:
    code, _, errors = program("serve", QUIRE_PORT="x")
    assert code == 2 and "QUIRE_PORT" in errors


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    result = CliRunner().invoke(make_root(), ["completion", shell])
    assert result.exit_code == 0 and "_QUIRE_COMPLETE" in result.output


def test_completion_of_flags_and_choices() -> None:
    def completed(*words: str) -> str:
        line = " ".join(("quire", *words))
        code = "from quire.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "_QUIRE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))},
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.stdout

    assert "serve" in completed("se")
    assert "--max-model-len" in completed("serve", "--max-m")
    assert "bfloat16" in completed("serve", "--dtype", "b")
