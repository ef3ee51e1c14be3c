"""The process from which all grammar workers are forked, and what a worker does.

    engine ── "fork", one end of a socket ──► parent ── fork ──► worker ◄── jobs, masks ──► engine

The parent reads the vocabulary once; a fork shares it and costs milliseconds. Whoever finds the engine's end of its
socket closed ends at once, so nobody outlives the engine.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import signal
import socket
import sys
import time

import msgspec
import numpy as np

from quire.engine.grammar.matching import GrammarError, Matchers, load_vocabulary
from quire.engine.grammar.wire import (
    FORK,
    Advance,
    Channel,
    Closed,
    Compile,
    Compiled,
    Drop,
    Forget,
    Hello,
    Masked,
    Setup,
    Start,
    ToWorker,
    line_bytes,
)
from quire.lifeline import die_with_parent


def main() -> None:
    """Entry point: descriptors of the control socket and of the mask memory, then Setup as JSON."""
    control = socket.socket(fileno=int(sys.argv[1]))
    memory_fd = int(sys.argv[2])
    setup = msgspec.json.decode(sys.argv[3], type=Setup)
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system clears away workers that ended
    try:
        vocabulary = load_vocabulary(setup.tokenizer, setup.vocab_size, setup.end_token_ids)
    except ValueError as error:
        control.sendall(str(error).encode()[:1000])
        sys.exit(1)
    size = line_bytes(setup.vocab_size)
    memory = mmap.mmap(memory_fd, setup.num_lines * size)
    lines = np.frombuffer(memory, dtype=np.uint8).reshape(setup.num_lines, size)
    gc.collect()
    gc.freeze()
    while True:
        word, descriptors, _, _ = socket.recv_fds(control, len(FORK), 1)
        if not word:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            die_with_parent()
            _limit_memory(setup.memory_bytes)
            channel = Channel(socket.socket(fileno=descriptors[0]), ToWorker, wait=True)
            try:
                serve(channel, vocabulary, lines, setup.threads)
            except BaseException as error:  # noqa: BLE001 - the engine sees that it is gone; the parent must not go on here
                print(f"quire: a grammar worker ended: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        os.close(descriptors[0])


def serve(channel: Channel, vocabulary: object, lines: np.ndarray, threads: int) -> None:
    """Do jobs in their order until the engine closes the channel."""
    matchers = Matchers(vocabulary, lines, threads)  # type: ignore[arg-type]
    channel.send(Hello(os.getpid()))
    while True:
        try:
            jobs = channel.receive()
            for job in jobs:
                answer = _do(matchers, job)
                if answer is not None:
                    channel.send(answer)
        except Closed:
            return


def _do(matchers: Matchers, job: object) -> Compiled | Masked | None:
    match job:
        case Compile(key, grammar):
            try:
                matchers.compile(key, grammar)
            except GrammarError as error:
                return Compiled(key, str(error))
            return Compiled(key)
        case Start():
            begun = time.process_time()
            wrong = matchers.start(job)
            return Masked([job.matcher], {job.matcher: wrong} if wrong else {}, time.process_time() - begun)
        case Advance():
            begun = time.process_time()
            return Masked(job.matchers, matchers.advance(job), time.process_time() - begun)
        case Drop(numbers):
            matchers.drop(numbers)
        case Forget(key):
            matchers.forget(key)
    return None


def _limit_memory(allowed: int) -> None:
    """So much address space more than now; beyond it an allocation fails, and with it this process."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 - one line of the kernel's
        pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + allowed
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
