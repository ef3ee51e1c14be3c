"""`quire serve` with the demo model, and a client beside it whose stream must not be disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import httpx

from quire.server.listen import listen

PROMPT = "Once upon a time"
NUM_TOKENS = 60


class Served:
    """A running server; a context.

    Args:
        flags: of `quire serve`.
    """

    def __init__(self, *flags: str) -> None:
        sock = listen("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        sock.close()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "quire", "serve", *flags, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        if self.process.stderr is not None:
            self.log.extend(self.process.stderr)

    def __enter__(self) -> Served:
        end = time.monotonic() + 90
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(self.url + "/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise RuntimeError("the server did not come up: " + "".join(self.log))

    def __exit__(self, *args: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def gauges(self) -> dict[str, float]:
        """Running, waiting, share of blocks in use."""
        text = urllib.request.urlopen(self.url + "/metrics", timeout=10).read().decode()
        found = {}
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
            found[name] = sum(
                float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{")
            )
        return found

    def rest(self, seconds: float = 2.0) -> dict[str, float]:
        """What is left of all requests after at most so long: it should be nothing."""
        end = time.monotonic() + seconds
        while any((gauges := self.gauges()).values()) and time.monotonic() < end:
            time.sleep(0.05)
        return {name: value for name, value in gauges.items() if value}

    def rss_mib(self) -> float:
        """Memory of the process that answers HTTP, swapped out or not."""
        with open(f"/proc/{self.process.pid}/status") as file:  # noqa: PTH123
            lines = dict(line.split(":", 1) for line in file)
        return sum(int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024


class Canary:
    """One stream after another, as long as the context lasts.

    Attributes:
        texts: the different texts that came; one, if nobody disturbs it.
        gap: longest time between two chunks, in seconds.
        num_streams: that ended.
        errors: what went wrong.
    """

    def __init__(self, url: str) -> None:
        self.texts: set[str] = set()
        self.gap = 0.0
        self.num_streams = 0
        self.errors: list[str] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Canary:
        self.once()
        self.quiet, self.gap = set(self.texts), 0.0
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.once()
            except Exception as error:  # noqa: BLE001 - told by the test
                self.errors.append(repr(error))
                return

    def once(self) -> None:
        """One stream from beginning to end."""
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        text, last = "", None
        with httpx.stream("POST", self._url + "/v1/completions", json={**body, "stream": True}, timeout=20) as answer:
            for line in answer.iter_lines():
                now = time.monotonic()
                if line.startswith("data: {"):
                    chunk = json.loads(line[6:])
                    text += chunk["choices"][0]["text"]
                    self.gap = max(self.gap, now - (last or now))
                    last = now
        self.texts.add(text)
        self.num_streams += 1

    def complaints(self) -> list[str]:
        """What is not as in the quiet run."""
        found = list(self.errors)
        if self.texts != self.quiet:
            found.append(f"its text changed: {self.texts}")
        if self.gap > 1.0:
            found.append(f"a gap of {self.gap:.2f} s")
        if self.num_streams < 2:
            found.append("it did not run")
        return found
