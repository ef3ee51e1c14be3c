"""Llama 3.1 to 3.3: {"name": …, "parameters": {…}} at the start of a line, several separated by "; "; or behind
<|python_tag|>."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser


class LlamaJsonParser(JsonToolParser):
    """JSON without tags: it is a call if its members are a call's and the function is known."""

    openers = ("<|python_tag|>", "<|python_start|>")
    closers = ("<|python_end|>",)
    line_openers = "{"
    strict_keys = True
    markers = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
