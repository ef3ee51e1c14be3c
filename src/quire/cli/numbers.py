"""Numbers as people write them: 4k is 4000, 4K is 4096, 25.6k is 25600, 1m and 1M likewise, and so for g and G."""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = re.compile(r"([+-]?\d[\d_]*(?:\.\d+)?)([kmgtKMGT]?)")


def whole_number(text: str) -> int:
    """An integer with an optional unit.

    Raises:
        ValueError: it is none; the message says what would be.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match:
        value = float(match.group(1)) * _UNITS[match.group(2)] if "." in match.group(1) else None
        exact = int(match.group(1)) * _UNITS[match.group(2)] if value is None else round(value)
        if value is None or abs(value - exact) < 1e-6:
            return exact
    raise ValueError(f"{text!r} is not a whole number such as 4096, 4k (4000), 4K (4096) or 25.6k (25600)")
