"""DeepSeek V3.2, which calls its tags DSML:

    <｜DSML｜function_calls>
    <｜DSML｜invoke name="NAME">
    <｜DSML｜parameter name="KEY" string="true">text</｜DSML｜parameter>
    </｜DSML｜invoke>
    </｜DSML｜function_calls>

string="false" marks a value that is JSON.
"""

# ruff: noqa: RUF001, RUF002 - the wide bars are DeepSeek's own
from __future__ import annotations

from quire.frontend.parsers.tagged import TaggedToolParser


class DeepSeekV32Parser(TaggedToolParser):
    """Tags; each value says whether it is text."""

    openers = ("<｜DSML｜function_calls>", "<｜DSML｜invoke name=")
    function_opener = "<｜DSML｜invoke name="
    function_closer = "</｜DSML｜invoke>"
    parameter_opener = "<｜DSML｜parameter name="
    parameter_closer = "</｜DSML｜parameter>"
    closers = ("</｜DSML｜invoke>", "</｜DSML｜function_calls>")
    markers = ("｜DSML｜",)
