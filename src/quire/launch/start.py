"""The parent's side: a private folder for the sockets, a child process, and a client that talks to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from quire.config import EngineConfig
from quire.frontend.client import Client
from quire.launch.cores import may_run_on_cpu, openmp_environment
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
    # tensors of a CPU in pages of 2 MiB where the system has them on demand: weights load twice as fast
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""What the engine process must find before it loads torch. The user's own values win."""

ENGINE_COMMAND: tuple[str, ...] = (sys.executable, "-m", "quire.launch.child")
"""What the engine process runs; tests and benchmarks put an engine without a model in its place."""


async def start_engine(
    config: EngineConfig, on_progress: Callable[[Progress], None] | None = None, *, num_clients: int = 1
) -> Client:
    """Start an engine and return its client at once; `await client.wait_ready()` tells when and how it came up.

    With `num_clients` above 1 the engine waits for as many; the others come with `join_engine(client.folder, index)`.

    The child reads its settings from standard input and takes the end of that pipe as the parent's death, so it
    never outlives us. It has its own session: Ctrl-C reaches the parent only, which decides what to do.
    """
    folder = Path(tempfile.mkdtemp(prefix="quire-"))  # mode 0700, random name
    package_root = str(Path(__file__).parents[2])
    python_path = os.pathsep.join([package_root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**ENVIRONMENT, "TRITON_CACHE_DIR": str(_kernel_cache())}
    if may_run_on_cpu(config):
        environment |= openmp_environment()
    environment |= {**os.environ, "PYTHONPATH": python_path}

    def spawn() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*ENGINE_COMMAND, str(folder), str(num_clients)],
            stdin=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
        return process

    remove = partial(shutil.rmtree, folder, ignore_errors=True)
    timeout = config.operation.step_timeout
    return Client(folder, spawn, on_progress, remove, num_clients=num_clients, step_timeout=timeout)


async def join_engine(folder: Path, index: int, num_clients: int) -> Client:
    """A further client of an engine that another process has started; it learns of the engine's end from there."""
    return Client(folder, None, index=index, num_clients=num_clients)


def _kernel_cache() -> Path:
    """Where compiled kernels are kept: one folder per version of ours in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "kernels" / __version__
