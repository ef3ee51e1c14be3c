"""Qwen3-Coder and relatives:

<tool_call>
<function=NAME>
<parameter=KEY>
value
</parameter>
</function>
</tool_call>
"""

from __future__ import annotations

from quire.frontend.parsers.tagged import TaggedToolParser


class Qwen3CoderParser(TaggedToolParser):
    """Tags; values stand on lines of their own. Without <tool_call> it is a call as well."""

    openers = ("<tool_call>", "<function=")
    function_opener = "<function="
    function_closer = "</function>"
    parameter_opener = "<parameter="
    parameter_closer = "</parameter>"
    closers = ("</function>", "</tool_call>")
    trim = True
    markers = ("<tool_call>", "</tool_call>")


class SeedOssParser(Qwen3CoderParser):
    """Seed-OSS: the same between <seed:tool_call> tags."""

    openers = ("<seed:tool_call>", "<function=")
    closers = ("</function>", "</seed:tool_call>")
    markers = ("<seed:tool_call>", "</seed:tool_call>")
