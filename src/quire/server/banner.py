"""What the start prints on stderr: progress while loading, then at most 12 lines that say what was started."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from quire.messages import Progress, Ready

GIB = 1 << 30


class LoadingLine:
    """Progress on one line that rewrites itself; on a file, a line now and then.

    Args:
        out: usually stderr.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._tty = self._out.isatty()
        self._next = 0.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.done < progress.total:
            return
        self._next = now + (0.1 if self._tty else 5.0)
        share = progress.done / progress.total if progress.total else 1.0
        text = f"{progress.stage}: {share:4.0%} of {_size(progress.total)}"
        if self._tty:
            self._out.write(f"\r{text.ljust(self._width)}")
            self._width = len(text)
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def end(self) -> None:
        """Leave the terminal on a fresh line."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._width = 0


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / (1 << 20):.1f} MiB"


def banner(
    ready: Ready,
    *,
    names: tuple[str, ...],
    url: str,
    keys: int,
    open_host: bool,
    max_body_bytes: int,
    max_choices: int,
    seconds: float,
    num_processes: int = 1,
) -> str:
    """The lines after a start.

    Args:
        ready: the engine's facts.
        names: served model names.
        url: where to reach it.
        keys: number of API keys.
        open_host: whether other machines can reach it.
        max_body_bytes: most bytes of a request body.
        max_choices: most choices of a request.
        seconds: from the command to being ready.
        num_processes: how many API processes answer.
    """
    blocks = ready.num_blocks - 1  # without the null block that padding points to
    tokens = blocks * ready.block_size
    full = min(tokens / ready.max_model_len, ready.max_num_seqs)
    auth = f"on, {keys} key{'s' if keys > 1 else ''}" if keys else "off"
    if open_host and not keys:
        auth += "  (reachable from other machines: set --api-key)"
    split = ", ".join(f"{stage} {took:.1f}" for stage, took in ready.seconds.items())
    rows = [
        ("model", ", ".join(names)),
        ("device", f"{ready.device}, {ready.dtype}"),
        ("weights", _size(ready.weights_bytes)),
        (
            "KV cache",
            f"{_size(ready.kv_bytes)}: {tokens} tokens in {blocks} blocks of {ready.block_size}",
        ),
        ("at once", f"{full:.1f} requests of full length ({ready.max_model_len} tokens), at most {ready.max_num_seqs}"),
        (
            "limits",
            f"{ready.max_num_batched_tokens} tokens per step, body {max_body_bytes >> 20} MiB, n <= {max_choices}",
        ),
        *([("API", f"{num_processes} processes share the port")] if num_processes > 1 else []),
        ("keys", auth),
        ("ready", f"{url}/v1 after {seconds:.1f} s" + (f" ({split})" if split else "")),
    ]
    return "\n".join(f"{name:>9}  {text}" for name, text in rows)
