from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))

IDLE = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def _servers() -> dict[int, tuple[psutil.Process, str]]:
    """The servers that tests have started and that live: process and URL, by its id."""
    found = {}
    for process in psutil.Process().children():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "serve" in words and "--port" in words:
            found[process.pid] = (process, f"http://127.0.0.1:{words[words.index('--port') + 1]}")
    return found


def _busy(url: str) -> list[str]:
    """Lines of /metrics that say that something is held; none where the page cannot be read."""
    try:
        page = urllib.request.urlopen(url + "/metrics", timeout=2).read().decode()
    except (OSError, urllib.error.URLError):
        return []
    return [line for line in page.splitlines() if line.startswith(IDLE) and float(line.split()[-1]) != 0]


def _num_fds(process: psutil.Process) -> int:
    """Of the server and the engine, without connections that clients keep open and sockets to grammar workers."""
    try:
        family = [process, *process.children()]
        clients = sum(c.status == psutil.CONN_ESTABLISHED for one in family for c in one.net_connections("tcp"))
        workers = len(process.children(recursive=True)) - len(process.children())
        return sum(one.num_fds() for one in family) - clients - workers
    except psutil.Error:
        return 0


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test, within 2 s: no server that lived before it runs a request, has one waiting, or holds a block
    or more descriptors than before (two more may come and go)."""
    before = {pid: _num_fds(process) for pid, (process, _) in _servers().items()}
    yield
    end = time.monotonic() + 2
    while True:
        problems = [
            (url, busy, f"{fds} descriptors, before {before[pid]}")
            for pid, (process, url) in _servers().items()
            if pid in before
            if (busy := _busy(url)) + ([] if (fds := _num_fds(process)) <= before[pid] + 2 else ["descriptors"])
        ]
        if not problems:
            return
        assert time.monotonic() < end, problems
        time.sleep(0.05)
