"""Compiling kernels before they are needed, in parallel.

The first launch of a Triton kernel compiles it, a fifth of a second to two seconds, one after the other. Here steps are
run through with all launches of ours left out: what they would have launched is compiled by a pool of threads instead.
Operations of torch do run, on whatever our kernels would have written; so such a step may be used for nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction


def compile_ahead(steps: Iterable[Callable[[], object]]) -> None:
    """Compile what these steps launch; returns when all of it is there. Triton keeps it on disk as well."""
    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="quire-compile")
    with pool, AsyncCompileMode(pool), _without_launching():
        for step in steps:
            step()


@contextmanager
def _without_launching() -> Iterator[None]:
    """Triton's launches stop when the kernel is known, which is what its own `warmup` does for one kernel."""
    run = JITFunction.run

    def compile_only(self: JITFunction[Any], *args: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(self, *args, warmup=True, **kwargs)

    JITFunction.run = compile_only
    try:
        yield
    finally:
        JITFunction.run = run
