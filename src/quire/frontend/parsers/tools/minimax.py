"""MiniMax M2:

<minimax:tool_call>
<invoke name="NAME">
<parameter name="KEY">value</parameter>
</invoke>
</minimax:tool_call>
"""

from __future__ import annotations

from quire.frontend.parsers.tagged import TaggedToolParser


class MiniMaxM2Parser(TaggedToolParser):
    """Tags; bare values."""

    openers = ("<minimax:tool_call>",)
    function_opener = "<invoke name="
    function_closer = "</invoke>"
    parameter_opener = "<parameter name="
    parameter_closer = "</parameter>"
    closers = ("</invoke>", "</minimax:tool_call>")
    markers = ("<minimax:tool_call>", "</minimax:tool_call>")
