"""The README's Python blocks, run as they stand (only the port of the server differs)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from test_serve import Server

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_block() -> None:
    [block] = [block for block in BLOCKS if "OpenAI(" in block]
    server = Server().wait_ready()
    try:
        assert "7" in run(block.replace("localhost:8000", f"localhost:{server.port}"))
    finally:
        assert server.stop()[0] == 0


def test_the_offline_block() -> None:
    [block] = [block for block in BLOCKS if "LLM(" in block]
    lines = run(block).splitlines()
    assert lines[0].startswith("Once upon a time →") and "3, 4, 5, 6, 7, 8, 9" in lines[-1]
