"""`quire bench ceiling`: what the load generator itself can take, measured against a server that generates nothing.

Two tests: chunks (long answers: chunks per second) and requests (answers of one chunk: requests per second).
The stub runs beside the client, so on a machine with few cores the two of them share the ceiling.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from quire.bench.load import Job, Target
from quire.bench.options import CeilingOptions
from quire.bench.report import error_lines, write_json
from quire.bench.workers import RunResult, run_job
from quire.errors import QuireError, StartupError

REQUESTS_PER_CLIENT = 40
TIMEOUT = 300.0


class Ceiling(msgspec.Struct, frozen=True):
    """What was measured.

    Attributes:
        chunks_per_second: taken in the test of long answers.
        reads_per_second: network reads in which those chunks came.
        requests_per_second: in the test of answers of one chunk.
        chunk_cpu_share, request_cpu_share: of a core, taken by the busiest client process.
    """

    chunks_per_second: float
    reads_per_second: float
    chunk_cpu_share: float
    requests_per_second: float
    request_cpu_share: float


def run_ceiling(options: CeilingOptions) -> Ceiling:
    """Both tests, printed and saved.

    Raises:
        QuireError: the stub did not start or answer.
    """
    with stub(options.step_ms, options.stub_workers) as port:
        chunks = _run(options, port, options.num_prompts, options.output_len)
        requests = _run(options, port, options.concurrency * REQUESTS_PER_CLIENT, 1)
    reads = sum(len(np.unique(outcome.times)) for outcome in chunks.outcomes)
    num_chunks = options.num_prompts * options.output_len
    ceiling = Ceiling(
        chunks_per_second=num_chunks / _seconds(chunks),
        reads_per_second=reads / _seconds(chunks),
        chunk_cpu_share=chunks.cpu_share,
        requests_per_second=len(requests.outcomes) / _seconds(requests),
        request_cpu_share=requests.cpu_share,
    )
    print(
        f"Client: {options.num_workers} process(es), {options.concurrency} streams;"
        f" stub: {options.stub_workers} process(es), a step each {options.step_ms:g} ms\n"
        f"Chunks:   {ceiling.chunks_per_second:,.0f} per second in {ceiling.reads_per_second:,.0f} reads per second,"
        f" {ceiling.chunk_cpu_share:.0%} of a core\n"
        f"Requests: {ceiling.requests_per_second:,.0f} per second of {options.input_len} prompt tokens,"
        f" {ceiling.request_cpu_share:.0%} of a core",
        flush=True,
    )
    if options.output_json:
        write_json(Path(options.output_json), msgspec.to_builtins({"options": options, "ceiling": ceiling}))
    return ceiling


@contextlib.contextmanager
def stub(step_ms: float = 0.0, num_workers: int = 1, fail_every: int = 0) -> Iterator[int]:
    """A stub server in processes of its own; yields its port.

    Raises:
        StartupError: it did not come up.
    """
    with contextlib.ExitStack() as stack:
        port = 0
        for _ in range(num_workers):  # they share the port: the kernel deals out connections
            port = stack.enter_context(_stub_process(port, step_ms, fail_every))
        yield port


@contextlib.contextmanager
def _stub_process(port: int, step_ms: float, fail_every: int) -> Iterator[int]:
    flags = ["--port", str(port), "--step-ms", str(step_ms), "--fail-every", str(fail_every)]
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.bench.stub", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        line = process.stdout.readline()
        if not line.strip().isdecimal():
            raise StartupError("The stub server did not start.")
        yield int(line)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _run(options: CeilingOptions, port: int, count: int, output_len: int) -> RunResult:
    ids = list(range(1000, 1000 + options.input_len))
    body = msgspec.json.encode({"model": "stub", "prompt": ids, "max_tokens": output_len, "stream": True})
    target = Target("127.0.0.1", port, tls=False, path="/v1/completions")
    job = Job(target, range(count), [body] * count, [0.0] * count, options.concurrency, TIMEOUT)
    run = run_job(job, options.num_workers)
    errors = error_lines(run.outcomes)
    if errors:
        raise QuireError(f"The stub server failed: {errors[0]}")
    return run


def _seconds(run: RunResult) -> float:
    return max(max(outcome.end for outcome in run.outcomes) - run.start, 1e-9)
