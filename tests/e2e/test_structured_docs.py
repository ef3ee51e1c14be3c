"""The examples of docs/structured-outputs.md, run as they stand (only the port of the server differs)."""

from __future__ import annotations

import json
import re
from pathlib import Path

from test_readme import run
from test_serve import Server

from quire.config import StructuredOutputsConfig
from quire.frontend import structured
from quire.launch.constraints import MAX_WORKERS

PAGE = (Path(__file__).parents[2] / "docs" / "structured-outputs.md").read_text(encoding="utf-8")
CLIENT, OFFLINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_client_block() -> None:
    server = Server().wait_ready()
    try:
        legs, choice = run(CLIENT.replace("localhost:8000", f"localhost:{server.port}")).splitlines()
        assert 0 <= int(legs) <= 8 and choice in ("wild", "tame")
    finally:
        assert server.stop()[0] == 0


def test_the_offline_block() -> None:
    text = run(OFFLINE)
    lines = text.rsplit("\n", 5)  # JSON may have line breaks
    assert json.loads(lines[0])["people"] >= 0
    for pattern, line in zip(
        [r"\d{4}-\d\d", "yes|no", r"f\([a-z]+(,\d)?\)", r"[a-c]\d(,[a-c]\d)?"], lines[1:], strict=False
    ):
        assert re.fullmatch(pattern, line), line


def test_the_limits_are_those_of_the_code() -> None:
    config = StructuredOutputsConfig()
    for name in StructuredOutputsConfig.__struct_fields__:
        [row] = [line for line in PAGE.splitlines() if f"`--{name.replace('_', '-')}`" in line]
        default = getattr(config, name)
        assert (f"| half the cores, 1 to {MAX_WORKERS} |" if default is None else f"| {default:g} |") in row
    for value, shown in (
        (structured.MAX_SCHEMA_BYTES >> 10, "64 KiB"),
        (structured.MAX_SCHEMA_DEPTH, "48 levels"),
        (structured.MAX_SCHEMA_NODES, "4,000 objects"),
        (structured.MAX_ENUM, "1,000 values"),
        (structured.MAX_GRAMMAR_BYTES >> 10, "32 KiB"),
        (structured.MAX_CHOICES, "256 of 1 KiB"),
    ):
        assert f"{value:,}" == shown.split()[0] and shown in PAGE
