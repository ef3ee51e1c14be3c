"""The examples in docs/parsers.md run, and its tables name every parser."""

from __future__ import annotations

import re
from pathlib import Path

from quire.frontend.parsers.reasoning import REASONING_PARSERS
from quire.frontend.parsers.tools import TOOL_PARSERS

PAGE = (Path(__file__).parents[2] / "docs" / "parsers.md").read_text(encoding="utf-8")


def test_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/parsers.md", "exec"), {"__name__": "example"})


def test_tables_name_every_parser() -> None:
    tools, reasoning = PAGE.split("## Tool parsers")[1].split("## Reasoning parsers")
    reasoning = reasoning.split("## Rules")[0]
    for name in TOOL_PARSERS:
        assert f"`{name}`" in tools, name
    for name in REASONING_PARSERS:
        assert f"`{name}`" in reasoning, name
