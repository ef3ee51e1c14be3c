"""Progress bars of `LLM`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from quire.messages import Progress

UseTqdm = bool | Callable[..., Any]


def progress_bar(use_tqdm: UseTqdm, total: int) -> ProgressBar | None:
    """A bar for so many prompts, if one is wanted; a callable takes the place of tqdm."""
    if not use_tqdm:
        return None
    return ProgressBar(total, use_tqdm) if callable(use_tqdm) else ProgressBar(total)


class ProgressBar:
    """Prompts done, with input and output tokens per second.

    Args:
        total: prompts.
        make: tqdm, or what the caller wants in its place.
    """

    def __init__(self, total: int, make: Callable[..., Any] = tqdm) -> None:
        self._bar = make(total=total, desc="Prompts", unit="prompt", dynamic_ncols=True)
        self._start = time.monotonic()
        self._input = self._output = 0

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """One more prompt is done."""
        self._input += input_tokens
        self._output += output_tokens
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"in {self._input / seconds:,.0f} tok/s, out {self._output / seconds:,.0f} tok/s", refresh=False
        )
        self._bar.update()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()


class LoadingBar:
    """Bytes of weights loaded; only shown for models that take a while."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, progress: Progress) -> None:
        """Take in one report."""
        if progress.total < 200 << 20:
            return
        if self._bar is None:
            self._bar = tqdm(total=progress.total, desc="Loading weights", unit="B", unit_scale=True)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Done."""
        if self._bar is not None:
            self._bar.close()
