"""Models that cannot be, through the real command line: the last line says why, no traceback, no crash."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checkpoints
import pytest

CASES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], int, str]] = {
    "empty folder": (lambda f: [path.unlink() for path in f.iterdir()], (), 2, "config.json"),
    "cut short": (lambda f: cut(f / "model.safetensors"), (), 1, "cut short"),
    "a GGUF that lies": (lambda f: (f / "x.gguf").write_bytes(b"GGUF\3\0\0\0" + b"\xff" * 40), ("--model", "x.gguf"), 1,
                         "tensors|pairs"),
    "overrides": (lambda f: None, ("--hf-overrides", '{"vocab_size": -1}'), 2, "--hf-overrides: vocab_size"),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_an_exit_code(case: str, tmp_path: Path) -> None:
    change, flags, code, words = CASES[case]
    folder = tmp_path / "model"
    checkpoints.write("llama31", folder)
    change(folder)
    flags = tuple(str(folder / flag) if flag.endswith(".gguf") else flag for flag in flags)
    model = () if "--model" in flags else ("--model", str(folder))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "quire", "serve", "--port", "0", "--device", "cpu", *model, *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and any(word in last for word in words.split("|")), done.stderr
