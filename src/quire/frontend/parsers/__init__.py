"""Parsers of model output, one file each: tool calls and reasoning. Empty until the first one."""
