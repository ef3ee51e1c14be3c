"""The parent's side: a private folder for the sockets, a child process, and a client that talks to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from quire.config import EngineConfig
from quire.frontend.client import Client
from quire.messages import Progress
from quire.version import __version__

ENVIRONMENT = {
    # torch's CUDA allocator: segments that grow, so that changing shapes leave no holes
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # idle OpenMP threads give up the core after about 0.2 ms: long spinning starves the server beside them
    "GOMP_SPINCOUNT": "20000",
    # keep freed activations in the heap: mapping them anew costs a page fault per 4 KiB
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}
"""What the engine process must find before it loads torch. The user's own values win."""


async def start_engine(config: EngineConfig, on_progress: Callable[[Progress], None] | None = None) -> Client:
    """Start an engine and return its client at once; `await client.wait_ready()` tells when and how it came up.

    The child reads its settings from standard input and takes the end of that pipe as the parent's death, so it
    never outlives us. It has its own session: Ctrl-C reaches the parent only, which decides what to do.
    """
    folder = Path(tempfile.mkdtemp(prefix="quire-"))  # mode 0700, random name
    package_root = str(Path(__file__).parents[2])
    python_path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**ENVIRONMENT, "TRITON_CACHE_DIR": str(_kernel_cache()), **os.environ, "PYTHONPATH": python_path}
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.launch.child", str(folder)],
        stdin=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return Client(folder, process, on_progress, lambda: shutil.rmtree(folder, ignore_errors=True))


def _kernel_cache() -> Path:
    """Where compiled kernels are kept: one folder per version of ours in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "kernels" / __version__
